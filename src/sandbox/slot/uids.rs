//! Which users a daemon's slots run as. A slot's user is the handle by which everything that a
//! command left behind is found and killed, so two daemons on one host must never share one: each
//! claims its range by locking a file in `/run/boxwright`, which the kernel unlocks when the
//! daemon dies, however it dies.
//!
//! A slot has two ids: its commands run as the one, and the process that kills them has the other as its real and saved
//! id, through which the kernel decides who may signal it. So no command can stop its killer, and no two killers hit
//! each other. Nothing ever runs as the second alone, and no file is given to it.

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

/// The ids of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sandbox) struct SlotUser {
    /// User and group of the slot's commands.
    pub(in crate::sandbox) uid: u32,
    /// Real and saved user of the process that kills them, out of their reach.
    pub(in crate::sandbox) killer: u32,
}

/// The user ids of some slots, a range that belongs to this process until it ends.
#[derive(Debug)]
pub struct UidRange {
    first: u32,
    slots: u32,
    _locks: Vec<File>,
}

impl UidRange {
    /// Claims two ids for each of `slots`: from `first` on, or, if another daemon has one of those, from the next free
    /// blocks of 256 above. The lower half of the range is for the commands, the upper for their killers.
    pub fn claim(first: u32, slots: usize) -> Result<Self, SandboxError> {
        Self::claim_in(Path::new(LOCKS), first, slots)
    }

    fn claim_in(dir: &Path, first: u32, slots: usize) -> Result<Self, SandboxError> {
        let setup = |action: String| move |source| SandboxError::Setup { action, source };
        let bad = |first: u32| SandboxError::Setup {
            action: format!("give {slots} slots two users each from uid {first} on"),
            source: std::io::Error::other(
                "that are not a range without uid 0 and within 32 bits; choose another --first-uid",
            ),
        };
        let slots = u32::try_from(slots).map_err(|_| bad(first))?.max(1);
        let count = slots.checked_mul(2).ok_or_else(|| bad(first))?;
        lock_directory(dir).map_err(setup(format!("use {} for locks", dir.display())))?;
        let mut at = first;
        for _ in 0..ATTEMPTS {
            let last = at
                .checked_add(count - 1)
                .filter(|last| at != 0 && *last != u32::MAX)
                .ok_or_else(|| bad(at))?;
            let blocks = at / BLOCK..=last / BLOCK;
            let locks = blocks
                .map(|block| lock(dir, block).transpose())
                .collect::<Option<std::io::Result<Vec<File>>>>();
            if let Some(locks) = locks {
                let locks = locks.map_err(setup(format!("lock uids in {}", dir.display())))?;
                return Ok(UidRange {
                    first: at,
                    slots,
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

    /// The ids of a slot; `None` beyond the last slot.
    pub(in crate::sandbox) fn user(&self, slot: usize) -> Option<SlotUser> {
        let slot = u32::try_from(slot).ok().filter(|slot| *slot < self.slots)?;
        let uid = self.first + slot;
        Some(SlotUser {
            uid,
            killer: uid + self.slots,
        })
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
        assert_eq!(third.first(), 0x7000_0400, "600 ids take three blocks");
        drop(first);
        assert_eq!(
            UidRange::claim_in(&dir, 0x7000_0000, 4).unwrap().first(),
            0x7000_0000
        );
    }

    #[test]
    fn no_two_ids_of_a_range_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let range = UidRange::claim_in(&dir.path().join("locks"), 0x7000_0000, 128).unwrap();
        let users = (0..128).map(|slot| range.user(slot).unwrap());
        let ids: std::collections::BTreeSet<u32> =
            users.flat_map(|user| [user.uid, user.killer]).collect();
        assert_eq!(ids, (0x7000_0000..0x7000_0100).collect());
        assert_eq!(range.user(128), None);
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("locks");
        for (first, count) in [
            (0, 1),
            (u32::MAX, 2),
            (u32::MAX - 1, 1),
            (u32::MAX - 5, 3),
            (1, usize::MAX),
        ] {
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
