//! The map of ids that a user namespace of ours can have: a range from the root daemon or from `/etc/subuid`, or a single id.

use std::fs;
use std::io;
use std::ops::Range;
use std::process::{Command, Stdio};

use super::{ProbeError, SubIds};

/// Where a root daemon's ids begin: unless an operator says otherwise.
const FIRST: u32 = 0x7000_0000;
/// As many as the ids that every program knows.
const MANY: u32 = 65_536;

/// What the ids inside are outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdMap {
    /// Id 0 and on are this one and on; written by ourselves, who may.
    Range(u32, u32),
    /// Id 0 is our own, the rest are subordinate ones; written by `newuidmap`.
    Subordinate(Range<u32>, Range<u32>),
    /// Id 0 is our own, and there are no others.
    Single,
}

impl IdMap {
    /// The best that there is: tried out when it is written.
    pub(super) fn best(sub_ids: &SubIds) -> IdMap {
        if nix::unistd::geteuid().is_root() && mapped(FIRST, MANY) {
            return IdMap::Range(FIRST, MANY);
        }
        match sub_ids.largest() {
            Some((uids, gids)) if !nix::unistd::geteuid().is_root() => {
                IdMap::Subordinate(uids, gids)
            }
            _ => IdMap::Single,
        }
    }

    /// How many ids there are inside.
    pub fn ids(&self) -> u32 {
        match self {
            IdMap::Range(_, count) => *count,
            IdMap::Subordinate(uids, gids) => {
                let fewest = uids.len().min(gids.len());
                u32::try_from(fewest).unwrap_or(u32::MAX).saturating_add(1)
            }
            IdMap::Single => 1,
        }
    }

    /// What id 0 is outside.
    pub(super) fn root(&self) -> u32 {
        match self {
            IdMap::Range(first, _) => *first,
            _ => nix::unistd::geteuid().as_raw(),
        }
    }

    /// Gives it to the user namespace of a process.
    pub(super) fn give(&self, pid: u32) -> Result<(), ProbeError> {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        match self {
            IdMap::Range(first, count) => {
                let line = format!("0 {first} {count}\n");
                write(pid, "uid_map", &line)?;
                write(pid, "gid_map", &line)
            }
            IdMap::Subordinate(uids, gids) => {
                run("newuidmap", pid, uid.as_raw(), uids)?;
                run("newgidmap", pid, gid.as_raw(), gids)
            }
            IdMap::Single => {
                write(pid, "setgroups", "deny")?;
                write(pid, "uid_map", &format!("0 {uid} 1\n"))?;
                write(pid, "gid_map", &format!("0 {gid} 1\n"))
            }
        }
    }
}

fn write(pid: u32, name: &str, text: &str) -> Result<(), ProbeError> {
    let path = format!("/proc/{pid}/{name}");
    fs::write(&path, text).map_err(|e| ProbeError::new(format!("write {path}"), e))
}

fn run(program: &str, pid: u32, own: u32, range: &Range<u32>) -> Result<(), ProbeError> {
    let arguments = [pid, 0, own, 1, 1, range.start, range.end - range.start];
    let action = || format!("give a user namespace its ids with {program}");
    let output = Command::new(program)
        .args(arguments.map(|number| number.to_string()))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| ProbeError::new(action(), e))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(ProbeError::new(action(), io::Error::other(said)))
        }
    }
}

/// Whether these ids exist in our own user namespace: root of a container may have fewer.
fn mapped(first: u32, count: u32) -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let line = |line: &str| {
        let mut fields = line
            .split_whitespace()
            .map(|field| field.parse::<u64>().ok());
        let (start, _, length) = (fields.next()??, fields.next()??, fields.next()??);
        let end = u64::from(first) + u64::from(count);
        Some(start <= u64::from(first) && end <= start + length)
    };
    map.lines().any(|text| line(text) == Some(true))
}
