//! The sandboxes of a daemon: begun before it has threads, for their helpers are started by it; joined once it has a
//! runtime. A level that the operator allows and this host cannot give is said to be missing; if none is left, the
//! daemon does not start.

use std::path::Path;
use std::sync::Arc;

use super::doctor::lacks_for_full;
use super::exit::{Exit, Failure};
use crate::config::HostConfig;
use crate::sandbox::linux::probe::{Host, closed_to};
use crate::sandbox::linux::profile::Profiles;
use crate::sandbox::linux::{FullConfig, FullSandbox, OwnNamespace};
use crate::sandbox::process::ProcessSandbox;
use crate::sandbox::{Launchers, Level, Limits, Named, Sandbox, SandboxError, Sandboxes};

/// Sandboxes that are begun.
pub(super) struct Prepared {
    full: Option<(Launchers, Profiles)>,
    process: Option<Launchers>,
}

/// Begins every level that some action may use; before any thread exists.
pub(super) fn prepare(host: &HostConfig) -> Result<Prepared, Failure> {
    let mut prepared = Prepared {
        full: None,
        process: None,
    };
    for level in host.levels() {
        let launchers = Launchers::start(level, host.slots);
        let launchers = launchers.map_err(|e| Failure::new(Exit::Software, e))?;
        match level {
            Level::Full => prepared.full = Some((launchers, profiles(host)?)),
            Level::Process => prepared.process = Some(launchers),
        }
    }
    Ok(prepared)
}

/// The profiles, all of which are checked here; those that the configuration names must be there.
fn profiles(host: &HostConfig) -> Result<Profiles, Failure> {
    let profiles = Profiles::load(host.profiles.as_deref());
    let profiles = profiles.map_err(|e| Failure::new(Exit::Config, e))?;
    for name in host.profile_names() {
        if profiles.get(name).is_none() {
            let known: Vec<&str> = profiles.names().collect();
            let text = format!(
                "there is no sandbox profile {name:?}; there are {}",
                known.join(", ")
            );
            return Err(Failure::new(Exit::Config, text));
        }
    }
    Ok(profiles)
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
    text += "boxwright never falls back to a weaker level that was not named; `boxwright doctor` says what to do about it";
    if missing.iter().all(|(level, _)| *level != Level::Process) {
        text += ". Where the users of this worker may log in to its host anyway, --sandbox full,process also allows level \
                 process, which does not hide the host from actions";
    }
    text
}

impl Prepared {
    /// Joins them; within a runtime. `roots` is where input roots are.
    pub(super) async fn join(
        self,
        host: &HostConfig,
        roots: &Path,
        namespace: Option<OwnNamespace>,
    ) -> Result<Sandboxes, Failure> {
        let mut sandboxes = Sandboxes::default();
        let mut missing = Vec::new();
        if let Some((launchers, profiles)) = self.full {
            match full(launchers, profiles, host, roots, namespace).await {
                Ok(sandbox) => sandboxes.full = Some(Arc::new(sandbox)),
                Err(error) => missing.push((Level::Full, why(host, &error).await?)),
            }
        }
        if let Some(launchers) = self.process {
            let sandbox = ProcessSandbox::new(launchers, host.first_uid);
            let sandbox = sandbox.map_err(|e| Failure::new(Exit::Software, e))?;
            match closed(&sandbox, roots)? {
                Some(why) => missing.push((Level::Process, why)),
                None => sandboxes.process = Some(Arc::new(sandbox)),
            }
        }
        if sandboxes.levels().is_empty() {
            return Err(Failure::new(Exit::Config, none_left(&missing)));
        }
        for (level, why) in missing {
            tracing::warn!(
                "this host cannot give sandbox level {}: {why}; actions run at {} where their platform allows it",
                level.name(),
                Named(&sandboxes.levels())
            );
        }
        Ok(sandboxes)
    }
}

/// Why commands at level process, which see the host's paths, could not find their inputs by them: each would end with an exit code
/// that says nothing of it.
fn closed(sandbox: &ProcessSandbox, roots: &Path) -> Result<Option<String>, Failure> {
    let Some(user) = sandbox.owner(0) else {
        return Ok(None);
    };
    let closed = closed_to(roots, user.uid).map_err(|error| {
        let text = format!(
            "cannot look at {} as user {}: {error}",
            roots.display(),
            user.uid
        );
        Failure::new(Exit::Software, text)
    })?;
    Ok(closed.map(|closed| {
        let closed = closed.display();
        format!(
            "the users that its actions run as ({} and others) cannot pass {closed}, on the way to their inputs; chmod o+x {closed}, \
             or name another directory with --state-dir (BOXWRIGHT_STATE_DIR)",
            user.uid
        )
    }))
}

/// What level full lacks here: as the doctor says it if it knows, else what went wrong.
async fn why(host: &HostConfig, error: &SandboxError) -> Result<String, Failure> {
    let (dir, first_uid) = (host.state_dir.clone(), host.first_uid);
    let probed = super::blobs::blocking(move || {
        Host::probe(&dir, first_uid).map_err(|e| Failure::new(Exit::Software, e))
    });
    let lacks = lacks_for_full(&probed.await?);
    Ok(match lacks.is_empty() {
        true => error.to_string(),
        false => lacks.join("; "),
    })
}

async fn full(
    launchers: Launchers,
    profiles: Profiles,
    host: &HostConfig,
    roots: &Path,
    namespace: Option<OwnNamespace>,
) -> Result<FullSandbox, SandboxError> {
    for name in host.profile_names() {
        if let Some(profile) = profiles.get(name) {
            tracing::info!("sandbox profile {name}: {}", profile.hash);
        }
    }
    let config = FullConfig {
        profiles,
        first_uid: host.first_uid,
        roots: roots.to_owned(),
        namespace,
    };
    let sandbox = FullSandbox::new(launchers, config)?;
    sandbox.prepare().await?;
    let users = match sandbox.owner(0) {
        Some(owner) => format!("user {} of this host", owner.uid),
        None => "the daemon's own user, in a user namespace".to_owned(),
    };
    tracing::info!(
        "sandbox level full: actions run as {users}; {}",
        sandbox.limits_in_words()
    );
    let unenforced = sandbox.unenforced(&Limits {
        memory: Some(u64::MAX),
        cpu_milli: Some(u64::MAX),
        pids: Some(u64::MAX),
        ..Limits::default()
    });
    for limit in unenforced {
        tracing::warn!(
            "actions are not limited in {limit}; those that ask for such a limit are refused"
        );
    }
    Ok(sandbox)
}
