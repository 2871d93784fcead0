//! What the end of a command means for its action, and what readers of the result are told beside it.

use super::ending::{out_of_memory, timed_out};
use super::resolve::Resolved;
use super::{Ending, publish};
use crate::sandbox::{End, Outcome};

/// The class of an end, the exit code for the result, and what the reader of standard error should know.
pub(super) fn conclude(outcome: &Outcome, resolved: &Resolved, keep: u64) -> (Ending, i32, String) {
    let (ending, exit_code, notice) = match &outcome.end {
        End::Exited(code) => (Ending::Exited(*code), *code, String::new()),
        // What a shell reports for a command that a signal killed.
        End::Signalled(signal) => (Ending::Signalled(*signal), 128 + signal, String::new()),
        End::NotStarted { code, message } => (
            Ending::Exited(*code),
            *code,
            format!("boxwright: {message}\n"),
        ),
        End::TimedOut => {
            let (after, bound_of) = resolved.timeout.unwrap_or_default();
            let notice = format!(
                "\nboxwright: {}; it was killed\n",
                timed_out(after, bound_of)
            );
            let ending = Ending::TimedOut { after, bound_of };
            (ending, 128 + libc::SIGKILL, notice)
        }
        End::Cancelled => (Ending::Cancelled, 128 + libc::SIGTERM, String::new()),
        End::OutOfMemory { limit } => {
            let ending = Ending::OutOfMemory { limit: *limit };
            let notice = format!("\nboxwright: {}\n", out_of_memory(*limit));
            (ending, 128 + libc::SIGKILL, notice)
        }
        End::LimitExceeded(bound) => (
            Ending::LimitExceeded(bound.clone()),
            128 + libc::SIGKILL,
            format!("\nboxwright: {bound}; it was killed\n"),
        ),
    };
    // Part of an output must not be taken for the whole, least of all by a cache.
    let cut = publish::cut(outcome.stdout_dropped, outcome.stderr_dropped, keep);
    match (cut, ending) {
        (None, ending) => (ending, exit_code, notice),
        (Some(cut), Ending::Exited(_) | Ending::Signalled(_)) => {
            let notice = format!("{notice}\nboxwright: {cut}\n");
            (Ending::LimitExceeded(cut), exit_code, notice)
        }
        (Some(cut), ending) => (ending, exit_code, format!("{notice}boxwright: {cut}\n")),
    }
}

/// What a reader of the result should know of outputs that are not in it; most builds mean nothing by them.
pub(super) fn left_out(things: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<&str> = things.iter().take(SHOWN).map(String::as_str).collect();
    match things.len() {
        0 => String::new(),
        all => format!(
            "{all} left out of the output directories, as no result can hold them: {}{}",
            shown.join(", "),
            if all > SHOWN { ", ..." } else { "" }
        ),
    }
}
