//! What a launcher answers.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{MAGIC, Malformed, Reader, Writer};

/// Bytes of a report without the path.
pub(crate) const REPORT_LEN: usize = 136;
/// Longest path in a report.
pub(crate) const PATH_MAX: usize = 4096;

const KIND_ENDED: u32 = 16;
const KIND_SWEPT: u32 = 17;
const KIND_SET_UP: u32 = 18;

const FLAG_STOPPED: u32 = 1;

/// The time as reports tell it: nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
}

/// What was being done when a command could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub(crate) enum Step {
    /// The request itself was refused.
    Request = 1,
    /// Making the process.
    Clone,
    /// A session of its own.
    Session,
    /// A resource limit.
    Limit,
    /// Opening the input root.
    Root,
    /// Becoming the slot's user.
    User,
    /// Tying its life to the launcher's.
    DeathSignal,
    /// Entering the working directory.
    Cwd,
    /// Standard input, output, error.
    Streams,
    /// Showing the input root, and what lies over it.
    Mount,
    /// A fresh /proc.
    Proc,
    /// Making the input root the root.
    Pivot,
    /// Entering the slot's cgroups.
    Cgroup,
    /// The Landlock rules.
    Landlock,
    /// The filter of system calls.
    Filter,
    /// The command's init was ended from outside, and took the command with it.
    Init,
    /// `execve`: all paths were tried, none was there.
    NotFound,
    /// `execve`: the file is there, what it names as its interpreter is not.
    Interpreter,
    /// `execve`: the file is a directory.
    Directory,
    /// `execve`: anything else.
    Exec,
}

impl Step {
    const ALL: [Step; 20] = [
        Step::Request,
        Step::Clone,
        Step::Session,
        Step::Limit,
        Step::Root,
        Step::User,
        Step::DeathSignal,
        Step::Cwd,
        Step::Streams,
        Step::Mount,
        Step::Proc,
        Step::Pivot,
        Step::Cgroup,
        Step::Landlock,
        Step::Filter,
        Step::Init,
        Step::NotFound,
        Step::Interpreter,
        Step::Directory,
        Step::Exec,
    ];

    pub(crate) fn from_u32(value: u32) -> Option<Step> {
        Step::ALL.into_iter().find(|step| *step as u32 == value)
    }
}

/// What a launcher has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// A run is over and nothing of it is left.
    Ended(Ended),
    /// No process of the user is left, or `errno` says why one may be.
    Swept { id: u64, errno: i32 },
    /// The launcher is ready for commands, or why not, in words.
    SetUp { id: u64, failure: String },
}

/// The end of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) id: u64,
    /// The wait status, for a command that was started.
    pub(crate) status: i32,
    /// Why it was not started.
    pub(crate) failure: Option<Failure>,
    /// The launcher had signalled it before it saw it end.
    pub(crate) stopped: bool,
    /// Nanoseconds since the epoch.
    pub(crate) started: u64,
    /// Nanoseconds since the epoch.
    pub(crate) finished: u64,
    /// Of everything that was waited for.
    pub(crate) usage: WireUsage,
}

/// Where the start failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: i32,
    /// The path of the program that was tried, if it is about one.
    pub(crate) path: Vec<u8>,
}

/// Resource usage as `wait4` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WireUsage {
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    pub(crate) max_rss_kib: u64,
    pub(crate) minor_faults: u64,
    pub(crate) major_faults: u64,
    pub(crate) blocks_in: u64,
    pub(crate) blocks_out: u64,
    pub(crate) voluntary_switches: u64,
    pub(crate) involuntary_switches: u64,
}

impl Report {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let only = |id: u64| Ended {
            id,
            ..Ended::default()
        };
        let (kind, ended, errno) = match self {
            Report::Ended(ended) => (KIND_ENDED, ended.clone(), 0),
            Report::SetUp { id, .. } => (KIND_SET_UP, only(*id), 0),
            Report::Swept { id, errno } => (KIND_SWEPT, only(*id), *errno),
        };
        let path = match self {
            Report::SetUp { failure, .. } => failure.as_bytes(),
            _ => ended.failure.as_ref().map_or(&[][..], |f| &f.path),
        };
        let path = &path[..path.len().min(PATH_MAX)];
        let mut out = Writer(Vec::with_capacity(REPORT_LEN + path.len()));
        out.u32(MAGIC);
        out.u32(kind);
        out.u64(ended.id);
        out.u32(ended.status as u32);
        out.u32(if ended.stopped { FLAG_STOPPED } else { 0 });
        out.u32(ended.failure.as_ref().map_or(0, |f| f.step as u32));
        out.u32(ended.failure.as_ref().map_or(errno, |f| f.errno) as u32);
        out.u64(ended.started);
        out.u64(ended.finished);
        let usage = ended.usage;
        for value in [
            usage.user_us,
            usage.system_us,
            usage.max_rss_kib,
            usage.minor_faults,
            usage.major_faults,
            usage.blocks_in,
            usage.blocks_out,
            usage.voluntary_switches,
            usage.involuntary_switches,
        ] {
            out.u64(value);
        }
        out.u64(path.len() as u64);
        out.u64(0);
        out.0.extend_from_slice(path);
        out.0
    }

    pub(crate) fn decode(datagram: &[u8]) -> Result<Report, Malformed> {
        let mut input = Reader(datagram);
        if input.u32()? != MAGIC {
            return Err(Malformed("not a boxwright message"));
        }
        let kind = input.u32()?;
        let id = input.u64()?;
        let status = input.u32()? as i32;
        let flags = input.u32()?;
        let step = input.u32()?;
        let errno = input.u32()? as i32;
        let started = input.u64()?;
        let finished = input.u64()?;
        let usage = WireUsage {
            user_us: input.u64()?,
            system_us: input.u64()?,
            max_rss_kib: input.u64()?,
            minor_faults: input.u64()?,
            major_faults: input.u64()?,
            blocks_in: input.u64()?,
            blocks_out: input.u64()?,
            voluntary_switches: input.u64()?,
            involuntary_switches: input.u64()?,
        };
        let path_len = input.u64()?;
        if input.u64()? != 0 || flags & !FLAG_STOPPED != 0 {
            return Err(Malformed("unknown flags"));
        }
        let path = input.0;
        if path.len() as u64 != path_len || path.len() > PATH_MAX {
            return Err(Malformed("the path is cut off"));
        }
        match kind {
            KIND_SWEPT => Ok(Report::Swept { id, errno }),
            KIND_SET_UP => Ok(Report::SetUp {
                id,
                failure: String::from_utf8_lossy(path).into_owned(),
            }),
            KIND_ENDED => Ok(Report::Ended(Ended {
                id,
                status,
                failure: match step {
                    0 => None,
                    step => Some(Failure {
                        step: Step::from_u32(step).ok_or(Malformed("unknown step"))?,
                        errno,
                        path: path.to_vec(),
                    }),
                },
                stopped: flags & FLAG_STOPPED != 0,
                started,
                finished,
                usage,
            })),
            _ => Err(Malformed("unknown kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reports_survive_the_wire() {
        let report = Report::Ended(Ended {
            id: 9,
            status: 0x0700,
            failure: Some(Failure {
                step: Step::Exec,
                errno: 13,
                path: b"/bin/x".to_vec(),
            }),
            stopped: true,
            started: 1,
            finished: 2,
            usage: WireUsage {
                user_us: 3,
                involuntary_switches: 11,
                ..WireUsage::default()
            },
        });
        let datagram = report.encode();
        assert_eq!(datagram.len(), REPORT_LEN + 6);
        assert_eq!(Report::decode(&datagram), Ok(report));
        let swept = Report::Swept { id: 4, errno: 110 };
        assert_eq!(Report::decode(&swept.encode()), Ok(swept));
    }

    proptest! {
        #[test]
        fn noise_is_no_report(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Report::decode(&bytes).is_err());
        }

        #[test]
        fn damaged_reports_never_panic(
            changes in proptest::collection::vec((8usize..REPORT_LEN, any::<u8>()), 0..8),
            path in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let report = Report::Ended(Ended {
                failure: Some(Failure { step: Step::Exec, errno: 2, path }),
                ..Ended::default()
            });
            let mut datagram = report.encode();
            for (at, byte) in changes {
                datagram[at] = byte;
            }
            let _ = Report::decode(&datagram);
        }
    }
}
