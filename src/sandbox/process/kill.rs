//! Ending a command whole: everything it has left is killed and waited for, so that when this returns nothing of it is
//! alive. The launcher is the subreaper of all that a command starts, so "no children left" is the proof.
//!
//! Where commands have a user of their own, one `kill(-1)` as that user hits all of them at once, and no fork can
//! outrun it. Where they share the daemon's user, the tree is read from /proc, stopped, and killed by process
//! groups, again and again until nothing is left; a bomb that starts a session for each process can make that long, but each
//! round leaves it fewer.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{Pid, getpid};

use super::child::kill_user;
use crate::sandbox::slot::orphans::strike;
use crate::sandbox::slot::processes::{Process, descendants, list, user_has_any, user_of};
use crate::sandbox::slot::raw::Stack;
use crate::sandbox::slot::sys::{Reaped, reap};
use crate::sandbox::slot::uids::SlotUser;
use crate::sandbox::slot::wire::WireUsage;

/// How long a sweep waits for processes that were killed to be gone.
const SWEEP_PATIENCE: Duration = Duration::from_secs(10);
/// Between two strikes at the same tree, if it does not shrink by itself.
const STRIKE_AGAIN: Duration = Duration::from_millis(20);

/// Waits for the processes of one command.
#[derive(Debug)]
pub(super) struct Reaper {
    /// The command's own process.
    command: i32,
    /// Its wait status, once it has ended.
    pub(super) status: Option<i32>,
    /// The sum over all that have ended.
    pub(super) usage: WireUsage,
}

impl Reaper {
    pub(super) fn new(command: i32) -> Self {
        Reaper {
            command,
            status: None,
            usage: WireUsage::default(),
        }
    }

    /// Takes in all that have ended; returns whether any process is left.
    pub(super) fn reap(&mut self) -> bool {
        loop {
            match reap() {
                Reaped::Child { pid, status, usage } => {
                    if pid == self.command {
                        self.status = Some(status);
                    }
                    add(&mut self.usage, &usage);
                }
                Reaped::NoneYet => return true,
                Reaped::NoChildren => return false,
            }
        }
    }

    /// SIGTERM to all of the command's session, and SIGCONT, as a stopped process cannot heed it.
    pub(super) fn terminate(&self) {
        let leader = Pid::from_raw(self.command);
        for signal in [Signal::SIGTERM, Signal::SIGCONT] {
            let _ = killpg(leader, signal);
        }
        for process in descendants(getpid().as_raw()) {
            if process.session == self.command && process.group != self.command {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGTERM);
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGCONT);
            }
        }
    }

    /// Kills and waits until nothing is left.
    pub(super) fn kill_all(
        &mut self,
        user: Option<SlotUser>,
        children: &SignalFd,
        stack: &mut Stack,
    ) {
        let by_tree = || strike(|| descendants(getpid().as_raw()));
        let mut struck: Option<Instant> = None;
        while self.reap() {
            if struck.is_none_or(|at| at.elapsed() >= STRIKE_AGAIN) {
                // Whatever goes wrong with the sweep, the tree can still be walked.
                if user.is_none_or(|user| kill_user(user, stack, by_tree) != Ok(true)) {
                    by_tree();
                }
                struck = Some(Instant::now());
            }
            wait_for_signal(children, STRIKE_AGAIN);
        }
    }
}

/// Waits until a child has ended, or the time is over.
fn wait_for_signal(children: &SignalFd, patience: Duration) {
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
    let mut fds = [PollFd::new(children.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, timeout).is_ok_and(|ready| ready > 0) {
        while let Ok(Some(_)) = children.read_signal() {}
    }
}

/// Kills every process of a user, children of ours or not, and waits until none is alive.
pub(super) fn sweep(user: SlotUser, stack: &mut Stack) -> Result<(), Errno> {
    let uid = user.uid;
    let of_user = |process: &Process| user_of(process.pid) == Some((uid, false));
    let one_by_one = || strike(|| list().into_iter().filter(of_user).collect());
    let begun = Instant::now();
    loop {
        match kill_user(user, stack, one_by_one) {
            Ok(false) => return Ok(()),
            // Those that were hit are zombies until their parent waits for them, which may be never.
            Ok(true) if !user_has_any(uid) => return Ok(()),
            Ok(true) | Err(0) => {}
            Err(errno) => return Err(Errno::from_raw(errno)),
        }
        if begun.elapsed() > SWEEP_PATIENCE {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn add(sum: &mut WireUsage, one: &WireUsage) {
    sum.user_us += one.user_us;
    sum.system_us += one.system_us;
    sum.max_rss_kib = sum.max_rss_kib.max(one.max_rss_kib);
    sum.minor_faults += one.minor_faults;
    sum.major_faults += one.major_faults;
    sum.blocks_in += one.blocks_in;
    sum.blocks_out += one.blocks_out;
    sum.voluntary_switches += one.voluntary_switches;
    sum.involuntary_switches += one.involuntary_switches;
}
