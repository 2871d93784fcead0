//! One event as one line of text.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Who reads the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// A file or a pipe: UTC time, level.
    Plain,
    /// A person: the same with colours.
    Terminal,
    /// journald: a priority prefix as of sd-daemon(3), no time (the journal has its own).
    Journal,
}

/// `TIME LEVEL message key=value ...`; the module is named at debug and below.
pub(super) struct TextFormat(pub(super) Style);

impl<S, N> FormatEvent<S, N> for TextFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        match self.0 {
            Style::Journal => write!(writer, "<{}>", priority(level))?,
            Style::Plain => {
                SystemTime.format_time(&mut writer)?;
                write!(writer, " {level:5} ")?;
            }
            Style::Terminal => {
                writer.write_str("\x1b[2m")?;
                SystemTime.format_time(&mut writer)?;
                write!(writer, "\x1b[0m \x1b[{}m{level:5}\x1b[0m ", colour(level))?;
            }
        }
        if level >= Level::DEBUG {
            write!(writer, "{}: ", event.metadata().target())?;
        }
        let mut line = Line::default();
        event.record(&mut line);
        writeln!(writer, "{}{}", line.message, line.fields)
    }
}

/// The priorities of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

fn colour(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        _ => 34,
    }
}

/// Message and fields, escaped.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn put(&mut self, field: &Field, text: &str) {
        if field.name() == "message" {
            escape(&mut self.message, text);
            return;
        }
        let _ = write!(self.fields, " {}=", field.name());
        if text.is_empty() || text.contains([' ', '"', '=']) {
            let _ = write!(Escaping(&mut self.fields), "{text:?}");
        } else {
            escape(&mut self.fields, text);
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, &value.to_string());
    }
}

struct Escaping<'a>(&'a mut String);

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(self.0, text);
        Ok(())
    }
}

fn escape(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::prelude::*;

    use super::*;

    /// What `log` writes in this style, without the time.
    pub(in crate::observe) fn lines(style: Style, log: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let target = buffer.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(TextFormat(style))
            .with_writer(move || target.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_from_outside_forges_a_line() {
        let text = lines(Style::Journal, || {
            tracing::warn!(
                name = "a\n<0>forged",
                other = "two words",
                "up\x1b[2Jside\r\ndown"
            );
        });
        assert_eq!(
            text,
            "<4>up\\u{1b}[2Jside\\r\\ndown name=a\\n<0>forged other=\"two words\"\n"
        );
    }

    #[test]
    fn times_are_utc() {
        let text = lines(Style::Plain, || tracing::info!(slots = 3, "ready"));
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{time}");
        assert_eq!(rest, "INFO  ready slots=3\n");
    }

    #[test]
    fn priorities_are_syslog_s() {
        let text = lines(Style::Journal, || {
            tracing::error!("e");
            tracing::info!("i");
            tracing::debug!(target: "boxwright::cas", "d");
        });
        assert_eq!(text, "<3>e\n<6>i\n<7>boxwright::cas: d\n");
    }
}
