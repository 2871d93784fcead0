//! The content of files: from the local store without waiting, else from wherever the CAS gets it, once however many ask.
//!
//! Only this part of the file system may wait for a network, and nobody waits longer than who reads: a reader that dies is let
//! go, and what no running action can want any more is given up. What is given is what the digest says, or nothing: a
//! reader never gets a wrong byte, and an action that could not read an input is told so when it ends, whatever its command
//! made of the error.

use std::collections::HashMap;
use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::dying::is_dying;
use super::entry::{self, Entry};
use super::subtree::{LARGE, Subtree};
use super::watch::{Wait, Watches};
use crate::cas::{Cas, CasError, Pins, Wanted};
use crate::reapi::Digest;

/// Blobs that are kept open between two reads, none of them large: what is evicted is on the disk until it is closed.
const OPEN: usize = 128;
/// Files that are fetched along with others may be such a part of the store, for each action.
const ALONG: u64 = 16;
/// How often it is looked whether a reader dies that was interrupted, for the kernel tells of the first signal only.
const DEATH: Duration = Duration::from_millis(20);

/// A request for some of a content.
pub(super) struct Asked<'a> {
    /// The number under which [`Contents::interrupt`] finds it.
    pub(super) request: u64,
    /// Who asks.
    pub(super) thread: u32,
    /// Where the content is: a directory, and a place in its listing.
    pub(super) home: &'a (dyn Fn() -> Option<(Arc<Subtree>, usize)> + Send + Sync),
}

/// Reads contents.
pub(super) struct Contents {
    cas: Cas,
    /// Where downloads and reads that block are done.
    runtime: Handle,
    open: Mutex<LruCache<Digest, Arc<File>>>,
    /// Blobs that the store had found damaged when those were opened.
    quarantined: AtomicU64,
    /// Reads that wait, by the number of their request: what ends them, and the thread that asked.
    waiting: Mutex<HashMap<u64, (CancellationToken, u32)>>,
    /// Who is to be told.
    pub(super) watches: Arc<Watches>,
}

impl Contents {
    /// For actions.
    pub(super) fn new(cas: Cas, runtime: Handle) -> Self {
        let watches = Watches::new(cas.local().high_water() / ALONG);
        Contents::telling(Arc::new(watches), cas, runtime)
    }

    /// The same for readers that are no actions.
    pub(super) fn for_people(cas: Cas, runtime: Handle) -> Self {
        // Nothing of it is kept from eviction.
        let watches = Watches::with_others(u64::MAX);
        Contents::telling(Arc::new(watches), cas, runtime)
    }

    /// For another file system, whose requests have numbers of their own; the same ones are told.
    pub(super) fn beside(&self) -> Contents {
        Contents::telling(self.watches.clone(), self.cas.clone(), self.runtime.clone())
    }

    fn telling(watches: Arc<Watches>, cas: Cas, runtime: Handle) -> Self {
        Contents {
            cas,
            runtime,
            open: Mutex::new(LruCache::new(
                NonZeroUsize::new(OPEN).unwrap_or(NonZeroUsize::MIN),
            )),
            quarantined: AtomicU64::new(0),
            waiting: Mutex::default(),
            watches,
        }
    }

    /// Some bytes of a blob; fewer than asked for only at its end.
    pub(super) async fn read(
        &self,
        asked: Asked<'_>,
        wanted: Wanted,
        offset: u64,
        size: usize,
    ) -> Result<Bytes, Errno> {
        let left = wanted.digest.size().saturating_sub(offset);
        let size = usize::try_from(left).map_or(size, |left| left.min(size));
        if size == 0 {
            return Ok(Bytes::new());
        }
        let at_hand = self.at_hand(wanted.digest);
        if let Some(file) = at_hand.map_err(|error| self.tell(wanted.digest, error))? {
            match read_cached(&file, offset, size) {
                Ok(bytes) if bytes.len() == size => {
                    self.watches.read(wanted.digest);
                    return Ok(bytes);
                }
                // Part of it is not in memory.
                Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP) => {
                    let read = self
                        .runtime
                        .spawn_blocking(move || read_whole(&file, offset, size));
                    if let Ok(Ok(bytes)) = read.await {
                        self.watches.read(wanted.digest);
                        return Ok(bytes);
                    }
                }
                Err(_) => {}
            }
            // It is shorter than its digest says, or cannot be read: it is looked at again, and fetched again.
            tracing::warn!(blob = %wanted.digest, "an input's file in the store cannot be read as a whole");
            self.open.lock().pop(&wanted.digest);
            self.recheck(wanted.digest).await;
        }
        let pins = self.wait_for(asked, wanted).await?;
        let store = self.cas.local().clone();
        let read = self.runtime.spawn_blocking(move || {
            // Kept from eviction meanwhile.
            let _pins = pins;
            match store.open_blob(wanted.digest)? {
                Some(file) => read_whole(&file, offset, size).map_err(unread(wanted.digest)),
                None => Err(unread(wanted.digest)(Errno::NOENT)),
            }
        });
        match read.await {
            Ok(bytes) => bytes.map_err(|error| self.tell(wanted.digest, error)),
            // The runtime goes down.
            Err(_) => Err(Errno::IO),
        }
    }

    /// Those whose tree holds the content are told that it could not be had, which its reader is by an error at most.
    fn tell(&self, digest: Digest, error: CasError) -> Errno {
        failed(self.watches.wait(digest), digest, error)
    }

    /// A signal came to who waits for a request: it goes on waiting unless it dies, now or later.
    pub(super) fn interrupt(&self, request: u64) {
        let Some((end, thread)) = self.waiting.lock().get(&request).cloned() else {
            return;
        };
        if is_dying(thread) {
            return end.cancel();
        }
        self.runtime.spawn(async move {
            while tokio::time::timeout(DEATH, end.cancelled()).await.is_err() {
                if is_dying(thread) {
                    end.cancel();
                }
            }
        });
    }

    /// The blob's file if it is in the store. Opening it may wait for the disk, never for more.
    fn at_hand(&self, digest: Digest) -> Result<Option<Arc<File>>, CasError> {
        let store = self.cas.local();
        // While a blob may have to be hashed first, that is done as part of a fetch.
        if store.has_doubtful() {
            return Ok(None);
        }
        let quarantined = store.counters().quarantined;
        if self.quarantined.swap(quarantined, Ordering::Relaxed) != quarantined {
            // One of them may be damaged.
            self.open.lock().clear();
        }
        if !store.contains(digest) {
            // What is evicted shall free its disk.
            self.open.lock().pop(&digest);
            return Ok(None);
        }
        if let Some(file) = self.open.lock().get(&digest) {
            return Ok(Some(file.clone()));
        }
        let file = store.open_blob(digest)?.map(Arc::new);
        if let Some(file) = &file
            && digest.size() <= LARGE
        {
            self.open.lock().put(digest, file.clone());
        }
        Ok(file)
    }

    /// What to fetch along with what is waited for.
    fn along(&self, asked: &Asked<'_>, wait: &Wait) -> Vec<Wanted> {
        let store = self.cas.local();
        if !self.cas.has_source() || store.has_doubtful() {
            return Vec::new();
        }
        let Some((subtree, place)) = (asked.home)() else {
            return Vec::new();
        };
        let directory = &subtree.directory;
        match entry::at(directory, place) {
            Some(Entry::File(at)) => self.watches.siblings(wait, |siblings| {
                siblings.along(subtree.digest, directory, at, store)
            }),
            _ => Vec::new(),
        }
    }

    async fn recheck(&self, digest: Digest) {
        let store = self.cas.local().clone();
        let check = self.runtime.spawn_blocking(move || store.recheck(digest));
        if let Ok(Err(error)) = check.await {
            tracing::warn!(blob = %digest, "cannot look at a blob again: {error}");
        }
    }

    async fn wait_for(&self, asked: Asked<'_>, wanted: Wanted) -> Result<Pins, Errno> {
        let end = CancellationToken::new();
        let waiting = (end.clone(), asked.thread);
        self.waiting.lock().insert(asked.request, waiting);
        let mut wait = self.watches.wait(wanted.digest);
        let along = self.along(&asked, &wait);
        let fetch = fetch(self.cas.clone(), wanted, along);
        let fetch = match wait.behalf() {
            Some(behalf) => self.runtime.spawn(behalf.pass_on(fetch)),
            None => self.runtime.spawn(fetch),
        };
        // Dropped, it ends the download, unless somebody else waits for it too.
        let mut fetch = AbortOnDropHandle::new(fetch);
        let fetched = tokio::select! {
            biased;
            () = end.cancelled() => None,
            fetched = &mut fetch => Some(fetched),
            () = wait.deserted(&self.watches) => None,
        };
        self.waiting.lock().remove(&asked.request);
        // Nobody has to look after it any more.
        end.cancel();
        match fetched {
            None => Err(Errno::INTR),
            Some(Ok(Ok(pins))) => {
                wait.over();
                Ok(pins)
            }
            Some(Ok(Err(error))) => Err(failed(wait, wanted.digest, error)),
            // The runtime goes down.
            Some(Err(_)) => Err(Errno::IO),
        }
    }
}

/// Fetches a content and others along with it; if that fails, whatever the reason, the one that is waited for.
async fn fetch(cas: Cas, wanted: Wanted, mut along: Vec<Wanted>) -> Result<Pins, CasError> {
    if !along.is_empty() {
        along.push(wanted);
        match cas.fetch(&along).await {
            Ok(pins) => return Ok(pins),
            Err(error) => {
                tracing::debug!("cannot fetch siblings of an input along with it: {error}")
            }
        }
    }
    cas.fetch(&[wanted]).await
}

/// The error of a blob that is in the store, and cannot be read there.
fn unread(digest: Digest) -> impl FnOnce(Errno) -> CasError {
    move |source| CasError::Disk {
        action: "read blob",
        object: digest.to_string(),
        source: source.into(),
    }
}

fn failed(wait: Wait, digest: Digest, error: CasError) -> Errno {
    tracing::warn!(blob = %digest, "cannot read or fetch an input that an action reads: {error}");
    let missing = matches!(error, CasError::Missing(_));
    wait.failed((!missing).then_some(error));
    Errno::IO
}

/// Reads what is in memory.
fn read_cached(file: &File, offset: u64, size: usize) -> Result<Bytes, Errno> {
    let mut bytes = BytesMut::zeroed(size);
    let read = preadv2(
        file,
        &mut [IoSliceMut::new(&mut bytes)],
        offset,
        ReadWriteFlags::NOWAIT,
    )?;
    bytes.truncate(read);
    Ok(bytes.freeze())
}

/// Reads all of it, from the disk if need be.
fn read_whole(file: &File, offset: u64, size: usize) -> Result<Bytes, Errno> {
    let mut bytes = BytesMut::zeroed(size);
    let mut done = 0;
    while done < size {
        match rustix::io::pread(file, &mut bytes[done..], offset + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use super::super::subtree::tests::store;
    use super::*;
    use crate::reapi::DigestFunction;

    #[tokio::test]
    async fn what_was_evicted_or_found_damaged_is_not_kept_open() {
        let (_dir, store) = store();
        let cas = Cas::new(store.clone(), None);
        let contents = Contents::new(cas.clone(), Handle::current());
        let put = |content: &[u8]| {
            let digest = DigestFunction::Sha256.digest(content);
            store.put(digest, content, false).unwrap();
            digest
        };
        let (one, other) = (put(b"one"), put(b"other"));
        for digest in [one, other] {
            assert!(contents.at_hand(digest).unwrap().is_some());
        }
        assert_eq!(contents.open.lock().len(), 2);
        let path = store.path(one, false).unwrap().unwrap();
        std::fs::write(path, b"two").unwrap();
        assert!(!store.verify(one).unwrap());
        assert!(contents.at_hand(one).unwrap().is_none());
        assert_eq!(contents.open.lock().len(), 0, "any may be damaged");
        assert!(contents.at_hand(other).unwrap().is_some());
        assert!(store.make_room(1 << 20) > 0);
        assert!(contents.at_hand(other).unwrap().is_none());
        assert_eq!(contents.open.lock().len(), 0);
        let large = put(&vec![7; LARGE as usize + 1]);
        assert!(contents.at_hand(large).unwrap().is_some());
        assert_eq!(contents.open.lock().len(), 0);
    }
}
