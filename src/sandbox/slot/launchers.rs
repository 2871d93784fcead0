//! Starting launchers, and making sure that they end. The daemon never forks: a launcher is a fresh start of the daemon's own
//! executable by `posix_spawn`, first before the daemon has threads, later only to replace one that was killed.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::channel;
use crate::sandbox::{Level, SandboxError};

/// A launcher whose socket was closed kills what runs and exits; one that does not within this time is killed.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// The launchers of this process. Held while one is started and while orphans are looked for, so that a launcher
/// is never taken for an orphan.
pub(in crate::sandbox) static LIVE: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// What a launcher is a start of.
#[derive(Clone, Debug)]
pub(in crate::sandbox) struct LauncherKind {
    /// The program: our own.
    pub(in crate::sandbox) executable: Arc<Path>,
    /// Its hidden first argument, which says for which level it launches.
    pub(in crate::sandbox) argument: &'static str,
}

/// Launchers, one per slot, started before the daemon has threads.
#[derive(Debug)]
pub struct Launchers {
    pub(in crate::sandbox) kind: LauncherKind,
    pub(in crate::sandbox) started: Vec<LauncherProcess>,
}

impl Launchers {
    /// Starts `slots` launchers of a level (`/proc/self/exe` with a hidden argument). To be called before any thread exists.
    ///
    /// The daemon becomes the reaper of its descendants' orphans (`PR_SET_CHILD_SUBREAPER`), so that nothing gets away if a
    /// launcher is killed.
    pub fn start(level: Level, slots: usize) -> Result<Self, SandboxError> {
        Self::start_from("/proc/self/exe", level, slots)
    }

    /// Like [`Launchers::start`], with an executable that calls [`launcher_main`](crate::sandbox::launcher_main) first thing.
    pub fn start_from(
        executable: impl Into<PathBuf>,
        level: Level,
        slots: usize,
    ) -> Result<Self, SandboxError> {
        let kind = LauncherKind {
            executable: executable.into().into(),
            argument: level.launcher_argument(),
        };
        prctl::set_child_subreaper(true).map_err(|errno| SandboxError::Setup {
            action: "adopt orphans".into(),
            source: errno.into(),
        })?;
        let started = (0..slots)
            .map(|slot| LauncherProcess::start(&kind, slot))
            .collect::<Result<_, _>>()?;
        Ok(Launchers { kind, started })
    }

    /// How many there are.
    pub fn slots(&self) -> usize {
        self.started.len()
    }
}

/// A running launcher. Dropped, it is told to end, and waited for.
#[derive(Debug)]
pub(in crate::sandbox) struct LauncherProcess {
    /// Taken over by whoever talks to it; to be closed before this is dropped.
    pub(in crate::sandbox) socket: Option<OwnedFd>,
    child: Child,
}

impl LauncherProcess {
    pub(in crate::sandbox) fn start(
        kind: &LauncherKind,
        slot: usize,
    ) -> Result<LauncherProcess, SandboxError> {
        let fail = |source| SandboxError::Setup {
            action: format!(
                "start the launcher of slot {slot} ({})",
                kind.executable.display()
            ),
            source,
        };
        let mut live = LIVE.lock();
        let (ours, theirs) = channel::pair().map_err(|errno| fail(errno.into()))?;
        // No pre_exec, no uid, no groups: with any of these the standard library would fork.
        let child = Command::new(&*kind.executable)
            .arg0(format!("boxwright-slot-{slot}"))
            .arg(kind.argument)
            .arg(slot.to_string())
            .arg(std::process::id().to_string())
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(fail)?;
        live.insert(child.id() as i32);
        Ok(LauncherProcess {
            socket: Some(ours),
            child,
        })
    }

    /// Its process id.
    pub(in crate::sandbox) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// For one that does not answer any more.
    pub(in crate::sandbox) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    fn exits_within(&self, patience: Duration) -> bool {
        let Some(pid) = Pid::from_raw(self.child.id() as i32) else {
            return false;
        };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return false;
        };
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(
            std::os::fd::AsFd::as_fd(&pidfd),
            PollFlags::POLLIN,
        )];
        matches!(poll(&mut fds, timeout), Ok(ready) if ready > 0)
    }
}

impl Drop for LauncherProcess {
    fn drop(&mut self) {
        self.socket = None;
        if !self.exits_within(EXIT_PATIENCE) {
            self.kill();
        }
        let _ = self.child.wait();
        LIVE.lock().remove(&(self.child.id() as i32));
    }
}
