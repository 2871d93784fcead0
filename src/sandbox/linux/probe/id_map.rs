//! The map of ids that a user namespace of ours can have. Level full needs two: one for commands, and one for what looks after
//! them, out of their reach.

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use super::{ProbeError, SubIds};

/// What the ids inside are outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdMap {
    /// This one and the next, which a root daemon takes for itself.
    Taken(u32),
    /// Our own, and subordinate ones: a user and a group.
    Subordinate(u32, u32),
    /// Our own alone.
    Single,
}

impl IdMap {
    /// The best that there should be; whether it can be had is found out when it is written. A root daemon does without
    /// any but the first, for no command may run as root.
    pub(super) fn best(sub_ids: &SubIds, first_uid: u32) -> IdMap {
        if nix::unistd::geteuid().is_root() {
            return IdMap::Taken(first_uid);
        }
        match sub_ids.first() {
            Some((uid, gid)) => IdMap::Subordinate(uid, gid),
            None => IdMap::Single,
        }
    }

    /// What id 0 is outside.
    pub(super) fn root(&self) -> u32 {
        match self {
            IdMap::Taken(first) => *first,
            _ => nix::unistd::geteuid().as_raw(),
        }
    }

    /// Gives it to the user namespace of a process.
    pub(super) fn give(&self, pid: u32) -> Result<(), ProbeError> {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        match self {
            IdMap::Taken(first) => {
                let line = format!("0 {first} 2\n");
                write(pid, "uid_map", &line)?;
                write(pid, "gid_map", &line)
            }
            IdMap::Subordinate(other_uid, other_gid) => {
                run("newuidmap", pid, uid.as_raw(), *other_uid)?;
                run("newgidmap", pid, gid.as_raw(), *other_gid)
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
    fs::write(&path, text)
        .map_err(|e| ProbeError::new(format!("write {name} of a user namespace"), e))
}

fn run(program: &str, pid: u32, own: u32, other: u32) -> Result<(), ProbeError> {
    let arguments = [pid, 0, own, 1, 1, other, 1];
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

/// Ids of our own user namespace, as `first` and `count`, range by range: root of a container may have few.
pub(super) fn own_ids() -> Vec<(u64, u64)> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    parse(&map)
}

fn parse(map: &str) -> Vec<(u64, u64)> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let first = fields.next()?.parse().ok()?;
        let count = fields.nth(1)?.parse().ok()?;
        Some((first, count))
    };
    map.lines().filter_map(line).collect()
}

/// A value for `--first-uid` where the ids that it names do not exist: the last two of the largest range.
pub(super) fn other_first_uid(ids: &[(u64, u64)], first_uid: u32) -> Option<u32> {
    let asked = u64::from(first_uid);
    let exist = |(first, count): &(u64, u64)| *first <= asked && asked + 2 <= first + count;
    if ids.iter().any(exist) {
        return None;
    }
    let (first, count) = ids.iter().max_by_key(|(_, count)| *count)?;
    let last_two = (first + count).checked_sub(2).filter(|at| at > first)?;
    u32::try_from(last_two).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_do_not_exist_have_others_in_their_place() {
        let host = parse("         0          0 4294967295\n");
        assert_eq!(other_first_uid(&host, 0x7000_0000), None);
        let container = parse("0 1000 1\n1 100000 65536\n");
        assert_eq!(other_first_uid(&container, 0x7000_0000), Some(65_535));
        assert_eq!(other_first_uid(&container, 65_535), None);
        assert_eq!(other_first_uid(&container, 65_536), Some(65_535));
        assert_eq!(other_first_uid(&parse("0 1000 1\n"), 5), None);
        assert_eq!(parse("nonsense\n0 x 1\n"), [(0, 1)]);
    }
}
