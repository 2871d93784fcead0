//! Which users a daemon's slots run as. A slot's user is the handle by which everything that a
//! command left behind is found and killed, so two daemons on one host must never share one: each
//! claims its range by locking a file in `/run/boxwright`, which the kernel unlocks when the
//! daemon dies, however it dies.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::sandbox::SandboxError;

/// Where the locks are. Root's own, and the same for every daemon of the host.
const LOCKS: &str = "/run/boxwright";
/// Ids are claimed in blocks of this many.
const BLOCK: u32 = 256;
/// How many ranges are tried before it is an error that all are taken.
const ATTEMPTS: u32 = 256;

/// A range of user ids that belongs to this process until it ends.
#[derive(Debug)]
pub struct UidRange {
    first: u32,
    count: u32,
    _locks: Vec<File>,
}

impl UidRange {
    /// Claims `count` ids: from `first` on, or, if another daemon has one of those, from the next free
    /// blocks of 256 above.
    pub fn claim(first: u32, count: usize) -> Result<Self, SandboxError> {
        Self::claim_in(Path::new(LOCKS), first, count)
    }

    fn claim_in(dir: &Path, first: u32, count: usize) -> Result<Self, SandboxError> {
        let setup = |action: String| move |source| SandboxError::Setup { action, source };
        let bad = |first: u32| SandboxError::Setup {
            action: format!("give {count} slots their users from uid {first} on"),
            source: std::io::Error::other(
                "that are not a range without uid 0 and within 32 bits; choose another --first-uid",
            ),
        };
        let count = u32::try_from(count).map_err(|_| bad(first))?.max(1);
        lock_directory(dir).map_err(setup(format!("use {} for locks", dir.display())))?;
        let mut at = first;
        for _ in 0..ATTEMPTS {
            let last = at
                .checked_add(count - 1)
                .filter(|_| at != 0)
                .ok_or_else(|| bad(at))?;
            let blocks = at / BLOCK..=last / BLOCK;
            let locks = blocks
                .map(|block| lock(dir, block).transpose())
                .collect::<Option<std::io::Result<Vec<File>>>>();
            if let Some(locks) = locks {
                let locks = locks.map_err(setup(format!("lock uids in {}", dir.display())))?;
                return Ok(UidRange {
                    first: at,
                    count,
                    _locks: locks,
                });
            }
            at = (at / BLOCK + 1).checked_mul(BLOCK).ok_or_else(|| bad(at))?;
        }
        Err(SandboxError::Setup {
            action: format!("claim {count} uids from {first} on"),
            source: std::io::Error::other(
                "other daemons hold all that were tried; choose another --first-uid",
            ),
        })
    }

    /// The first id.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// How many ids there are.
    pub fn count(&self) -> u32 {
        self.count
    }
}

/// The directory, made if need be; anybody else's is refused.
fn lock_directory(dir: &Path) -> std::io::Result<()> {
    match DirBuilder::new().mode(0o755).create(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(dir)?;
    if !meta.is_dir()
        || meta.uid() != rustix::process::geteuid().as_raw()
        || meta.mode() & 0o022 != 0
    {
        return Err(std::io::Error::other(
            "it is not a directory that only this user may write; remove it",
        ));
    }
    Ok(())
}

/// The lock of one block; `None` if another holds it.
fn lock(dir: &Path, block: u32) -> std::io::Result<Option<File>> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join(format!("uids-{}", block * BLOCK)))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_daemons_never_share_a_user() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("locks");
        let first = UidRange::claim_in(&dir, 0x7000_0000, 4).unwrap();
        assert_eq!(first.first(), 0x7000_0000);
        let second = UidRange::claim_in(&dir, 0x7000_0000, 300).unwrap();
        assert_eq!(second.first(), 0x7000_0100);
        let third = UidRange::claim_in(&dir, 0x7000_0002, 1).unwrap();
        assert_eq!(third.first(), 0x7000_0300, "300 ids take two blocks");
        drop(first);
        assert_eq!(
            UidRange::claim_in(&dir, 0x7000_0000, 4).unwrap().first(),
            0x7000_0000
        );
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("locks");
        for (first, count) in [(0, 1), (u32::MAX, 2), (u32::MAX - 1, 5)] {
            let error = UidRange::claim_in(&dir, first, count).unwrap_err();
            assert!(error.to_string().contains("--first-uid"), "{error}");
        }
    }

    #[test]
    fn a_lock_directory_of_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        DirBuilder::new().create(&open).unwrap();
        std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .unwrap();
        assert!(UidRange::claim_in(&open, 1000, 1).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        assert!(UidRange::claim_in(&link, 1000, 1).is_err());
    }
}
