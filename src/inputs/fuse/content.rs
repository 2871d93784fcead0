//! The content of files: from the local store without waiting, else from wherever the CAS gets it, once however many ask.
//!
//! Only this part of the file system may wait for a network, and whoever waits can be told to stop. What is given is
//! what the digest says, or nothing: a reader never gets a wrong byte, and an action that could not read an input is told
//! so when it ends, whatever its command made of the error.

use std::collections::HashMap;
use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::watch::{Wait, Watches};
use crate::cas::{Cas, CasError, Pins, Wanted};
use crate::reapi::Digest;

/// Blobs that are kept open between two reads.
const OPEN: usize = 128;

/// Reads contents.
pub(super) struct Contents {
    cas: Cas,
    /// Where downloads and reads that block are done.
    runtime: Handle,
    open: Mutex<LruCache<Digest, Arc<File>>>,
    /// Reads that wait, by the number of their request.
    waiting: Mutex<HashMap<u64, CancellationToken>>,
    /// Who is to be told.
    pub(super) watches: Arc<Watches>,
}

impl Contents {
    pub(super) fn new(cas: Cas, runtime: Handle) -> Self {
        Contents {
            cas,
            runtime,
            open: Mutex::new(LruCache::new(
                NonZeroUsize::new(OPEN).unwrap_or(NonZeroUsize::MIN),
            )),
            waiting: Mutex::default(),
            watches: Arc::default(),
        }
    }

    /// For another file system, whose requests have numbers of their own; the same ones are told.
    pub(super) fn beside(&self) -> Contents {
        Contents {
            watches: self.watches.clone(),
            ..Contents::new(self.cas.clone(), self.runtime.clone())
        }
    }

    /// Some bytes of a blob; fewer than asked for only at its end. `request` is a number under which
    /// [`Contents::interrupt`] finds it.
    pub(super) async fn read(
        &self,
        request: u64,
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
        let pins = self.wait_for(request, wanted).await?;
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

    /// Ends the wait of a request, if it waits.
    pub(super) fn interrupt(&self, request: u64) {
        if let Some(waiting) = self.waiting.lock().get(&request) {
            waiting.cancel();
        }
    }

    /// The blob's file if it is in the store. Opening it may wait for the disk, never for more.
    fn at_hand(&self, digest: Digest) -> Result<Option<Arc<File>>, CasError> {
        if let Some(file) = self.open.lock().get(&digest) {
            return Ok(Some(file.clone()));
        }
        let store = self.cas.local();
        // While a blob may have to be hashed first, that is done as part of a fetch.
        if store.has_doubtful() {
            return Ok(None);
        }
        let file = store.open_blob(digest)?.map(Arc::new);
        if let Some(file) = &file {
            self.open.lock().put(digest, file.clone());
        }
        Ok(file)
    }

    async fn recheck(&self, digest: Digest) {
        let store = self.cas.local().clone();
        let check = self.runtime.spawn_blocking(move || store.recheck(digest));
        if let Ok(Err(error)) = check.await {
            tracing::warn!(blob = %digest, "cannot look at a blob again: {error}");
        }
    }

    async fn wait_for(&self, request: u64, wanted: Wanted) -> Result<Pins, Errno> {
        let interrupted = CancellationToken::new();
        self.waiting.lock().insert(request, interrupted.clone());
        let wait = self.watches.wait(wanted.digest);
        let cas = self.cas.clone();
        let fetch = async move { cas.fetch(&[wanted]).await };
        let fetch = match wait.behalf() {
            Some(behalf) => self.runtime.spawn(behalf.pass_on(fetch)),
            None => self.runtime.spawn(fetch),
        };
        // Dropped, it ends the download, unless somebody else waits for it too.
        let mut fetch = AbortOnDropHandle::new(fetch);
        let fetched = tokio::select! {
            biased;
            () = interrupted.cancelled() => None,
            fetched = &mut fetch => Some(fetched),
        };
        self.waiting.lock().remove(&request);
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
