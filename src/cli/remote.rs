//! Where the client commands find a server, and how to talk to it.

use std::time::Duration;

use crate::cas::{RemoteCas, RemoteConfig};
use crate::config::Endpoint;

use super::exit::{Exit, Failure};

/// The address of `boxwright standalone`.
pub(super) const DEFAULT_REMOTE: &str = "http://127.0.0.1:8980";

/// A client of the CAS at `endpoint`. Within a runtime only.
pub(super) fn connect(endpoint: &Endpoint, instance: &str) -> Result<RemoteCas, Failure> {
    Ok(RemoteCas::new(RemoteConfig {
        endpoint: endpoint.clone(),
        instance: instance.to_owned(),
        retries: 3,
        retry_delay: Duration::from_millis(300),
        call_timeout: Duration::from_secs(60),
    })?)
}

/// A small runtime for a client.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::Software, format!("cannot start threads: {e}")))
}
