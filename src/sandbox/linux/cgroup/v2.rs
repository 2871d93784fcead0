//! The place for our groups in the hierarchy of the second version.
//!
//! A group whose children have controllers may hold no processes itself. So the daemon goes into a leaf of its own,
//! `daemon`, beside which `boxwright-<pid>` is made; systemd's `DelegateSubgroup=daemon` starts it there already.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::host::V2;
use super::kill::processes;
use super::knob::write;

/// What a slot's group is wanted for. Any may be missing.
const CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "io"];
/// The leaf that the daemon itself is in.
const LEAF: &str = "daemon";

/// Where groups are to be made.
#[derive(Debug)]
pub(super) struct Place {
    /// The group below which they go.
    pub(super) group: PathBuf,
    /// The controllers that they have.
    pub(super) controllers: Vec<&'static str>,
    /// Why there are not all of them.
    pub(super) missing: Option<String>,
}

/// Finds the place, and moves this process and its children out of its way.
pub(super) fn prepare(own: &V2) -> Place {
    let group = delegated_group(own);
    let offered = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    let offered = wanted_of(&offered);
    let bare = |missing: String| Place {
        group: group.clone(),
        controllers: Vec::new(),
        missing: Some(missing),
    };
    if offered.is_empty() {
        let shown = group.display();
        return bare(format!(
            "{shown} has none of the controllers memory, pids, cpu and io: {ADVICE}"
        ));
    }
    // Only the root of the whole hierarchy has no type, and only there processes and children may be side by side.
    let real_root = !group.join("cgroup.type").exists();
    if !real_root
        && group == own.dir
        && let Err(reason) = step_aside(&group, own)
    {
        return bare(reason);
    }
    match enable(&group, &offered) {
        Ok(controllers) => Place {
            missing: lacking(&controllers),
            group,
            controllers,
        },
        Err(reason) => {
            if group == own.dir && !real_root {
                come_back(&group);
            }
            bare(reason)
        }
    }
}

/// Gives the groups in `group` these controllers, or those of them that work here.
pub(super) fn enable(
    group: &Path,
    controllers: &[&'static str],
) -> Result<Vec<&'static str>, String> {
    let path = group.join("cgroup.subtree_control");
    let mut enabled = Vec::new();
    for controller in controllers {
        match write(&path, format!("+{controller}")) {
            Ok(()) => enabled.push(*controller),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let others = processes(group).map_or(0, |others| others.len());
                return Err(format!(
                    "{} also holds {others} processes that are not ours: {ADVICE}",
                    group.display()
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(format!(
                    "{} is not delegated to this user: {ADVICE}",
                    group.display()
                ));
            }
            // Such as `cpu` where processes with real-time priority are: the others work.
            Err(_) => {}
        }
    }
    Ok(enabled)
}

/// What an operator can do.
const ADVICE: &str = "start boxwright in a group of its own (in its unit: Delegate=yes; by hand: \
     `systemd-run --scope -p Delegate=yes boxwright ...`, with `--user` if not root)";

/// The group that is ours to divide: our own, or the one above if we were started in a leaf of it.
fn delegated_group(own: &V2) -> PathBuf {
    let above = match own.dir.parent() {
        Some(above) if above.starts_with(&own.mount) => above,
        _ => return own.dir.clone(),
    };
    let in_leaf = own.dir.file_name().is_some_and(|name| name == LEAF)
        || (delegated(above) && !delegated(&own.dir));
    let free = || processes(above).is_ok_and(|processes| processes.is_empty());
    let ours = || {
        let control = above.join("cgroup.subtree_control");
        fs::OpenOptions::new().write(true).open(control).is_ok()
    };
    match in_leaf && free() && ours() {
        true => above.to_owned(),
        false => own.dir.clone(),
    }
}

/// Whether systemd says that it leaves this group to us.
fn delegated(group: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0; 8];
        rustix::fs::getxattr(group, *name, &mut value).is_ok_and(|n| value[..n] == *b"1")
    })
}

fn wanted_of(offered: &str) -> Vec<&'static str> {
    let offered: Vec<&str> = offered.split_ascii_whitespace().collect();
    CONTROLLERS
        .into_iter()
        .filter(|wanted| offered.contains(wanted))
        .collect()
}

fn lacking(offered: &[&str]) -> Option<String> {
    let lacking: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|wanted| !offered.contains(wanted))
        .collect();
    (!lacking.is_empty()).then(|| format!("without the controllers {}", lacking.join(", ")))
}

/// Moves this process and its descendants into the leaf.
fn step_aside(group: &Path, own: &V2) -> Result<(), String> {
    let leaf = group.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(format!(
                "{} cannot be made ({error}): {ADVICE}",
                leaf.display()
            ));
        }
        _ => {}
    }
    // All that is in the root of a container belongs to it, as the container's own init does.
    let everybody = own.dir == own.mount;
    relocate(group, &leaf, everybody).map_err(|error| {
        format!(
            "this process cannot be moved to {} ({error}): {ADVICE}",
            leaf.display()
        )
    })
}

/// Undoes it as far as it can be undone.
fn come_back(group: &Path) {
    let leaf = group.join(LEAF);
    if relocate(&leaf, group, false).is_ok() {
        let _ = fs::remove_dir(leaf);
    }
}

fn relocate(from: &Path, to: &Path, everybody: bool) -> io::Result<()> {
    let to = to.join("cgroup.procs");
    write(&to, "0")?;
    // Whoever is forked meanwhile is found by the next look.
    for _ in 0..3 {
        let others = processes(from).unwrap_or_default();
        let others = others.iter().filter(|pid| everybody || is_ours(**pid));
        for pid in others.filter(|pid| **pid != 0) {
            match write(&to, pid.to_string()) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether this process is a descendant of ours.
fn is_ours(pid: i32) -> bool {
    let own = std::process::id() as i32;
    let mut at = pid;
    // Numbers may be reused while we look: it must end.
    for _ in 0..64 {
        match parent_of(at) {
            Some(parent) if parent == own => return true,
            Some(parent) if parent > 1 => at = parent,
            _ => return false,
        }
    }
    false
}

fn parent_of(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(controllers: &str) -> (tempfile::TempDir, V2) {
        let dir = tempfile::tempdir().unwrap();
        let unit = dir.path().join("unit");
        fs::create_dir_all(unit.join(LEAF)).unwrap();
        for group in [&unit, &unit.join(LEAF)] {
            fs::write(group.join("cgroup.procs"), "").unwrap();
            fs::write(group.join("cgroup.type"), "domain\n").unwrap();
            fs::write(group.join("cgroup.subtree_control"), "").unwrap();
            fs::write(group.join("cgroup.controllers"), controllers).unwrap();
        }
        let own = V2 {
            mount: dir.path().to_owned(),
            dir: unit,
        };
        (dir, own)
    }

    #[test]
    fn a_delegated_unit_is_divided_and_the_daemon_steps_aside() {
        let (_keep, own) = tree("cpuset cpu io memory pids\n");
        let place = prepare(&own);
        assert_eq!(place.group, own.dir);
        assert_eq!(place.controllers, CONTROLLERS);
        assert_eq!(place.missing, None);
        let moved = fs::read_to_string(own.dir.join("daemon/cgroup.procs")).unwrap();
        assert_eq!(moved, "0");
        let enabled = fs::read_to_string(own.dir.join("cgroup.subtree_control")).unwrap();
        assert_eq!(enabled, "+io", "the last of four writes");
    }

    #[test]
    fn a_daemon_that_starts_in_its_leaf_uses_the_group_above() {
        let (_keep, mut own) = tree("cpu memory pids");
        let unit = own.dir.clone();
        own.dir = unit.join(LEAF);
        let place = prepare(&own);
        assert_eq!(place.group, unit);
        assert_eq!(place.controllers, ["memory", "pids", "cpu"]);
        assert_eq!(place.missing.unwrap(), "without the controllers io");
        // Nobody was moved.
        assert_eq!(
            fs::read_to_string(own.dir.join("cgroup.procs")).unwrap(),
            ""
        );
    }

    #[test]
    fn a_group_above_that_holds_processes_is_not_ours() {
        let (_keep, mut own) = tree("memory");
        let unit = own.dir.clone();
        fs::write(unit.join("cgroup.procs"), "1\n").unwrap();
        own.dir = unit.join(LEAF);
        assert_eq!(prepare(&own).group, own.dir);
    }

    #[test]
    fn nothing_is_above_the_mount() {
        let (_keep, mut own) = tree("memory");
        own.dir = own.dir.join(LEAF);
        own.mount = own.dir.clone();
        assert_eq!(prepare(&own).group, own.dir);
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        let (_keep, own) = tree("hugetlb\n");
        let place = prepare(&own);
        assert!(place.controllers.is_empty());
        let missing = place.missing.unwrap();
        assert!(missing.contains("Delegate=yes"), "{missing}");
    }

    #[test]
    fn children_are_ours_and_parents_are_not() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert!(is_ours(child.id() as i32));
        assert!(!is_ours(std::os::unix::process::parent_id() as i32));
        assert!(!is_ours(1));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
