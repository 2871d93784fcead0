//! The sandboxes of a daemon: begun before it has threads, for their helpers are started by it; joined once it has a
//! runtime. A level that the operator allows and this host cannot give is said to be missing; if none is left, the
//! daemon does not start.

use std::sync::Arc;

use super::doctor::lacks_for_full;
use super::exit::{Exit, Failure};
use crate::config::HostConfig;
use crate::sandbox::linux::probe::Host;
use crate::sandbox::process::{Launchers, ProcessSandbox};
use crate::sandbox::{Level, Named, Sandboxes};

/// Sandboxes that are begun.
pub(super) struct Prepared {
    process: Option<Launchers>,
}

/// Begins every level that some action may use; before any thread exists.
pub(super) fn prepare(host: &HostConfig) -> Result<Prepared, Failure> {
    let mut prepared = Prepared { process: None };
    let mut missing = Vec::new();
    let levels = host.levels();
    for level in &levels {
        match level {
            Level::Full => missing.push((Level::Full, full_is_missing(host)?)),
            Level::Process => {
                let launchers = Launchers::start(host.slots);
                prepared.process = Some(launchers.map_err(|e| Failure::new(Exit::Software, e))?);
            }
        }
    }
    if prepared.process.is_none() {
        return Err(Failure::new(Exit::Config, none_left(&missing)));
    }
    for (level, why) in missing {
        tracing::warn!(
            "this host cannot give sandbox level {}: {why}; actions run at {} where their platform allows it",
            level.name(),
            Named(&[Level::Process])
        );
    }
    Ok(prepared)
}

/// What a daemon says that does not start.
fn none_left(missing: &[(Level, String)]) -> String {
    let mut text = String::new();
    for (level, why) in missing {
        text += &format!(
            "this host cannot give sandbox level {}: {why}\n",
            level.name()
        );
    }
    text + "boxwright never falls back to a weaker level that was not named; `boxwright doctor` says what to do about it. \
            Where the users of this worker may log in to its host anyway, --sandbox full,process also allows level process, which \
            does not hide the host from actions"
}

/// What level full lacks here.
fn full_is_missing(host: &HostConfig) -> Result<String, Failure> {
    let probed = Host::probe(&host.state_dir, host.first_uid)
        .map_err(|e| Failure::new(Exit::Software, e))?;
    let lacks = lacks_for_full(&probed);
    Ok(match lacks.is_empty() {
        true => "this build has no such level".to_owned(),
        false => lacks.join("; "),
    })
}

impl Prepared {
    /// Joins them; within a runtime.
    pub(super) fn join(self, host: &HostConfig) -> Result<Sandboxes, Failure> {
        let mut sandboxes = Sandboxes::default();
        if let Some(launchers) = self.process {
            let sandbox = ProcessSandbox::new(launchers, host.first_uid);
            let sandbox = sandbox.map_err(|e| Failure::new(Exit::Software, e))?;
            sandboxes.process = Some(Arc::new(sandbox));
        }
        Ok(sandboxes)
    }
}
