//! What came of an attempt, and the names of the errors.

use std::io::Write;

use crate::sys::Errno;

pub enum Verdict {
    /// It worked.
    Allowed(String),
    /// It did not, for this reason: an errno's name, or `NOTHING` for a search that found nothing.
    Denied(String, String),
    /// This machine has no such thing, inside or outside.
    Absent(String),
    /// The probe itself is broken.
    Error(String),
}

impl Verdict {
    pub fn denied(errno: Errno, detail: impl Into<String>) -> Verdict {
        Verdict::Denied(errno.name(), detail.into())
    }

    pub fn of<T>(result: Result<T, Errno>, detail: impl Into<String>) -> Verdict {
        match result {
            Ok(_) => Verdict::Allowed(detail.into()),
            Err(errno) => Verdict::denied(errno, detail),
        }
    }

    pub fn io<T>(result: std::io::Result<T>, detail: impl Into<String>) -> Verdict {
        Verdict::of(result.map_err(Errno::from), detail)
    }

    /// Each finding is a line of its own.
    pub fn found(what: &[String]) -> Verdict {
        match what {
            [] => Verdict::Denied("NOTHING".into(), "found".into()),
            found => Verdict::Allowed(found.join(" ")),
        }
    }

    /// The first that is allowed, else the last.
    pub fn any(attempts: impl IntoIterator<Item = Verdict>) -> Verdict {
        let mut last = Verdict::Error("nothing was attempted".into());
        for verdict in attempts {
            last = verdict;
            if let Verdict::Allowed(_) = last {
                break;
            }
        }
        last
    }

    pub fn print(&self, to: &mut dyn Write) -> std::io::Result<()> {
        let line = match self {
            Verdict::Allowed(detail) => format!("ALLOWED {detail}\n"),
            Verdict::Denied(errno, detail) => format!("DENIED {errno} {detail}\n"),
            Verdict::Absent(why) => format!("ABSENT {why}\n"),
            Verdict::Error(why) => format!("ERROR {why}\n"),
        };
        to.write_all(line.as_bytes())?;
        to.flush()
    }
}
