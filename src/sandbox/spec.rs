//! What to run: pure data, validated by whoever made it.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

/// One command.
#[derive(Debug)]
pub struct CommandSpec {
    /// The program and its arguments; never empty. A program without a slash is looked up in `PATH`
    /// of `env` (relative entries count from `cwd`), or in `/usr/local/bin:/usr/bin:/bin` if there is no `PATH`.
    pub argv: Vec<OsString>,
    /// The whole environment; nothing of the daemon's own is added.
    pub env: Vec<(OsString, OsString)>,
    /// The input root on the host; absolute.
    pub root: PathBuf,
    /// What is in the input root before the command starts.
    pub inputs: Inputs,
    /// The working directory, relative to `root` and within it.
    pub cwd: PathBuf,
    /// How long the command may run; `None` is for ever.
    pub timeout: Option<Duration>,
    /// Time that does not count towards the timeout.
    pub exempt: Exempt,
    /// Between SIGTERM and SIGKILL, on timeout and cancel.
    pub grace: Duration,
    /// Resource limits.
    pub limits: Limits,
    /// What the command sees of the world; a level that cannot give it refuses.
    pub view: View,
    /// What becomes of standard output.
    pub stdout: StreamSpec,
    /// What becomes of standard error.
    pub stderr: StreamSpec,
}

/// Time that does not count towards a timeout, such as that which a command has waited for its inputs: asked for when the
/// timeout is over, and again when that much more is.
#[derive(Clone, Default)]
pub struct Exempt(Option<Arc<dyn Fn() -> Duration + Send + Sync>>);

impl Exempt {
    /// `so_far` says how much it is by now; it never becomes less.
    pub fn new(so_far: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Exempt(Some(Arc::new(so_far)))
    }

    /// How much it is by now.
    pub fn so_far(&self) -> Duration {
        self.0.as_ref().map_or(Duration::ZERO, |so_far| so_far())
    }
}

impl std::fmt::Debug for Exempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exempt({:?})", self.so_far())
    }
}

/// Resource limits; `None` leaves the daemon's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Open files of a process.
    pub open_files: Option<u64>,
    /// Bytes of a file that is written.
    pub file_size: Option<u64>,
    /// Processes of the command's user (RLIMIT_NPROC).
    pub processes: Option<u64>,
    /// Bytes of memory of all processes together, page cache and memory file systems included.
    pub memory: Option<u64>,
    /// Processors' worth of time, in thousandths: 1500 is one and a half.
    pub cpu_milli: Option<u64>,
    /// Processes and threads of the command, all together.
    pub pids: Option<u64>,
    /// Bytes that the command may write below its root.
    pub disk_bytes: Option<u64>,
    /// Files and directories that the command may make below its root.
    pub disk_nodes: Option<u64>,
}

/// What an input root holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Bytes in its files.
    pub bytes: u64,
    /// Its files, directories and links.
    pub nodes: u64,
}

/// What a command sees of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Where the input root is.
    pub root: RootShape,
    /// Whether it has the host's network; without, it has a loopback interface of its own.
    pub network: bool,
    /// Who it believes to be.
    pub user: Identity,
    /// The name of the sandbox profile.
    pub profile: Arc<str>,
    /// Directories of the input root that stay read-only with all below them, relative to it; the root itself is the empty path.
    pub read_only: Vec<PathBuf>,
    /// Directories below those that are writable again with all below them. What is nearest above a path counts.
    pub writable: Vec<PathBuf>,
}

impl Default for View {
    fn default() -> Self {
        View {
            root: RootShape::Host,
            network: false,
            user: Identity::default(),
            profile: DEFAULT_PROFILE.into(),
            read_only: Vec::new(),
            writable: Vec::new(),
        }
    }
}

/// The profile of commands that ask for none.
pub const DEFAULT_PROFILE: &str = "default";

/// Where the input root is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RootShape {
    /// At a fixed place below a root that shows the host's tools, read-only.
    #[default]
    Host,
    /// It is the root: the command sees no file of the host.
    Input,
}

impl RootShape {
    /// The name in configuration and platform properties.
    pub fn name(self) -> &'static str {
        match self {
            RootShape::Host => "host",
            RootShape::Input => "input",
        }
    }

    /// The shape of this name.
    pub fn named(name: &str) -> Option<RootShape> {
        [RootShape::Host, RootShape::Input]
            .into_iter()
            .find(|shape| shape.name() == name)
    }
}

/// A user and a group, as the command sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Default for Identity {
    fn default() -> Self {
        Identity {
            uid: 1000,
            gid: 1000,
        }
    }
}

/// What becomes of one output stream.
#[derive(Debug)]
pub struct StreamSpec {
    /// Bytes kept in memory; beyond, the stream goes to a file in `spill_dir`.
    pub memory: usize,
    /// Bytes kept at all: half of them from the beginning, half from the end, and between them a line that says how many
    /// are left out.
    pub keep: u64,
    /// Where the file goes: a directory on the local store's file system.
    pub spill_dir: PathBuf,
    /// Gets each piece as it comes, until one finds no place: then it is dropped for good, so that what it got is
    /// the beginning of the whole.
    pub live: Option<Box<dyn LiveSink>>,
}

/// Takes a stream while it is written. Dropped when the stream has ended.
pub trait LiveSink: Send + Sync {
    /// Whether there was a place for this piece. Does not wait for one.
    fn piece(&mut self, piece: &[u8]) -> bool;
}

/// Its places are for pieces, whatever their length.
impl LiveSink for mpsc::Sender<Bytes> {
    fn piece(&mut self, piece: &[u8]) -> bool {
        self.try_reserve()
            .map(|place| place.send(Bytes::copy_from_slice(piece)))
            .is_ok()
    }
}

impl fmt::Debug for dyn LiveSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LiveSink")
    }
}
