//! Blobs. [`LocalStore`] keeps them on disk, [`RemoteCas`] talks to a CAS elsewhere, [`Cas`] joins
//! the two: what is asked for is fetched once and kept, what an action produced is uploaded if the
//! remote lacks it.

mod cache;
pub mod local;
mod pack;
pub mod remote;

use async_trait::async_trait;
use bytes::Bytes;

pub use cache::{Cas, Held, Wanted};
pub(crate) use local::disk_size;
pub use local::{Beside, Free, LocalStore, Pins, Spare, Spared, StoreConfig};
pub(crate) use remote::Behalf;
pub use remote::{RemoteCas, RemoteConfig, on_behalf_of};

use crate::reapi::Digest;

/// The largest window that a zstd frame from outside may ask for, as a power of two: 16 MiB, twice what zstd's level 19
/// uses. Several frames are unpacked at a time, and each holds its window.
pub(crate) const MAX_WINDOW_LOG: u32 = 24;

/// Why a blob could not be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum CasError {
    /// Nobody has these blobs. Never empty.
    #[error("{} not in the CAS", list(.0))]
    Missing(Vec<Digest>),
    /// What came or was given under this name has another digest. The bytes were not kept.
    #[error("content of blob {expected} is that of {actual}")]
    Corrupt {
        /// What was asked for or promised.
        expected: Digest,
        /// What the bytes really are.
        actual: Digest,
    },
    /// A system call on the store failed.
    #[error("cannot {action} {object}: {source}")]
    Disk {
        /// The attempted operation, such as `create`.
        action: &'static str,
        /// The file or blob.
        object: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The store may not grow: the quota is full of pinned blobs, or the disk is at its floor.
    #[error("no room for {needed} bytes in the blob store: {why}")]
    Full {
        /// Bytes that were asked for.
        needed: u64,
        /// Which limit was hit, and what to do about it.
        why: String,
    },
    /// A call to the remote failed for good, after its retries.
    #[error("{call} at {remote} failed: {}: {}", status.code(), status.message())]
    Remote {
        /// The call, such as `BatchReadBlobs`.
        call: &'static str,
        /// The endpoint's URL.
        remote: String,
        /// The last failure.
        status: Box<tonic::Status>,
    },
    /// The blob is larger than the caller can take.
    #[error("blob {digest} is larger than the {limit} bytes allowed for {what}")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// The bound, in bytes.
        limit: u64,
        /// What it would have been used as.
        what: &'static str,
    },
}

fn list(digests: &[Digest]) -> String {
    match digests {
        [one] => format!("blob {one} is"),
        [first, ..] => format!("{} blobs ({first}, ...) are", digests.len()),
        [] => "no blob is".to_owned(),
    }
}

/// Where blobs come from that the local store lacks, and where they go. [`RemoteCas`] is the real
/// one; tests put faulty ones here.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// Which of these the source lacks. Any number may be asked for; the call is split as needed.
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, CasError>;

    /// Reads blobs of at most [`BlobSource::batch_limit`] bytes each in as few calls as
    /// possible. `sink` gets each blob once, verified against its digest, in any order. Blobs that the source lacks
    /// are returned; any other failure ends the call.
    async fn read_batch(
        &self,
        digests: &[Digest],
        sink: &mut (dyn FnMut(Digest, Bytes) + Send),
    ) -> Result<Vec<Digest>, CasError>;

    /// Streams one blob of any size into `sink` in order, resuming where a broken stream ended. The bytes are
    /// NOT verified here: whoever keeps them hashes them while writing.
    async fn read_stream(
        &self,
        digest: Digest,
        sink: &mut (dyn FnMut(Bytes) -> Result<(), CasError> + Send),
    ) -> Result<(), CasError>;

    /// Uploads blobs of at most [`BlobSource::batch_limit`] bytes each.
    async fn write_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Result<(), CasError>;

    /// Uploads one blob of any size out of `file`, in chunks, resuming where a broken stream ended.
    async fn write_stream(&self, digest: Digest, file: std::fs::File) -> Result<(), CasError>;

    /// All Directory messages of a tree in one call, as serialized and verified blobs; `None` if the source cannot
    /// do that. The answer may be incomplete: the caller asks for the rest one by one.
    async fn get_tree(&self, root: Digest) -> Result<Option<Vec<(Digest, Bytes)>>, CasError>;

    /// The largest blob that travels in a batch, in bytes.
    fn batch_limit(&self) -> u64;
}
