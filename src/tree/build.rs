//! Building trees: from paths to Directory messages with their digests.

use crate::reapi::Digest;
use crate::reapi::DigestFunction;
use bytes::Bytes;

/// Collects entries by path and serializes the directories canonically (sorted), children first.
pub struct TreeBuilder {}

impl TreeBuilder {
    /// An empty root.
    pub fn new(_function: DigestFunction) -> Self {
        todo!()
    }
    /// The root's digest, and every Directory message (children before parents).
    pub fn finish(self) -> (Digest, Vec<(Digest, Bytes)>) {
        todo!()
    }
}
