//! The blobs that a result names, directly and through its trees.

use std::collections::HashSet;
use std::sync::Arc;

use prost::Message;

use crate::cas::{CasError, LocalStore};
use crate::reapi::proto::re;
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
            Root::Tree(digest) => {
                let Some(tree) = self.message::<re::Tree>(digest)? else {
                    return Ok(false);
                };
                let whole = tree.root.iter().chain(&tree.children);
                Ok(whole
                    .map(|directory| self.files(directory))
                    .all(|fine| fine.is_some()))
            }
            Root::Directory(digest) => {
                let mut waiting = vec![digest];
                let mut seen = HashSet::from([digest]);
                while let Some(digest) = waiting.pop() {
                    let Some(directory) = self.message::<re::Directory>(digest)? else {
                        return Ok(false);
                    };
                    if self.files(&directory).is_none() {
                        return Ok(false);
                    }
                    for child in &directory.directories {
                        let Some(child) = self.digest(child.digest.as_ref()) else {
                            return Ok(false);
                        };
                        if seen.insert(child) {
                            waiting.push(child);
                        }
                    }
                }
                Ok(true)
            }
        }
    }

    fn files(&mut self, directory: &re::Directory) -> Option<()> {
        for file in &directory.files {
            let digest = self.digest(file.digest.as_ref())?;
            self.found.insert(digest);
        }
        (self.found.len() <= BLOBS).then_some(())
    }

    fn message<M: Message + Default>(&mut self, digest: Digest) -> Result<Option<M>, CasError> {
        let bytes = match self.store.read(digest, MESSAGE) {
            Ok(Some(bytes)) => bytes,
            Ok(None) | Err(CasError::TooLarge { .. } | CasError::Corrupt { .. }) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        Ok(M::decode(bytes).ok())
    }
}
