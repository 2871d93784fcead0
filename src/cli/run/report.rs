//! Failures that are not the command's: what happened, every blob that was missing, and what to do.

use std::fmt::Write;

use tonic::Code;

use super::super::exit::{Exit, Failure, of_call, of_status};
use crate::reapi::any::unpack;
use crate::reapi::proto::{re, rpc};
use crate::reapi::status;

/// Who says that something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// A call, or the operation: nothing is known of the command.
    Call,
    /// The response, about an action that did not run.
    Response,
    /// The response, beside the result of a command that ran.
    Result,
}

/// What the response to an execution means; `None` if it is a success.
pub(super) fn response(response: &re::ExecuteResponse) -> Option<Failure> {
    let by = match response.result.as_ref().is_some_and(ran) {
        true => By::Result,
        false => By::Response,
    };
    failure(response.status.as_ref(), &response.message, by)
}

/// What an operation that ended with an error means; `None` if it is none.
pub(super) fn operation(status: &rpc::Status) -> Option<Failure> {
    failure(Some(status), "", By::Call)
}

/// Whether a command left anything in this result; some servers send an empty one, or only their
/// worker's name, for an action that was never started.
fn ran(result: &re::ActionResult) -> bool {
    let started = result
        .execution_metadata
        .as_ref()
        .is_some_and(|metadata| metadata.execution_start_timestamp.is_some());
    started
        || result.exit_code != 0
        || result.stdout_digest.is_some()
        || result.stderr_digest.is_some()
        || !result.stdout_raw.is_empty()
        || !result.stderr_raw.is_empty()
}

/// `message` is what the server adds for humans.
fn failure(status: Option<&rpc::Status>, message: &str, by: By) -> Option<Failure> {
    let status = status.filter(|status| status.code != Code::Ok as i32)?;
    let code = Code::from_i32(status.code);
    let missing = missing(status);
    let mut text = format!(
        "{}: {}",
        what(code, !missing.is_empty(), by),
        said(code, &status.message)
    );
    if !message.is_empty() && message != status.message {
        let _ = write!(text, "\n{}", message.trim_end());
    }
    for blob in &missing {
        let _ = write!(text, "\n  missing: {blob}");
    }
    let _ = write!(text, "\n{}", advice(code, !missing.is_empty(), by));
    let exit = match (missing.is_empty(), code, by) {
        (false, _, _) => Exit::TryAgain,
        (true, code, By::Call) if code != Code::Unavailable => of_call(code),
        // The server is there and says that a worker was not: that is no address to correct.
        (true, Code::Unavailable, _) => Exit::Software,
        // Data that was refused never ran.
        (true, Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange, By::Result) => {
            Exit::Software
        }
        (true, code, _) => of_status(code),
    };
    Some(Failure::new(exit, text))
}

/// What a failed call means.
pub(super) fn call(failed: &tonic::Status, remote: &str, during: &str) -> Failure {
    if failed.code() == Code::Unavailable {
        let text = format!(
            "{remote} is not available{during}: {}\nwhat to do: check that the server runs at that address, and try again",
            failed.message()
        );
        return Failure::new(Exit::Unavailable, text);
    }
    let inner = status::from_call_status(failed);
    match operation(&inner) {
        Some(failure) => Failure::new(failure.exit, format!("{remote}{during}: {}", failure.text)),
        None => Failure::new(Exit::Protocol, format!("{remote}{during}: {failed}")),
    }
}

/// A status in a line.
pub(super) fn told(status: &tonic::Status) -> String {
    said(status.code(), status.message())
}

fn said(code: Code, message: &str) -> String {
    match message.trim_end() {
        "" => name(code).to_owned(),
        message => format!("{}: {message}", name(code)),
    }
}

/// Every violation, with what the server says it is.
fn missing(status: &rpc::Status) -> Vec<String> {
    let failures = status
        .details
        .iter()
        .filter_map(|any| unpack::<rpc::PreconditionFailure>(any)?.ok());
    failures
        .flat_map(|failure| failure.violations)
        .map(
            |violation| match (violation.r#type.as_str(), violation.description.as_str()) {
                ("MISSING", "") => violation.subject,
                ("MISSING", what) => format!("{} ({what})", violation.subject),
                (kind, what) => format!("{kind}: {} {what}", violation.subject),
            },
        )
        .collect()
}

fn what(code: Code, missing: bool, by: By) -> &'static str {
    match code {
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange if by == By::Result => {
            "the command ran, but has no result that counts"
        }
        Code::DeadlineExceeded if by == By::Call => "the server did not answer in time",
        Code::Cancelled if by == By::Call => "the call was broken off",
        _ if missing => "the command was not run, for inputs are missing",
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            "the server refused the action"
        }
        Code::DeadlineExceeded => "the command exceeded its timeout and was killed",
        Code::Cancelled => "the command was cancelled",
        Code::ResourceExhausted => "a limit was exceeded",
        Code::PermissionDenied | Code::Unauthenticated => "the server does not let us",
        Code::Unimplemented => "the server cannot execute",
        _ => "infrastructure failed, this is not the command's own failure",
    }
}

fn advice(code: Code, missing: bool, by: By) -> &'static str {
    match code {
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange if by == By::Result => {
            "what to do: change the command, or give it more of what is named above; its own output is shown as far as it came"
        }
        Code::DeadlineExceeded | Code::Cancelled if by == By::Call => {
            "what to do: try again; if it stays so, look into the server's log"
        }
        _ if missing => {
            "what to do: run it again, what is missing is uploaded then; if that does not help, the CAS loses blobs or is too small for them (--cas-quota-high)"
        }
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            "what to do: change what is named above; trying again as it is does not help"
        }
        Code::DeadlineExceeded => {
            "what to do: give it longer with --timeout, as far as the server allows"
        }
        Code::Cancelled => "what to do: run it again",
        Code::ResourceExhausted => "what to do: try again later, or make the action smaller",
        Code::PermissionDenied | Code::Unauthenticated => "what to do: ask who runs the server",
        Code::Unimplemented => {
            "what to do: check that --remote is an execution service and not only a cache"
        }
        Code::Unavailable => {
            "what to do: check that the server runs at that address, and try again"
        }
        _ => "what to do: try again; if it stays so, look into the server's and the worker's log",
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction;
    use crate::reapi::status::{MissingBlob, missing_blobs, ok, status};

    #[test]
    fn every_failure_says_what_and_what_to_do() {
        let blobs: Vec<MissingBlob> = ["src/a.c", "src/b.c"]
            .map(|path| MissingBlob {
                digest: DigestFunction::Sha256.digest(path.as_bytes()),
                what: format!("input file {path}"),
            })
            .into();
        let mut said = String::new();
        for status in [
            missing_blobs("2 blobs are not in the CAS", &blobs),
            status(Code::InvalidArgument, "output path \"/x\" is absolute"),
            status(Code::DeadlineExceeded, "killed after 60 s"),
            status(Code::Internal, "disk on fire"),
            status(Code::Unavailable, ""),
            status(Code::Unimplemented, "no such service"),
        ] {
            let failure = failure(Some(&status), "worker builder7", By::Response).unwrap();
            said += &format!(
                "{:?} = {}\n{}\n\n",
                failure.exit, failure.exit as u8, failure.text
            );
        }
        insta::assert_snapshot!(said);
        assert!(failure(Some(&ok()), "x", By::Result).is_none());
        assert!(failure(None, "x", By::Call).is_none());
    }

    #[test]
    fn a_command_that_ran_was_not_refused() {
        let killed = |result| re::ExecuteResponse {
            result,
            status: Some(status(Code::FailedPrecondition, "used too much memory")),
            ..Default::default()
        };
        let result = re::ActionResult {
            exit_code: 137,
            ..Default::default()
        };
        let failure = response(&killed(Some(result))).unwrap();
        assert_eq!(failure.exit, Exit::Software);
        assert!(failure.text.starts_with("the command ran, but"));
        assert!(failure.text.contains("used too much memory"));
        // An empty result is no sign of a command.
        for none in [None, Some(re::ActionResult::default())] {
            let failure = response(&killed(none)).unwrap();
            assert_eq!(failure.exit, Exit::Data);
            assert!(failure.text.starts_with("the server refused the action"));
        }
    }

    #[test]
    fn only_the_response_tells_of_a_timeout_of_the_command() {
        let late = status(Code::DeadlineExceeded, "too late");
        let told = re::ExecuteResponse {
            status: Some(late.clone()),
            ..Default::default()
        };
        assert_eq!(response(&told).unwrap().exit, Exit::TimedOut);
        let of_call = call(
            &tonic::Status::deadline_exceeded("too late"),
            "http://h:1",
            "",
        );
        for failure in [of_call, operation(&late).unwrap()] {
            assert_eq!(failure.exit, Exit::Unavailable);
            assert!(failure.text.contains("did not answer in time"));
            assert!(!failure.text.contains("the command"));
        }
    }
}
