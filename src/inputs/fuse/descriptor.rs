//! Descriptors of this process that somebody else's code opened.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Sees to it that no program that is started from now on gets a descriptor of the file `path`.
pub(super) fn close_on_exec(path: &str) -> std::io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // One that is closed meanwhile is nobody's concern.
        if !std::fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(path)) {
            continue;
        }
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(number) = number else { continue };
        // SAFETY: it was open a moment ago, and is used for nothing but its own flags: if its number means another file by
        // now, that one is closed on exec, as all of ours are.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        if let Ok(flags) = fcntl_getfd(descriptor) {
            fcntl_setfd(descriptor, flags | FdFlags::CLOEXEC)?;
        }
    }
    Ok(())
}
