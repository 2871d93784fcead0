//! Timestamps and durations between the wire and the standard library.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::{Duration as ProtoDuration, Timestamp};

/// A point in time, for the wire.
pub fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            seconds: after.as_secs() as i64,
            nanos: after.subsec_nanos() as i32,
        },
        Err(_) => Timestamp::default(),
    }
}

/// Now, for the wire.
pub fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

/// A length of time, for the wire.
pub fn duration(length: Duration) -> ProtoDuration {
    ProtoDuration {
        seconds: i64::try_from(length.as_secs()).unwrap_or(i64::MAX),
        nanos: length.subsec_nanos() as i32,
    }
}

/// A length of time from the wire; `None` if it is negative or its parts disagree.
pub fn from_duration(length: &ProtoDuration) -> Option<Duration> {
    if length.seconds < 0 || !(0..1_000_000_000).contains(&length.nanos) {
        return None;
    }
    Some(Duration::new(length.seconds as u64, length.nanos as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_go_there_and_back() {
        let length = Duration::from_millis(1_234_567);
        assert_eq!(from_duration(&duration(length)), Some(length));
        assert_eq!(
            from_duration(&ProtoDuration {
                seconds: -1,
                nanos: 0
            }),
            None
        );
        assert_eq!(
            from_duration(&ProtoDuration {
                seconds: 0,
                nanos: -5
            }),
            None
        );
        assert_eq!(
            from_duration(&ProtoDuration {
                seconds: 0,
                nanos: 1_000_000_000
            }),
            None
        );
    }
}
