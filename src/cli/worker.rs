//! `boxwright worker`: actions from a scheduler elsewhere.

use std::sync::Arc;

use clap::Args;

use super::Done;
use super::daemon::{self, Engine};
use super::exit::Failure;
use super::settings::{Source, WorkerFlags};
use crate::action::LiveOutput;
use crate::cas::{BlobSource, RemoteCas, RemoteConfig};
use crate::config::WorkerConfig;
use crate::sandbox::Level;
use crate::scheduler::rwapi::{LogStreams, Rwapi, RwapiConfig};

/// Take actions from a scheduler (Remote Workers API), run them, return their outputs
///
/// SIGTERM or SIGINT drains: what runs is finished, nothing new is taken. The second gives back what runs, the third leaves
/// at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Every setting may also be in the file of --config under the flag's name (platform also as a table), or in the environment as \
BOXWRIGHT_ and the name in capitals with _ for -. A flag goes before the environment, that before the file, that before \
the default. Sizes are written 512, 64K, 50G, 1TiB (counting in 1024s), 3GB (in 1000s); times 250ms, 30s, 5m, 2h, 1d.

Example: boxwright worker --remote http://build.example:50051 --instance main --platform pool=big --concurrent-jobs 8

Exit codes: 0 drained, 1 stopped at once, 2 wrong usage, 69 the scheduler did not answer for as long as a drain \
waits (results that it has not heard of are lost), 70 the sandbox or another part failed, \
74 the disk of the state directory failed, 75 the state directory is in use, 77 permission denied, 78 the configuration is wrong or the scheduler refuses the first session.")]
pub(super) struct WorkerCommand {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    flags: WorkerFlags,
}

impl WorkerCommand {
    pub(super) fn run(self) -> Done {
        let settings = self.flags.resolve(&self.source)?;
        let config = WorkerConfig::new(&settings)
            .map_err(Failure::from)
            .and_then(reachable);
        let Some(config) = daemon::answer(&self.source, &settings, config)? else {
            return Ok(std::process::ExitCode::SUCCESS);
        };
        daemon::open_log(&config.host.log)?;
        let ground = daemon::ground(&config.host)?;
        daemon::runtime()?.block_on(async {
            let stop = daemon::stops()?;
            daemon::survive_hangup()?;
            let host = config.host.clone();
            let store = super::blobs::blocking(move || daemon::store(&host)).await?;
            let cas: Arc<dyn BlobSource> = Arc::new(RemoteCas::new(remote(&config))?);
            let live: Option<Arc<dyn LiveOutput>> = match &config.logstream {
                Some(endpoint) => Some(Arc::new(LogStreams::new(
                    endpoint,
                    &config.credentials,
                    config.patience.timeout,
                )?)),
                None => None,
            };
            let engine = Engine::new(&config.host, store, ground, Some(cas), live).await?;
            let scheduler = Rwapi::new(rwapi(&config, engine.levels(), engine.inputs()))?;
            tracing::info!(
                "scheduler {}, CAS {}, instance {:?}, bot id {}",
                config.bots,
                config.cas,
                config.instance,
                scheduler.bot_id()
            );
            super::ready::ready();
            let end = engine.work(scheduler, config.stop_after, stop).await;
            // Whoever asked three times does not want to wait for the disk.
            if end != crate::worker::WorkerEnd::Aborted {
                engine.close().await?;
            }
            daemon::ended(end)
        })
    }
}

/// Whether connections to all that it names can be made at all; nothing is connected to.
fn reachable(config: WorkerConfig) -> Result<WorkerConfig, Failure> {
    for endpoint in [&config.bots, &config.cas]
        .into_iter()
        .chain(&config.logstream)
    {
        endpoint.dialer(&config.credentials)?;
    }
    Ok(config)
}

fn remote(config: &WorkerConfig) -> RemoteConfig {
    RemoteConfig {
        endpoint: config.cas.clone(),
        credentials: config.credentials.clone(),
        instance: config.instance.clone(),
        retries: config.patience.retries,
        retry_delay: config.patience.delay,
        call_timeout: config.patience.timeout,
    }
}

fn rwapi(config: &WorkerConfig, levels: &[Level], inputs: &str) -> RwapiConfig {
    let levels: Vec<&str> = levels.iter().map(|level| level.name()).collect();
    let levels = levels.join(",");
    RwapiConfig {
        instance: config.instance.clone(),
        bot_name: Some(config.host.name.clone()),
        platform: config.host.platform.clone(),
        labels: [
            ("boxwright-sandbox", levels.as_str()),
            ("boxwright-inputs", inputs),
            ("boxwright-version", env!("CARGO_PKG_VERSION")),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into(),
        capacity: config.host.slots,
        stop_after: config.stop_after,
        priority: config.priority,
        credentials: config.credentials.clone(),
        ..RwapiConfig::new(config.bots.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::Program;
    use crate::config::settings::tests::host;
    use crate::config::{file, settings::Settings};

    #[test]
    fn the_scheduler_is_told_the_isolation_level_and_the_priority() {
        let layer = file::parse("remote = 'http://h:1'\npriority = 3").unwrap();
        let settings = Settings::resolve(Program::Worker, vec![layer], &host()).unwrap();
        let told = rwapi(
            &WorkerConfig::new(&settings).unwrap(),
            &Level::ALL,
            "staged",
        );
        assert_eq!(told.priority, 3);
        for (key, value) in [
            ("boxwright-sandbox", "full,process"),
            ("boxwright-inputs", "staged"),
            ("boxwright-version", env!("CARGO_PKG_VERSION")),
        ] {
            assert!(told.labels.contains(&(key.into(), value.into())), "{key}");
            assert!(told.platform.iter().all(|(offered, _)| offered != key));
        }
    }
}
