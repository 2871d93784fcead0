//! The lowest level: a process in a session of its own, under a user of its own where the daemon may switch, and nothing
//! more. It sees the host's files, network and processes.
//!
//! The daemon never forks. Each slot has a *launcher* ([`Launchers`]), a small single-threaded process that was started
//! before the daemon had threads. A run is one message to it (`wire`, `request`); the launcher starts the command
//! (`launcher`, `child`), waits, kills what is left (`kill`) and answers with one report. Meanwhile the daemon
//! reads the command's output and watches the time (`run`, `streams`). If a launcher is killed, what it leaves is killed
//! too and another is started (`seat`, `orphans`). If the daemon is killed, the launchers end their commands and
//! themselves.

mod channel;
mod child;
mod kill;
mod launcher;
mod launchers;
mod lookup;
mod orphans;
mod processes;
mod request;
mod run;
mod seat;
mod spill;
mod streams;
mod sys;
mod uids;
mod wire;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

pub use launcher::launcher_main;
pub use launchers::Launchers;
pub use uids::UidRange;

use super::{CommandSpec, Level, Outcome, Sandbox, SandboxError};
use crate::config::Owner;
use seat::Seat;

/// Runs commands through launchers.
#[derive(Debug)]
pub struct ProcessSandbox {
    /// The lock is held for a whole run: a slot runs one command at a time.
    seats: Vec<Mutex<Seat>>,
    /// Slot `n` runs as the `n`th of these; `None` if the daemon may not switch.
    uids: Option<UidRange>,
}

impl ProcessSandbox {
    /// Takes the launchers into the current tokio runtime. If the daemon is root, slot `n` runs as uid and gid
    /// `first_uid + n`, or, if another daemon of this host has that range, as the next free ids
    /// ([`UidRange`], which takes two ids per slot). *Every process of such a uid is killed* before the slot's first command and whenever one
    /// has left something behind.
    ///
    /// An error outside of a runtime, or if the range contains uid 0 or leaves the 32 bits.
    pub fn new(launchers: Launchers, first_uid: u32) -> Result<Self, SandboxError> {
        let fail = |action: &str, problem: String| SandboxError::Setup {
            action: action.into(),
            source: std::io::Error::other(problem),
        };
        if let Err(error) = tokio::runtime::Handle::try_current() {
            return Err(fail("take the launchers over", error.to_string()));
        }
        let uids = nix::unistd::geteuid()
            .is_root()
            .then(|| UidRange::claim(first_uid, launchers.slots()))
            .transpose()?;
        let executable = launchers.executable;
        let seats = launchers
            .started
            .into_iter()
            .enumerate()
            .map(|(slot, process)| {
                let user = uids.as_ref().and_then(|uids| uids.user(slot));
                Seat::new(slot, executable.clone(), user, process).map(Mutex::new)
            })
            .collect::<Result<_, _>>()?;
        Ok(ProcessSandbox { seats, uids })
    }

    /// The process id of a slot's launcher; `None` while the slot runs a command or has no launcher.
    pub fn launcher(&self, slot: usize) -> Option<u32> {
        self.seats.get(slot)?.try_lock().ok()?.launcher()
    }
}

#[async_trait]
impl Sandbox for ProcessSandbox {
    fn level(&self) -> Level {
        Level::Process
    }

    fn owner(&self, slot: usize) -> Option<Owner> {
        let id = self.uids.as_ref()?.user(slot)?.uid;
        Some(Owner { uid: id, gid: id })
    }

    async fn run(
        &self,
        slot: usize,
        spec: CommandSpec,
        cancel: CancellationToken,
    ) -> Result<Outcome, SandboxError> {
        let Some(seat) = self.seats.get(slot) else {
            return Err(SandboxError::Launcher {
                slot,
                problem: format!("does not exist: there are {} slots", self.seats.len()),
            });
        };
        run::run(&mut *seat.lock().await, spec, cancel).await
    }
}
