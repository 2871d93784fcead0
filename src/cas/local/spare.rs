//! What takes room for the sake of a later use only: input files pinned for the next action, directories kept for it.
//!
//! It is left with the store, which drops it before it refuses anybody room, what was left or renewed longest ago first. The store
//! knows nothing else of it: that things go when they are dropped is their own matter. Who left something finds out later that it went.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::LocalStore;

/// Something that is to take its room with it when it is dropped. That may block on the disk, but not ask the store for room.
pub type Spared = Arc<dyn Any + Send + Sync>;

/// All that was left here, in the order of its last use.
#[derive(Default)]
pub(super) struct Spares {
    queue: Mutex<Queue>,
    /// Held while something is dropped: who needs room waits for what is on its way.
    going: Mutex<()>,
    /// Things dropped so far.
    gone: AtomicU64,
}

#[derive(Default)]
struct Queue {
    next: u64,
    things: BTreeMap<u64, Spared>,
}

impl Queue {
    fn put(&mut self, thing: Spared) -> u64 {
        self.next += 1;
        self.things.insert(self.next, thing);
        self.next
    }
}

impl Spares {
    /// A number that grows with what is dropped.
    pub(super) fn gone(&self) -> u64 {
        self.gone.load(Ordering::SeqCst)
    }

    /// Drops the oldest, or has others do so since `seen`, which becomes what is [`Spares::gone`] by now. Says whether there may
    /// be more room now. No lock may be held that a thing could want.
    pub(super) fn drop_oldest(&self, seen: &mut u64) -> bool {
        let going = self.going.lock();
        if self.gone() == *seen {
            let oldest = self.queue.lock().things.pop_first();
            let Some((_, thing)) = oldest else {
                return false;
            };
            self.drop_it(thing);
        }
        *seen = self.gone();
        drop(going);
        true
    }

    fn drop_it(&self, thing: Spared) {
        drop(thing);
        self.gone.fetch_add(1, Ordering::SeqCst);
    }
}

/// A thing that was left with the store. Dropped, it is taken back.
pub struct Spare {
    store: Arc<LocalStore>,
    number: u64,
}

impl LocalStore {
    /// Leaves something here that may be dropped when there is no room.
    pub fn spare(self: &Arc<Self>, thing: Spared) -> Spare {
        Spare {
            number: self.spares.queue.lock().put(thing),
            store: Arc::clone(self),
        }
    }
}

impl Spare {
    /// Whether the store has dropped it.
    pub fn is_gone(&self) -> bool {
        let queue = self.store.spares.queue.lock();
        !queue.things.contains_key(&self.number)
    }

    /// Takes note of a use: it goes after all others now. Says whether it was there still.
    pub fn renew(&mut self) -> bool {
        let mut queue = self.store.spares.queue.lock();
        match queue.things.remove(&self.number) {
            Some(thing) => {
                self.number = queue.put(thing);
                true
            }
            None => false,
        }
    }

    /// Drops it here and now, as the store would: who needs room meanwhile waits for that.
    pub fn discard(self) {
        let _going = self.store.spares.going.lock();
        if let Some(thing) = self.take() {
            self.store.spares.drop_it(thing);
        }
    }

    fn take(&self) -> Option<Spared> {
        self.store.spares.queue.lock().things.remove(&self.number)
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // Its own drop may take any lock but this.
        drop(self.take());
    }
}

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Spare({})", self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoreConfig;
    use super::*;
    use crate::cas::{CasError, Pins};
    use crate::reapi::{Digest, DigestFunction};

    const BLOB: usize = 64 << 10;

    /// A store of ten blobs, all of them there and pinned apart.
    fn full() -> (tempfile::TempDir, Arc<LocalStore>, Vec<Pins>) {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(StoreConfig {
            root: dir.path().join("cas"),
            high_water: 10 * BLOB as u64,
            low_water: 9 * BLOB as u64,
            free_floor: 0,
        })
        .unwrap();
        let pins = (0..10).map(|n| {
            let digest = put(&store, n).unwrap();
            store.pin([digest])
        });
        let pins = pins.collect();
        (dir, store, pins)
    }

    fn put(store: &LocalStore, n: u8) -> Result<Digest, CasError> {
        let data = vec![n; BLOB];
        let digest = DigestFunction::Sha256.digest(&data);
        store.put(digest, &data, false).map(|()| digest)
    }

    #[test]
    fn what_was_used_longest_ago_goes_and_no_more_than_must() {
        let (_dir, store, pins) = full();
        let mut spares: Vec<Spare> = { pins.into_iter() }
            .map(|pins| store.spare(Arc::new(pins)))
            .collect();
        assert!(spares[0].renew());
        let gone = |spares: &[Spare]| spares.iter().map(Spare::is_gone).collect::<Vec<_>>();
        put(&store, 10).unwrap();
        put(&store, 11).unwrap();
        // Its blob may go, and is the first to; the one put before it is used longer ago.
        let first = gone(&spares);
        assert!(!first[0] && first[1] && !first[9], "{first:?}");
        assert!(!spares[1].renew());
        // All that is left takes what nothing less makes room for.
        let large = vec![1; 10 * BLOB];
        let digest = DigestFunction::Sha256.digest(&large);
        store.put(digest, &large, false).unwrap();
        assert_eq!(gone(&spares), [true; 10]);
    }

    #[test]
    fn what_is_taken_back_stays_with_its_owner() {
        let (_dir, store, pins) = full();
        let thing = Arc::new(pins);
        drop(store.spare(thing.clone()));
        assert_eq!(Arc::strong_count(&thing), 1);
        assert!(matches!(put(&store, 10), Err(CasError::Full { .. })));
    }

    /// Who finds nothing to drop waits for what another drops.
    #[test]
    fn room_on_its_way_is_waited_for() {
        struct Slow(Vec<Pins>, Arc<LocalStore>, std::sync::mpsc::Sender<bool>);
        impl Drop for Slow {
            fn drop(&mut self) {
                // Who asks now waits, however early or late that is.
                let _ = self.2.send(self.1.spares.going.is_locked());
                // Long enough for the other to ask.
                std::thread::sleep(std::time::Duration::from_millis(50));
                self.0.clear();
            }
        }
        let (_dir, store, pins) = full();
        let (begun, begins) = std::sync::mpsc::channel();
        let spare = store.spare(Arc::new(Slow(pins, store.clone(), begun)));
        let mut seen = store.spares.gone();
        std::thread::scope(|scope| {
            scope.spawn(|| spare.discard());
            assert!(begins.recv().unwrap(), "nobody would wait");
            put(&store, 10).unwrap();
        });
        // Who asks when it is over, and saw nothing of it, tries again, once.
        assert!(store.spares.drop_oldest(&mut seen));
        assert!(!store.spares.drop_oldest(&mut seen));
    }

    #[test]
    fn files_beside_the_store_count_as_its_own() {
        let (_dir, store, pins) = full();
        assert!(matches!(store.beside(1), Err(CasError::Full { .. })));
        drop(pins);
        let beside = store.beside(4 * BLOB as u64).unwrap();
        assert!(store.usage().disk <= 6 * BLOB as u64);
        for n in 10..20 {
            put(&store, n).unwrap();
        }
        assert!(store.usage().disk <= 6 * BLOB as u64);
        drop(beside);
    }
}
