//! Evictions in vain. What is evicted frees nothing while it is open or linked elsewhere, and nothing that lasts while somebody fills the disk
//! faster than it is emptied. Whoever looks after the floor of free space does so many times a second, for each action: the whole cache
//! would be gone in seconds. So after a look that was in vain nobody tries for a while, and for twice as long after the next.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_millis(51_200);

/// When to try again.
#[derive(Default)]
pub(super) struct Vain(Mutex<Option<Pause>>);

#[derive(Clone, Copy)]
struct Pause {
    until: Instant,
    length: Duration,
}

impl Vain {
    /// Whether it is to be left for now.
    pub(super) fn pauses(&self, now: Instant) -> bool {
        self.0.lock().is_some_and(|pause| now < pause.until)
    }

    /// Takes note of a look, and whether it evicted something for nothing.
    pub(super) fn looked(&self, in_vain: bool, now: Instant) {
        let mut pause = self.0.lock();
        *pause = match *pause {
            _ if !in_vain => None,
            // Of another look at the same time.
            Some(pause) if now < pause.until => Some(pause),
            before => {
                let length = before.map_or(FIRST, |pause| (pause.length * 2).min(LONGEST));
                let until = now + length;
                Some(Pause { until, length })
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_become_longer_until_one_is_not_in_vain() {
        let vain = Vain::default();
        let mut now = Instant::now();
        for length in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512] {
            let length = FIRST * length;
            assert!(!vain.pauses(now));
            vain.looked(true, now);
            // Several look at a time.
            vain.looked(true, now + length / 2);
            assert!(vain.pauses(now + length - Duration::from_millis(1)));
            now += length;
        }
        vain.looked(false, now);
        assert!(!vain.pauses(now));
        vain.looked(true, now);
        assert!(!vain.pauses(now + FIRST));
    }
}
