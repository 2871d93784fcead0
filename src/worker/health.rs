//! Whether this machine can still run actions. A machine that cannot fails every action that it is
//! given, fast, and so attracts more of them than any other: after some failures of ours in a row it
//! takes nothing for a while, then tries one.
//!
//! Different actions count, not attempts: one that fails wherever it is run is given to its worker again and again, and must not
//! take that worker from everybody else.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::action::Ending;
use crate::reapi::Digest;

/// Recheck pauses double up to this many times.
const DOUBLINGS: u32 = 4;

/// What an ending does to the worker's health.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// The worker is unwell from now on; the text says why.
    Unwell(String),
    /// The worker is well again.
    Well,
}

/// The failures in a row, and what follows from them.
#[derive(Debug)]
pub(super) struct Health {
    /// The actions that failed, as far as they can be told apart; never more than the threshold.
    failed: HashSet<Option<Digest>>,
    /// The next failure is enough, whatever fails.
    trying: bool,
    threshold: usize,
    pause: Duration,
    relapses: u32,
    recheck: Option<Instant>,
}

impl Health {
    pub(super) fn new(threshold: u32, pause: Duration) -> Self {
        Health {
            failed: HashSet::new(),
            trying: false,
            threshold: threshold.max(1) as usize,
            pause,
            relapses: 0,
            recheck: None,
        }
    }

    /// When to try again, while unwell.
    pub(super) fn recheck_at(&self) -> Option<Instant> {
        self.recheck
    }

    /// Tries again: one more failure is enough to be unwell again.
    pub(super) fn recheck(&mut self) {
        self.recheck = None;
        self.trying = true;
    }

    /// Takes note of how an action ended.
    pub(super) fn ended(&mut self, action: Option<Digest>, ending: &Ending) -> Change {
        match ending {
            Ending::Infrastructure(why) => {
                if self.recheck.is_some() {
                    return Change::None;
                }
                let enough = std::mem::take(&mut self.trying);
                self.failed.insert(action);
                if self.failed.len() < self.threshold && !enough {
                    return Change::None;
                }
                let failed = match std::mem::take(&mut self.failed).len() {
                    1 => {
                        "the action that was tried failed for a reason of this worker's".to_owned()
                    }
                    all => format!(
                        "{all} different actions in a row failed for reasons of this worker's, the last"
                    ),
                };
                let pause = self.pause * 2u32.pow(self.relapses.min(DOUBLINGS));
                self.relapses = self.relapses.saturating_add(1);
                self.recheck = Some(Instant::now() + pause);
                Change::Unwell(format!("{failed} with: {why}"))
            }
            Ending::Exited(_)
            | Ending::Signalled(_)
            | Ending::TimedOut { .. }
            | Ending::OutOfMemory { .. }
            | Ending::LimitExceeded(_)
            | Ending::BadOutput(_) => {
                self.failed.clear();
                self.trying = false;
                self.relapses = 0;
                match self.recheck.take() {
                    Some(_) => Change::Well,
                    None => Change::None,
                }
            }
            // These say nothing of the machine.
            Ending::BadRequest(_)
            | Ending::Refused(_)
            | Ending::Unsupported(_)
            | Ending::MissingInputs(_)
            | Ending::Cancelled
            | Ending::Preempted => Change::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction;

    fn broken() -> Ending {
        Ending::Infrastructure("no disk".into())
    }

    fn number(n: u8) -> Option<Digest> {
        Some(DigestFunction::Sha256.digest(&[n]))
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_make_unwell_and_a_success_well() {
        let mut health = Health::new(3, Duration::from_secs(10));
        for n in [1, 2] {
            assert_eq!(health.ended(number(n), &broken()), Change::None);
        }
        assert_eq!(health.ended(number(3), &Ending::Exited(1)), Change::None);
        for n in [1, 2] {
            assert_eq!(health.ended(number(n), &broken()), Change::None);
        }
        assert_eq!(health.ended(number(3), &Ending::Cancelled), Change::None);
        let change = health.ended(number(3), &broken());
        assert!(matches!(change, Change::Unwell(why) if why.contains("no disk")));
        let change = health.ended(number(4), &broken());
        assert_eq!(change, Change::None, "told once");
        assert_eq!(health.ended(number(5), &Ending::Exited(0)), Change::Well);
        assert_eq!(health.recheck_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_at_one_action_count_once() {
        let mut health = Health::new(2, Duration::from_secs(10));
        for _ in 0..10 {
            assert_eq!(health.ended(number(1), &broken()), Change::None);
        }
        assert!(matches!(
            health.ended(number(2), &broken()),
            Change::Unwell(_)
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_recheck_one_failure_is_enough_and_the_pause_grows() {
        let mut health = Health::new(2, Duration::from_secs(10));
        health.ended(number(1), &broken());
        health.ended(number(2), &broken());
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pauses.push((health.recheck_at().unwrap() - Instant::now()).as_secs());
            health.recheck();
            assert_eq!(health.recheck_at(), None);
            let change = health.ended(number(1), &broken());
            assert!(matches!(change, Change::Unwell(_)));
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 160, 160]);
    }
}
