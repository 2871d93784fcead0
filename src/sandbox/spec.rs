//! What to run: pure data, validated by whoever made it.

use std::ffi::OsString;
use std::path::PathBuf;
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
    /// The working directory, relative to `root` and within it.
    pub cwd: PathBuf,
    /// How long the command may run; `None` is for ever.
    pub timeout: Option<Duration>,
    /// Between SIGTERM and SIGKILL, on timeout and cancel.
    pub grace: Duration,
    /// Resource limits.
    pub limits: Limits,
    /// What becomes of standard output.
    pub stdout: StreamSpec,
    /// What becomes of standard error.
    pub stderr: StreamSpec,
}

/// Resource limits; `None` leaves the daemon's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Open files of a process.
    pub open_files: Option<u64>,
    /// Bytes of a file that is written.
    pub file_size: Option<u64>,
    /// Processes of the command's user.
    pub processes: Option<u64>,
}

/// What becomes of one output stream.
#[derive(Debug)]
pub struct StreamSpec {
    /// Bytes kept in memory; beyond, the stream goes to a file in `spill_dir`.
    pub memory: usize,
    /// Bytes kept at all; what comes after is read and dropped, and counted.
    pub keep: u64,
    /// Where the file goes: a directory on the local store's file system.
    pub spill_dir: PathBuf,
    /// Gets each piece as it comes, until one finds no place: then it is dropped for good, so that what it got is
    /// the beginning of the whole.
    pub live: Option<mpsc::Sender<Bytes>>,
}
