//! How long readers have waited for contents that were not local yet.
//!
//! A clock that runs while at least one read waits. It is one for all actions, for it is not known for whom the kernel reads
//! ahead: an action that did not wait may be granted the time in which another one did.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The clock.
#[derive(Clone, Default)]
pub(super) struct Stalls {
    clock: Arc<Mutex<Clock>>,
}

#[derive(Default)]
struct Clock {
    waiting: usize,
    since: Option<Instant>,
    total: Duration,
}

/// One read that waits.
pub(super) struct Stall(Stalls);

impl Stalls {
    /// A read waits until the result is dropped.
    pub(super) fn begin(&self) -> Stall {
        let mut clock = self.clock.lock();
        clock.waiting += 1;
        if clock.waiting == 1 {
            clock.since = Some(Instant::now());
        }
        Stall(self.clone())
    }

    /// The time in which somebody waited, so far.
    pub(super) fn total(&self) -> Duration {
        let clock = self.clock.lock();
        clock.total + clock.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        let mut clock = self.0.clock.lock();
        clock.waiting -= 1;
        if clock.waiting == 0
            && let Some(since) = clock.since.take()
        {
            clock.total += since.elapsed();
        }
    }
}
