//! When to speak to the scheduler, and for how long to listen.
//!
//! BuildGrid answers an update at once if there is no free slot, if the bot is not OK or if
//! something changed; otherwise it waits for work for 0.8 times the call's deadline, or its own
//! keep-alive if that is shorter, and not at all if that makes less than 3 s. A cancellation does
//! not wake it. Hence: a long deadline while nothing runs, a short one while something does, a pace
//! of our own when the server would not wait.

use std::time::Duration;

use tokio::time::Instant;

/// With a shorter deadline BuildGrid never waits for work.
const SHORTEST_POLL: Duration = Duration::from_millis(3750);
/// With this deadline it answers at once, and delivers what it leased already.
const QUICK_POLL: Duration = Duration::from_millis(3500);
/// So many quick polls in a row may run into their deadline before the server is given more time after
/// all: a session expires if no update succeeds.
const QUICK_TRIES: u32 = 3;
/// The longest deadline of a call that may have to be repeated.
const MOST_PATIENCE: Duration = Duration::from_secs(36);

/// How often the scheduler hears from us. The defaults suit BuildGrid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pacing {
    /// The deadline of an update while nothing runs. At least 3.75 s is used.
    pub idle_poll: Duration,
    /// The deadline of an update while something runs; a cancellation is seen after 0.8 times this. At
    /// least 3.75 s is used.
    pub busy_poll: Duration,
    /// Between updates while every slot is taken: a cancellation is seen after this.
    pub full_interval: Duration,
    /// Between updates while the worker is unwell and nothing runs.
    pub unwell_interval: Duration,
    /// Between updates while the worker waits for its last actions to end.
    pub terminating_interval: Duration,
    /// The first delay after a failed call; it doubles with each further one. Half of every delay is random.
    pub backoff_first: Duration,
    /// The longest such delay while nothing runs.
    pub backoff_idle: Duration,
    /// The longest such delay while something runs, or has to be reported.
    pub backoff_busy: Duration,
    /// Between attempts while the scheduler does not let us in.
    pub not_admitted: Duration,
    /// How long to try to tell an unreachable scheduler of the last end before leaving.
    pub drain_patience: Duration,
}

impl Default for Pacing {
    fn default() -> Self {
        Pacing {
            idle_poll: Duration::from_secs(300),
            busy_poll: Duration::from_millis(4500),
            full_interval: Duration::from_millis(1500),
            unwell_interval: Duration::from_secs(5),
            terminating_interval: Duration::from_secs(1),
            backoff_first: Duration::from_millis(250),
            backoff_idle: Duration::from_secs(10),
            backoff_busy: Duration::from_secs(4),
            not_admitted: Duration::from_secs(30),
            drain_patience: Duration::from_secs(30),
        }
    }
}

/// What was said when.
#[derive(Debug)]
pub(super) struct Clock {
    pacing: Pacing,
    /// The last call began here.
    asked: Instant,
    /// The last answer came here.
    answered: Instant,
    /// The last answer came early and told nothing new.
    hollow: bool,
    /// No call before this, whatever there is to say.
    not_before: Instant,
    /// Calls that failed since the last one that did not.
    failures: u32,
    /// Those of them that ran into their deadline.
    timeouts: u32,
    /// Sessions that were lost since an update last succeeded.
    losses: u32,
}

impl Clock {
    pub(super) fn new(pacing: Pacing) -> Self {
        let now = Instant::now();
        Clock {
            pacing,
            asked: now,
            answered: now,
            hollow: false,
            not_before: now,
            failures: 0,
            timeouts: 0,
            losses: 0,
        }
    }

    pub(super) fn pacing(&self) -> &Pacing {
        &self.pacing
    }

    /// The deadline for an update that may take its time, because nothing runs.
    pub(super) fn idle_deadline(&self) -> Duration {
        self.pacing.idle_poll.max(SHORTEST_POLL)
    }

    /// The deadline for any other call. A slow server gets more time with every attempt.
    pub(super) fn deadline(&self) -> Duration {
        self.deadline_after(self.timeouts)
    }

    /// The deadline for an update while something runs and no end has to be told. More time for a slow
    /// server would be more time to wait for work in, and a cancellation would be seen that much later.
    pub(super) fn busy_deadline(&self) -> Duration {
        match self.timeouts {
            1..=QUICK_TRIES => QUICK_POLL,
            _ => self.deadline_after(self.timeouts.saturating_sub(QUICK_TRIES)),
        }
    }

    fn deadline_after(&self, timeouts: u32) -> Duration {
        let deadline = self.pacing.busy_poll.max(SHORTEST_POLL);
        let patient = deadline * 2u32.pow(timeouts.min(10));
        patient.min(MOST_PATIENCE.max(deadline))
    }

    /// The time of the next call if there is something to say.
    pub(super) fn at_once(&self) -> Instant {
        self.not_before
    }

    /// The time of the next call if the server will wait for work: now, unless it did not wait the last time.
    pub(super) fn next_poll(&self) -> Instant {
        if self.hollow {
            self.not_before.max(self.asked + self.pacing.full_interval)
        } else {
            self.not_before
        }
    }

    /// The time of the next call if the server will not wait.
    pub(super) fn after(&self, interval: Duration) -> Instant {
        self.not_before.max(self.answered + interval)
    }

    pub(super) fn asks(&mut self) {
        self.asked = Instant::now();
    }

    /// An update succeeded, and brought news or not.
    pub(super) fn answered(&mut self, news: bool) {
        self.answered = Instant::now();
        self.hollow = !news && self.answered - self.asked < self.pacing.full_interval;
        self.failures = 0;
        self.timeouts = 0;
        self.losses = 0;
    }

    /// A call failed; returns the delay until the next one. `asked_for` is the least that the server wants.
    pub(super) fn failed(
        &mut self,
        busy: bool,
        slow: bool,
        asked_for: Option<Duration>,
    ) -> Duration {
        let limit = match busy {
            true => self.pacing.backoff_busy,
            false => self.pacing.backoff_idle,
        };
        let full = self
            .pacing
            .backoff_first
            .saturating_mul(2u32.saturating_pow(self.failures.min(20)))
            .min(limit);
        self.failures = self.failures.saturating_add(1);
        if slow {
            self.timeouts = self.timeouts.saturating_add(1);
        }
        let delay = full
            .mul_f64(0.5 + 0.5 * random())
            .max(asked_for.unwrap_or_default());
        self.not_before = Instant::now() + delay;
        delay
    }

    /// The server answered, but the session is gone. What went wrong before it answered no longer
    /// counts; losing one session after the other does.
    pub(super) fn lost(&mut self) {
        self.failures = self.losses;
        self.timeouts = 0;
        self.losses = self.losses.saturating_add(1);
        self.failed(false, false, None);
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Does not wait longer than this for the next call.
    pub(super) fn hurry(&mut self, most: Duration) {
        self.not_before = self.not_before.min(Instant::now() + most);
    }
}

/// Between 0 and 1. Workers that lost their server together must not come back together.
fn random() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> Clock {
        Clock::new(Pacing::default())
    }

    #[tokio::test(start_paused = true)]
    async fn delays_grow_to_their_limit() {
        let mut clock = clock();
        let delays: Vec<_> = (0..12).map(|_| clock.failed(false, false, None)).collect();
        for (n, delay) in delays.iter().enumerate() {
            let full = Duration::from_millis(250 << n.min(7)).min(Duration::from_secs(10));
            assert!(*delay >= full / 2 && *delay <= full, "{n}: {delay:?}");
        }
        assert!(clock.failed(true, false, None) <= Duration::from_secs(4));
        let asked_for = Some(Duration::from_secs(31));
        assert!(clock.failed(true, false, asked_for) >= Duration::from_secs(31));
        clock.answered(true);
        assert!(clock.failed(false, false, None) <= Duration::from_millis(250));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_an_outage_cost_is_created_again_soon() {
        let mut clock = clock();
        for _ in 0..10 {
            clock.failed(false, false, None);
        }
        clock.lost();
        assert!(clock.at_once() <= Instant::now() + Duration::from_millis(250));
        for _ in 0..10 {
            clock.lost();
        }
        assert!(clock.at_once() >= Instant::now() + Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_server_gets_more_time() {
        let mut clock = clock();
        assert_eq!(clock.deadline(), Duration::from_millis(4500));
        clock.failed(true, true, None);
        assert_eq!(clock.deadline(), Duration::from_secs(9));
        for _ in 0..40 {
            clock.failed(true, true, None);
        }
        assert_eq!(clock.deadline(), MOST_PATIENCE);
        clock.answered(false);
        assert_eq!(clock.deadline(), Duration::from_millis(4500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_does_not_delay_cancellations() {
        let mut clock = clock();
        assert_eq!(clock.busy_deadline(), Duration::from_millis(4500));
        for _ in 0..QUICK_TRIES {
            clock.failed(true, true, None);
            assert!(clock.busy_deadline() < SHORTEST_POLL);
        }
        // It cannot even answer at once in that time.
        clock.failed(true, true, None);
        assert_eq!(clock.busy_deadline(), Duration::from_secs(9));
        clock.answered(false);
        assert_eq!(clock.busy_deadline(), Duration::from_millis(4500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_wait_is_not_asked_in_a_loop() {
        let mut clock = clock();
        clock.asks();
        clock.answered(false);
        assert!(clock.next_poll() >= Instant::now() + Duration::from_millis(1500));
        assert!(clock.at_once() <= Instant::now());
        clock.asks();
        clock.answered(true);
        assert!(clock.next_poll() <= Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn no_deadline_is_too_short_to_wait_for_work() {
        let clock = Clock::new(Pacing {
            idle_poll: Duration::from_secs(1),
            busy_poll: Duration::from_secs(1),
            ..Pacing::default()
        });
        assert_eq!(clock.idle_deadline(), SHORTEST_POLL);
        assert_eq!(clock.deadline(), SHORTEST_POLL);
    }
}
