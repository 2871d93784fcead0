//! Whether a client takes what it has asked for: how much each connection takes, and how long an answer waits for it.
//!
//! An answer waits from when the transport has some of it, until the transport asks for more and there is none: the client
//! has all there was by then. It is time spent waiting that counts, not what happens to be at some moment, so that neither
//! a client that was just given something is late, nor one in time that takes a byte now and then. Answers that share a
//! connection share what it can carry, and not in equal parts: one that waits is put up with as long as its connection takes
//! something for each, though not for ever, as otherwise who reads one slowly would keep all others.

use std::time::Duration;

use tokio::time::Instant;

use super::taken::{Counted, Taken};

/// What a client takes of an answer at least while it may keep it waiting, in bytes. The transport is given twice as much at a
/// time, so that any whole piece will do. A hundred answers on a connection ask for 27 KiB/s together.
const LEAST: u64 = 16 << 10;
/// How many times in succession an answer is put up with for the sake of its connection: ten minutes with the usual one.
const TIMES: u32 = 9;
/// How many times as long as a client may be idle one message may take as a whole: half an hour, which 4 MiB take at 20 kbit/s.
/// Without it LEAST would be some hours.
const WHOLE: u32 = 32;

/// How an answer is taken.
pub(super) struct Pace {
    connection: Taken,
    /// How long it may be kept waiting.
    idle: Duration,
    /// When the message that is on its way must have been taken.
    until: Option<Instant>,
    /// For the client; else the client waits for more.
    waiting: Option<Counted>,
    /// That it is so.
    since: Instant,
    /// How long it was kept waiting before that, less the time for which the client was.
    kept: Duration,
    /// What was taken of it meanwhile, in bytes.
    taken: u64,
    /// What the connection had taken when this began.
    before: u64,
    /// How many answers waited for it then: those that came since are no reason to call it slow.
    waited: u64,
    /// In succession.
    put_up_with: u32,
}

impl Pace {
    /// That of an answer that is there now.
    pub(super) fn new(connection: Taken, idle: Duration) -> Self {
        Pace {
            waiting: Some(connection.waiting()),
            before: connection.bytes(),
            waited: connection.waits(),
            connection,
            idle,
            until: None,
            since: Instant::now(),
            kept: Duration::ZERO,
            taken: 0,
            put_up_with: 0,
        }
    }

    /// A message that is handed on piece by piece begins, or has come to its end.
    pub(super) fn message(&mut self, begins: bool) {
        self.until = begins.then(|| Instant::now() + self.idle * WHOLE);
    }

    /// The transport was given `bytes`, and does not wait for more.
    pub(super) fn took(&mut self, bytes: usize) {
        self.settle();
        self.taken += bytes as u64;
        let fresh = self.waiting.is_none() && self.kept.is_zero();
        (self.waiting).get_or_insert_with(|| self.connection.waiting());
        if self.taken >= LEAST {
            self.put_up_with = 0;
            self.begin();
        } else if fresh {
            self.begin();
        }
    }

    /// The transport waits for more: the client has taken all that there was.
    pub(super) fn wanted(&mut self) {
        self.settle();
        self.waiting = None;
        self.put_up_with = 0;
    }

    /// How long the client has at least; `None` if it took too long.
    pub(super) fn left(&mut self) -> Option<Duration> {
        self.settle();
        if self.waiting.is_none() {
            return Some(self.idle);
        }
        if self.until.is_some_and(|until| until <= self.since) {
            return None;
        }
        if self.kept < self.idle {
            return Some(self.idle - self.kept);
        }
        let waited = self.waited.min(self.connection.waits());
        let enough = self.connection.bytes() - self.before >= LEAST * waited;
        if !enough || self.put_up_with == TIMES {
            return None;
        }
        self.put_up_with += 1;
        self.begin();
        Some(self.idle)
    }

    /// The answer was given up. The client does not know of it until what this gives is dropped.
    pub(super) fn give_up(&self) -> Counted {
        self.connection.unread()
    }

    fn begin(&mut self) {
        (self.kept, self.taken) = (Duration::ZERO, 0);
        self.before = self.connection.bytes();
        self.waited = self.connection.waits();
    }

    fn settle(&mut self) {
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut self.since, now);
        self.kept = match self.waiting {
            Some(_) => self.kept + passed,
            None => self.kept.saturating_sub(passed),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const IDLE: Duration = Duration::from_secs(60);
    const MOMENT: Duration = Duration::from_millis(1);

    fn stream(connection: &Taken) -> Pace {
        Pace::new(connection.clone(), IDLE)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_wait_as_long_as_the_client_may_be_idle() {
        let mut pace = stream(&Taken::default());
        advance(IDLE - MOMENT).await;
        assert_eq!(pace.left(), Some(MOMENT));
        advance(MOMENT).await;
        assert_eq!(pace.left(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_little_but_all_there_is_is_not_late() {
        let mut pace = stream(&Taken::default());
        for _ in 0..100 {
            pace.took(1);
            advance(IDLE / 4).await;
            pace.wanted();
            advance(IDLE / 3).await;
            assert!(pace.left().is_some());
        }
        // Just before it would have been over, had it waited all the time.
        advance(IDLE - MOMENT).await;
        pace.took(1);
        advance(MOMENT * 2).await;
        assert!(pace.left().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_without_anything_to_take_does_not_excuse_a_trickle() {
        let mut pace = stream(&Taken::default());
        for _ in 0..3 {
            pace.took(1);
            advance(IDLE / 3).await;
            pace.wanted();
            advance(MOMENT).await;
        }
        pace.took(1);
        advance(MOMENT * 3).await;
        assert_eq!(pace.left(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_which_enough_is_taken_may_be_long() {
        let mut pace = stream(&Taken::default());
        for _ in 0..100 {
            advance(IDLE - MOMENT).await;
            assert_eq!(pace.left(), Some(MOMENT));
            pace.took(LEAST as usize);
        }
        advance(IDLE - MOMENT).await;
        pace.took(LEAST as usize - 1);
        advance(MOMENT).await;
        assert_eq!(pace.left(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_must_take_something_for_each_answer_that_waits() {
        for (less, more) in [(0, 0), (1, 0), (0, 2), (1, 2)] {
            let connection = Taken::default();
            let _other = stream(&connection);
            // It has all there is, and does not count; nor do those that come later.
            let satisfied = (more == 0).then(|| stream(&connection));
            let mut pace = stream(&connection);
            connection.add(2 * LEAST as usize - less);
            advance(IDLE).await;
            if let Some(mut satisfied) = satisfied {
                satisfied.wanted();
            }
            let _more: Vec<_> = (0..more).map(|_| stream(&connection)).collect();
            assert_eq!(pace.left().is_some(), less == 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_takes_other_things_excuses_nothing_for_ever() {
        let connection = Taken::default();
        let mut pace = stream(&connection);
        for _ in 0..2 {
            for _ in 0..TIMES {
                connection.add(LEAST as usize);
                advance(IDLE).await;
                assert_eq!(pace.left(), Some(IDLE));
            }
            pace.took(LEAST as usize);
        }
        for _ in 0..TIMES {
            connection.add(LEAST as usize);
            advance(IDLE).await;
            // It takes a little whenever it was put up with.
            assert!(pace.left().is_some());
            pace.took(1);
        }
        connection.add(LEAST as usize);
        advance(IDLE).await;
        assert_eq!(pace.left(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_all_there_is_has_it_for_ever_on_a_slow_connection() {
        let connection = Taken::default();
        let mut pace = stream(&connection);
        for _ in 0..TIMES * 3 {
            // A little comes now and then, and must wait for what others take.
            connection.add(LEAST as usize);
            advance(IDLE).await;
            assert!(pace.left().is_some());
            pace.wanted();
            advance(MOMENT).await;
            pace.took(1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_taken_slowly_comes_to_an_end() {
        for whole in [false, true] {
            let mut pace = stream(&Taken::default());
            // Another was before it.
            pace.message(true);
            advance(IDLE - MOMENT).await;
            pace.message(false);
            pace.took(LEAST as usize);
            pace.message(whole);
            for _ in 0..WHOLE - 1 {
                advance(IDLE - MOMENT).await;
                pace.took(LEAST as usize);
                assert!(pace.left().is_some());
            }
            advance(MOMENT * WHOLE).await;
            pace.took(LEAST as usize);
            assert!(pace.left().is_some());
            advance(IDLE - MOMENT).await;
            assert_eq!(pace.left().is_none(), whole);
        }
    }
}
