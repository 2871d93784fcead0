//! Descriptors of this process that somebody else's code opened.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};

/// The numbers of those of the file `path`.
pub(super) fn of(path: &str) -> std::io::Result<Vec<RawFd>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // One that is closed meanwhile is nobody's concern.
        if !std::fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(path)) {
            continue;
        }
        let name = entry.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    Ok(numbers)
}

/// Sees to it that no program that is started from now on gets the descriptor.
pub(super) fn close_on_exec(number: RawFd) -> rustix::io::Result<()> {
    // SAFETY: it was open a moment ago, and is used for nothing but its own flags: if its number means another file by
    // now, that one is closed on exec, as all of ours are.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    match fcntl_getfd(descriptor) {
        Ok(flags) => fcntl_setfd(descriptor, flags | FdFlags::CLOEXEC),
        Err(_) => Ok(()),
    }
}

/// Another descriptor of the same open file, which must not be closed meanwhile.
pub(super) fn duplicate(number: RawFd) -> rustix::io::Result<OwnedFd> {
    // SAFETY: the caller keeps it open.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_dupfd_cloexec(descriptor, 3)
}
