//! One tree, mounted for people.

use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::content::Contents;
use super::kernel::Kernel;
use super::nodes::Nodes;
use super::pinned::{Pinned, Pinning};
use super::server::Server;
use super::subtree::Subtrees;
use super::{InputError, mounts, own};
use crate::cas::Cas;
use crate::tree::Tree;

/// A tree on a read-only file system; a file is fetched when it is read. Dropped, it is unmounted.
pub struct TreeMount {
    server: Server,
    _pinned: Arc<Pinned>,
}

impl TreeMount {
    /// Mounts a whole tree at `dir`, an empty directory. Within a runtime; blocks for some milliseconds.
    pub fn new(cas: Cas, tree: &Tree, dir: &Path) -> Result<Self, InputError> {
        let root = Subtrees::new().of(tree, 0).ok_or_else(|| {
            mounts::failed("find a directory of", tree.root)(rustix::io::Errno::NOENT)
        })?;
        let pinned = Pinning::new(cas.clone(), u64::MAX).pin(&root);
        let contents = Contents::for_people(cas, Handle::current());
        let kernel = Kernel::new(Arc::new(Nodes::of(root, own())), Arc::new(contents));
        let server = Server::start(kernel, dir).map_err(super::cannot_mount(dir))?;
        Ok(TreeMount {
            server,
            _pinned: pinned,
        })
    }

    /// Waits until somebody has unmounted it.
    pub async fn ended(&self) {
        self.server.life().over().await;
    }
}
