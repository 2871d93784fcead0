//! A user namespace for a daemon that is not root, in which it may mount: a FUSE file system for its inputs, overlays over it,
//! and their clones for its launchers. Outside it is who it was.
//!
//! Its own ids are mapped to themselves, and the first subordinate id of each kind, if it has any, which is the launchers'
//! own. What it executes keeps the right to mount and to map these two ids, and no other.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use caps::{CapSet, Capability};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{getegid, geteuid};

use super::outside::subordinates;
use crate::config::Owner;

/// What a keeper and the helper that mounts need.
const KEPT: [Capability; 3] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
];

/// The daemon is in a user namespace of its own.
#[derive(Clone, Copy, Debug)]
pub struct OwnNamespace {
    /// The subordinate ids that are mapped in it.
    pub(super) launcher: Option<Owner>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The host does not allow it, and nothing has changed.
    #[error("this daemon is not root, and may not have a user namespace of its own: {0}")]
    Refused(std::io::Error),
    /// It has one, and is nobody in it.
    #[error("cannot {action} in a user namespace of this daemon's own: {source}")]
    Broken {
        /// The attempted operation.
        action: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

fn broken<E: Into<std::io::Error>>(action: &'static str) -> impl FnOnce(E) -> NamespaceError {
    move |error| NamespaceError::Broken {
        action,
        source: error.into(),
    }
}

impl OwnNamespace {
    /// Enters one. To be called before there are threads.
    pub fn enter() -> Result<OwnNamespace, NamespaceError> {
        let own = Owner {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
        };
        let wanted = subordinates(own.uid);
        // Only a process that stays outside can map ids that are not its own.
        let mapper = wanted.and_then(|ids| Mapper::start(own, ids).ok());
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
            .map_err(|errno| NamespaceError::Refused(errno.into()))?;
        let mapped = mapper.is_some_and(|mapper| mapper.map());
        if !mapped {
            map_alone(own)?;
        }
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", slave).map_err(broken("have mounts"))?;
        for capability in KEPT {
            let keep = |set| caps::raise(None, set, capability);
            { keep(CapSet::Inheritable).and_then(|()| keep(CapSet::Ambient)) }
                .map_err(|error| broken("keep a capability")(std::io::Error::other(error)))?;
        }
        Ok(OwnNamespace {
            launcher: wanted.filter(|_| mapped),
        })
    }
}

/// newuidmap and newgidmap, about to be run.
struct Mapper(Child);

impl Mapper {
    fn start(own: Owner, subordinate: Owner) -> std::io::Result<Mapper> {
        let pid = std::process::id();
        let map = |tool: &str, own: u32, other: u32| {
            format!("{tool} {pid} {own} {own} 1 {other} {other} 1")
        };
        let script = format!(
            "read -r go && {} && {}",
            map("newuidmap", own.uid, subordinate.uid),
            map("newgidmap", own.gid, subordinate.gid)
        );
        Command::new("/bin/sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(Mapper)
    }

    /// Whether both have done it.
    fn map(mut self) -> bool {
        let told = self.0.stdin.take();
        let told = told.is_some_and(|mut stdin| stdin.write_all(b"go\n").is_ok());
        self.0.wait().is_ok_and(|status| told && status.success())
    }
}

/// Maps what is not mapped yet: the daemon's own ids, which takes no rights if groups stay as they are.
fn map_alone(own: Owner) -> Result<(), NamespaceError> {
    let lacks = |path: &str| fs::read_to_string(path).is_ok_and(|map| map.trim().is_empty());
    if lacks("/proc/self/gid_map") {
        fs::write("/proc/self/setgroups", "deny").map_err(broken("keep groups as they are"))?;
        let line = format!("{} {} 1\n", own.gid, own.gid);
        fs::write("/proc/self/gid_map", line).map_err(broken("map the group"))?;
    }
    if lacks("/proc/self/uid_map") {
        let line = format!("{} {} 1\n", own.uid, own.uid);
        fs::write("/proc/self/uid_map", line).map_err(broken("map the user"))?;
    }
    Ok(())
}
