//! Directories of input trees, joined to what is below them: what one action brought is found again by the next, so that
//! an action costs what is new in its tree and not what is in it.
//!
//! A [`Subtree`] knows its children, how many nodes it has and since when it is known. Equal directories are one object,
//! whatever trees they are part of. Of the last actions' trees, as many are kept as fit within some bounds; what is shown is
//! kept by who shows it. To keep a subtree is not to keep its files from eviction: that is [`super::pinned`]'s.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use super::living::{Bounds, Living, Recent};
use crate::reapi::Digest;
use crate::tree::{Directory, Tree};

/// Blobs of at least this many bytes are shown as the files that they are in the store.
pub(super) const LARGE: u64 = 1 << 20;
/// Directories that are known while nobody uses them.
const IDLE_DIRECTORIES: usize = 100_000;
/// Files in directories that are known, or kept from eviction, while nobody uses them.
pub(super) const IDLE_FILES: u64 = 500_000;

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
    known: Weak<Living<Subtree>>,
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
            known: Weak::new(),
        })
    }
}

/// All subtrees.
pub(super) struct Subtrees {
    known: Arc<Living<Subtree>>,
    recent: Recent<Arc<Subtree>>,
}

impl Subtrees {
    pub(super) fn new() -> Self {
        Subtrees {
            known: Arc::default(),
            // Never the newest is let go.
            recent: Recent::new(1),
        }
    }

    /// The subtree of a whole tree, which action number `action` brings. Takes as long as what is new in it is large.
    pub(super) fn of(&self, tree: &Tree, action: u64) -> Option<Arc<Subtree>> {
        let root = match self.known.get(tree.root) {
            Some(root) => root,
            None => self.build(tree, action)?,
        };
        let most = Bounds {
            directories: IDLE_DIRECTORIES,
            files: IDLE_FILES,
            bytes: u64::MAX,
        };
        let hold = |_| root.clone();
        self.recent.keep(&self.known, most, root.digest, hold);
        Some(root)
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
            self.known.put(digest, directory, &subtree);
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
        Subtree {
            digest,
            nodes: below(|child| child.nodes).saturating_add(own),
            large: below(|child| child.large).saturating_add(large.count() as u64),
            since: action,
            known: Arc::downgrade(&self.known),
            directory,
            children,
        }
    }
}

impl Drop for Subtree {
    fn drop(&mut self) {
        if let Some(known) = self.known.upgrade() {
            known.gone(self.digest, &self.directory);
        }
    }
}

/// The contents of a directory's own files; the empty one, which nobody needs to fetch, is left out.
pub(super) fn contents(directory: &Directory) -> impl Iterator<Item = Digest> {
    let digests = directory.files.iter().map(|file| file.digest);
    digests.filter(|digest| !digest.is_empty())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cas::{LocalStore, StoreConfig};
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

    /// An empty store with room.
    pub(in super::super) fn store() -> (tempfile::TempDir, Arc<LocalStore>) {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            root: dir.path().join("cas"),
            high_water: 1 << 30,
            low_water: 1 << 29,
            free_floor: 0,
        };
        let store = LocalStore::open(config).unwrap();
        (dir, store)
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
            known: Weak::new(),
        })
    }
}
