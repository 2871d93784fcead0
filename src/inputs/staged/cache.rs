//! Directories that recur, put on disk once and mounted read-only in every root that has them: a root then costs what is new in
//! its tree. Nobody but the daemon can reach them by a path, and no command can write through the mount.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{CWD, Mode};

use super::{DIRECTORY, Place, failed, plant, remove};
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
    dir: PathBuf,
    fd: OwnedFd,
    recurring: Recurring,
    kept: Mutex<LruCache<Key, Arc<Kept>>>,
    names: AtomicU64,
    /// Nodes of directories that nobody uses, at most.
    idle_nodes: u64,
}

type Key = (Digest, Owner);

/// A directory on disk.
pub(super) struct Kept {
    name: String,
    nodes: u64,
    /// It is there, whole. Locked while it is made, so that it is made once.
    made: Mutex<bool>,
}

/// A part of a root that is not to be put on disk again.
pub(super) struct Shared {
    pub(super) path: String,
    pub(super) kept: Arc<Kept>,
    digest: Digest,
    _part: Part,
}

impl DirectoryCache {
    /// In the empty directory `dir`.
    pub(super) fn new(place: &Place, name: &str, idle_nodes: u64) -> Result<Self, InputError> {
        let dir = place.dir.join(name);
        rustix::fs::mkdirat(&place.fd, name, Mode::RWXU).map_err(failed("create", name))?;
        let fd = rustix::fs::openat(CWD, &dir, DIRECTORY, Mode::empty())
            .map_err(failed("open", name))?;
        Ok(DirectoryCache {
            dir,
            fd,
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
        let mut kept = self.kept.lock();
        let parts = { parts.into_iter() }
            .map(|part| {
                let make = || {
                    let number = self.names.fetch_add(1, Ordering::Relaxed);
                    Arc::new(Kept {
                        name: number.to_string(),
                        nodes: part.nodes,
                        made: Mutex::new(false),
                    })
                };
                let kept = kept.get_or_insert((part.digest, owner), make).clone();
                Shared {
                    path: part.path.clone(),
                    kept,
                    digest: part.digest,
                    _part: part,
                }
            })
            .collect();
        (parts, closed)
    }

    /// Mounts a part at its path below `root`, after it was put on disk if it was not, and opens that mount.
    pub(super) fn show(
        &self,
        place: &Place,
        request: &StageRequest,
        part: &Shared,
        root: &std::path::Path,
    ) -> Result<OwnedFd, InputError> {
        let at = self.dir.join(&part.kept.name);
        {
            let mut made = part.kept.made.lock();
            if !*made {
                self.make(place, request, part)?;
                *made = true;
            }
        }
        mounts::close_at(&at, &root.join(&part.path))
    }

    fn make(&self, place: &Place, request: &StageRequest, part: &Shared) -> Result<(), InputError> {
        let name = &part.kept.name;
        // What an attempt that failed has left.
        remove::directory(&self.fd, name)?;
        rustix::fs::mkdirat(&self.fd, name, Mode::RWXU).map_err(failed("create", name))?;
        let fd = rustix::fs::openat(&self.fd, &**name, DIRECTORY, Mode::empty())
            .map_err(failed("open", name))?;
        plant::whole(place, &fd, request, part.digest, &HashSet::new())
    }

    /// Removes what was used longest ago, as long as there is too much that nobody uses.
    pub(super) fn shrink(self: &Arc<Self>) {
        loop {
            let oldest = {
                let mut kept = self.kept.lock();
                // One that somebody has in hand is in use.
                let idle = kept.iter().filter(|(_, kept)| Arc::strong_count(kept) == 1);
                let (mut nodes, mut count, mut oldest) = (0, 0, None);
                for (key, kept) in idle {
                    nodes += kept.nodes;
                    count += 1;
                    oldest = Some(*key);
                }
                match oldest {
                    Some(key) if nodes > self.idle_nodes || count > IDLE => kept.pop(&key),
                    _ => return,
                }
            };
            let Some(oldest) = oldest else { return };
            let this = self.clone();
            // Nobody can get at it any more: its name is never used again.
            in_background(move || remove::directory(&this.fd, &oldest.name));
        }
    }
}
