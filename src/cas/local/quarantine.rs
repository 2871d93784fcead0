//! Files that are not what their name says, kept for a look at what went wrong: at most
//! [`MOST_FILES`] and [`MOST_BYTES`], the oldest go first.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::os::fd::AsFd;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir};

use super::files::disk_size;
use super::layout::Layout;
use super::{CasError, clear, disk};

const MOST_FILES: usize = 256;
const MOST_BYTES: u64 = 64 << 20;

/// What is in the directory, in the order in which it came.
pub(super) struct Quarantine {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    files: VecDeque<(String, u64)>,
    bytes: u64,
    next: u64,
}

impl Quarantine {
    pub(super) fn open(layout: &Layout) -> Result<Self, CasError> {
        let listed = (|| {
            let mut files = Vec::new();
            for entry in Dir::read_from(&layout.quarantine)? {
                let entry = entry?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                let number = name
                    .to_str()
                    .ok()
                    .and_then(|text| Some((text, text.split_once('-')?.0.parse::<u64>().ok()?)));
                match number {
                    Some((text, number)) => {
                        let stat = rustix::fs::statat(
                            &layout.quarantine,
                            name,
                            AtFlags::SYMLINK_NOFOLLOW,
                        )?;
                        let size = disk_size(u64::try_from(stat.st_size).unwrap_or(0));
                        files.push((number, text.to_owned(), size));
                    }
                    None => {
                        let _ = clear::remove(&layout.quarantine, name);
                    }
                }
            }
            Ok(files)
        })();
        let mut files: Vec<_> = listed.map_err(|e: rustix::io::Errno| {
            disk("list", layout.root.join("quarantine").display(), e)
        })?;
        files.sort_unstable();
        Ok(Quarantine {
            kept: Mutex::new(Kept {
                bytes: files.iter().map(|(_, _, size)| size).sum(),
                next: files.last().map_or(0, |(number, _, _)| number + 1),
                files: files
                    .into_iter()
                    .map(|(_, name, size)| (name, size))
                    .collect(),
            }),
        })
    }

    /// Moves a file in, or removes it if it is too large to keep. Afterwards it is not in `folder`
    /// any more, as far as the file system lets go of it.
    pub(super) fn take(&self, layout: &Layout, folder: impl AsFd, name: &CStr, why: &str) {
        let size = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).map_or(0, |stat| {
            disk_size(u64::try_from(stat.st_size).unwrap_or(0))
        });
        if size > MOST_BYTES {
            let _ = rustix::fs::unlinkat(&folder, name, AtFlags::empty());
            return;
        }
        let (kept_as, surplus) = {
            let mut kept = self.kept.lock();
            // The name may be anything: a stray file's own.
            let text: String = name
                .to_string_lossy()
                .chars()
                .filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c))
                .take(100)
                .collect();
            let kept_as = format!("{:08}-{why}-{text}", kept.next);
            kept.next += 1;
            kept.files.push_back((kept_as.clone(), size));
            kept.bytes += size;
            let mut surplus = Vec::new();
            while kept.files.len() > MOST_FILES || kept.bytes > MOST_BYTES {
                let Some((oldest, size)) = kept.files.pop_front() else {
                    break;
                };
                kept.bytes -= size;
                surplus.push(oldest);
            }
            (kept_as, surplus)
        };
        if rustix::fs::renameat(&folder, name, &layout.quarantine, kept_as.as_str()).is_err() {
            let _ = rustix::fs::unlinkat(&folder, name, AtFlags::empty());
        }
        for name in surplus {
            let _ = rustix::fs::unlinkat(&layout.quarantine, name.as_str(), AtFlags::empty());
        }
    }
}
