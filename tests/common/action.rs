//! One worker without a scheduler: a store, staged inputs, the process sandbox and a runner, and
//! short ways of putting an action together.
#![allow(dead_code)] // each test file uses its own part

use std::cell::Cell;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxwright::action::{Ending, Finished, Runner, RunnerParts, Settings, Strategies};
use boxwright::cas::{BlobSource, Cas, LocalStore, StoreConfig};
use boxwright::inputs::InputRoots;
use boxwright::inputs::fuse::{FuseRoots, private_mounts};
use boxwright::inputs::staged::Staged;
use boxwright::reapi::proto::re;
use boxwright::reapi::{Digest, DigestFunction};
use boxwright::sandbox::linux::profile::Profiles;
use boxwright::sandbox::linux::{FullConfig, FullSandbox};
use boxwright::sandbox::process::ProcessSandbox;
use boxwright::sandbox::{Launchers, Level, Sandbox, Sandboxes};
use boxwright::scheduler::Lease;
use boxwright::tree::TreeStore;
use prost::Message;
use tokio_util::sync::CancellationToken;

pub(crate) const F: DigestFunction = DigestFunction::Sha256;

/// A worker of one slot.
pub(crate) struct Bench {
    pub(crate) store: Arc<LocalStore>,
    pub(crate) runner: Runner,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn settings(scratch: std::path::PathBuf) -> Settings {
    Settings {
        tree_limits: Default::default(),
        output_limits: Default::default(),
        default_timeout: None,
        max_timeout: None,
        grace: Duration::from_millis(300),
        keep_output: 1 << 20,
        inline_output: 1024,
        strategies: Strategies::at(&[Level::Process]),
        platform: vec![("OSFamily".into(), "linux".into())],
        ignored_properties: Vec::new(),
        input_report: false,
        scratch,
    }
}

/// Gives the test's thread and those that it starts mounts of their own: the launchers and the runtime's. Once, for
/// threads that the runtime has by then stay where they are.
fn own_mounts() {
    thread_local!(static DONE: Cell<bool> = const { Cell::new(false) });
    if !DONE.replace(true) {
        private_mounts().unwrap();
    }
}

/// Gives the test mounts of its own if there can be FUSE file systems in them; says so if not.
fn ready_for_fuse() -> bool {
    let possible = crate::skipped::unless_root_and_fuse();
    if possible {
        own_mounts();
    }
    possible
}

fn process() -> Arc<dyn Sandbox> {
    let launchers =
        Launchers::start_from(env!("CARGO_BIN_EXE_boxwright"), Level::Process, 1).unwrap();
    Arc::new(ProcessSandbox::new(launchers, 0x7000_0000).unwrap())
}

fn staged(cas: &Cas, dir: &Path) -> Arc<dyn InputRoots> {
    Arc::new(Staged::new(cas.clone(), dir.to_owned()).unwrap())
}

fn on_fuse(cas: &Cas, dir: &Path) -> Arc<dyn InputRoots> {
    Arc::new(FuseRoots::new(cas.clone(), dir).unwrap())
}

impl Bench {
    /// `change` may alter the settings.
    pub(crate) fn new(change: impl FnOnce(&mut Settings)) -> Self {
        Bench::with_remote(None, change)
    }

    /// What is not local comes from `remote`, and outputs go there.
    pub(crate) fn with_remote(
        remote: Option<Arc<dyn BlobSource>>,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        Bench::with_all(process(), staged, remote, change)
    }

    /// The same with inputs on the file system, and a place that blobs come from. `None`, and said so, where that cannot be.
    pub(crate) fn fuse(
        source: Option<Arc<dyn BlobSource>>,
        change: impl FnOnce(&mut Settings),
    ) -> Option<Self> {
        Self::fuse_after(source, None, change)
    }

    /// The same with what an earlier worker has learnt of commands.
    pub(crate) fn fuse_after(
        source: Option<Arc<dyn BlobSource>>,
        learnt: Option<&Path>,
        change: impl FnOnce(&mut Settings),
    ) -> Option<Self> {
        ready_for_fuse().then_some(())?;
        let inputs = |cas: &Cas, dir: &Path| -> Arc<dyn InputRoots> {
            if let Some(learnt) = learnt {
                std::fs::copy(learnt, dir.with_file_name("input-profiles")).unwrap();
            }
            on_fuse(cas, dir)
        };
        Some(Bench::with_all(process(), inputs, source, change))
    }

    /// With inputs on the file system, and a store that takes so many bytes and no source of more.
    pub(crate) fn fuse_in(store: u64) -> Option<Self> {
        ready_for_fuse().then_some(())?;
        Some(Bench::with_store(store, process(), on_fuse, None, |_| {}))
    }

    /// The same at level full, where a launcher holds a root for a while after its action has ended.
    pub(crate) fn fuse_at_full(
        source: Option<Arc<dyn BlobSource>>,
        first_uid: u32,
        change: impl FnOnce(&mut Settings),
    ) -> Option<Self> {
        ready_for_fuse().then_some(())?;
        let roots = tempfile::tempdir().unwrap();
        let launchers =
            Launchers::start_from(env!("CARGO_BIN_EXE_boxwright"), Level::Full, 1).unwrap();
        let config = FullConfig {
            profiles: Profiles::load(None).unwrap(),
            first_uid,
            roots: roots.path().to_owned(),
            namespace: None,
        };
        let full = Arc::new(FullSandbox::new(launchers, config).unwrap());
        Some(Bench::with_all(full, on_fuse, source, change))
    }

    /// With a sandbox of another kind.
    pub(crate) fn with(sandbox: Arc<dyn Sandbox>, change: impl FnOnce(&mut Settings)) -> Self {
        Bench::with_all(sandbox, staged, None, change)
    }

    fn with_all(
        sandbox: Arc<dyn Sandbox>,
        inputs: impl FnOnce(&Cas, &Path) -> Arc<dyn InputRoots>,
        remote: Option<Arc<dyn BlobSource>>,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        Bench::with_store(1 << 30, sandbox, inputs, remote, change)
    }

    fn with_store(
        high_water: u64,
        sandbox: Arc<dyn Sandbox>,
        inputs: impl FnOnce(&Cas, &Path) -> Arc<dyn InputRoots>,
        remote: Option<Arc<dyn BlobSource>>,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Commands run as another user and must be able to reach their input root.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let store = LocalStore::open(StoreConfig {
            root: dir.path().join("cas"),
            high_water,
            low_water: high_water / 2,
            free_floor: 0,
        })
        .unwrap();
        let cas = Cas::new(store.clone(), remote);
        let mut settings = settings(store.scratch().to_owned());
        settings.strategies = Strategies::at(&[sandbox.level()]);
        change(&mut settings);
        let runner = Runner::new(RunnerParts {
            trees: Arc::new(TreeStore::new(1 << 20)),
            inputs: inputs(&cas, &dir.path().join("stage")),
            sandboxes: match sandbox.level() {
                Level::Full => Sandboxes {
                    full: Some(sandbox),
                    ..Sandboxes::default()
                },
                Level::Process => Sandboxes {
                    process: Some(sandbox),
                    ..Sandboxes::default()
                },
            },
            cas,
            settings,
            worker_name: "bench".into(),
            live: None,
            slots: 1,
        });
        Bench { store, runner, dir }
    }

    /// Ends the worker and leaves its directory.
    pub(crate) fn end(self) -> tempfile::TempDir {
        let Bench { runner, dir, .. } = self;
        drop(runner);
        dir
    }

    pub(crate) fn put(&self, data: &[u8]) -> Digest {
        let digest = F.digest(data);
        self.store.put(digest, data, false).unwrap();
        digest
    }

    pub(crate) fn put_message(&self, message: &impl Message) -> Digest {
        self.put(&message.encode_to_vec())
    }

    pub(crate) fn blob(&self, digest: Option<&re::Digest>) -> Vec<u8> {
        let digest = Digest::from_proto(F, digest).unwrap();
        self.store
            .read(digest, 1 << 30)
            .unwrap()
            .expect("blob is in the store")
            .to_vec()
    }

    /// A root directory with these files, stored.
    pub(crate) fn root(&self, files: &[(&str, &[u8])]) -> Digest {
        let files = files
            .iter()
            .map(|(name, data)| re::FileNode {
                name: (*name).into(),
                digest: Some(self.put(data).to_proto()),
                ..Default::default()
            })
            .collect();
        self.put_message(&re::Directory {
            files,
            ..Default::default()
        })
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, command: re::Command, root: Digest) -> Finished {
        let command_digest = self.put_message(&command);
        self.run_action(action(command_digest, root), CancellationToken::new())
            .await
    }

    pub(crate) async fn run_action(
        &self,
        action: re::Action,
        cancel: CancellationToken,
    ) -> Finished {
        let finished = self.start(action, cancel).await;
        self.settle().await;
        finished
    }

    /// Runs an action without waiting until its root is gone.
    pub(crate) async fn start(&self, action: re::Action, cancel: CancellationToken) -> Finished {
        self.runner.run(&lease(&action), 0, &cancel, &|_| {}).await
    }

    pub(crate) async fn settle(&self) {
        self.runner.settle().await;
    }
}

pub(crate) fn action(command: Digest, root: Digest) -> re::Action {
    re::Action {
        command_digest: Some(command.to_proto()),
        input_root_digest: Some(root.to_proto()),
        ..Default::default()
    }
}

pub(crate) fn lease(action: &re::Action) -> Lease {
    Lease {
        id: "main/lease".into(),
        action: Some(action.encode_to_vec().into()),
        action_digest: None,
        function: F,
        stdout_stream: String::new(),
        stderr_stream: String::new(),
        origin: None,
        metadata: Default::default(),
    }
}

/// A shell command with a PATH.
pub(crate) fn sh(script: &str) -> re::Command {
    re::Command {
        arguments: ["sh", "-c", script].map(str::to_owned).to_vec(),
        environment_variables: vec![re::command::EnvironmentVariable {
            name: "PATH".into(),
            value: "/usr/bin:/bin".into(),
        }],
        ..Default::default()
    }
}

/// What an ending says is missing, sorted by path.
pub(crate) fn missing(finished: &Finished) -> Vec<(&str, Digest)> {
    let Ending::MissingInputs(missing) = &finished.ending else {
        panic!("{finished:?}")
    };
    assert!(!finished.cacheable && finished.result.is_none());
    let mut missing: Vec<_> = missing.iter().map(|m| (&*m.what, m.digest)).collect();
    missing.sort();
    missing
}

/// Waits for something that happens soon.
pub(crate) async fn soon(what: &str, mut happened: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < Duration::from_secs(5), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
