//! `reload bots-server`: everything that a worker talks to, in one process and in memory.
//!
//! Any instance name is accepted and ignored: there is one CAS and one queue. Not here: matching of
//! properties, joining of equal actions, LogStream, eviction.

mod bots;
mod cas;
mod execution;
mod jobs;
mod sessions;
mod trailers;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use boxwright::reapi::proto::{bytestream, longrunning, re, rw};
use boxwright::reapi::{Digest, DigestFunction};
use bytes::Bytes;
use clap::Args;
use tonic::Status;

use crate::client::{Result, digest};
use sessions::Sessions;

const MESSAGE_LIMIT: usize = 64 << 20;

#[derive(Args)]
pub(crate) struct Options {
    /// HOST:PORT to serve
    listen: String,
    /// A session ends after so many seconds without an update
    #[arg(long, default_value_t = 60)]
    keepalive: u64,
}

/// Calls by name, to be printed at the end.
#[derive(Default)]
struct Counts(Mutex<HashMap<&'static str, u64>>);

impl Counts {
    fn add(&self, what: &'static str) {
        *self.0.lock().expect("counts").entry(what).or_default() += 1;
    }
}

struct State {
    blobs: RwLock<HashMap<Digest, Bytes>>,
    results: Mutex<HashMap<Digest, re::ActionResult>>,
    sessions: Sessions,
    counts: Counts,
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
}

#[derive(Clone)]
struct Server(Arc<State>);

impl Server {
    fn digest(&self, digest: Option<&re::Digest>) -> std::result::Result<Digest, Status> {
        Digest::from_proto(DigestFunction::Sha256, digest)
            .map_err(|e| Status::invalid_argument(e.to_string()))
    }

    fn has(&self, digest: Digest) -> bool {
        digest.is_empty() || self.0.blobs.read().expect("blobs").contains_key(&digest)
    }

    fn get(&self, digest: Digest) -> std::result::Result<Bytes, Status> {
        if digest.is_empty() {
            return Ok(Bytes::new());
        }
        let blobs = self.0.blobs.read().expect("blobs");
        let blob = blobs.get(&digest).cloned();
        let blob = blob.ok_or_else(|| Status::not_found(format!("no blob {digest}")))?;
        self.0.bytes_out.fetch_add(digest.size(), Ordering::Relaxed);
        Ok(blob)
    }

    fn put(&self, wanted: Digest, data: Bytes) -> std::result::Result<(), Status> {
        if digest(&data) != wanted {
            return Err(Status::invalid_argument(format!(
                "the data is not {wanted}"
            )));
        }
        self.0.bytes_in.fetch_add(wanted.size(), Ordering::Relaxed);
        self.0.blobs.write().expect("blobs").insert(wanted, data);
        Ok(())
    }
}

/// Serves until SIGTERM, then prints what was counted.
pub(crate) async fn serve(options: Options) -> Result<()> {
    let address = options
        .listen
        .parse()
        .map_err(|e| format!("{}: {e}", options.listen))?;
    let server = Server(Arc::new(State {
        blobs: RwLock::default(),
        results: Mutex::default(),
        sessions: Sessions::new(Duration::from_secs(options.keepalive)),
        counts: Counts::default(),
        bytes_out: AtomicU64::new(0),
        bytes_in: AtomicU64::new(0),
    }));
    let sweeper = server.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            sweeper.0.sessions.sweep();
        }
    });
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(|e| format!("handling SIGTERM: {e}"))?;
    let cas = re::content_addressable_storage_server::ContentAddressableStorageServer::new(
        server.clone(),
    )
    .max_decoding_message_size(MESSAGE_LIMIT)
    .max_encoding_message_size(MESSAGE_LIMIT);
    let bots =
        rw::bots_server::BotsServer::new(server.clone()).max_decoding_message_size(MESSAGE_LIMIT);
    let stream = bytestream::byte_stream_server::ByteStreamServer::new(server.clone())
        .max_decoding_message_size(MESSAGE_LIMIT);
    let serving = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        // Bots end their long polls by resetting them, thousands of times.
        .http2_max_pending_accept_reset_streams(Some(10_000))
        .http2_max_local_error_reset_streams(Some(1_000_000))
        .add_service(trailers::Trailing(bots))
        .add_service(cas)
        .add_service(stream)
        .add_service(re::execution_server::ExecutionServer::new(server.clone()))
        .add_service(re::capabilities_server::CapabilitiesServer::new(
            server.clone(),
        ))
        .add_service(re::action_cache_server::ActionCacheServer::new(
            server.clone(),
        ))
        .add_service(longrunning::operations_server::OperationsServer::new(
            server.clone(),
        ))
        .serve(address);
    tokio::select! {
        ended = serving => ended.map_err(|e| format!("serving {address}: {e}"))?,
        _ = term.recv() => {}
    }
    let counts = server.0.counts.0.lock().expect("counts").clone();
    let transferred = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
    println!(
        "{}",
        serde_json::json!({
            "calls": counts,
            "bytes_out": transferred(&server.0.bytes_out),
            "bytes_in": transferred(&server.0.bytes_in),
        })
    );
    Ok(())
}
