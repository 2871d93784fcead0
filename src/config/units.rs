//! Sizes and lengths of time as people write them: `50G`, `1TiB`, `10%`, `30s`, `5m`.
//!
//! Strict on purpose: one whole number and one unit, nothing between that could be read two ways.
//! What is printed reads back as the same value.

use std::fmt;
use std::time::Duration;

/// Why a text is not a size or a length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// It does not start with a whole number.
    #[error("{0:?} does not start with a whole number")]
    Number(String),
    /// The unit is not known.
    #[error("{unit:?} is not a unit of {what}; {known}")]
    Unit {
        /// What stood where the unit belongs.
        unit: String,
        /// `size` or `time`.
        what: &'static str,
        /// The units that there are.
        known: &'static str,
    },
    /// A length of time without a unit.
    #[error("{0:?} has no unit; write {0}s or {0}ms, for example")]
    NoUnit(String),
    /// Not a number of processors.
    #[error("{0:?} is not a number of processors from 0.01 to {MOST_CPUS} (2, 1.5)")]
    Cpus(String),
    /// Too large to count with.
    #[error("{0:?} is too large")]
    TooLarge(String),
    /// More than all of it.
    #[error("{0:?} is more than 100%")]
    Percent(String),
}

/// More than any machine has.
const MOST_CPUS: u64 = 65_536;

const SIZES: &str = "K, M, G, T, P (or KiB, MiB, ...) count in 1024s, kB, MB, GB, TB, PB in 1000s";
const TIMES: &str = "ms, s, m, h and d are";

/// An amount of disk: so many bytes, or a share of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Hundredths of the file system's size, 0 to 100.
    Percent(u8),
}

impl Amount {
    /// The amount in bytes on a file system of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Amount::Bytes(bytes) => bytes,
            Amount::Percent(percent) => (u128::from(total) * u128::from(percent) / 100) as u64,
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Bytes(bytes) => f.write_str(&size(*bytes)),
            Amount::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Reads a size or a percentage.
pub fn parse_amount(text: &str) -> Result<Amount, UnitError> {
    match text.strip_suffix('%') {
        Some(number) => match split(number)? {
            (percent @ 0..=100, "") => Ok(Amount::Percent(percent as u8)),
            (_, "") => Err(UnitError::Percent(shorten(text))),
            _ => Err(UnitError::Number(shorten(text))),
        },
        None => parse_size(text).map(Amount::Bytes),
    }
}

/// Reads a size in bytes; without a unit it is bytes.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        "P" | "PiB" => 1 << 50,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "PB" => 1_000_000_000_000_000,
        _ => {
            return Err(UnitError::Unit {
                unit: shorten(unit),
                what: "size",
                known: SIZES,
            });
        }
    };
    number
        .checked_mul(factor)
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(|| UnitError::TooLarge(shorten(text)))
}

/// Reads a length of time; a bare number needs a unit, except 0.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split(text)?;
    let milliseconds: u64 = match unit {
        "" if number == 0 => 0,
        "" => return Err(UnitError::NoUnit(shorten(text))),
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(UnitError::Unit {
                unit: shorten(unit),
                what: "time",
                known: TIMES,
            });
        }
    };
    number
        .checked_mul(milliseconds)
        // A century: what is longer is a slip, and would overflow clocks further down.
        .filter(|&length| length <= 100 * 365 * 86_400_000)
        .map(Duration::from_millis)
        .ok_or_else(|| UnitError::TooLarge(shorten(text)))
}

/// Reads a number of processors with up to three decimals, in thousandths; at least a hundredth.
pub fn parse_cpus(text: &str) -> Result<u64, UnitError> {
    let wrong = || UnitError::Cpus(shorten(text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let fraction: u64 = format!("{fraction:0<3}").parse().map_err(|_| wrong())?;
    whole
        .checked_mul(1000)
        .and_then(|milli| milli.checked_add(fraction))
        .filter(|milli| (10..=MOST_CPUS * 1000).contains(milli))
        .ok_or_else(wrong)
}

/// Thousandths of processors as a number.
pub fn cpus(milli: u64) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A size in the largest unit that shows it exactly.
pub fn size(bytes: u64) -> String {
    let units = [
        (1 << 50, "PiB"),
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    for (factor, unit) in units {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    format!("{bytes}B")
}

/// A size for people, rounded to a tenth of its unit.
pub fn rough_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1023.95 || unit == "TiB" {
            return if unit == "B" {
                format!("{bytes}B")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1024.0;
    }
    unreachable!("the last unit takes every value")
}

/// A length of time in the largest unit that shows it exactly (to the millisecond).
pub fn duration(length: Duration) -> String {
    let milliseconds = length.as_millis();
    for (factor, unit) in [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1_000, "s"),
    ] {
        if milliseconds >= factor && milliseconds.is_multiple_of(factor) {
            return format!("{}{unit}", milliseconds / factor);
        }
    }
    format!("{milliseconds}ms")
}

/// The leading number and what follows it.
fn split(text: &str) -> Result<(u64, &str), UnitError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Err(UnitError::Number(shorten(text)));
    }
    let (number, unit) = text.split_at(digits);
    let number = number
        .parse()
        .map_err(|_| UnitError::TooLarge(shorten(text)))?;
    Ok((number, unit))
}

fn shorten(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_mean_what_they_say() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("1K", 1024),
            ("1kB", 1000),
            ("50G", 50 << 30),
            ("1TiB", 1 << 40),
            ("3GB", 3_000_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_amount("10%"), Ok(Amount::Percent(10)));
        assert_eq!(Amount::Percent(10).of(u64::MAX), u64::MAX / 10);
    }

    #[test]
    fn bad_sizes_say_why() {
        for text in [
            "",
            "G",
            "1.5G",
            "-1",
            "1 G",
            "1X",
            "1e9",
            "101%",
            "%",
            "1G%",
            "99999999999999999999",
            "9999999P",
            "٣G",
        ] {
            let error = parse_amount(text).unwrap_err().to_string();
            assert!(error.len() < 200, "{error}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for text in ["", "5", "s", "1.5s", "5 s", "1w", "99999999d", "1h30m"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn processors_have_decimals() {
        for (text, milli) in [
            ("2", 2000),
            ("1.5", 1500),
            ("0.01", 10),
            ("0.125", 125),
            ("64.0", 64_000),
        ] {
            assert_eq!(parse_cpus(text), Ok(milli));
            assert_eq!(parse_cpus(&cpus(milli)), Ok(milli));
        }
        for text in [
            "",
            "0",
            ".5",
            "1.",
            "1.2345",
            "-1",
            "1e3",
            "0.009",
            "65537",
            "99999999999999999999",
            "٣",
        ] {
            assert!(parse_cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rough_sizes_are_short() {
        assert_eq!(rough_size(1023), "1023B");
        assert_eq!(rough_size(1536), "1.5KiB");
        assert_eq!(rough_size((1 << 20) - 1), "1.0MiB");
        assert_eq!(rough_size(u64::MAX), "16777216.0TiB");
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(bytes in 0..=i64::MAX as u64, milliseconds in 0u64..3_000_000_000_000) {
            prop_assert_eq!(parse_size(&size(bytes)), Ok(bytes));
            let length = Duration::from_millis(milliseconds);
            prop_assert_eq!(parse_duration(&duration(length)), Ok(length));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse_amount(&text);
            let _ = parse_duration(&text);
        }
    }
}
