//! Directories of a staged root: made where the tree has none, given to their owner.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, Timestamps, Uid};
use rustix::io::Errno;

use super::{DIRECTORY, InputError, failed};
use crate::beneath::{self, Links, modified};
use crate::config::Owner;
use crate::tree::{Properties, check_name, quote};

/// Bits of a tree's `unix_mode` that are put on a file: never set-user-id or set-group-id, which would
/// give whoever finds the file the owner's rights.
const MODE_BITS: u32 = 0o1777;

/// Makes `path` and what is lacking above it, each 0755 and the owner's. A directory that exists is left as it is; a
/// symbolic link on the way is followed as long as it stays below the root.
pub(super) fn make(root: &OwnedFd, path: &str, owner: Option<Owner>) -> Result<(), InputError> {
    if path.is_empty() {
        return Ok(());
    }
    let refused = |why: String| InputError::Directory {
        path: quote::path(path),
        why,
    };
    for name in path.split('/') {
        check_name(name).map_err(|why| refused(format!("{} {why}", quote::name(name))))?;
    }
    let ends: Vec<usize> = path
        .match_indices('/')
        .map(|(at, _)| at)
        .chain([path.len()])
        .collect();
    let mut made = ends.len();
    let mut at = loop {
        let prefix = made.checked_sub(1).map_or("", |last| &path[..ends[last]]);
        match enter(root, prefix) {
            Ok(fd) => break fd,
            Err(Errno::NOENT) if made > 0 => made -= 1,
            Err(error) => return Err(refused(obstacle(root, path, &ends, error))),
        }
    };
    for end in &ends[made..] {
        let prefix = &path[..*end];
        let name = prefix.rsplit('/').next().unwrap_or(prefix);
        match rustix::fs::mkdirat(&at, name, Mode::RWXU) {
            Ok(()) => {}
            // It did not exist a moment ago, for whoever follows links.
            Err(Errno::EXIST) => {
                let shown = quote::path(prefix);
                return Err(refused(format!(
                    "{shown} is a symbolic link that leads nowhere"
                )));
            }
            Err(error) => return Err(failed("create directory", prefix)(error)),
        }
        at = rustix::fs::openat(&at, name, DIRECTORY, Mode::empty())
            .map_err(failed("open directory", prefix))?;
        give(&at, owner, prefix)?;
    }
    Ok(())
}

fn enter(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    beneath::open(root, path, OFlags::PATH | OFlags::DIRECTORY, Links::Inside)
}

/// Finds the entry on the way that is in the way.
fn obstacle(root: &OwnedFd, path: &str, ends: &[usize], error: Errno) -> String {
    let stopped = ends
        .iter()
        .find(|end| enter(root, &path[..**end]).is_err_and(|e| e != Errno::NOENT));
    let shown = quote::path(stopped.map_or(path, |end| &path[..*end]));
    match error {
        Errno::NOTDIR => format!("{shown} is not a directory in the input tree"),
        Errno::XDEV => format!("{shown} is a symbolic link that leads out of the input root"),
        Errno::LOOP => format!("{shown} is a symbolic link that leads to itself"),
        other => format!("{shown}: {other}"),
    }
}

/// Opens a directory of the tree itself, through no link.
pub(super) fn open(root: &OwnedFd, path: &str) -> Result<OwnedFd, InputError> {
    beneath::open(root, path, DIRECTORY, Links::Refused).map_err(failed("open directory", path))
}

/// Gives a directory to the owner, mode 0755.
pub(super) fn give(fd: &OwnedFd, owner: Option<Owner>, path: &str) -> Result<(), InputError> {
    chown(fd, owner).map_err(failed("change the owner of", path))?;
    let mode = Mode::from_raw_mode(0o755);
    rustix::fs::fchmod(fd, mode).map_err(failed("set the mode of", path))
}

/// Puts the mode and time on a directory that its message asks for.
pub(super) fn adorn(fd: &OwnedFd, path: &str, properties: &Properties) -> Result<(), InputError> {
    if let Some(mode) = mode(properties) {
        rustix::fs::fchmod(fd, mode).map_err(failed("set the mode of", path))?;
    }
    match times(properties) {
        Some(times) => {
            rustix::fs::futimens(fd, &times).map_err(failed("set the modification time of", path))
        }
        None => Ok(()),
    }
}

pub(super) fn chown(fd: impl AsFd, owner: Option<Owner>) -> rustix::io::Result<()> {
    let Some((uid, gid)) = ids(owner) else {
        return Ok(());
    };
    rustix::fs::fchown(fd, Some(uid), Some(gid))
}

pub(super) fn ids(owner: Option<Owner>) -> Option<(Uid, Gid)> {
    owner.map(|owner| (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid)))
}

pub(super) fn mode(properties: &Properties) -> Option<Mode> {
    let mode = properties.unix_mode?;
    Some(Mode::from_raw_mode(mode & MODE_BITS))
}

pub(super) fn times(properties: &Properties) -> Option<Timestamps> {
    let mtime = properties.mtime?;
    Some(modified(mtime.seconds, mtime.nanos.into()))
}
