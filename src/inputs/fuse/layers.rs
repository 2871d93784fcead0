//! Places for input roots, made ready before they are needed and cleared after the action is told to have ended: making and
//! removing directories and mounts is most of what a small action would wait for.
//!
//! Some have their overlay already, over a view of nothing. Until somebody looks into it, that view can still be given any
//! tree: so a tree that no action had before is there without a mount being made or a name being asked for.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::layout::Layout;
use super::mounts::{self, failed};
use super::nodes::{Nodes, View};
use super::subtree::Subtree;
use crate::config::Owner;
use crate::inputs::{InputError, in_background, staged};
use crate::reapi::{Digest, DigestFunction};

/// Places that are kept ready.
const READY: usize = 64;
/// Those of them that have their overlay.
const MOUNTED: usize = 16;
/// Places that wait to be cleared; whoever leaves one more clears it himself.
const WAITING: usize = 64;

/// All places.
pub(super) struct Layers {
    layout: Arc<Layout>,
    nodes: Arc<Nodes>,
    own: Owner,
    ready: Mutex<Vec<Layer>>,
    waiting: AtomicUsize,
    views: AtomicU64,
}

/// A place: where the root is mounted, and what is written to it.
pub(super) struct Layer {
    /// Its name is a random one: an action cannot find the root of another.
    pub(super) root: PathBuf,
    below: PathBuf,
    /// There is something at `root`.
    mounted: bool,
    /// The view of its own that it lies over.
    view: Option<(Arc<View>, PathBuf)>,
    /// It was last wanted for a tree that no action had before, as it will be again.
    new: bool,
}

impl Layer {
    /// What the action makes or changes.
    pub(super) fn upper(&self) -> PathBuf {
        self.below.join("upper")
    }

    /// The kernel's own.
    fn work(&self) -> PathBuf {
        self.below.join("work")
    }

    /// The directory of the file system over which its overlay already lies.
    pub(super) fn view(&self) -> Option<PathBuf> {
        self.view.as_ref().map(|(_, path)| path.clone())
    }

    /// Mounts the root over a directory of the file system.
    pub(super) fn mount(&mut self, lower: &Path) -> Result<(), InputError> {
        let overlay = mounts::overlay(lower, &self.upper(), &self.work())?;
        mounts::attach(overlay, &self.root)?;
        self.mounted = true;
        Ok(())
    }
}

impl Layers {
    pub(super) fn new(layout: Arc<Layout>, nodes: Arc<Nodes>, own: Owner) -> Self {
        Layers {
            layout,
            nodes,
            own,
            ready: Mutex::default(),
            waiting: AtomicUsize::new(0),
            views: AtomicU64::new(0),
        }
    }

    /// A place with an empty upper layer that is the daemon's: for a tree that is `new` one with an overlay that shows it, if such
    /// a one is ready, else one with nothing at its root.
    pub(super) fn take(
        self: &Arc<Self>,
        tree: &Arc<Subtree>,
        owner: Owner,
        new: bool,
    ) -> Result<Layer, InputError> {
        let ready = |mounted: bool| {
            let mut ready = self.ready.lock();
            let found = ready.iter().rposition(|l| l.view.is_some() == mounted)?;
            Some(ready.swap_remove(found))
        };
        let mut layer = match new.then(|| ready(true)).flatten() {
            Some(layer) => layer,
            None => ready(false).map_or_else(|| self.make(), Ok)?,
        };
        layer.new = new;
        if let Some((view, _)) = &layer.view
            && let Err(error) = self.nodes.fill(&view.name, tree.clone(), owner)
        {
            // Somebody looked into it. There are others.
            tracing::warn!("cannot show a tree as {}: {error}", view.name);
            self.give_back(layer)?;
            layer = self.make()?;
            layer.new = new;
        }
        Ok(layer)
    }

    /// Unmounts the root, upon which the action's user can reach nothing of it any more, and has the rest cleared by
    /// somebody else.
    pub(super) fn give_back(self: &Arc<Self>, mut layer: Layer) -> Result<(), InputError> {
        if layer.mounted {
            mounts::detach(&layer.root).map_err(failed("unmount", layer.root.display()))?;
            layer.mounted = false;
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
            mounted: false,
            view: None,
            new: false,
        };
        for path in [&layer.below, &layer.upper(), &layer.work(), &layer.root] {
            make(path)?;
        }
        Ok(layer)
    }

    fn clear(&self, mut layer: Layer) -> Result<(), InputError> {
        if let Some((view, _)) = layer.view.take() {
            self.take_off(&view);
        }
        let cleared = self.empty(&layer);
        let (all, mounted) = {
            let ready = self.ready.lock();
            let mounted = ready.iter().filter(|layer| layer.view.is_some());
            (ready.len(), mounted.count())
        };
        let mount = cleared.is_ok() && layer.new && all < READY && mounted < MOUNTED;
        let made_ready = mount.then(|| self.mount_over_nothing(&mut layer));
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        cleared?;
        match made_ready {
            // Nobody waits for it, and the file system may be going.
            Some(Err(error)) => tracing::debug!("cannot make an input root ready: {error}"),
            _ if all < READY => {
                self.ready.lock().push(layer);
                return Ok(());
            }
            _ => {}
        }
        self.remove(&layer)
    }

    fn remove(&self, layer: &Layer) -> Result<(), InputError> {
        let below = open(&layer.below)?;
        for name in ["upper", "work"] {
            staged::remove_directory(&below, name)?;
        }
        for path in [&layer.below, &layer.root] {
            match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(failed("remove", path.display())(error)),
            }
        }
        Ok(())
    }

    fn mount_over_nothing(&self, layer: &mut Layer) -> Result<(), InputError> {
        let name = format!("new-{}", self.views.fetch_add(1, Ordering::Relaxed));
        let nothing = Subtree::nothing(Digest::empty(DigestFunction::Sha256));
        let view = self.nodes.show(name, nothing, self.own, false);
        let path = self.layout.shared(&view.name);
        if let Err(error) = layer.mount(&path) {
            self.take_off(&view);
            return Err(error);
        }
        layer.view = Some((view, path));
        Ok(())
    }

    fn take_off(&self, view: &View) {
        let path = self.layout.shared_control(&view.name);
        match rustix::fs::unlinkat(CWD, &path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => tracing::warn!("cannot take {} off: {error}", path.display()),
        }
    }

    fn empty(&self, layer: &Layer) -> Result<(), InputError> {
        let below = open(&layer.below)?;
        // Anew, and not just emptied: the action owned one, and may have left more on it than entries; and as long as a launcher
        // has not let go of the overlay, the kernel gives neither to another.
        for name in ["upper", "work"] {
            staged::remove_directory(&below, name)?;
        }
        make(&layer.upper())?;
        make(&layer.work())
    }
}

fn make(path: &Path) -> Result<(), InputError> {
    rustix::fs::mkdirat(CWD, path, Mode::RWXU).map_err(failed("create", path.display()))
}

fn open(path: &Path) -> Result<OwnedFd, InputError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(failed("open", path.display()))
}
