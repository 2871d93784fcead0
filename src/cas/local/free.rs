//! What is free on the file system of the store, for those who fill it beside the store. That it was full is remembered: no kernel tells
//! afterwards that somebody met a full disk.

use std::time::Instant;

use rustix::fs::StatVfs;

use super::{CasError, LocalStore, disk};

/// A file system with less than this free is full: the last blocks may be somebody's already.
pub(super) const FULL: u64 = 256 << 10;

/// What one look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Bytes that can be written.
    pub bytes: u64,
    /// Those of them that need not stay free.
    pub above_floor: u64,
    /// There is next to nothing left, so that whoever writes fails.
    pub full: bool,
}

impl LocalStore {
    /// Looks; `None` where the file system does not say. Costs one system call.
    pub fn look(&self) -> Option<Free> {
        let stat = self.stat().ok()?;
        let bytes = bytes(&stat);
        // Not all file systems have a number of inodes.
        let full = bytes < FULL || (stat.f_files > 0 && stat.f_ffree == 0);
        if full {
            *self.last_full.lock() = Some(Instant::now());
        }
        Some(Free {
            bytes,
            above_floor: bytes.saturating_sub(self.config.free_floor),
            full,
        })
    }

    /// Whether anybody who looked has found it full since then.
    pub fn was_disk_full_since(&self, then: Instant) -> bool {
        self.last_full.lock().is_some_and(|last| last >= then)
    }

    pub(super) fn free_space(&self) -> Result<u64, CasError> {
        Ok(bytes(&self.stat()?))
    }

    fn stat(&self) -> Result<StatVfs, CasError> {
        rustix::fs::fstatvfs(&self.layout.top)
            .map_err(|e| disk("find the free space of", self.layout.root.display(), e))
    }
}

fn bytes(stat: &StatVfs) -> u64 {
    stat.f_bavail.saturating_mul(stat.f_frsize)
}
