//! What a setting may hold, and the one check that flags, environment and file share.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::settings::Layer;
use super::units::{self, Amount};
use super::{Endpoint, Listen};

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A service's address.
    Url,
    /// An address to listen on.
    Listen,
    /// Any text, of so many bytes at most.
    Text(usize),
    /// A whole number, from least to most.
    Number(u64, u64),
    /// A size in bytes.
    Size,
    /// A size in bytes or a share of the whole.
    Amount,
    /// Processors, with decimals.
    Cpus,
    /// Yes or no.
    Bool,
    /// Some of a few words in an order that counts, each once at most.
    Words(&'static [&'static str]),
    /// `[[strategy]]` tables; in a file only.
    Strategies,
    /// A length of time.
    Time {
        /// The shortest allowed.
        least: Duration,
        /// Whether `none` may be said instead.
        none: bool,
        /// On the command line, the unit of a bare number, where BuildBox takes one.
        bare: Option<&'static str>,
    },
    /// An absolute directory.
    Directory,
    /// The absolute path of a file.
    File,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// What to log: a level, or levels by module.
    LogFilter,
    /// `KEY=VALUE`, any number of times.
    Pairs,
    /// Names, any number of them.
    Names,
}

/// A checked value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of [`Kind::Url`].
    Url(Endpoint),
    /// Of [`Kind::Listen`].
    Listen(Listen),
    /// Of [`Kind::Text`], [`Kind::Choice`] and [`Kind::LogFilter`].
    Text(String),
    /// Of [`Kind::Number`].
    Number(u64),
    /// Of [`Kind::Cpus`], in thousandths.
    Cpus(u64),
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of [`Kind::Strategies`]: what each table says.
    Strategies(Vec<Layer>),
    /// Of [`Kind::Size`] and [`Kind::Amount`].
    Amount(Amount),
    /// Of [`Kind::Time`]; `None` is `none`.
    Time(Option<Duration>),
    /// Of [`Kind::Directory`] and [`Kind::File`].
    Path(PathBuf),
    /// Of [`Kind::Pairs`].
    Pairs(Vec<(String, String)>),
    /// Of [`Kind::Names`] and [`Kind::Words`].
    Names(Vec<String>),
}

impl Kind {
    /// What is allowed, for messages: "... is not WHAT".
    pub fn allowed(&self) -> String {
        match self {
            Kind::Url => "an address (http://HOST:PORT, https://HOST:PORT or unix:/PATH)".into(),
            Kind::Listen => "an address to listen on (IP:PORT or unix:/PATH)".into(),
            Kind::Text(most) => {
                format!("a text of at most {most} bytes without control characters")
            }
            Kind::Number(least, u64::MAX) => format!("a whole number from {least}"),
            Kind::Number(least, most) => format!("a whole number from {least} to {most}"),
            Kind::Size => "a size (512, 64K, 50G, 1TiB)".into(),
            Kind::Amount => "a size (50G, 1TiB) or a share of the whole (10%)".into(),
            Kind::Cpus => "a number of processors (2, 1.5)".into(),
            Kind::Bool => "true or false".into(),
            Kind::Words(words) => format!("one or more of {}", words.join(", ")),
            Kind::Strategies => "tables [[strategy]]".into(),
            Kind::Time { least, none, .. } => {
                let from = match *least {
                    Duration::ZERO => String::new(),
                    least => format!(" from {}", units::duration(least)),
                };
                let or = if *none { ", or none" } else { "" };
                format!("a length of time{from} (250ms, 30s, 5m, 2h{or})")
            }
            Kind::Directory => "an absolute directory".into(),
            Kind::File => "the absolute path of a file".into(),
            Kind::Choice(words) => words.join(" or "),
            Kind::LogFilter => {
                "error, warn, info, debug or trace, or levels by module (info,boxwright::cas=debug)"
                    .into()
            }
            Kind::Pairs => "KEY=VALUE with neither empty".into(),
            Kind::Names => "a name".into(),
        }
    }

    /// What the value is called in usage lines.
    pub fn placeholder(&self) -> &'static str {
        match self {
            Kind::Url => "URL",
            Kind::Listen => "ADDRESS",
            Kind::Text(_) | Kind::Names => "NAME",
            Kind::Number(..) | Kind::Cpus => "N",
            Kind::Bool => "BOOL",
            Kind::Words(_) => "WORD,...",
            Kind::Strategies => "TABLES",
            Kind::Size => "SIZE",
            Kind::Amount => "SIZE|PERCENT",
            Kind::Time { .. } => "TIME",
            Kind::Directory => "DIR",
            Kind::File => "FILE",
            Kind::Choice(_) => "WORD",
            Kind::LogFilter => "LEVEL",
            Kind::Pairs => "KEY=VALUE",
        }
    }

    /// Reads one value as text, as flags and environment variables give it.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        match self {
            Kind::Time {
                bare: Some(unit), ..
            } if text.bytes().all(|b| b.is_ascii_digit()) => self.read(&format!("{text}{unit}")),
            _ => self.read(text),
        }
    }

    /// Reads one value as text, as a configuration file gives it.
    pub fn read(&self, text: &str) -> Result<Value, String> {
        let refused = || format!("{:?} is not {}", shorten(text), self.allowed());
        match self {
            Kind::Url => text.parse().map(Value::Url).map_err(|e| format!("{e}")),
            Kind::Listen => text.parse().map(Value::Listen).map_err(|e| format!("{e}")),
            Kind::Text(most) if text.len() <= *most && !text.chars().any(char::is_control) => {
                Ok(Value::Text(text.to_owned()))
            }
            Kind::Number(least, most) => text
                .parse()
                .ok()
                .filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
                .filter(|number| (*least..=*most).contains(number))
                .map(Value::Number)
                .ok_or_else(refused),
            Kind::Size => units::parse_size(text)
                .map(|bytes| Value::Amount(Amount::Bytes(bytes)))
                .map_err(|e| e.to_string()),
            Kind::Amount => units::parse_amount(text)
                .map(Value::Amount)
                .map_err(|e| e.to_string()),
            Kind::Cpus => units::parse_cpus(text)
                .map(Value::Cpus)
                .map_err(|e| e.to_string()),
            Kind::Bool => text.parse().map(Value::Bool).map_err(|_| refused()),
            Kind::Words(known) => {
                let words: Vec<&str> = text.split(',').map(str::trim).collect();
                for (at, word) in words.iter().enumerate() {
                    if !known.contains(word) {
                        return Err(format!("{:?} is not {}", shorten(word), self.allowed()));
                    }
                    if words[..at].contains(word) {
                        return Err(format!("{word} is there twice"));
                    }
                }
                Ok(Value::Names(words.into_iter().map(str::to_owned).collect()))
            }
            Kind::Time { none: true, .. } if text == "none" => Ok(Value::Time(None)),
            Kind::Time { least, .. } => {
                let length = units::parse_duration(text).map_err(|e| e.to_string())?;
                (length >= *least)
                    .then_some(Value::Time(Some(length)))
                    .ok_or_else(refused)
            }
            Kind::Directory | Kind::File if text.starts_with('/') && !text.contains('\0') => {
                Ok(Value::Path(text.into()))
            }
            Kind::Choice(words) if words.contains(&text) => Ok(Value::Text(text.to_owned())),
            Kind::LogFilter => crate::observe::check_filter(text)
                .map(|()| Value::Text(text.to_owned()))
                .map_err(|why| format!("{}: {why}", refused())),
            Kind::Pairs => {
                let (key, value) = text.split_once('=').ok_or_else(refused)?;
                Ok(Value::Pairs(vec![pair(key, value)?]))
            }
            Kind::Names if is_name(text) => Ok(Value::Names(vec![text.to_owned()])),
            _ => Err(refused()),
        }
    }
}

/// Checks one property.
pub(super) fn pair(key: &str, value: &str) -> Result<(String, String), String> {
    if is_name(key) && is_name(value) {
        return Ok((key.to_owned(), value.to_owned()));
    }
    Err(format!(
        "{:?} is not {} (at most {NAME_BYTES} bytes each, no control characters)",
        shorten(&format!("{key}={value}")),
        Kind::Pairs.allowed()
    ))
}

const NAME_BYTES: usize = 1024;

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_BYTES && !text.chars().any(char::is_control)
}

/// Text from outside may be of any length; a message shows the head of it.
pub(super) fn shorten(text: &str) -> String {
    text.chars().take(120).collect()
}

/// As a TOML value.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |text: &str| toml::Value::from(text).to_string();
        match self {
            Value::Number(number) => write!(f, "{number}"),
            Value::Cpus(milli) => f.write_str(&text(&units::cpus(*milli))),
            Value::Bool(yes) => write!(f, "{yes}"),
            Value::Strategies(tables) => write!(f, "{} tables", tables.len()),
            Value::Url(url) => f.write_str(&text(&url.to_string())),
            Value::Listen(listen) => f.write_str(&text(&listen.to_string())),
            Value::Text(word) => f.write_str(&text(word)),
            Value::Amount(amount) => f.write_str(&text(&amount.to_string())),
            Value::Time(None) => f.write_str(&text("none")),
            Value::Time(Some(length)) => f.write_str(&text(&units::duration(*length))),
            Value::Path(path) => f.write_str(&text(&path.display().to_string())),
            Value::Pairs(pairs) => {
                let pairs: Vec<String> = pairs
                    .iter()
                    .map(|(k, v)| text(&format!("{k}={v}")))
                    .collect();
                write!(f, "[{}]", pairs.join(", "))
            }
            Value::Names(names) => {
                let names: Vec<String> = names.iter().map(|name| text(name)).collect();
                write!(f, "[{}]", names.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Kind = Kind::Time {
        least: Duration::from_secs(1),
        none: false,
        bare: Some("s"),
    };

    #[test]
    fn bare_numbers_are_for_the_command_line_only() {
        assert_eq!(
            PATIENCE.parse("30"),
            Ok(Value::Time(Some(Duration::from_secs(30))))
        );
        assert!(PATIENCE.read("30").unwrap_err().contains("unit"));
        assert!(PATIENCE.parse("0").is_err());
    }

    #[test]
    fn refusals_name_what_is_allowed() {
        for (kind, text, says) in [
            (Kind::Number(1, 64), "0", "from 1 to 64"),
            (Kind::Number(1, 64), "+5", "from 1 to 64"),
            (Kind::Directory, "relative", "absolute"),
            (Kind::Choice(&["text", "json"]), "xml", "text or json"),
            (
                Kind::Words(&["full", "process"]),
                "full,none",
                "one or more of full, process",
            ),
            (Kind::Words(&["full", "process"]), "full,full", "twice"),
            (Kind::Words(&["full", "process"]), "", "one or more"),
            (Kind::Cpus, "two", "1.5"),
            (Kind::Bool, "yes", "true or false"),
            (Kind::Strategies, "x", "[[strategy]]"),
            (Kind::Pairs, "OSFamily", "KEY=VALUE"),
            (Kind::Pairs, "=linux", "KEY=VALUE"),
            (Kind::Pairs, "a=\u{1b}[31m", "control"),
            (Kind::LogFilter, "loud", "debug"),
            (Kind::Text(4), "hello", "4 bytes"),
        ] {
            let error = kind.parse(text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
