//! Sealing and hashing files, and handing them to the local store, some dozens at a time.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::Stat;
use tokio_util::sync::CancellationToken;

use super::source::Source;
use super::walk::Found;
use super::{OutputError, refused};
use crate::cas::{Held, LocalStore, Pins};
use crate::reapi::{Digest, DigestFunction};
use crate::tree::{READ_BUFFER, digest_file_unless, quote, read_small};

/// Files that are open at the same time.
const BATCH: usize = 64;
/// Above this many bytes in a batch, hashing it is worth more than one thread.
const PARALLEL: u64 = 64 << 20;
const THREADS: usize = 4;

/// An open file that was not hashed yet.
pub(super) struct Pending {
    /// Its number in [`Found`].
    pub(super) number: usize,
    pub(super) file: File,
    /// Of the open file.
    pub(super) stat: Stat,
    pub(super) directory: Rc<Source>,
    /// Since before it was opened, nobody but us could change what the name leads to.
    pub(super) fixed: bool,
    pub(super) name: Box<str>,
    pub(super) path: Box<str>,
    pub(super) size: u64,
}

/// What was handed over.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) blobs: Vec<Digest>,
    pub(super) pins: Vec<Pins>,
    seen: HashSet<Digest>,
}

impl Taken {
    /// Pins blobs before they are stored, so that none is evicted before it is uploaded. Returns those that the store
    /// lacks, each once.
    pub(super) fn expect(
        &mut self,
        store: &Arc<LocalStore>,
        digests: impl IntoIterator<Item = Digest>,
    ) -> HashSet<Digest> {
        let new: Vec<Digest> = digests
            .into_iter()
            .filter(|digest| self.seen.insert(*digest))
            .collect();
        if new.is_empty() {
            return HashSet::new();
        }
        self.pins.push(store.pin(new.iter().copied()));
        self.blobs.extend_from_slice(&new);
        store.missing(&new).into_iter().collect()
    }
}

pub(super) struct Take<'s> {
    store: &'s Arc<LocalStore>,
    function: DigestFunction,
    cancel: CancellationToken,
    pending: Vec<Pending>,
    bytes: u64,
    buffer: Vec<u8>,
    held: &'s mut Held,
    taken: Taken,
    given: Vec<Digest>,
    /// Others may still write to files, whatever is done to these.
    copies: bool,
}

impl<'s> Take<'s> {
    pub(super) fn new(
        store: &'s Arc<LocalStore>,
        function: DigestFunction,
        cancel: CancellationToken,
        held: &'s mut Held,
        copies: bool,
    ) -> Self {
        Take {
            store,
            function,
            cancel,
            pending: Vec::new(),
            bytes: 0,
            buffer: Vec::new(),
            held,
            taken: Taken::default(),
            given: Vec::new(),
            copies,
        }
    }

    /// Bytes of the largest file that the store can take.
    pub(super) fn largest(&self) -> u64 {
        self.store.largest_blob()
    }

    pub(super) fn finish(mut self) -> Taken {
        let given = std::mem::take(&mut self.given);
        // They are inputs: what is not here is where it came from.
        self.taken.expect(self.store, given);
        self.taken
    }

    /// Takes note of an output that is an input as it was: there is nothing to hash or to keep.
    pub(super) fn given(&mut self, digest: Digest) {
        self.given.push(digest);
    }

    pub(super) fn push(&mut self, pending: Pending, found: &mut Found) -> Result<(), OutputError> {
        self.bytes = self.bytes.saturating_add(pending.size);
        self.pending.push(pending);
        if self.pending.len() >= BATCH {
            self.flush(found)?;
        }
        Ok(())
    }

    /// Hashes what is pending and moves into the store what it lacks.
    pub(super) fn flush(&mut self, found: &mut Found) -> Result<(), OutputError> {
        if self.cancel.is_cancelled() {
            return Err(OutputError::Cancelled);
        }
        let pending = std::mem::take(&mut self.pending);
        let bytes = std::mem::take(&mut self.bytes);
        let mut sealed = Vec::with_capacity(pending.len());
        for pending in &pending {
            // Before it is hashed: what the hash says must stay true. Nobody adopts an empty file.
            sealed.push(match pending.size {
                0 => None,
                _ => {
                    let executable = found.files[pending.number].executable;
                    let file = pending.file.as_fd();
                    let sealed = self.store.seal_examined(file, pending.stat, executable)?;
                    Some(match self.copies {
                        true => sealed.open(),
                        false => sealed.fixed(pending.fixed),
                    })
                }
            });
        }
        let digests = self.hash(&pending, bytes)?;
        for (pending, digest) in pending.iter().zip(&digests) {
            if digest.size() != pending.size {
                return Err(refused(&pending.path, "changed while it was read"));
            }
            found.files[pending.number].digest = *digest;
        }
        let mut missing = self.taken.expect(self.store, digests.iter().copied());
        for ((pending, digest), sealed) in pending.iter().zip(digests).zip(&sealed) {
            if let Some(sealed) = sealed
                && missing.remove(&digest)
            {
                self.store.adopt_at(
                    digest,
                    pending.directory.fd().as_fd(),
                    OsStr::new(&*pending.name),
                    pending.file.as_fd(),
                    found.files[pending.number].executable,
                    sealed,
                )?;
            }
        }
        Ok(())
    }

    fn hash(&mut self, pending: &[Pending], bytes: u64) -> Result<Vec<Digest>, OutputError> {
        let results = if bytes > PARALLEL && pending.len() > 1 {
            let files: Vec<&File> = pending.iter().map(|pending| &pending.file).collect();
            in_parallel(&files, self.function, &self.cancel)
        } else {
            pending.iter().map(|one| self.hash_one(one)).collect()
        };
        results
            .into_iter()
            .zip(pending)
            .map(|(result, pending)| {
                result.map_err(|source| match self.cancel.is_cancelled() {
                    true => OutputError::Cancelled,
                    false => OutputError::Disk {
                        action: "read",
                        path: quote::path(&pending.path),
                        source,
                    },
                })
            })
            .collect()
    }

    fn hash_one(&mut self, pending: &Pending) -> std::io::Result<Digest> {
        let (file, size) = (&pending.file, pending.size);
        if size <= Held::LARGEST {
            let content = read_small(file, size, &mut self.buffer)?;
            let digest = self.function.digest(content);
            self.held.hold(digest, content);
            return Ok(digest);
        }
        let wanted = size.min(READ_BUFFER as u64) as usize;
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        let (buffer, cancel) = (&mut self.buffer, &self.cancel);
        digest_file_unless(file, self.function, buffer, || cancel.is_cancelled())
    }
}

fn in_parallel(
    files: &[&File],
    function: DigestFunction,
    cancel: &CancellationToken,
) -> Vec<std::io::Result<Digest>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut buffer = vec![0; READ_BUFFER];
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = files.get(index) else {
                return done;
            };
            done.push((
                index,
                digest_file_unless(file, function, &mut buffer, || cancel.is_cancelled()),
            ));
        }
    };
    let mut results = std::thread::scope(|scope| {
        let others: Vec<_> = (1..THREADS.min(files.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let mut results = work();
        for other in others {
            match other.join() {
                Ok(done) => results.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    });
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}
