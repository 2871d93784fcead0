//! Control groups: whether the daemon can make some of its own, with what controllers. Found out by making one.

use std::fs;
use std::path::{Path, PathBuf};

/// The controllers that limits are made of.
const WANTED: [&str; 3] = ["memory", "pids", "cpu"];

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// The second version.
    V2 {
        /// Our own group.
        group: PathBuf,
        /// Whether we can make groups below it.
        delegated: bool,
        /// Those of the wanted controllers that are not handed to it.
        missing: Vec<&'static str>,
    },
    /// The first version.
    V1 {
        /// Those of the wanted controllers in whose hierarchy we cannot make groups.
        missing: Vec<&'static str>,
    },
    /// None is mounted.
    None,
}

/// Looks, and makes and removes a group.
pub fn cgroups() -> Cgroups {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let unified =
        mounted(&mounts, "cgroup2", None).map(|mount| beneath(&mount, &group(&own, None)));
    let controllers = |group: &Path| {
        let text = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    if let Some(group) = &unified {
        let has = controllers(group);
        if WANTED
            .iter()
            .any(|wanted| has.iter().any(|has| has == wanted))
        {
            return Cgroups::V2 {
                delegated: can_make(group),
                missing: (WANTED.into_iter())
                    .filter(|wanted| !has.iter().any(|has| has == wanted))
                    .collect(),
                group: group.clone(),
            };
        }
    }
    let in_v1 = |name: &str| {
        let mount = mounted(&mounts, "cgroup", Some(name))?;
        Some(beneath(&mount, &group(&own, Some(name))))
    };
    if WANTED.iter().any(|name| in_v1(name).is_some()) {
        let missing = |name: &&'static str| !in_v1(name).is_some_and(|group| can_make(&group));
        return Cgroups::V1 {
            missing: WANTED.into_iter().filter(missing).collect(),
        };
    }
    match unified {
        Some(group) => Cgroups::V2 {
            delegated: can_make(&group),
            group,
            missing: WANTED.to_vec(),
        },
        None => Cgroups::None,
    }
}

/// Where a hierarchy is mounted: lines are `DEVICE POINT TYPE OPTIONS ...`, with spaces escaped.
fn mounted(mounts: &str, kind: &str, controller: Option<&str>) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, point, found, options) = (
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
        );
        let fits = controller.is_none_or(|name| options.split(',').any(|option| option == name));
        (found == kind && fits).then(|| PathBuf::from(point.replace("\\040", " ")))
    })
}

/// Our group in a hierarchy: lines are `ID:CONTROLLERS:PATH`, without controllers for the second version.
fn group(own: &str, controller: Option<&str>) -> String {
    let fits = |controllers: &str| match controller {
        None => controllers.is_empty(),
        Some(name) => controllers.split(',').any(|found| found == name),
    };
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        fits(controllers).then(|| path.to_owned())
    });
    path.unwrap_or_default()
}

/// In a container our path may count from a root that is not mounted here; then the mount point is our group.
fn beneath(mount: &Path, group: &str) -> PathBuf {
    let full = mount.join(group.trim_start_matches('/'));
    match full.is_dir() {
        true => full,
        false => mount.to_owned(),
    }
}

fn can_make(group: &Path) -> bool {
    let new = group.join(format!("boxwright-doctor-{}", std::process::id()));
    let made = fs::create_dir(&new).is_ok();
    if made {
        let _ = fs::remove_dir(&new);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found() {
        let mounts = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw,nosuid 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n";
        let at = |kind, controller| mounted(mounts, kind, controller);
        assert_eq!(at("cgroup2", None), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            at("cgroup", Some("cpu")),
            Some("/sys/fs/cgroup/cpu,cpuacct".into())
        );
        assert_eq!(at("cgroup", Some("memory")), None);
        let own = "12:cpu,cpuacct:/a/b\n1:name=systemd:/x\n0::/c:d\n";
        assert_eq!(group(own, None), "/c:d");
        assert_eq!(group(own, Some("cpuacct")), "/a/b");
        assert_eq!(group(own, Some("pids")), "");
    }
}
