//! The one table from the end of an action to the end of a lease: `Lease.status` and `Lease.result`.
//!
//! What decides each row is who acts on the code. BuildGrid queues a lease again after INTERNAL and
//! UNAVAILABLE, five attempts in all, and hands every other code to the client as final; a COMPLETED
//! lease with neither a result nor a failing status counts as success with exit code 0. Bazel in
//! turn repeats an Execute that ended with RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE, ABORTED,
//! UNKNOWN or CANCELLED, five times by default. So:
//!
//! | end | status | result |
//! |---|---|---|
//! | exited | OK | yes |
//! | signalled | OK | yes, exit code 128 + signal |
//! | killed by a SIGKILL that was not ours | FAILED_PRECONDITION | what there is |
//! | timed out | DEADLINE_EXCEEDED | what there is |
//! | out of memory | FAILED_PRECONDITION | what there is |
//! | limit exceeded | FAILED_PRECONDITION | what there is |
//! | bad output | FAILED_PRECONDITION | what there is |
//! | bad request | INVALID_ARGUMENT | no |
//! | unsupported, refused by a CAS | FAILED_PRECONDITION | no |
//! | missing inputs | FAILED_PRECONDITION, every blob a MISSING violation | no |
//! | infrastructure, preempted | UNAVAILABLE | no |
//! | cancelled | CANCELLED | no |
//!
//! Out of memory is not RESOURCE_EXHAUSTED, although that is the nearer word: Bazel would run the
//! same command into the same wall five times more. It is not an exit code either: schedulers cache
//! failed actions, and the next worker may have more memory. FAILED_PRECONDITION without a MISSING
//! violation is final for both, and its text reaches the user. The same holds for an exceeded limit, and
//! for a SIGKILL from elsewhere, most likely the kernel's for want of memory.
//!
//! A partial result never has exit code 0, so that nobody reads it as success. After a time-out there
//! always is one, if need be an empty one.

use prost::Message;
use prost_types::Any;
use tonic::Code;

use crate::action::ending::{KILLED_BY_ANOTHER, out_of_memory, timed_out};
use crate::action::{Ending, Finished};
use crate::reapi::any::pack;
use crate::reapi::proto::{re, rpc};
use crate::reapi::status::{MissingBlob, missing_blobs, status};
use crate::scheduler::partial::partial;

/// A status message is cut here, in bytes; it travels in HTTP headers on its way to the client.
const MESSAGE_LIMIT: usize = 4096;
/// The violations of one status, in bytes. gRPC refuses messages over 4 MiB unless told otherwise.
const DETAILS_LIMIT: usize = 2 << 20;

/// What a COMPLETED lease says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Report {
    /// Whether the action ran; its details hold what a client can act on.
    pub(super) status: rpc::Status,
    /// The packed ActionResult.
    pub(super) result: Option<Any>,
}

impl Report {
    /// A failure without a result.
    pub(super) fn failed(code: Code, message: impl Into<String>) -> Self {
        Report {
            status: status(code, message),
            result: None,
        }
    }

    /// Its share of an update, in bytes.
    pub(super) fn size(&self) -> usize {
        self.status.encoded_len() + self.result.as_ref().map_or(0, |any| any.value.len())
    }
}

/// Looks the end up in the table.
pub(super) fn report(finished: Finished) -> Report {
    let Finished {
        ending,
        result,
        message,
        details,
        ..
    } = finished;
    let (mut status, result) = match ending {
        Ending::Exited(code) => return ran(code, result),
        Ending::Signalled(libc::SIGKILL) => (
            status(Code::FailedPrecondition, KILLED_BY_ANOTHER),
            result.map(partial),
        ),
        Ending::Signalled(signal) => return ran(128 + signal, result),
        Ending::TimedOut { after, bound_of } => (
            status(Code::DeadlineExceeded, timed_out(after, bound_of)),
            Some(partial(result.unwrap_or_default())),
        ),
        Ending::OutOfMemory { limit } => (
            status(Code::FailedPrecondition, out_of_memory(limit)),
            result.map(partial),
        ),
        Ending::LimitExceeded(what) => {
            (status(Code::FailedPrecondition, what), result.map(partial))
        }
        Ending::BadOutput(what) => (status(Code::FailedPrecondition, what), result.map(partial)),
        Ending::BadRequest(what) => (status(Code::InvalidArgument, what), None),
        Ending::Unsupported(what) | Ending::Refused(what) => {
            (status(Code::FailedPrecondition, what), None)
        }
        Ending::MissingInputs(blobs) => (missing(&blobs), None),
        Ending::Infrastructure(what) => (status(Code::Unavailable, what), None),
        Ending::Cancelled => (status(Code::Cancelled, "the action was cancelled"), None),
        Ending::Preempted => (status(Code::Unavailable, "worker is shutting down"), None),
    };
    if !message.is_empty() {
        status.message = format!("{}: {message}", status.message);
    }
    truncate(&mut status.message);
    status.details.extend(details);
    Report {
        status,
        result: result.map(|result| pack(&result)),
    }
}

/// A command that came to an end of its own. What there is to say beside it is at the end of its standard error: a lease
/// has no other place for it, as nobody reads the text of an OK.
fn ran(exit_code: i32, result: Option<re::ActionResult>) -> Report {
    match result {
        Some(mut result) => {
            result.exit_code = exit_code;
            Report {
                status: status(Code::Ok, ""),
                result: Some(pack(&result)),
            }
        }
        None => Report::failed(
            Code::Internal,
            format!("the command exited with {exit_code} but no result was made of it"),
        ),
    }
}

/// As many violations as fit; a client that uploads these and tries again is told the rest.
fn missing(blobs: &[MissingBlob]) -> rpc::Status {
    let mut size = 0;
    let fitting = blobs
        .iter()
        .take_while(|blob| {
            size += blob.what.len() + 120;
            size <= DETAILS_LIMIT
        })
        .count()
        .max(1)
        .min(blobs.len());
    let first = blobs.first().map_or_else(String::new, |blob| {
        format!(", the first is {} ({})", blob.digest, blob.what)
    });
    let rest = if fitting < blobs.len() {
        format!("; only {fitting} of them are listed")
    } else {
        String::new()
    };
    missing_blobs(
        format!("{} blobs are not in the CAS{first}{rest}", blobs.len()),
        &blobs[..fitting],
    )
}

fn truncate(text: &mut String) {
    if text.len() > MESSAGE_LIMIT {
        let end = (0..=MESSAGE_LIMIT)
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push_str(" ...");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction;
    use crate::reapi::any::unpack;
    use crate::scheduler::partial::KILLED;

    fn finished(ending: Ending) -> Finished {
        Finished {
            ending,
            result: Some(re::ActionResult::default()),
            message: String::new(),
            cacheable: false,
            details: Vec::new(),
            logs: Vec::new(),
            inputs: None,
        }
    }

    fn result(report: &Report) -> Option<re::ActionResult> {
        Some(unpack(report.result.as_ref()?)?.unwrap())
    }

    #[test]
    fn every_class_has_its_row() {
        let blob = MissingBlob {
            digest: DigestFunction::Sha256.digest(b"x"),
            what: "input file a".into(),
        };
        let rows = [
            (Ending::Exited(0), Code::Ok, Some(0)),
            (Ending::Exited(7), Code::Ok, Some(7)),
            (Ending::Signalled(11), Code::Ok, Some(139)),
            (Ending::Signalled(9), Code::FailedPrecondition, Some(137)),
            (
                Ending::TimedOut {
                    after: std::time::Duration::from_secs(3),
                    bound_of: "its action",
                },
                Code::DeadlineExceeded,
                Some(137),
            ),
            (
                Ending::OutOfMemory { limit: None },
                Code::FailedPrecondition,
                Some(137),
            ),
            (
                Ending::LimitExceeded("x".into()),
                Code::FailedPrecondition,
                Some(137),
            ),
            (
                Ending::BadOutput("x".into()),
                Code::FailedPrecondition,
                Some(137),
            ),
            (Ending::BadRequest("x".into()), Code::InvalidArgument, None),
            (Ending::Refused("x".into()), Code::FailedPrecondition, None),
            (
                Ending::Unsupported("x".into()),
                Code::FailedPrecondition,
                None,
            ),
            (
                Ending::MissingInputs(vec![blob]),
                Code::FailedPrecondition,
                None,
            ),
            (Ending::Infrastructure("x".into()), Code::Unavailable, None),
            (Ending::Cancelled, Code::Cancelled, None),
            (Ending::Preempted, Code::Unavailable, None),
        ];
        for (ending, code, exit_code) in rows {
            let report = report(finished(ending.clone()));
            assert_eq!(report.status.code, code as i32, "{ending:?}");
            assert_eq!(
                result(&report).map(|r| r.exit_code),
                exit_code,
                "{ending:?}"
            );
        }
    }

    #[test]
    fn nothing_without_a_result_looks_like_success() {
        for ending in [Ending::Exited(0), Ending::Signalled(9)] {
            let report = report(Finished {
                result: None,
                ..finished(ending)
            });
            assert_ne!(report.status.code, Code::Ok as i32);
        }
        let timed_out = report(Finished {
            result: None,
            ..finished(Ending::TimedOut {
                after: std::time::Duration::from_secs(1),
                bound_of: "its action",
            })
        });
        assert_eq!(result(&timed_out).unwrap().exit_code, KILLED);
    }

    #[test]
    fn a_status_has_a_bounded_size() {
        let long = report(finished(Ending::BadRequest("ä".repeat(5000))));
        assert!(long.size() < MESSAGE_LIMIT + 64);
        let blobs: Vec<_> = (0..50_000u32)
            .map(|n| MissingBlob {
                digest: DigestFunction::Sha256.digest(&n.to_le_bytes()),
                what: format!("input file {n}"),
            })
            .collect();
        let many = report(finished(Ending::MissingInputs(blobs)));
        assert!(many.size() < 3 << 20, "{}", many.size());
        assert!(
            many.status.message.starts_with("50000 blobs"),
            "{}",
            many.status.message
        );
        assert!(
            many.status.message.contains("are listed"),
            "{}",
            many.status.message
        );
    }

    #[test]
    fn what_the_action_said_is_told() {
        let report = report(Finished {
            message: "image not found".into(),
            ..finished(Ending::Unsupported("property container-image".into()))
        });
        assert_eq!(
            report.status.message,
            "property container-image: image not found"
        );
    }
}
