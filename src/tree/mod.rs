//! Merkle trees of Directory messages. [`decode`] turns the bytes of one message into a validated
//! [`Directory`]; [`fetch`] brings in a whole tree and checks that it has a bounded size;
//! [`TreeBuilder`] and [`from_disk`] make trees.

mod build;
mod decode;
mod disk;
mod fetch;
mod hash;
mod look;
mod lookup;
mod merge;
pub(crate) mod quote;
mod store;

use std::collections::HashMap;
use std::sync::Arc;

use prost_types::Timestamp;

pub use build::{BuildError, TreeBuilder};
pub(crate) use decode::check_name;
pub use decode::decode;
pub use disk::{DiskError, DiskTree, from_disk};
pub use fetch::{fetch, fetch_known};
pub use hash::{READ_BUFFER, digest_file, digest_file_unless, read_small};
pub(crate) use look::{file_mode, shown_mode, shown_mtime};
pub use lookup::Node;
pub use merge::{MergeError, merge};
pub use store::TreeStore;
pub(crate) use store::weight;

use crate::cas::CasError;
use crate::reapi::Digest;
use crate::reapi::status::MissingBlob;

/// One validated directory. Its names are not empty, not `.` or `..`, hold no `/` and no NUL, and
/// are unique over the three lists, each of which is sorted by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directory {
    /// Regular files.
    pub files: Vec<File>,
    /// Subdirectories.
    pub directories: Vec<Subdirectory>,
    /// Symbolic links.
    pub symlinks: Vec<Symlink>,
    /// What the message says of the directory itself.
    pub properties: Option<Box<Properties>>,
}

/// A regular file.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// Its name within the directory.
    pub name: Box<str>,
    /// Its content.
    pub digest: Digest,
    /// Whether it may be executed.
    pub executable: bool,
    /// Further properties.
    pub properties: Option<Box<Properties>>,
}

/// A subdirectory.
#[derive(Clone, Debug, PartialEq)]
pub struct Subdirectory {
    /// Its name within the directory.
    pub name: Box<str>,
    /// Its Directory message.
    pub digest: Digest,
}

/// A symbolic link.
#[derive(Clone, Debug, PartialEq)]
pub struct Symlink {
    /// Its name within the directory.
    pub name: Box<str>,
    /// Where it points: any text without NUL, at most 4095 bytes, never empty.
    pub target: Box<str>,
    /// Further properties.
    pub properties: Option<Box<Properties>>,
}

/// Node properties, validated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Properties {
    /// The modification time to show.
    pub mtime: Option<Timestamp>,
    /// The permission bits to show (0o7777 at most).
    pub unix_mode: Option<u32>,
    /// Named properties, such as `SubtreeReadOnly`.
    pub named: Vec<(String, String)>,
}

/// A whole tree: every directory that can be reached from the root is present.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The root's digest.
    pub root: Digest,
    /// The directories by digest; shared with the [`TreeStore`].
    pub directories: HashMap<Digest, Arc<Directory>>,
    /// Paths in the tree, counted with repetition.
    pub nodes: u64,
    /// Bytes of file content, counted with repetition.
    pub bytes: u64,
}

/// How large a tree may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeLimits {
    /// Files, directories and links, counted with repetition.
    pub nodes: u64,
    /// Bytes of file content, counted with repetition.
    pub bytes: u64,
    /// Directories beneath one another.
    pub depth: u32,
    /// Bytes of one Directory message.
    pub message: u64,
    /// Bytes of all distinct Directory messages, as they come or as they are kept, whichever is more.
    pub messages: u64,
}

impl Default for TreeLimits {
    fn default() -> Self {
        TreeLimits {
            nodes: 10_000_000,
            bytes: 1 << 40,
            depth: 512,
            message: 64 << 20,
            messages: 512 << 20,
        }
    }
}

/// Why a tree was refused.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The message breaks a rule of the API; says which node of which directory.
    #[error("input root: directory {digest}{}: {problem}", at(.path))]
    Invalid {
        /// The offending Directory message.
        digest: Digest,
        /// One path under which it is reached; empty if unknown or the root.
        path: String,
        /// What is wrong, naming the entry.
        problem: String,
    },
    /// The tree is larger than allowed.
    #[error("input root {root} has more than {limit} {what}")]
    TooLarge {
        /// The root.
        root: Digest,
        /// The bound that was exceeded.
        limit: u64,
        /// `nodes`, `bytes of file content`, `bytes of Directory messages`, `bytes in one Directory
        /// message` or `levels of directories`.
        what: &'static str,
    },
    /// Directory messages that nobody has; each with the path under which it was named.
    #[error("{} directories of the input root are not in the CAS, the first at {:?}", .0.len(), .0[0].what)]
    Missing(Vec<MissingBlob>),
    /// The CAS failed.
    #[error(transparent)]
    Cas(#[from] CasError),
}

fn at(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!(" at {path:?}")
    }
}
