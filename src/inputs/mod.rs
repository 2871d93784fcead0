//! Input roots made visible. [`InputRoots`] is the door; [`staged::Staged`] the plainest way
//! through it: real files in a directory per action.

pub mod staged;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::OwnedMutexGuard;

use crate::cas::CasError;
use crate::config::Owner;
use crate::reapi::status::MissingBlob;
use crate::tree::Tree;

/// What to make visible.
#[derive(Clone, Debug)]
pub struct StageRequest {
    /// A name for the root that is unique in this process and safe as a file name.
    pub name: String,
    /// The tree.
    pub tree: Arc<Tree>,
    /// The directories that must exist before the command starts, relative to the root and clean (no `.`, `..` or empty
    /// segments): parents of outputs, the working directory.
    pub directories: Vec<String>,
    /// Who the command runs as; `None` if it runs as the daemon's own user.
    pub owner: Option<Owner>,
    /// Kept until nothing of the root is left on the disk, whatever becomes of the call: who waits for the slot's
    /// last root to go waits for this.
    pub hold: Hold,
}

/// A lock that an input root keeps while it exists; `None` if nobody waits.
pub type Hold = Option<Arc<OwnedMutexGuard<()>>>;

/// Why an input root cannot be made visible.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// Input files that nobody has; all of them, each with its path.
    #[error("{} input files are not in the CAS, the first is {}", .0.len(), .0[0].what)]
    Missing(Vec<MissingBlob>),
    /// A directory that must exist is a file or a link in the tree.
    #[error("cannot make directory {path:?} in the input root: {why}")]
    Directory {
        /// The directory.
        path: String,
        /// What stands in its way.
        why: String,
    },
    /// A system call failed.
    #[error("cannot {action} {object} while staging the input root: {source}")]
    Disk {
        /// The attempted operation.
        action: &'static str,
        /// The file.
        object: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The CAS failed.
    #[error(transparent)]
    Cas(#[from] CasError),
}

/// An input root on display. Dropped without `remove`, it is removed in the background.
#[async_trait]
pub trait StagedRoot: Send + Sync {
    /// Where it is on the host.
    fn path(&self) -> &Path;
    /// Takes it down.
    async fn remove(self: Box<Self>) -> Result<(), InputError>;
}

/// A way of making input roots visible.
#[async_trait]
pub trait InputRoots: Send + Sync {
    /// What to call it in logs and worker properties.
    fn name(&self) -> &'static str;
    /// Makes the tree visible. When this returns, every file can be read.
    async fn stage(&self, request: StageRequest) -> Result<Box<dyn StagedRoot>, InputError>;
}
