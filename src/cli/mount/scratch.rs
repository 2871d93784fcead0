//! Where a mount keeps what was read: a directory below $TMPDIR, removed in the end. One that a killed mount left is removed by
//! the next.

use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::cas::StoreConfig;
use crate::cli::exit::{Exit, Failure};
use crate::config::units::Amount;

const PREFIX: &str = "boxwright-mount-";

/// The directory.
pub(super) struct Scratch {
    path: PathBuf,
    /// Whoever holds its lock uses it; the kernel takes the lock from the dead.
    _lock: OwnedFd,
}

impl Scratch {
    /// A new one, below this directory.
    pub(super) fn new(below: &Path) -> Result<Self, Failure> {
        remove_left(below);
        loop {
            let name = format!("{PREFIX}{}", uuid::Uuid::new_v4().simple());
            let path = below.join(name);
            let failed = |e: std::io::Error| {
                let text = format!(
                    "cannot create {}: {e}; set TMPDIR to a directory that can be written",
                    path.display()
                );
                Failure::new(Exit::CannotCreate, text)
            };
            let mut builder = std::fs::DirBuilder::new();
            builder.mode(0o700).create(&path).map_err(failed)?;
            let lock = lock(&path);
            match lock.map_err(|e| failed(e.into()))? {
                Some(_lock) if path.exists() => return Ok(Scratch { path, _lock }),
                // Another mount, which begins now, took it for one that was left.
                _ => {}
            }
        }
    }

    /// A store in it that keeps so much; half of what is free there, if nobody says.
    pub(super) fn store(&self, size: Option<Amount>) -> Result<StoreConfig, Failure> {
        let disk = rustix::fs::statvfs(&self.path).map_err(|e| {
            let text = format!("cannot ask for the room below {}: {e}", self.path.display());
            Failure::new(Exit::Io, text)
        })?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        let free = bytes(disk.f_bavail) / 2;
        let high_water = size.map_or(free, |size| size.of(bytes(disk.f_blocks)));
        Ok(StoreConfig {
            root: self.path.clone(),
            high_water,
            low_water: high_water - high_water / 10,
            free_floor: 0,
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// `None` if another one has it, or has removed the directory.
fn lock(dir: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, dir, flags, Mode::empty());
    let locked = opened.and_then(|dir| {
        rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        Ok(dir)
    });
    match locked {
        Err(Errno::WOULDBLOCK | Errno::NOENT) => Ok(None),
        other => other.map(Some),
    }
}

/// Removes those of this user that nobody holds any more. One that cannot be removed harms nobody here.
fn remove_left(below: &Path) {
    let entries = std::fs::read_dir(below).into_iter().flatten().flatten();
    for entry in entries {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(Some(left)) = lock(&entry.path()) else {
            continue;
        };
        let own = rustix::process::geteuid().as_raw();
        if rustix::fs::fstat(&left).is_ok_and(|stat| stat.st_uid == own) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_holds_goes_and_what_somebody_holds_stays() {
        let below = tempfile::tempdir().unwrap();
        let names = || {
            let entries = std::fs::read_dir(below.path()).unwrap().flatten();
            let mut names: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            names.sort();
            names
        };
        let left = below.path().join(format!("{PREFIX}left"));
        std::fs::create_dir_all(left.join("cas")).unwrap();
        let other = below.path().join("another-programs");
        std::fs::create_dir(&other).unwrap();
        let link = below.path().join(format!("{PREFIX}link"));
        std::os::unix::fs::symlink(&other, &link).unwrap();
        let first = Scratch::new(below.path()).unwrap();
        assert!(!left.exists() && other.exists());
        let second = Scratch::new(below.path()).unwrap();
        let mut both = vec![first.path.clone(), second.path.clone(), other, link];
        both.sort();
        assert_eq!(names(), both);
        drop((first, second));
        assert_eq!(names().len(), 2);
    }
}
