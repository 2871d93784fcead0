//! The scheduler inside `boxwright standalone`: a queue in memory, and the Execution service in front of it.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Drain, Event, LeaseId, Scheduler};
use crate::action::Finished;
use crate::cas::{CasError, LocalStore};
use crate::reapi::proto::re;

/// Results of actions, on disk.
pub struct ActionCache {}

impl ActionCache {
    /// Opens or creates the cache in `dir`; keeps at most `max_entries` results, the least recently used go first.
    pub fn open(
        _dir: &Path,
        _max_entries: usize,
        _store: Arc<LocalStore>,
    ) -> Result<Arc<Self>, CasError> {
        todo!()
    }
}

/// How much the scheduler takes on.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// Leases that may be out at a time: the worker's slots.
    pub slots: usize,
}

impl EmbeddedConfig {
    /// The defaults for a worker of this many slots.
    pub fn with_slots(slots: usize) -> Self {
        EmbeddedConfig { slots }
    }
}

/// The scheduler.
pub struct Embedded {}

impl Embedded {
    /// Makes the scheduler; must be called within a tokio runtime.
    pub fn new(
        _config: EmbeddedConfig,
        _store: Arc<LocalStore>,
        _cache: Arc<ActionCache>,
    ) -> Arc<Self> {
        todo!()
    }
    /// Where live output of a lease goes: give it `Lease::stdout_stream` or `Lease::stderr_stream`.
    /// `None` if the lease is gone. Dropping the sink ends the stream.
    pub fn stream_sink(&self, _name: &str) -> Option<StreamSink> {
        todo!()
    }
}

/// The end of a live stream that is written to. Never waits: what nobody reads in time is forgotten.
pub struct StreamSink {}

impl StreamSink {
    /// Appends output.
    pub fn write(&self, _data: &[u8]) {
        todo!()
    }
}

#[async_trait]
impl Scheduler for Embedded {
    async fn next(&self) -> Event {
        todo!()
    }
    fn progress(&self, _lease: &LeaseId, _metadata: re::ExecutedActionMetadata) {
        todo!()
    }
    fn complete(&self, _lease: &LeaseId, _finished: Finished) {
        todo!()
    }
    fn health(&self, _problem: Option<String>) {
        todo!()
    }
    fn drain(&self, _how: Drain) {
        todo!()
    }
}
