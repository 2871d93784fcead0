//! Whole trees: every directory of an input root, decoded once and shared between actions.
//!
//! The tree is read level by level. Of each level, what the [`TreeStore`] does not have is asked
//! of the CAS in one go, so that a cold tree costs one round trip a level at most. If the root
//! and everything right below it is new, the whole tree is asked for in one call (GetTree); an
//! input root that shares subtrees with an earlier one, as nearly all do, is cheaper to read
//! by level.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::{Directory, Tree, TreeError, TreeLimits, TreeStore, decode, lookup, quote, store};
use crate::cas::{Cas, CasError};
use crate::reapi::Digest;
use crate::reapi::status::MissingBlob;

/// Messages are asked for in portions of about this many bytes, which bounds what is in memory undecoded.
const PORTION: u64 = 32 << 20;

/// Brings in the whole tree below `root`: from the store, the local CAS, or the remote, in as few round trips
/// as its depth allows.
pub async fn fetch(
    cas: &Cas,
    store: &TreeStore,
    root: Digest,
    limits: TreeLimits,
) -> Result<Arc<Tree>, TreeError> {
    match fetch_known(cas, store, root, limits).await? {
        (tree, missing) if missing.is_empty() => Ok(tree),
        (_, missing) => Err(TreeError::Missing(missing)),
    }
}

/// Like [`fetch`], but gives what there is of a tree beside the directories that nobody has: for
/// whoever must name all that is missing from an input root at once. The size of a
/// tree with holes is not measured.
pub async fn fetch_known(
    cas: &Cas,
    store: &TreeStore,
    root: Digest,
    limits: TreeLimits,
) -> Result<(Arc<Tree>, Vec<MissingBlob>), TreeError> {
    let mut reader = Reader {
        cas,
        store,
        root,
        limits,
        directories: HashMap::new(),
        parents: HashMap::new(),
        given: HashMap::new(),
        missing: Vec::new(),
        entries: 0,
        messages: 0,
    };
    let mut level = vec![root];
    let mut depth = 0;
    while !level.is_empty() {
        if depth > limits.depth {
            return Err(too_deep(root, limits));
        }
        level = reader.read_level(level, depth).await?;
        depth += 1;
    }
    let Reader {
        directories,
        missing,
        ..
    } = reader;
    let size = match missing.is_empty() {
        true => measure(&directories, root, limits)?,
        false => Size::default(),
    };
    let tree = Tree {
        root,
        directories,
        nodes: size.nodes,
        bytes: size.bytes,
    };
    Ok((Arc::new(tree), missing))
}

struct Reader<'a> {
    cas: &'a Cas,
    store: &'a TreeStore,
    root: Digest,
    limits: TreeLimits,
    directories: HashMap<Digest, Arc<Directory>>,
    /// Where each directory below the root was met first.
    parents: HashMap<Digest, (Digest, Box<str>)>,
    /// Messages that came with GetTree and were not looked at yet.
    given: HashMap<Digest, Bytes>,
    missing: Vec<MissingBlob>,
    /// Entries of distinct directories: never more than the nodes of the tree.
    entries: u64,
    /// Bytes of the distinct directories, see [`TreeLimits::messages`].
    messages: u64,
}

impl Reader<'_> {
    /// Reads these directories, each new here, and returns those below them that are new.
    async fn read_level(
        &mut self,
        level: Vec<Digest>,
        depth: u32,
    ) -> Result<Vec<Digest>, TreeError> {
        let mut next = Vec::new();
        let mut wanted = Vec::new();
        for digest in level {
            if let Some(directory) = self.store.get(digest) {
                self.take(digest, directory, &mut next)?;
            } else if digest.is_empty() {
                self.take(digest, Arc::default(), &mut next)?;
            } else if digest.size() > self.limits.message {
                return Err(TreeError::TooLarge {
                    root: self.root,
                    limit: self.limits.message,
                    what: "bytes in one Directory message",
                });
            } else if let Some(message) = self.given.remove(&digest) {
                self.decode(digest, &message, &mut next)?;
            } else {
                wanted.push(digest);
            }
        }
        if depth == 1 && next.is_empty() && self.directories.len() == 1 && self.all_new(&wanted) {
            self.given = match self.cas.read_tree(self.root).await {
                Ok(messages) => messages.into_iter().collect(),
                // It saves round trips, no more: what is wrong with the remote itself, reading by level tells.
                Err(error) => {
                    tracing::debug!(root = %self.root, %error, "reading the tree by level");
                    HashMap::new()
                }
            };
            let mut rest = Vec::new();
            for digest in wanted {
                match self.given.remove(&digest) {
                    Some(message) => self.decode(digest, &message, &mut next)?,
                    None => rest.push(digest),
                }
            }
            wanted = rest;
        }
        for portion in portions(&wanted) {
            for (digest, message) in self.read(portion).await? {
                if !self.directories.contains_key(&digest) {
                    self.decode(digest, &message, &mut next)?;
                }
            }
        }
        Ok(next)
    }

    /// Whether none of these is known here, so that it is worth asking for the whole tree.
    fn all_new(&self, digests: &[Digest]) -> bool {
        !digests.is_empty() && self.cas.local().missing(digests).len() == digests.len()
    }

    /// Those that the CAS has; the others are noted as missing.
    async fn read(&mut self, portion: &[Digest]) -> Result<Vec<(Digest, Bytes)>, TreeError> {
        let mut wanted = portion.to_vec();
        while !wanted.is_empty() {
            let limit = self.limits.message;
            match self.cas.read_many(&wanted, limit, "Directory").await {
                Ok(messages) => return Ok(messages),
                // The tree is read on, so that all missing messages are reported at once.
                Err(CasError::Missing(digests)) => {
                    let absent: HashSet<Digest> = digests.iter().copied().collect();
                    let (lost, rest) = wanted.into_iter().partition(|d| absent.contains(d));
                    let lost: Vec<Digest> = lost;
                    if lost.is_empty() {
                        return Err(CasError::Missing(digests).into());
                    }
                    for digest in lost {
                        let what = self.what(digest);
                        self.missing.push(MissingBlob { digest, what });
                    }
                    wanted = rest;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Vec::new())
    }

    fn decode(
        &mut self,
        digest: Digest,
        message: &Bytes,
        next: &mut Vec<Digest>,
    ) -> Result<(), TreeError> {
        let directory = decode(digest, message).map_err(|error| match error {
            TreeError::Invalid {
                digest, problem, ..
            } => TreeError::Invalid {
                digest,
                path: quote::path(&self.path(digest)),
                problem,
            },
            other => other,
        })?;
        let directory = Arc::new(directory);
        self.store.put(digest, directory.clone());
        self.take(digest, directory, next)
    }

    fn take(
        &mut self,
        digest: Digest,
        directory: Arc<Directory>,
        next: &mut Vec<Digest>,
    ) -> Result<(), TreeError> {
        self.entries = self.entries.saturating_add(directory.entries() as u64);
        if self.entries > self.limits.nodes {
            return Err(too_many(self.root, self.limits));
        }
        let bytes = digest.size().max(store::weight(&directory));
        self.messages = self.messages.saturating_add(bytes);
        if self.messages > self.limits.messages {
            return Err(TreeError::TooLarge {
                root: self.root,
                limit: self.limits.messages,
                what: "bytes of Directory messages",
            });
        }
        for child in &directory.directories {
            if child.digest != self.root && !self.parents.contains_key(&child.digest) {
                self.parents
                    .insert(child.digest, (digest, child.name.clone()));
                next.push(child.digest);
            }
        }
        self.directories.insert(digest, directory);
        Ok(())
    }

    fn path(&self, digest: Digest) -> String {
        lookup::path_to(&self.parents, self.root, digest, "")
    }

    fn what(&self, digest: Digest) -> String {
        match self.path(digest) {
            path if path.is_empty() => "the input root".to_owned(),
            path => format!("input directory {}", quote::path(&path)),
        }
    }
}

fn portions(mut digests: &[Digest]) -> impl Iterator<Item = &[Digest]> {
    std::iter::from_fn(move || {
        let mut bytes = 0_u64;
        let fit = digests
            .iter()
            .take_while(|digest| {
                bytes = bytes.saturating_add(digest.size());
                bytes <= PORTION
            })
            .count();
        let (portion, rest) = digests.split_at(fit.max(1).min(digests.len()));
        digests = rest;
        (!portion.is_empty()).then_some(portion)
    })
}

fn too_deep(root: Digest, limits: TreeLimits) -> TreeError {
    TreeError::TooLarge {
        root,
        limit: limits.depth.into(),
        what: "levels of directories",
    }
}

fn too_many(root: Digest, limits: TreeLimits) -> TreeError {
    TreeError::TooLarge {
        root,
        limit: limits.nodes,
        what: "nodes",
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Size {
    pub(super) nodes: u64,
    pub(super) bytes: u64,
}

/// Counts paths and bytes with repetition, each distinct directory once: a tree of 2^60 paths is refused as fast as
/// one of 60. The path that is being looked at is never longer than the bound on depth, so that even
/// a cycle, which needs a broken hash function, would end here.
pub(super) fn measure(
    directories: &HashMap<Digest, Arc<Directory>>,
    root: Digest,
    limits: TreeLimits,
) -> Result<Size, TreeError> {
    struct Visit<'a> {
        digest: Digest,
        directory: &'a Directory,
        next: usize,
        height: u32,
        size: Size,
    }
    let visit = |digest: Digest| {
        let directory: &Directory = directories.get(&digest)?;
        Some(Visit {
            digest,
            directory,
            next: 0,
            height: 0,
            size: Size {
                nodes: directory.entries() as u64,
                bytes: (directory.files.iter())
                    .fold(0, |sum, file| sum.saturating_add(file.digest.size())),
            },
        })
    };
    let mut known: HashMap<Digest, (Size, u32)> = HashMap::with_capacity(directories.len());
    let mut path: Vec<Visit> = visit(root).into_iter().collect();
    loop {
        let depth = path.len() as u64;
        let Some(top) = path.last_mut() else {
            break;
        };
        if let Some(child) = top.directory.directories.get(top.next) {
            if let Some((size, height)) = known.get(&child.digest) {
                top.next += 1;
                top.size.nodes = top.size.nodes.saturating_add(size.nodes);
                top.size.bytes = top.size.bytes.saturating_add(size.bytes);
                top.height = top.height.max(height + 1);
            } else {
                match visit(child.digest) {
                    Some(_) if depth > u64::from(limits.depth) => {
                        return Err(too_deep(root, limits));
                    }
                    Some(below) => path.push(below),
                    None => top.next += 1,
                }
            }
            continue;
        }
        if top.size.nodes > limits.nodes {
            return Err(too_many(root, limits));
        }
        if top.size.bytes > limits.bytes {
            return Err(TreeError::TooLarge {
                root,
                limit: limits.bytes,
                what: "bytes of file content",
            });
        }
        let (digest, size, height) = (top.digest, top.size, top.height);
        path.pop();
        known.insert(digest, (size, height));
        if depth - 1 + u64::from(height) > u64::from(limits.depth) {
            return Err(too_deep(root, limits));
        }
    }
    Ok(known.get(&root).map_or(Size::default(), |(size, _)| *size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction;
    use crate::tree::Subdirectory;

    fn name(n: u8) -> Digest {
        Digest::new(DigestFunction::Sha256, [n; 32], 10)
    }

    fn naming(children: &[u8]) -> Arc<Directory> {
        let directories = children.iter().map(|n| Subdirectory {
            name: n.to_string().into(),
            digest: name(*n),
        });
        Arc::new(Directory {
            directories: directories.collect(),
            ..Default::default()
        })
    }

    /// No message can name itself unless the hash function is broken; then the bound on depth ends it.
    #[test]
    fn a_cycle_ends() {
        let limits = TreeLimits::default();
        for cycle in [
            vec![(1, vec![1])],
            vec![(1, vec![2, 3]), (2, vec![3]), (3, vec![1])],
        ] {
            let directories = cycle.iter().map(|(n, to)| (name(*n), naming(to))).collect();
            let error = measure(&directories, name(1), limits).unwrap_err();
            assert!(
                error.to_string().contains("levels of directories"),
                "{error}"
            );
        }
    }

    #[test]
    fn portions_hold_everything_once() {
        let sized = |size| Digest::new(DigestFunction::Sha256, [1; 32], size);
        let sizes = [1, PORTION, PORTION + 1, 5, 6, u64::MAX, 7];
        let digests: Vec<Digest> = sizes.into_iter().map(sized).collect();
        let parts: Vec<&[Digest]> = portions(&digests).collect();
        assert_eq!(parts.concat(), digests);
        assert_eq!(parts.len(), 6);
        assert_eq!(portions(&[]).count(), 0);
    }
}
