//! Who the processes of a slot are, inside and outside: the maps of its user namespace, and what to say to an operator whose
//! host allows none.

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use super::set_up::{IdPair, SetUpMessage};

/// Writes the maps of a process in a new user namespace. An error is a sentence for the operator.
pub(super) fn write_maps(pid: i32, told: &SetUpMessage) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| {
        format!(
            "cannot write the {what} of a user namespace: {error}; `boxwright doctor` says what this host lacks"
        )
    };
    if told.map_tools {
        run_tool("newuidmap", pid, &told.uids)?;
        return run_tool("newgidmap", pid, &told.gids);
    }
    let own = format!("/proc/{pid}");
    // Who maps one id only, its own, needs no rights for it if groups stay as they are.
    if told.alone() {
        fs::write(format!("{own}/setgroups"), "deny").map_err(|e| failed("group rule", e))?;
    }
    fs::write(format!("{own}/uid_map"), lines(&told.uids)).map_err(|e| failed("uid map", e))?;
    fs::write(format!("{own}/gid_map"), lines(&told.gids)).map_err(|e| failed("gid map", e))
}

fn lines(pairs: &[IdPair]) -> String {
    let line = |pair: &IdPair| format!("{} {} 1\n", pair.inside, pair.outside);
    pairs.iter().map(line).collect()
}

fn run_tool(tool: &str, pid: i32, pairs: &[IdPair]) -> Result<(), String> {
    let mut command = Command::new(tool);
    command.arg(pid.to_string());
    for pair in pairs {
        command.args([
            pair.inside.to_string(),
            pair.outside.to_string(),
            "1".into(),
        ]);
    }
    let done = command.stdin(Stdio::null()).output();
    match done {
        Err(error) => Err(format!(
            "cannot run {tool}: {error}; install the package uidmap"
        )),
        Ok(done) if !done.status.success() => Err(format!(
            "{tool} failed: {}; /etc/subuid and /etc/subgid must give this user a range",
            String::from_utf8_lossy(&done.stderr).trim()
        )),
        Ok(_) => Ok(()),
    }
}

/// What to say when no namespaces can be made.
pub(super) fn no_namespaces(error: &io::Error) -> String {
    let knob = match error.raw_os_error() {
        Some(libc::ENOSPC) => "the sysctl user.max_user_namespaces is too low",
        Some(libc::EPERM | libc::EACCES) => {
            "the host forbids user namespaces (kernel.unprivileged_userns_clone, AppArmor, or a container's own filter)"
        }
        Some(libc::EINVAL | libc::ENOSYS) => "the kernel has no user namespaces or no clone3",
        _ => "the host has no room for them",
    };
    format!("cannot make namespaces: {error}: {knob}; `boxwright doctor` says what to do")
}

/// What to say when the loopback interface cannot be brought up.
pub(super) fn no_network(error: &io::Error) -> String {
    format!(
        "cannot bring up the loopback interface of a network namespace: {error}; where AppArmor restricts user namespaces, \
         boxwright needs a profile: `boxwright doctor` prints it"
    )
}
