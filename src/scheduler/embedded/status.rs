//! How the end of an action is told to a client: the one table from [`Ending`] to ExecuteResponse.
//!
//! REAPI, ExecuteResponse.status: "If the status has a code other than `OK`, it indicates that the action did not finish
//! execution." A command that ran to an end of its own is `OK` whatever its exit code; a failure of ours never is. A partial result
//! never has exit code 0, so that nobody reads it as success.

use prost::Message;
use prost_types::Any;
use tonic::Code;

use super::inline::LARGEST;
use crate::action::ending::{KILLED_BY_ANOTHER, out_of_memory, timed_out};
use crate::action::{Ending, Finished};
use crate::reapi::proto::{re, rpc};
use crate::reapi::status::{missing_blobs, ok, status};
use crate::scheduler::partial::partial;

/// The response for an action that has ended.
pub(super) fn response(finished: Finished) -> re::ExecuteResponse {
    let Finished {
        ending,
        result,
        message,
        details,
        logs,
        ..
    } = finished;
    let mut told = match (&ending, &result) {
        (Ending::Exited(_) | Ending::Signalled(_), None) => status(
            Code::Internal,
            "the worker reported the end of a command without its result; this is a fault of the worker",
        ),
        _ => of_ending(&ending),
    };
    if told.code != Code::Ok as i32 {
        told.details.extend::<Vec<Any>>(details);
    }
    let result = match ending {
        Ending::Exited(_)
        | Ending::Signalled(_)
        | Ending::TimedOut { .. }
        | Ending::OutOfMemory { .. }
        | Ending::BadOutput(_)
        | Ending::LimitExceeded(_) => result,
        _ => None,
    };
    let result = match told.code == Code::Ok as i32 {
        true => result,
        false => result.map(partial),
    };
    re::ExecuteResponse {
        result,
        cached_result: false,
        status: Some(told),
        server_logs: { logs.iter() }
            .map(|log| (log.name.to_owned(), log.file()))
            .collect(),
        message,
    }
}

/// What is told instead of a response that is too large for the message size that clients take.
pub(super) fn too_large(response: &re::ExecuteResponse) -> Option<re::ExecuteResponse> {
    let size = response.encoded_len();
    (size > LARGEST).then(|| re::ExecuteResponse {
        status: Some(status(
            Code::FailedPrecondition,
            format!(
                "the action ended, but its result of {size} bytes is larger than clients take; \
                 declare fewer outputs, or directories instead of single files"
            ),
        )),
        ..Default::default()
    })
}

/// The status of an end that is not a command's own.
fn of_ending(ending: &Ending) -> rpc::Status {
    match ending {
        Ending::Signalled(libc::SIGKILL) => status(Code::FailedPrecondition, KILLED_BY_ANOTHER),
        Ending::Exited(_) | Ending::Signalled(_) => ok(),
        Ending::TimedOut { after, bound_of } => {
            status(Code::DeadlineExceeded, timed_out(*after, bound_of))
        }
        Ending::OutOfMemory { limit } => status(Code::FailedPrecondition, out_of_memory(*limit)),
        Ending::LimitExceeded(what) | Ending::BadOutput(what) | Ending::Refused(what) => {
            status(Code::FailedPrecondition, what)
        }
        Ending::BadRequest(what) => status(Code::InvalidArgument, what),
        Ending::Unsupported(what) => status(Code::FailedPrecondition, what),
        Ending::MissingInputs(blobs) => missing_blobs(
            match blobs.as_slice() {
                [one] => format!("{} is not in the CAS ({})", one.what, one.digest),
                [first, ..] => format!(
                    "{} blobs that the action needs are not in the CAS, the first is {} ({})",
                    blobs.len(),
                    first.what,
                    first.digest
                ),
                [] => "inputs are not in the CAS".to_owned(),
            },
            blobs,
        ),
        Ending::Infrastructure(what) => status(
            Code::Unavailable,
            format!("the worker failed, not the command: {what}"),
        ),
        Ending::Cancelled => status(Code::Cancelled, "the action was cancelled"),
        Ending::Preempted => status(
            Code::Unavailable,
            "the worker is going away before the action could finish",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction;
    use crate::reapi::any::unpack;
    use crate::reapi::status::MissingBlob;

    fn finished(ending: Ending, result: bool) -> Finished {
        Finished {
            ending,
            result: result.then(re::ActionResult::default),
            message: "read this".into(),
            cacheable: false,
            details: Vec::new(),
            logs: Vec::new(),
            inputs: None,
        }
    }

    #[test]
    fn a_result_that_clients_do_not_take_is_told_as_such() {
        let of = |files: usize| re::ExecuteResponse {
            result: Some(re::ActionResult {
                output_files: vec![
                    re::OutputFile {
                        path: "x".repeat(1000),
                        ..Default::default()
                    };
                    files
                ],
                ..Default::default()
            }),
            ..Default::default()
        };
        assert!(too_large(&of(3000)).is_none());
        let told = too_large(&of(5000)).unwrap();
        assert!(told.result.is_none());
        let status = told.status.unwrap();
        assert_eq!(status.code, Code::FailedPrecondition as i32);
        assert!(status.message.contains("declare fewer outputs"));
    }

    #[test]
    fn every_end_has_its_status() {
        for (ending, code, result) in [
            (Ending::Exited(7), Code::Ok, true),
            (Ending::Signalled(11), Code::Ok, true),
            (
                Ending::TimedOut {
                    after: std::time::Duration::from_secs(3),
                    bound_of: "its action",
                },
                Code::DeadlineExceeded,
                true,
            ),
            (Ending::Signalled(9), Code::FailedPrecondition, true),
            (
                Ending::OutOfMemory { limit: None },
                Code::FailedPrecondition,
                true,
            ),
            (
                Ending::LimitExceeded("x".into()),
                Code::FailedPrecondition,
                true,
            ),
            (
                Ending::BadOutput("x".into()),
                Code::FailedPrecondition,
                true,
            ),
            (Ending::BadRequest("x".into()), Code::InvalidArgument, false),
            (Ending::Refused("x".into()), Code::FailedPrecondition, false),
            (
                Ending::Unsupported("x".into()),
                Code::FailedPrecondition,
                false,
            ),
            (
                Ending::MissingInputs(vec![]),
                Code::FailedPrecondition,
                false,
            ),
            (Ending::Infrastructure("x".into()), Code::Unavailable, false),
            (Ending::Cancelled, Code::Cancelled, false),
            (Ending::Preempted, Code::Unavailable, false),
        ] {
            let class = ending.class();
            let told = response(finished(ending, true));
            assert_eq!(told.status.unwrap().code, code as i32, "{class}");
            assert_eq!(told.result.is_some(), result, "{class}");
            if let Some(result) = told.result {
                // A partial result looks like no success.
                assert_eq!(result.exit_code == 0, code == Code::Ok, "{class}");
            }
            assert_eq!(told.message, "read this");
        }
    }

    #[test]
    fn an_exit_without_a_result_is_no_success() {
        let told = response(finished(Ending::Exited(0), false));
        assert_eq!(told.status.unwrap().code, Code::Internal as i32);
    }

    #[test]
    fn all_missing_inputs_are_violations() {
        let blobs: Vec<_> = (0..3u8)
            .map(|i| MissingBlob {
                digest: DigestFunction::Sha256.digest(&[i]),
                what: format!("input file {i}"),
            })
            .collect();
        let told = response(finished(Ending::MissingInputs(blobs), false));
        let failure: rpc::PreconditionFailure =
            unpack(&told.status.unwrap().details[0]).unwrap().unwrap();
        assert_eq!(failure.violations.len(), 3);
        assert!(failure.violations.iter().all(|v| v.r#type == "MISSING"));
    }
}
