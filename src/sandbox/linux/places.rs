//! The directories that an input root must have to be a root: places for /proc, /dev and the memory file systems. Those that the
//! tree lacks are made before a command, and taken away after it, so that they are in no output.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use crate::config::Owner;

const PLACES: [&str; 5] = ["proc", "dev", "tmp", "var", "var/tmp"];
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

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
        let mut places = Places {
            root,
            made: Vec::new(),
        };
        for path in PLACES {
            match places.make_one(path, owner) {
                Ok(()) => places.made.push(path),
                Err(Errno::EXIST | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(places)
    }

    fn make_one(&self, path: &str, owner: Option<Owner>) -> rustix::io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let parent = parent.as_ref().unwrap_or(&self.root);
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
        if let Some(Owner { uid, gid }) = owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::fs::chownat(
                parent,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        Ok(())
    }

    fn parent<'a>(&self, path: &'a str) -> rustix::io::Result<(Option<OwnedFd>, &'a str)> {
        match path.rsplit_once('/') {
            None => Ok((None, path)),
            Some((parent, name)) => {
                let parent =
                    rustix::fs::openat2(&self.root, parent, DIRECTORY, Mode::empty(), BENEATH)?;
                Ok((Some(parent), name))
            }
        }
    }
}

impl Drop for Places {
    /// Takes away those that are still empty: what a command put beside the mounts is its own.
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            if let Ok((parent, name)) = self.parent(path) {
                let parent = parent.as_ref().unwrap_or(&self.root);
                let _ = rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
            }
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
        let places = Places::make(dir.path(), None).unwrap();
        assert!(at("proc").is_dir() && at("var/tmp").is_dir());
        fs::write(at("var/kept"), "").unwrap();
        drop(places);
        assert!(!at("proc").exists() && !at("var/tmp").exists());
        assert!(at("tmp").is_dir() && at("var/kept").exists() && at("dev").is_symlink());
    }
}
