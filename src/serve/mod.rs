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

mod listen;

use std::future::Future;
use std::sync::Arc;

pub use listen::Listen;

use crate::cas::LocalStore;
use crate::scheduler::embedded::{ActionCache, Embedded};

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The addresses to listen at; at least one.
    pub listen: Vec<Listen>,
    /// Whether clients may write to the action cache.
    pub cache_updates: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            listen: Vec::new(),
            cache_updates: true,
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
pub struct Server {}

impl Server {
    /// Listens at every configured address. Without a scheduler it serves a cache only.
    pub async fn bind(
        _config: ServerConfig,
        _store: Arc<LocalStore>,
        _cache: Arc<ActionCache>,
        _scheduler: Option<Arc<Embedded>>,
    ) -> Result<Server, ServeError> {
        todo!()
    }
    /// Where it listens, in the order of the configuration, with the ports that the system chose.
    pub fn addresses(&self) -> &[Listen] {
        todo!()
    }
    /// Serves until `stop` is ready, then refuses new connections, lets running calls end for up to ten seconds, and
    /// returns. Drain the scheduler first: its last results go out through this server.
    pub async fn run(self, _stop: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        todo!()
    }
}
