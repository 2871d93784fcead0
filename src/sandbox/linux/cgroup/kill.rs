//! Ending every process of a group. The second version of cgroups does it in one write. The first has no such thing: there the
//! group is frozen, so that no fork outruns us, and each process is killed through a pidfd, so that no reused number is.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::error::{CgroupError, failed};
use super::knob::write;

/// The processes of a group that are not dead, without those of groups below it. One that our PID namespace does not show
/// is 0.
pub(super) fn processes(dir: &Path) -> Result<Vec<i32>, CgroupError> {
    let path = dir.join("cgroup.procs");
    let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Whether a process of the group, or of one below it on the second version, is not dead.
pub(super) fn populated(dir: &Path) -> Result<bool, CgroupError> {
    // Its processes alone would be enough on a leaf, but the kernel makes that list; this is a flag.
    match fs::read_to_string(dir.join("cgroup.events")) {
        Ok(events) => Ok(events.lines().any(|line| line == "populated 1")),
        Err(_) => Ok(!processes(dir)?.is_empty()),
    }
}

/// Kills all processes of the group, and waits until they are dead.
pub(super) fn kill_all(dir: &Path, patience: Duration) -> Result<(), CgroupError> {
    let until = Instant::now() + patience;
    loop {
        if !populated(dir)? {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(CgroupError::Survivors {
                path: dir.to_owned(),
                after: patience,
            });
        }
        let kill = dir.join("cgroup.kill");
        match write(&kill, "1") {
            Ok(()) => wait_for_events(dir, until),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                wait_for(&signal_all(dir)?, until);
            }
            Err(error) => return Err(failed("write \"1\" to", &kill)(error)),
        }
    }
}

/// One round of killing one by one; gives what was hit.
fn signal_all(dir: &Path) -> Result<Vec<OwnedFd>, CgroupError> {
    let freezer = dir.join("freezer.state");
    let frozen = write(&freezer, "FROZEN").is_ok();
    let handles: Vec<(i32, OwnedFd)> = processes(dir)?
        .into_iter()
        .filter_map(|pid| {
            let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
            Some((pid, handle))
        })
        .collect();
    // A process that ended before its handle was opened may have left its number to a stranger, which is not in this list.
    let members = processes(dir)?;
    let hit = handles
        .into_iter()
        .filter(|(pid, _)| members.contains(pid))
        .map(|(_, handle)| handle)
        .collect::<Vec<_>>();
    for handle in &hit {
        // One that is gone meanwhile is what was wanted.
        let _ = pidfd_send_signal(handle, Signal::KILL);
    }
    if frozen {
        // They die when they thaw.
        write(&freezer, "THAWED").map_err(failed("write \"THAWED\" to", &freezer))?;
    }
    Ok(hit)
}

/// Waits until all of these have ended.
fn wait_for(handles: &[OwnedFd], until: Instant) {
    for handle in handles {
        wait(handle.as_fd(), PollFlags::POLLIN, until);
    }
    if handles.is_empty() {
        // Nobody that we can reach: whoever is left is on the way out, or in a PID namespace that is not ours.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until `cgroup.events` changes, a little at a time: it may have changed before we looked.
fn wait_for_events(dir: &Path, until: Instant) {
    let Ok(mut file) = fs::File::open(dir.join("cgroup.events")) else {
        return;
    };
    // A change counts from the last read.
    let mut events = String::new();
    let read = std::io::Read::read_to_string(&mut file, &mut events);
    if read.is_ok() && events.contains("populated 1") {
        let soon = Instant::now() + Duration::from_millis(100);
        wait(file.as_fd(), PollFlags::POLLPRI, until.min(soon));
    }
}

fn wait(fd: std::os::fd::BorrowedFd<'_>, flags: PollFlags, until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    // Interrupted or not: the caller looks again.
    let _ = poll(&mut [PollFd::new(fd, flags)], left);
}
