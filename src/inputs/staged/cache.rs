//! Directories that recur, put on disk once and mounted read-only in every root that has them: a root then costs what is new in
//! its tree. Nobody but the daemon can reach them by a path, and no command can write through the mount.
//!
//! Their files are links to those of the store, which would stay on the disk if the store let go of its own: a kept directory
//! pins them, and what it has copied counts as the store's. Those that nobody uses are kept within the part of the store whose files
//! are pinned for the next action, and the store has them to drop when there is no room.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{CWD, Mode};

use super::{DIRECTORY, Place, failed, plant, remove};
use crate::cas::{Beside, CasError, LocalStore, Pins, Spare};
use crate::config::Owner;
use crate::inputs::fuse::mounts;
use crate::inputs::fuse::recurring::{Part, Plan, Recurring};
use crate::inputs::{InputError, StageRequest, in_background};
use crate::reapi::Digest;

/// Nodes from which a directory is worth its mount: a hard link costs some 10 us, a mount some 25.
const LEAST: u64 = 16;
/// Directories that nobody uses.
const IDLE: usize = 2_000;

/// All kept directories.
pub(super) struct DirectoryCache {
    shelf: Arc<Shelf>,
    store: Arc<LocalStore>,
    recurring: Recurring,
    /// The store holds them, and who uses them.
    kept: Mutex<LruCache<Key, Found>>,
    names: AtomicU64,
    /// Nodes of directories that nobody uses, at most.
    idle_nodes: u64,
}

type Key = (Digest, Owner);

/// A directory that may be there still.
struct Found {
    kept: Weak<Kept>,
    nodes: u64,
    spare: Spare,
}

/// Where they lie.
struct Shelf {
    dir: PathBuf,
    fd: OwnedFd,
    /// The daemon ends: what is left is removed when it is started again, and nobody waits for that now.
    ended: AtomicBool,
}

/// A directory on disk; dropped, it is removed.
pub(super) struct Kept {
    shelf: Arc<Shelf>,
    name: String,
    /// What it is made of, once it is there, whole. Locked while it is made, so that it is made once.
    made: Mutex<Option<Made>>,
}

/// Keeps in the store what a directory's files are, or counts them there.
struct Made {
    _pins: Pins,
    _copies: Option<Beside>,
}

/// A part of a root that is not to be put on disk again.
pub(super) struct Shared {
    pub(super) path: String,
    pub(super) kept: Arc<Kept>,
    part: Part,
}

impl DirectoryCache {
    /// In the empty directory `dir`.
    pub(super) fn new(place: &Place, name: &str, idle_nodes: u64) -> Result<Self, InputError> {
        let dir = place.dir.join(name);
        rustix::fs::mkdirat(&place.fd, name, Mode::RWXU).map_err(failed("create", name))?;
        let fd = rustix::fs::openat(CWD, &dir, DIRECTORY, Mode::empty())
            .map_err(failed("open", name))?;
        Ok(DirectoryCache {
            shelf: Arc::new(Shelf {
                dir,
                fd,
                ended: AtomicBool::new(false),
            }),
            store: place.cas.local().clone(),
            recurring: Recurring::new(place.cas.clone()),
            kept: Mutex::new(LruCache::unbounded()),
            names: AtomicU64::new(0),
            idle_nodes,
        })
    }

    /// The parts of a root that come from here, and the directories that its action may change no more than those.
    pub(super) fn parts(&self, request: &StageRequest) -> (Vec<Shared>, Vec<String>) {
        let Some(owner) = request.owner.filter(|_| !request.writable) else {
            return Default::default();
        };
        let Plan { closed, parts } = self.recurring.plan(request, LEAST);
        let parts = { parts.into_iter() }
            .map(|part| Shared {
                path: part.path.clone(),
                kept: self.keep((part.digest(), owner), part.nodes()),
                part,
            })
            .collect();
        (parts, closed)
    }

    /// The directory for this key, which is the last used one now.
    fn keep(&self, key: Key, nodes: u64) -> Arc<Kept> {
        let mut all = self.kept.lock();
        let found = all.get_mut(&key);
        if let Some(found) = found
            && let Some(kept) = found.kept.upgrade()
        {
            // The store may have let go of one that is in use.
            if !found.spare.renew() {
                found.spare = self.store.spare(kept.clone());
            }
            return kept;
        }
        let kept = Arc::new(Kept {
            shelf: self.shelf.clone(),
            name: self.names.fetch_add(1, Ordering::Relaxed).to_string(),
            made: Mutex::new(None),
        });
        let found = Found {
            kept: Arc::downgrade(&kept),
            nodes,
            spare: self.store.spare(kept.clone()),
        };
        all.put(key, found);
        kept
    }

    /// Mounts a part at its path below `root`, after it was put on disk if it was not, and opens that mount.
    pub(super) fn show(
        &self,
        place: &Place,
        request: &StageRequest,
        part: &Shared,
        root: &std::path::Path,
    ) -> Result<OwnedFd, InputError> {
        let at = self.shelf.dir.join(&part.kept.name);
        {
            let mut made = part.kept.made.lock();
            if made.is_none() {
                *made = Some(self.make(place, request, part)?);
            }
        }
        mounts::close_at(&at, &root.join(&part.path))
    }

    fn make(
        &self,
        place: &Place,
        request: &StageRequest,
        part: &Shared,
    ) -> Result<Made, InputError> {
        let (name, at) = (&part.kept.name, &self.shelf.fd);
        // What an attempt that failed has left.
        remove::directory(at, name)?;
        rustix::fs::mkdirat(at, name, Mode::RWXU).map_err(failed("create", name))?;
        let fd = rustix::fs::openat(at, &**name, DIRECTORY, Mode::empty())
            .map_err(failed("open", name))?;
        let pins = self.store.pin(part.part.contents());
        let copied = plant::whole(place, &fd, request, part.part.digest())?;
        let copies = match copied {
            0 => None,
            copied => match self.store.beside(copied) {
                Ok(copies) => Some(copies),
                // No room to keep it: it goes when this action has ended, as what is written for one action alone.
                Err(CasError::Full { .. }) => {
                    self.forget(&part.kept);
                    None
                }
                Err(error) => return Err(error.into()),
            },
        };
        Ok(Made {
            _pins: pins,
            _copies: copies,
        })
    }

    /// Keeps a directory no longer than it is used.
    fn forget(&self, kept: &Arc<Kept>) {
        let mut all = self.kept.lock();
        let this = |found: &Found| std::ptr::eq(found.kept.as_ptr(), Arc::as_ptr(kept));
        let key = all.iter().find(|(_, found)| this(found));
        if let Some(key) = key.map(|(key, _)| *key) {
            all.pop(&key);
        }
    }

    /// Removes what was used longest ago, as long as there is too much that nobody uses, and what is made of files that are not pinned
    /// for the next action any more.
    pub(super) fn shrink(&self) {
        let mut all = self.kept.lock();
        let (mut nodes, mut count, mut going) = (0, 0, Vec::new());
        // The last used first.
        for (key, found) in all.iter() {
            match found.kept.strong_count() {
                // The store has dropped it.
                0 => going.push(*key),
                // Only the store has it.
                1 if nodes + found.nodes <= self.idle_nodes
                    && count < IDLE
                    && self.recurring.is_pinned(key.0) =>
                {
                    nodes += found.nodes;
                    count += 1;
                }
                1 => going.push(*key),
                _ => {}
            }
        }
        let gone: Vec<Found> = going.iter().filter_map(|key| all.pop(key)).collect();
        drop(all);
        if !gone.is_empty() {
            // Nobody can get at them any more: their names are never used again.
            in_background(move || {
                gone.into_iter().for_each(|found| found.spare.discard());
                Ok(())
            });
        }
    }
}

impl Drop for DirectoryCache {
    fn drop(&mut self) {
        self.shelf.ended.store(true, Ordering::SeqCst);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.shelf.ended.load(Ordering::SeqCst) {
            return;
        }
        if let Err(error) = remove::directory(&self.shelf.fd, &self.name) {
            tracing::warn!("a kept directory of inputs stays until the next start: {error}");
        }
    }
}
