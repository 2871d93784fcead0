//! What can go wrong with a control group.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A control group did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// An operation on a directory or file of the cgroup file system failed.
    #[error("cgroup: cannot {action} {path}: {source}")]
    File {
        /// The attempted operation, such as `write "max" to`.
        action: String,
        /// Its object.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel wrote something else than it documents.
    #[error("cgroup: {path} holds no {wanted}: {text:?}")]
    Nonsense {
        /// The file.
        path: PathBuf,
        /// What was looked for in it.
        wanted: &'static str,
        /// The beginning of what was there.
        text: String,
    },
    /// Killed processes did not go away.
    #[error("cgroup: processes in {path} are still there {after:?} after they were killed")]
    Survivors {
        /// The group.
        path: PathBuf,
        /// How long was waited.
        after: Duration,
    },
}

impl CgroupError {
    /// What the system said, if it was the system that refused.
    pub(super) fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            CgroupError::File { source, .. } => Some(source.kind()),
            _ => None,
        }
    }
}

/// Names the attempted operation and its object.
pub(super) fn failed(
    action: impl Into<String>,
    path: &Path,
) -> impl FnOnce(io::Error) -> CgroupError {
    move |source| CgroupError::File {
        action: action.into(),
        path: path.to_owned(),
        source,
    }
}
