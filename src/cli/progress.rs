//! What is being done, on a terminal only: elsewhere nothing is drawn.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One line that changes.
#[derive(Clone)]
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Draws on standard error if that is a terminal and nobody asked for quiet.
    pub(super) fn new(quiet: bool) -> Self {
        let bar = match quiet || !std::io::stderr().is_terminal() {
            true => ProgressBar::hidden(),
            false => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
        };
        Progress { bar }
    }

    /// Something of unknown length.
    pub(super) fn phase(&self, what: impl Into<String>) {
        if self.bar.is_hidden() {
            return;
        }
        self.bar.set_style(style("{spinner} {msg} ({elapsed})"));
        self.bar.enable_steady_tick(Duration::from_millis(100));
        self.bar.set_message(what.into());
    }

    /// Something that is counted in bytes.
    pub(super) fn bytes(&self, what: impl Into<String>, total: u64) {
        if self.bar.is_hidden() {
            return;
        }
        self.bar
            .set_style(style("{spinner} {msg} {wide_bar} {bytes}/{total_bytes}"));
        self.bar.enable_steady_tick(Duration::from_millis(100));
        self.bar.set_length(total);
        self.bar.set_position(0);
        self.bar.set_message(what.into());
    }

    /// So many more bytes.
    pub(super) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Wipes the line, for good.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
