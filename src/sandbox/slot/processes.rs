//! Who is whose child, read from /proc. Only for the rare ways out: a command that left processes behind, a launcher that was
//! killed.

use std::collections::{HashMap, HashSet};
use std::fs;

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sandbox) struct Process {
    pub(in crate::sandbox) pid: i32,
    pub(in crate::sandbox) parent: i32,
    pub(in crate::sandbox) group: i32,
    pub(in crate::sandbox) session: i32,
    /// Dead, but not yet waited for.
    pub(in crate::sandbox) zombie: bool,
}

/// All processes that /proc shows. One that begins or ends meanwhile may be missing.
pub(in crate::sandbox) fn list() -> Vec<Process> {
    pids()
        .filter_map(|pid| parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?))
        .collect()
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// `pid (comm) state ppid pgrp session ...`, where comm may hold anything, parentheses and newlines too.
fn parse_stat(stat: &[u8]) -> Option<Process> {
    let end = stat.iter().rposition(|b| *b == b')')?;
    let pid = std::str::from_utf8(stat.split(|b| *b == b' ').next()?)
        .ok()?
        .parse()
        .ok()?;
    let mut fields = std::str::from_utf8(&stat[end + 1..])
        .ok()?
        .split_ascii_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    let mut number = || fields.next()?.parse().ok();
    Some(Process {
        pid,
        parent: number()?,
        group: number()?,
        session: number()?,
        zombie,
    })
}

/// The living descendants of a process, itself not among them.
pub(in crate::sandbox) fn descendants(of: i32) -> Vec<Process> {
    below(&list(), of)
}

fn below(all: &[Process], of: i32) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(*process);
    }
    let mut seen = HashSet::from([of]);
    let mut queue = vec![of];
    let mut found = Vec::new();
    while let Some(parent) = queue.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            // The list is not of one instant: a reused number could close a circle.
            if seen.insert(child.pid) {
                queue.push(child.pid);
                if !child.zombie {
                    found.push(*child);
                }
            }
        }
    }
    found
}

/// Whether a process with this real user id is alive.
pub(in crate::sandbox) fn user_has_any(uid: u32) -> bool {
    pids().any(|pid| user_of(pid) == Some((uid, false)))
}

/// The real user id of a process, and whether it is a zombie.
pub(in crate::sandbox) fn user_of(pid: i32) -> Option<(u32, bool)> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let mut user = None;
    let mut zombie = false;
    // The name is escaped, so that no line but the kernel's begins like this.
    for line in status.split(|b| *b == b'\n') {
        if let Some(state) = line.strip_prefix(b"State:") {
            zombie = matches!(state.trim_ascii_start().first(), Some(b'Z' | b'X'));
        } else if let Some(ids) = line.strip_prefix(b"Uid:") {
            user = std::str::from_utf8(ids)
                .ok()?
                .split_ascii_whitespace()
                .next()?
                .parse()
                .ok();
        }
    }
    Some((user?, zombie))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_do_not_confuse() {
        let stat = b"42 (x) Z 1 1 1 (\n) S 7 8 9 0 -1 4194304";
        assert_eq!(
            parse_stat(stat),
            Some(Process {
                pid: 42,
                parent: 7,
                group: 8,
                session: 9,
                zombie: false
            })
        );
        assert_eq!(parse_stat(b"42 (x"), None);
        assert_eq!(parse_stat(b"42 (x) S 1"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn the_tree_is_walked_through_zombies_and_circles() {
        let process = |pid, parent, zombie| Process {
            pid,
            parent,
            group: pid,
            session: pid,
            zombie,
        };
        let all = [
            process(2, 1, false),
            process(3, 2, true),
            process(4, 3, false),
            process(5, 1, false),
            process(6, 7, false),
            process(7, 6, false),
            process(2, 4, false),
        ];
        let pids = |of| {
            let mut found: Vec<_> = below(&all, of).iter().map(|p| p.pid).collect();
            found.sort();
            found
        };
        assert_eq!(pids(2), [4]);
        assert_eq!(pids(1), [2, 4, 5]);
        assert_eq!(pids(6), [7]);
    }

    #[test]
    fn this_process_is_found() {
        let own = std::process::id() as i32;
        assert!(list().iter().any(|p| p.pid == own && !p.zombie));
        assert_eq!(user_of(own).map(|(_, zombie)| zombie), Some(false));
    }
}
