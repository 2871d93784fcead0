//! The blobs that a result names, directly and through its trees.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::cas::{CasError, LocalStore};
use crate::reapi::proto::re;
use crate::reapi::wire;
use crate::reapi::{Digest, DigestFunction};

/// The largest Tree or Directory message that is looked into, in bytes.
const MESSAGE: u64 = 64 << 20;
/// The most blobs that a result may name.
const BLOBS: usize = 4_000_000;

/// Whether every blob that the result names is in the store; those that are count as used. A result that names
/// blobs wrongly is as good as one whose blobs are gone. Blocks.
///
/// REAPI, GetActionResult: "Implementations SHOULD ensure that any blobs referenced from the [ContentAddressableStorage]
/// are available at the time of returning the [ActionResult] and will be for some period of time afterwards."
pub(super) fn available(
    store: &Arc<LocalStore>,
    function: DigestFunction,
    result: &re::ActionResult,
) -> Result<bool, CasError> {
    let mut walk = Walk {
        store,
        function,
        found: HashSet::new(),
    };
    let Some(roots) = walk.result(result) else {
        return Ok(false);
    };
    for root in roots {
        if !walk.root(root)? {
            return Ok(false);
        }
    }
    let found: Vec<Digest> = walk.found.into_iter().collect();
    Ok(store.missing(&found).is_empty())
}

struct Walk<'a> {
    store: &'a Arc<LocalStore>,
    function: DigestFunction,
    found: HashSet<Digest>,
}

enum Root {
    Tree(Digest),
    Directory(Digest),
}

impl Walk<'_> {
    fn digest(&self, digest: Option<&re::Digest>) -> Option<Digest> {
        Digest::from_proto(self.function, digest).ok()
    }

    /// Notes the blobs of the result itself; `None` if one is malformed.
    fn result(&mut self, result: &re::ActionResult) -> Option<Vec<Root>> {
        for file in &result.output_files {
            let digest = self.digest(file.digest.as_ref())?;
            self.found.insert(digest);
        }
        for log in [&result.stdout_digest, &result.stderr_digest] {
            if log.is_some() {
                let digest = self.digest(log.as_ref())?;
                self.found.insert(digest);
            }
        }
        let mut roots = Vec::new();
        for directory in &result.output_directories {
            if directory.tree_digest.is_some() {
                roots.push(Root::Tree(self.digest(directory.tree_digest.as_ref())?));
            }
            if directory.root_directory_digest.is_some() {
                roots.push(Root::Directory(
                    self.digest(directory.root_directory_digest.as_ref())?,
                ));
            }
        }
        Some(roots)
    }

    /// Notes the blobs of a tree; false if one of its messages is gone or malformed.
    fn root(&mut self, root: Root) -> Result<bool, CasError> {
        match root {
            Root::Tree(digest) => Ok(match self.message(digest)? {
                Some(tree) => self.tree(&tree).is_some(),
                None => false,
            }),
            Root::Directory(digest) => {
                let mut waiting = vec![digest];
                let mut seen = HashSet::from([digest]);
                while let Some(digest) = waiting.pop() {
                    let Some(directory) = self.message(digest)? else {
                        return Ok(false);
                    };
                    let mut below = |child| {
                        if seen.insert(child) {
                            waiting.push(child);
                        }
                        (seen.len() <= BLOBS).then_some(())
                    };
                    if self.directory(&directory, &mut below).is_none() {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
        }
    }

    /// Notes the files of a serialized Tree, whose directories are fields 1 and 2.
    fn tree(&mut self, mut tree: &[u8]) -> Option<()> {
        while let Some(field) = wire::next(&mut tree).ok()? {
            if matches!(field.number, 1 | 2) {
                self.directory(field.bytes?, &mut |_| Some(()))?;
            }
        }
        Some(())
    }

    /// Notes the files (field 1) of a serialized Directory and tells `below` its directories (field 2). The
    /// messages are walked, not decoded: two bytes of an empty node would be more than a hundred in memory.
    fn directory(
        &mut self,
        mut directory: &[u8],
        below: &mut dyn FnMut(Digest) -> Option<()>,
    ) -> Option<()> {
        while let Some(field) = wire::next(&mut directory).ok()? {
            match field.number {
                1 => {
                    let digest = self.node(field.bytes?)?;
                    self.found.insert(digest);
                    if self.found.len() > BLOBS {
                        return None;
                    }
                }
                2 => below(self.node(field.bytes?)?)?,
                _ => {}
            }
        }
        Some(())
    }

    /// The digest of a serialized FileNode or DirectoryNode, field 2 of both.
    fn node(&self, mut node: &[u8]) -> Option<Digest> {
        let mut digest: Option<re::Digest> = None;
        while let Some(field) = wire::next(&mut node).ok()? {
            if field.number == 2 {
                digest.get_or_insert_default().merge(field.bytes?).ok()?;
            }
        }
        self.digest(digest.as_ref())
    }

    fn message(&self, digest: Digest) -> Result<Option<Bytes>, CasError> {
        match self.store.read(digest, MESSAGE) {
            Ok(found) => Ok(found),
            Err(CasError::TooLarge { .. } | CasError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
