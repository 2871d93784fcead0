//! What a sandboxed command may do, as data: `sandbox-profiles/linux/*.toml`, compiled in, overridable by an operator's directory.
//!
//! Profiles are read once, at start, and wholly checked then: a mistake in a file that no action has asked for yet is found as well.
//! The format is described in `sandbox-profiles/README.md`, the reasons stand beside the entries.

mod error;
mod hostpath;
mod read;
mod resolve;
mod rules;
pub mod seccomp;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit};

pub use error::{Place, ProfileError};
pub use hostpath::HostPath;
use seccomp::{Arch, Policy};
use sources::Sources;

/// One profile, ready for use.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The name by which actions ask for it.
    pub name: Arc<str>,
    /// One sentence for people.
    pub description: String,
    /// SHA-256, in hex, over every text that this profile was made of: its own, those it extends, the groups it uses.
    pub hash: String,
    /// What is said of system calls.
    pub policy: Policy,
    /// The policy as a program for this machine: an array of `struct sock_filter`, 8 bytes each.
    pub filter: Vec<u8>,
    /// Whether Landlock is the second layer below the mounts.
    pub landlock: bool,
    /// Whether abstract unix sockets of processes outside are out of reach (Landlock, where the kernel can).
    pub scope_abstract_sockets: bool,
    /// Whether there is a `/dev/pts` of its own.
    pub pts: bool,
    /// The file systems in memory.
    pub tmpfs: Tmpfs,
    /// Limits of each process, beneath what the action or the operator asks for. A hard limit above the daemon's own has to be cut.
    pub rlimits: Vec<(Resource, Rlimit)>,
    /// What is shown of the host, read-only, when the root is made of its tools.
    pub host_paths: Vec<HostPath>,
}

/// The file systems in memory. What is in them counts as the action's memory where there are cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// `/tmp`.
    pub tmp: TmpfsLimits,
    /// `/var/tmp`.
    pub var_tmp: TmpfsLimits,
    /// `/dev/shm`.
    pub dev_shm: TmpfsLimits,
}

/// The limits of one file system in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TmpfsLimits {
    /// Bytes.
    pub size: u64,
    /// Files, directories and links.
    pub inodes: u64,
}

/// Every profile there is, by name.
#[derive(Clone, Debug)]
pub struct Profiles {
    by_name: BTreeMap<String, Arc<Profile>>,
}

impl Profiles {
    /// The built-in profiles, and those of the operator's directory, which come before built-in ones of the same name;
    /// so do its groups (`seccomp/` in it). Everything is checked and compiled for this machine.
    pub fn load(overrides: Option<&Path>) -> Result<Profiles, ProfileError> {
        let machine = Arch::this().ok_or(ProfileError::Machine(std::env::consts::ARCH))?;
        let mut sources = Sources::built_in();
        if let Some(directory) = overrides {
            sources.add(directory)?;
        }
        Profiles::from_sources(&sources, machine)
    }

    fn from_sources(sources: &Sources, machine: Arch) -> Result<Profiles, ProfileError> {
        let profiles = resolve::all(sources, machine)?.into_iter();
        let by_name = profiles.map(|profile| (profile.name.to_string(), Arc::new(profile)));
        Ok(Profiles {
            by_name: by_name.collect(),
        })
    }

    /// The profile of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Profile>> {
        self.by_name.get(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }
}
