//! Whether this machine can still run actions. A machine that cannot fails every action that it is
//! given, fast, and so attracts more of them than any other: after some failures of ours in a row it
//! takes nothing for a while, then tries one.

use std::time::Duration;

use tokio::time::Instant;

use crate::action::Ending;

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
    failures: u32,
    threshold: u32,
    pause: Duration,
    relapses: u32,
    recheck: Option<Instant>,
}

impl Health {
    pub(super) fn new(threshold: u32, pause: Duration) -> Self {
        Health {
            failures: 0,
            threshold: threshold.max(1),
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
        self.failures = self.threshold - 1;
    }

    /// Takes note of how an action ended.
    pub(super) fn ended(&mut self, ending: &Ending) -> Change {
        match ending {
            Ending::Infrastructure(why) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures < self.threshold || self.recheck.is_some() {
                    return Change::None;
                }
                let pause = self.pause * 2u32.pow(self.relapses.min(DOUBLINGS));
                self.relapses = self.relapses.saturating_add(1);
                self.recheck = Some(Instant::now() + pause);
                Change::Unwell(format!(
                    "{} actions in a row failed for reasons of this worker's, the last with: {why}",
                    self.failures
                ))
            }
            Ending::Exited(_)
            | Ending::Signalled(_)
            | Ending::TimedOut { .. }
            | Ending::OutOfMemory { .. }
            | Ending::LimitExceeded(_) => {
                self.failures = 0;
                self.relapses = 0;
                match self.recheck.take() {
                    Some(_) => Change::Well,
                    None => Change::None,
                }
            }
            // These say nothing of the machine: no command was run.
            Ending::BadRequest(_)
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

    fn broken() -> Ending {
        Ending::Infrastructure("no disk".into())
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_make_unwell_and_a_success_well() {
        let mut health = Health::new(3, Duration::from_secs(10));
        for _ in 0..2 {
            assert_eq!(health.ended(&broken()), Change::None);
        }
        assert_eq!(health.ended(&Ending::Exited(1)), Change::None);
        for _ in 0..2 {
            assert_eq!(health.ended(&broken()), Change::None);
        }
        assert_eq!(health.ended(&Ending::Cancelled), Change::None);
        assert!(matches!(health.ended(&broken()), Change::Unwell(why) if why.contains("no disk")));
        assert_eq!(health.ended(&broken()), Change::None, "told once");
        assert_eq!(health.ended(&Ending::Exited(0)), Change::Well);
        assert_eq!(health.recheck_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_recheck_one_failure_is_enough_and_the_pause_grows() {
        let mut health = Health::new(2, Duration::from_secs(10));
        health.ended(&broken());
        health.ended(&broken());
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pauses.push((health.recheck_at().unwrap() - Instant::now()).as_secs());
            health.recheck();
            assert_eq!(health.recheck_at(), None);
            assert!(matches!(health.ended(&broken()), Change::Unwell(_)));
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 160, 160]);
    }
}
