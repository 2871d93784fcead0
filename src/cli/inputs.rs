//! Which way of showing input trees a daemon takes: tried out at the start, and said.

use std::path::Path;
use std::sync::Arc;

use super::doctor::NOEXEC_REMEDY;
use super::exit::{Exit, Failure};
use crate::cas::Cas;
use crate::config::{HostConfig, InputStrategy};
use crate::inputs::InputRoots;
use crate::inputs::fuse::{FuseRoots, install_mounter, look_first_in, private_mounts};
use crate::inputs::staged::Staged;
use crate::sandbox::linux::probe::forbids_programs;
use crate::sandbox::linux::{NamespaceError, OwnNamespace};

/// The input roots, on the file system of the local CAS.
pub(super) const DIRECTORY: &str = "inputs";

/// Files and directories of input trees that are kept staged while nobody uses them.
const IDLE_NODES: u64 = 500_000;
/// The helper that mounts, below the state directory.
const HELPERS: &str = "bin";

/// The mounts of this process.
pub(super) enum Mounts {
    /// Its own, as root.
    Root,
    /// Its own, in a user namespace.
    Namespace(OwnNamespace),
    /// Those of the host, which it may not change; and why.
    Host(String),
}

impl Mounts {
    /// The daemon's own user namespace.
    pub(super) fn namespace(&self) -> Option<OwnNamespace> {
        match self {
            Mounts::Namespace(namespace) => Some(*namespace),
            Mounts::Root | Mounts::Host(_) => None,
        }
    }
}

/// Gives the process mounts of its own, if it will need them; before any thread exists.
pub(super) fn own_mounts(host: &HostConfig) -> Result<Mounts, Failure> {
    let helpers = host.state_dir.join(HELPERS);
    let helpers = std::path::absolute(&helpers).unwrap_or(helpers);
    if rustix::process::geteuid().is_root() {
        return Ok(match private_mounts() {
            Ok(()) => {
                look_first_in(&helpers);
                Mounts::Root
            }
            Err(error) => Mounts::Host(format!(
                "this process may not have mounts of its own (CAP_SYS_ADMIN): {error}"
            )),
        });
    }
    if host.inputs == InputStrategy::Staged {
        return Ok(Mounts::Host("inputs are to be staged".into()));
    }
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    if let Err(error) = device {
        return Ok(Mounts::Host(format!(
            "this daemon is not root, and cannot open /dev/fuse: {error}; `boxwright doctor` says what to do"
        )));
    }
    match OwnNamespace::enter() {
        Ok(namespace) => {
            look_first_in(&helpers);
            Ok(Mounts::Namespace(namespace))
        }
        Err(error @ NamespaceError::Refused(_)) => Ok(Mounts::Host(error.to_string())),
        Err(error) => Err(Failure::new(
            Exit::Software,
            format!("{error}; or start with --inputs staged"),
        )),
    }
}

/// What is staged where the mount says noexec cannot be executed, and each such action would end with an exit code that says nothing
/// of it.
fn refuse_noexec(directory: &Path) -> Result<(), Failure> {
    let shown = directory.display();
    match forbids_programs(directory) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Failure::new(
            Exit::Config,
            format!(
                "{shown} is on a file system that is mounted noexec: no program or script of an input tree could be executed \
                 there; {NOEXEC_REMEDY}"
            ),
        )),
        Err(error) => Err(Failure::new(
            Exit::Software,
            format!("cannot ask how the file system of {shown} is mounted: {error}"),
        )),
    }
}

/// The way that is asked for, or the best one that works. Within a runtime; blocks for some milliseconds.
pub(super) fn roots(
    host: &HostConfig,
    cas: &Cas,
    mounts: &Mounts,
) -> Result<Arc<dyn InputRoots>, Failure> {
    let directory = host.state_dir.join(DIRECTORY);
    // On FUSE root alone can execute them all the same: for a mount of the local CAS that nobody else may change.
    if !matches!(mounts, Mounts::Root) {
        refuse_noexec(&host.state_dir)?;
    }
    let show = || FuseRoots::new(cas.clone(), &directory).map_err(|error| error.to_string());
    let fuse = || match mounts {
        Mounts::Host(why) => Err(why.clone()),
        Mounts::Root | Mounts::Namespace(_) => {
            let helpers = host.state_dir.join(HELPERS);
            install_mounter(&helpers)
                .map_err(|error| format!("cannot make {}: {error}", helpers.display()))?;
            show()
        }
    };
    let why = match host.inputs {
        InputStrategy::Staged => None,
        InputStrategy::Auto | InputStrategy::Fuse => match fuse() {
            Ok(roots) => {
                let whose = match mounts {
                    Mounts::Namespace(_) => " in a user namespace of this daemon's own",
                    _ => "",
                };
                tracing::info!(
                    "inputs are shown on a FUSE file system below {}{whose}; files are fetched when they are read",
                    directory.display()
                );
                return Ok(Arc::new(roots));
            }
            Err(why) if host.inputs == InputStrategy::Fuse => {
                let text = format!(
                    "inputs cannot be shown on a file system: {why}; or start with --inputs staged"
                );
                return Err(Failure::new(Exit::Software, text));
            }
            Err(why) => Some(why),
        },
    };
    let below = directory.display();
    let cached = match mounts {
        Mounts::Root => Staged::with_cache(cas.clone(), directory.clone(), IDLE_NODES),
        Mounts::Namespace(_) | Mounts::Host(_) => Staged::new(cas.clone(), directory.clone()),
    };
    let staged = cached.or_else(|error| {
        tracing::warn!("directories that recur are staged each time: {error}");
        Staged::new(cas.clone(), directory.clone())
    });
    let staged = staged.map_err(|error| Failure::new(Exit::Software, error))?;
    refuse_noexec(&directory)?;
    let how = match (rustix::process::geteuid().is_root(), staged.is_cached()) {
        (true, true) => "hard links, directories that recur once only,",
        (true, false) => "hard links",
        (false, _) => "clones or copies",
    };
    match why {
        None => tracing::info!("inputs are staged as {how} below {below}"),
        Some(why) => tracing::warn!(
            "inputs are staged as {how} below {below}, which takes time and fetches every file of a tree first: {why}"
        ),
    }
    Ok(Arc::new(staged))
}
