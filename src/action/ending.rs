//! How an action can end. Every end has exactly one class, and a failure of ours is never told as
//! an exit code.

use std::time::Duration;

use crate::config::units::rough_size;
use crate::reapi::status::MissingBlob;

/// The class of an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The command exited with this code.
    Exited(i32),
    /// A signal that was not ours killed the command.
    Signalled(i32),
    /// The command ran longer than its Action allows.
    TimedOut {
        /// The bound.
        after: Duration,
        /// Who set it: `its action`, or the flag by which the operator did.
        bound_of: &'static str,
    },
    /// The kernel killed the command because it used more memory than it was given.
    OutOfMemory {
        /// The limit that it met, in bytes; `None` if it was the host's or one above the action's.
        limit: Option<u64>,
    },
    /// The command went beyond a bound of the worker's (outputs, disk); the text names it.
    LimitExceeded(String),
    /// The command left something where an output was declared that cannot be that output; the text names it.
    BadOutput(String),
    /// A CAS does not take the action's inputs or outputs, and would not if it was run again: the local one has not that much
    /// room, or the remote one said no for good. The text says which and why.
    Refused(String),
    /// The action cannot be run as it is, anywhere; the text names the offending part.
    BadRequest(String),
    /// The action asks for something that this worker does not offer; the text names it.
    Unsupported(String),
    /// Blobs that the action needs and nobody has; all of them.
    MissingInputs(Vec<MissingBlob>),
    /// A failure of the worker or of something that it relies on; another worker may succeed.
    Infrastructure(String),
    /// The client or the scheduler took the action back.
    Cancelled,
    /// The worker is going away before the action could finish; another worker should run it.
    Preempted,
}

/// What is said of a command that ran too long.
pub fn timed_out(after: Duration, bound_of: &str) -> String {
    format!("the command ran longer than the timeout of {after:?} that {bound_of} sets")
}

/// What is said of a command that ran out of memory.
pub fn out_of_memory(limit: Option<u64>) -> String {
    match limit {
        Some(limit) => format!(
            "the command used more memory than the {} that it was given; \
             ask for more with the platform property `memory`, if the worker allows it",
            rough_size(limit)
        ),
        None => "the command was killed because the host, or a limit above the action's own, ran out of memory".into(),
    }
}

/// What is said of a command that ended by a SIGKILL which the worker did not send. It is told as a failure and
/// not as exit code 137: nearly always the host ran out of memory, and a farm that caches failed
/// results must not keep this one.
pub const KILLED_BY_ANOTHER: &str = "the command was killed by SIGKILL, which the worker did not send; \
     most often the host ran out of memory: its kernel log says so";

impl Ending {
    /// The class's name in logs and metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Ending::Exited(_) => "exited",
            Ending::Signalled(_) => "signalled",
            Ending::TimedOut { .. } => "timed-out",
            Ending::OutOfMemory { .. } => "out-of-memory",
            Ending::LimitExceeded(_) => "limit-exceeded",
            Ending::BadOutput(_) => "bad-output",
            Ending::Refused(_) => "refused",
            Ending::BadRequest(_) => "bad-request",
            Ending::Unsupported(_) => "unsupported",
            Ending::MissingInputs(_) => "missing-inputs",
            Ending::Infrastructure(_) => "infrastructure",
            Ending::Cancelled => "cancelled",
            Ending::Preempted => "preempted",
        }
    }
}
