//! The index rebuilt from the directory: one `stat` per file, nothing is read. A file whose size is
//! not the one in its name was being written when the process was killed, and goes. What is no blob
//! of ours goes as well, with a line in the log: a regular file to the quarantine, anything else for good.
//!
//! The order of last use is not written down: a blob counts as used when its inode last changed
//! (it was created, adopted, or linked into an input root) or was read, as far as the mount keeps
//! access times.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, Mode, Stat};
use rustix::process::{Gid, Uid};

use super::index::{Index, Slot};
use super::layout::Layout;
use super::names::{self, Kind};
use super::quarantine::Quarantine;
use super::{CasError, clear, disk};
use crate::reapi::DigestFunction;

/// What opening a store found besides blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Files cut short.
    pub(super) truncated: u64,
    /// Things that are no blobs.
    pub(super) strays: u64,
}

/// Reads the directories into a new index.
pub(super) fn scan(layout: &Layout, quarantine: &Quarantine) -> Result<(Index, Found), CasError> {
    let mut scan = Scan {
        layout,
        quarantine,
        now: now(),
        index: Index::new(),
        uses: Vec::new(),
        found: Found::default(),
    };
    // Trusted files first: next to them an unverified file of the same blob is of no use.
    for unverified in [false, true] {
        for function in DigestFunction::ALL {
            scan.function(function, unverified)
                .map_err(|e| disk("list", layout.root.join(function.name()).display(), e))?;
        }
    }
    let Scan {
        mut index,
        mut uses,
        found,
        ..
    } = scan;
    uses.sort_unstable();
    for (_, slot) in uses {
        index.touch(slot);
    }
    if found != Found::default() {
        tracing::warn!(
            store = %layout.root.display(),
            truncated = found.truncated,
            strays = found.strays,
            "removed files from the blob store that were cut short or are no blobs"
        );
    }
    Ok((index, found))
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX))
}

fn nanos(seconds: i64, nanos: u64) -> i64 {
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add_unsigned(nanos)
}

/// When a file was last used, as far as its inode knows. Commands may set the access time of what
/// they leave behind, so one in the future says nothing.
#[allow(clippy::unnecessary_cast, clippy::useless_conversion)] // The widths differ between machines.
fn last_use(stat: &Stat, now: i64) -> i64 {
    let changed = nanos(stat.st_ctime as i64, stat.st_ctime_nsec as u64);
    let read = nanos(stat.st_atime as i64, stat.st_atime_nsec as u64);
    if read <= now {
        changed.max(read)
    } else {
        changed
    }
}

struct Scan<'l> {
    layout: &'l Layout,
    quarantine: &'l Quarantine,
    now: i64,
    index: Index,
    uses: Vec<(i64, Slot)>,
    found: Found,
}

impl Scan<'_> {
    fn function(
        &mut self,
        function: DigestFunction,
        unverified: bool,
    ) -> Result<(), std::io::Error> {
        let blobs = self.layout.blobs(function, unverified);
        for entry in Dir::read_from(blobs)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match shard(blobs, name) {
                Some((text, folder)) => self.shard(function, unverified, text, &folder)?,
                None => self.stray(blobs, name),
            }
        }
        Ok(())
    }

    fn shard(
        &mut self,
        function: DigestFunction,
        unverified: bool,
        shard: &str,
        folder: &OwnedFd,
    ) -> Result<(), std::io::Error> {
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let parsed = name
                .to_str()
                .ok()
                .and_then(|text| names::parse(function, shard, text));
            let Some((digest, kind)) = parsed else {
                self.stray(folder.as_fd(), name);
                continue;
            };
            let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(rustix::io::Errno::NOENT) => continue,
                Err(e) => return Err(e.into()),
            };
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                self.stray(folder.as_fd(), name);
                continue;
            }
            if u64::try_from(stat.st_size) != Ok(digest.size()) {
                self.found.truncated += 1;
                rustix::fs::unlinkat(folder, name, AtFlags::empty())?;
                continue;
            }
            if Mode::from_raw_mode(stat.st_mode) != kind.mode() || !self.layout.owns(&stat) {
                // Somebody could write to it. It may come back when it has been hashed.
                let moved = repair(folder, name, kind, self.layout.owner).and_then(|()| {
                    let to = self.layout.blobs(function, true);
                    let file = names::BlobName::new(digest, kind);
                    self.layout.in_shard(to, &file, || {
                        rustix::fs::renameat(folder, name, to, file.path())
                    })
                });
                if moved.is_err() {
                    self.stray(folder.as_fd(), name);
                    continue;
                }
                if !unverified {
                    // The scan of the unverified ones comes by there.
                    continue;
                }
            }
            let slot = self.index.find_or_insert(digest);
            let files = self.index.files(slot);
            if unverified && files.any() && !files.unverified() {
                rustix::fs::unlinkat(folder, name, AtFlags::empty())?;
                continue;
            }
            self.uses.push((last_use(&stat, self.now), slot));
            self.index
                .set_files(slot, files.with(kind).set_unverified(unverified));
        }
        Ok(())
    }

    fn stray(&mut self, folder: BorrowedFd<'_>, name: &CStr) {
        self.found.strays += 1;
        let regular = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        let gone = if regular {
            self.quarantine.take(self.layout, folder, name, "stray");
            Ok(())
        } else {
            clear::remove(folder, name)
        };
        // One line each, but not a flood of them.
        if self.found.strays <= 20 {
            tracing::warn!(
                store = %self.layout.root.display(),
                "{name:?} among the blobs is no blob: {}",
                match gone {
                    Ok(()) if regular => "moved to the quarantine".to_owned(),
                    Ok(()) => "removed".to_owned(),
                    Err(why) => format!("cannot be removed: {why}"),
                }
            );
        }
    }
}

/// Two hexadecimal digits, and really a directory.
fn shard<'n>(blobs: BorrowedFd<'_>, name: &'n CStr) -> Option<(&'n str, OwnedFd)> {
    let text = name.to_str().ok()?;
    let hex = text.len() == 2
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !hex {
        return None;
    }
    clear::open_folder(blobs, name).ok().map(|fd| (text, fd))
}

/// Gives a file the owner and the mode of a blob. Only the daemon can reach it here, so nothing
/// can take its place between the calls.
fn repair(
    folder: &OwnedFd,
    name: &CStr,
    kind: Kind,
    (user, group): (Uid, Gid),
) -> rustix::io::Result<()> {
    let not_through_links = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(folder, name, Some(user), Some(group), not_through_links)?;
    rustix::fs::chmodat(folder, name, kind.mode(), AtFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_of_change_and_access_counts_unless_it_is_in_the_future() {
        let file = tempfile::tempfile().unwrap();
        let mut stat = rustix::fs::fstat(&file).unwrap();
        for (changed, read, used) in [(100, 50, 100), (100, 150, 150), (100, 250, 100)] {
            (stat.st_ctime, stat.st_ctime_nsec) = (changed, 7);
            (stat.st_atime, stat.st_atime_nsec) = (read, 7);
            assert_eq!(
                last_use(&stat, 200 * 1_000_000_000),
                used * 1_000_000_000 + 7
            );
        }
        assert_eq!(nanos(i64::MAX, 1), i64::MAX);
    }
}
