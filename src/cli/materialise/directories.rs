//! The Directory messages of a tree, from a root in a CAS or out of one Tree message.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::cas::{BlobSource, CasError};
use crate::cli::exit::{Exit, Failure};
use crate::reapi::Digest;
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

/// A Tree message with its directories left as the bytes that their digests are of.
#[derive(Clone, PartialEq, Message)]
struct RawTree {
    #[prost(bytes = "bytes", tag = "1")]
    root: Bytes,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    children: Vec<Bytes>,
}

/// The root and every directory of the Tree message called `digest`.
pub(in crate::cli) fn of_tree(
    digest: Digest,
    message: Bytes,
) -> Result<(Digest, Directories), Failure> {
    let raw = RawTree::decode(message)
        .map_err(|e| Failure::new(Exit::Data, format!("blob {digest} is not a Tree: {e}")))?;
    let function = digest.function();
    let mut all = Directories::new();
    for message in std::iter::once(&raw.root).chain(&raw.children) {
        let digest = function.digest(message);
        all.insert(
            digest,
            Arc::new(tree::decode(digest, message).map_err(refused)?),
        );
    }
    Ok((function.digest(&raw.root), all))
}

fn refused(error: TreeError) -> Failure {
    match error {
        TreeError::Cas(error) => error.into(),
        error => Failure::new(Exit::Data, error),
    }
}
