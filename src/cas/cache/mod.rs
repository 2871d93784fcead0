//! The local store in front of a remote: fetched once, kept, uploaded when lacking.
//!
//! What it promises: a blob that several actions ask for at the same time is downloaded once
//! ([`flights`]); a caller that goes away leaves nobody hanging; all missing blobs are named, never just the first;
//! memory stays bounded whatever is asked for. Without a source, what is not local is missing.
//!
//! # What is kept where
//!
//! Input files go to disk ([`fetch`]): they are needed as files. Messages read with `read*` do not: a
//! Command or an Action is read once as a rule, and decoded Directory messages are kept by the tree store, while a
//! file costs some 50 us of CPU to make and as much to remove. Small single messages stay in a few MiB of memory, for the action that is
//! tried again. What a client uploaded to this store (standalone) is read from it, whatever it is.
//!
//! # What is asked before an upload
//!
//! Every published digest goes into one FindMissingBlobs, always: a memory of what the remote had would save
//! no call (some output is new nearly always) and would be wrong when the remote evicts.

mod download;
mod flights;
mod held;
mod publish;
mod recent;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::{BlobSource, CasError, LocalStore, Pins};
use crate::reapi::Digest;

use flights::Flights;
use recent::Recent;

pub use held::Held;

/// Groups of small blobs that are on their way down at the same time, over all actions; each is at
/// most 2 MiB.
const GROUPS_DOWN: usize = 6;
/// The same on their way up. A group is in memory twice while its message is encoded.
const GROUPS_UP: usize = 4;
/// Large blobs that are streamed at the same time, in each direction.
const STREAMS: usize = 4;
/// More digests than this are looked up on a blocking thread.
const LOOKED_UP_IN_PLACE: usize = 2048;

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
    shared: Arc<Shared>,
    source: Option<Arc<dyn BlobSource>>,
}

/// What all clones have in common.
struct Shared {
    local: Arc<LocalStore>,
    /// Blobs on their way to the disk.
    to_disk: Flights,
    /// Blobs on their way to memory.
    to_memory: Flights,
    recent: Recent,
    /// Bytes of blobs that may be held for their upload.
    held: Arc<Semaphore>,
    groups_down: Arc<Semaphore>,
    groups_up: Arc<Semaphore>,
    streams_down: Arc<Semaphore>,
    streams_up: Arc<Semaphore>,
}

impl Shared {
    /// Not while looking a blob up may mean hashing it.
    fn looks_up_in_place(&self, digests: usize) -> bool {
        digests <= LOOKED_UP_IN_PLACE && !self.local.has_doubtful()
    }
}

impl Cas {
    /// Joins a store with the place its misses come from; without one, what is not local is missing.
    pub fn new(local: Arc<LocalStore>, source: Option<Arc<dyn BlobSource>>) -> Self {
        Cas {
            shared: Arc::new(Shared {
                local,
                to_disk: Flights::default(),
                to_memory: Flights::default(),
                recent: Recent::default(),
                held: Arc::new(Semaphore::new(held::ROOM)),
                groups_down: Arc::new(Semaphore::new(GROUPS_DOWN)),
                groups_up: Arc::new(Semaphore::new(GROUPS_UP)),
                streams_down: Arc::new(Semaphore::new(STREAMS)),
                streams_up: Arc::new(Semaphore::new(STREAMS)),
            }),
            source,
        }
    }

    /// The same store and the same downloads under way, with another handle on the same remote: one that
    /// sends an action's RequestMetadata along, for instance.
    pub fn with_source(&self, source: Arc<dyn BlobSource>) -> Self {
        Cas {
            shared: self.shared.clone(),
            source: Some(source),
        }
    }

    /// Whether what is not local may come from elsewhere.
    pub fn has_source(&self) -> bool {
        self.source.is_some()
    }

    /// The store on disk.
    pub fn local(&self) -> &Arc<LocalStore> {
        &self.shared.local
    }

    /// One blob in memory, at most `limit` bytes; `what` names its use in errors (`Command`).
    pub async fn read(
        &self,
        digest: Digest,
        limit: u64,
        what: &'static str,
    ) -> Result<Bytes, CasError> {
        if digest.size() <= limit
            && let Some(bytes) = self.shared.recent.get(digest)
        {
            return Ok(bytes);
        }
        let (_, bytes) = self
            .read_many(&[digest], limit, what)
            .await?
            .pop()
            .ok_or_else(|| CasError::Missing(vec![digest]))?;
        if self.source.is_some() {
            self.shared.recent.put(digest, &bytes);
        }
        Ok(bytes)
    }

    /// Many small blobs in memory (Directory messages), each once; `limit` bounds each of them. Missing ones are
    /// returned in `CasError::Missing`, all of them.
    ///
    /// The blobs of one group may share one buffer of up to 2 MiB: copy what is kept for long.
    pub async fn read_many(
        &self,
        digests: &[Digest],
        limit: u64,
        what: &'static str,
    ) -> Result<Vec<(Digest, Bytes)>, CasError> {
        if let Some(digest) = digests.iter().copied().find(|d| d.size() > limit) {
            return Err(CasError::TooLarge {
                digest,
                limit,
                what,
            });
        }
        let mut seen = HashSet::with_capacity(digests.len());
        let mut found = Vec::with_capacity(digests.len());
        let mut wanted = Vec::with_capacity(digests.len());
        for digest in digests.iter().copied().filter(|d| seen.insert(*d)) {
            if digest == Digest::empty(digest.function()) {
                found.push((digest, Bytes::new()));
            } else {
                wanted.push(digest);
            }
        }
        let mut lacking = self.lookup(wanted.clone()).await?;
        if lacking.len() < wanted.len() {
            let elsewhere: HashSet<Digest> = lacking.iter().copied().collect();
            wanted.retain(|d| !elsewhere.contains(d));
            let (here, lost) = self.read_local(wanted, limit).await?;
            found.extend(here);
            lacking.extend(lost);
        }
        if lacking.is_empty() {
            return Ok(found);
        }
        let Some(source) = &self.source else {
            return Err(CasError::Missing(lacking));
        };
        let blobs = download::to_memory(&self.shared, source, lacking).await?;
        found.extend(blobs);
        Ok(found)
    }

    /// Directory messages of a whole tree, as far as the remote gives them in one call. Empty if it
    /// cannot: without a source, or with one that lacks the call. They are not kept here.
    pub async fn read_tree(&self, root: Digest) -> Result<Vec<(Digest, Bytes)>, CasError> {
        match &self.source {
            Some(source) => Ok(source.get_tree(root).await?.unwrap_or_default()),
            None => Ok(Vec::new()),
        }
    }

    /// Makes all of these local and keeps them while the result lives. All missing ones are named.
    ///
    /// Another failure than missing blobs ends the call at once; what others wait for goes on.
    pub async fn fetch(&self, wanted: &[Wanted]) -> Result<Pins, CasError> {
        let mut executable: HashMap<Digest, bool> = HashMap::with_capacity(wanted.len());
        for want in wanted {
            *executable.entry(want.digest).or_default() |= want.executable;
        }
        // Pinned before they are looked for, so that none goes between the look and its use.
        let digests: Vec<Digest> = executable.keys().copied().collect();
        let (pins, lacking) = self.pin_and_lookup(digests).await?;
        if lacking.is_empty() {
            return Ok(pins);
        }
        let Some(source) = &self.source else {
            return Err(CasError::Missing(lacking));
        };
        let lacking = lacking
            .into_iter()
            .map(|digest| Wanted {
                digest,
                executable: executable.get(&digest).copied().unwrap_or_default(),
            })
            .collect();
        download::to_disk(&self.shared, source, lacking).await?;
        Ok(pins)
    }

    /// Those that are neither here nor in the source, each once; nothing is fetched.
    pub async fn find_missing(&self, mut digests: Vec<Digest>) -> Result<Vec<Digest>, CasError> {
        digests.sort_unstable();
        digests.dedup();
        let lacking = self.lookup(digests).await?;
        match &self.source {
            Some(source) => source.find_missing(&lacking).await,
            None => Ok(lacking),
        }
    }

    /// For the content of local blobs that will be published; holds nothing if there is no source to send it to.
    pub fn hold(&self) -> Held {
        match self.source {
            Some(_) => Held::within(&self.shared.held),
            None => Held::nothing(),
        }
    }

    /// Uploads those of these local blobs that the remote lacks. Blobs that neither has are named, all of
    /// them. Without a source, says whether they are all here.
    pub async fn publish(&self, digests: &[Digest]) -> Result<(), CasError> {
        self.publish_held(digests, &Held::nothing()).await
    }

    /// Like `publish`, but what is held need not be read. It must be what the digests say: it is not verified again.
    pub async fn publish_held(&self, digests: &[Digest], held: &Held) -> Result<(), CasError> {
        let mut seen = HashSet::with_capacity(digests.len());
        let digests: Vec<Digest> = digests
            .iter()
            .copied()
            .filter(|d| seen.insert(*d))
            .collect();
        if digests.is_empty() && held.fresh().is_empty() {
            return Ok(());
        }
        let (_pins, not_here) = self.pin_and_lookup(digests.clone()).await?;
        match &self.source {
            Some(source) => publish::publish(&self.shared, source, digests, not_here, held).await,
            None if not_here.is_empty() => Ok(()),
            None => Err(CasError::Missing(not_here)),
        }
    }

    /// Those that are not in the store.
    async fn lookup(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, CasError> {
        if self.shared.looks_up_in_place(digests.len()) {
            return Ok(self.shared.local.missing(&digests));
        }
        let local = self.shared.local.clone();
        blocking("look up", move || Ok(local.missing(&digests))).await
    }

    /// Pins all, and says which are not in the store.
    async fn pin_and_lookup(&self, digests: Vec<Digest>) -> Result<(Pins, Vec<Digest>), CasError> {
        let few = self.shared.looks_up_in_place(digests.len());
        let local = self.shared.local.clone();
        let job = move || {
            let pins = local.pin(digests.iter().copied());
            (pins, local.missing(&digests))
        };
        match few {
            true => Ok(job()),
            false => blocking("pin", move || Ok(job())).await,
        }
    }

    /// Reads local blobs; the second list has those that are gone or damaged.
    async fn read_local(
        &self,
        digests: Vec<Digest>,
        limit: u64,
    ) -> Result<(Vec<(Digest, Bytes)>, Vec<Digest>), CasError> {
        let local = self.shared.local.clone();
        blocking("read", move || {
            let mut found = Vec::with_capacity(digests.len());
            let mut lost = Vec::new();
            for digest in digests {
                match local.read(digest, limit) {
                    Ok(Some(bytes)) => found.push((digest, bytes)),
                    Ok(None) | Err(CasError::Corrupt { .. }) => lost.push(digest),
                    Err(error) => return Err(error),
                }
            }
            Ok((found, lost))
        })
        .await
    }
}

/// Runs disk work on a blocking thread.
async fn blocking<T: Send + 'static>(
    action: &'static str,
    job: impl FnOnce() -> Result<T, CasError> + Send + 'static,
) -> Result<T, CasError> {
    tokio::task::spawn_blocking(job).await.unwrap_or_else(|e| {
        Err(CasError::Disk {
            action,
            object: "blobs in the store".to_owned(),
            source: std::io::Error::other(e),
        })
    })
}
