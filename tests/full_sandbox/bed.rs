//! A sandbox with an input root to run commands in, and eyes to see what they leave behind.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use boxwright::sandbox::linux::profile::Profiles;
use boxwright::sandbox::linux::{BUILD, FullConfig, FullSandbox};
use boxwright::sandbox::{
    Captured, CommandSpec, Limits, Outcome, Sandbox, SandboxError, StreamSpec,
};
use boxwright::sandbox::{Launchers, Level};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub(crate) const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

pub(crate) fn launcher_executable() -> PathBuf {
    std::env::var_os("BOXWRIGHT_TEST_LAUNCHER")
        .map_or_else(|| env!("CARGO_BIN_EXE_boxwright").into(), PathBuf::from)
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A user id that nothing else uses, here or in a test process beside this one.
pub(crate) fn unused_id() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    0x7100_0000 + (std::process::id() << 8) % 0x0100_0000 + NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A text that appears in the command line of what belongs to one test, and nowhere else: a duration for `sleep`.
pub(crate) fn marker() -> String {
    format!("7{}", unused_id())
}

/// The processes with this text in their arguments; zombies have none.
pub(crate) fn marked(marker: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if pid != std::process::id()
            && arguments
                .windows(marker.len())
                .any(|window| window == marker.as_bytes())
        {
            found.push(pid);
        }
    }
    found
}

pub(crate) struct Bed {
    pub(crate) sandbox: FullSandbox,
    pub(crate) dir: TempDir,
}

impl Bed {
    /// One slot, with an empty input root that belongs to it.
    pub(crate) fn new() -> Bed {
        Bed::with_slots(1)
    }

    /// The input root belongs to slot 0.
    pub(crate) fn with_slots(slots: usize) -> Bed {
        let launchers = Launchers::start_from(launcher_executable(), Level::Full, slots).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let config = FullConfig {
            profiles: Profiles::load(None).unwrap(),
            first_uid: unused_id(),
            roots: dir.path().to_owned(),
            namespace: None,
        };
        let sandbox = FullSandbox::new(launchers, config).unwrap();
        let bed = Bed { sandbox, dir };
        bed.mkdir("");
        fs::create_dir(bed.spill()).unwrap();
        bed
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The user that commands believe to be.
    pub(crate) fn user(&self) -> Option<u32> {
        Some(1000)
    }

    /// The process id here of what a command of ours calls by this number.
    pub(crate) fn outside(&self, pid: &str) -> String {
        let root = self.root().metadata().unwrap();
        let ours = |process: &Path| {
            let there = fs::metadata(process.join("cwd")).ok()?;
            let status = fs::read_to_string(process.join("status")).ok()?;
            let ids = status.lines().find(|line| line.starts_with("NSpid:"))?;
            Some(
                (there.dev(), there.ino()) == (root.dev(), root.ino())
                    && ids.split_ascii_whitespace().last() == Some(pid),
            )
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let found = processes
            .map(|entry| entry.path())
            .find(|p| ours(p) == Some(true));
        found
            .unwrap()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    }

    /// The root as its commands see it.
    pub(crate) fn inside(&self) -> PathBuf {
        BUILD.into()
    }

    pub(crate) fn spill(&self) -> PathBuf {
        self.dir.path().join("spill")
    }

    fn give(&self, path: &Path) {
        if let Some(owner) = self.sandbox.owner(0) {
            chown(path, Some(owner.uid), Some(owner.gid)).unwrap();
        }
    }

    pub(crate) fn mkdir(&self, path: &str) {
        let path = self.root().join(path);
        fs::create_dir(&path).unwrap();
        self.give(&path);
    }

    pub(crate) fn file(&self, path: &str, content: &str, mode: u32) {
        let path = self.root().join(path);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        self.give(&path);
    }

    pub(crate) fn binary(&self, path: &str, content: &[u8]) {
        let path = self.root().join(path);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self.give(&path);
    }

    fn stream(&self) -> StreamSpec {
        StreamSpec {
            memory: 1 << 20,
            keep: 1 << 30,
            spill_dir: self.spill(),
            live: None,
        }
    }

    pub(crate) fn spec<S: Into<OsString>>(&self, argv: impl IntoIterator<Item = S>) -> CommandSpec {
        CommandSpec {
            argv: argv.into_iter().map(Into::into).collect(),
            env: vec![("PATH".into(), PATH.into())],
            root: self.root(),
            inputs: Default::default(),
            cwd: PathBuf::new(),
            timeout: None,
            exempt: Default::default(),
            grace: Duration::ZERO,
            limits: Limits::default(),
            view: Default::default(),
            stdout: self.stream(),
            stderr: self.stream(),
        }
    }

    pub(crate) fn shell(&self, script: &str) -> CommandSpec {
        self.spec(["/bin/sh", "-c", script])
    }

    pub(crate) async fn try_run(&self, spec: CommandSpec) -> Result<Outcome, SandboxError> {
        self.sandbox.run(0, spec, CancellationToken::new()).await
    }

    pub(crate) async fn run(&self, spec: CommandSpec) -> Outcome {
        self.try_run(spec).await.unwrap()
    }

    /// What a script writes to standard output; it must be successful.
    pub(crate) async fn says(&self, spec: CommandSpec) -> String {
        let outcome = self.run(spec).await;
        assert_eq!(
            outcome.end,
            boxwright::sandbox::End::Exited(0),
            "{}",
            text(&outcome.stderr)
        );
        text(&outcome.stdout)
    }
}

pub(crate) fn text(captured: &Captured) -> String {
    let bytes = match captured {
        Captured::Memory(bytes) => bytes.to_vec(),
        Captured::File { path, .. } => fs::read(path).unwrap(),
    };
    String::from_utf8(bytes).unwrap()
}
