//! The directory of the input roots.
//!
//! ```text
//! roots/NAME      input roots; users of actions pass through, and nobody lists it
//! behind/         the daemon's alone:
//!   tree          the file system, where views are taken off
//!   view          the same, read-only: what is shown of it comes from here
//!   blobs         the local store, read-only
//!   parts/NAME    views that are mounted on their own
//!   layers/NAME   what an action writes: upper/ and work/
//!   watched/NAME  file systems of single actions, of which it is to be known what they do with their inputs
//! ```

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use super::mounts::{self, failed};
use super::nodes::SHARED_NAME;
use crate::inputs::InputError;

/// Where everything is.
pub(super) struct Layout {
    dir: PathBuf,
    behind: PathBuf,
    /// The local store's own directory.
    store: PathBuf,
}

impl Layout {
    /// Empties `dir`, also of mounts that an earlier run left, and makes what is to be in it. Blocks.
    pub(super) fn make(dir: &Path, store: &Path) -> Result<Self, InputError> {
        let io = |action: &'static str, path: &Path| {
            let object = path.display().to_string();
            move |source| InputError::Disk {
                action,
                object,
                source,
            }
        };
        std::fs::create_dir_all(dir).map_err(io("create", dir))?;
        let dir = std::fs::canonicalize(dir).map_err(io("find", dir))?;
        let stale = mounts::detach_all_below(&dir)?;
        if stale > 0 {
            tracing::info!(
                "unmounted {stale} mounts that an earlier run left in {}",
                dir.display()
            );
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd: OwnedFd = rustix::fs::openat(CWD, &dir, flags, Mode::empty())
            .map_err(failed("open", dir.display()))?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o711))
            .map_err(failed("set the mode of", dir.display()))?;
        crate::inputs::staged::remove_contents(&fd)?;
        let layout = Layout {
            behind: dir.join("behind"),
            dir,
            store: store.to_owned(),
        };
        let make = |path: PathBuf, mode| {
            rustix::fs::mkdirat(CWD, &path, Mode::from_raw_mode(mode))
                .map_err(failed("create", path.display()))
        };
        make(layout.dir.join("roots"), 0o711)?;
        make(layout.behind.clone(), 0o700)?;
        for name in ["tree", "view", "blobs", "parts", "layers", "watched"] {
            make(layout.behind.join(name), 0o700)?;
        }
        Ok(layout)
    }

    /// Shows the file system and the store read-only, once the file system is mounted.
    pub(super) fn furnish(&self) -> Result<(), InputError> {
        mounts::show_read_only(&self.tree(), &self.behind.join("view"))?;
        mounts::show_read_only(&self.store, &self.behind.join("blobs"))
    }

    /// Takes all mounts away.
    pub(super) fn strip(&self) -> Result<usize, InputError> {
        mounts::detach_all_below(&self.dir)
    }

    pub(super) fn tree(&self) -> PathBuf {
        self.behind.join("tree")
    }

    pub(super) fn root(&self, name: &str) -> PathBuf {
        self.dir.join("roots").join(name)
    }

    pub(super) fn layers(&self) -> PathBuf {
        self.behind.join("layers")
    }

    /// A new place for a file system.
    pub(super) fn watched(&self) -> PathBuf {
        let name = uuid::Uuid::new_v4().simple().to_string();
        self.behind.join("watched").join(name)
    }

    pub(super) fn place(&self, view: &str) -> PathBuf {
        self.behind.join("parts").join(view)
    }

    pub(super) fn shared(&self, view: &str) -> PathBuf {
        self.behind.join("view").join(SHARED_NAME).join(view)
    }

    /// Where a view can be taken off.
    pub(super) fn shared_control(&self, view: &str) -> PathBuf {
        self.tree().join(SHARED_NAME).join(view)
    }

    /// Where a blob's file is shown read-only.
    pub(super) fn blob(&self, file: &Path) -> Option<PathBuf> {
        let below = file.strip_prefix(&self.store).ok()?;
        Some(self.behind.join("blobs").join(below))
    }
}
