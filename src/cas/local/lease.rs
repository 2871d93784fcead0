//! Whether anybody has a file open for writing, as the kernel knows: it grants a read lease only
//! while there is no writer, be it a descriptor, one passed over a socket, or a shared mapping.
//!
//! The lease is kept until the descriptor is closed. Until then somebody who opens the file for writing waits, and that can only
//! be somebody whom permissions do not bind.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Once;

use rustix::io::Errno;

/// What the kernel says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writers {
    None,
    Some,
    /// The file system has no leases.
    Unknown,
}

/// `file` is open for reading only, and soon closed. One system call: it is made for each output.
pub(super) fn writers(file: BorrowedFd<'_>) -> Writers {
    bear_the_signal();
    match fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => Writers::None,
        Err(Errno::AGAIN) => Writers::Some,
        Err(_) => Writers::Unknown,
    }
}

/// While a lease is held, an open for writing sends its holder SIGIO, which ends a process that has made no arrangements.
fn bear_the_signal() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: ignoring a signal installs no handler; one that somebody else has installed is put back.
        unsafe {
            let before = libc::signal(libc::SIGIO, libc::SIG_IGN);
            if before != libc::SIG_DFL && before != libc::SIG_ERR {
                libc::signal(libc::SIGIO, before);
            }
        }
    });
}

fn fcntl(file: BorrowedFd<'_>, command: libc::c_int, argument: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the descriptor is open while it is borrowed, and these commands take an int and touch no memory.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, argument) } {
        -1 => Err(std::io::Error::last_os_error()
            .raw_os_error()
            .map_or(Errno::IO, Errno::from_raw_os_error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_writer_is_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = std::fs::File::open(file.path()).unwrap();
        if writers(reader.as_fd()) == Writers::Unknown {
            crate::skipped::here("no leases on the file system of the temporary directory");
            return;
        }
        assert_eq!(writers(reader.as_fd()), Writers::Some);
        let path = file.into_temp_path();
        assert_eq!(writers(reader.as_fd()), Writers::None);
        // An open for writing breaks the lease, which is told by a signal, and waits for its end.
        let flags = libc::O_NONBLOCK;
        let mut writing = std::fs::OpenOptions::new();
        let writing = std::os::unix::fs::OpenOptionsExt::custom_flags(writing.write(true), flags);
        let error = writing.open(&path).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        drop(reader);
        std::fs::write(&path, "more").unwrap();
    }
}
