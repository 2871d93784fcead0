//! Where the client commands find a server, and how to talk to it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::cas::{RemoteCas, RemoteConfig};
use crate::config::{Credentials, Endpoint};

use super::exit::{Exit, Failure};

/// The address of `boxwright standalone`.
pub(super) const DEFAULT_REMOTE: &str = "http://127.0.0.1:8980";

/// What servers are shown, and verified against.
#[derive(Debug, Args)]
pub(super) struct Access {
    /// A PEM file with certificates that an https:// server is verified against, beside those that this machine trusts
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// A PEM file with the certificate that is shown to an https:// server
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// A PEM file with the private key of --tls-cert
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// A file with a token that is sent with each call (authorization: Bearer ...)
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Access {
    pub(super) fn credentials(&self) -> Credentials {
        Credentials {
            ca: self.tls_ca.clone(),
            identity: self.tls_cert.clone().zip(self.tls_key.clone()),
            token: self.token_file.clone(),
        }
    }
}

/// A client of the CAS at `endpoint`. Within a runtime only.
pub(super) fn connect(
    endpoint: &Endpoint,
    credentials: Credentials,
    instance: &str,
) -> Result<RemoteCas, Failure> {
    Ok(RemoteCas::new(RemoteConfig {
        endpoint: endpoint.clone(),
        credentials,
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
