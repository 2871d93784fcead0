//! What the operator decided about every action.

use std::path::PathBuf;
use std::time::Duration;

use super::Strategies;
use crate::outputs::OutputLimits;
use crate::tree::TreeLimits;

/// The operator's decisions.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How large an input tree may be.
    pub tree_limits: TreeLimits,
    /// How much a command may leave behind.
    pub output_limits: OutputLimits,
    /// For actions that name no timeout; `None` lets them run for ever.
    pub default_timeout: Option<Duration>,
    /// Actions that ask for more are refused; `None` grants any.
    pub max_timeout: Option<Duration>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Bytes kept of each output stream, of its two ends; that the middle is left out is said.
    pub keep_output: u64,
    /// Output streams of at most this many bytes travel inside the result, larger ones as blobs.
    pub inline_output: usize,
    /// Which isolation the actions of which platform get, and within which limits.
    pub strategies: Strategies,
    /// The properties that this worker offers, as key and value; a key may have several values.
    pub platform: Vec<(String, String)>,
    /// Properties that an action may carry and that are then ignored, because the operator said so.
    pub ignored_properties: Vec<String>,
    /// Whether it is reported what actions do with their inputs that do not say whether they want that.
    pub input_report: bool,
    /// Where output streams go that do not fit in memory: on the local store's file system.
    pub scratch: PathBuf,
}
