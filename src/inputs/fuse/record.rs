//! What one command does with its inputs, seen by a file system of its own that shows it nothing but them.
//!
//! On the shared file system the kernel answers most of a command's questions out of what other actions have asked, and
//! opening a file is no question at all. Here nothing was asked before, each path is a node of its own, and every opening
//! is told. It costs a mount and a thread per action, and that the action finds nothing warm.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::kernel::Kernel;
use super::life::Life;
use super::nodes::Nodes;
use super::server::Server;
use super::subtree::Subtree;
use super::{Shared, cannot_mount};
use crate::config::Owner;
use crate::inputs::{InputError, Used, in_background};

/// Paths that are remembered to have been looked up in vain.
const IN_VAIN: usize = 100_000;
/// Paths of inputs that are remembered, each way of using them for itself.
const PATHS: usize = 1_000_000;

/// Bytes of all these paths.
const BYTES: usize = 64 << 20;

/// Remembers.
#[derive(Default)]
pub(super) struct Recorder {
    used: Mutex<(Used, usize)>,
}

impl Recorder {
    /// A file or link was found by its name.
    pub(super) fn found(&self, path: String) {
        let (used, bytes) = &mut *self.used.lock();
        remember(&mut used.looked_at, PATHS, bytes, path, &mut used.cut);
    }

    /// A file was opened, or a link followed.
    pub(super) fn opened(&self, path: String) {
        let (used, bytes) = &mut *self.used.lock();
        remember(&mut used.read, PATHS, bytes, path, &mut used.cut);
    }

    /// There was nothing.
    pub(super) fn missed(&self, path: String) {
        let (used, bytes) = &mut *self.used.lock();
        remember(&mut used.in_vain, IN_VAIN, bytes, path, &mut used.cut);
    }

    pub(super) fn so_far(&self) -> Used {
        self.used.lock().0.clone()
    }
}

fn remember(
    paths: &mut BTreeSet<String>,
    most: usize,
    bytes: &mut usize,
    path: String,
    cut: &mut bool,
) {
    if paths.contains(&path) {
        return;
    }
    let after = bytes.saturating_add(path.len());
    if paths.len() < most && after <= BYTES {
        *bytes = after;
        paths.insert(path);
    } else {
        *cut = true;
    }
}

/// The file system.
pub(super) struct Recorded {
    pub(super) at: PathBuf,
    pub(super) recorder: Arc<Recorder>,
    server: Server,
}

impl Recorded {
    /// Shows a tree. Blocks for some milliseconds.
    pub(super) fn show(
        shared: &Shared,
        tree: Arc<Subtree>,
        owner: Owner,
    ) -> Result<Self, InputError> {
        let at = shared.layout.watched();
        let failed = |source| InputError::Disk {
            action: "create",
            object: at.display().to_string(),
            source,
        };
        std::fs::create_dir(&at).map_err(failed)?;
        let nodes = Arc::new(Nodes::by_path(tree, owner));
        let recorder = Arc::new(Recorder::default());
        let kernel = Kernel {
            recorder: Some(recorder.clone()),
            ..Kernel::new(nodes, Arc::new(shared.contents.beside()))
        };
        let server = Server::start(kernel, &at).map_err(cannot_mount(&at))?;
        Ok(Recorded {
            at,
            recorder,
            server,
        })
    }

    /// Whether it still is there.
    pub(super) fn life(&self) -> &Life {
        self.server.life()
    }

    /// Unmounts it. Not waited for: a sandbox may keep what it showed until its next action.
    pub(super) fn take_down(self) {
        in_background(move || {
            drop(self.server);
            std::fs::remove_dir(&self.at).map_err(|source| InputError::Disk {
                action: "remove",
                object: self.at.display().to_string(),
                source,
            })
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_not_remembered_and_said_to_be_lacking() {
        let (mut paths, mut bytes, mut cut) = (BTreeSet::new(), 0, false);
        for path in ["a", "b", "a", "b"] {
            remember(&mut paths, 2, &mut bytes, path.to_owned(), &mut cut);
        }
        assert!(paths.len() == 2 && bytes == 2 && !cut);
        remember(&mut paths, 2, &mut bytes, "c".to_owned(), &mut cut);
        assert!(paths.len() == 2 && cut);
    }

    #[test]
    fn long_paths_are_remembered_within_bytes() {
        let (mut paths, mut bytes, mut cut) = (BTreeSet::new(), 0, false);
        for n in 0..1000 {
            let path = format!("{n:04}{}", "x".repeat(128 << 10));
            remember(&mut paths, PATHS, &mut bytes, path, &mut cut);
        }
        assert!(cut && bytes <= BYTES && paths.len() < 520, "{bytes}");
    }
}
