//! Real files in a directory per action: hard links, clones or copies of blobs.
//!
//! What the action does to its root never reaches the CAS. Blobs are hard-linked only if the action runs as
//! another user than the daemon: the files are the daemon's and read-only, so it can neither write them
//! nor change their mode. An action that runs as the daemon's own user could do both, and gets
//! files of its own; so does any action where an input is a declared output, or below one. Files of its own it may write, as on FUSE.
//!
//! The directory that holds the roots can be passed through but not listed (0711); its own parents are the
//! operator's and must let the actions' users pass.

mod cache;
mod directories;
mod outputs;
mod place;
mod plant;
mod remove;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{
    Hold, InputError, InputRoots, StageRequest, StagedRoot, blocking, in_background, named,
};

use super::fuse::mounts;
use crate::cas::{Cas, CasError, Pins};
use crate::tree::quote;
use cache::{DirectoryCache, Shared};
use outputs::Outputs;
pub(in crate::inputs) use remove::{contents as remove_contents, directory as remove_directory};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Mounts of one root that each have an open descriptor: many actions may run, and a process have no more than 1 024 open.
const MOUNTS: usize = 16;

/// The directory of directories that recur; no root is called so.
const KEPT: &str = ".kept";

/// The plainest input roots.
pub struct Staged {
    place: Arc<Place>,
    cache: Option<Arc<DirectoryCache>>,
}

/// Where roots are staged.
struct Place {
    cas: Cas,
    dir: PathBuf,
    fd: OwnedFd,
    /// The file system can clone files, as far as is known.
    clones: AtomicBool,
}

impl Staged {
    /// Stages below `dir`, which should be on the local store's file system and is emptied first. Blocks.
    pub fn new(cas: Cas, dir: PathBuf) -> Result<Self, InputError> {
        let failed = |action: &'static str| {
            let object = dir.display().to_string();
            move |source| InputError::Disk {
                action,
                object,
                source,
            }
        };
        std::fs::create_dir_all(&dir).map_err(failed("create"))?;
        let dir = std::path::absolute(&dir).map_err(failed("find"))?;
        let fd = rustix::fs::openat(rustix::fs::CWD, &dir, DIRECTORY, Mode::empty())
            .map_err(|e| failed("open")(e.into()))?;
        let passable = Mode::from_raw_mode(0o711);
        rustix::fs::fchmod(&fd, passable).map_err(|e| failed("set the mode of")(e.into()))?;
        remove::contents(&fd)?;
        Ok(Staged {
            place: Arc::new(Place {
                cas,
                dir,
                fd,
                clones: AtomicBool::new(true),
            }),
            cache: None,
        })
    }

    /// The same, and directories that recur are kept and mounted, by a daemon that is root and has mounts of its own; those that
    /// nobody uses as long as they have no more than `idle_nodes` files and directories. The error says what is lacking.
    pub fn with_cache(cas: Cas, dir: PathBuf, idle_nodes: u64) -> Result<Self, InputError> {
        std::fs::create_dir_all(&dir).map_err(|source| InputError::Disk {
            action: "create",
            object: dir.display().to_string(),
            source,
        })?;
        let stale = mounts::detach_all_below(&dir)?;
        if stale > 0 {
            tracing::info!(
                "unmounted {stale} mounts that an earlier run left in {}",
                dir.display()
            );
        }
        let mut staged = Staged::new(cas, dir)?;
        let cache = DirectoryCache::new(&staged.place, KEPT, idle_nodes)?;
        // Whether this process may mount is best tried out.
        let at = staged.place.dir.join(KEPT);
        mounts::attach(mounts::clone(&at)?, &at)?;
        mounts::detach(&at).map_err(failed("unmount", KEPT))?;
        staged.cache = Some(Arc::new(cache));
        Ok(staged)
    }
}

impl Staged {
    /// Whether directories that recur are kept.
    pub fn is_cached(&self) -> bool {
        self.cache.is_some()
    }
}

#[async_trait]
impl InputRoots for Staged {
    fn name(&self) -> &'static str {
        "staged"
    }

    fn lazy(&self) -> bool {
        false
    }

    async fn stage(&self, request: StageRequest) -> Result<Box<dyn StagedRoot>, InputError> {
        let request = Arc::new(request);
        let pins = self.fetch(&request).await?;
        match self.place(&request, pins).await {
            // They were here a moment ago, but their files are gone: somebody removed them by hand. The store
            // knows by now, and what the remote has is fetched again.
            Err(InputError::Missing(_)) => {
                let pins = self.fetch(&request).await?;
                self.place(&request, pins).await
            }
            other => other,
        }
    }
}

impl Staged {
    async fn fetch(&self, request: &StageRequest) -> Result<Pins, InputError> {
        // All of them are in the store together: what can never fit is not fetched, nor anything evicted for it.
        let most = self.place.cas.local().largest_blob();
        if let Some(needed) = request.tree.bytes_beyond(most) {
            let why = format!("all inputs must fit into its {most} bytes (cas-quota-high)");
            return Err(CasError::Full { needed, why }.into());
        }
        match self.place.cas.fetch(&request.tree.blobs()).await {
            Ok(pins) => Ok(pins),
            Err(CasError::Missing(digests)) => {
                let missing = named(&request.tree, digests);
                Err(InputError::Missing(missing))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn place(
        &self,
        request: &Arc<StageRequest>,
        pins: Pins,
    ) -> Result<Box<dyn StagedRoot>, InputError> {
        let (place, request, cache) = (self.place.clone(), request.clone(), self.cache.clone());
        // One blocking call for the whole tree: a hand-over per file would cost more than the file.
        let root = blocking("stage", move || Root::stage(place, cache, &request, pins)).await?;
        Ok(Box::new(root))
    }
}

/// A staged tree; its removal is part of its life, whoever drops it.
struct Root {
    path: PathBuf,
    placed: Option<Placed>,
}

/// What is on disk, and the blobs that it was made of.
struct Placed {
    place: Arc<Place>,
    name: String,
    /// Directories that may not be changed.
    closed: Vec<String>,
    /// What is mounted below the root, in that order. By their paths they could not be found again: a command moves what is above.
    mounts: Vec<OwnedFd>,
    /// Stay while they are in use.
    shared: Vec<Shared>,
    cache: Option<Arc<DirectoryCache>>,
    _pins: Pins,
    _hold: Hold,
}

impl Root {
    fn stage(
        place: Arc<Place>,
        cache: Option<Arc<DirectoryCache>>,
        request: &StageRequest,
        pins: Pins,
    ) -> Result<Self, InputError> {
        let name = &request.name;
        let path = place.dir.join(name);
        if crate::tree::check_name(name).is_err() {
            return Err(failed("name a directory", name)(Errno::INVAL));
        }
        // Nobody else can enter until all is in place and has its owner.
        rustix::fs::mkdirat(&place.fd, name, Mode::RWXU)
            .map_err(failed("create", &path.to_string_lossy()))?;
        let parts = cache.as_ref().map(|cache| cache.parts(request));
        let (shared, closed) = parts.unwrap_or_default();
        let mut root = Root {
            path,
            placed: Some(Placed {
                place,
                name: name.clone(),
                shared,
                closed,
                mounts: Vec::new(),
                cache,
                _pins: pins,
                _hold: request.hold.clone(),
            }),
        };
        match root.fill(request) {
            Ok(()) => Ok(root),
            Err(error) => {
                // The first error is the one to report; what cannot be removed goes with the next start.
                let _ = root.take_down();
                Err(error)
            }
        }
    }

    fn fill(&mut self, request: &StageRequest) -> Result<(), InputError> {
        let Some(placed) = &mut self.placed else {
            return Ok(());
        };
        let fd = rustix::fs::openat(&placed.place.fd, &placed.name, DIRECTORY, Mode::empty())
            .map_err(failed("open", &placed.name))?;
        let shared = placed.shared.iter().map(|part| &*part.path).collect();
        let outputs = Outputs::of(&request.tree, &request.outputs);
        let top = request.tree.root;
        let planted = plant::plant(&placed.place, &fd, request, top, &shared, &outputs)?;
        for directory in &request.directories {
            directories::make(&fd, directory, request.owner)?;
        }
        plant::adorn(&fd, request, &planted.properties)?;
        placed.show_shared(request, &self.path)
    }

    fn take_down(mut self) -> Result<(), InputError> {
        match self.placed.take() {
            Some(placed) => placed.remove(),
            None => Ok(()),
        }
    }
}

impl Placed {
    /// Mounts what is not on disk for this root alone.
    fn show_shared(&mut self, request: &StageRequest, root: &Path) -> Result<(), InputError> {
        let Some(cache) = &self.cache else {
            return Ok(());
        };
        // Each a mount of its own, and the root stays in that of the store: out of another no output could be renamed into it. Where that
        // would take many descriptors the root is mounted over itself, everything goes with that, and outputs are copied.
        if self.closed.len() + self.shared.len() > MOUNTS {
            self.mounts.push(mounts::over_itself(root)?);
        }
        let apart = self.mounts.is_empty();
        // First these, as parts may lie in them.
        for path in &self.closed {
            let closed = mounts::close(&root.join(path))?;
            self.mounts.extend(apart.then_some(closed));
        }
        for part in &self.shared {
            let shown = cache.show(&self.place, request, part, root)?;
            self.mounts.extend(apart.then_some(shown));
        }
        Ok(())
    }

    fn remove(self) -> Result<(), InputError> {
        let mut unmounted = Ok(());
        for mount in self.mounts.iter().rev() {
            let gone = mounts::detach_opened(mount);
            unmounted = unmounted.and(gone.map_err(failed("unmount a directory of", &self.name)));
        }
        // What is open of it is in use.
        drop(self.mounts);
        let removed = remove::directory(&self.place.fd, &self.name);
        drop(self.shared);
        if let Some(cache) = &self.cache {
            cache.shrink();
        }
        unmounted.and(removed)
    }
}

#[async_trait]
impl StagedRoot for Root {
    fn path(&self) -> &Path {
        &self.path
    }

    async fn remove(self: Box<Self>) -> Result<(), InputError> {
        blocking("remove", move || self.take_down()).await
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let Some(placed) = self.placed.take() else {
            return;
        };
        in_background(move || placed.remove());
    }
}

/// Names the operation and the path within the root.
fn failed(action: &'static str, object: &str) -> impl FnOnce(Errno) -> InputError {
    let object = quote::path(object);
    move |error| InputError::Disk {
        action,
        object,
        source: error.into(),
    }
}
