//! One tree, mounted for people.

use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::content::Contents;
use super::kernel::Kernel;
use super::nodes::Nodes;
use super::server::Server;
use super::subtree::Subtrees;
use super::{InputError, mounts, own};
use crate::cas::Cas;
use crate::tree::Tree;

/// A tree on a read-only file system; a file is fetched when it is read, again if the store has let go of it. Dropped, it is
/// unmounted.
pub struct TreeMount {
    server: Server,
}

impl TreeMount {
    /// Mounts a whole tree at `dir`, an empty directory. Within a runtime; blocks for some milliseconds.
    pub fn new(cas: Cas, tree: &Tree, dir: &Path) -> Result<Self, InputError> {
        let root = Subtrees::new().of(tree, 0).ok_or_else(|| {
            mounts::failed("find a directory of", tree.root)(rustix::io::Errno::NOENT)
        })?;
        let contents = Contents::for_people(cas, Handle::current());
        let kernel = Kernel::new(Arc::new(Nodes::of(root, own())), Arc::new(contents));
        let server = Server::start(kernel, dir).map_err(super::cannot_mount(dir))?;
        Ok(TreeMount { server })
    }

    /// Waits until somebody has unmounted it.
    pub async fn ended(&self) {
        self.server.life().over().await;
    }
}
