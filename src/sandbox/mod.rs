//! One command, isolated. This room knows nothing of REAPI: it gets a [`CommandSpec`], and gives
//! an [`Outcome`] once the last process of the command is dead.

mod levels;
pub mod linux;
pub mod outcome;
pub mod process;
mod slot;
pub mod spec;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

pub use levels::{Named, NoSandbox, Sandboxes};
pub use slot::{Launchers, UidRange};

pub use outcome::{Captured, End, Io, Outcome, SpillFile, Usage, UsageSource};
pub use spec::{
    CommandSpec, DEFAULT_PROFILE, Exempt, Identity, Inputs, Limits, LiveSink, RootShape,
    StreamSpec, View,
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
    /// Every level, the strongest first.
    pub const ALL: [Level; 2] = [Level::Full, Level::Process];

    /// The level of this name.
    pub fn named(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }

    /// The name in logs, configuration and worker properties.
    pub fn name(self) -> &'static str {
        match self {
            Level::Process => "process",
            Level::Full => "full",
        }
    }

    /// The hidden first argument of a launcher.
    fn launcher_argument(self) -> &'static str {
        match self {
            Level::Process => "sandbox-launcher",
            Level::Full => "sandbox-slot",
        }
    }
}

/// Becomes a launcher, and never returns, if `argv[1]` asks for one: to be called first thing in `main`. Launchers are our
/// own executable, started by a daemon.
pub fn launcher_main() {
    let argument = std::env::args_os().nth(1).unwrap_or_default();
    if argument == Level::Process.launcher_argument() {
        process::launcher_main();
    }
    if argument == Level::Full.launcher_argument() {
        linux::launcher_main();
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
    /// This host does not give what the level needs; the text says what was tried and what to do.
    #[error("sandbox: {problem}")]
    Isolate {
        /// What was tried, what the system said, what to do.
        problem: String,
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

    /// Those of the limits that it cannot keep on this host, each with what is lacking.
    fn unenforced(&self, limits: &Limits) -> Vec<&'static str>;

    /// Runs the command in a free slot; returns when its last process is dead. On `cancel` the
    /// command gets SIGTERM, after the grace SIGKILL. A slot runs one command at a time: the caller sees to that.
    async fn run(
        &self,
        slot: usize,
        spec: CommandSpec,
        cancel: CancellationToken,
    ) -> Result<Outcome, SandboxError>;
}
