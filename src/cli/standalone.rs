//! `boxwright standalone`: server, scheduler and worker in one process.

use std::sync::Arc;

use clap::Args;
use tokio::sync::{mpsc, oneshot};

use super::Done;
use super::daemon::{self, Engine, Ground};
use super::exit::{Exit, Failure};
use super::settings::{Source, StandaloneFlags};
use crate::action::LiveOutput;
use crate::cas::LocalStore;
use crate::config::{HostConfig, StandaloneConfig};
use crate::sandbox::LiveSink;
use crate::scheduler::embedded::{ActionCache, Embedded, EmbeddedConfig};
use crate::serve::{Listen, ServeError, Server, ServerConfig};
use crate::worker::{Stop, WorkerEnd};

/// Serve remote execution and caching to build tools on this machine, all in one process
///
/// Capabilities, CAS, ByteStream, ActionCache, Execution and Operations over one store. Bazel pointed at it just builds:
/// bazel build --remote_executor=grpc://127.0.0.1:8980 //...
#[derive(Debug, Args)]
#[command(after_help = "\
Every setting may also be in the file of --config under the flag's name (platform also as a table), or in the environment as \
BOXWRIGHT_ and the name in capitals with _ for -. A flag goes before the environment, that before the file, that before \
the default. Sizes are written 512, 64K, 50G, 1TiB (counting in 1024s), 3GB (in 1000s); times 250ms, 30s, 5m, 2h, 1d.

Exit codes: 0 drained, 1 stopped at once, 2 wrong usage, 69 the address is not available, 70 the sandbox or another part \
failed, 74 the disk of the state directory failed, 75 the state directory is in use, 77 permission denied, 78 the configuration is wrong.")]
pub(super) struct StandaloneCommand {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    flags: StandaloneFlags,
}

/// Results of actions that are kept.
const RESULTS: usize = 100_000;

impl StandaloneCommand {
    pub(super) fn run(self) -> Done {
        let settings = self.flags.resolve(&self.source)?;
        let config = StandaloneConfig::new(&settings);
        let Some(config) = daemon::answer(&self.source, &settings, config.map_err(Failure::from))?
        else {
            return Ok(std::process::ExitCode::SUCCESS);
        };
        daemon::open_log(&config.host.log)?;
        let ground = daemon::ground(&config.host)?;
        daemon::runtime()?.block_on(async {
            let stop = daemon::stops()?;
            daemon::survive_hangup()?;
            let host = config.host.clone();
            let store = super::blobs::blocking(move || daemon::store(&host)).await?;
            let standalone =
                Standalone::start(&config.host, config.listen.clone(), store, ground).await?;
            for address in standalone.addresses() {
                tracing::info!("serving at {address}");
            }
            if let Listen::Tcp(address) = &config.listen
                && !address.ip().is_loopback()
            {
                tracing::warn!("whoever can connect to {address} can run commands on this host");
            }
            super::ready::ready();
            daemon::ended(standalone.run(stop).await?)
        })
    }
}

/// A standalone that listens already.
pub(super) struct Standalone {
    engine: Engine,
    scheduler: Arc<Embedded>,
    server: Server,
}

impl Standalone {
    /// Puts it together; within a runtime.
    pub(super) async fn start(
        host: &HostConfig,
        listen: Listen,
        store: Arc<LocalStore>,
        ground: Ground,
    ) -> Result<Self, Failure> {
        let (dir, kept) = (host.state_dir.join("ac"), store.clone());
        let cache =
            super::blobs::blocking(move || Ok(ActionCache::open(&dir, RESULTS, kept)?)).await?;
        let config = EmbeddedConfig::with_slots(host.slots);
        let scheduler = Embedded::new(config, store.clone(), cache.clone());
        let live: Arc<dyn LiveOutput> = Arc::new(Streams(scheduler.clone()));
        let engine = Engine::new(host, store.clone(), ground, None, Some(live)).await?;
        let config = ServerConfig {
            listen: vec![listen],
            ..ServerConfig::default()
        };
        let server = Server::bind(config, store, cache, Some(scheduler.clone()))
            .await
            .map_err(unavailable)?;
        Ok(Standalone {
            engine,
            scheduler,
            server,
        })
    }

    /// Where it listens.
    pub(super) fn addresses(&self) -> &[Listen] {
        self.server.addresses()
    }

    /// Serves until it is stopped; the server goes last, for results leave through it.
    pub(super) async fn run(self, stop: mpsc::Receiver<Stop>) -> Result<WorkerEnd, Failure> {
        let Standalone {
            engine,
            scheduler,
            server,
        } = self;
        let (drained, over) = oneshot::channel::<()>();
        let served = tokio::spawn(server.run(async {
            let _ = over.await;
        }));
        let mut served = std::pin::pin!(served);
        let end = tokio::select! {
            end = engine.work(scheduler, None, stop) => end,
            broken = &mut served => {
                return Err(match broken {
                    Ok(Err(error)) => unavailable(error),
                    _ => Failure::new(Exit::Software, "the server stopped by itself"),
                });
            }
        };
        drop(drained);
        if end == WorkerEnd::Aborted {
            return Ok(end);
        }
        match served.await {
            Ok(done) => done.map_err(unavailable)?,
            Err(error) => return Err(Failure::new(Exit::Software, error)),
        }
        engine.close().await?;
        Ok(end)
    }
}

fn unavailable(error: ServeError) -> Failure {
    Failure::new(Exit::Unavailable, error)
}

/// Live output, into the streams that the server reads from.
struct Streams(Arc<Embedded>);

impl LiveOutput for Streams {
    fn open(&self, stream: &str) -> Option<Box<dyn LiveSink>> {
        Some(Box::new(self.0.stream_sink(stream)?))
    }
}
