//! Output while it is written, for whoever watches.

use bytes::Bytes;
use tokio::sync::mpsc;

/// Takes the output of running commands, stream by stream.
pub trait LiveOutput: Send + Sync {
    /// Where the pieces of this stream go; `None` if nobody takes it. The stream ends when the
    /// sender is dropped. Pieces that the receiver cannot take in time are left out: the
    /// result has them all.
    fn open(&self, stream: &str) -> Option<mpsc::Sender<Bytes>>;
}
