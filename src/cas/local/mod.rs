//! The blob store on disk: a cache of verified, read-only files, named by digest.
//!
//! Promises: a blob that is here is whole and is what its digest says, after `kill -9` at any moment
//! as well as after a power loss; a pinned blob stays; the quota and the floor of free space are
//! kept; no file is flushed on its own. One file here for each of these subjects: `layout` (the directory and its
//! lock), `trust` (what is believed after a crash), `scan` (opening), `index` (memory), `files`, `claim` (who may change a
//! digest's files), `put`, `writer`, `adopt` (blobs coming in), `read`, `double` (blobs
//! going out), `room` (eviction), `spare` (what goes when there is no room), `verify` and `quarantine` (blobs gone bad).
//!
//! The lock of the index is never held over a system call.

mod adopt;
mod claim;
mod clear;
mod double;
mod files;
mod free;
mod index;
mod layout;
mod lease;
mod names;
mod pins;
mod put;
mod quarantine;
mod read;
mod room;
mod scan;
mod spare;
mod temp;
mod trust;
mod vain;
mod verify;
mod writer;

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::CasError;
use crate::reapi::{Digest, DigestFunction};

pub use adopt::Sealed;
pub(crate) use files::disk_size;
pub use free::Free;
pub use pins::Pins;
pub use room::Beside;
pub use spare::{Spare, Spared};
pub use writer::BlobWriter;

/// Where the store lives and how large it may grow.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The store's own directory; created if missing.
    pub root: PathBuf,
    /// Eviction starts when the files would take more than this many bytes of disk. A file takes
    /// whole blocks of 4 KiB, and a blob that is wanted both as a plain and as an executable file is two.
    pub high_water: u64,
    /// Eviction goes down to this many bytes.
    pub low_water: u64,
    /// Bytes that stay free on the file system, whatever the marks say.
    pub free_floor: u64,
}

/// The store. Cheap to share; all methods block on the disk, for the length of a file at most.
pub struct LocalStore {
    config: StoreConfig,
    layout: layout::Layout,
    index: Mutex<index::Index>,
    /// A claim was given back.
    released: Condvar,
    floor: room::Floor,
    /// When the disk was last seen to be full.
    last_full: Mutex<Option<Instant>>,
    spares: spare::Spares,
    quarantine: quarantine::Quarantine,
    counters: Counters,
    found: scan::Found,
    /// Names for temporary files.
    temps: AtomicU64,
    /// Whether this file system clones files, as far as is known.
    clones: AtomicBool,
    empty: [Digest; 2],
}

/// How many blobs and bytes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of disk that their files take: whole blocks, both kinds of file. The water marks are about these.
    pub disk: u64,
}

#[derive(Default)]
struct Counters {
    evicted: AtomicU64,
    quarantined: AtomicU64,
}

/// What happened since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounters {
    /// Blobs evicted.
    pub evicted: u64,
    /// Files whose content was not what their name says.
    pub quarantined: u64,
    /// Files cut short that opening the store removed: writes that a kill interrupted.
    pub truncated: u64,
    /// Things among the blobs that are no blobs, which opening the store put aside.
    pub strays: u64,
}

/// The error of a system call.
fn disk(action: &'static str, object: impl Display, source: impl Into<io::Error>) -> CasError {
    CasError::Disk {
        action,
        object: object.to_string(),
        source: source.into(),
    }
}

impl LocalStore {
    /// Opens or creates the store, rebuilding the index from the directory. A second process on the same
    /// directory is refused.
    pub fn open(config: StoreConfig) -> Result<Arc<Self>, CasError> {
        Self::open_in_boot(config, trust::boot_id())
    }

    fn open_in_boot(config: StoreConfig, boot: Option<String>) -> Result<Arc<Self>, CasError> {
        if config.low_water > config.high_water {
            return Err(disk(
                "open blob store",
                config.root.display(),
                io::Error::other(format!(
                    "its low water mark, {}, is above its high water mark, {}",
                    config.low_water, config.high_water
                )),
            ));
        }
        let layout = layout::Layout::open(&config.root, boot)?;
        let quarantine = quarantine::Quarantine::open(&layout)?;
        let (index, found) = scan::scan(&layout, &quarantine)?;
        let store = Arc::new(LocalStore {
            config,
            layout,
            index: Mutex::new(index),
            released: Condvar::new(),
            floor: room::Floor::default(),
            spares: spare::Spares::default(),
            quarantine,
            counters: Counters::default(),
            found,
            temps: AtomicU64::new(0),
            last_full: Mutex::new(None),
            clones: AtomicBool::new(true),
            empty: DigestFunction::ALL.map(Digest::empty),
        });
        // Others may have filled the disk meanwhile; what can be evicted is known by now.
        let state = store.layout.root.join("state");
        store.with_space(0, "write", state.display(), || store.layout.note_open())?;
        // The marks may have been lowered since.
        store.keep_to_quota(0)?;
        Ok(store)
    }

    fn is_empty_blob(&self, digest: Digest) -> bool {
        digest.is_empty() && self.empty.contains(&digest)
    }

    /// Whether the blob is here; counts as a use. After a power loss, a blob is hashed before it is
    /// first said to be here; one that cannot be read is not.
    pub fn contains(&self, digest: Digest) -> bool {
        if self.is_empty_blob(digest) {
            return true;
        }
        match self.lookup(digest) {
            Ok(files) => files.is_some(),
            Err(why) => {
                tracing::warn!(blob = %digest, "cannot verify a blob, which counts as absent: {why}");
                false
            }
        }
    }

    /// Those of `digests` that are not here (the empty blob always is), in their order; counts as a use of those
    /// that are.
    pub fn missing(&self, digests: &[Digest]) -> Vec<Digest> {
        let mut missing = Vec::new();
        let mut doubtful = false;
        // In pieces, so that nobody waits long for the lock.
        for piece in digests.chunks(1024) {
            let mut index = self.index.lock();
            for &digest in piece {
                match index.find(digest) {
                    Some(slot) if index.files(slot).any() => {
                        index.touch(slot);
                        doubtful |= index.files(slot).unverified();
                    }
                    _ if self.is_empty_blob(digest) => {}
                    _ => missing.push(digest),
                }
            }
        }
        if doubtful {
            missing = digests.to_vec();
            missing.retain(|&digest| !self.contains(digest));
        }
        missing
    }

    /// Whether there may be blobs that are hashed before their first use, as after a power loss: while there
    /// are, looking a blob up may take as long as reading it.
    pub fn has_doubtful(&self) -> bool {
        self.index.lock().doubtful() > 0
    }

    /// The permission bits of a blob's file.
    pub(crate) fn file_mode(executable: bool) -> u32 {
        names::Kind::of(executable).mode().as_raw_mode()
    }

    /// What is stored.
    pub fn usage(&self) -> StoreUsage {
        self.index.lock().usage()
    }

    /// What happened so far.
    pub fn counters(&self) -> StoreCounters {
        StoreCounters {
            evicted: self.counters.evicted.load(Ordering::Relaxed),
            quarantined: self.counters.quarantined.load(Ordering::Relaxed),
            truncated: self.found.truncated,
            strays: self.found.strays,
        }
    }

    /// The bytes of disk up to which the store may grow.
    pub fn high_water(&self) -> u64 {
        self.config.high_water
    }

    /// A directory on the store's file system for scratch files of this process; emptied at the next open. Its mode is
    /// 0711: whoever knows the name of something in it gets there.
    pub fn scratch(&self) -> &Path {
        &self.layout.scratch
    }

    /// Notes that the store is shut down in order, so that the next open need not distrust it. Waits for blobs that are
    /// being published, refuses any after that, and flushes all to disk.
    pub fn close(&self) -> Result<(), CasError> {
        let mut index = self.index.lock();
        if index.closed {
            return Ok(());
        }
        index.closed = true;
        while index.claims > 0 {
            self.released.wait(&mut index);
        }
        drop(index);
        self.with_space(0, "close blob store", self.layout.root.display(), || {
            self.layout.close()
        })
    }
}

impl std::fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LocalStore({})", self.layout.root.display())
    }
}

#[cfg(test)]
mod tests;
