//! Commands without a sandbox of ours, behind the same trait: as they are, or in bubblewrap.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use boxwright::config::Owner;
use boxwright::sandbox::{
    Captured, CommandSpec, End, Level, Limits, Outcome, Sandbox, SandboxError, Usage,
};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::world::is_root;

pub(crate) struct Unconfined {
    before: fn(&CommandSpec) -> Vec<OsString>,
    /// `probe parent`, which a probe may do to what it likes.
    parent: Option<PathBuf>,
}

impl Unconfined {
    pub(crate) fn root(probe: PathBuf) -> Unconfined {
        Unconfined {
            before: |_| Vec::new(),
            parent: Some(probe),
        }
    }

    /// As somebody else if this is root.
    pub(crate) fn user(probe: PathBuf) -> Unconfined {
        let nobody = |_: &CommandSpec| {
            let words = [
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--",
            ];
            words.map(OsString::from).to_vec()
        };
        Unconfined {
            before: if is_root() { nobody } else { |_| Vec::new() },
            parent: Some(probe),
        }
    }

    /// `None` where it is not installed.
    pub(crate) fn bubblewrap() -> Option<Unconfined> {
        let there = std::process::Command::new("bwrap")
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        there.ok()?.success().then_some(Unconfined {
            before: buildbox,
            parent: None,
        })
    }
}

/// What buildbox-run 1.4 runs.
fn buildbox(spec: &CommandSpec) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["bwrap", "--unshare-pid", "--die-with-parent", "--bind"]
        .map(Into::into)
        .to_vec();
    words.push(spec.root.clone().into());
    words.extend("/ --unshare-net --unshare-uts --hostname buildbox --unshare-ipc --chdir / --unshare-user --uid 0 --gid 0 --cap-drop ALL".split(' ').map(Into::into));
    for (name, _) in std::env::vars_os() {
        words.extend(["--unsetenv".into(), name]);
    }
    for (name, value) in &spec.env {
        words.extend(["--setenv".into(), name.clone(), value.clone()]);
    }
    words.extend(
        "--proc /proc --tmpfs /tmp --dev /dev"
            .split(' ')
            .map(Into::into),
    );
    words
}

#[async_trait]
impl Sandbox for Unconfined {
    fn level(&self) -> Level {
        Level::Process
    }

    fn owner(&self, _: usize) -> Option<Owner> {
        let nobody = self.parent.is_some() && !(self.before)(&nothing()).is_empty();
        nobody.then_some(Owner {
            uid: 65534,
            gid: 65534,
        })
    }

    fn unenforced(&self, _: &Limits) -> Vec<&'static str> {
        Vec::new()
    }

    async fn run(
        &self,
        _: usize,
        spec: CommandSpec,
        _: CancellationToken,
    ) -> Result<Outcome, SandboxError> {
        let setup = |source| SandboxError::Setup {
            action: "start an unconfined command".into(),
            source,
        };
        let mut words = (self.before)(&spec);
        let mut argv = spec.argv.clone();
        if let Some(parent) = &self.parent {
            words.extend([parent.into(), "parent".into()]);
            argv.remove(0);
        }
        words.extend(argv);
        let started = SystemTime::now();
        let output = Command::new(&words[0])
            .args(&words[1..])
            .current_dir(spec.root.join(&spec.cwd))
            .stdin(Stdio::inherit())
            .kill_on_drop(true)
            .output();
        let patience = spec.timeout.unwrap_or(Duration::from_secs(60));
        let Ok(output) = tokio::time::timeout(patience, output).await else {
            return Ok(outcome(started, End::TimedOut, Vec::new(), Vec::new()));
        };
        let output = output.map_err(setup)?;
        use std::os::unix::process::ExitStatusExt;
        let status = output.status;
        let end = match status.code() {
            Some(code) => End::Exited(code),
            None => End::Signalled(status.signal().unwrap_or(0)),
        };
        Ok(outcome(started, end, output.stdout, output.stderr))
    }
}

fn outcome(started: SystemTime, end: End, stdout: Vec<u8>, stderr: Vec<u8>) -> Outcome {
    Outcome {
        end,
        usage: Usage::default(),
        started,
        finished: SystemTime::now(),
        stdout: Captured::Memory(stdout.into()),
        stdout_dropped: 0,
        stderr: Captured::Memory(stderr.into()),
        stderr_dropped: 0,
    }
}

/// A spec to ask `before` with.
fn nothing() -> CommandSpec {
    super::attempt::spec(Path::new("/"), &[])
}
