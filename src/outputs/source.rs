//! A directory that files are taken out of. If they are many, it is closed to everybody else first: it becomes ours, and only
//! ours to use. What a name in it leads to is then looked at once, and not again after the file was moved.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// Files from which closing a directory costs less than looking at each of them twice.
const MANY: u32 = 8;

/// An open directory.
pub(super) struct Source {
    fd: OwnedFd,
    opened: Cell<u32>,
    closed: Cell<bool>,
}

impl Source {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Source {
            fd,
            opened: Cell::new(0),
            closed: Cell::new(false),
        }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// To be asked before each file is opened: whether nobody but us can change what a name in the directory leads to, from
    /// now on.
    pub(super) fn is_closed(&self) -> bool {
        self.opened.set(self.opened.get().saturating_add(1));
        if self.opened.get() == MANY {
            self.closed.set(close(self.fd.as_fd()).unwrap_or(false));
        }
        self.closed.get()
    }
}

/// Takes the directory over from the command's user; `false` if that is who we are, or if we may not.
fn close(directory: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(directory, ".", flags, Mode::empty())?;
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    if !user.is_root() || rustix::fs::fstat(&directory)?.st_uid == user.as_raw() {
        return Ok(false);
    }
    // The owner first: until then it could change the mode back. A rename that is under way holds the lock of the directory
    // that both calls wait for, and one that begins later is refused, whoever has the directory open.
    rustix::fs::fchown(&directory, Some(user), Some(group))?;
    rustix::fs::fchmod(&directory, Mode::RWXU)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn source(path: &std::path::Path) -> Source {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Source::new(rustix::fs::open(path, flags, Mode::empty()).unwrap())
    }

    #[test]
    fn a_directory_of_our_own_user_is_not_said_to_be_closed() {
        let dir = tempfile::tempdir().unwrap();
        let mode = dir.path().metadata().unwrap().permissions().mode();
        let source = source(dir.path());
        for _ in 0..2 * MANY {
            assert!(!source.is_closed());
        }
        assert_eq!(dir.path().metadata().unwrap().permissions().mode(), mode);
    }
}
