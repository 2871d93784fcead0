//! Directories of input trees, joined to what is below them: what one action brought is found again by the next, so that
//! an action costs what is new in its tree and not what is in it.
//!
//! A [`Subtree`] knows its children, how many nodes it has and since when it is known, and keeps its files from
//! eviction while it lives. Equal directories are one object, whatever trees they are part of. Of the last
//! actions' trees, as many are kept as fit within some bounds; what runs is kept anyway, by who runs it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::cas::{Cas, Pins};
use crate::reapi::Digest;
use crate::tree::{Directory, Tree};

/// Blobs of at least this many bytes are shown as the files that they are in the store.
pub(super) const LARGE: u64 = 1 << 20;
/// Directories that are known while nobody uses them.
const IDLE_DIRECTORIES: usize = 100_000;
/// Files that are kept from eviction while nobody uses them.
const IDLE_FILES: u64 = 500_000;

/// A directory and all below it.
pub(super) struct Subtree {
    pub(super) digest: Digest,
    pub(super) directory: Arc<Directory>,
    /// Its subdirectories, in the order of `directory.directories`.
    pub(super) children: Box<[Arc<Subtree>]>,
    /// Paths below it and itself, counted with repetition.
    pub(super) nodes: u64,
    /// Files of at least [`LARGE`] bytes below it, counted with repetition.
    pub(super) large: u64,
    /// The number of the action that brought it.
    pub(super) since: u64,
    /// All files below it are in the local store.
    whole: AtomicBool,
    _pins: Option<Pins>,
    known: Weak<Known>,
}

impl Subtree {
    /// The contents of all files below it.
    pub(super) fn contents(&self) -> HashSet<Digest> {
        let mut all = HashSet::new();
        let mut seen = HashSet::new();
        let mut stack = vec![self];
        while let Some(subtree) = stack.pop() {
            if seen.insert(subtree.digest) {
                all.extend(contents(&subtree.directory));
                stack.extend(subtree.children.iter().map(|child| &**child));
            }
        }
        all
    }

    /// The subdirectory of this name.
    pub(super) fn child(&self, name: &str) -> Option<&Subtree> {
        let directories = &self.directory.directories;
        let index = directories.binary_search_by(|d| (*d.name).cmp(name)).ok()?;
        self.children.get(index).map(|child| &**child)
    }

    /// An empty directory that is in no tree.
    pub(super) fn nothing(digest: Digest) -> Arc<Self> {
        Arc::new(Subtree {
            digest,
            directory: Arc::default(),
            children: Box::default(),
            nodes: 1,
            large: 0,
            since: 0,
            whole: AtomicBool::new(true),
            _pins: None,
            known: Weak::new(),
        })
    }
}

/// All subtrees.
pub(super) struct Subtrees {
    cas: Cas,
    known: Arc<Known>,
    /// Bytes of files that may be kept from eviction for their own sake.
    idle_bytes: u64,
    recent: Mutex<VecDeque<Arc<Subtree>>>,
}

#[derive(Default)]
struct Known {
    living: Mutex<Living>,
}

#[derive(Default)]
struct Living {
    by_digest: HashMap<Digest, Weak<Subtree>>,
    files: u64,
    bytes: u64,
}

impl Subtrees {
    pub(super) fn new(cas: Cas, idle_bytes: u64) -> Self {
        Subtrees {
            cas,
            known: Arc::default(),
            idle_bytes,
            recent: Mutex::default(),
        }
    }

    /// The subtree of a whole tree, which action number `action` brings. Takes as long as what is new in it is large.
    pub(super) fn of(&self, tree: &Tree, action: u64) -> Option<Arc<Subtree>> {
        let root = match self.known.get(tree.root) {
            Some(root) => root,
            None => self.build(tree, action)?,
        };
        self.remember(root.clone());
        Some(root)
    }

    /// Those files of the tree that are not in the local store.
    pub(super) fn lacking(&self, root: &Arc<Subtree>) -> Vec<Digest> {
        let mut lacking = Vec::new();
        // Children before parents: a parent is whole when they are.
        let mut stack = vec![(root, false)];
        while let Some((subtree, done)) = stack.pop() {
            if subtree.whole.load(Ordering::Relaxed) {
                continue;
            }
            if !done {
                stack.push((subtree, true));
                stack.extend(subtree.children.iter().map(|child| (child, false)));
                continue;
            }
            let files: Vec<Digest> = contents(&subtree.directory).collect();
            let absent = self.cas.local().missing(&files);
            let mut below = subtree.children.iter();
            let whole = absent.is_empty() && below.all(|child| child.whole.load(Ordering::Relaxed));
            subtree.whole.store(whole, Ordering::Relaxed);
            lacking.extend(absent);
        }
        lacking.sort_unstable();
        lacking.dedup();
        lacking
    }

    fn build(&self, tree: &Tree, action: u64) -> Option<Arc<Subtree>> {
        let mut made: HashMap<Digest, Arc<Subtree>> = HashMap::new();
        let mut stack = vec![(tree.root, false)];
        while let Some((digest, children_are_made)) = stack.pop() {
            if made.contains_key(&digest) {
                continue;
            }
            if !children_are_made && let Some(known) = self.known.get(digest) {
                made.insert(digest, known);
                continue;
            }
            let directory = tree.directories.get(&digest)?;
            if !children_are_made {
                stack.push((digest, true));
                stack.extend(directory.directories.iter().map(|d| (d.digest, false)));
                continue;
            }
            let children = (directory.directories.iter())
                .map(|child| made.get(&child.digest).cloned())
                .collect::<Option<Box<[_]>>>()?;
            let subtree = Arc::new(self.subtree(digest, directory.clone(), children, action));
            self.known.put(&subtree);
            made.insert(digest, subtree);
        }
        made.remove(&tree.root)
    }

    fn subtree(
        &self,
        digest: Digest,
        directory: Arc<Directory>,
        children: Box<[Arc<Subtree>]>,
        action: u64,
    ) -> Subtree {
        let below = |count: fn(&Subtree) -> u64| {
            let each = children.iter().map(|child| count(child));
            each.fold(0, u64::saturating_add)
        };
        let large = directory
            .files
            .iter()
            .filter(|file| file.digest.size() >= LARGE);
        let own = 1 + (directory.files.len() + directory.symlinks.len()) as u64;
        let files: Vec<Digest> = contents(&directory).collect();
        let pins = (!files.is_empty()).then(|| self.cas.local().pin(files));
        Subtree {
            digest,
            nodes: below(|child| child.nodes).saturating_add(own),
            large: below(|child| child.large).saturating_add(large.count() as u64),
            since: action,
            whole: AtomicBool::new(false),
            _pins: pins,
            known: Arc::downgrade(&self.known),
            directory,
            children,
        }
    }

    /// Keeps the tree for the next action, and lets go of those that were used longest ago.
    fn remember(&self, root: Arc<Subtree>) {
        {
            let mut recent = self.recent.lock();
            recent.retain(|other| other.digest != root.digest);
            recent.push_back(root);
        }
        while self.known.exceeds(self.idle_bytes) {
            // One by one, because a tree frees only what no other one shares; never the newest. Not dropped under the lock.
            let oldest = {
                let mut recent = self.recent.lock();
                match recent.len() {
                    0 | 1 => return,
                    _ => recent.pop_front(),
                }
            };
            drop(oldest);
        }
    }
}

impl Known {
    fn get(&self, digest: Digest) -> Option<Arc<Subtree>> {
        self.living.lock().by_digest.get(&digest)?.upgrade()
    }

    fn put(&self, subtree: &Arc<Subtree>) {
        let mut living = self.living.lock();
        living.files += subtree.directory.files.len() as u64;
        living.bytes += bytes(&subtree.directory);
        let kept = Arc::downgrade(subtree);
        living.by_digest.insert(subtree.digest, kept);
    }

    fn exceeds(&self, idle_bytes: u64) -> bool {
        let living = self.living.lock();
        living.by_digest.len() > IDLE_DIRECTORIES
            || living.files > IDLE_FILES
            || living.bytes > idle_bytes
    }
}

impl Drop for Subtree {
    fn drop(&mut self) {
        let Some(known) = self.known.upgrade() else {
            return;
        };
        let mut living = known.living.lock();
        living.files -= self.directory.files.len() as u64;
        living.bytes -= bytes(&self.directory);
        // Another of the same digest may have been made since this one could not be had any more.
        if let Some(kept) = living.by_digest.get(&self.digest)
            && kept.strong_count() == 0
        {
            living.by_digest.remove(&self.digest);
        }
    }
}

/// The contents of a directory's own files; the empty one, which nobody needs to fetch, is left out.
fn contents(directory: &Directory) -> impl Iterator<Item = Digest> {
    let digests = directory.files.iter().map(|file| file.digest);
    digests.filter(|digest| !digest.is_empty())
}

fn bytes(directory: &Directory) -> u64 {
    let sizes = directory.files.iter().map(|file| file.digest.size());
    sizes.fold(0, u64::saturating_add)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::reapi::DigestFunction;
    use crate::tree::{File, Subdirectory};

    const F: DigestFunction = DigestFunction::Sha256;

    pub(in super::super) fn file(name: &str, content: &[u8]) -> File {
        File {
            name: name.into(),
            digest: F.digest(content),
            executable: false,
            properties: None,
        }
    }

    /// A directory that no store knows, by names that are sorted.
    pub(in super::super) fn directory(
        files: &[File],
        below: &[(&str, Arc<Subtree>)],
    ) -> Arc<Subtree> {
        let directories = below.iter().map(|(name, subtree)| Subdirectory {
            name: (*name).into(),
            digest: subtree.digest,
        });
        let directory = Directory {
            files: files.to_vec(),
            directories: directories.collect(),
            ..Directory::default()
        };
        let digest = F.digest(format!("{directory:?}").as_bytes());
        let nodes = below.iter().map(|(_, subtree)| subtree.nodes).sum::<u64>();
        Arc::new(Subtree {
            directory: Arc::new(directory),
            children: below.iter().map(|(_, subtree)| subtree.clone()).collect(),
            digest,
            nodes: nodes + 1 + files.len() as u64,
            large: 0,
            since: 0,
            whole: AtomicBool::new(true),
            _pins: None,
            known: Weak::new(),
        })
    }
}
