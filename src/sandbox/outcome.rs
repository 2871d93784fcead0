//! How a command ended, what it used and what it said.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exited(i32),
    /// It was killed by this signal, which was not ours.
    Signalled(i32),
    /// It could not be started, and the fault is in the command: `code` is what a shell would have
    /// exited with (127 not found, 126 not executable), `message` says what was tried.
    NotStarted {
        /// 126 or 127.
        code: i32,
        /// What was tried, for the command's standard error.
        message: String,
    },
    /// It ran longer than it was allowed to and was killed.
    TimedOut,
    /// It was killed because its `CancellationToken` said so.
    Cancelled,
    /// The kernel killed some of it for want of memory, which the cgroup's own count proves.
    OutOfMemory {
        /// The limit that it met, in bytes; `None` if it was one above the command's own.
        limit: Option<u64>,
    },
    /// It went beyond a bound and was killed; the text names the bound and what to do.
    LimitExceeded(String),
}

/// One output stream; without its middle if it was too long.
#[derive(Debug)]
pub enum Captured {
    /// All of it.
    Memory(Bytes),
    /// A file: to be adopted, else it goes with this value.
    File {
        /// Where.
        path: SpillFile,
        /// Its size in bytes.
        size: u64,
    },
}

/// A file that is removed when this is dropped, unless somebody has renamed it to a place of its own.
#[derive(Debug)]
pub struct SpillFile(PathBuf);

impl SpillFile {
    /// Takes responsibility for the file.
    pub fn new(path: PathBuf) -> Self {
        SpillFile(path)
    }
}

impl Deref for SpillFile {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for SpillFile {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What the command used, itself and its waited-for descendants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// The largest resident set of one process, in bytes.
    pub max_rss: u64,
    /// Page faults served without the disk.
    pub minor_faults: u64,
    /// Page faults that waited for the disk.
    pub major_faults: u64,
    /// Blocks read.
    pub blocks_in: u64,
    /// Blocks written.
    pub blocks_out: u64,
    /// Voluntary context switches.
    pub voluntary_switches: u64,
    /// Involuntary context switches.
    pub involuntary_switches: u64,
    /// The most memory that all processes held together, in bytes; known where there is a cgroup.
    pub peak_memory: Option<u64>,
    /// Bytes read from and written to devices; known where there is a cgroup.
    pub io: Option<Io>,
    /// Where the figures of CPU and memory are from.
    pub source: UsageSource,
}

/// Bytes that went from and to devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

/// Where figures of usage are from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsageSource {
    /// `wait4`: what nobody waited for is not in them, and memory is that of the largest process.
    #[default]
    Wait4,
    /// A cgroup of the first version: everything is in them.
    CgroupV1,
    /// A cgroup of the second version: everything is in them.
    CgroupV2,
}

impl UsageSource {
    /// The word for it in logs and results.
    pub fn name(self) -> &'static str {
        match self {
            UsageSource::Wait4 => "wait4",
            UsageSource::CgroupV1 => "cgroup-v1",
            UsageSource::CgroupV2 => "cgroup-v2",
        }
    }
}

/// Everything about a finished command. No process of it is left.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// What it used.
    pub usage: Usage,
    /// When it was started.
    pub started: SystemTime,
    /// When its last process was dead.
    pub finished: SystemTime,
    /// Its standard output.
    pub stdout: Captured,
    /// Bytes of standard output that were left out, as they were beyond the limit.
    pub stdout_dropped: u64,
    /// Its standard error.
    pub stderr: Captured,
    /// Bytes of standard error that were left out, as they were beyond the limit.
    pub stderr_dropped: u64,
}
