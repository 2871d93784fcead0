//! What a failed call means for the session. The codes are BuildGrid's; the standard leaves them open.

use std::time::Duration;

use tonic::{Code, Status};

use crate::reapi::status::retry_delay;

/// The longest that a server may make us wait.
const LONGEST_DELAY: Duration = Duration::from_secs(300);

/// What to do after a failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Say the same again, not before the delay that the server asks for.
    Again(Option<Duration>),
    /// The call took longer than its deadline: say the same again, with more patience.
    Slow,
    /// We are not let in. The operator has to act; try again now and then.
    NotAdmitted,
    /// The update is larger than the server takes.
    TooLarge,
    /// The session is gone, and its leases belong to others.
    Lost,
    /// Waiting does not help; the text says what to do.
    Fatal(String),
}

/// Judges a failed CreateBotSession.
pub(super) fn of_create(status: &Status, instance: &str) -> Verdict {
    match status.code() {
        Code::InvalidArgument if status.message().to_lowercase().contains("instance") => {
            Verdict::Fatal(format!(
                "the scheduler has no instance {instance:?} ({}); \
                 set the instance to a name that it serves",
                status.message()
            ))
        }
        _ => common(status),
    }
}

/// Judges a failed UpdateBotSession. An expired or unknown session shows as INVALID_ARGUMENT,
/// never as NOT_FOUND, so INVALID_ARGUMENT is not fatal here.
pub(super) fn of_update(status: &Status) -> Verdict {
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::DataLoss
        | Code::Aborted
        | Code::FailedPrecondition => Verdict::Lost,
        Code::ResourceExhausted | Code::OutOfRange if says_too_large(status) => Verdict::TooLarge,
        _ => common(status),
    }
}

fn common(status: &Status) -> Verdict {
    match status.code() {
        Code::Unimplemented => Verdict::Fatal(format!(
            "the server has no Remote Workers (Bots) service ({}); \
             set the bots remote to the address of one that has",
            status.message()
        )),
        Code::Unauthenticated | Code::PermissionDenied => Verdict::NotAdmitted,
        Code::DeadlineExceeded | Code::Cancelled => Verdict::Slow,
        _ => Verdict::Again(retry_delay(status).map(|delay| delay.min(LONGEST_DELAY))),
    }
}

/// gRPC's implementations agree on a text for this, not on a code.
fn says_too_large(status: &Status) -> bool {
    let text = status.message();
    ["larger than max", "too large"]
        .iter()
        .any(|part| text.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_session_is_not_a_bad_configuration() {
        for status in [
            Status::invalid_argument("Bot does not exist while validating leases"),
            Status::invalid_argument("Mismatch between client supplied bot_id and session"),
            Status::invalid_argument("Invalid instance name"),
            Status::data_loss("illegal lease state"),
            Status::not_found("no session"),
            Status::aborted("duplicate"),
            Status::failed_precondition("x"),
        ] {
            assert_eq!(of_update(&status), Verdict::Lost, "{status}");
        }
    }

    #[test]
    fn only_what_waiting_cannot_mend_is_fatal() {
        let fatal = of_create(&Status::invalid_argument("Invalid instance name: [x]"), "x");
        let Verdict::Fatal(text) = fatal else {
            panic!("{fatal:?}")
        };
        assert!(
            text.contains("\"x\"") && text.contains("set the instance"),
            "{text}"
        );
        assert!(matches!(
            of_create(&Status::unimplemented(""), ""),
            Verdict::Fatal(_)
        ));
        assert!(matches!(
            of_update(&Status::unimplemented("")),
            Verdict::Fatal(_)
        ));
        for status in [
            Status::unavailable("x"),
            Status::internal("x"),
            Status::unknown("x"),
            Status::resource_exhausted("Concurrent RPC limit exceeded!"),
        ] {
            assert_eq!(of_create(&status, "x"), Verdict::Again(None), "{status}");
            assert_eq!(of_update(&status), Verdict::Again(None), "{status}");
        }
        assert_eq!(
            of_update(&Status::unauthenticated("x")),
            Verdict::NotAdmitted
        );
    }

    #[test]
    fn a_size_limit_is_told_from_other_limits() {
        for status in [
            Status::resource_exhausted("Received message larger than max (5 vs. 4)"),
            Status::out_of_range("Error, decoded message length too large: found 5 bytes"),
        ] {
            assert_eq!(of_update(&status), Verdict::TooLarge, "{status}");
        }
    }
}
