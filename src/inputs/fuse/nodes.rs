//! The file system that shows input trees, as nodes with numbers; it knows no kernel protocol and never waits.
//!
//! ```text
//! /by-digest/NAME    views: directories that all actions share, by names that the rest of this room makes up
//! ```
//!
//! or one tree and nothing else, where nodes can be asked for their paths.
//!
//! Everything but the content of files is answered from decoded Directory messages in memory. A directory has a number
//! of its own on each path: under a shared one the kernel would move it from path to path. A file has the same number
//! in all views where it has the same content, mode and time, so that the kernel keeps its pages once; but no two paths of one
//! view have the same, for an overlay takes them for one file, and who writes to one would change the other. Numbers are never used
//! again. What the kernel knows is counted, so that a node goes when the kernel has forgotten it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::entry::{self, Attributes, Content, Kind, Look};
use super::subtree::Subtree;
use crate::config::Owner;

mod table;

use table::{Node, Place, Table, What};

/// A node's number.
pub(super) type NodeId = u64;

/// The root, as every kernel protocol has it.
pub(super) const ROOT: NodeId = 1;
const SHARED: NodeId = 2;
/// Its name.
pub(super) const SHARED_NAME: &str = "by-digest";

/// All nodes.
pub(super) struct Nodes {
    table: Mutex<Table>,
    /// The owner of the directories that are in no tree, and of the store.
    own: Owner,
    /// The root is that of a tree, and there is nothing else.
    plain: bool,
    /// Each path has a node of its own.
    by_path: bool,
}

/// A tree on show.
pub(super) struct View {
    pub(super) name: String,
    pub(super) root: Arc<Subtree>,
    owner: Owner,
    /// Whose files are mounted over its large ones.
    stored: Option<Owner>,
    /// Names that the kernel was told of, and may still know.
    told: AtomicU64,
    /// Of what looks like this, one path has the number that all views share.
    shared: Mutex<HashSet<Arc<Look>>>,
}

impl View {
    fn new(name: String, root: Arc<Subtree>, owner: Owner, stored: Option<Owner>) -> Arc<Self> {
        Arc::new(View {
            name,
            root,
            owner,
            stored,
            told: AtomicU64::new(0),
            shared: Mutex::default(),
        })
    }

    /// A bound of how many names below it the kernel keeps.
    pub(super) fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }
}

/// What a directory holds, as of now.
pub(super) enum Listing {
    /// A directory of a tree.
    Tree(Arc<Subtree>),
    /// Directories with these names, which are looked up by them.
    Names(Vec<String>),
}

impl Listing {
    pub(super) fn len(&self) -> usize {
        match self {
            Listing::Tree(subtree) => subtree.directory.entries(),
            Listing::Names(names) => names.len(),
        }
    }
}

impl Nodes {
    pub(super) fn new(own: Owner) -> Self {
        Nodes {
            own,
            plain: false,
            by_path: false,
            table: Mutex::new(Table {
                nodes: HashMap::new(),
                leaves: HashMap::new(),
                views: HashMap::new(),
                next: SHARED + 1,
            }),
        }
    }

    /// Shows one tree, and that as the root.
    pub(super) fn of(root: Arc<Subtree>, owner: Owner) -> Self {
        let mut nodes = Nodes::new(owner);
        nodes.plain = true;
        let view = View::new(String::new(), root.clone(), owner, None);
        let what = What::Directory(Place::new(view, root, ROOT, None));
        // Whatever the kernel forgets, never the root.
        let known = u64::MAX / 2;
        let table = nodes.table.get_mut();
        table.nodes.insert(ROOT, Node { known, what });
        nodes
    }

    /// The same, and each path is a node of its own: for who wants to know which one is meant.
    pub(super) fn by_path(root: Arc<Subtree>, owner: Owner) -> Self {
        Nodes {
            by_path: true,
            ..Nodes::of(root, owner)
        }
    }

    /// Shows a tree in `by-digest`, under a name that was never used before. If it is `laid`, files of the store will be mounted over its
    /// large ones.
    pub(super) fn show(
        &self,
        name: String,
        root: Arc<Subtree>,
        owner: Owner,
        laid: bool,
    ) -> Arc<View> {
        let stored = laid.then_some(self.own);
        let view = View::new(name.clone(), root.clone(), owner, stored);
        let mut table = self.table.lock();
        let id = table.number();
        table.views.insert(name, id);
        let place = Place::new(view.clone(), root, SHARED, None);
        // Once for being on show.
        let node = Node {
            known: 1,
            what: What::Directory(place),
        };
        table.nodes.insert(id, node);
        view
    }

    /// Gives a view another tree. Nobody may have looked into it before: what the kernel was told once holds for ever.
    pub(super) fn fill(&self, name: &str, root: Arc<Subtree>, owner: Owner) -> Result<(), Errno> {
        let mut table = self.table.lock();
        let id = *table.views.get(name).ok_or(Errno::NOENT)?;
        let node = table.nodes.get_mut(&id).ok_or(Errno::NOENT)?;
        let What::Directory(place) = &mut node.what else {
            return Err(Errno::NOTDIR);
        };
        if place.view.told() > 0 {
            return Err(Errno::BUSY);
        }
        place.view = View::new(name.to_owned(), root.clone(), owner, None);
        place.subtree = root;
        Ok(())
    }

    /// Takes a tree off. What the kernel still knows of it stays until it forgets it.
    pub(super) fn hide(&self, parent: NodeId, name: &str) -> Result<(), Errno> {
        let mut table = self.table.lock();
        if parent != SHARED || self.plain {
            return Err(Errno::ROFS);
        }
        let id = table.views.remove(name).ok_or(Errno::NOENT)?;
        table.forget(id, 1);
        Ok(())
    }

    /// What is under a name, which the kernel knows from now on; `None` if nothing is or ever will be.
    pub(super) fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        let Ok(name) = std::str::from_utf8(name) else {
            return Ok(None);
        };
        let mut table = self.table.lock();
        let named = match parent {
            SHARED if !self.plain => table.views.get(name).copied(),
            ROOT if !self.plain => {
                return Ok((name == SHARED_NAME).then(|| self.fixed(SHARED)));
            }
            _ => {
                let found = entry::find(&table.place(parent)?.subtree.directory, name);
                let counted = found.map(|index| table.enter(parent, index, self.by_path));
                return counted.transpose();
            }
        };
        // A view may get this name later.
        let id = named.ok_or(Errno::NOENT)?;
        Ok(Some(table.tell(id)?))
    }

    /// The entry of a listing at `index`, which the kernel knows from now on unless it is [`Nodes::forget`]ten.
    pub(super) fn entry(
        &self,
        parent: NodeId,
        listing: &Listing,
        index: usize,
    ) -> Result<(String, Attributes), Errno> {
        match listing {
            Listing::Tree(subtree) => {
                let attributes = self.table.lock().enter(parent, index, self.by_path)?;
                let name = entry::name(&subtree.directory, index).ok_or(Errno::NOENT)?;
                Ok((name.to_owned(), attributes))
            }
            Listing::Names(names) => {
                let name = names.get(index).ok_or(Errno::NOENT)?;
                let attributes = self.lookup(parent, name.as_bytes())?;
                Ok((name.clone(), attributes.ok_or(Errno::NOENT)?))
            }
        }
    }

    /// What a directory holds, and the directory that it is in.
    pub(super) fn listing(&self, id: NodeId) -> Result<(Listing, NodeId), Errno> {
        let table = self.table.lock();
        let sorted = |names: &HashMap<String, NodeId>| {
            let mut names: Vec<String> = names.keys().cloned().collect();
            names.sort_unstable();
            Listing::Names(names)
        };
        Ok(match id {
            ROOT if !self.plain => (Listing::Names(vec![SHARED_NAME.to_owned()]), ROOT),
            SHARED if !self.plain => (sorted(&table.views), ROOT),
            _ => {
                let place = table.place(id)?;
                (Listing::Tree(place.subtree.clone()), place.parent)
            }
        })
    }

    /// A node's attributes.
    pub(super) fn attributes(&self, id: NodeId) -> Result<Attributes, Errno> {
        match id {
            ROOT | SHARED if !self.plain => Ok(self.fixed(id)),
            _ => self.table.lock().attributes(id),
        }
    }

    /// What a file holds, or where a link points.
    pub(super) fn content(&self, id: NodeId) -> Result<Content, Errno> {
        match &self.table.lock().nodes.get(&id).ok_or(Errno::NOENT)?.what {
            What::Directory(_) => Err(Errno::ISDIR),
            What::Leaf(look, _) => Ok(look.content.clone()),
        }
    }

    /// A directory that holds this file or link, and the place in its listing.
    pub(super) fn home(&self, id: NodeId) -> Option<(Arc<Subtree>, usize)> {
        match &self.table.lock().nodes.get(&id)?.what {
            What::Directory(_) => None,
            What::Leaf(_, (subtree, index)) => Some((subtree.upgrade()?, *index as usize)),
        }
    }

    /// The path of a directory, or of another node where each path has one of its own; "" for the root.
    pub(super) fn path(&self, id: NodeId) -> Option<String> {
        self.table.lock().path(id)
    }

    /// The kernel forgets having been told of a node so many times.
    pub(super) fn forget(&self, id: NodeId, times: u64) {
        self.table.lock().forget(id, times);
    }

    /// How many nodes the kernel knows or may ask for.
    pub(super) fn count(&self) -> usize {
        self.table.lock().nodes.len()
    }

    fn fixed(&self, id: NodeId) -> Attributes {
        Attributes {
            id,
            kind: Kind::Directory,
            mode: 0o755,
            size: 0,
            links: 2,
            mtime: crate::tree::shown_mtime(None),
            owner: self.own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::subtree::tests::{directory, file};
    use super::*;

    const OWNER: Owner = Owner { uid: 7, gid: 8 };

    fn id(nodes: &Nodes, parent: NodeId, name: &str) -> NodeId {
        nodes.lookup(parent, name.as_bytes()).unwrap().unwrap().id
    }

    /// A view of `a`, `b` and `sub/c`, all of the same content, and `other`.
    fn view(nodes: &Nodes, name: &str) -> (Arc<View>, NodeId) {
        let sub = directory(&[file("c", b"same")], &[]);
        let files = [
            file("a", b"same"),
            file("b", b"same"),
            file("other", b"other"),
        ];
        let root = directory(&files, &[("sub", sub)]);
        let view = nodes.show(name.to_owned(), root, OWNER, false);
        (view, id(nodes, SHARED, name))
    }

    #[test]
    fn no_two_paths_of_a_view_are_one_file_and_views_share_what_they_can() {
        let nodes = Nodes::new(OWNER);
        let (_, first) = view(&nodes, "first");
        let (_, second) = view(&nodes, "second");
        let all = |root| {
            let sub = id(&nodes, root, "sub");
            let at_root = ["a", "b", "other"].map(|name| id(&nodes, root, name));
            [at_root[0], at_root[1], at_root[2], id(&nodes, sub, "c")]
        };
        let numbers = all(first);
        assert_eq!(HashSet::from(numbers).len(), 4, "{numbers:?}");
        assert_eq!(all(first), numbers, "a path keeps its number");
        let others = all(second);
        assert_eq!((others[0], others[2]), (numbers[0], numbers[2]));
        assert_eq!(HashSet::from(others).len(), 4, "{others:?}");
    }

    #[test]
    fn a_number_that_the_kernel_forgot_can_be_shared_again() {
        let nodes = Nodes::new(OWNER);
        let (view, root) = view(&nodes, "view");
        let sub = id(&nodes, root, "sub");
        let shared = id(&nodes, sub, "c");
        assert_ne!(id(&nodes, root, "a"), shared);
        nodes.forget(shared, 1);
        nodes.forget(sub, 1);
        assert_eq!(view.told(), 1);
        let again = id(&nodes, root, "b");
        let sub = id(&nodes, root, "sub");
        let c = id(&nodes, sub, "c");
        assert!(again != c && again != id(&nodes, root, "a"));
    }

    #[test]
    fn names_are_counted_once_however_often_they_are_looked_up() {
        let nodes = Nodes::new(OWNER);
        let (view, root) = view(&nodes, "view");
        for _ in 0..3 {
            let sub = id(&nodes, root, "sub");
            let told = ["a", "b"].map(|name| id(&nodes, root, name));
            let below = id(&nodes, sub, "c");
            assert_eq!(view.told(), 4);
            // What memory is short of goes, and its directory with it.
            for id in [told[0], told[1], below, sub] {
                nodes.forget(id, 1);
            }
            assert_eq!(view.told(), 2);
        }
    }
}
