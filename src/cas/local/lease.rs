//! Whether anybody has a file open for writing, as the kernel knows: it grants a read lease only
//! while there is no writer, be it a descriptor, one passed over a socket, or a shared mapping.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Linux's number for it, which the libc crate lacks.
const F_SETSIG: libc::c_int = 10;

/// What the kernel says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writers {
    None,
    Some,
    /// The file system has no leases.
    Unknown,
}

/// `file` is open for reading only. Three system calls.
pub(super) fn writers(file: BorrowedFd<'_>) -> Writers {
    // While the lease is held, an open for writing sends its holder a signal: SIGIO would end the
    // process; SIGURG does nothing to one that does not ask for it.
    if fcntl(file, F_SETSIG, libc::SIGURG).is_err() {
        return Writers::Unknown;
    }
    match fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => {
            // Given back at once: once nobody else may open the file for writing, no writer can come.
            let _ = fcntl(file, libc::F_SETLEASE, libc::F_UNLCK);
            Writers::None
        }
        Err(Errno::AGAIN) => Writers::Some,
        Err(_) => Writers::Unknown,
    }
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
            eprintln!("SKIPPED: no leases on the file system of the temporary directory");
            return;
        }
        assert_eq!(writers(reader.as_fd()), Writers::Some);
        let path = file.into_temp_path();
        assert_eq!(writers(reader.as_fd()), Writers::None);
        // The lease is not kept.
        std::fs::write(&path, "more").unwrap();
    }
}
