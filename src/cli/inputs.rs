//! Which way of showing input trees a daemon takes: tried out at the start, and said.

use std::sync::Arc;

use super::exit::{Exit, Failure};
use crate::cas::Cas;
use crate::config::{HostConfig, InputStrategy};
use crate::inputs::InputRoots;
use crate::inputs::fuse::{FuseRoots, private_mounts};
use crate::inputs::staged::Staged;

/// The input roots, on the file system of the local CAS.
pub(super) const DIRECTORY: &str = "inputs";

/// Gives the process mounts of its own, if it will need them; before any thread exists. The error says why it has none.
pub(super) fn own_mounts(strategy: InputStrategy) -> Result<(), String> {
    if strategy == InputStrategy::Staged {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        return Err("this daemon does not run as root".into());
    }
    private_mounts().map_err(|error| {
        format!("this process may not have mounts of its own (CAP_SYS_ADMIN): {error}")
    })
}

/// The way that is asked for, or the best one that works. Within a runtime; blocks for some milliseconds.
pub(super) fn roots(
    host: &HostConfig,
    cas: &Cas,
    no_mounts: Option<String>,
) -> Result<Arc<dyn InputRoots>, Failure> {
    let directory = host.state_dir.join(DIRECTORY);
    let fuse = || match no_mounts {
        Some(why) => Err(why),
        None => FuseRoots::new(cas.clone(), &directory).map_err(|error| error.to_string()),
    };
    let why = match host.inputs {
        InputStrategy::Staged => None,
        InputStrategy::Auto | InputStrategy::Fuse => match fuse() {
            Ok(roots) => {
                tracing::info!(
                    "inputs are shown on a FUSE file system below {}; files are fetched when they are read",
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
    let staged = Staged::new(cas.clone(), directory.clone());
    let staged = staged.map_err(|error| Failure::new(Exit::Software, error))?;
    let below = directory.display();
    match why {
        None => tracing::info!("inputs are staged as links, clones or copies below {below}"),
        Some(why) => tracing::warn!(
            "inputs are staged as links, clones or copies below {below}, which takes time and fetches every file of \
             a tree first: {why}"
        ),
    }
    Ok(Arc::new(staged))
}
