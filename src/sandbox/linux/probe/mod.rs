//! What this host gives for isolation, found out by doing it: a child of ours, started from our own executable, makes
//! the namespaces and mounts that an action gets, and tells of each step how it went. Reading settings alone is not enough:
//! where AppArmor restricts user namespaces, one can be made, and then nothing can be done in it.
//!
//! Facts are told here; what they mean and what to do is for [`crate::cli`] to say.

mod calls;
mod cgroups;
mod child;
mod fuse;
mod id_map;
mod knobs;
mod passage;
mod state_dir;
mod steps;
mod sub_ids;
mod sys;

use std::io;
use std::path::Path;

pub use calls::{CALLS, Call, missing_calls};
pub use cgroups::{Cgroups, cgroups};
pub use child::child_main;
pub use fuse::{Fuse, fuse};
pub use id_map::IdMap;
pub use knobs::{Knobs, knobs};
pub use passage::closed_to;
pub use state_dir::{StateDir, forbids_programs, state_dir};
pub use steps::{Attempt, Step, Trial, attempt};
pub use sub_ids::{SubIds, sub_ids};
pub use sys::landlock_abi;

/// A probe itself failed: nothing is known of the host.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {source}")]
pub struct ProbeError {
    /// The attempted operation and its object.
    pub action: String,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl ProbeError {
    fn new(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        ProbeError {
            action: action.into(),
            source: source.into(),
        }
    }
}

/// All that there is to know.
#[derive(Debug)]
pub struct Host {
    /// Whether we are root, at least in our own user namespace.
    pub root: bool,
    /// The kernel's release.
    pub kernel: String,
    /// System calls that are needed and that it lacks.
    pub missing_calls: Vec<Call>,
    /// What became of an attempt to do what an action needs.
    pub trial: Trial,
    /// The settings that most often stand in the way.
    pub knobs: Knobs,
    /// FUSE.
    pub fuse: Fuse,
    /// Control groups.
    pub cgroups: Cgroups,
    /// The version of Landlock; `None` if the kernel has none, or it is switched off.
    pub landlock: Option<u32>,
    /// Where the ids of a root daemon do not exist in our user namespace, some that do, for `--first-uid`.
    pub other_first_uid: Option<u32>,
    /// Subordinate ids.
    pub sub_ids: SubIds,
    /// The state directory.
    pub state_dir: StateDir,
}

impl Host {
    /// Probes this host for a daemon with this state directory and, if it is root, these ids for its actions.
    pub fn probe(dir: &Path, first_uid: u32) -> Result<Host, ProbeError> {
        let sub_ids = sub_ids();
        let state_dir = state_dir(dir, first_uid);
        Ok(Host {
            root: nix::unistd::geteuid().is_root(),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            missing_calls: missing_calls(),
            trial: attempt(
                &sub_ids,
                first_uid,
                Some(dir).filter(|_| state_dir.usable()),
            )?,
            knobs: knobs(),
            fuse: fuse(),
            cgroups: cgroups(),
            landlock: landlock_abi(),
            other_first_uid: id_map::other_first_uid(&id_map::own_ids(), first_uid),
            sub_ids,
            state_dir,
        })
    }
}
