//! What a failed call means for the session. The codes are BuildGrid's; the standard leaves them open.

use std::error::Error;
use std::time::Duration;

use tonic::{Code, Status};

use super::RwapiConfig;
use crate::reapi::status::retry_delay;

/// The longest that a server may make us wait.
const LONGEST_DELAY: Duration = Duration::from_secs(300);
/// The most characters of anything from outside in one of our messages.
const LONGEST_TEXT: usize = 1000;

/// What to do after a failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Say the same again, not before the delay that the server asks for.
    Again(Option<Duration>),
    /// The call took longer than its deadline: say the same again, with more patience.
    Slow,
    /// We are not let in. The operator has to act; try again now and then.
    NotAdmitted,
    /// We had a session and are refused another: say the same again, now and then. The text is for whoever can mend it.
    Refused(String),
    /// The update is larger than the server takes.
    TooLarge,
    /// The session is gone, and its leases belong to others.
    Lost,
    /// Waiting does not help; the text says what to do.
    Fatal(String),
}

/// Judges a failed CreateBotSession. `first` says that this worker has not had a session yet: only then is it the
/// configuration that is wrong. Later it is the scheduler that has changed, or a proxy that has lost it; a roll-out that
/// goes wrong, and is mended, must not cost every worker of a farm.
pub(super) fn of_create(status: &Status, config: &RwapiConfig, first: bool) -> Verdict {
    let said: String = status.message().chars().take(LONGEST_TEXT).collect();
    let text = match status.code() {
        Code::InvalidArgument if said.to_lowercase().contains("instance") => format!(
            "the scheduler has no instance {:?} ({said}); set the instance to a name that it serves",
            config.instance
        ),
        // The worker would say the same the next time.
        Code::InvalidArgument | Code::FailedPrecondition => format!(
            "the scheduler at {} refuses this worker ({:?}: {said}); it was offered the platform \
             properties {}. Set the platform to properties that the scheduler knows, or let it know these",
            config.endpoint,
            status.code(),
            offered(&config.platform)
        ),
        Code::Unimplemented => format!(
            "the server has no Remote Workers (Bots) service ({said}); \
             set the bots remote to the address of one that has"
        ),
        _ => return common(status),
    };
    match first {
        true => Verdict::Fatal(text),
        false => Verdict::Refused(text),
    }
}

/// The properties in one line.
fn offered(platform: &[(String, String)]) -> String {
    if platform.is_empty() {
        return "(none)".to_owned();
    }
    let pairs: Vec<_> = platform.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(", ").chars().take(LONGEST_TEXT).collect()
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
        Code::Unauthenticated | Code::PermissionDenied => Verdict::NotAdmitted,
        Code::DeadlineExceeded | Code::Cancelled => Verdict::Slow,
        _ => Verdict::Again(retry_delay(status).map(|delay| delay.min(LONGEST_DELAY))),
    }
}

/// Whether no server has spoken: what a status that we or gRPC made up of a broken or silent
/// connection has in common.
pub(super) fn is_silence(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) || status.source().is_some()
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
    use crate::config::Endpoint;

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
        let config = RwapiConfig {
            instance: "x".to_owned(),
            platform: vec![("pool".to_owned(), "b".to_owned())],
            ..RwapiConfig::new(Endpoint::Http("bots:1".into()))
        };
        for (status, parts) in [
            (
                Status::invalid_argument("Invalid instance name: [x]"),
                ["\"x\"", "set the instance"],
            ),
            (
                Status::failed_precondition("no such set"),
                ["no such set", "pool=b. Set the platform"],
            ),
            (
                Status::invalid_argument("bot_id"),
                ["bot_id", "pool=b. Set the platform"],
            ),
            (Status::unimplemented("404"), ["404", "set the bots remote"]),
        ] {
            let verdict = of_create(&status, &config, true);
            let Verdict::Fatal(text) = verdict else {
                panic!("{status}: {verdict:?}")
            };
            let later = of_create(&status, &config, false);
            assert_eq!(later, Verdict::Refused(text.clone()));
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
        // An ingress without a server behind it answers 404 too.
        assert_eq!(
            of_update(&Status::unimplemented("404")),
            Verdict::Again(None)
        );
        for status in [
            Status::unavailable("x"),
            Status::internal("x"),
            Status::unknown("x"),
            Status::resource_exhausted("Concurrent RPC limit exceeded!"),
        ] {
            assert_eq!(
                of_create(&status, &config, true),
                Verdict::Again(None),
                "{status}"
            );
            assert_eq!(of_update(&status), Verdict::Again(None), "{status}");
        }
        assert_eq!(
            of_update(&Status::unauthenticated("x")),
            Verdict::NotAdmitted
        );
    }

    #[test]
    fn a_refusal_is_told_from_silence() {
        assert!(is_silence(&Status::unavailable("x")));
        assert!(is_silence(&Status::deadline_exceeded("x")));
        assert!(is_silence(&Status::from_error(Box::new(
            std::io::Error::other("broken pipe")
        ))));
        assert!(!is_silence(&Status::internal("x")));
        assert!(!is_silence(&Status::unimplemented("x")));
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
