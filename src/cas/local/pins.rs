//! Blobs that may not be evicted now.

use std::sync::Arc;

use super::LocalStore;
use super::files::disk_size;
use super::index::Slot;
use crate::reapi::Digest;

/// Keeps its blobs from eviction while it lives. Four bytes per blob, besides its entry in the index.
pub struct Pins {
    store: Arc<LocalStore>,
    slots: Vec<Slot>,
    whole: bool,
}

impl Pins {
    /// Bytes of disk that they take when all of them are here.
    pub fn bytes(&self) -> u64 {
        let index = self.store.index.lock();
        let digests = self.slots.iter().map(|&slot| index.digest(slot));
        digests
            .map(|digest| disk_size(digest.size()))
            .fold(0, u64::saturating_add)
    }

    /// All of them were here when they were pinned, with nothing to be verified first: so they are as long as this lives.
    pub fn whole(&self) -> bool {
        self.whole
    }
}

impl LocalStore {
    /// Pins blobs, present or not, until the result is dropped. One that is not here yet is pinned
    /// as soon as it comes.
    pub fn pin(self: &Arc<Self>, digests: impl IntoIterator<Item = Digest>) -> Pins {
        // Outside the lock: the iterator is somebody else's code.
        let digests: Vec<Digest> = digests.into_iter().collect();
        let mut whole = true;
        let mut index = self.index.lock();
        let pin = |digest| {
            let slot = index.pin(digest);
            let files = index.files(slot);
            whole &= (files.any() && !files.unverified()) || self.is_empty_blob(digest);
            slot
        };
        Pins {
            slots: digests.into_iter().map(pin).collect(),
            store: Arc::clone(self),
            whole,
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut index = self.store.index.lock();
        for &slot in &self.slots {
            index.unpin(slot);
        }
    }
}

impl std::fmt::Debug for Pins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pins({} blobs)", self.slots.len())
    }
}
