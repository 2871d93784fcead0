//! The lowest level: a process in a session of its own, under a user of its own where the daemon may switch, and nothing
//! more. It sees the host's files, network and processes.
//!
//! The daemon never forks. Each slot has a *launcher* ([`Launchers`]), a small single-threaded process that was started
//! before the daemon had threads. A run is one message to it ([`super::slot`]); the launcher starts the command
//! (`launcher`, `child`), waits, kills what is left (`kill`) and answers with one report. If a launcher is killed, what it
//! leaves is killed too and another is started. If the daemon is killed, the launchers end their commands and
//! themselves.

mod child;
mod kill;
mod launcher;
mod score;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

pub use super::slot::{Launchers, UidRange};
pub use launcher::launcher_main;

use super::slot::run::{self, Run};
use super::slot::seat::Seat;
use super::{CommandSpec, Level, Limits, Outcome, Sandbox, SandboxError};
use crate::config::Owner;

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
        let kind = launchers.kind;
        let seats = launchers
            .started
            .into_iter()
            .enumerate()
            .map(|(slot, process)| {
                let user = uids.as_ref().and_then(|uids| uids.user(slot));
                Seat::new(slot, kind.clone(), user, process).map(Mutex::new)
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

    fn unenforced(&self, limits: &Limits) -> Vec<&'static str> {
        let kept_by_full = [
            ("memory (sandbox level full limits it)", limits.memory),
            ("cpus (sandbox level full limits them)", limits.cpu_milli),
            ("pids (sandbox level full limits them)", limits.pids),
            ("disk (sandbox level full limits it)", limits.disk_bytes),
            (
                "disk nodes (sandbox level full limits them)",
                limits.disk_nodes,
            ),
        ];
        let asked = kept_by_full
            .into_iter()
            .filter(|(_, limit)| limit.is_some());
        asked.map(|(what, _)| what).collect()
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
        let mut seat = seat.lock().await;
        seat.ready().await?;
        let uid = seat.user.map(|user| user.uid);
        let run = Run {
            spec,
            cancel,
            root: None,
            groups: &[],
            uid,
            owner: self.owner(slot),
            exceeded: Box::pin(std::future::pending()),
        };
        Ok(run::run(&mut seat, run).await?.outcome)
    }
}
