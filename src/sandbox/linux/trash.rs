//! Mounts that a command is done with. The kernel lets an unmounter wait until no processor can be looking at the mount (one RCU
//! grace period): hardly any work, but 0.4 ms on an idle machine and 4 on a busy one, which the next command would wait too.
//! So they are only moved out of sight, which takes no time, and unmounted all at once: when the launcher has nothing else to
//! do for a moment, or when there are many.
//!
//! Out of sight is a memory file system that the root is mounted over: no path leads there, not even in `/proc/self/mountinfo`, and
//! the launcher alone holds a descriptor of it.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::poll::PollTimeout;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

/// As many are kept; a command leaves three, and a memory file system for each that it has used.
const PLACES: usize = 48;
/// Who has waited for so long, in milliseconds, has the time.
const A_MOMENT: u16 = 5;

/// Where the places are.
const BIN: &str = "bin";
/// Where they are mounted once more, to be unmounted with all that is on them.
const MOUNTED: &str = "mounted";

/// See the module.
#[derive(Debug)]
pub(super) struct Trash {
    store: OwnedFd,
    keeps: bool,
    /// Places that are taken.
    taken: usize,
}

impl Trash {
    /// Makes it in the root directory of a file system that will be covered. Where commands get copies of all mounts, which would hold
    /// what is in the trash for as long as they run, it should not keep anything.
    pub(super) fn make(store: OwnedFd, keeps: bool) -> rustix::io::Result<Trash> {
        let mode = Mode::RWXU;
        rustix::fs::mkdirat(&store, BIN, mode)?;
        rustix::fs::mkdirat(&store, MOUNTED, mode)?;
        for place in 0..PLACES {
            rustix::fs::mkdirat(&store, format!("{BIN}/{place}"), mode)?;
        }
        Ok(Trash {
            store,
            keeps,
            taken: 0,
        })
    }

    /// Takes what is mounted at a path out of sight. `EINVAL` if nothing is mounted there.
    pub(super) fn take(&mut self, path: &str) -> rustix::io::Result<()> {
        if self.taken == PLACES {
            self.empty()?;
        }
        if self.taken == 0 {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let bin = open_tree(&self.store, BIN, flags)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(&bin, "", &self.store, MOUNTED, flags)?;
        }
        let place = Path::new(MOUNTED).join(self.taken.to_string());
        // Counted first: if this fails and nothing was taken before, the bin is mounted all the same.
        self.taken += 1;
        match move_mount(CWD, path, &self.store, &place, MoveMountFlags::empty()) {
            // The directory that is mounted was removed already, and such a mount cannot be moved.
            Err(Errno::NOENT) => unmount(path, UnmountFlags::DETACH),
            taken => taken,
        }
    }

    /// Whether anything may be in it when a command starts.
    pub(super) fn keeps(&self) -> bool {
        self.keeps
    }

    /// How long to wait for something else before it is emptied.
    pub(super) fn patience(&self) -> PollTimeout {
        match self.taken {
            0 => PollTimeout::NONE,
            _ => PollTimeout::from(A_MOMENT),
        }
    }

    /// Unmounts everything.
    pub(super) fn empty(&mut self) -> rustix::io::Result<()> {
        if self.taken == 0 {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let bin = rustix::fs::openat(&self.store, MOUNTED, flags, Mode::empty())?;
        // It has no path but this.
        rustix::process::fchdir(&bin)?;
        let unmounted = unmount(".", UnmountFlags::DETACH);
        rustix::process::chdir("/")?;
        unmounted?;
        self.taken = 0;
        Ok(())
    }
}

/// Whether there was nothing to be taken away.
pub(super) fn nothing_there(errno: Errno) -> bool {
    errno == Errno::INVAL
}
