//! Room for new files: the quota, with its high and low water marks, and the floor of free space
//! on the file system. Above the high mark, blobs are evicted, the longest unused first, until the
//! low mark is reached; not in one go, which would stall one unlucky writer for as long as it takes
//! to remove a tenth of the cache, but a slice with each file that is written. Pinned blobs stay. When nothing else can
//! go, what is spared for a later use goes ([`super::spare`]).

use std::io;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::path::Arg;

use super::files::disk_size;
use super::free::FULL;
use super::names::BlobName;
use super::vain::Vain;
use super::{CasError, LocalStore, disk};
use crate::reapi::Digest;

/// Blobs evicted at a time.
const SLICE: usize = 128;

/// The free space is looked up again after at most this many bytes: others fill the disk as well.
const MOST_UNCHECKED: u64 = 64 << 20;

/// How much was promised since the free space was last looked up.
#[derive(Default)]
pub(super) struct Floor {
    promised: AtomicU64,
    allowed: AtomicU64,
    vain: Vain,
}

/// What an eviction took, in bytes of disk.
#[derive(Default)]
pub(super) struct Evicted {
    pub(super) bytes: u64,
    /// Those of them that others have still: nothing is freed by them.
    linked: u64,
}

/// Disk bytes promised to a file that is being written; counted as taken until dropped.
pub(super) struct Reservation<S: Deref<Target = LocalStore>> {
    store: S,
    promised: Promised,
}

/// Disk bytes of a file on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Promised {
    /// In all.
    pub(super) all: u64,
    /// Those of them that the file system need not find any more: the file has them.
    pub(super) written: u64,
}

impl Promised {
    /// Disk bytes that are still to be found.
    pub(super) fn unwritten(self) -> u64 {
        self.all.saturating_sub(self.written)
    }

    /// Takes away what was part of it.
    pub(super) fn end(&mut self, part: Promised) {
        self.all = self.all.saturating_sub(part.all);
        self.written = self.written.saturating_sub(part.written);
    }
}

impl<S: Deref<Target = LocalStore>> Reservation<S> {
    fn nothing(store: S) -> Self {
        Reservation {
            store,
            promised: Promised::default(),
        }
    }

    /// Takes in more, evicting what is necessary. After an error it is what it was.
    pub(super) fn grow(&mut self, by: u64) -> Result<(), CasError> {
        self.grow_within_quota(by)?;
        self.store.keep_the_floor(by).inspect_err(|_| {
            let grown = Promised {
                all: by,
                written: 0,
            };
            self.promised.end(grown);
            self.store.index.lock().promised.end(grown);
        })
    }

    fn grow_within_quota(&mut self, by: u64) -> Result<(), CasError> {
        self.store.keep_to_quota(by)?;
        self.promised.all += by;
        Ok(())
    }

    /// Takes note that so many of the promised bytes are on the disk.
    pub(super) fn written(&mut self, bytes: u64) {
        let more = bytes.min(self.promised.all - self.promised.written);
        self.promised.written += more;
        self.store.index.lock().promised.written += more;
    }

    /// Takes note that none of it is on the disk after all.
    pub(super) fn unwritten(&mut self) {
        let written = std::mem::take(&mut self.promised.written);
        self.store
            .index
            .lock()
            .promised
            .end(Promised { all: 0, written });
    }

    /// Disk bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.promised.all
    }

    /// Leaves the promise to the caller, who ends it.
    pub(super) fn surrender(mut self) -> Promised {
        std::mem::take(&mut self.promised)
    }
}

impl<S: Deref<Target = LocalStore>> Drop for Reservation<S> {
    fn drop(&mut self) {
        if self.promised != Promised::default() {
            self.store.index.lock().promised.end(self.promised);
        }
    }
}

/// Bytes of files that lie next to the store and are not its own; counted as its own until dropped.
pub struct Beside(Reservation<Arc<LocalStore>>);

impl Beside {
    /// Disk bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    /// Takes note that the files have been written.
    pub fn written(&mut self) {
        self.0.written(self.0.bytes());
    }
}

impl LocalStore {
    /// Counts files that were written next to the store and take so many bytes of disk, evicting what is necessary for the quota.
    pub fn beside(self: &Arc<Self>, bytes: u64) -> Result<Beside, CasError> {
        let mut reservation = Reservation::nothing(Arc::clone(self));
        reservation.grow_within_quota(bytes)?;
        reservation.written(bytes);
        Ok(Beside(reservation))
    }

    /// Promises room to a file of `size` bytes that is going to be written next to the store, in the quota and above the floor of
    /// free space, evicting what is necessary.
    pub fn reserve_beside(self: &Arc<Self>, size: u64) -> Result<Beside, CasError> {
        Ok(Beside(LocalStore::reserve(Arc::clone(self), size)?))
    }

    /// The largest blob that can be kept at all, in bytes.
    pub fn largest_blob(&self) -> u64 {
        self.config.high_water - self.config.high_water % disk_size(1)
    }

    /// The bytes of disk that the store can take: up to the high water mark, or to the floor of free space if that comes first.
    pub fn reach(&self) -> u64 {
        let high = self.config.high_water;
        match self.free_space() {
            Ok(free) => high.min(
                (self.usage().disk.saturating_add(free)).saturating_sub(self.config.free_floor),
            ),
            // Whoever writes will be told.
            Err(_) => high,
        }
    }

    /// Promises room for a file of `size` bytes, evicting what is necessary.
    pub(super) fn reserve<S: Deref<Target = LocalStore>>(
        store: S,
        size: u64,
    ) -> Result<Reservation<S>, CasError> {
        let mut reservation = Reservation::nothing(store);
        reservation.grow(disk_size(size))?;
        Ok(reservation)
    }

    /// A promise of nothing, which grows with a file of `size` bytes as that comes: who only says that it comes makes
    /// nobody's blobs go.
    pub(super) fn reserve_as_it_comes<S: Deref<Target = LocalStore>>(
        store: S,
        size: u64,
    ) -> Result<Reservation<S>, CasError> {
        store.fits_at_all(disk_size(size))?;
        Ok(Reservation::nothing(store))
    }

    /// [`LocalStore::reserve`] for a file that has its blocks on this file system already: only the quota counts.
    pub(super) fn reserve_quota<S: Deref<Target = LocalStore>>(
        store: S,
        size: u64,
    ) -> Result<Reservation<S>, CasError> {
        let mut reservation = Reservation::nothing(store);
        reservation.grow_within_quota(disk_size(size))?;
        Ok(reservation)
    }

    /// Evicts what was not used for longest, so that about `bytes` more fit on the file system; for those
    /// who write next to the store and found the disk full. Returns the bytes of disk that went, which are 0 if
    /// nothing can be evicted.
    pub fn make_room(&self, bytes: u64) -> u64 {
        let some_more = (self.usage().disk / 64).min(MOST_UNCHECKED);
        self.evict(disk_size(bytes).saturating_add(some_more)).bytes
    }

    fn fits_at_all(&self, bytes: u64) -> Result<(), CasError> {
        let high = self.config.high_water;
        if bytes > high {
            return Err(CasError::Full {
                needed: bytes,
                why: format!("the whole store may take {high} bytes of disk; raise its size limit"),
            });
        }
        Ok(())
    }

    /// Evicts until `bytes` more fit below the high water mark, and takes them.
    pub(super) fn keep_to_quota(&self, bytes: u64) -> Result<(), CasError> {
        let (high, low) = (self.config.high_water, self.config.low_water);
        self.fits_at_all(bytes)?;
        let mut sliced = false;
        let mut gone = self.spares.gone();
        let mut index = self.index.lock();
        loop {
            let taken = index.taken();
            let over = taken.saturating_add(bytes).saturating_sub(high);
            if over > 0 {
                index.draining = true;
            } else if taken <= low {
                index.draining = false;
            }
            if over == 0 && (sliced || !index.draining) {
                index.promised.all = index.promised.all.saturating_add(bytes);
                return Ok(());
            }
            let victims = self.claim_oldest(&mut index, over.max(taken.saturating_sub(low)), SLICE);
            if victims.is_empty() {
                if over == 0 {
                    index.draining = false;
                    continue;
                }
                let spared = || self.spares.drop_oldest(&mut gone);
                if parking_lot::MutexGuard::unlocked(&mut index, spared) {
                    continue;
                }
                let held = index.held();
                return Err(CasError::Full {
                    needed: bytes,
                    why: format!(
                        "the store may take {high} bytes of disk, of which {held} are in use now; \
                         raise its size limit, or run fewer actions at a time"
                    ),
                });
            }
            sliced = true;
            parking_lot::MutexGuard::unlocked(&mut index, || self.unlink(&victims));
            for (slot, _, _) in victims {
                index.set_claimed(slot, false);
            }
            self.released.notify_all();
        }
    }

    /// Evicts about `bytes` of what is on disk.
    pub(super) fn evict(&self, bytes: u64) -> Evicted {
        let (mut freed, mut linked): (u64, u64) = (0, 0);
        let mut gone = self.spares.gone();
        while freed < bytes {
            let mut index = self.index.lock();
            let before = index.taken();
            let victims = self.claim_oldest(&mut index, bytes - freed, SLICE);
            freed = freed.saturating_add(before.saturating_sub(index.taken()));
            if victims.is_empty() {
                drop(index);
                if !self.spares.drop_oldest(&mut gone) {
                    break;
                }
                // What was counted as beside the store.
                let after = self.index.lock().taken();
                freed = freed.saturating_add(before.saturating_sub(after));
                continue;
            }
            let unlink = || linked += self.unlink(&victims);
            parking_lot::MutexGuard::unlocked(&mut index, unlink);
            for (slot, _, _) in victims {
                index.set_claimed(slot, false);
            }
            self.released.notify_all();
        }
        Evicted {
            bytes: freed,
            linked,
        }
    }

    /// Returns how many bytes of disk others still have.
    fn unlink(
        &self,
        victims: &[(
            super::index::Slot,
            crate::reapi::Digest,
            super::files::Files,
        )],
    ) -> u64 {
        let mut linked = 0;
        for &(_, digest, files) in victims {
            let blobs = self.layout.blobs(digest.function(), files.unverified());
            for kind in files.kinds() {
                let name = BlobName::new(digest, kind);
                let stat = rustix::fs::statat(blobs, name.path(), AtFlags::SYMLINK_NOFOLLOW);
                if stat.is_ok_and(|stat| stat.st_nlink > 1) {
                    linked += disk_size(digest.size());
                }
                match rustix::fs::unlinkat(blobs, name.path(), AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    // It is out of the index all the same; the next open finds it again.
                    Err(why) => tracing::warn!(blob = %digest, "cannot evict a blob: {why}"),
                }
            }
        }
        let evicted = victims.len() as u64;
        self.counters.evicted.fetch_add(evicted, Ordering::Relaxed);
        linked
    }

    /// Evicts while the file system has less free space than it is to keep. Free space is looked
    /// up only when what was promised since could matter. `bytes` are reserved by now.
    pub(super) fn keep_the_floor(&self, bytes: u64) -> Result<(), CasError> {
        if self.is_allowed(bytes) {
            return Ok(());
        }
        self.restore_the_floor(bytes, 0)
    }

    /// Counts a file of so many bytes of disk that somebody else has written and that is the store's now. It is here, whatever
    /// the free space is: others make room for it.
    pub(super) fn settle_the_floor(&self, bytes: u64) {
        if !self.is_allowed(bytes) {
            self.keep_free(0);
        }
    }

    fn is_allowed(&self, bytes: u64) -> bool {
        let promised = self
            .floor
            .promised
            .fetch_add(bytes, Ordering::SeqCst)
            .saturating_add(bytes);
        promised < self.floor.allowed.load(Ordering::SeqCst)
    }

    /// Evicts while `ahead` more bytes do not fit above the floor of free space and what is promised: for those whose files next to
    /// the store nobody counts before they are written. Soon after that was in vain it does nothing.
    pub fn keep_free(&self, ahead: u64) {
        if self.floor.vain.pauses(Instant::now()) {
            return;
        }
        if let Err(error) = self.restore_the_floor(ahead, ahead) {
            // Whoever writes next is told; an adoption is not.
            tracing::debug!(%error, "the floor of free space cannot be kept");
        }
    }

    /// For `bytes`, of which `ahead` are promised to nobody.
    fn restore_the_floor(&self, bytes: u64, ahead: u64) -> Result<(), CasError> {
        // In this order: what is reserved from here on is counted as promised, or below, or both. Others
        // look for themselves meanwhile.
        self.floor.allowed.store(0, Ordering::SeqCst);
        self.floor.promised.store(0, Ordering::SeqCst);
        // All that was promised, not this file alone: the others have not been written either, or not whole.
        let unwritten = { self.index.lock().promised.unwritten() }.saturating_add(ahead);
        let wanted = self.config.free_floor.saturating_add(unwritten);
        let mut free = self.free_space()?;
        let before = free;
        let mut all = Evicted::default();
        // What is evicted may not free anything, if it is open or linked elsewhere: three tries,
        // not the whole cache.
        for _ in 0..3 {
            if free >= wanted {
                break;
            }
            let some_more = (self.usage().disk / 64).min(MOST_UNCHECKED / 4);
            let evicted = self.evict((wanted - free).saturating_add(some_more));
            all.bytes += evicted.bytes;
            all.linked += evicted.linked;
            // What was spared may have gone with other files than the store's.
            free = self.free_space()?;
            if evicted.bytes == 0 {
                break;
            }
        }
        // Who fills the disk as fast as it is emptied looks the same as who has the files open. A first pause is short.
        let freed = free.saturating_sub(before);
        let in_vain =
            all.bytes > 0 && (free < FULL || all.linked > all.bytes / 2 || freed < all.bytes / 4);
        self.floor.vain.looked(in_vain, Instant::now());
        if free < wanted {
            return Err(CasError::Full {
                needed: bytes,
                why: format!(
                    "{free} bytes are free on the file system of {}, where {} are to stay free and {unwritten} \
                     are promised to files being written; free some space there, or lower the floor",
                    self.layout.root.display(),
                    self.config.free_floor
                ),
            });
        }
        let allowed = ((free - wanted) / 2).min(MOST_UNCHECKED);
        self.floor.allowed.store(allowed, Ordering::SeqCst);
        Ok(())
    }

    /// Does what may fail for want of space; if it does, evicts once and tries again.
    pub(super) fn with_space<T>(
        &self,
        size: u64,
        action: &'static str,
        object: impl std::fmt::Display,
        mut act: impl FnMut() -> io::Result<T>,
    ) -> Result<T, CasError> {
        let first = match act() {
            Ok(done) => return Ok(done),
            Err(e) => e,
        };
        if !is_full(&first) {
            return Err(disk(action, object, first));
        }
        let bytes = disk_size(size);
        self.make_room(size);
        act().map_err(|e| {
            if !is_full(&e) {
                return disk(action, object, e);
            }
            CasError::Full {
                needed: bytes,
                why: format!(
                    "the file system of {} is full, or the quota there, and nothing more can be \
                     evicted; free some space or some inodes there",
                    self.layout.root.display()
                ),
            }
        })
    }

    /// Renames a file of the store's to the name of a trusted blob. The directory of that may take space.
    pub(super) fn move_in(
        &self,
        action: &'static str,
        digest: Digest,
        (folder, file): (BorrowedFd<'_>, impl Arg + Copy),
        name: &BlobName,
    ) -> Result<(), CasError> {
        let blobs = self.layout.blobs(digest.function(), false);
        self.with_space(0, action, digest, || {
            let rename = || rustix::fs::renameat(folder, file, blobs, name.path());
            Ok(self.layout.in_shard(blobs, name, rename)?)
        })
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOSPC | Errno::DQUOT)
    )
}
