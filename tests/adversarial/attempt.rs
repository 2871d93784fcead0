//! One run of the probe in an input root of its own, and what it says.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use boxwright::sandbox::{Captured, CommandSpec, End, Limits, Outcome, Sandbox, StreamSpec};
use tokio_util::sync::CancellationToken;

use super::place::Place;
use super::world::World;

pub(crate) const ENVIRONMENT: [(&str, &str); 2] = [("PATH", "/usr/bin:/bin"), ("GIVEN", "to it")];

/// A place with a sandbox in it.
pub(crate) struct Lab {
    pub(crate) place: Place,
    pub(crate) sandbox: Arc<dyn Sandbox>,
    pub(crate) world: World,
    roots: AtomicU32,
}

/// What came of an attempt.
#[derive(Debug)]
pub(crate) struct Said {
    /// `ALLOWED`, `DENIED`, `ABSENT` or `ERROR`.
    pub(crate) word: String,
    /// The rest of the line; for `DENIED` it begins with the error's name.
    pub(crate) detail: String,
    /// The lines before it.
    pub(crate) findings: Vec<String>,
}

pub(crate) fn spec(root: &Path, argv: &[&str]) -> CommandSpec {
    let stream = || StreamSpec {
        memory: 1 << 20,
        keep: 1 << 20,
        spill_dir: root.parent().unwrap_or(root).into(),
        live: None,
    };
    CommandSpec {
        argv: argv.iter().map(OsString::from).collect(),
        env: ENVIRONMENT
            .map(|(name, value)| (name.into(), value.into()))
            .to_vec(),
        root: root.into(),
        inputs: Default::default(),
        cwd: PathBuf::new(),
        timeout: Some(Duration::from_secs(20)),
        exempt: Default::default(),
        grace: Duration::ZERO,
        limits: Limits::default(),
        view: Default::default(),
        stdout: stream(),
        stderr: stream(),
    }
}

impl Lab {
    pub(crate) fn new(place: Place, sandbox: Arc<dyn Sandbox>, world: World) -> Lab {
        Lab {
            place,
            sandbox,
            world,
            roots: AtomicU32::new(0),
        }
    }

    /// A text that is in no other test's command lines.
    pub(crate) fn mark(&self) -> String {
        let number = self.roots.fetch_add(1, Ordering::Relaxed);
        format!("7{}{number:03}", std::process::id())
    }

    /// A spec of the probe in a new input root.
    pub(crate) fn spec(&self, slot: usize, words: &[&str]) -> CommandSpec {
        let number = self.roots.fetch_add(1, Ordering::Relaxed);
        let root = self
            .world
            .scratch()
            .join(format!("{:?}-{number}", self.place));
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).unwrap();
        self.world.furnish(&root);
        if let Some(owner) = self.sandbox.owner(slot) {
            chown(&root, Some(owner.uid), Some(owner.gid)).unwrap();
        }
        let argv: Vec<&str> = std::iter::once("./probe")
            .chain(words.iter().copied())
            .collect();
        let mut spec = spec(&root, &argv);
        // No level promises what it cannot keep.
        spec.view.network = self.place == Place::Process;
        spec
    }

    /// Its root goes afterwards.
    pub(crate) async fn run(&self, slot: usize, spec: CommandSpec) -> Outcome {
        let root = spec.root.clone();
        let outcome = self.sandbox.run(slot, spec, CancellationToken::new()).await;
        fs::remove_dir_all(root).unwrap();
        outcome.unwrap_or_else(|error| panic!("{:?}: {error}", self.place))
    }

    pub(crate) async fn says(&self, words: &[&str]) -> Said {
        self.says_of(0, self.spec(0, words)).await
    }

    /// What the probe says on either stream, or what it was ended for.
    pub(crate) async fn says_of(&self, slot: usize, spec: CommandSpec) -> Said {
        let outcome = self.run(slot, spec).await;
        let mut lines: Vec<String> = [&outcome.stdout, &outcome.stderr]
            .map(|stream| text(stream).lines().map(str::to_owned).collect::<Vec<_>>())
            .concat();
        let is_verdict = |line: &String| {
            ["ALLOWED ", "DENIED ", "ABSENT ", "ERROR "]
                .iter()
                .any(|word| line.starts_with(word))
        };
        if let Some(index) = lines.iter().position(is_verdict) {
            let verdict = lines.remove(index);
            lines.truncate(index);
            let (word, detail) = verdict.split_once(' ').unwrap();
            return Said {
                word: word.into(),
                detail: detail.into(),
                findings: lines,
            };
        }
        let (word, detail) = match &outcome.end {
            End::OutOfMemory { .. } => ("DENIED", "OOM".to_owned()),
            End::LimitExceeded(bound) => ("DENIED", format!("LIMIT {bound}")),
            End::TimedOut => ("DENIED", "TIMEOUT".to_owned()),
            // SIGXFSZ
            End::Signalled(25) => ("DENIED", "EFBIG".to_owned()),
            end => ("ERROR", format!("{end:?}: {lines:?}")),
        };
        Said {
            word: word.into(),
            detail,
            findings: Vec::new(),
        }
    }
}

impl Said {
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.word, self.detail)
    }

    /// `ALLOWED`, `ALLOWED =exact detail`, `DENIED`, `DENIED EPERM ENOENT` or `ABSENT`; alternatives between bars.
    pub(crate) fn is(&self, wanted: &str) -> bool {
        wanted.split('|').any(|wanted| {
            let (word, rest) = wanted.trim().split_once(' ').unwrap_or((wanted.trim(), ""));
            word == self.word
                && match rest.strip_prefix('=') {
                    Some(exact) => self.detail == exact,
                    None => {
                        rest.is_empty()
                            || rest
                                .split(' ')
                                .any(|errno| self.detail.split(' ').next() == Some(errno))
                    }
                }
        })
    }
}

pub(crate) fn text(captured: &Captured) -> String {
    let bytes = match captured {
        Captured::Memory(bytes) => bytes.to_vec(),
        Captured::File { path, .. } => fs::read(path).unwrap(),
    };
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The processes of this machine with the text in their arguments; zombies have none.
pub(crate) fn marked(mark: &str) -> Vec<i32> {
    let own = std::process::id() as i32;
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |pid: &i32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != own
            && arguments
                .windows(mark.len())
                .any(|part| part == mark.as_bytes())
    };
    pids.filter(has).collect()
}
