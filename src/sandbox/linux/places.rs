//! The directories that an input root must have to be a root: places for /proc, /dev and the memory file systems. Those that the
//! tree lacks are made before a command, and taken away after it, so that they are in no output.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::beneath::modified;
use crate::config::Owner;

const PLACES: [&str; 3] = ["proc", "dev", "tmp"];
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The directories that were made.
#[derive(Debug)]
pub(super) struct Places {
    root: OwnedFd,
    made: Vec<&'static str>,
}

impl Places {
    /// Makes what is lacking below `root`, for `owner`. A link or a file in a directory's place is left: the launcher refuses it by
    /// its name.
    pub(super) fn make(root: &Path, owner: Option<Owner>) -> io::Result<Places> {
        let root = rustix::fs::openat(CWD, root, DIRECTORY, Mode::empty())?;
        let before = rustix::fs::fstat(&root)?;
        let mut places = Places {
            root,
            made: Vec::new(),
        };
        for path in PLACES {
            match places.make_one(path, owner) {
                Ok(()) => places.made.push(path),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        places.date(&before)?;
        Ok(places)
    }

    /// Gives the root the time back that it had: a command sees an input root as it was given.
    fn date(&self, before: &Stat) -> rustix::io::Result<()> {
        if self.made.is_empty() {
            return Ok(());
        }
        let times = modified(before.st_mtime, before.st_mtime_nsec as _);
        rustix::fs::utimensat(&self.root, ".", &times, AtFlags::empty())
    }

    fn make_one(&self, path: &str, owner: Option<Owner>) -> rustix::io::Result<()> {
        rustix::fs::mkdirat(&self.root, path, Mode::from_raw_mode(0o755))?;
        if let Some(Owner { uid, gid }) = owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&self.root, path, Some(uid), Some(gid), flags)?;
        }
        Ok(())
    }
}

impl Drop for Places {
    /// Takes away those that are still empty: what a command put beside the mounts is its own.
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            let _ = rustix::fs::unlinkat(&self.root, *path, AtFlags::REMOVEDIR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_was_lacking_is_made_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir(at("tmp")).unwrap();
        std::os::unix::fs::symlink("/etc", at("dev")).unwrap();
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        fs::File::open(dir.path())
            .unwrap()
            .set_modified(then)
            .unwrap();
        let places = Places::make(dir.path(), None).unwrap();
        assert!(at("proc").is_dir());
        assert_eq!(fs::metadata(dir.path()).unwrap().modified().unwrap(), then);
        drop(places);
        assert!(!at("proc").exists());
        assert!(at("tmp").is_dir() && at("dev").is_symlink());
    }
}
