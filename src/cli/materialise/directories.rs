//! The Directory messages of a tree, from a root in a CAS or out of one Tree message.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::cas::{BlobSource, CasError};
use crate::cli::exit::{Exit, Failure};
use crate::reapi::Digest;
use crate::reapi::wire::{self, Field};
use crate::tree::{self, Directory, TreeError, TreeLimits};

/// Decoded directories by digest.
pub(in crate::cli) type Directories = HashMap<Digest, Arc<Directory>>;

/// Bytes of all messages of a tree that are taken.
const MESSAGES: u64 = 1 << 30;

/// Every directory below `root`, in one round trip or one for each level.
pub(in crate::cli) async fn fetch(
    source: &dyn BlobSource,
    root: Digest,
) -> Result<Directories, Failure> {
    let mut at_hand: HashMap<Digest, Bytes> = match source.get_tree(root).await {
        Ok(Some(messages)) => messages.into_iter().collect(),
        // What GetTree cannot give is asked for level by level.
        Ok(None) | Err(_) => HashMap::new(),
    };
    let mut all = Directories::new();
    let mut level = vec![root];
    let mut taken = 0;
    while !level.is_empty() {
        let lacking: Vec<Digest> = level
            .iter()
            .copied()
            .filter(|digest| !digest.is_empty() && !at_hand.contains_key(digest))
            .collect();
        let mut small = Vec::new();
        for digest in lacking {
            if digest.size() <= source.batch_limit() {
                small.push(digest);
            } else {
                let limit = TreeLimits::default().message;
                let data = super::super::blobs::read(source, digest, limit, "a Directory").await?;
                at_hand.insert(digest, data);
            }
        }
        if !small.is_empty() {
            let missing = source
                .read_batch(&small, &mut |digest, data| {
                    drop(at_hand.insert(digest, data))
                })
                .await?;
            if !missing.is_empty() {
                return Err(CasError::Missing(missing).into());
            }
        }
        let mut next = Vec::new();
        for digest in level {
            taken += digest.size();
            if taken > MESSAGES {
                return Err(Failure::new(
                    Exit::Data,
                    format!("the tree {root} has more than {MESSAGES} bytes of directories"),
                ));
            }
            let message = at_hand.remove(&digest).unwrap_or_default();
            let directory = Arc::new(tree::decode(digest, &message).map_err(refused)?);
            next.extend(directory.directories.iter().map(|child| child.digest));
            all.insert(digest, directory);
        }
        next.sort_unstable();
        next.dedup();
        next.retain(|digest| !all.contains_key(digest));
        level = next;
    }
    Ok(all)
}

/// Directories of one Tree message that are taken, counted with repetition.
const CHILDREN: usize = 1 << 20;

/// The root and every directory of the Tree message called `digest`. The message is walked and never decoded as a whole: an
/// empty directory is two bytes of it and some 200 once decoded.
pub(in crate::cli) fn of_tree(
    digest: Digest,
    message: &[u8],
) -> Result<(Digest, Directories), Failure> {
    let bad = |why: &dyn std::fmt::Display| {
        Failure::new(Exit::Data, format!("blob {digest} is not a Tree: it {why}"))
    };
    let (mut root, mut children) = (None, Vec::new());
    let mut rest = message;
    while let Some(Field { number, bytes }) = wire::next(&mut rest).map_err(|why| bad(&why))? {
        match (number, bytes) {
            (1, Some(_)) if root.is_some() => return Err(bad(&"has two roots")),
            (1, Some(bytes)) => root = Some(bytes),
            (2, Some(_)) if children.len() == CHILDREN => {
                let why = format!("has more than {CHILDREN} directories besides its root");
                return Err(bad(&why));
            }
            (2, Some(bytes)) => children.push(bytes),
            (1 | 2, None) => return Err(bad(&"has a directory that is no message")),
            _ => {}
        }
    }
    // No bytes at all are an empty directory here as they are for a Directory.
    let root = match root {
        None if !message.is_empty() => return Err(bad(&"has no root")),
        root => root.unwrap_or_default(),
    };
    let function = digest.function();
    let mut all = Directories::new();
    let mut taken = 0;
    for message in std::iter::once(root).chain(children) {
        let name = function.digest(message);
        if all.contains_key(&name) {
            continue;
        }
        let directory = Arc::new(tree::decode(name, message).map_err(refused)?);
        taken += tree::weight(&directory);
        if taken > MESSAGES {
            return Err(Failure::new(
                Exit::Data,
                format!(
                    "the directories of the Tree {digest} take more than {MESSAGES} bytes of memory"
                ),
            ));
        }
        all.insert(name, directory);
    }
    Ok((function.digest(root), all))
}

fn refused(error: TreeError) -> Failure {
    match error {
        TreeError::Cas(error) => error.into(),
        error => Failure::new(Exit::Data, error),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::reapi::DigestFunction;
    use crate::reapi::proto::re;

    fn read(message: &[u8]) -> Result<(Digest, Directories), String> {
        let digest = DigestFunction::Sha256.digest(message);
        of_tree(digest, message).map_err(|failure| format!("{:?}", failure))
    }

    fn refusal(message: &[u8]) -> String {
        read(message).expect_err("it is taken")
    }

    /// Two bytes each, which a decoder makes two hundred of.
    #[test]
    fn a_tree_of_too_many_empty_directories_is_refused() {
        let mut message = vec![0x0a, 0];
        message.extend([0x12, 0].repeat(CHILDREN));
        assert_eq!(read(&message).map(|(_, all)| all.len()), Ok(1));
        message.extend([0x12, 0]);
        let said = refusal(&message);
        assert!(said.contains("more than 1048576 directories"), "{said}");
    }

    #[test]
    fn what_is_not_a_tree_is_told() {
        for (message, why) in [
            (&[0x0a, 0, 0x0a, 0][..], "two roots"),
            (&[0x12, 0], "no root"),
            (&[0x08, 1], "no message"),
            (&[0x0a, 9], "cut short"),
            (b"\x7fELF", "not a protobuf message"),
        ] {
            let said = refusal(message);
            assert!(said.contains(why), "{message:?}: {said}");
        }
    }

    #[test]
    fn a_large_tree_is_taken_whole() {
        let function = DigestFunction::Sha256;
        let leaf = |n: usize| re::Directory {
            files: vec![re::FileNode {
                name: format!("file{n}"),
                digest: Some(function.digest(b"x").to_proto()),
                ..Default::default()
            }],
            ..Default::default()
        };
        let children: Vec<re::Directory> = (0..20_000).map(leaf).collect();
        let nodes = children
            .iter()
            .enumerate()
            .map(|(n, child)| re::DirectoryNode {
                name: format!("{n:05}"),
                digest: Some(function.digest(&child.encode_to_vec()).to_proto()),
            });
        let root = re::Directory {
            directories: nodes.collect(),
            ..Default::default()
        };
        let name = function.digest(&root.encode_to_vec());
        let tree = re::Tree {
            root: Some(root),
            children,
        };
        let (root, all) = read(&tree.encode_to_vec()).unwrap();
        assert_eq!((root, all.len()), (name, 20_001));
        assert!(
            all[&root]
                .directories
                .iter()
                .all(|child| all.contains_key(&child.digest))
        );
        assert_eq!(read(&[]).unwrap().0, function.digest(b""));
    }
}
