//! Output while it is written, for whoever watches.

use crate::sandbox::LiveSink;

/// Takes the output of running commands, stream by stream.
pub trait LiveOutput: Send + Sync {
    /// Where the pieces of this stream go; `None` if nobody takes it. The stream ends when the
    /// sink is dropped. From the first piece on that it cannot take in time all are left out: the
    /// result has them all.
    fn open(&self, stream: &str) -> Option<Box<dyn LiveSink>>;
}
