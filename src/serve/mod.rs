//! The REAPI services over a local store: the server half of `boxwright standalone`.
//!
//! [`Server::bind`] takes the store, the action cache and (for execution) the embedded scheduler, and listens at once, so
//! that port 0 is resolved before anything else starts; [`Server::run`] serves until told to stop. Every instance name
//! is accepted and means the same store: a standalone has one, and clients disagree on what the default is called.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use boxwright::{cas::LocalStore, scheduler::embedded::{ActionCache, Embedded, EmbeddedConfig}, serve::{Server, ServerConfig}};
//! # async fn standalone(store: Arc<LocalStore>) -> Result<(), Box<dyn std::error::Error>> {
//! let cache = ActionCache::open("state/ac".as_ref(), 100_000, store.clone())?;
//! let scheduler = Embedded::new(EmbeddedConfig::with_slots(4), store.clone(), cache.clone());
//! let config = ServerConfig { listen: vec!["127.0.0.1:8980".parse()?, "unix:/run/boxwright.sock".parse()?], ..ServerConfig::default() };
//! let server = Server::bind(config, store, cache, Some(scheduler.clone())).await?;
//! println!("serving at {}", server.addresses()[0]);
//! // The worker gets `scheduler` as its `Arc<dyn Scheduler>`, and writes live output to `scheduler.stream_sink(..)`.
//! server.run(async { tokio::signal::ctrl_c().await.ok(); }).await?;
//! # Ok(()) }
//! ```

mod action_cache;
mod answer;
mod byte_stream;
mod capabilities;
mod cas;
mod compress;
mod connection;
mod execution;
mod gate;
mod get_tree;
mod listen;
mod pace;
mod pieces;
mod places;
mod request;
mod taken;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::service::Routes;

pub use listen::{Listen, ListenError};

use crate::cas::LocalStore;
use crate::reapi::proto::bytestream::byte_stream_server::ByteStreamServer;
use crate::reapi::proto::longrunning::operations_server::OperationsServer;
use crate::reapi::proto::re::action_cache_server::ActionCacheServer;
use crate::reapi::proto::re::capabilities_server::CapabilitiesServer;
use crate::reapi::proto::re::content_addressable_storage_server::ContentAddressableStorageServer;
use crate::reapi::proto::re::execution_server::ExecutionServer;
use crate::scheduler::embedded::{ActionCache, Embedded};
use byte_stream::ByteStreamService;
use listen::Listener;

/// Bytes of blobs in one batch call: the 4 MiB that gRPC implementations take by default, less room for digests and statuses.
pub const MAX_BATCH: u64 = (4 << 20) - (256 << 10);
/// The largest message that is taken: a full batch of very small blobs, with their digests.
const MAX_MESSAGE: usize = 16 << 20;
/// Messages of streams and results are smaller.
const MAX_PIECE: usize = (4 << 20) + (64 << 10);
/// How long running calls may go on when the server stops.
const STOPPING: Duration = Duration::from_secs(10);
/// What a client may have on its way in one call, in bytes.
const STREAM_WINDOW: u32 = 256 << 10;
/// And in all calls of a connection. An upload that waits for its turn is not read, and what it has sent is in the way of the
/// others': that many never wait.
const CONNECTION_WINDOW: u32 = 160 * STREAM_WINDOW;
/// What may still come of calls that were refused while the client sent them, in frames, until the connection is closed for it. A
/// client sends one window of each.
const REFUSED: usize = 1 << 16;

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The addresses to listen at; at least one.
    pub listen: Vec<Listen>,
    /// Whether clients may write to the action cache.
    pub cache_updates: bool,
    /// How long an Execute stream stays silent before the last state is told again.
    pub keep_alive: Duration,
    /// Uploads, and downloads, that run at a time; more wait.
    pub max_streams: usize,
    /// How long an interrupted upload can be gone on with.
    pub upload_kept: Duration,
    /// How long a client may stay silent within an upload.
    pub upload_idle: Duration,
    /// How long a client may take (next to) nothing of an answer.
    pub download_idle: Duration,
    /// Connections that are open at a time; more wait.
    pub max_connections: usize,
    /// How long a connection may take to say that it speaks HTTP/2.
    pub greeting: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            listen: Vec::new(),
            cache_updates: true,
            keep_alive: Duration::from_secs(20),
            max_streams: 256,
            upload_kept: Duration::from_secs(600),
            upload_idle: Duration::from_secs(60),
            download_idle: Duration::from_secs(60),
            max_connections: 1024,
            greeting: Duration::from_secs(10),
        }
    }
}

/// Why the server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address cannot be listened at.
    #[error("cannot listen at {address}: {why}")]
    Listen {
        /// The address.
        address: String,
        /// What is wrong, and what to do about it.
        why: String,
    },
    /// The server broke down.
    #[error("the server at {address} stopped: {source}")]
    Transport {
        /// The address.
        address: String,
        /// What the transport said.
        #[source]
        source: tonic::transport::Error,
    },
}

/// A server that listens already.
pub struct Server {
    addresses: Vec<Listen>,
    listeners: Vec<Listener>,
    routes: Routes,
    uploads: ByteStreamService,
    max_connections: usize,
    greeting: Duration,
    download_idle: Duration,
}

impl Server {
    /// Listens at every configured address. Without a scheduler it serves a cache only.
    pub async fn bind(
        config: ServerConfig,
        store: Arc<LocalStore>,
        cache: Arc<ActionCache>,
        scheduler: Option<Arc<Embedded>>,
    ) -> Result<Server, ServeError> {
        if config.listen.is_empty() {
            return Err(ServeError::Listen {
                address: "no address".to_owned(),
                why: "give at least one, such as 127.0.0.1:8980".to_owned(),
            });
        }
        let mut listeners = Vec::new();
        for address in &config.listen {
            listeners.push(Listener::bind(address).await?);
        }
        let (health, health_service) = tonic_health::server::health_reporter();
        let uploads = ByteStreamService::new(
            store.clone(),
            scheduler.clone(),
            &byte_stream::Bounds {
                streams: config.max_streams.max(1),
                upload_kept: config.upload_kept,
                upload_idle: config.upload_idle,
            },
        );
        health
            .set_serving::<CapabilitiesServer<capabilities::CapabilitiesService>>()
            .await;
        let mut routes = Routes::new(health_service)
            .add_service(CapabilitiesServer::new(capabilities::CapabilitiesService {
                cache_updates: config.cache_updates,
                executes: scheduler.is_some(),
            }))
            .add_service(
                ContentAddressableStorageServer::new(cas::CasService {
                    store: store.clone(),
                    trees: get_tree::Trees::new(config.download_idle),
                })
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            )
            .add_service(
                ByteStreamServer::new(uploads.clone()).max_decoding_message_size(MAX_PIECE),
            )
            .add_service(
                ActionCacheServer::new(action_cache::ActionCacheService {
                    store: store.clone(),
                    cache,
                    updates: config.cache_updates,
                })
                .max_decoding_message_size(MAX_PIECE),
            );
        if let Some(scheduler) = scheduler {
            let service = execution::ExecutionService {
                store,
                scheduler,
                keep_alive: config.keep_alive,
            };
            routes = routes
                .add_service(
                    ExecutionServer::new(service.clone()).max_decoding_message_size(1 << 20),
                )
                .add_service(OperationsServer::new(service).max_decoding_message_size(1 << 20));
        }
        Ok(Server {
            addresses: listeners.iter().map(|l| l.address.clone()).collect(),
            listeners,
            routes,
            uploads,
            max_connections: config.max_connections.max(1),
            greeting: config.greeting,
            download_idle: config.download_idle,
        })
    }

    /// Where it listens, in the order of the configuration, with the ports that the system chose.
    pub fn addresses(&self) -> &[Listen] {
        &self.addresses
    }

    /// Serves until `stop` is ready, then refuses new connections, lets running calls end for up to ten seconds, and
    /// returns. Drain the scheduler first: its last results go out through this server.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let (stopping, _) = watch::channel(false);
        let gate = gate::GateLayer::new(self.download_idle);
        let connections = Arc::new(tokio::sync::Semaphore::new(self.max_connections));
        let serving = self.listeners.into_iter().map(|listener| {
            let address = listener.address.to_string();
            let mut stopped = stopping.subscribe();
            let server = tonic::transport::Server::builder()
                .http2_keepalive_interval(Some(Duration::from_secs(30)))
                .http2_keepalive_timeout(Some(Duration::from_secs(20)))
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_concurrent_streams(1024)
                .http2_max_local_error_reset_streams(Some(REFUSED))
                .layer(tower::util::MapResponseLayer::new(request::malformed))
                .layer(gate.clone())
                .add_routes(self.routes.clone());
            let incoming = listener.accept(connections.clone(), self.greeting);
            async move {
                server
                    .serve_with_incoming_shutdown(incoming, async move {
                        let _ = stopped.wait_for(|stopping| *stopping).await;
                    })
                    .await
                    .map_err(|source| ServeError::Transport { address, source })
            }
        });
        let mut serving = std::pin::pin!(futures::future::try_join_all(serving));
        let sweeping = async {
            let mut ticks = tokio::time::interval(Duration::from_secs(30));
            loop {
                ticks.tick().await;
                self.uploads.expire();
            }
        };
        tokio::select! {
            ended = &mut serving => return ended.map(drop),
            () = sweeping => {}
            () = stop => {}
        }
        stopping.send_replace(true);
        match tokio::time::timeout(STOPPING, serving).await {
            Ok(ended) => ended.map(drop),
            // A client that holds on to its connection does not hold the server up.
            Err(_) => Ok(()),
        }
    }
}
