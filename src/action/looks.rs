//! What looks at a disk tell of the time between them: a program can fill it and free it again before the next. So one that has less free
//! is looked at more often, more so than anybody could fill it from memory; where that came too late, it may have been full, if it was
//! written to so fast just before.

use std::time::{Duration, Instant};

/// How often at least.
const SELDOM: Duration = Duration::from_millis(200);
/// How often at most.
const OFTEN: Duration = Duration::from_millis(1);
/// How fast a disk may be filled, in bytes a nanosecond. Space that is only allocated comes faster.
const FAST: u64 = 8;
/// How many times as late a look may be before as much could have been written meanwhile.
const LATE: u64 = 4;
/// How long until half as much is expected of who has stopped to write.
const HALF: Duration = SELDOM;

/// The looks of one command's time.
pub(super) struct Looks {
    last: Instant,
    /// What was free then, in bytes.
    free: u64,
    /// What is written in a second, as far as was seen lately.
    speed: f64,
    may_have_been_full: bool,
}

impl Looks {
    /// Begins with what is free.
    pub(super) fn begun(at: Instant, free: u64) -> Self {
        Looks {
            last: at,
            free,
            speed: 0.0,
            may_have_been_full: false,
        }
    }

    /// Takes in one that began and ended then. Whoever filled the disk since the last has written all that was free then, whatever
    /// has been freed again.
    pub(super) fn look(&mut self, began: Instant, ended: Instant, free: u64) {
        // The longest that it can have been: whoever looks may have to wait in the midst of it.
        let since = ended.saturating_duration_since(self.last).as_secs_f64();
        self.may_have_been_full |= self.speed * since > self.free as f64;
        let written = self.free.saturating_sub(free) as f64;
        let before = self.speed * 0.5_f64.powf(since / HALF.as_secs_f64());
        let now = if since > 0.0 { written / since } else { 0.0 };
        self.speed = before.max(now).min(FAST as f64 * 1e9);
        (self.last, self.free) = (began, free);
    }

    /// How long until the next.
    pub(super) fn pause(&self) -> Duration {
        Duration::from_nanos(self.free / FAST / LATE).clamp(OFTEN, SELDOM)
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

    #[test]
    fn who_takes_most_of_what_is_free_has_not_filled_the_disk() {
        let begun = Instant::now();
        let mut seen = Looks::begun(begun, 100 * MILLION);
        let mut at = begun + Duration::from_millis(3);
        seen.look(at, at, 20 * MILLION);
        // There is little left, and looked at so much more often.
        while at < begun + Duration::from_secs(5) {
            at += seen.pause() * 2;
            seen.look(at, at, 20 * MILLION);
        }
        // After a while nobody expects more of it, even if a look comes late.
        at += Duration::from_secs(1);
        seen.look(at, at, 20 * MILLION);
        assert!(!seen.may_have_been_full());
    }

    /// Space that is allocated and not written says nothing of how fast the rest could be.
    #[test]
    fn nobody_is_taken_to_write_faster_than_to_memory() {
        let begun = Instant::now();
        let mut seen = Looks::begun(begun, 15_000 * MILLION);
        for (millis, free) in [(1, 5_000), (201, 5_000), (401, 5_000)] {
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
        assert_eq!(pause(320 * MILLION), Duration::from_millis(10));
    }
}
