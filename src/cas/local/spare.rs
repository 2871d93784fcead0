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
