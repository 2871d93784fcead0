//! What looks at a disk tell of the time between them: a program can fill it and free it again before the next. So one that has less free
//! is looked at more often, as fast as anybody writes to memory; where that came too late, it may have been full, if it was
//! written to so fast at any time.

use std::time::{Duration, Instant};

/// How often at least.
const SELDOM: Duration = Duration::from_millis(200);
/// How often at most.
const OFTEN: Duration = Duration::from_millis(1);
/// How fast a disk may be filled, in bytes a nanosecond. Space that is only allocated comes faster.
const FAST: u64 = 8;

/// The looks of one command's time.
pub(super) struct Looks {
    last: Instant,
    /// What was free then, in bytes.
    free: u64,
    /// The most that was seen to be written in a second.
    fastest: f64,
    may_have_been_full: bool,
}

impl Looks {
    /// Begins with what is free.
    pub(super) fn begun(at: Instant, free: u64) -> Self {
        Looks {
            last: at,
            free,
            fastest: 0.0,
            may_have_been_full: false,
        }
    }

    /// Takes in one that began and ended then. The disk may have been filled since the last, or may have come to what is free
    /// now from what was free then by way of nothing.
    pub(super) fn look(&mut self, began: Instant, ended: Instant, free: u64) {
        // The longest that it can have been: whoever looks may have to wait in the midst of it.
        let since = ended.saturating_duration_since(self.last).as_secs_f64();
        let written = self.free.saturating_sub(free);
        if since > 0.0 {
            let fastest = self.fastest.max(written as f64 / since);
            self.fastest = fastest.min(FAST as f64 * 1e9);
        }
        let least = self.free.min(free);
        self.may_have_been_full |= self.fastest * since > least as f64;
        (self.last, self.free) = (began, free);
    }

    /// How long until the next.
    pub(super) fn pause(&self) -> Duration {
        Duration::from_nanos(self.free / FAST).clamp(OFTEN, SELDOM)
    }

    pub(super) fn may_have_been_full(&self) -> bool {
        self.may_have_been_full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLION: u64 = 1_000_000;

    /// After these looks, at so many milliseconds, with so many million bytes free; 100 at the beginning.
    fn seen(looks: &[(u64, u64)]) -> bool {
        let begun = Instant::now();
        let mut seen = Looks::begun(begun, 100 * MILLION);
        for &(millis, free) in looks {
            let at = begun + Duration::from_millis(millis);
            seen.look(at, at, free * MILLION);
        }
        seen.may_have_been_full()
    }

    #[test]
    fn a_disk_that_was_filled_and_freed_between_two_looks_may_have_been_full() {
        assert!(!seen(&[(10, 90), (20, 80), (30, 100)]));
        // Seen on its way, gone at the next look.
        assert!(seen(&[(10, 60), (20, 30), (30, 100)]));
        // The looks came late.
        assert!(seen(&[(10, 80), (90, 100)]));
        // Nobody writes.
        assert!(!seen(&[(10, 100), (500, 100)]));
    }

    /// Space that is allocated and not written says nothing of how fast the rest could be.
    #[test]
    fn nobody_is_taken_to_write_faster_than_to_memory() {
        let begun = Instant::now();
        let mut seen = Looks::begun(begun, 15_000 * MILLION);
        for (millis, free) in [(200, 5_000), (400, 5_000)] {
            let at = begun + Duration::from_millis(millis);
            seen.look(at, at, free * MILLION);
        }
        assert!(!seen.may_have_been_full());
    }

    #[test]
    fn who_had_to_wait_between_the_clock_and_the_disk_takes_no_rate_from_it() {
        let begun = Instant::now();
        let after = |millis| begun + Duration::from_millis(millis);
        let mut seen = Looks::begun(begun, 100 * MILLION);
        seen.look(after(1), after(20), 80 * MILLION);
        seen.look(after(21), after(22), 79 * MILLION);
        seen.look(after(40), after(41), 78 * MILLION);
        assert!(!seen.may_have_been_full());
    }

    #[test]
    fn the_less_is_free_the_more_often_it_is_looked_at() {
        let pause = |free| Looks::begun(Instant::now(), free).pause();
        assert_eq!(pause(u64::MAX), SELDOM);
        assert_eq!(pause(0), OFTEN);
        assert_eq!(pause(80 * MILLION), Duration::from_millis(10));
    }
}
