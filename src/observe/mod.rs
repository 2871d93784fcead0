//! Logs: to standard error, one line an event. Text has UTC times on a terminal or in a file, and
//! priorities instead under journald; JSON has one object a line. Nothing that came from outside
//! can start a line of its own or paint the terminal: control characters are escaped.

mod action;
mod format;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;

pub use action::{ActionRecord, action_line};
use format::{Style, TextFormat};

use crate::config::LogConfig;
pub use crate::config::endpoint::redacted;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter makes no sense.
    #[error("log-level {filter:?}: {why}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody else logs already.
    #[error("logging is set up already")]
    Twice,
}

/// Checks what `--log-level` got: a level, or `LEVEL,MODULE=LEVEL,...`.
pub fn check_filter(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > 4096 {
        return Err("it is empty or longer than 4096 bytes".into());
    }
    for part in text.split(',') {
        // The library takes any word for a module to be logged at every level: a slip would open the floodgates.
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        if !["off", "error", "warn", "info", "debug", "trace"].contains(&level) {
            return Err(format!(
                "{:?} is not a level",
                level.chars().take(40).collect::<String>()
            ));
        }
        if part.starts_with('=') {
            return Err("a module's name is missing before =".into());
        }
    }
    filter(text).map(|_| ())
}

fn filter(text: &str) -> Result<EnvFilter, String> {
    // It would make a record of each request of the kernel's and warn of each one that was interrupted; who wants that
    // says so.
    let text = match text.contains("fuse3") {
        true => text.to_owned(),
        false => format!("{text},fuse3=error"),
    };
    EnvFilter::builder().parse(text).map_err(|e| e.to_string())
}

/// Sends the process's events to standard error from now on.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let filter = filter(&config.filter).map_err(|why| LogError::Filter {
        filter: config.filter.clone(),
        why,
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let done = if config.json {
        let layer = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(std::io::stderr);
        registry.with(layer).try_init()
    } else {
        let layer = tracing_subscriber::fmt::layer()
            .event_format(TextFormat(style()))
            .with_ansi(false)
            .with_writer(std::io::stderr);
        registry.with(layer).try_init()
    };
    done.map_err(|_| LogError::Twice)
}

fn style() -> Style {
    if is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()) {
        Style::Journal
    } else if std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        Style::Terminal
    } else {
        Style::Plain
    }
}

/// systemd.exec(5): JOURNAL_STREAM holds device and inode of the stream; a process should compare them with its own
/// standard error, for the variable is inherited by what was redirected elsewhere.
fn is_journal(variable: Option<&str>) -> bool {
    let Some((device, inode)) = variable.and_then(|text| text.split_once(':')) else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else {
        return false;
    };
    device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_checked() {
        for text in [
            "info",
            "off",
            "warn,boxwright::cas=trace",
            "boxwright=debug,h2=info",
        ] {
            assert_eq!(check_filter(text), Ok(()), "{text}");
        }
        for text in [
            "",
            "verbose",
            "INFO,",
            "boxwright=",
            "boxwright",
            "=info",
            "info,,warn",
            "[x",
        ] {
            assert!(check_filter(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_journal_is_recognised_by_its_inode() {
        let stat = rustix::fs::fstat(std::io::stderr()).unwrap();
        assert!(is_journal(Some(&format!(
            "{}:{}",
            stat.st_dev, stat.st_ino
        ))));
        for other in [None, Some(""), Some("1"), Some("0:0"), Some("a:b")] {
            assert!(!is_journal(other));
        }
    }
}
