//! Files of input trees that may not be evicted: those of the actions that run, and of the last actions' trees as many as fit
//! within a part of the store.
//!
//! What the kernel remembers of a tree, and what is kept so that the next action finds it, pins nothing: else all that was
//! ever looked at would stay, and the store would be full while nothing runs. Nor are those of the last actions in the way of who needs
//! room: the store has them to drop.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use super::living::{Bounds, Living, Recent};
use super::subtree::{IDLE_FILES, Subtree, contents};
use crate::cas::{Cas, Pins, Spare};
use crate::reapi::Digest;

/// The part of the store that may be kept from eviction for the next action's sake.
const IDLE_PART: u64 = 4;

/// A subtree whose files stay in the local store while this lives. Equal ones are one object.
pub(super) struct Pinned {
    pub(super) subtree: Arc<Subtree>,
    below: Box<[Arc<Pinned>]>,
    /// All files below it are in the local store.
    whole: AtomicBool,
    _pins: Option<Pins>,
    living: Weak<Living<Pinned>>,
}

/// All of them.
pub(super) struct Pinning {
    cas: Cas,
    living: Arc<Living<Pinned>>,
    idle: Recent<Spare>,
}

impl Pinning {
    pub(super) fn new(cas: Cas) -> Self {
        Pinning {
            cas,
            living: Arc::default(),
            // At last the newest goes too: it is kept by who uses it.
            idle: Recent::new(0),
        }
    }

    /// Keeps all files of a tree from eviction. Takes as long as what nobody keeps yet is large.
    pub(super) fn pin(&self, root: &Arc<Subtree>) -> Arc<Pinned> {
        let pinned = self.living.get(root.digest);
        let pinned = pinned.unwrap_or_else(|| self.build(root));
        let most = Bounds {
            directories: usize::MAX,
            files: IDLE_FILES,
            // Of what the disk has room for: a quota may be larger.
            bytes: self.cas.local().reach() / IDLE_PART,
        };
        self.idle.forget_oldest(Spare::is_gone);
        self.idle.keep(&self.living, most, root.digest, |before| {
            let there = before.and_then(|mut spare| spare.renew().then_some(spare));
            there.unwrap_or_else(|| self.cas.local().spare(pinned.clone()))
        });
        pinned
    }

    /// Whether the files of this directory are kept from eviction.
    pub(super) fn is_pinned(&self, digest: Digest) -> bool {
        self.living.is_held(digest)
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

    fn build(&self, root: &Arc<Subtree>) -> Arc<Pinned> {
        let mut made: HashMap<Digest, Arc<Pinned>> = HashMap::new();
        let (mut at, mut waiting) = (root, Vec::new());
        loop {
            let known = made.get(&at.digest).cloned();
            let pinned = match known.or_else(|| self.living.get(at.digest)) {
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
        // To ask again whether each file is there would take as long as all the rest.
        let whole = pins.as_ref().is_none_or(Pins::whole)
            && below
                .iter()
                .all(|child| child.whole.load(Ordering::Relaxed));
        let pinned = Arc::new(Pinned {
            subtree: subtree.clone(),
            below,
            whole: AtomicBool::new(whole),
            _pins: pins,
            living: Arc::downgrade(&self.living),
        });
        let directory = &subtree.directory;
        self.living.put(subtree.digest, directory, &pinned);
        pinned
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(living) = self.living.upgrade() {
            living.gone(self.subtree.digest, &self.subtree.directory);
        }
    }
}
