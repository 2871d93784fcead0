//! What the facts about namespaces mean: they are what level full is made of.

use std::io;

use super::findings::{Finding, State, good, less};
use crate::sandbox::linux::probe::{Attempt, Host, IdMap, Knobs, Step, SubIds};

pub(super) fn user(host: &Host) -> Finding {
    let name = "user namespaces";
    match host.trial.of(Step::User) {
        Attempt::Done => good(name, "can be made"),
        Attempt::Refused(error) => {
            let (what, remedy) = forbidden(error, &host.knobs, host.root);
            less(name, State::Missing, what, remedy)
        }
        Attempt::NotTried => died(name),
    }
}

/// Why no user namespace could be made.
fn forbidden(error: &io::Error, knobs: &Knobs, root: bool) -> (String, String) {
    let refused = |why: &str| format!("cannot be made ({error}): {why}");
    if knobs.max_user_namespaces == Some(0) {
        return (
            refused("user.max_user_namespaces is 0"),
            "sysctl user.max_user_namespaces=65536, and the same in /etc/sysctl.d".to_owned(),
        );
    }
    if knobs.unprivileged_userns_clone == Some(0) && !root {
        return (
            refused("kernel.unprivileged_userns_clone is 0"),
            "sysctl kernel.unprivileged_userns_clone=1, and the same in /etc/sysctl.d".to_owned(),
        );
    }
    if error.raw_os_error() == Some(libc::ENOSPC) {
        return (
            refused("there are as many as user.max_user_namespaces allows here or further up"),
            "raise user.max_user_namespaces where it is low: of this host, or of the container"
                .to_owned(),
        );
    }
    if let Some((what, remedy)) = restricted(knobs) {
        return (refused(&what), remedy);
    }
    (
        refused("the kernel or a filter of system calls forbids it"),
        "in Docker or Podman: --security-opt seccomp=unconfined --security-opt systempaths=unconfined; in a chroot: \
         leave it; else build the kernel with CONFIG_USER_NS"
            .to_owned(),
    )
}

/// What stands in the way where a user namespace can be made and nothing be done in it.
fn restricted(knobs: &Knobs) -> Option<(String, String)> {
    (knobs.apparmor_restrict_userns == Some(1)).then(|| {
        (
            "kernel.apparmor_restrict_unprivileged_userns is 1, and boxwright has no profile"
                .to_owned(),
            "install systemd/apparmor-boxwright as /etc/apparmor.d/boxwright and run \
             apparmor_parser --replace /etc/apparmor.d/boxwright"
                .to_owned(),
        )
    })
}

pub(super) fn ids(host: &Host) -> Finding {
    let name = "user ids";
    let trial = &host.trial;
    match trial.of(Step::Ids) {
        Attempt::Done => {}
        Attempt::NotTried => return died(name),
        Attempt::Refused(error) => {
            let (what, remedy) = refused_ids(host);
            return less(name, State::Missing, format!("{what} ({error})"), remedy);
        }
    }
    let apart = "one for actions, one for what looks after them";
    match &trial.map {
        IdMap::Taken(first) => good(name, format!("{first} and the next: {apart}")),
        IdMap::Subordinate(..) => good(name, format!("our own and a subordinate one: {apart}")),
        IdMap::Single => less(
            name,
            State::Weaker,
            "one only: actions run as the user of the processes that look after them, and only namespaces stand between",
            second_id(host),
        ),
    }
}

fn refused_ids(host: &Host) -> (String, String) {
    if let Some(restricted) = restricted(&host.knobs) {
        return restricted;
    }
    let refused = "a user namespace cannot be given ids".to_owned();
    let remedy = match (host.root, host.other_first_uid) {
        (true, Some(other)) => format!(
            "those of --first-uid do not exist in this container; --first-uid {other} does, or run the worker as another user than root"
        ),
        (true, None) => "give the worker CAP_SETUID and CAP_SETGID and more ids than one (/proc/self/uid_map), or run it as \
                         another user than root"
            .to_owned(),
        (false, _) => "the kernel or a filter of system calls forbids it; see the kernel's log".to_owned(),
    };
    (refused, remedy)
}

/// What it takes to have a second id.
fn second_id(host: &Host) -> String {
    let SubIds {
        uids,
        gids,
        newuidmap,
        newgidmap,
    } = &host.sub_ids;
    let mut wants = Vec::new();
    if uids.is_empty() || gids.is_empty() {
        wants.push("a line USER:100000:65536 for the worker's user in /etc/subuid and /etc/subgid");
    }
    if newuidmap.is_none() || newgidmap.is_none() {
        wants.push("newuidmap and newgidmap, set-uid root (package uidmap or shadow-utils)");
    }
    match &host.trial.more_ids {
        Some(refused) => format!("{refused}; mend what it names"),
        None => format!("it takes {}", wants.join(", and ")),
    }
}

pub(super) fn others(host: &Host) -> Vec<Finding> {
    let trial = &host.trial;
    let line = |name, steps: &[(Step, &str)], fine: &str, otherwise: &str| {
        let mut refused = Vec::new();
        for (step, what) in steps {
            match trial.of(*step) {
                Attempt::Done => {}
                Attempt::Refused(error) => refused.push(format!("{what} ({error})")),
                // What stood in its way has a line of its own.
                Attempt::NotTried => return None,
            }
        }
        if refused.is_empty() {
            return Some(good(name, fine));
        }
        let refused = format!("refused: {}", refused.join(", "));
        let (what, remedy) = match restricted(&host.knobs) {
            Some((what, remedy)) => (format!("{refused}: {what}"), remedy),
            None => (refused, otherwise.to_owned()),
        };
        Some(less(name, State::Missing, what, remedy))
    };
    let lines = [
        line(
            "mounts",
            &[(Step::Mounts, "a namespace of them")],
            "can be private",
            UNSHARE,
        ),
        line(
            "namespaces",
            &[
                (Step::Network, "network"),
                (Step::Pid, "processes"),
                (Step::Ipc, "IPC"),
                (Step::Uts, "host name"),
            ],
            "of network, processes, IPC and host name can be made",
            UNSHARE,
        ),
        line(
            "loopback",
            &[(Step::Loopback, "bringing it up")],
            "an action's own comes up, and connections over it work",
            "in a container let its filter of system calls pass socket and ioctl",
        ),
        line(
            "own /proc",
            &[(Step::Proc, "mounting it")],
            "can be mounted, and shows the action's processes only",
            "something covers parts of this /proc, as Docker does: --security-opt systempaths=unconfined",
        ),
        line(
            "tmpfs",
            &[(Step::Tmpfs, "mounting one")],
            "can be mounted, for /tmp and /dev/shm",
            "in a container let its filter of system calls pass mount",
        ),
        line(
            "seccomp",
            &[(Step::Seccomp, "installing a filter")],
            "filters of system calls can be installed",
            "boot a kernel with CONFIG_SECCOMP_FILTER",
        ),
    ];
    let mut lines: Vec<Finding> = lines.into_iter().flatten().collect();
    // The last step but one is always come to, unless that of mounts was refused.
    let stopped = matches!(trial.of(Step::Mounts), Attempt::Refused(_));
    if !stopped && matches!(trial.of(Step::Pid), Attempt::NotTried) {
        lines.push(died("namespaces"));
    }
    lines
}

/// Of a probe that went away in the middle.
fn died(name: &'static str) -> Finding {
    less(
        name,
        State::Missing,
        "nothing is known, for the probe died",
        "run `boxwright doctor` again, and see the kernel's log if it dies again",
    )
}

const UNSHARE: &str = "boot a kernel that has them, or in a container let its filter of system calls pass unshare and mount";
