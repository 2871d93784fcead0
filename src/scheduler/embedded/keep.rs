//! What stays in the store for actions that have not ended: their Action and Command, and the inputs of one that is tried again. It is
//! a part of the store at most. What goes beyond that is as any other blob: if it is evicted, its action says what is missing, and
//! whoever asked for it uploads that again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cas::{LocalStore, Pins};
use crate::reapi::Digest;

/// The part of the store's size.
const SHARE: u64 = 8;

/// All that is kept.
pub(super) struct Keeping {
    most: u64,
    taken: Arc<AtomicU64>,
}

/// What is kept for one action, until dropped.
pub(super) struct Kept {
    _pins: Arc<Pins>,
    bytes: u64,
    taken: Arc<AtomicU64>,
}

impl Keeping {
    pub(super) fn of(store: &LocalStore) -> Self {
        Keeping {
            most: store.high_water() / SHARE,
            taken: Arc::default(),
        }
    }

    /// Keeps those of these messages that are here.
    pub(super) fn messages(
        &self,
        store: &Arc<LocalStore>,
        messages: impl IntoIterator<Item = Digest>,
    ) -> Option<Kept> {
        let here = messages
            .into_iter()
            .filter(|digest| store.contains(*digest));
        self.keep(Arc::new(store.pin(here)))
    }

    /// Keeps what is pinned, if there is room for that.
    pub(super) fn keep(&self, pins: Arc<Pins>) -> Option<Kept> {
        let bytes = pins.bytes();
        let more = |taken: u64| taken.checked_add(bytes).filter(|all| *all <= self.most);
        let (taken, order) = (&self.taken, Ordering::Relaxed);
        taken.fetch_update(order, order, more).ok()?;
        Some(Kept {
            _pins: pins,
            bytes,
            taken: taken.clone(),
        })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cas::StoreConfig;
    use crate::reapi::DigestFunction;

    const BLOB: u64 = 64 << 10;

    #[test]
    fn no_more_is_kept_than_a_part_of_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(StoreConfig {
            root: dir.path().join("cas"),
            high_water: 16 * BLOB,
            low_water: 16 * BLOB,
            free_floor: 0,
        })
        .unwrap();
        let blobs: Vec<Digest> = (0..16)
            .map(|n| {
                let data = vec![n; BLOB as usize];
                let digest = DigestFunction::Sha256.digest(&data);
                store.put(digest, &data, false).unwrap();
                digest
            })
            .collect();
        let keeping = Keeping::of(&store);
        // What is not here takes nothing.
        let missing = Digest::from_proto(
            DigestFunction::Sha256,
            Some(&crate::reapi::proto::re::Digest {
                hash: "7".repeat(64),
                size_bytes: 1 << 40,
            }),
        );
        let first = keeping.messages(&store, [blobs[0], missing.unwrap()]);
        let second = keeping.messages(&store, [blobs[1]]);
        assert!(first.is_some() && second.is_some());
        assert!(keeping.messages(&store, [blobs[2]]).is_none());
        store.make_room(64 * BLOB);
        let here: Vec<bool> = blobs.iter().map(|blob| store.contains(*blob)).collect();
        assert_eq!(here[..3], [true, true, false]);
        drop(first);
        store.put(blobs[2], &vec![2; BLOB as usize], false).unwrap();
        assert!(keeping.messages(&store, [blobs[2]]).is_some());
    }
}
