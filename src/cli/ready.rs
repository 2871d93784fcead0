//! Tells the service manager that a daemon has come up: what sd_notify(3) does, for units of `Type=notify`.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// To be said once the configuration, the state directory and the sandbox are good. Whoever is elsewhere, as a scheduler, need not
/// answer for it: a start that waits for them would be given up, and tried again for nothing.
pub(super) fn ready() {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = tell(&socket, b"READY=1")
    {
        tracing::warn!("cannot tell the service manager at {socket:?} that all is up: {error}");
    }
}

/// A name that begins with `@` stands for an abstract address.
fn tell(socket: &OsString, what: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(what, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abstract_addresses_are_understood() {
        let name = format!("boxwright-ready-{}", std::process::id());
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap())
                .unwrap();
        tell(&format!("@{name}").into(), b"READY=1").unwrap();
        let mut said = [0; 16];
        let length = manager.recv(&mut said).unwrap();
        assert_eq!(&said[..length], b"READY=1");
    }
}
