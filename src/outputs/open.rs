//! Opening what was looked at: beneath the root, without following links, and with the permissions that the command took away from
//! its own files.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::look::unreachable;
use super::{OutputError, failed, refused};
use crate::beneath::{self, Links};

/// Opens a directory below the root to list it.
pub(super) fn directory(root: &OwnedFd, path: &str) -> Result<OwnedFd, OutputError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let open = |flags| beneath::open(root, path, flags, Links::Refused);
    open(flags)
        .or_else(|error| match error {
            // As root this does not happen; else the command is the same user, and this its directory.
            Errno::ACCESS => {
                let found = open(OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
                beneath::regain(&found, Mode::RWXU)?;
                open(flags)
            }
            error => Err(error),
        })
        .map_err(|error| unreachable(error, path))
}

/// An open file.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) stat: Stat,
    /// The same as the command left it, if it had to be made readable since.
    pub(super) left: Option<Stat>,
}

/// Opens a file. One that was looked at must be the same.
pub(super) fn file(
    directory: &OwnedFd,
    name: &str,
    path: &str,
    looked_at: Option<&Stat>,
) -> Result<Opened, OutputError> {
    let mut left = None;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    // The time of the last access would be written to the journal, for each file that is hashed.
    let file = beneath::entry(directory, name, flags | OFlags::NOATIME)
        .or_else(|error| match error {
            // For the owner and root only.
            Errno::PERM => beneath::entry(directory, name, flags),
            error => Err(error),
        })
        .or_else(|error| match error {
            Errno::ACCESS => {
                let found = beneath::entry(directory, name, OFlags::PATH | OFlags::NOFOLLOW)?;
                let stat = rustix::fs::fstat(&found)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(error);
                }
                let mode = Mode::from_raw_mode(stat.st_mode & 0o777) | Mode::RUSR;
                beneath::regain(&found, mode)?;
                left = Some(stat);
                beneath::entry(directory, name, flags)
            }
            error => Err(error),
        })
        .map_err(|error| unreachable(error, path))?;
    let stat = rustix::fs::fstat(&file).map_err(failed("look at", path))?;
    let same = looked_at.is_none_or(|looked_at| id(&stat) == id(looked_at));
    if !same || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused(path, "changed while it was collected"));
    }
    let file = file.into();
    Ok(Opened { file, stat, left })
}

/// Makes a directory of ours usable again that the command made read-only: files are moved out of it.
pub(super) fn up(directory: &OwnedFd, stat: &Stat) {
    if stat.st_mode & 0o700 != 0o700 {
        // If it is not ours, taking over a file in it fails, and says so.
        let _ = beneath::regain(directory, Mode::RWXU);
    }
}

/// What tells a file from all others.
pub(super) fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}
