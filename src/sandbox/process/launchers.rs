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
use super::launcher::ARGUMENT;
use crate::sandbox::SandboxError;

/// A launcher whose socket was closed kills what runs and exits; one that does not within this time is killed.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// The launchers of this process. Held while one is started and while orphans are looked for, so that a launcher
/// is never taken for an orphan.
pub(super) static LIVE: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Launchers, one per slot, started before the daemon has threads.
#[derive(Debug)]
pub struct Launchers {
    pub(super) executable: Arc<Path>,
    pub(super) started: Vec<LauncherProcess>,
}

impl Launchers {
    /// Starts `slots` launchers (`/proc/self/exe sandbox-launcher`). To be called before any thread exists.
    ///
    /// The daemon becomes the reaper of its descendants' orphans (`PR_SET_CHILD_SUBREAPER`), so that nothing gets away if a
    /// launcher is killed.
    pub fn start(slots: usize) -> Result<Self, SandboxError> {
        Self::start_from(Path::new("/proc/self/exe"), slots)
    }

    /// Like [`Launchers::start`], with an executable that calls [`launcher_main`](super::launcher_main) first thing
    /// when its `argv[1]` is `sandbox-launcher`.
    pub fn start_from(executable: impl Into<PathBuf>, slots: usize) -> Result<Self, SandboxError> {
        let executable: Arc<Path> = executable.into().into();
        prctl::set_child_subreaper(true).map_err(|errno| SandboxError::Setup {
            action: "adopt orphans".into(),
            source: errno.into(),
        })?;
        let started = (0..slots)
            .map(|slot| LauncherProcess::start(&executable, slot))
            .collect::<Result<_, _>>()?;
        Ok(Launchers {
            executable,
            started,
        })
    }

    /// How many there are.
    pub fn slots(&self) -> usize {
        self.started.len()
    }
}

/// A running launcher. Dropped, it is told to end, and waited for.
#[derive(Debug)]
pub(super) struct LauncherProcess {
    /// Taken over by whoever talks to it; to be closed before this is dropped.
    pub(super) socket: Option<OwnedFd>,
    child: Child,
}

impl LauncherProcess {
    pub(super) fn start(executable: &Path, slot: usize) -> Result<LauncherProcess, SandboxError> {
        let fail = |source| SandboxError::Setup {
            action: format!(
                "start the launcher of slot {slot} ({})",
                executable.display()
            ),
            source,
        };
        let mut live = LIVE.lock();
        let (ours, theirs) = channel::pair().map_err(|errno| fail(errno.into()))?;
        // No pre_exec, no uid, no groups: with any of these the standard library would fork.
        let child = Command::new(executable)
            .arg0(format!("boxwright-slot-{slot}"))
            .arg(ARGUMENT)
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
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// For one that does not answer any more.
    pub(super) fn kill(&mut self) {
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
