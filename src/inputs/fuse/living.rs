//! Things of which there is one for each directory, found by its digest while anybody holds it; and of the last used ones
//! as many as fit within some bounds, so that the next action finds them too.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use lru::LruCache;
use parking_lot::Mutex;

use crate::cas::disk_size;
use crate::reapi::Digest;
use crate::tree::Directory;

/// All that are held, by whomever.
pub(super) struct Living<T> {
    all: Mutex<All<T>>,
}

struct All<T> {
    by_digest: HashMap<Digest, Weak<T>>,
    files: u64,
    /// As they are claimed: no sum of them must lose track.
    bytes: u128,
}

impl<T> Default for Living<T> {
    fn default() -> Self {
        Living {
            all: Mutex::new(All {
                by_digest: HashMap::new(),
                files: 0,
                bytes: 0,
            }),
        }
    }
}

impl<T> Living<T> {
    pub(super) fn get(&self, digest: Digest) -> Option<Arc<T>> {
        self.all.lock().by_digest.get(&digest)?.upgrade()
    }

    pub(super) fn is_held(&self, digest: Digest) -> bool {
        let all = self.all.lock();
        { all.by_digest.get(&digest) }.is_some_and(|held| held.strong_count() > 0)
    }

    /// Takes in the one for a directory. When that is dropped it must say so, by [`Living::gone`].
    pub(super) fn put(&self, digest: Digest, directory: &Directory, held: &Arc<T>) {
        let mut all = self.all.lock();
        all.files += directory.files.len() as u64;
        all.bytes += u128::from(bytes(directory));
        all.by_digest.insert(digest, Arc::downgrade(held));
    }

    /// The one for a directory is being dropped.
    pub(super) fn gone(&self, digest: Digest, directory: &Directory) {
        let mut all = self.all.lock();
        all.files -= directory.files.len() as u64;
        all.bytes -= u128::from(bytes(directory));
        // Another of the same digest may have been made since this one could not be had any more.
        if let Some(held) = all.by_digest.get(&digest)
            && held.strong_count() == 0
        {
            all.by_digest.remove(&digest);
        }
    }

    fn exceeds(&self, most: Bounds) -> bool {
        let all = self.all.lock();
        all.by_digest.len() > most.directories
            || all.files > most.files
            || all.bytes > most.bytes.into()
    }
}

/// How much may be held for the next action's sake.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) directories: usize,
    /// Files in them.
    pub(super) files: u64,
    /// Of these files.
    pub(super) bytes: u64,
}

/// What holds those that were used last.
pub(super) struct Recent<H> {
    order: Mutex<LruCache<Digest, H>>,
    /// So many are kept whatever the bounds.
    least: usize,
}

impl<H> Recent<H> {
    pub(super) fn new(least: usize) -> Self {
        Recent {
            order: Mutex::new(LruCache::unbounded()),
            least,
        }
    }

    /// Keeps the one that `hold` gives a hold on, out of the one there was, and lets go of those that were used longest ago
    /// as long as `most` is exceeded.
    pub(super) fn keep<T>(
        &self,
        living: &Living<T>,
        most: Bounds,
        digest: Digest,
        hold: impl FnOnce(Option<H>) -> H,
    ) {
        // Nothing is dropped under the lock.
        let before = self.order.lock().pop(&digest);
        let held = hold(before);
        let before = self.order.lock().put(digest, held);
        drop(before);
        while living.exceeds(most) {
            // One by one, because one frees only what no other one shares.
            let oldest = {
                let mut order = self.order.lock();
                match order.len() > self.least {
                    true => order.pop_lru(),
                    false => return,
                }
            };
            drop(oldest);
        }
    }

    /// Forgets those that were used longest ago, as long as they hold nothing.
    pub(super) fn forget_oldest(&self, holds_nothing: impl Fn(&H) -> bool) {
        let mut order = self.order.lock();
        while order
            .peek_lru()
            .is_some_and(|(_, held)| holds_nothing(held))
        {
            order.pop_lru();
        }
    }
}

/// Of disk: many small files take more of it than they hold.
fn bytes(directory: &Directory) -> u64 {
    let sizes = { directory.files.iter() }.map(|file| disk_size(file.digest.size()));
    sizes.fold(0, u64::saturating_add)
}
