//! Where this process stands in the host's cgroup hierarchies, as `/proc/self/cgroup` and `/proc/self/mountinfo` tell it.

use std::path::{Path, PathBuf};

use crate::mountinfo;

/// Our own group in each hierarchy that is mounted where we see it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Hierarchies of the first version.
    pub(super) v1: Vec<V1>,
    /// The hierarchy of the second version.
    pub(super) v2: Option<V2>,
}

/// Our group in a hierarchy of the first version.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct V1 {
    /// Its controllers: several where they are mounted together.
    pub(super) controllers: Vec<String>,
    /// The group's directory.
    pub(super) dir: PathBuf,
}

/// Our group in the hierarchy of the second version.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct V2 {
    /// Where the hierarchy is mounted: nothing above it is ours.
    pub(super) mount: PathBuf,
    /// The group's directory.
    pub(super) dir: PathBuf,
}

/// Reads both files of /proc; the error says in words what is missing.
pub(super) fn look() -> Result<Found, String> {
    let read = |path: &str| {
        let text = std::fs::read(path).map_err(|e| format!("{path} cannot be read: {e}"))?;
        Ok::<_, String>(String::from_utf8_lossy(&text).into_owned())
    };
    let found = locate(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?);
    if found.v1.is_empty() && found.v2.is_none() {
        return Err("no cgroup file system that shows this process's own group is mounted".into());
    }
    Ok(found)
}

struct Mount {
    root: PathBuf,
    point: PathBuf,
    writable: bool,
    v2: bool,
    options: Vec<String>,
}

/// Joins the two texts.
fn locate(own: &str, mounts: &str) -> Found {
    let mut mounts: Vec<Mount> = mounts.lines().filter_map(mount).collect();
    // A container may have the same hierarchy twice; one that can be written is of more use.
    mounts.sort_by_key(|mount| !mount.writable);
    let mut found = Found::default();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if controllers.is_empty() {
            found.v2 = mounts.iter().filter(|mount| mount.v2).find_map(|mount| {
                Some(V2 {
                    mount: mount.point.clone(),
                    dir: below(mount, path)?,
                })
            });
            continue;
        }
        let controllers: Vec<String> = controllers.split(',').map(str::to_owned).collect();
        let has_them = |mount: &&Mount| {
            let has = |controller| mount.options.contains(controller);
            !mount.v2 && controllers.iter().all(has)
        };
        let dir = mounts
            .iter()
            .filter(has_them)
            .find_map(|mount| below(mount, path));
        found.v1.extend(dir.map(|dir| V1 { controllers, dir }));
    }
    found
}

/// `id parent major:minor root point options [tags] - type source superoptions`
fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    let v2 = match *right.first()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    Some(Mount {
        root: mountinfo::path(left.get(3)?),
        point: mountinfo::path(left.get(4)?),
        writable: left.get(5)?.split(',').any(|option| option == "rw"),
        v2,
        options: right.last()?.split(',').map(str::to_owned).collect(),
    })
}

/// The group's directory, if the mount shows it: a container's shows only a part of the hierarchy.
fn below(mount: &Mount, path: &str) -> Option<PathBuf> {
    // In a cgroup namespace, what is outside of it begins like this.
    if path.starts_with("/..") {
        return None;
    }
    let rest = Path::new(path).strip_prefix(&mount.root).ok()?;
    Some(match rest.as_os_str().is_empty() {
        true => mount.point.clone(),
        false => mount.point.join(rest),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1(controllers: &[&str], dir: &str) -> V1 {
        V1 {
            controllers: controllers.iter().map(|c| c.to_string()).collect(),
            dir: dir.into(),
        }
    }

    #[test]
    fn a_systemd_unit_on_the_second_version() {
        let found = locate(
            "0::/system.slice/boxwright.service\n",
            "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
             29 22 0:25 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        let v2 = V2 {
            mount: "/sys/fs/cgroup".into(),
            dir: "/sys/fs/cgroup/system.slice/boxwright.service".into(),
        };
        assert_eq!(
            found,
            Found {
                v1: vec![],
                v2: Some(v2)
            }
        );
    }

    #[test]
    fn a_hybrid_host_with_controllers_mounted_together() {
        let found = locate(
            "5:memory:/job/1\n4:cpu,cpuacct:/\n3:freezer:/\n1:name=systemd:/x\n0::/u\n",
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
             33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(
            found.v1,
            [
                v1(&["memory"], "/sys/fs/cgroup/memory/job/1"),
                v1(&["cpu", "cpuacct"], "/sys/fs/cgroup/cpu,cpuacct"),
                v1(&["name=systemd"], "/sys/fs/cgroup/systemd/x"),
            ]
        );
        assert_eq!(found.v2.unwrap().dir, Path::new("/sys/fs/cgroup/unified/u"));
    }

    #[test]
    fn a_container_sees_a_part() {
        let mounts = "41 31 0:38 /docker/a /cg ro - cgroup2 cgroup2 rw\n\
                      42 31 0:38 /docker/a /my\\040cg rw - cgroup2 cgroup2 rw\n";
        let found = locate("0::/docker/a/b\n", mounts);
        assert_eq!(found.v2.unwrap().dir, Path::new("/my cg/b"));
        assert_eq!(locate("0::/docker/other\n", mounts), Found::default());
        assert_eq!(locate("0::/../x\n", mounts), Found::default());
        assert_eq!(
            locate("0::/docker/a\n", mounts).v2.unwrap().dir,
            Path::new("/my cg")
        );
    }

    #[test]
    fn rubbish_is_no_group() {
        assert_eq!(locate("", ""), Found::default());
        assert_eq!(
            locate("1\n:\n0:x\n", "a - b\n - cgroup2\n1 2 3 / - cgroup x"),
            Found::default()
        );
        assert_eq!(mountinfo::path("a\\04"), Path::new("a\\04"));
        assert_eq!(mountinfo::path("\\134x\\"), Path::new("\\x\\"));
    }

    #[test]
    fn this_process_is_found_if_anything_is_mounted() {
        match look() {
            Ok(found) => {
                for dir in found.v1.iter().map(|v1| &v1.dir) {
                    assert!(dir.join("cgroup.procs").exists(), "{}", dir.display());
                }
            }
            Err(reason) => crate::skipped::here(reason),
        }
    }
}
