//! Collecting what a command left behind, after its last process is dead: declared paths are
//! opened beneath the root without following links, hashed, and moved into the local store.
//!
//! The tree is taken to be hostile even so: no link in it is followed, no pipe or device is opened, no mount
//! entered, and sizes are bounded before anything is read. Files are taken from a directory by one listing, however many declared outputs
//! lie in it, because a file that the store has taken over is no longer there to be found again.

mod counted;
mod describe;
mod look;
mod names;
mod open;
mod overlay;
mod properties;
mod source;
mod take;
mod walk;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;

use tokio_util::sync::CancellationToken;

use crate::cas::{CasError, Held, LocalStore};
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};
use crate::tree::{Tree, quote};

/// What kind of thing a declared output must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputKind {
    /// Whatever is there (`output_paths`).
    Any,
    /// A file or a link (`output_files`).
    File,
    /// A directory or a link (`output_directories`).
    Directory,
}

/// One declared output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputPath {
    /// As the Command has it: the result names it by this text.
    pub declared: String,
    /// Where that is below the root: clean, without `..`; empty for the root itself.
    pub within_root: String,
    /// What it may be.
    pub kind: OutputKind,
}

/// What to collect, and how to describe it.
#[derive(Clone, Debug)]
pub struct CollectRequest {
    /// The input root on the host; with `beneath`, only what the command made or changed, as overlayfs keeps it.
    pub root: PathBuf,
    /// What is there otherwise: the tree that `root` lies over. What comes from it is neither read nor hashed.
    pub beneath: Option<Arc<Tree>>,
    /// Where the overlay of both is mounted, which becomes read-only. Where that cannot be, files are copied out of `root` and not
    /// moved: through the overlay they can still be written, whatever their owner and mode are.
    pub overlay: Option<PathBuf>,
    /// The declared outputs.
    pub outputs: Vec<OutputPath>,
    /// How directories are described.
    pub format: re::command::OutputDirectoryFormat,
    /// The node properties to report: `mtime` and `unix_mode` are known, others are ignored.
    pub node_properties: Vec<String>,
    /// The function of all digests.
    pub function: DigestFunction,
    /// Bounds.
    pub limits: OutputLimits,
    /// Stops the work, which takes as long as the command's outputs are large.
    pub cancel: CancellationToken,
}

/// How much a command may leave behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputLimits {
    /// Files, directories and links in all.
    pub nodes: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// Directories beneath one another.
    pub depth: u32,
}

impl Default for OutputLimits {
    fn default() -> Self {
        OutputLimits {
            nodes: 1_000_000,
            bytes: 1 << 38,
            depth: 256,
        }
    }
}

/// What was collected: the output fields of an ActionResult, and every blob that they need.
#[derive(Debug, Default)]
pub struct Collected {
    /// Only `output_files`, `output_symlinks`, `output_file_symlinks`, `output_directories` and
    /// `output_directory_symlinks` are set, each sorted by path.
    pub result: re::ActionResult,
    /// All blobs, now in the local store.
    pub blobs: Vec<Digest>,
    /// Keeps them there.
    pub pins: Vec<crate::cas::Pins>,
    /// Pipes, sockets and devices that were left out of output directories, each with its path and what it is.
    pub left_out: Vec<String>,
}

/// Why outputs were refused or lost.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The command left something that cannot be an output; its fault.
    #[error("output {path:?} {problem}")]
    Refused {
        /// The declared path, or the path below it.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The command left more than this worker takes; its fault, but not everywhere.
    #[error("output {path:?} {problem}")]
    Limit {
        /// The declared path, or the path below it.
        path: String,
        /// Which bound it exceeds.
        problem: String,
    },
    /// The request's `cancel` was set.
    #[error("collecting the outputs was cancelled")]
    Cancelled,
    /// A system call failed; ours.
    #[error("cannot {action} output {path:?}: {source}")]
    Disk {
        /// The attempted operation.
        action: &'static str,
        /// The path within the root.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The local store failed; ours.
    #[error(transparent)]
    Cas(#[from] CasError),
}

/// Collects the outputs; blocks. Declared outputs that do not exist are left out, as REAPI has it.
pub fn collect(
    store: &Arc<LocalStore>,
    request: &CollectRequest,
) -> Result<Collected, OutputError> {
    collect_and_hold(store, request, &mut Held::nothing())
}

/// Like [`collect`], and holds the content of small files for their upload.
pub fn collect_and_hold(
    store: &Arc<LocalStore>,
    request: &CollectRequest,
    held: &mut Held,
) -> Result<Collected, OutputError> {
    let mut walk = walk::Walk::new(store, request, held)?;
    let there = look::look(&walk, &request.outputs)?;
    // Directories first, the outer ones first of all: what is below one is then found in its listing.
    let mut nodes = HashMap::with_capacity(there.len());
    for (path, thing) in &there {
        if matches!(thing, look::Thing::Directory) {
            nodes.insert(*path, walk.directory(path)?);
        }
    }
    for (path, thing) in &there {
        match thing {
            look::Thing::Directory => {}
            look::Thing::File(stat) => {
                nodes.insert(*path, walk.file(path, stat.as_deref())?);
            }
            look::Thing::Given => {
                nodes.insert(*path, walk.untouched(path)?);
            }
            look::Thing::Symlink(link) => {
                nodes.insert(*path, walk::Node::Symlink(link.clone()));
            }
        }
    }
    let (found, taken) = walk.finish()?;
    describe::describe(store, request, &nodes, &found, taken)
}

fn beyond(path: &str, problem: String) -> OutputError {
    OutputError::Limit {
        path: quote::path(path),
        problem,
    }
}

fn refused(path: &str, problem: impl Into<String>) -> OutputError {
    OutputError::Refused {
        path: quote::path(path),
        problem: problem.into(),
    }
}

fn failed(action: &'static str, path: &str) -> impl FnOnce(Errno) -> OutputError {
    move |error| OutputError::Disk {
        action,
        path: quote::path(path),
        source: error.into(),
    }
}

fn join(parent: &str, name: &str) -> String {
    match parent {
        "" => name.to_owned(),
        parent => format!("{parent}/{name}"),
    }
}
