//! Building trees: from paths to Directory messages with their digests.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use prost::Message;

use super::decode::check_name;
use super::{Properties, quote};
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

/// Directories beneath one another that a builder takes.
const MAX_DEPTH: usize = 1024;

/// Collects entries by path and serializes the directories canonically (sorted), children first.
pub struct TreeBuilder {
    function: DigestFunction,
    /// The root first, every directory after the one that holds it.
    directories: Vec<Building>,
}

#[derive(Default)]
struct Building {
    entries: BTreeMap<Box<str>, Entry>,
    properties: Option<Properties>,
}

enum Entry {
    File {
        digest: Digest,
        executable: bool,
        properties: Option<Properties>,
    },
    Directory(usize),
    Symlink {
        target: String,
        properties: Option<Properties>,
    },
}

/// Why an entry was not added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot put {path:?} into the tree: {problem}")]
pub struct BuildError {
    /// The path of the entry.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

impl TreeBuilder {
    /// An empty root.
    pub fn new(function: DigestFunction) -> Self {
        TreeBuilder {
            function,
            directories: vec![Building::default()],
        }
    }

    /// Adds a regular file and the directories above it. Paths are relative to the root, without `.`, `..` or
    /// empty segments; an entry that exists already is an error.
    pub fn file(
        &mut self,
        path: &str,
        digest: Digest,
        executable: bool,
        properties: Option<Properties>,
    ) -> Result<(), BuildError> {
        if digest.function() != self.function {
            return Err(error(path, "its digest is of another function".to_owned()));
        }
        let file = Entry::File {
            digest,
            executable,
            properties,
        };
        self.insert(path, file)
    }

    /// Adds a symbolic link and the directories above it.
    pub fn symlink(
        &mut self,
        path: &str,
        target: &str,
        properties: Option<Properties>,
    ) -> Result<(), BuildError> {
        if target.is_empty() || target.len() > 4095 || target.contains('\0') {
            let shown = quote::name(target);
            return Err(error(path, format!("{shown} cannot be a link's target")));
        }
        let target = target.to_owned();
        self.insert(path, Entry::Symlink { target, properties })
    }

    /// Makes sure that a directory exists, empty or not; "" is the root.
    pub fn directory(&mut self, path: &str) -> Result<(), BuildError> {
        self.descend(path, path).map(drop)
    }

    /// Sets the properties of a directory, which is made if it does not exist.
    pub fn directory_properties(
        &mut self,
        path: &str,
        properties: Properties,
    ) -> Result<(), BuildError> {
        let at = self.descend(path, path)?;
        self.directories[at].properties = Some(properties);
        Ok(())
    }

    fn insert(&mut self, path: &str, entry: Entry) -> Result<(), BuildError> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if parent.is_empty() && name.len() != path.len() {
            return Err(error(path, "it is absolute".to_owned()));
        }
        check(path, name)?;
        let parent = self.descend(path, parent)?;
        match self.directories[parent].entries.entry(name.into()) {
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(entry);
                Ok(())
            }
            std::collections::btree_map::Entry::Occupied(_) => {
                Err(error(path, "there is one already".to_owned()))
            }
        }
    }

    /// The directory at `path`, made as needed; errors name the `whole` path.
    fn descend(&mut self, whole: &str, path: &str) -> Result<usize, BuildError> {
        let mut at = 0;
        if path.is_empty() {
            return Ok(at);
        }
        for (depth, name) in path.split('/').enumerate() {
            check(whole, name)?;
            if depth >= MAX_DEPTH {
                let problem = format!("it is more than {MAX_DEPTH} directories deep");
                return Err(error(whole, problem));
            }
            let new = self.directories.len();
            at = match self.directories[at].entries.get(name) {
                Some(Entry::Directory(child)) => *child,
                Some(_) => {
                    let shown = quote::name(name);
                    return Err(error(whole, format!("{shown} is not a directory")));
                }
                None => {
                    let child = Entry::Directory(new);
                    self.directories[at].entries.insert(name.into(), child);
                    self.directories.push(Building::default());
                    new
                }
            };
        }
        Ok(at)
    }

    /// The root's digest, and every Directory message (children before parents), each once.
    pub fn finish(self) -> (Digest, Vec<(Digest, Bytes)>) {
        let mut digests = vec![None; self.directories.len()];
        let mut messages = Vec::with_capacity(self.directories.len());
        let mut seen = HashSet::new();
        let mut root = Digest::empty(self.function);
        for (index, directory) in self.directories.into_iter().enumerate().rev() {
            let message = serialize(directory, &digests);
            let bytes = Bytes::from(message.encode_to_vec());
            let digest = self.function.digest(&bytes);
            digests[index] = Some(digest.to_proto());
            root = digest;
            if seen.insert(digest) {
                messages.push((digest, bytes));
            }
        }
        (root, messages)
    }
}

#[cfg(test)]
impl TreeBuilder {
    /// The tree as one that was fetched, for tests.
    pub(crate) fn tree(self) -> super::Tree {
        let (root, messages) = self.finish();
        let decoded = |(digest, message): (Digest, Bytes)| {
            let directory = super::decode(digest, &message).unwrap();
            (digest, std::sync::Arc::new(directory))
        };
        super::Tree {
            root,
            directories: messages.into_iter().map(decoded).collect(),
            nodes: 0,
            bytes: 0,
        }
    }
}

fn serialize(directory: Building, digests: &[Option<re::Digest>]) -> re::Directory {
    let mut message = re::Directory {
        node_properties: directory.properties.map(Properties::into_proto),
        ..Default::default()
    };
    for (name, entry) in directory.entries {
        let name = name.into_string();
        match entry {
            Entry::File {
                digest,
                executable,
                properties,
            } => message.files.push(re::FileNode {
                name,
                digest: Some(digest.to_proto()),
                is_executable: executable,
                node_properties: properties.map(Properties::into_proto),
            }),
            Entry::Directory(index) => message.directories.push(re::DirectoryNode {
                name,
                digest: digests[index].clone(),
            }),
            Entry::Symlink { target, properties } => message.symlinks.push(re::SymlinkNode {
                name,
                target,
                node_properties: properties.map(Properties::into_proto),
            }),
        }
    }
    message
}

impl Properties {
    /// To the wire; the named ones sorted by name, as REAPI has it.
    pub(crate) fn into_proto(self) -> re::NodeProperties {
        let mut named = self.named;
        named.sort();
        re::NodeProperties {
            properties: named
                .into_iter()
                .map(|(name, value)| re::NodeProperty { name, value })
                .collect(),
            mtime: self.mtime,
            unix_mode: self.unix_mode,
        }
    }
}

fn check(path: &str, name: &str) -> Result<(), BuildError> {
    check_name(name).map_err(|problem| error(path, format!("{} {problem}", quote::name(name))))
}

fn error(path: &str, problem: String) -> BuildError {
    BuildError {
        path: quote::path(path),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::decode;
    use proptest::prelude::*;

    fn blob(text: &str) -> Digest {
        DigestFunction::Sha256.digest(text.as_bytes())
    }

    #[test]
    fn equal_trees_have_equal_digests() {
        let mut one = TreeBuilder::new(DigestFunction::Sha256);
        one.file("src/a.c", blob("a"), false, None).unwrap();
        one.file("src/b.c", blob("b"), true, None).unwrap();
        one.directory("out").unwrap();
        let mut other = TreeBuilder::new(DigestFunction::Sha256);
        other.directory("out").unwrap();
        other.file("src/b.c", blob("b"), true, None).unwrap();
        other.file("src/a.c", blob("a"), false, None).unwrap();
        other.directory("src").unwrap();
        let (root, mut messages) = one.finish();
        assert_eq!(messages.last().unwrap().0, root);
        let (same, mut others) = other.finish();
        messages.sort();
        others.sort();
        assert_eq!((root, &messages), (same, &others));
        assert_eq!(messages.len(), 3);
    }

    #[test]
    fn equal_directories_are_one_message() {
        let mut tree = TreeBuilder::new(DigestFunction::Blake3);
        let file = DigestFunction::Blake3.digest(b"x");
        tree.file("a/x", file, false, None).unwrap();
        tree.file("b/x", file, false, None).unwrap();
        assert_eq!(tree.finish().1.len(), 2);
        let (root, messages) = TreeBuilder::new(DigestFunction::Blake3).finish();
        assert_eq!(messages, [(root, Bytes::new())]);
        assert_eq!(root, Digest::empty(DigestFunction::Blake3));
    }

    #[test]
    fn impossible_entries_are_refused() {
        let mut tree = TreeBuilder::new(DigestFunction::Sha256);
        tree.file("a", blob("a"), false, None).unwrap();
        for path in ["", "a", "a/b", "/x", "x//y", "./x", "../x", "x/", "x\0"] {
            let error = tree.file(path, blob("b"), false, None).unwrap_err();
            assert!(!error.problem.is_empty());
        }
        assert!(tree.symlink("l", "", None).is_err());
        assert!(tree.directory("a").is_err());
        assert!(tree.directory(&"d/".repeat(2000)).is_err());
        assert!(
            tree.file("y", DigestFunction::Blake3.digest(b"x"), false, None)
                .is_err()
        );
    }

    fn properties() -> impl Strategy<Value = Option<Properties>> {
        let mtime = proptest::option::of((0_i64..4_000_000_000, 0_i32..1_000_000_000));
        let mode = proptest::option::of(0_u32..=0o7777);
        proptest::option::of((mtime, mode)).prop_map(|given| {
            let (mtime, unix_mode) = given?;
            let properties = Properties {
                mtime: mtime.map(|(seconds, nanos)| prost_types::Timestamp { seconds, nanos }),
                unix_mode,
                named: Vec::new(),
            };
            (properties != Properties::default()).then_some(properties)
        })
    }

    proptest! {
        /// What is built can be decoded, and reads as it was built.
        #[test]
        fn goes_there_and_back(
            paths in proptest::collection::vec(("[a-zü]{1,3}(/[a-z]{1,2}){0,3}", 0_u8..3, properties()), 0..30)
        ) {
            let mut tree = TreeBuilder::new(DigestFunction::Sha256);
            let mut kept = Vec::new();
            for (path, kind, properties) in paths {
                let added = match kind {
                    0 => tree.file(&path, blob(&path), path.len() % 2 == 0, properties.clone()),
                    1 => tree.symlink(&path, &format!("to/{path}"), properties.clone()),
                    _ => tree.directory(&path),
                };
                if added.is_ok() {
                    kept.push((path, kind, properties));
                }
            }
            let (root, messages) = tree.finish();
            let mut directories = std::collections::HashMap::new();
            for (digest, bytes) in messages {
                prop_assert_eq!(DigestFunction::Sha256.digest(&bytes), digest);
                for child in &decode(digest, &bytes).unwrap().directories {
                    prop_assert!(directories.contains_key(&child.digest));
                }
                directories.insert(digest, std::sync::Arc::new(decode(digest, &bytes).unwrap()));
            }
            let tree = crate::tree::Tree { root, directories, nodes: 0, bytes: 0 };
            for (path, kind, properties) in kept {
                use crate::tree::Node;
                match tree.lookup(&path) {
                    Some(Node::File(file)) => {
                        prop_assert_eq!(kind, 0);
                        prop_assert_eq!(file.digest, blob(&path));
                        prop_assert_eq!(file.executable, path.len() % 2 == 0);
                        prop_assert_eq!(file.properties.as_deref(), properties.as_ref());
                    }
                    Some(Node::Symlink(link)) => {
                        prop_assert_eq!(kind, 1);
                        prop_assert_eq!(&*link.target, &format!("to/{path}"));
                        prop_assert_eq!(link.properties.as_deref(), properties.as_ref());
                    }
                    Some(Node::Directory(..)) => prop_assert_eq!(kind, 2),
                    None => prop_assert!(false, "{} is lost", path),
                }
            }
        }
    }
}
