//! What the end of a command means for its action, and what readers of the result are told beside it.

use super::ending::{out_of_memory, timed_out};
use super::failures::from_outputs;
use super::resolve::Resolved;
use super::{Ending, publish};
use crate::outputs::{Collected, OutputError};
use crate::sandbox::{End, Outcome};

/// The class of an end, the exit code for the result, and what the reader of standard error should know, in lines.
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
            let notice = format!("boxwright: {}; it was killed\n", timed_out(after, bound_of));
            let ending = Ending::TimedOut { after, bound_of };
            (ending, 128 + libc::SIGKILL, notice)
        }
        End::Cancelled => (Ending::Cancelled, 128 + libc::SIGTERM, String::new()),
        End::OutOfMemory { limit } => {
            let ending = Ending::OutOfMemory { limit: *limit };
            let notice = format!("boxwright: {}\n", out_of_memory(*limit));
            (ending, 128 + libc::SIGKILL, notice)
        }
        End::LimitExceeded(bound) => (
            Ending::LimitExceeded(bound.clone()),
            128 + libc::SIGKILL,
            format!("boxwright: {bound}; it was killed\n"),
        ),
    };
    // Part of an output must not be taken for the whole, least of all by a cache.
    let cut = publish::cut(outcome.stdout_dropped, outcome.stderr_dropped, keep);
    let Some(cut) = cut else {
        return (ending, exit_code, notice);
    };
    let notice = format!("{notice}boxwright: {cut}\n");
    match ending {
        Ending::Exited(_) | Ending::Signalled(_) => (Ending::LimitExceeded(cut), exit_code, notice),
        ending => (ending, exit_code, notice),
    }
}

/// The outputs of a command with this end, the class of both together, and what is to be said beside it; an error if they
/// could not be collected for a reason of ours.
pub(super) fn with_outputs(
    ending: Ending,
    collected: Result<Collected, OutputError>,
) -> Result<(Collected, Ending, String), Ending> {
    let error = match collected {
        Ok(collected) => {
            let beside = left_out(&collected.left_out);
            return Ok((collected, ending, beside));
        }
        Err(error) => error,
    };
    match from_outputs(error) {
        // What cannot be an output is the command's fault: its streams are still worth reading.
        theirs @ (Ending::BadOutput(_) | Ending::LimitExceeded(_))
            if ending == Ending::Exited(0) =>
        {
            Ok((Collected::default(), theirs, String::new()))
        }
        // What it left is what a command leaves that failed: how it failed is to be told.
        Ending::BadOutput(why) | Ending::LimitExceeded(why) => {
            Ok((Collected::default(), ending, why))
        }
        ending => Err(ending),
    }
}

/// What a reader of the result should know of outputs that are not in it; most builds mean nothing by them.
fn left_out(things: &[String]) -> String {
    const SHOWN: usize = 10;
    // In an order that is the same each time, as it becomes part of the result.
    let mut shown: Vec<&str> = things.iter().map(String::as_str).collect();
    shown.sort_unstable();
    shown.truncate(SHOWN);
    match things.len() {
        0 => String::new(),
        all => format!(
            "{all} left out of the output directories, as no result can hold them: {}{}",
            shown.join(", "),
            if all > SHOWN { ", ..." } else { "" }
        ),
    }
}
