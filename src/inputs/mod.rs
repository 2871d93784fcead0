//! Input roots made visible. [`InputRoots`] is the door; [`fuse::FuseRoots`] the fastest way through it, on Linux with
//! root; [`staged::Staged`] the plainest: real files in a directory per action.

pub mod fuse;
pub mod report;
pub mod staged;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OwnedMutexGuard;

use crate::cas::CasError;
use crate::config::Owner;
use crate::reapi::Digest;
use crate::reapi::status::MissingBlob;
use crate::tree::{Tree, quote};
pub use report::Used;

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
    /// The declared outputs, just as clean: they, and the directories above them, can be written and replaced.
    pub outputs: Vec<String>,
    /// Who the command runs as; `None` if it runs as the daemon's own user.
    pub owner: Option<Owner>,
    /// What kind of command it is, the most particular kind first: commands of one kind are expected to read much
    /// the same. Empty if nothing is known.
    pub shapes: Vec<u64>,
    /// Whether the command may write beside all inputs. If not, directories without outputs may be read-only; which are depends on nothing
    /// but this request.
    pub writable: bool,
    /// Whether somebody wants to know what the command does with its inputs; it may be slower then.
    pub watched: bool,
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
    /// The command read a file that could not be had.
    #[error("the command could not read input file {path:?}: {why}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why the CAS did not give it.
        why: Arc<CasError>,
    },
    /// What shows inputs is there no more, and whoever used it was told so by errors.
    #[error(
        "the file system of inputs has ended under those who used it; restart the daemon if it does not end by itself"
    )]
    Ended,
    /// The CAS failed.
    #[error(transparent)]
    Cas(#[from] CasError),
}

/// An input root that is an overlay: for whoever collects outputs out of it.
#[derive(Clone, Debug)]
pub struct Beneath {
    /// What the action made or changed, as overlayfs keeps it.
    pub upper: PathBuf,
    /// What is there otherwise.
    pub tree: Arc<Tree>,
}

/// Says how long readers have waited so far.
pub type Waited = Arc<dyn Fn() -> Duration + Send + Sync>;

/// An input root on display. Dropped without `remove`, it is removed in the background.
#[async_trait]
pub trait StagedRoot: Send + Sync {
    /// Where it is on the host, for the daemon and its children.
    fn path(&self) -> &Path;
    /// What it is made of, if what the action made is kept apart from its inputs.
    fn beneath(&self) -> Option<Beneath> {
        None
    }
    /// What went wrong with inputs while the command ran, which was told of it by errors at most: its end means nothing
    /// then.
    fn trouble(&self) -> Option<InputError> {
        None
    }
    /// Says how long inputs that were not local yet have kept readers waiting so far; `None` if they all were.
    fn waited(&self) -> Option<Waited> {
        None
    }
    /// What the command has done with its inputs; `None` if nobody wanted to know, or if it is not to be known.
    fn used(&self) -> Option<Used> {
        None
    }
    /// Takes it down.
    async fn remove(self: Box<Self>) -> Result<(), InputError>;
}

/// A way of making input roots visible.
#[async_trait]
pub trait InputRoots: Send + Sync {
    /// What to call it in logs and worker properties.
    fn name(&self) -> &'static str;
    /// Whether a file is fetched only when it is read: then not all inputs of an action need be in the store at the same time.
    fn lazy(&self) -> bool;
    /// Makes the tree visible. When this returns, every file is there to be read; reading it may mean to fetch it first.
    async fn stage(&self, request: StageRequest) -> Result<Box<dyn StagedRoot>, InputError>;
    /// Waits until no input root can be shown any more, and says why; for ever where that cannot be.
    async fn lost(&self) -> String {
        std::future::pending().await
    }
}

/// Every missing blob with a path under which the tree names it.
pub(crate) fn named(tree: &Tree, digests: Vec<Digest>) -> Vec<MissingBlob> {
    let paths = tree.paths_of(&digests);
    let what = |digest| match paths.get(&digest) {
        Some(path) => format!("input file {}", quote::path(path)),
        None => "an input file".to_owned(),
    };
    (digests.into_iter())
        .map(|digest| MissingBlob {
            digest,
            what: what(digest),
        })
        .collect()
}

/// Disk work, on a thread for it.
async fn blocking<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, InputError> + Send + 'static,
) -> Result<T, InputError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => Err(InputError::Disk {
                action,
                object: "an input root".to_owned(),
                source: std::io::Error::other(cancelled),
            }),
        },
    }
}

/// Disk work of a moment, on the thread that asks for it where it may wait: waking another one and being woken by it would take
/// as long as the work. The runtime's other tasks go on without this thread.
async fn at_once<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, InputError> + Send + 'static,
) -> Result<T, InputError> {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => blocking(action, work).await,
    }
}

/// Removes an input root that nobody waits for.
fn in_background(remove: impl FnOnce() -> Result<(), InputError> + Send + 'static) {
    let work = move || {
        if let Err(error) = remove() {
            tracing::warn!("an input root stays behind until the next start: {error}");
        }
    };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(work)),
        Err(_) => {
            let thread = std::thread::Builder::new().name("unstage".to_owned());
            if let Err(error) = thread.spawn(work) {
                tracing::warn!("an input root stays behind until the next start: {error}");
            }
        }
    }
}
