//! One command, isolated. This room knows nothing of REAPI: it gets a [`CommandSpec`], and gives
//! an [`Outcome`] once the last process of the command is dead.

pub mod outcome;
pub mod process;
pub mod spec;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

pub use outcome::{Captured, End, Io, Outcome, SpillFile, Usage, UsageSource};
pub use spec::{
    CommandSpec, DEFAULT_PROFILE, Exempt, Identity, Limits, RootShape, StreamSpec, View,
};

use crate::config::Owner;

/// How much is between a command and its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A process of its own session and, if the daemon may switch, of its own user. It sees the host's files, network and
    /// processes.
    Process,
    /// Namespaces, a root of its own, a system-call filter, Landlock and, where there are cgroups, limits.
    Full,
}

impl Level {
    /// The name in logs, configuration and worker properties.
    pub fn name(self) -> &'static str {
        match self {
            Level::Process => "process",
            Level::Full => "full",
        }
    }
}

/// The sandbox itself failed: nothing is known of the command, and the fault is not its own.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A system call failed while setting the command up.
    #[error("sandbox: cannot {action}: {source}")]
    Setup {
        /// The attempted operation and its object, such as `start a launcher`.
        action: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The launcher died or spoke nonsense.
    #[error("sandbox: the launcher of slot {slot} {problem}")]
    Launcher {
        /// The slot.
        slot: usize,
        /// What it did.
        problem: String,
    },
}

/// Something that runs commands, `slots` of them at a time.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// The isolation it gives.
    fn level(&self) -> Level;

    /// Whom a command in this slot runs as; `None` for the daemon's own user. The input root must belong to
    /// this owner before `run`.
    fn owner(&self, slot: usize) -> Option<Owner>;

    /// Runs the command in a free slot; returns when its last process is dead. On `cancel` the
    /// command gets SIGTERM, after the grace SIGKILL. A slot runs one command at a time: the caller sees to that.
    async fn run(
        &self,
        slot: usize,
        spec: CommandSpec,
        cancel: CancellationToken,
    ) -> Result<Outcome, SandboxError>;
}
