//! The blob store on disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::CasError;
use crate::reapi::{Digest, digest::Hasher};

/// Where the store lives and how large it may grow.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The store's own directory; created if missing.
    pub root: PathBuf,
    /// Eviction starts above this many bytes.
    pub high_water: u64,
    /// Eviction goes down to this many bytes.
    pub low_water: u64,
    /// Bytes that stay free on the file system, whatever the marks say.
    pub free_floor: u64,
}

/// The store. Cheap to share; all methods block on the disk, for the length of a file at most.
pub struct LocalStore {}

/// Keeps its blobs from eviction while it lives.
#[derive(Debug)]
pub struct Pins {}

/// How many blobs and bytes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl LocalStore {
    /// Opens or creates the store, rebuilding the index from the directory. A second process on the same
    /// directory is refused.
    pub fn open(_config: StoreConfig) -> Result<Arc<Self>, CasError> {
        todo!()
    }
    /// Whether the blob is here; counts as a use.
    pub fn contains(&self, _digest: Digest) -> bool {
        todo!()
    }
    /// Those of `digests` that are not here (the empty blob always is); counts as a use of those that are.
    pub fn missing(&self, _digests: &[Digest]) -> Vec<Digest> {
        todo!()
    }
    /// The whole blob; `None` if it is not here. For blobs that fit in memory: `limit` bytes at most, else `TooLarge`.
    pub fn read(&self, _digest: Digest, _limit: u64) -> Result<Option<Bytes>, CasError> {
        todo!()
    }
    /// The blob's file, opened to read; stays readable even if the blob is evicted meanwhile.
    pub fn open_blob(&self, _digest: Digest) -> Result<Option<std::fs::File>, CasError> {
        todo!()
    }
    /// The path of a file with the blob's content, mode 0444, or 0555 if `executable`, to hard-link or clone
    /// from; it stays while the blob is pinned. `None` if the blob is not here.
    pub fn path(&self, _digest: Digest, _executable: bool) -> Result<Option<PathBuf>, CasError> {
        todo!()
    }
    /// Keeps a blob given whole. `executable` is a hint on which kind of file will be asked for.
    /// The content is hashed; on a mismatch nothing is kept.
    pub fn put(&self, _digest: Digest, _data: &[u8], _executable: bool) -> Result<(), CasError> {
        todo!()
    }
    /// Like `put` for content whose digest the caller has just computed or verified itself.
    pub fn put_verified(
        &self,
        _digest: Digest,
        _data: &[u8],
        _executable: bool,
    ) -> Result<(), CasError> {
        todo!()
    }
    /// Begins a blob that comes in pieces.
    pub fn writer(
        self: &Arc<Self>,
        _digest: Digest,
        _executable: bool,
    ) -> Result<BlobWriter, CasError> {
        todo!()
    }
    /// Takes over a file on the store's own file system whose digest the caller just computed, by rename: never a
    /// copy. The file must have no other links and nobody may have it open for writing; its owner and mode are set here.
    /// `executable`: which of the two kinds of file it becomes. If the blob is here already the file is removed.
    pub fn adopt(&self, _digest: Digest, _file: &Path, _executable: bool) -> Result<(), CasError> {
        todo!()
    }
    /// Pins blobs, present or not, until the result is dropped.
    pub fn pin(self: &Arc<Self>, _digests: impl IntoIterator<Item = Digest>) -> Pins {
        todo!()
    }
    /// What is stored.
    pub fn usage(&self) -> StoreUsage {
        todo!()
    }
    /// A directory on the store's file system for scratch files of this process; emptied at the next open.
    pub fn scratch(&self) -> &Path {
        todo!()
    }
    /// Notes that the store is shut down in order, so that the next open need not distrust it.
    pub fn close(&self) -> Result<(), CasError> {
        todo!()
    }
}

/// A blob being written; dropped before `commit`, it leaves nothing behind.
pub struct BlobWriter {
    _hasher: Hasher,
}

impl BlobWriter {
    /// Appends bytes. More bytes than the digest promises are refused at once.
    pub fn write(&mut self, _data: &[u8]) -> Result<(), CasError> {
        todo!()
    }
    /// How many bytes were written.
    pub fn written(&self) -> u64 {
        todo!()
    }
    /// Verifies and publishes the blob.
    pub fn commit(self) -> Result<(), CasError> {
        todo!()
    }
}
