//! The client of a CAS elsewhere.

use std::time::Duration;

use super::CasError;

/// How to reach a remote and how patient to be with it.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// Where and how to connect.
    pub endpoint: crate::config::Endpoint,
    /// The REAPI instance name.
    pub instance: String,
    /// How often a failed call is tried again.
    pub retries: u32,
    /// The first pause between tries; it doubles, with jitter.
    pub retry_delay: Duration,
    /// The deadline of one unary call, and of a stream that does not move.
    pub call_timeout: Duration,
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct RemoteCas {}

impl RemoteCas {
    /// Makes the client; connects lazily, so that a scheduler may start after its workers.
    pub fn new(_config: RemoteConfig) -> Result<Self, CasError> {
        todo!()
    }
}
