//! The attempt, seen from outside: what the child is told, and what it tells of each step.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;

use super::{IdMap, ProbeError, SubIds};

/// What an action needs, in the order in which it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A user namespace.
    User,
    /// Ids in it, of which root is one.
    Ids,
    /// A mount namespace, whose mounts do not reach ours.
    Mounts,
    /// A network namespace.
    Network,
    /// Its loopback interface, up, with a connection over it.
    Loopback,
    /// An IPC namespace.
    Ipc,
    /// A namespace of host names.
    Uts,
    /// An overlay with its upper layer in the state directory.
    OverlayOnState,
    /// A file system in memory.
    Tmpfs,
    /// An overlay with its upper layer in that.
    Overlay,
    /// A FUSE file system.
    Fuse,
    /// A filter of system calls.
    Seccomp,
    /// A PID namespace.
    Pid,
    /// A /proc of its own.
    Proc,
}

impl Step {
    /// All, in that order.
    pub const ALL: [Step; 14] = [
        Step::User,
        Step::Ids,
        Step::Mounts,
        Step::Network,
        Step::Loopback,
        Step::Ipc,
        Step::Uts,
        Step::OverlayOnState,
        Step::Tmpfs,
        Step::Overlay,
        Step::Fuse,
        Step::Seccomp,
        Step::Pid,
        Step::Proc,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Step::User => "user",
            Step::Ids => "ids",
            Step::Mounts => "mounts",
            Step::Network => "network",
            Step::Loopback => "loopback",
            Step::Ipc => "ipc",
            Step::Uts => "uts",
            Step::OverlayOnState => "overlay-on-state",
            Step::Tmpfs => "tmpfs",
            Step::Overlay => "overlay",
            Step::Fuse => "fuse",
            Step::Seccomp => "seccomp",
            Step::Pid => "pid",
            Step::Proc => "proc",
        }
    }
}

impl FromStr for Step {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Step::ALL
            .into_iter()
            .find(|step| step.name() == name)
            .ok_or(())
    }
}

/// How a step went.
#[derive(Debug)]
pub enum Attempt {
    /// It can be done.
    Done,
    /// The system refused.
    Refused(io::Error),
    /// An earlier step stood in the way.
    NotTried,
}

/// How the steps went.
#[derive(Debug)]
pub struct Trial {
    /// The map of ids that was tried.
    pub map: IdMap,
    /// Why a map with more ids, which there should be, could not be had.
    pub more_ids: Option<String>,
    steps: Vec<(Step, Attempt)>,
}

impl Trial {
    /// What is known of an attempt with this map.
    pub fn new(map: IdMap, steps: Vec<(Step, Attempt)>) -> Self {
        Trial {
            map,
            more_ids: None,
            steps,
        }
    }

    /// How a step went.
    pub fn of(&self, step: Step) -> &Attempt {
        let found = self.steps.iter().find(|(tried, _)| *tried == step);
        found.map_or(&Attempt::NotTried, |(_, attempt)| attempt)
    }

    /// Whether it can be done.
    pub fn can(&self, step: Step) -> bool {
        matches!(self.of(step), Attempt::Done)
    }
}

/// What the child says of a step: its name, and the error's number or 0.
pub(super) struct Line(pub(super) Step, pub(super) i32);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0.name(), self.1)
    }
}

impl Line {
    fn parse(line: &str) -> Option<Line> {
        let (name, number) = line.trim_end().split_once(' ')?;
        Some(Line(name.parse().ok()?, number.parse().ok()?))
    }
}

/// Makes a child try, with an overlay in `dir` if there is one.
pub fn attempt(sub_ids: &SubIds, first_uid: u32, dir: Option<&Path>) -> Result<Trial, ProbeError> {
    let trial = attempt_with(&IdMap::best(sub_ids, first_uid), dir)?;
    match (trial.of(Step::Ids), &trial.map) {
        // Where a subordinate id cannot be had, its own is still enough.
        (Attempt::Refused(refused), IdMap::Subordinate(..)) => {
            let more_ids = Some(refused.to_string());
            let single = attempt_with(&IdMap::Single, dir)?;
            Ok(Trial { more_ids, ..single })
        }
        _ => Ok(trial),
    }
}

fn attempt_with(map: &IdMap, dir: Option<&Path>) -> Result<Trial, ProbeError> {
    let place = dir.and_then(|dir| Place::new(dir, map.root()));
    let mut command = Command::new("/proc/self/exe");
    command.arg("sandbox-probe");
    if let Some(place) = &place {
        command.arg(&place.0);
    }
    let spawned = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = Reaped(spawned.map_err(|e| ProbeError::new("start a probe", e))?);
    let mut trial = Trial::new(map.clone(), Vec::new());
    let output = child.0.stdout.take();
    let lines = BufReader::new(output.ok_or_else(|| {
        ProbeError::new("hear a probe", io::Error::from(io::ErrorKind::BrokenPipe))
    })?);
    for line in lines.lines() {
        let line = line.map_err(|e| ProbeError::new("hear a probe", e))?;
        let Some(Line(step, number)) = Line::parse(&line) else {
            continue;
        };
        let refused = match number {
            0 => None,
            number => Some(io::Error::from_raw_os_error(number)),
        };
        let made = step == Step::User && refused.is_none();
        trial
            .steps
            .push((step, refused.map_or(Attempt::Done, Attempt::Refused)));
        if made {
            // The child waits for its ids, and goes on when its input ends.
            if let Err(error) = map.give(child.0.id()) {
                let refused =
                    Attempt::Refused(io::Error::new(error.source.kind(), error.to_string()));
                trial.steps.push((Step::Ids, refused));
                return Ok(trial);
            }
            if let Some(mut input) = child.0.stdin.take() {
                let _ = input.write_all(b"go\n");
            }
        }
    }
    Ok(trial)
}

/// A child that does not outlive us.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory for the child's overlay, which belongs to the root inside.
struct Place(PathBuf);

impl Place {
    fn new(dir: &Path, owner: u32) -> Option<Place> {
        let path = dir.join(format!(".boxwright-doctor-{}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        let place = Place(path);
        std::fs::set_permissions(&place.0, std::fs::Permissions::from_mode(0o700)).ok()?;
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&place.0, Some(owner), Some(owner)).ok()?;
        }
        Some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The overlay's own directory is closed to all but root; its owner opens it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
