//! The local store in front of a remote: fetched once, kept, uploaded when lacking.

use std::sync::Arc;

use bytes::Bytes;

use super::{BlobSource, CasError, LocalStore, Pins};
use crate::reapi::Digest;

/// A blob that will be needed as a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The blob.
    pub digest: Digest,
    /// Whether it will be asked for as an executable file.
    pub executable: bool,
}

/// The two together. Cheap to clone.
#[derive(Clone)]
pub struct Cas {
    local: Arc<LocalStore>,
    _source: Option<Arc<dyn BlobSource>>,
}

impl Cas {
    /// Joins a store with the place its misses come from; without one, what is not local is missing.
    pub fn new(local: Arc<LocalStore>, source: Option<Arc<dyn BlobSource>>) -> Self {
        Cas {
            local,
            _source: source,
        }
    }
    /// The store on disk.
    pub fn local(&self) -> &Arc<LocalStore> {
        &self.local
    }
    /// One blob in memory, at most `limit` bytes; `what` names its use in errors (`Command`).
    pub async fn read(
        &self,
        _digest: Digest,
        _limit: u64,
        _what: &'static str,
    ) -> Result<Bytes, CasError> {
        todo!()
    }
    /// Many small blobs in memory (Directory messages). Missing ones are returned in `CasError::Missing`, all of them.
    pub async fn read_many(
        &self,
        _digests: &[Digest],
        _limit: u64,
        _what: &'static str,
    ) -> Result<Vec<(Digest, Bytes)>, CasError> {
        todo!()
    }
    /// Directory messages of a whole tree, as far as the remote gives them in one call; they are kept locally as well. Empty if it cannot.
    pub async fn read_tree(&self, _root: Digest) -> Result<Vec<(Digest, Bytes)>, CasError> {
        todo!()
    }
    /// Makes all of these local and keeps them while the result lives. All missing ones are named.
    pub async fn fetch(&self, _wanted: &[Wanted]) -> Result<Pins, CasError> {
        todo!()
    }
    /// Uploads those of these local blobs that the remote lacks.
    pub async fn publish(&self, _digests: &[Digest]) -> Result<(), CasError> {
        todo!()
    }
}
