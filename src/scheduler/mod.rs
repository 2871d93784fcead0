//! Where leases come from. [`Scheduler`] is the door: a session somewhere hands out leases, takes
//! them back, and is told how they ended. This room knows nothing of how actions run.

pub mod embedded;
pub mod rwapi;

use async_trait::async_trait;
use bytes::Bytes;

use crate::action::Finished;
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

/// A lease's name, unique within its session.
pub type LeaseId = String;

/// One action to run.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// The serialized Action, or `None` if only the digest came.
    pub action: Option<Bytes>,
    /// The Action's digest as the client named it, if the scheduler told.
    pub action_digest: Option<Digest>,
    /// The function of all digests of this action.
    pub function: DigestFunction,
    /// Where live output goes: ByteStream write names, empty if nobody listens.
    pub stdout_stream: String,
    /// The same for standard error.
    pub stderr_stream: String,
    /// Who asked, as far as the scheduler told; for logs.
    pub origin: Option<re::RequestMetadata>,
    /// Fields that the scheduler filled in already (`queued_timestamp`).
    pub metadata: re::ExecutedActionMetadata,
}

/// What happens to a worker.
#[derive(Debug)]
pub enum Event {
    /// Run this. There is a free slot for it: a scheduler never leases beyond the capacity.
    Lease(Box<Lease>),
    /// Kill this and forget it: cancelled, timed out or given to another. Nothing must be reported (a report is ignored).
    Revoked(LeaseId),
    /// Kill everything: the session is lost, its leases belong to others now. A new session follows by itself.
    SessionLost,
    /// The drain is complete: no lease is left, the scheduler knows that we are gone.
    Drained,
    /// The drain was given up, for the scheduler does not answer: it does not know that we are gone. It has not heard how
    /// `unreported` leases ended, and gives them to others once our session has expired.
    LeftUnheard {
        /// How many ends the scheduler has not heard of.
        unreported: usize,
    },
    /// The scheduler refuses us for a reason that waiting does not mend; the text says what to do.
    Fatal(String),
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Take nothing new, finish what runs.
    Finish,
    /// Take nothing new; the worker kills what runs and gives it back.
    GiveBack,
}

/// A session with a scheduler. `next` is called by one task; the other methods from anywhere, and they do not wait
/// for the network.
#[async_trait]
pub trait Scheduler: Send + Sync {
    /// The next thing that happens; after `Drained`, `LeftUnheard` or `Fatal` there is none.
    async fn next(&self) -> Event;
    /// News of a running lease: timestamps so far.
    fn progress(&self, lease: &LeaseId, metadata: re::ExecutedActionMetadata);
    /// The lease has ended. Told to the scheduler until it acknowledges.
    fn complete(&self, lease: &LeaseId, finished: Finished);
    /// The worker is unwell (`Some(why)`: no new leases) or well again.
    fn health(&self, problem: Option<String>);
    /// Begins to stop; a second call may only sharpen the first.
    fn drain(&self, how: Drain);
}
