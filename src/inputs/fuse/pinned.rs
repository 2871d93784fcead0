//! Files of input trees that may not be evicted: those of the actions that run, and of the last actions' trees as many as fit
//! within a number of bytes.
//!
//! What the kernel remembers of a tree, and what is kept so that the next action finds it, pins nothing: else all that was
//! ever looked at would stay, and the store would be full while nothing runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use lru::LruCache;
use parking_lot::Mutex;

use super::subtree::{Subtree, contents};
use crate::cas::{Cas, Pins};
use crate::reapi::Digest;
use crate::tree::Directory;

/// Files that are kept from eviction while nobody uses them.
const IDLE_FILES: u64 = 500_000;

/// A subtree whose files stay in the local store while this lives. Equal ones are one object.
pub(super) struct Pinned {
    pub(super) subtree: Arc<Subtree>,
    below: Box<[Arc<Pinned>]>,
    /// All files below it are in the local store.
    whole: AtomicBool,
    _pins: Option<Pins>,
    living: Weak<Mutex<Living>>,
}

/// All of them.
pub(super) struct Pinning {
    cas: Cas,
    living: Arc<Mutex<Living>>,
    /// Bytes of files that may be kept from eviction for their own sake.
    idle_bytes: u64,
    idle: Mutex<LruCache<Digest, Arc<Pinned>>>,
}

#[derive(Default)]
struct Living {
    by_digest: HashMap<Digest, Weak<Pinned>>,
    files: u64,
    bytes: u64,
}

impl Pinning {
    pub(super) fn new(cas: Cas, idle_bytes: u64) -> Self {
        Pinning {
            cas,
            living: Arc::default(),
            idle_bytes,
            idle: Mutex::new(LruCache::unbounded()),
        }
    }

    /// Keeps all files of a tree from eviction. Takes as long as what nobody keeps yet is large.
    pub(super) fn pin(&self, root: &Arc<Subtree>) -> Arc<Pinned> {
        let pinned = self.get(root.digest).unwrap_or_else(|| self.build(root));
        self.remember(pinned.clone());
        pinned
    }

    /// Whether the files of this directory are kept from eviction.
    pub(super) fn is_pinned(&self, digest: Digest) -> bool {
        let living = self.living.lock();
        living
            .by_digest
            .get(&digest)
            .is_some_and(|kept| kept.strong_count() > 0)
    }

    /// Those files of the tree that are not in the local store.
    pub(super) fn lacking(&self, root: &Arc<Pinned>) -> Vec<Digest> {
        let mut lacking = Vec::new();
        // Children before parents: a parent is whole when they are.
        let mut stack = vec![(root, false)];
        while let Some((pinned, done)) = stack.pop() {
            if pinned.whole.load(Ordering::Relaxed) {
                continue;
            }
            if !done {
                stack.push((pinned, true));
                stack.extend(pinned.below.iter().map(|child| (child, false)));
                continue;
            }
            let files: Vec<Digest> = contents(&pinned.subtree.directory).collect();
            let absent = self.cas.local().missing(&files);
            let mut below = pinned.below.iter();
            let whole = absent.is_empty() && below.all(|child| child.whole.load(Ordering::Relaxed));
            pinned.whole.store(whole, Ordering::Relaxed);
            lacking.extend(absent);
        }
        lacking.sort_unstable();
        lacking.dedup();
        lacking
    }

    fn get(&self, digest: Digest) -> Option<Arc<Pinned>> {
        self.living.lock().by_digest.get(&digest)?.upgrade()
    }

    fn build(&self, root: &Arc<Subtree>) -> Arc<Pinned> {
        let mut made: HashMap<Digest, Arc<Pinned>> = HashMap::new();
        let (mut at, mut waiting) = (root, Vec::new());
        loop {
            let known = made.get(&at.digest).cloned();
            let pinned = match known.or_else(|| self.get(at.digest)) {
                Some(pinned) => pinned,
                None => {
                    let children = at.children.iter();
                    let mut lacking = children.filter(|child| !made.contains_key(&child.digest));
                    if let Some(first) = lacking.next() {
                        waiting.push(at);
                        waiting.extend(lacking);
                        at = first;
                        continue;
                    }
                    let children = at.children.iter();
                    let below = children.filter_map(|child| made.get(&child.digest).cloned());
                    self.directory(at, below.collect())
                }
            };
            match waiting.pop() {
                Some(next) => made.insert(std::mem::replace(&mut at, next).digest, pinned),
                None => return pinned,
            };
        }
    }

    fn directory(&self, subtree: &Arc<Subtree>, below: Box<[Arc<Pinned>]>) -> Arc<Pinned> {
        let files: Vec<Digest> = contents(&subtree.directory).collect();
        let pins = (!files.is_empty()).then(|| self.cas.local().pin(files));
        let pinned = Arc::new(Pinned {
            subtree: subtree.clone(),
            below,
            whole: AtomicBool::new(false),
            _pins: pins,
            living: Arc::downgrade(&self.living),
        });
        let mut living = self.living.lock();
        living.files += subtree.directory.files.len() as u64;
        living.bytes += bytes(&subtree.directory);
        let kept = Arc::downgrade(&pinned);
        living.by_digest.insert(subtree.digest, kept);
        drop(living);
        pinned
    }

    /// Keeps the tree's files for the next action, and lets go of those that were used longest ago.
    fn remember(&self, root: Arc<Pinned>) {
        // Nothing is dropped under the lock.
        let before = self.idle.lock().put(root.subtree.digest, root);
        drop(before);
        while self.exceeds() {
            // One by one, because a tree frees only what no other one shares; at last the newest, which is kept by who uses it.
            let Some(oldest) = self.idle.lock().pop_lru() else {
                return;
            };
            drop(oldest);
        }
    }

    fn exceeds(&self) -> bool {
        let living = self.living.lock();
        living.files > IDLE_FILES || living.bytes > self.idle_bytes
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let Some(living) = self.living.upgrade() else {
            return;
        };
        let mut living = living.lock();
        living.files -= self.subtree.directory.files.len() as u64;
        living.bytes -= bytes(&self.subtree.directory);
        // Another of the same digest may have been made since this one could not be had any more.
        if let Some(kept) = living.by_digest.get(&self.subtree.digest)
            && kept.strong_count() == 0
        {
            living.by_digest.remove(&self.subtree.digest);
        }
    }
}

fn bytes(directory: &Directory) -> u64 {
    let sizes = directory.files.iter().map(|file| file.digest.size());
    sizes.fold(0, u64::saturating_add)
}
