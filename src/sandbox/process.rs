//! The lowest level: a process in a session of its own, under a user of its own where the daemon may switch, and nothing more.

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{CommandSpec, Level, Outcome, Sandbox, SandboxError};
use crate::config::Owner;

/// Launchers, one per slot, started before the daemon has threads.
pub struct Launchers {}

impl Launchers {
    /// Starts `slots` launchers (`/proc/self/exe sandbox-launcher`). To be called before any thread exists.
    pub fn start(_slots: usize) -> Result<Self, SandboxError> {
        todo!()
    }
}

/// The entry point of a launcher process, called first thing in `main` when `argv[1]` is `sandbox-launcher`; never returns.
pub fn launcher_main() -> ! {
    todo!()
}

/// Runs commands through launchers.
pub struct ProcessSandbox {}

impl ProcessSandbox {
    /// Takes the launchers into the tokio runtime. If the daemon is root, slot `n` runs as uid and gid `first_uid + n`.
    pub fn new(_launchers: Launchers, _first_uid: u32) -> Result<Self, SandboxError> {
        todo!()
    }
}

#[async_trait]
impl Sandbox for ProcessSandbox {
    fn level(&self) -> Level {
        Level::Process
    }
    fn owner(&self, _slot: usize) -> Option<Owner> {
        todo!()
    }
    async fn run(
        &self,
        _slot: usize,
        _spec: CommandSpec,
        _cancel: CancellationToken,
    ) -> Result<Outcome, SandboxError> {
        todo!()
    }
}
