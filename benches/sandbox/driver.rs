//! One variant, in a process of its own: takes orders of `PROGRAM CONCURRENCY ACTIONS` from standard input, and answers each by the seconds
//! that it took.

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxwright::sandbox::linux::profile::Profiles;
use boxwright::sandbox::linux::{BUILD, FullConfig, FullSandbox};
use boxwright::sandbox::process::ProcessSandbox;
use boxwright::sandbox::{
    CommandSpec, End, Identity, Launchers, Level, Limits, RootShape, Sandbox, StreamSpec, View,
};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::group::Group;
use crate::stage::{Program, tree};

const SLOTS: usize = 4;
const FIRST_UID: u32 = 0x7200_0000;
const GIB: usize = 1 << 30;
const PATH: &str = "/usr/bin:/bin";

/// A way to run a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Variant {
    /// `posix_spawn` and `wait4`.
    Spawn,
    /// The level of this name.
    Process,
    /// The full level, with the host's tools: its usual case.
    Full,
    /// That, in a daemon of one GiB.
    Large,
    /// The full level, with the input root as the root: a mount namespace for each action.
    Input,
    /// The full level, with a launcher for each action.
    Fresh,
    /// Bubblewrap with the flags that buildbox-run 1.4 gives it.
    Bubblewrap,
}

impl Variant {
    pub(crate) const ALL: [Variant; 7] = [
        Variant::Spawn,
        Variant::Process,
        Variant::Full,
        Variant::Large,
        Variant::Input,
        Variant::Fresh,
        Variant::Bubblewrap,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Variant::Spawn => "spawn",
            Variant::Process => "process",
            Variant::Full => "full",
            Variant::Large => "large",
            Variant::Input => "input",
            Variant::Fresh => "fresh",
            Variant::Bubblewrap => "bwrap",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Variant::Spawn => "posix_spawn",
            Variant::Process => "level process",
            Variant::Full => "level full",
            Variant::Large => "level full, daemon of 1 GiB",
            Variant::Input => "level full, root = input",
            Variant::Fresh => "level full, a launcher each",
            Variant::Bubblewrap => "bubblewrap as in buildbox-run",
        }
    }

    /// How many times an action of it is dearer than a bare one, roughly: it is run so much more rarely.
    pub(crate) fn weight(self) -> usize {
        match self {
            Variant::Fresh => 15,
            Variant::Bubblewrap => 6,
            _ => 1,
        }
    }
}

/// What runs the actions.
enum Runner {
    /// A command line before the program; `None` for nothing.
    Plain(Option<fn(&Path) -> Vec<String>>),
    Sandbox(Runtime, Arc<dyn Sandbox>, Variant),
}

pub(crate) fn main(name: &str, stage: &Path, group: &Path) -> ExitCode {
    match drive(name, stage, group) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn drive(name: &str, stage: &Path, group: &Path) -> Result<(), String> {
    let variant = Variant::ALL.into_iter().find(|v| v.name() == name);
    let variant = variant.ok_or(format!("there is no variant {name}"))?;
    Group::enter(group)?;
    let memory = match variant {
        Variant::Large => touched(GIB)?,
        _ => Vec::new(),
    };
    let runner = Runner::make(variant, stage)?;
    println!("ready");
    for order in std::io::stdin().lock().lines() {
        let order = order.map_err(|e| e.to_string())?;
        let words: Vec<&str> = order.split_ascii_whitespace().collect();
        let bad = || format!("no order: {order:?}");
        let [program, at_once, actions] = words.as_slice() else {
            return Err(bad());
        };
        let program = Program::ALL.into_iter().find(|p| p.name() == *program);
        let number = |word: &str| word.parse::<usize>().ok().filter(|n| *n > 0);
        let (Some(program), Some(at_once), Some(actions)) =
            (program, number(at_once), number(actions))
        else {
            return Err(bad());
        };
        let begun = Instant::now();
        runner.run(stage, program, at_once, actions)?;
        println!("{}", begun.elapsed().as_secs_f64());
        std::io::stdout().flush().map_err(|e| e.to_string())?;
    }
    black_box(&memory);
    Ok(())
}

/// Memory in small pages, as a daemon's that has grown: huge ones would cost little to copy.
fn touched(bytes: usize) -> Result<Vec<u8>, String> {
    use nix::sys::prctl::set_thp_disable;
    set_thp_disable(true).map_err(|e| e.to_string())?;
    let memory = vec![1; bytes];
    // Launchers inherit it.
    set_thp_disable(false).map_err(|e| e.to_string())?;
    Ok(memory)
}

impl Runner {
    fn make(variant: Variant, stage: &Path) -> Result<Runner, String> {
        let level = match variant {
            Variant::Spawn => return Ok(Runner::Plain(None)),
            Variant::Bubblewrap => {
                let found = Command::new("bwrap")
                    .arg("--version")
                    .stdout(Stdio::null())
                    .status();
                found.map_err(|e| format!("cannot run bwrap, to compare with: {e}"))?;
                return Ok(Runner::Plain(Some(bubblewrap)));
            }
            Variant::Process => Level::Process,
            _ => Level::Full,
        };
        let launchers = Launchers::start(level, SLOTS).map_err(|e| e.to_string())?;
        let runtime = Runtime::new().map_err(|e| e.to_string())?;
        let sandbox: Arc<dyn Sandbox> = runtime.block_on(async {
            let words = |e: boxwright::sandbox::SandboxError| e.to_string();
            Ok::<_, String>(match level {
                Level::Process => {
                    Arc::new(ProcessSandbox::new(launchers, FIRST_UID).map_err(words)?)
                        as Arc<dyn Sandbox>
                }
                Level::Full => {
                    let config = FullConfig {
                        profiles: Profiles::load(None).map_err(|e| e.to_string())?,
                        first_uid: FIRST_UID,
                        roots: stage.to_owned(),
                        namespace: None,
                    };
                    Arc::new(FullSandbox::new(launchers, config).map_err(words)?)
                }
            })
        })?;
        Ok(Runner::Sandbox(runtime, sandbox, variant))
    }

    /// Runs so many actions, `at_once` at a time, each loop in a slot of its own.
    fn run(
        &self,
        stage: &Path,
        program: Program,
        at_once: usize,
        actions: usize,
    ) -> Result<(), String> {
        let share = |slot: usize| actions / at_once + usize::from(slot < actions % at_once);
        match self {
            Runner::Plain(prefix) => std::thread::scope(|scope| {
                let one = |slot| {
                    let tree = tree(stage, slot);
                    scope.spawn(move || plain(*prefix, &tree, program, share(slot)))
                };
                let threads: Vec<_> = (0..at_once).map(one).collect();
                let mut ended = threads.into_iter().map(|thread| thread.join());
                ended.try_for_each(|end| end.unwrap_or(Err("a thread panicked".into())))
            }),
            Runner::Sandbox(runtime, sandbox, variant) => runtime.block_on(async {
                let one = |slot| {
                    let (sandbox, tree) = (sandbox.clone(), tree(stage, slot));
                    tokio::spawn(sandboxed(
                        sandbox,
                        *variant,
                        tree,
                        slot,
                        program,
                        share(slot),
                    ))
                };
                for task in (0..at_once).map(one).collect::<Vec<_>>() {
                    task.await.map_err(|e| e.to_string())??;
                }
                Ok(())
            }),
        }
    }
}

fn plain(
    prefix: Option<fn(&Path) -> Vec<String>>,
    tree: &Path,
    program: Program,
    actions: usize,
) -> Result<(), String> {
    let mut words = prefix.map_or_else(Vec::new, |prefix| prefix(tree));
    words.push(match (prefix, program) {
        (None, Program::Static) => format!("{}{}", tree.display(), program.path()),
        _ => program.path().to_owned(),
    });
    for _ in 0..actions {
        let ended = Command::new(&words[0])
            .args(&words[1..])
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .map_err(|e| format!("cannot run {}: {e}", words[0]))?;
        if !ended.success() {
            return Err(format!("{words:?} ended by {ended}"));
        }
    }
    Ok(())
}

/// As buildbox-run-bubblewrap 1.4 calls it, by its own log.
fn bubblewrap(tree: &Path) -> Vec<String> {
    let tree = tree.display().to_string();
    let words = [
        "bwrap",
        "--unshare-pid",
        "--die-with-parent",
        "--bind",
        &tree,
        "/",
        "--unshare-net",
        "--unshare-uts",
        "--hostname",
        "buildbox",
        "--unshare-ipc",
        "--chdir",
        "/",
        "--unshare-user",
        "--uid",
        "0",
        "--gid",
        "0",
        "--cap-drop",
        "ALL",
        "--setenv",
        "PATH",
        PATH,
        "--proc",
        "/proc",
        "--tmpfs",
        "/tmp",
        "--dev",
        "/dev",
    ];
    words.map(str::to_owned).into()
}

async fn sandboxed(
    sandbox: Arc<dyn Sandbox>,
    variant: Variant,
    tree: PathBuf,
    slot: usize,
    program: Program,
    actions: usize,
) -> Result<(), String> {
    let path = match (variant, program) {
        (Variant::Input, _) | (_, Program::Dynamic) => program.path().to_owned(),
        (Variant::Process, _) => format!("{}{}", tree.display(), program.path()),
        _ => format!("{BUILD}{}", program.path()),
    };
    for action in 0..actions {
        let mut view = View::default();
        match variant {
            Variant::Input => view.root = RootShape::Input,
            // No launcher serves two kinds.
            Variant::Fresh => {
                view.user = Identity {
                    uid: 1000 + action as u32 % 2,
                    gid: 1000,
                }
            }
            _ => {}
        }
        let stream = || StreamSpec {
            memory: 64 << 10,
            keep: 16 << 20,
            spill_dir: tree.clone(),
            live: None,
        };
        let spec = CommandSpec {
            argv: vec![path.clone().into()],
            env: vec![("PATH".into(), PATH.into())],
            inputs: Default::default(),
            root: tree.clone(),
            cwd: PathBuf::new(),
            timeout: Some(Duration::from_secs(60)),
            exempt: Default::default(),
            grace: Duration::ZERO,
            limits: Limits::default(),
            view,
            stdout: stream(),
            stderr: stream(),
        };
        let outcome = sandbox.run(slot, spec, CancellationToken::new()).await;
        match outcome.map_err(|e| e.to_string())?.end {
            End::Exited(0) => {}
            end => return Err(format!("{path} ended by {end:?}")),
        }
    }
    Ok(())
}
