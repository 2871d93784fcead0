//! When a failed call is tried again, and after which pause: exponential back-off with full jitter,
//! never sooner than the server asks.

use std::time::Duration;

use tonic::{Code, Status};

use crate::reapi::status::retry_delay;

/// No pause is longer than this by itself.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// A server that asks for more patience than this is not waited for any longer.
const LONGEST_REQUESTED: Duration = Duration::from_secs(60);

/// How often and how patiently one operation is tried again.
#[derive(Clone, Debug)]
pub(super) struct Retry {
    allowed: u32,
    used: u32,
    first_pause: Duration,
}

impl Retry {
    /// `retries` tries after the first one.
    pub(super) fn new(retries: u32, first_pause: Duration) -> Self {
        Retry {
            allowed: retries,
            used: 0,
            first_pause,
        }
    }

    /// The operation moved on: it has all its tries again.
    pub(super) fn progressed(&mut self) {
        self.used = 0;
    }

    /// Uses up one try and says how long to pause before it; `None` when there is none left.
    pub(super) fn next(&mut self, failure: &Status) -> Option<Duration> {
        if self.used >= self.allowed {
            return None;
        }
        let ceiling = self
            .first_pause
            .saturating_mul(1u32.checked_shl(self.used).unwrap_or(u32::MAX))
            .min(LONGEST_PAUSE);
        self.used += 1;
        let requested = retry_delay(failure).unwrap_or_default();
        Some(requested.min(LONGEST_REQUESTED) + ceiling.mul_f64(random_fraction()))
    }
}

/// Whether the same call may succeed later. Every call of a CAS client is idempotent, so that only the futility of
/// trying again counts.
pub(super) fn is_transient(status: &Status) -> bool {
    match status.code() {
        // INTERNAL is what a reset stream becomes; CANCELLED can only be the server's or a proxy's
        // doing, as a call that we cancel is not looked at any more.
        Code::Unavailable
        | Code::Aborted
        | Code::ResourceExhausted
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Cancelled => true,
        // A broken connection; without a source it is the server's own word.
        Code::Unknown => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

/// Uniform in 0..1; drawn from the random bits of a UUID, of which these are not fixed by the
/// version.
fn random_fraction() -> f64 {
    let bits = uuid::Uuid::new_v4().as_u128() as u32;
    f64::from(bits) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::any::pack;
    use crate::reapi::proto::rpc;
    use crate::reapi::{status, time};

    #[test]
    fn tries_are_bounded_and_pauses_stay_below_their_ceilings() {
        let mut retry = Retry::new(5, Duration::from_millis(100));
        let failure = Status::unavailable("x");
        for doubled in [100, 200, 400, 800, 1600] {
            let pause = retry.next(&failure).unwrap();
            assert!(pause <= Duration::from_millis(doubled), "{pause:?}");
        }
        assert_eq!(retry.next(&failure), None);
        retry.progressed();
        assert!(retry.next(&failure).unwrap() <= Duration::from_millis(100));
    }

    #[test]
    fn pauses_differ() {
        let mut pauses: Vec<_> = (0..20)
            .map(|_| Retry::new(1, Duration::from_secs(1)).next(&Status::aborted("")))
            .collect();
        pauses.sort();
        pauses.dedup();
        assert!(pauses.len() > 10);
    }

    #[test]
    fn the_server_s_wish_is_a_lower_bound_up_to_a_minute() {
        let asked = |seconds| {
            let inner = rpc::Status {
                details: vec![pack(&rpc::RetryInfo {
                    retry_delay: Some(time::duration(Duration::from_secs(seconds))),
                })],
                ..status::status(Code::Unavailable, "busy")
            };
            Retry::new(1, Duration::from_millis(1))
                .next(&status::to_call_status(&inner))
                .unwrap()
        };
        assert!(asked(30) >= Duration::from_secs(30));
        assert!(asked(86_400) < Duration::from_secs(61));
    }

    #[test]
    fn many_tries_do_not_overflow() {
        let mut retry = Retry::new(u32::MAX, Duration::from_secs(3600));
        for _ in 0..100 {
            assert!(retry.next(&Status::aborted("")).unwrap() <= LONGEST_PAUSE);
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for status in [
            Status::unavailable(""),
            Status::aborted(""),
            Status::resource_exhausted(""),
            Status::deadline_exceeded(""),
            Status::internal(""),
            Status::cancelled(""),
            Status::from_error(Box::new(std::io::Error::other("broken pipe"))),
        ] {
            assert!(is_transient(&status), "{status:?}");
        }
        for status in [
            Status::unknown("said the server"),
            Status::not_found(""),
            Status::invalid_argument(""),
            Status::permission_denied(""),
            Status::unauthenticated(""),
            Status::out_of_range(""),
            Status::data_loss(""),
            Status::unimplemented(""),
            Status::failed_precondition(""),
        ] {
            assert!(!is_transient(&status), "{status:?}");
        }
    }
}
