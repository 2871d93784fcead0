//! What a killed launcher leaves behind becomes the daemon's: it is killed and waited for here.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpgrp, getpid, getsid};

use super::launchers::LIVE;
use super::processes::{Process, descendants, list, user_of};

const PATIENCE: Duration = Duration::from_secs(10);

/// Kills and reaps the orphans of killed launchers among the daemon's children: those of the slot's user or, where the slots
/// have none of their own, those of another session than the daemon's. Every command begins a session, and
/// nobody can enter one from outside.
///
/// `ETIMEDOUT` if some do not die.
pub(in crate::sandbox) fn end(uid: Option<u32>) -> Result<(), Errno> {
    let launchers = LIVE.lock();
    let own = getpid();
    let own_session = getsid(None)?.as_raw();
    let orphans = || -> Vec<Process> {
        list()
            .into_iter()
            .filter(|process| process.parent == own.as_raw() && !launchers.contains(&process.pid))
            .filter(|process| match uid {
                Some(uid) => user_of(process.pid).is_some_and(|(user, _)| user == uid),
                None => process.session != own_session,
            })
            .collect()
    };
    let begun = Instant::now();
    loop {
        let found = orphans();
        if found.is_empty() {
            return Ok(());
        }
        if found.iter().any(|process| !process.zombie) {
            strike(|| {
                let mut tree: Vec<_> = orphans().into_iter().filter(|p| !p.zombie).collect();
                let below: Vec<_> = tree.iter().flat_map(|p| descendants(p.pid)).collect();
                tree.extend(below);
                tree
            });
        }
        for process in found {
            let _ = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
        }
        if begun.elapsed() > PATIENCE {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Stops a whole tree, as `scan` finds it, then kills it. A stopped process cannot fork, and it still takes a place in
/// the table that limits a bomb.
pub(in crate::sandbox) fn strike(scan: impl Fn() -> Vec<Process>) {
    let mut stopped = HashSet::new();
    let mut groups = HashSet::new();
    for _ in 0..100 {
        let before = stopped.len();
        for process in scan() {
            if stopped.insert(process.pid) {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGSTOP);
            }
            groups.insert(process.group);
        }
        if stopped.len() == before {
            break;
        }
    }
    // A group lies within one session, and the command began one of its own: no stranger is in these groups.
    let own_group = getpgrp().as_raw();
    for group in groups {
        if group > 1 && group != own_group {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
    for pid in stopped {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}
