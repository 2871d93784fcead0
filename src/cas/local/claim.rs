//! The exclusive right to change the files of one digest. Whoever writes, adopts, verifies, doubles
//! or evicts a blob holds its claim meanwhile, with no lock held; others who want to change the same
//! digest wait, readers go by what the index says. So a half-written file is never published and
//! an eviction cannot hit a blob that is being put again.

use std::ops::Deref;

use parking_lot::MutexGuard;

use super::files::Files;
use super::index::{Index, Slot};
use super::names::Kind;
use super::room::{Promised, Reservation};
use super::{CasError, LocalStore, disk};
use crate::reapi::Digest;

/// Dropped, it publishes what the files are by then.
pub(super) struct Claim<'s> {
    store: &'s LocalStore,
    slot: Slot,
    pub(super) digest: Digest,
    pub(super) files: Files,
    /// To what is being made.
    room: Promised,
}

impl Claim<'_> {
    pub(super) fn add(&mut self, kind: Kind) {
        self.files = self.files.with(kind);
    }
    pub(super) fn remove(&mut self, kind: Kind) {
        self.files = self.files.without(kind);
    }
    /// Takes over a promise of room: it ends in the same moment in which the new file is counted.
    pub(super) fn charge<S: Deref<Target = LocalStore>>(&mut self, room: Reservation<S>) {
        let room = room.surrender();
        self.room.all += room.all;
        self.room.written += room.written;
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut index = self.store.index.lock();
        let files = if self.files.any() {
            self.files
        } else {
            Files::none()
        };
        // In this order: a claimed entry without files is not given back.
        index.set_files(self.slot, files);
        index.set_claimed(self.slot, false);
        index.promised.end(self.room);
        drop(index);
        self.store.released.notify_all();
    }
}

impl LocalStore {
    /// Waits for the digest's claim. Nobody who holds one waits for another, so this ends.
    pub(super) fn claim(&self, digest: Digest) -> Result<Claim<'_>, CasError> {
        self.claim_from(self.index.lock(), digest)
    }

    fn claim_from(
        &self,
        mut index: MutexGuard<'_, Index>,
        digest: Digest,
    ) -> Result<Claim<'_>, CasError> {
        let slot = loop {
            if index.closed {
                return Err(closed(digest));
            }
            match index.find(digest) {
                Some(slot) if index.claimed(slot) => self.released.wait(&mut index),
                Some(slot) => break slot,
                None => break index.insert(digest),
            }
        };
        let files = index.files(slot);
        index.set_claimed(slot, true);
        Ok(Claim {
            store: self,
            slot,
            digest,
            files,
            room: Promised::default(),
        })
    }

    /// The claim to a blob that is not here; `None` if it is, which counts as a use.
    pub(super) fn claim_absent(&self, digest: Digest) -> Result<Option<Claim<'_>>, CasError> {
        let mut index = self.index.lock();
        if let Some(slot) = index.find(digest)
            && index.used(slot).is_some()
        {
            return Ok(None);
        }
        let mut claim = self.claim_from(index, digest)?;
        // It may have come while we waited.
        if claim.files.unverified() {
            self.verify_claimed(&mut claim)?;
        }
        Ok((!claim.files.any()).then_some(claim))
    }

    /// The files of a blob that may be used as they are, which counts as a use; `None` if it is not here.
    pub(super) fn lookup(&self, digest: Digest) -> Result<Option<Files>, CasError> {
        {
            let mut index = self.index.lock();
            let Some(slot) = index.find(digest) else {
                return Ok(None);
            };
            if !index.files(slot).any() {
                return Ok(None);
            }
            if let Some(files) = index.used(slot) {
                return Ok(Some(files));
            }
        }
        let mut claim = self.claim(digest)?;
        if claim.files.unverified() {
            self.verify_claimed(&mut claim)?;
        }
        Ok(claim.files.any().then_some(claim.files))
    }

    /// Takes the claims of the blobs whose last use is longest ago, for `bytes` on disk, `most` of them at most. They
    /// are absent from now on.
    pub(super) fn claim_oldest(
        &self,
        index: &mut Index,
        bytes: u64,
        most: usize,
    ) -> Vec<(Slot, Digest, Files)> {
        let mut victims = Vec::new();
        let mut freed: u64 = 0;
        while freed < bytes && victims.len() < most {
            let Some(slot) = index.oldest() else { break };
            let before = index.taken();
            let files = index.files(slot);
            index.set_claimed(slot, true);
            index.set_files(slot, Files::none());
            freed = freed.saturating_add(before.saturating_sub(index.taken()));
            victims.push((slot, index.digest(slot), files));
        }
        victims
    }
}

pub(super) fn closed(digest: Digest) -> CasError {
    disk(
        "store blob",
        digest,
        std::io::Error::other("the blob store is closed"),
    )
}
