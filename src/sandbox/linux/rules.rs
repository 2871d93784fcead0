//! Landlock, the second layer: what the mounts leave open by mistake stays closed. Everything that a command sees it may read
//! and execute; it may write below its input root and in the memory file systems, and use the devices. It may make no
//! device anywhere.

use std::ffi::c_long;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};

/// The newest version whose rights are known here; on an older kernel those that it has not are left out.
const KNOWN: ABI = ABI::V6;

/// What is the same for all commands of a launcher.
#[derive(Debug)]
pub(super) struct Rules {
    /// The root of everything.
    pub(super) root: OwnedFd,
    /// Where commands may write: memory file systems.
    pub(super) writable: Vec<OwnedFd>,
    /// Devices: may be opened for writing, but nothing be made there.
    pub(super) special: Vec<OwnedFd>,
    /// Keep commands from the abstract sockets of others.
    pub(super) scope: bool,
}

/// What writing to a file that is there takes, on a kernel with this version of Landlock.
pub(super) fn writing(version: c_long) -> u64 {
    let truncate = match version {
        // Truncation was not a right of its own before.
        ..3 => BitFlags::EMPTY,
        _ => BitFlags::from(AccessFs::Truncate),
    };
    (BitFlags::from(AccessFs::WriteFile) | truncate).bits()
}

/// What the use of message queues takes, which are files to Landlock.
pub(super) fn queueing(version: c_long) -> u64 {
    let queues = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::MakeReg | AccessFs::RemoveFile;
    queues.bits() | writing(version)
}

impl Rules {
    /// The rules for one command that may write below these directories of its input root; `None` if the kernel has no Landlock.
    pub(super) fn ruleset(
        &self,
        input: BorrowedFd<'_>,
        open: &[OwnedFd],
    ) -> Result<Option<OwnedFd>, RulesetError> {
        let read = AccessFs::from_read(KNOWN);
        let devices = AccessFs::MakeChar | AccessFs::MakeBlock;
        let write = AccessFs::from_all(KNOWN) & !devices;
        let touch: BitFlags<AccessFs> =
            AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))?;
        if self.scope {
            ruleset = ruleset.scope(Scope::AbstractUnixSocket)?;
        }
        let mut ruleset = ruleset
            .create()?
            .add_rule(PathBeneath::new(&self.root, read))?
            // Where it becomes the root, no other is above it.
            .add_rule(PathBeneath::new(input, read))?;
        for place in open.iter().chain(&self.writable) {
            ruleset = ruleset.add_rule(PathBeneath::new(place.as_fd(), write))?;
        }
        for place in &self.special {
            ruleset = ruleset.add_rule(PathBeneath::new(place.as_fd(), read | touch))?;
        }
        Ok(ruleset.into())
    }
}
