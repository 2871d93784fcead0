//! Places for input roots, made ready before they are needed and cleared after the action is told to have ended: making and
//! removing directories is most of what a small action would wait for.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::layout::Layout;
use super::mounts::{self, failed};
use crate::inputs::{InputError, in_background, staged};

/// Places that are kept ready.
const READY: usize = 64;
/// Places that wait to be cleared; whoever leaves one more clears it himself.
const WAITING: usize = 64;

/// All places.
pub(super) struct Layers {
    layout: Arc<Layout>,
    ready: Mutex<Vec<Layer>>,
    waiting: AtomicUsize,
}

/// A place: where the root is mounted, and what is written to it.
pub(super) struct Layer {
    /// Its name is a random one: an action cannot find the root of another.
    pub(super) root: PathBuf,
    below: PathBuf,
}

impl Layer {
    /// What the action makes or changes.
    pub(super) fn upper(&self) -> PathBuf {
        self.below.join("upper")
    }

    /// The kernel's own.
    pub(super) fn work(&self) -> PathBuf {
        self.below.join("work")
    }
}

impl Layers {
    pub(super) fn new(layout: Arc<Layout>) -> Self {
        Layers {
            layout,
            ready: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// A place with an empty upper layer that is the daemon's.
    pub(super) fn take(&self) -> Result<Layer, InputError> {
        let ready = self.ready.lock().pop();
        ready.map_or_else(|| self.make(), Ok)
    }

    /// Unmounts the root, upon which the action's user can reach nothing of it any more, and has the rest cleared by
    /// somebody else.
    pub(super) fn give_back(
        self: &Arc<Self>,
        layer: Layer,
        mounted: bool,
    ) -> Result<(), InputError> {
        if mounted {
            mounts::detach(&layer.root).map_err(failed("unmount", layer.root.display()))?;
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING {
            return self.clear(layer);
        }
        let this = self.clone();
        in_background(move || this.clear(layer));
        Ok(())
    }

    fn make(&self) -> Result<Layer, InputError> {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let layer = Layer {
            root: self.layout.root(&name),
            below: self.layout.layers().join(&name),
        };
        for path in [&layer.below, &layer.upper(), &layer.work(), &layer.root] {
            make(path)?;
        }
        Ok(layer)
    }

    fn clear(&self, layer: Layer) -> Result<(), InputError> {
        let cleared = self.empty(&layer);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        cleared?;
        let mut ready = self.ready.lock();
        if ready.len() < READY {
            ready.push(layer);
            return Ok(());
        }
        drop(ready);
        for path in [&layer.upper(), &layer.work(), &layer.below, &layer.root] {
            match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(failed("remove", path.display())(error)),
            }
        }
        Ok(())
    }

    fn empty(&self, layer: &Layer) -> Result<(), InputError> {
        let below = open(&layer.below)?;
        // Anew, and not just emptied: the action owned it, and may have left more on it than entries.
        staged::remove_directory(&below, "upper")?;
        staged::remove_contents(&open(&layer.work())?)?;
        make(&layer.upper())
    }
}

fn make(path: &Path) -> Result<(), InputError> {
    rustix::fs::mkdirat(CWD, path, Mode::RWXU).map_err(failed("create", path.display()))
}

fn open(path: &Path) -> Result<OwnedFd, InputError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(failed("open", path.display()))
}
