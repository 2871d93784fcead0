//! Slots, dispatch and drain: what connects a [`Scheduler`] to whatever runs an action.
//!
//! [`Worker::run`] keeps one task per running action on a slot of its own. A slot is free again
//! only when the run has returned, which means that its last process is dead; a lease that comes
//! earlier waits for it. Every lease that was not revoked is reported exactly once.

mod dispatch;
mod health;
mod signals;
mod slots;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use signals::stops;

use crate::action::Finished;
use crate::reapi::proto::re;
use crate::scheduler::{Lease, Scheduler};

/// Told how far an action has come.
pub type Progress<'a> = &'a (dyn Fn(re::ExecutedActionMetadata) + Send + Sync);

/// Something that runs actions; the seam at which tests put their own.
#[async_trait]
pub trait RunAction: Send + Sync {
    /// Runs a leased action in a slot that nothing else uses. Returns when its last process is
    /// dead; soon after `cancel`, with [`Ending::Cancelled`](crate::action::Ending::Cancelled) unless it ended by itself just then.
    async fn run(
        &self,
        lease: &Lease,
        slot: usize,
        cancel: &CancellationToken,
        progress: Progress<'_>,
    ) -> Finished;
}

/// How a worker behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many actions run at a time; at least one.
    pub slots: usize,
    /// Drain by itself once this many leases were taken.
    pub stop_after: Option<u64>,
    /// How many actions in a row may fail for reasons of ours before the worker calls itself unwell.
    pub failures: u32,
    /// How long an unwell worker takes nothing before it tries one more action; twice as long each further time, up to
    /// sixteen times.
    pub recheck: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            slots: 1,
            stop_after: None,
            failures: 5,
            recheck: Duration::from_secs(30),
        }
    }
}

/// A wish that the worker stop. The first lets running actions finish, the second gives them back, the third leaves
/// at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM, or a service manager's word.
    Terminate,
    /// SIGINT: somebody at a terminal.
    Interrupt,
}

/// Why a worker's run is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerEnd {
    /// Nothing runs, and the scheduler knows that we are gone.
    Drained,
    /// Nothing runs, but the scheduler did not answer: it does not know that we are gone, nor how some leases ended.
    LeftUnheard {
        /// How many these are.
        unreported: usize,
    },
    /// The scheduler refuses us; the text says what to do.
    Fatal(String),
    /// Stopped three times: what ran was left where it was.
    Aborted,
}

/// A scheduler, something that runs actions, and slots to run them in.
pub struct Worker {
    scheduler: Arc<dyn Scheduler>,
    runner: Arc<dyn RunAction>,
    settings: Settings,
}

impl Worker {
    /// A worker that has not begun yet.
    pub fn new(
        scheduler: Arc<dyn Scheduler>,
        runner: Arc<dyn RunAction>,
        settings: Settings,
    ) -> Self {
        Worker {
            scheduler,
            runner,
            settings,
        }
    }

    /// Works until it is stopped, or the scheduler refuses. [`stops`] makes `stop` of the process's signals.
    pub async fn run(self, stop: mpsc::Receiver<Stop>) -> WorkerEnd {
        dispatch::run(self, stop).await
    }
}
