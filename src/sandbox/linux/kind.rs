//! Kinds of commands: those that can follow one another in a launcher, as they see the same and believe to be the same. From a
//! kind and its profile comes what the launcher is told.

use std::path::Path;

use super::profile::Profile;
use super::set_up::{BUILD, IdPair, ResourceLimit, SetUpMessage, SmallFile, Tmpfs};
use crate::config::Owner;
use crate::sandbox::{DEFAULT_PROFILE, Identity, RootShape, View};

/// The default profile of commands that have the network.
const NETWORK_PROFILE: &str = "network";

/// See the module. What differs from command to command, such as read-only directories, is not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) root: RootShape,
    pub(super) network: bool,
    pub(super) user: Identity,
    pub(super) profile: String,
}

impl Kind {
    pub(super) fn of(view: &View) -> Kind {
        // The default profile has no use for a network, nor the files by which to find names in it.
        let profile = match &*view.profile {
            DEFAULT_PROFILE if view.network => NETWORK_PROFILE,
            profile => profile,
        };
        Kind {
            root: view.root,
            network: view.network,
            user: view.user,
            profile: profile.to_owned(),
        }
    }
}

/// The ids outside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outside {
    /// Whom commands run as.
    pub(super) command: Owner,
    /// Whom launchers run as, out of the commands' reach; `None` if there is no second id.
    pub(super) launcher: Option<Owner>,
    /// The maps are written by newuidmap.
    pub(super) map_tools: bool,
}

/// What launchers of commands of this kind are told. `roots` is the host's directory of input roots, if they come by name.
pub(super) fn set_up(
    kind: &Kind,
    profile: &Profile,
    outside: &Outside,
    roots: Option<&Path>,
) -> SetUpMessage {
    let Identity { uid, gid } = kind.user;
    // The smallest that the command is not.
    let own_id = (0..3).find(|id| *id != uid && *id != gid).unwrap_or(0);
    let map = |inside, command, launcher: Option<u32>| {
        let pair = |inside, outside| IdPair { inside, outside };
        let own = launcher.map(|launcher| pair(own_id, launcher));
        [pair(inside, command)].into_iter().chain(own).collect()
    };
    let host = kind.root == RootShape::Host;
    let host_paths = match host {
        true => host_paths(profile),
        false => Vec::new(),
    };
    let files = match host {
        true => files(kind.user)
            .into_iter()
            .filter(|file| !host_paths.contains(&file.path))
            .collect(),
        false => Vec::new(),
    };
    let tmpfs = &profile.tmpfs;
    // An input root's /var/tmp is as much its own as /var: what an action leaves there may be an output.
    let var_tmp = host.then_some(("/var/tmp", tmpfs.var_tmp));
    let tmpfs = [("/tmp", tmpfs.tmp), ("/dev/shm", tmpfs.dev_shm)];
    let tmpfs = tmpfs.into_iter().chain(var_tmp);
    SetUpMessage {
        uid,
        gid,
        uids: map(
            uid,
            outside.command.uid,
            outside.launcher.map(|owner| owner.uid),
        ),
        gids: map(
            gid,
            outside.command.gid,
            outside.launcher.map(|owner| owner.gid),
        ),
        own_id,
        map_tools: outside.map_tools,
        network: kind.network,
        input_root: !host,
        host_paths,
        files,
        tmpfs: tmpfs
            .map(|(path, limits)| Tmpfs {
                path: path.into(),
                bytes: limits.size,
                inodes: limits.inodes,
            })
            .collect(),
        pts: profile.pts,
        filter: profile.filter.clone(),
        landlock: profile.landlock,
        scope: profile.scope_abstract_sockets,
        roots: roots.map_or_else(String::new, |roots| roots.to_string_lossy().into_owned()),
        limits: profile
            .rlimits
            .iter()
            .map(|(resource, limit)| ResourceLimit {
                resource: *resource as u32,
                soft: limit.current.unwrap_or(u64::MAX),
                hard: limit.maximum.unwrap_or(u64::MAX),
            })
            .collect(),
    }
}

/// What there is of the profile's paths, without those that lie below another one.
fn host_paths(profile: &Profile) -> Vec<String> {
    let found = profile
        .host_paths
        .iter()
        .flat_map(|pattern| pattern.expand(Path::new("/")));
    let mut found: Vec<String> = found
        .filter_map(|path| path.into_os_string().into_string().ok())
        .collect();
    found.sort();
    found.dedup();
    let below = |path: &str, other: &str| {
        path.strip_prefix(other)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    let covered = |path: &String| {
        found
            .iter()
            .any(|other| below(path, other) && !is_link(other))
    };
    found
        .iter()
        .filter(|path| !covered(path))
        .cloned()
        .collect()
}

fn is_link(path: &str) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink())
}

/// What tools ask for who they are and where.
fn files(user: Identity) -> Vec<SmallFile> {
    let Identity { uid, gid } = user;
    let file = |path: &str, content: String| SmallFile {
        path: path.into(),
        content,
    };
    let root = |id, line: &str| {
        if id == 0 {
            String::new()
        } else {
            line.to_owned()
        }
    };
    vec![
        file(
            "/etc/passwd",
            format!(
                "{}build:x:{uid}:{gid}:build:{BUILD}:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
                root(uid, "root:x:0:0:root:/:/bin/sh\n")
            ),
        ),
        file(
            "/etc/group",
            format!(
                "{}build:x:{gid}:\nnogroup:x:65534:\n",
                root(gid, "root:x:0:\n")
            ),
        ),
        file("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n".into()),
        file("/etc/hostname", "localhost\n".into()),
    ]
}
