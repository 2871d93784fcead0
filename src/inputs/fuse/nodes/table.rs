//! The nodes by their numbers: which there are, what the kernel was told of them, and when they go.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use rustix::io::Errno;

use super::super::entry::{self, Attributes, Entry, Look};
use super::super::subtree::Subtree;
use super::{NodeId, View};

pub(super) struct Table {
    pub(super) nodes: HashMap<NodeId, Node>,
    pub(super) leaves: HashMap<Arc<Look>, NodeId>,
    pub(super) views: HashMap<String, NodeId>,
    pub(super) next: NodeId,
}

pub(super) struct Node {
    /// How often the kernel was told of it, minus what it forgot.
    pub(super) known: u64,
    pub(super) what: What,
}

pub(super) enum What {
    Directory(Place),
    /// A file or a link, and where it was first found.
    Leaf(Arc<Look>, Home),
}

/// The directory in which an entry is, if that still is known, and its place in the listing.
pub(super) type Home = (Weak<Subtree>, u32);

/// A directory at its place.
pub(super) struct Place {
    pub(super) view: Arc<View>,
    pub(super) subtree: Arc<Subtree>,
    pub(super) parent: NodeId,
    /// Which of its parent's subdirectories it is; `None` for the root of a view.
    pub(super) index: Option<u32>,
    pub(super) children: HashMap<u32, NodeId>,
    /// Its files and links of which the kernel was told, by their places in the listing; with their looks if their number is one that views
    /// share.
    pub(super) leaves: HashMap<u32, Option<Arc<Look>>>,
}

impl Place {
    pub(super) fn new(
        view: Arc<View>,
        subtree: Arc<Subtree>,
        parent: NodeId,
        index: Option<u32>,
    ) -> Self {
        Place {
            view,
            subtree,
            parent,
            index,
            children: HashMap::new(),
            leaves: HashMap::new(),
        }
    }
}

impl Table {
    pub(super) fn number(&mut self) -> NodeId {
        self.next += 1;
        self.next
    }

    pub(super) fn place(&self, id: NodeId) -> Result<&Place, Errno> {
        match &self.nodes.get(&id).ok_or(Errno::NOENT)?.what {
            What::Directory(place) => Ok(place),
            What::Leaf(..) => Err(Errno::NOTDIR),
        }
    }

    pub(super) fn path(&self, id: NodeId) -> Option<String> {
        let mut names = Vec::new();
        let mut at = id;
        loop {
            let (parent, index) = match &self.nodes.get(&at)?.what {
                What::Directory(Place { index: None, .. }) => break,
                // Subdirectories come first in a listing.
                What::Directory(place) => (place.parent, place.index? as usize),
                What::Leaf(look, _) => look.place?,
            };
            names.push(entry::name(
                &self.place(parent).ok()?.subtree.directory,
                index,
            )?);
            at = parent;
        }
        names.reverse();
        Some(names.join("/"))
    }

    pub(super) fn place_mut(&mut self, id: NodeId) -> Result<&mut Place, Errno> {
        match &mut self.nodes.get_mut(&id).ok_or(Errno::NOENT)?.what {
            What::Directory(place) => Ok(place),
            What::Leaf(..) => Err(Errno::NOTDIR),
        }
    }

    /// Tells of the entry at `index` of a directory of a tree.
    pub(super) fn enter(
        &mut self,
        parent: NodeId,
        index: usize,
        by_path: bool,
    ) -> Result<Attributes, Errno> {
        let place = self.place(parent)?;
        let subtree = place.subtree.clone();
        let id = match entry::at(&subtree.directory, index).ok_or(Errno::NOENT)? {
            Entry::Directory(index) => match place.children.get(&(index as u32)) {
                Some(&id) => id,
                None => {
                    let view = place.view.clone();
                    let below = subtree.children.get(index).ok_or(Errno::IO)?.clone();
                    self.descend(parent, view, below, index as u32)?
                }
            },
            entry => self.leaf(parent, index, entry, by_path)?,
        };
        self.tell(id)
    }

    /// The number of a file or link, which a path keeps as long as its directory is known.
    pub(super) fn leaf(
        &mut self,
        parent: NodeId,
        index: usize,
        entry: Entry,
        by_path: bool,
    ) -> Result<NodeId, Errno> {
        let place = self.place(parent)?;
        let view = place.view.clone();
        let key = index as u32;
        let look = entry::leaf(&place.subtree.directory, entry, view.owner, view.stored);
        let mut look = look.ok_or(Errno::NOENT)?;
        let (new, shared) = match place.leaves.get(&key) {
            Some(known) => (false, known.is_some()),
            None => (true, !by_path && !view.shared.lock().contains(&look)),
        };
        if !shared {
            look.place = Some((parent, index));
        }
        let (look, id) = match self.leaves.get_key_value(&look) {
            Some((look, &id)) => (look.clone(), id),
            None => {
                let id = self.number();
                let look = Arc::new(look);
                self.leaves.insert(look.clone(), id);
                let home = (Arc::downgrade(&self.place(parent)?.subtree), key);
                let what = What::Leaf(look.clone(), home);
                self.nodes.insert(id, Node { known: 0, what });
                (look, id)
            }
        };
        if new {
            view.told.fetch_add(1, Ordering::Relaxed);
            let look = shared.then_some(look);
            view.shared.lock().extend(look.clone());
            self.place_mut(parent)?.leaves.insert(key, look);
        }
        Ok(id)
    }

    pub(super) fn descend(
        &mut self,
        parent: NodeId,
        view: Arc<View>,
        subtree: Arc<Subtree>,
        index: u32,
    ) -> Result<NodeId, Errno> {
        let id = self.number();
        view.told.fetch_add(1, Ordering::Relaxed);
        let what = What::Directory(Place::new(view, subtree, parent, Some(index)));
        self.nodes.insert(id, Node { known: 0, what });
        self.place_mut(parent)?.children.insert(index, id);
        Ok(id)
    }

    pub(super) fn tell(&mut self, id: NodeId) -> Result<Attributes, Errno> {
        self.nodes.get_mut(&id).ok_or(Errno::NOENT)?.known += 1;
        self.attributes(id)
    }

    pub(super) fn attributes(&self, id: NodeId) -> Result<Attributes, Errno> {
        Ok(match &self.nodes.get(&id).ok_or(Errno::NOENT)?.what {
            What::Directory(place) => {
                entry::of_directory(id, &place.subtree.directory, place.view.owner)
            }
            What::Leaf(look, _) => entry::of_leaf(id, look),
        })
    }

    pub(super) fn forget(&mut self, id: NodeId, times: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.known = node.known.saturating_sub(times);
        if node.known > 0 {
            return;
        }
        match self.nodes.remove(&id).map(|node| node.what) {
            Some(What::Leaf(look, _)) => {
                self.leaves.remove(&*look);
            }
            Some(What::Directory(place)) => {
                {
                    let mut shared = place.view.shared.lock();
                    for look in place.leaves.values().flatten() {
                        shared.remove(look);
                    }
                }
                let names = place.leaves.len() as u64 + u64::from(place.index.is_some());
                place.view.told.fetch_sub(names, Ordering::Relaxed);
                if let Some(index) = place.index
                    && let Ok(above) = self.place_mut(place.parent)
                {
                    above.children.remove(&index);
                }
            }
            None => {}
        }
    }
}
