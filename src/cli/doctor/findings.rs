//! What the facts of [`probe`] mean for a worker, and what to do about them.

use std::io;

use super::namespaces;
use crate::config::units::rough_size;
use crate::sandbox::linux::probe::{Attempt, Cgroups, Host, Step};

/// How good it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// As it should be.
    Good,
    /// Level full works without, and something is lost.
    Weaker,
    /// Level full does not work without.
    Missing,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            State::Good => "good",
            State::Weaker => "weaker",
            State::Missing => "missing",
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) name: &'static str,
    pub(super) state: State,
    /// What there is, or is not.
    pub(super) what: String,
    /// What to do about it.
    pub(super) remedy: Option<String>,
}

pub(super) fn good(name: &'static str, what: impl Into<String>) -> Finding {
    let what = what.into();
    Finding {
        name,
        state: State::Good,
        what,
        remedy: None,
    }
}

pub(super) fn less(
    name: &'static str,
    state: State,
    what: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding {
        name,
        state,
        what: what.into(),
        remedy: Some(remedy.into()),
    }
}

/// All of them, what everything else rests on first.
pub(super) fn findings(host: &Host) -> Vec<Finding> {
    let mut found = vec![kernel(host), namespaces::user(host)];
    if host.trial.can(Step::User) {
        found.push(namespaces::ids(host));
    }
    if host.trial.can(Step::Ids) {
        found.extend(namespaces::others(host));
        found.extend(overlay(host));
    }
    found.extend([
        fuse(host),
        cgroups(&host.cgroups),
        landlock(host),
        state_dir(host),
    ]);
    found
}

/// What level full lacks, a line each; empty if nothing. The state directory is the daemon's own concern.
pub(in crate::cli) fn lacks_for_full(host: &Host) -> Vec<String> {
    findings(host)
        .into_iter()
        .filter(|finding| finding.state == State::Missing && finding.name != STATE_DIR)
        .map(|finding| match finding.remedy {
            Some(remedy) => format!("{}: {}: {remedy}", finding.name, finding.what),
            None => format!("{}: {}", finding.name, finding.what),
        })
        .collect()
}

/// What to do where programs cannot be executed.
pub(in crate::cli) const NOEXEC_REMEDY: &str =
    "mount it without noexec, or name a directory on another file system with --state-dir";

/// The name of the line about the state directory.
const STATE_DIR: &str = "state directory";

fn kernel(host: &Host) -> Finding {
    let name = "kernel";
    if host.missing_calls.is_empty() {
        return good(
            name,
            format!("{} has the system calls that are needed", host.kernel),
        );
    }
    let lacking: Vec<String> = (host.missing_calls.iter())
        .map(|call| format!("{} (Linux {})", call.name, call.since))
        .collect();
    less(
        name,
        State::Missing,
        format!("{} lacks {}", host.kernel, lacking.join(", ")),
        "boot a newer kernel, or in a container let its filter of system calls pass them",
    )
}

/// `None` if something else stood in the way.
fn overlay(host: &Host) -> Option<Finding> {
    let name = "overlayfs";
    let lost = "inputs are staged as links or copies instead";
    let state = match host.trial.of(Step::OverlayOnState) {
        Attempt::Done => {
            let kind = &host.state_dir.kind;
            return Some(good(
                name,
                format!("works with its upper layer in the state directory ({kind})"),
            ));
        }
        Attempt::Refused(error) => Some(error),
        Attempt::NotTried => None,
    };
    Some(match (host.trial.of(Step::Overlay), state) {
        (Attempt::Done, None) => good(name, "works in memory; the state directory was not tried"),
        (Attempt::Done, Some(error)) => less(
            name,
            State::Weaker,
            format!(
                "works in memory, not in the state directory ({}: {error}); {lost}",
                host.state_dir.kind
            ),
            "put the state directory on ext4, xfs or btrfs, where other users can pass to it",
        ),
        (Attempt::Refused(error), _) => less(
            name,
            State::Weaker,
            format!("cannot be mounted in a user namespace ({error}); {lost}"),
            "boot Linux 5.11 or newer, and load the module: modprobe overlay",
        ),
        (Attempt::NotTried, _) => return None,
    })
}

/// The root daemon mounts by itself, others in a user namespace of their own.
fn fuse(host: &Host) -> Finding {
    let name = "FUSE";
    let lost = match host.root {
        true => "inputs are staged as hard links instead",
        false => "inputs are cloned or copied instead",
    };
    if let Err(error) = &host.fuse.device {
        let remedy = match (error.kind(), host.fuse.mode) {
            (io::ErrorKind::NotFound, _) => {
                "modprobe fuse; in a container: --device /dev/fuse".to_owned()
            }
            (_, Some(mode)) => format!("its mode is {mode:03o}: chmod 666 /dev/fuse, as udev does"),
            (_, None) => "let the worker open it".to_owned(),
        };
        let what = format!("/dev/fuse cannot be opened ({error}); {lost}");
        return less(name, State::Weaker, what, remedy);
    }
    if host.root {
        return good(name, "root can open /dev/fuse: inputs are shown on it");
    }
    match host.trial.of(Step::Fuse) {
        Attempt::Done => good(
            name,
            "can be mounted in a user namespace of the daemon's own: inputs are shown on it",
        ),
        Attempt::Refused(error) => less(
            name,
            State::Weaker,
            format!("cannot be mounted in a user namespace ({error}); {lost}"),
            "boot Linux 4.18 or newer",
        ),
        Attempt::NotTried => less(
            name,
            State::Weaker,
            format!("cannot be mounted without namespaces; {lost}"),
            "see the line `user namespaces`: what it lacks is lacking here",
        ),
    }
}

fn cgroups(found: &Cgroups) -> Finding {
    let name = "cgroups";
    let lost = "memory and processors of an action are not limited, its processes by an rlimit";
    match found {
        Cgroups::V2 {
            delegated: true,
            missing,
            group,
        } if missing.is_empty() => good(
            name,
            format!("version 2, {} is ours to divide", group.display()),
        ),
        Cgroups::V2 {
            delegated: false, ..
        } => less(
            name,
            State::Weaker,
            format!("version 2, not delegated: {lost}"),
            "start the worker with Delegate=yes, as systemd/boxwright-worker.service does",
        ),
        Cgroups::V2 { missing, .. } => less(
            name,
            State::Weaker,
            format!("version 2, without {}: {lost}", missing.join(", ")),
            "delegate them: Delegate=yes, or write +memory +pids +cpu to cgroup.subtree_control further up",
        ),
        Cgroups::V1 { missing } if missing.is_empty() => {
            good(name, "version 1, with memory, pids and cpu")
        }
        Cgroups::V1 { missing } => less(
            name,
            State::Weaker,
            format!("version 1, without {}: {lost}", missing.join(", ")),
            "run the worker as root, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
        Cgroups::None => less(
            name,
            State::Weaker,
            format!("none are mounted: {lost}"),
            "mount -t cgroup2 none /sys/fs/cgroup; in a container: --cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup",
        ),
    }
}

fn landlock(host: &Host) -> Finding {
    let name = "Landlock";
    match host.landlock {
        Some(version @ 1..=3) => less(
            name,
            State::Weaker,
            format!("version {version}: no rules for the network, which 4 has (Linux 6.7)"),
            "boot a newer kernel if you want them; namespaces stand in front",
        ),
        Some(version @ 4..=5) => less(
            name,
            State::Weaker,
            format!(
                "version {version}: an action with network=on can reach abstract sockets of the host's programs, which 6 forbids"
            ),
            "boot Linux 6.12 or newer, or offer no network=on; without a network nothing is lost",
        ),
        Some(version) => good(name, format!("version {version}")),
        None => less(
            name,
            State::Weaker,
            "is not there; what an action may open rests on its mounts alone",
            "boot Linux 5.13 or newer with landlock in lsm= (/sys/kernel/security/lsm lists what is active)",
        ),
    }
}

fn state_dir(host: &Host) -> Finding {
    let name = STATE_DIR;
    let dir = &host.state_dir;
    let path = dir.nearest.display();
    if let Err(error) = &dir.writable {
        let what = match dir.exists {
            true => format!("{path} cannot be written ({error})"),
            false => format!("it is not there, and cannot be made in {path} ({error})"),
        };
        return less(
            name,
            State::Missing,
            what,
            "make it, and give it to the user that the worker runs as; or name another one with --state-dir",
        );
    }
    if dir.noexec {
        // Root shows its inputs on a file system of its own making, which is not concerned.
        let staged = !host.root || host.fuse.device.is_err();
        let (state, who) = match staged {
            true => (State::Missing, "a worker does not start there"),
            false => (
                State::Weaker,
                "a worker with --inputs staged does not start there",
            ),
        };
        let what = format!(
            "{path} is on a file system that is mounted noexec: no program of an input tree could be executed, so {who}"
        );
        return less(name, state, what, NOEXEC_REMEDY);
    }
    if let Some(closed) = dir.closed_above.as_ref().filter(|_| host.root) {
        let what = format!(
            "{} lets no other user pass, as actions at level process and overlays must: a worker cannot give level process there",
            closed.display()
        );
        return less(
            name,
            State::Weaker,
            what,
            format!("chmod o+x {}", closed.display()),
        );
    }
    if !dir.exists {
        return good(
            name,
            format!(
                "will be made below {path} ({}, {} free)",
                dir.kind,
                rough_size(dir.free)
            ),
        );
    }
    let clones = match dir.reflinks {
        true => "files can be cloned",
        false => "files cannot be cloned, only linked or copied",
    };
    good(
        name,
        format!(
            "{path} ({}, {} free; {clones})",
            dir.kind,
            rough_size(dir.free)
        ),
    )
}

#[cfg(test)]
mod tests;
