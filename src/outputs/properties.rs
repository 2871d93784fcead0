//! Node properties: those that a Command asks for, of what it left behind.

use rustix::fs::Stat;

use crate::reapi::proto::re;
use crate::tree::{self, Properties};

/// As a message has them; `None` if none was asked for.
pub(super) type Reported = Option<Box<re::NodeProperties>>;

/// Which properties are reported. Names that are not known here are ignored, as REAPI has it.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    mtime: bool,
    unix_mode: bool,
}

impl Wanted {
    pub(super) fn of(names: &[String]) -> Self {
        let wants = |name: &str| names.iter().any(|n| n == name);
        Wanted {
            mtime: wants("mtime"),
            unix_mode: wants("unix_mode"),
        }
    }

    /// Of a file or directory on disk.
    pub(super) fn found(self, stat: &Stat) -> Reported {
        self.report(modified(stat), Some(stat.st_mode & 0o7777))
    }

    /// Of a file or directory of the tree that the command left as it was, as the command saw them; `mode` is that of a node
    /// which has none of its own.
    pub(super) fn given(self, properties: Option<&Properties>, mode: u32) -> Reported {
        let mode = tree::shown_mode(properties, mode);
        self.report(tree::shown_mtime(properties), Some(mode))
    }

    /// Of a link on disk. A link has no mode: whoever gave it the one that is shown would change what it points to.
    pub(super) fn found_link(self, stat: &Stat) -> Reported {
        self.report(modified(stat), None)
    }

    /// Of a link of the tree.
    pub(super) fn given_link(self, properties: Option<&Properties>) -> Reported {
        self.report(tree::shown_mtime(properties), None)
    }

    fn report(self, (seconds, nanos): (i64, u32), mode: Option<u32>) -> Reported {
        let mtime = self.mtime.then(|| prost_types::Timestamp {
            seconds,
            nanos: i32::try_from(nanos).unwrap_or(0),
        });
        let unix_mode = mode.filter(|_| self.unix_mode);
        (mtime.is_some() || unix_mode.is_some()).then(|| {
            Box::new(re::NodeProperties {
                properties: Vec::new(),
                mtime,
                unix_mode,
            })
        })
    }
}

fn modified(stat: &Stat) -> (i64, u32) {
    (
        stat.st_mtime,
        u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    )
}
