//! How the program ends: one code for each kind of failure, and a text that says what and why.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; for a daemon: drained |
//! | 1 | failed; `cas stat`: a blob is missing |
//! | 2 | wrong usage |
//! | 65 | the server refused the data: action, digest or blob |
//! | 66 | an input cannot be read |
//! | 69 | a remote, or an address to listen on, is not available; `worker`: drained, but the scheduler did not answer |
//! | 70 | infrastructure failed and nothing is known of the command; or it ran, but was killed, broke a limit or made outputs that cannot be kept |
//! | 73 | an output cannot be written |
//! | 74 | reading or writing a stream failed; for a daemon: the disk of the state directory |
//! | 75 | try again: the state directory is in use, blobs were lost on the way, a server is full |
//! | 76 | the server does not speak what is needed |
//! | 77 | permission denied |
//! | 78 | the configuration is wrong |
//! | 124 | `run`: the command exceeded its timeout |
//! | 130 | `run`: interrupted (SIGINT), or cancelled by somebody else |
//! | 143 | `run`: terminated (SIGTERM) |
//!
//! 64 to 78 are those of sysexits.h.

use std::fmt;
use std::process::ExitCode;

use tonic::Code;

use crate::cas::CasError;
use crate::config::{ConfigError, EndpointError};

/// The codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Failed = 1,
    Usage = 2,
    Data = 65,
    NoInput = 66,
    Unavailable = 69,
    Software = 70,
    CannotCreate = 73,
    Io = 74,
    TryAgain = 75,
    Protocol = 76,
    NoPermission = 77,
    Config = 78,
    TimedOut = 124,
    Interrupted = 130,
    Terminated = 143,
}

/// A failure that ends the program.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) text: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, text: impl fmt::Display) -> Self {
        Failure {
            exit,
            text: text.to_string(),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::new(Exit::Config, error)
    }
}

impl From<EndpointError> for Failure {
    fn from(error: EndpointError) -> Self {
        Failure::new(Exit::Config, error)
    }
}

impl From<CasError> for Failure {
    fn from(error: CasError) -> Self {
        let exit = match &error {
            CasError::Missing(_) => Exit::Failed,
            CasError::Corrupt { .. } | CasError::TooLarge { .. } => Exit::Data,
            // The one who has the store open may be gone in a moment.
            CasError::Disk { action, .. } if *action == "lock blob store" => Exit::TryAgain,
            CasError::Disk { source, .. } => of_disk(source),
            CasError::Full { .. } => Exit::TryAgain,
            CasError::Remote { status, .. } => of_call(status.code()),
        };
        Failure::new(exit, error)
    }
}

/// What a failed system call on state or output means.
pub(super) fn of_disk(error: &std::io::Error) -> Exit {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            Exit::NoPermission
        }
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::ResourceBusy => Exit::TryAgain,
        _ => Exit::Io,
    }
}

/// What the end of a call means. Its deadline is ours and not the command's, and what breaks it off is not our user.
pub(super) fn of_call(code: Code) -> Exit {
    match code {
        Code::DeadlineExceeded | Code::Cancelled => Exit::Unavailable,
        code => of_status(code),
    }
}

/// What the status of an execution means.
pub(super) fn of_status(code: Code) -> Exit {
    match code {
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition | Code::DataLoss => {
            Exit::Data
        }
        Code::Unavailable => Exit::Unavailable,
        Code::DeadlineExceeded => Exit::TimedOut,
        Code::Cancelled => Exit::Interrupted,
        Code::ResourceExhausted | Code::Aborted => Exit::TryAgain,
        Code::PermissionDenied | Code::Unauthenticated => Exit::NoPermission,
        Code::Unimplemented => Exit::Protocol,
        Code::NotFound | Code::AlreadyExists => Exit::Failed,
        Code::Ok | Code::Unknown | Code::Internal => Exit::Software,
    }
}

/// Ends with a failure, told on standard error.
pub(super) fn tell(failure: &Failure) -> ExitCode {
    eprintln!("boxwright: {}", printable(&failure.text));
    ExitCode::from(failure.exit as u8)
}

/// Text from elsewhere, fit for a terminal: control characters but the line feed are escaped.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_is_neither_a_timeout_of_the_command_nor_an_interruption() {
        for code in (1..=16).map(Code::from_i32) {
            let failure = Failure::from(CasError::Remote {
                call: "FindMissingBlobs",
                remote: "http://h:1".to_owned(),
                status: Box::new(tonic::Status::new(code, "")),
            });
            let stolen = matches!(failure.exit, Exit::TimedOut | Exit::Interrupted);
            assert!(!stolen, "{code:?}");
        }
        assert_eq!(of_call(Code::DeadlineExceeded), Exit::Unavailable);
        assert_eq!(of_status(Code::DeadlineExceeded), Exit::TimedOut);
    }
}
