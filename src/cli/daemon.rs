//! What `worker`, `standalone` and the standalone of `run` have in common: the parts that run actions, in
//! the order in which they must start.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure, of_disk};
use super::sandboxes::Prepared;
use crate::action::{self, Finished, LiveOutput, Runner, RunnerParts, Strategies, Strategy};
use crate::cas::{BlobSource, Cas, LocalStore, StoreConfig};
use crate::config::units::rough_size;
use crate::config::{self, HostConfig, LogConfig, Quota, Settings, StrategyConfig, print};
use crate::inputs::InputRoots;
use crate::observe;
use crate::outputs::OutputLimits;
use crate::sandbox::{Level, Limits, Named, Sandboxes};
use crate::scheduler::{Lease, Scheduler};
use crate::tree::{TreeLimits, TreeStore};
use crate::worker::{self, Progress, RunAction, Stop, Worker, WorkerEnd};

/// The blob store, below the state directory.
pub(super) const STORE: &str = "cas";
/// Bytes of decoded Directory messages that are kept between actions.
const TREES: u64 = 12 << 20;

/// Answers `--check-config` and `--print-config`; `None` if there is a daemon to run.
pub(super) fn answer<C>(
    source: &super::settings::Source,
    settings: &Settings,
    config: Result<C, Failure>,
) -> Result<Option<C>, Failure> {
    // Also where a mistyped variable is why something is missing.
    if source.check_config || source.print_config || config.is_err() {
        for stray in strays() {
            eprintln!("boxwright: warning: {}", super::exit::printable(&stray));
        }
    }
    if source.print_config {
        print!("{}", print::render(settings));
    }
    let config = config?;
    if source.check_config && !source.print_config {
        println!("the configuration is good");
    }
    Ok((!source.check_config && !source.print_config).then_some(config))
}

fn strays() -> Vec<String> {
    config::strays(std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()))
}

/// From here on the daemon speaks through its log; the first that it says is what looks wrong already.
pub(super) fn open_log(log: &LogConfig) -> Result<(), Failure> {
    observe::init(log).map_err(|e| Failure::new(Exit::Config, e))?;
    for stray in strays() {
        tracing::warn!("{stray}");
    }
    Ok(())
}

/// What must be there before any thread is.
pub(super) struct Ground {
    prepared: Prepared,
    mounts: super::inputs::Mounts,
}

/// Prepares the process and starts the launchers; before any thread exists.
pub(super) fn ground(host: &HostConfig) -> Result<Ground, Failure> {
    // Before the launchers, which are to see what is mounted.
    let mounts = super::inputs::own_mounts(host)?;
    Ok(Ground {
        prepared: super::sandboxes::prepare(host)?,
        mounts,
    })
}

/// The threads of a daemon: few, for they mostly wait, and with small stacks.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(processors.clamp(2, 4))
        .max_blocking_threads(16)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::Software, format!("cannot start threads: {e}")))
}

/// Opens the local CAS below the state directory.
pub(super) fn store(host: &HostConfig) -> Result<Arc<LocalStore>, Failure> {
    let dir = &host.state_dir;
    let failed = |e: std::io::Error| {
        let text = format!(
            "cannot use state directory {}: {e}; give another one with --state-dir",
            dir.display()
        );
        // Where there is no such place, trying again mends nothing.
        let exit = match e.raw_os_error() {
            Some(
                libc::ENOENT | libc::ENOTDIR | libc::EEXIST | libc::ENAMETOOLONG | libc::ELOOP,
            ) => Exit::Config,
            _ => of_disk(&e),
        };
        Failure::new(exit, text)
    };
    // Slots of a root daemon run as other users, who must get through to their input roots.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
        .map_err(failed)?;
    let disk = rustix::fs::statvfs(dir).map_err(|e| failed(e.into()))?;
    let total = disk.f_blocks.saturating_mul(disk.f_frsize);
    let config = store_config(dir, &host.quota, total)?;
    Ok(LocalStore::open(config)?)
}

fn store_config(dir: &Path, quota: &Quota, total: u64) -> Result<StoreConfig, Failure> {
    let (high, low) = (quota.high.of(total), quota.low.of(total));
    if low >= high {
        let text = format!(
            "cas-quota-low ({}) is not below cas-quota-high ({}) on this file system of {}",
            quota.low,
            quota.high,
            rough_size(total)
        );
        return Err(Failure::new(Exit::Config, text));
    }
    Ok(StoreConfig {
        root: dir.join(STORE),
        high_water: high,
        low_water: low,
        free_floor: quota.floor.of(total),
    })
}

/// The parts that run actions.
pub(super) struct Engine {
    runner: Arc<Runner>,
    store: Arc<LocalStore>,
    slots: usize,
    levels: Vec<Level>,
    inputs: Arc<dyn InputRoots>,
}

impl Engine {
    /// Puts the parts together; within a runtime. What is not local comes from `source`.
    pub(super) async fn new(
        host: &HostConfig,
        store: Arc<LocalStore>,
        ground: Ground,
        source: Option<Arc<dyn BlobSource>>,
        live: Option<Arc<dyn LiveOutput>>,
    ) -> Result<Self, Failure> {
        let cas = Cas::new(store.clone(), source);
        let inputs = super::inputs::roots(host, &cas, &ground.mounts)?;
        // A launcher of a daemon without root looks at the directory of the input roots: it must be there.
        let roots = host.state_dir.join(super::inputs::DIRECTORY);
        let namespace = ground.mounts.namespace();
        let sandboxes = ground.prepared.join(host, &roots, namespace).await?;
        let levels = sandboxes.levels();
        log(host, &store, &sandboxes);
        let settings = settings(host, &store)?;
        let runner = Runner::new(RunnerParts {
            cas,
            trees: Arc::new(TreeStore::new(TREES)),
            inputs: inputs.clone(),
            sandboxes,
            settings,
            worker_name: host.name.clone(),
            live,
            slots: host.slots,
        });
        Ok(Engine {
            runner: Arc::new(runner),
            store,
            slots: host.slots,
            levels,
            inputs,
        })
    }

    /// The sandbox levels that it has, the strongest first.
    pub(super) fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// How input trees are shown.
    pub(super) fn inputs(&self) -> &'static str {
        self.inputs.name()
    }

    /// Works for the scheduler until somebody stops it, or no inputs can be shown any more: whoever started it may start another.
    pub(super) async fn work(
        &self,
        scheduler: Arc<dyn Scheduler>,
        stop_after: Option<u64>,
        mut stop: mpsc::Receiver<Stop>,
    ) -> WorkerEnd {
        let settings = worker::Settings {
            slots: self.slots,
            stop_after,
            ..worker::Settings::default()
        };
        let runner: Arc<dyn RunAction> = Arc::new(Slots(self.runner.clone()));
        let (wish, wishes) = mpsc::channel(3);
        let mut working = std::pin::pin!(Worker::new(scheduler, runner, settings).run(wishes));
        let mut lost = self.inputs.lost();
        let mut unfit = None;
        loop {
            tokio::select! {
                // It is the one who reads the wishes: it goes first, and is never waited for.
                biased;
                end = &mut working => return concluded(unfit, end),
                Some(wanted) = stop.recv() => {
                    // As many as there is room for end it whatever runs.
                    let _ = wish.try_send(wanted);
                }
                why = &mut lost, if unfit.is_none() => {
                    tracing::error!("{why}; this daemon drains and ends");
                    unfit = Some(why);
                    let _ = wish.try_send(Stop::Terminate);
                }
            }
        }
    }

    /// Leaves everything in order.
    pub(super) async fn close(self) -> Result<(), Failure> {
        self.runner.settle().await;
        super::blobs::blocking(move || Ok(self.store.close()?)).await
    }
}

/// How a daemon ends that could show no inputs any more, if it could not: it is started again only if that is what is said.
fn concluded(unfit: Option<String>, end: WorkerEnd) -> WorkerEnd {
    match (unfit, end) {
        (Some(why), WorkerEnd::Drained) => WorkerEnd::Unfit(why),
        (Some(why), WorkerEnd::LeftUnheard { unreported }) => WorkerEnd::Unfit(format!(
            "{why}; the scheduler did not answer, and has no result of {unreported} actions that had finished"
        )),
        (_, end) => end,
    }
}

/// The runner, as the worker knows it.
struct Slots(Arc<Runner>);

#[async_trait]
impl RunAction for Slots {
    async fn run(
        &self,
        lease: &Lease,
        slot: usize,
        cancel: &CancellationToken,
        progress: Progress<'_>,
    ) -> Finished {
        self.0.run(lease, slot, cancel, progress).await
    }
}

fn settings(host: &HostConfig, store: &LocalStore) -> Result<action::Settings, Failure> {
    let limits = &host.limits;
    let size = HostSize::of(&host.state_dir)?;
    let strategy = |config: &StrategyConfig| strategy(config, host, &size);
    Ok(action::Settings {
        tree_limits: TreeLimits {
            nodes: limits.input_nodes,
            bytes: limits.input_bytes,
            ..TreeLimits::default()
        },
        output_limits: OutputLimits {
            nodes: limits.output_nodes,
            // All outputs of an action are in the CAS together before the first is uploaded.
            bytes: limits.output_bytes.min(store.largest_blob()),
            ..OutputLimits::default()
        },
        default_timeout: limits.default_timeout,
        max_timeout: limits.max_timeout,
        grace: limits.kill_grace,
        keep_output: limits.keep_output,
        // At most 1 MiB, as validated.
        inline_output: limits.inline_output as usize,
        strategies: Strategies {
            declared: host.strategies.iter().map(strategy).collect(),
            base: strategy(&host.base),
            required: host.require_platform,
        },
        platform: host.platform.clone(),
        ignored_properties: host.ignored_properties.clone(),
        input_report: host.input_report,
        scratch: store.scratch().to_owned(),
    })
}

/// What shares are shares of.
struct HostSize {
    memory: u64,
    disk: u64,
}

impl HostSize {
    fn of(dir: &Path) -> Result<Self, Failure> {
        let memory = rustix::system::sysinfo();
        let disk = rustix::fs::statvfs(dir).map_err(|e| {
            let text = format!(
                "cannot ask for the size of {}'s file system: {e}",
                dir.display()
            );
            Failure::new(of_disk(&e.into()), text)
        })?;
        Ok(HostSize {
            memory: (memory.totalram as u64).saturating_mul(memory.mem_unit.into()),
            disk: disk.f_blocks.saturating_mul(disk.f_frsize),
        })
    }
}

fn strategy(config: &StrategyConfig, host: &HostConfig, size: &HostSize) -> Strategy {
    Strategy {
        matches: config.matches.clone(),
        levels: config.levels.clone(),
        root: config.root,
        network: config.network,
        profile: config.profile.as_str().into(),
        profiles: config
            .profiles
            .iter()
            .map(|name| name.as_str().into())
            .collect(),
        limits: Limits {
            open_files: host.limits.open_files,
            file_size: host.limits.file_size,
            processes: host.limits.processes,
            memory: Some(config.memory.of(size.memory)),
            cpu_milli: config.cpu_milli,
            pids: Some(config.pids),
            disk_bytes: Some(config.disk.of(size.disk)),
            disk_nodes: Some(config.disk_nodes),
        },
        timeout: config.timeout,
    }
}

/// Says in plain words what this daemon is and does.
fn log(host: &HostConfig, store: &LocalStore, sandboxes: &Sandboxes) {
    let pairs: Vec<String> = host
        .platform
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    tracing::info!(
        "boxwright {}: worker {} with {} slots offers {}",
        env!("CARGO_PKG_VERSION"),
        host.name,
        host.slots,
        pairs.join(" ")
    );
    tracing::info!("actions run at {}", Named(&sandboxes.levels()));
    if let Some(sandbox) = &sandboxes.process {
        let users = match sandbox.owner(0) {
            Some(first) => format!(
                "as users {} to {}",
                first.uid,
                u64::from(first.uid) + host.slots as u64 - 1
            ),
            None => "as the daemon's own user, whose files they can read and change".to_owned(),
        };
        tracing::info!(
            "sandbox level process: actions run {users}; it does NOT hide the host's files, network and processes from \
             them: run only actions of people who may use this host"
        );
    }
    let (asked, most) = (host.limits.output_bytes, store.largest_blob());
    if asked > most {
        tracing::info!(
            "the outputs of an action may take {}, the size of the local CAS (cas-quota-high); max-output-bytes would allow {}",
            rough_size(most),
            rough_size(asked)
        );
    }
    let usage = store.usage();
    tracing::info!(
        "the local CAS below {} holds {} blobs, {}",
        host.state_dir.display(),
        usage.blobs,
        rough_size(usage.bytes)
    );
}

/// SIGHUP means a lost terminal, or "read your configuration again" to some: a daemon survives it and says so.
pub(super) fn survive_hangup() -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup()).map_err(signals)?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP is ignored; restart to read the configuration again");
        }
    });
    Ok(())
}

/// SIGTERM and SIGINT, from now on.
pub(super) fn stops() -> Result<mpsc::Receiver<Stop>, Failure> {
    worker::stops().map_err(signals)
}

fn signals(error: std::io::Error) -> Failure {
    Failure::new(Exit::Software, format!("cannot listen to signals: {error}"))
}

/// How a daemon ends that ended like this.
pub(super) fn ended(end: WorkerEnd) -> super::Done {
    match end {
        WorkerEnd::Drained => {
            tracing::info!("drained: nothing runs, the scheduler knows that we are gone");
            Ok(std::process::ExitCode::SUCCESS)
        }
        WorkerEnd::LeftUnheard { unreported } => Err(Failure::new(
            Exit::Unavailable,
            format!(
                "left without the scheduler's knowledge, for it did not answer: {}",
                match unreported {
                    0 => "it gives us work until the session expires".to_owned(),
                    1 => "the end of 1 action was not reported, and is lost. The scheduler gives the action to another worker when \
                          the session expires".to_owned(),
                    n => format!("the ends of {n} actions were not reported, and are lost. The scheduler gives the actions to \
                          other workers when the session expires"),
                }
            ),
        )),
        WorkerEnd::Fatal(why) => Err(Failure::new(Exit::Config, why)),
        WorkerEnd::Unfit(why) => Err(Failure::new(Exit::Software, why)),
        WorkerEnd::Aborted => Err(Failure::new(
            Exit::Failed,
            "stopped at once, as asked for three times; what ran was killed and not reported",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::units::Amount;

    #[test]
    fn one_that_can_show_no_inputs_says_so_whether_the_scheduler_hears_it_or_not() {
        let broken = || Some("FUSE is gone".to_owned());
        let heard = concluded(broken(), WorkerEnd::Drained);
        assert_eq!(heard, WorkerEnd::Unfit("FUSE is gone".to_owned()));
        let unheard = WorkerEnd::LeftUnheard { unreported: 2 };
        match concluded(broken(), unheard.clone()) {
            WorkerEnd::Unfit(why) => {
                assert!(
                    why.contains("FUSE is gone") && why.contains("2 actions"),
                    "{why}"
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(concluded(None, unheard.clone()), unheard);
        // Another one would be refused too.
        let refused = WorkerEnd::Fatal("no such instance".to_owned());
        assert_eq!(concluded(broken(), refused.clone()), refused);
    }

    #[test]
    fn shares_are_of_the_file_system() {
        let quota = |high, low| Quota {
            high,
            low,
            floor: Amount::Percent(5),
        };
        let of = |high, low| store_config(Path::new("/s"), &quota(high, low), 1000);
        let config = of(Amount::Percent(20), Amount::Bytes(100)).unwrap();
        assert_eq!(
            (config.high_water, config.low_water, config.free_floor),
            (200, 100, 50)
        );
        assert_eq!(config.root, Path::new("/s/cas"));
        let error = of(Amount::Percent(20), Amount::Bytes(200)).unwrap_err();
        assert_eq!(error.exit, Exit::Config);
    }
}
