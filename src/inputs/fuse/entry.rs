//! What the entries of a Directory message look like as files: kind, mode, time, owner, and which of them are the same
//! file.

use std::sync::Arc;

use super::nodes::NodeId;
use super::subtree::LARGE;
use crate::cas::LocalStore;
use crate::config::Owner;
use crate::reapi::Digest;
use crate::tree::{Directory, File, file_mode, shown_mode, shown_mtime};

/// What `stat` says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) id: NodeId,
    pub(super) kind: Kind,
    /// Permission bits.
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) links: u32,
    /// Seconds since 1970, and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) owner: Owner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
}

/// What a node other than a directory holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Content {
    /// A blob, and whether it is wanted as a program.
    File(Digest, bool),
    /// A link's target.
    Symlink(Arc<str>),
}

/// All that makes a file or link what it is: two entries that agree in this are one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Look {
    pub(super) content: Content,
    mode: u32,
    mtime: (i64, u32),
    owner: (u32, u32),
    /// Where it is, if it is to be another node than what looks the same elsewhere: its directory, and its place there.
    pub(super) place: Option<(NodeId, usize)>,
}

/// An entry: which of a directory's subdirectories, files or links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Directory(usize),
    File(usize),
    Symlink(usize),
}

/// The entry at a place of the listing: subdirectories, then files, then links.
pub(super) fn at(directory: &Directory, index: usize) -> Option<Entry> {
    let directories = directory.directories.len();
    let files = directories + directory.files.len();
    if index < directories {
        Some(Entry::Directory(index))
    } else if index < files {
        Some(Entry::File(index - directories))
    } else {
        (index < directory.entries()).then(|| Entry::Symlink(index - files))
    }
}

/// The name at a place of the listing.
pub(super) fn name(directory: &Directory, index: usize) -> Option<&str> {
    Some(match at(directory, index)? {
        Entry::Directory(n) => &directory.directories[n].name,
        Entry::File(n) => &directory.files[n].name,
        Entry::Symlink(n) => &directory.symlinks[n].name,
    })
}

/// The place of a name in the listing.
pub(super) fn find(directory: &Directory, name: &str) -> Option<usize> {
    let (directories, files) = (&directory.directories, &directory.files);
    if let Ok(n) = directories.binary_search_by(|d| (*d.name).cmp(name)) {
        return Some(n);
    }
    if let Ok(n) = files.binary_search_by(|f| (*f.name).cmp(name)) {
        return Some(directories.len() + n);
    }
    let links = &directory.symlinks;
    let n = links.binary_search_by(|s| (*s.name).cmp(name)).ok()?;
    Some(directories.len() + files.len() + n)
}

/// Whether a file may be shown as the one in the store: large, and with no mode or time of its own.
pub(super) fn is_large(file: &File) -> bool {
    let plain =
        { file.properties.as_deref() }.is_none_or(|p| p.mtime.is_none() && p.unix_mode.is_none());
    plain && file.digest.size() >= LARGE
}

/// What a file or link looks like, wherever it is; `None` for a directory. Where files may be mounted out of a store, large ones look
/// as that has them, whether they are there yet or not: read-only, and of `stored`, who has the store.
pub(super) fn leaf(
    directory: &Directory,
    entry: Entry,
    owner: Owner,
    stored: Option<Owner>,
) -> Option<Look> {
    let (content, mode, properties, owner) = match entry {
        Entry::Directory(_) => return None,
        Entry::File(n) => {
            let file = directory.files.get(n)?;
            let content = Content::File(file.digest, file.executable);
            let properties = file.properties.as_deref();
            let (mode, owner) = match stored.filter(|_| is_large(file)) {
                Some(stored) => (LocalStore::file_mode(file.executable), stored),
                None => (shown_mode(properties, file_mode(file.executable)), owner),
            };
            (content, mode, properties, owner)
        }
        Entry::Symlink(n) => {
            let link = directory.symlinks.get(n)?;
            let content = Content::Symlink((*link.target).into());
            (content, 0o777, link.properties.as_deref(), owner)
        }
    };
    Some(Look {
        content,
        mode,
        mtime: shown_mtime(properties),
        owner: (owner.uid, owner.gid),
        place: None,
    })
}

/// The attributes of a directory.
pub(super) fn of_directory(id: NodeId, directory: &Directory, owner: Owner) -> Attributes {
    let properties = directory.properties.as_deref();
    Attributes {
        id,
        kind: Kind::Directory,
        mode: shown_mode(properties, 0o755),
        // As on most file systems: some programs take an empty one for damaged.
        size: 4096,
        // Walkers count on it: one for each subdirectory's "..".
        links: u32::try_from(directory.directories.len()).map_or(1, |n| n.saturating_add(2)),
        mtime: shown_mtime(properties),
        owner,
    }
}

/// The attributes of a file or link.
pub(super) fn of_leaf(id: NodeId, look: &Look) -> Attributes {
    let (kind, size) = match &look.content {
        Content::File(digest, _) => (Kind::File, digest.size()),
        Content::Symlink(target) => (Kind::Symlink, target.len() as u64),
    };
    let (uid, gid) = look.owner;
    Attributes {
        id,
        kind,
        mode: look.mode,
        size,
        links: 1,
        mtime: look.mtime,
        owner: Owner { uid, gid },
    }
}
