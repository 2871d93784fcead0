//! Emptying a directory that untrusted commands may have filled: links are never followed, mounts
//! never entered, directories without permissions are opened up, and nesting of any depth takes a
//! bounded number of descriptors.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

/// Directories nested deeper than this are first moved up to the top.
const DEEPEST: usize = 16;

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What could not be removed.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// How many entries.
    pub(super) entries: u64,
    /// One of them, with the reason.
    pub(super) example: Option<(String, Errno)>,
}

/// Opens a directory right below `dir`; refuses links and mount points.
pub(super) fn open_folder(dir: impl AsFd, name: &CStr) -> Result<OwnedFd> {
    let dir = dir.as_fd();
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    match rustix::fs::openat2(dir, name, FOLDER, Mode::empty(), resolve) {
        // An old kernel, or a container that forbids the call: a bind mount of the same file
        // system goes unnoticed then, any other is seen by its device.
        Err(Errno::NOSYS | Errno::PERM) => {
            let folder = rustix::fs::openat(dir, name, FOLDER, Mode::empty())?;
            if rustix::fs::fstat(&folder)?.st_dev != rustix::fs::fstat(dir)?.st_dev {
                return Err(Errno::XDEV);
            }
            Ok(folder)
        }
        other => other,
    }
}

/// Removes everything in `top`, as far as it goes.
pub(super) fn empty(top: impl AsFd) -> Result<Left> {
    let mut sweep = Sweep {
        top: top.as_fd(),
        moved: 0,
        left: Left::default(),
    };
    sweep.folder(top.as_fd(), 0)?;
    Ok(sweep.left)
}

/// Removes whatever `name` is.
pub(super) fn remove(dir: impl AsFd, name: &CStr) -> Result<()> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    let folder = open_folder(&dir, name)?;
    empty(&folder)?;
    rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)
}

struct Sweep<'t> {
    top: BorrowedFd<'t>,
    moved: u64,
    left: Left,
}

impl Sweep<'_> {
    /// Passes over the directory until a pass removes nothing: entries may be skipped by a listing
    /// that is changed under way, and deep directories arrive at the top meanwhile.
    fn folder(&mut self, folder: BorrowedFd<'_>, depth: usize) -> Result<()> {
        loop {
            let mut progress = false;
            let mut left = Left::default();
            for entry in Dir::read_from(folder)? {
                let entry = entry?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                match self.entry(folder, name, entry.file_type(), depth) {
                    Ok(()) | Err(Errno::NOENT) => progress = true,
                    Err(why) => {
                        left.entries += 1;
                        left.example
                            .get_or_insert_with(|| (name.to_string_lossy().into_owned(), why));
                    }
                }
            }
            if !progress {
                self.left.entries += left.entries;
                if self.left.example.is_none() {
                    self.left.example = left.example;
                }
                return Ok(());
            }
        }
    }

    fn entry(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        kind: FileType,
        depth: usize,
    ) -> Result<()> {
        if kind != FileType::Directory {
            match writable(folder, || {
                rustix::fs::unlinkat(folder, name, AtFlags::empty())
            }) {
                // The listing did not tell, or told wrongly, that it is a directory.
                Err(Errno::ISDIR | Errno::PERM) => {}
                other => return other,
            }
        }
        let inner = match open_folder(folder, name) {
            // No link can stand here: the listing said directory, and nobody else is left to
            // change that.
            Err(Errno::ACCESS) => {
                rustix::fs::chmodat(folder, name, Mode::RWXU, AtFlags::empty())?;
                open_folder(folder, name)?
            }
            other => other?,
        };
        if depth >= DEEPEST {
            let up = loop {
                let up = format!("deep-{}", self.moved);
                self.moved += 1;
                match rustix::fs::statat(self.top, up.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => break up,
                    _ => continue,
                }
            };
            // To change its `..`, a directory itself must be writable.
            return writable(inner.as_fd(), || {
                writable(folder, || {
                    rustix::fs::renameat(folder, name, self.top, up.as_str())
                })
            });
        }
        self.folder(inner.as_fd(), depth + 1)?;
        writable(folder, || {
            rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)
        })
    }
}

/// Tries again with the directory made writable.
fn writable(folder: BorrowedFd<'_>, change: impl Fn() -> Result<()>) -> Result<()> {
    match change() {
        Err(Errno::ACCESS) => {
            rustix::fs::fchmod(folder, Mode::RWXU)?;
            change()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn links_are_removed_and_their_targets_stay() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "kept").unwrap();
        let top = tempfile::tempdir().unwrap();
        symlink(outside.path(), top.path().join("link")).unwrap();
        fs::create_dir_all(top.path().join("a/b")).unwrap();
        symlink(outside.path(), top.path().join("a/b/link")).unwrap();
        fs::write(top.path().join("a/b/file"), "x").unwrap();
        for (path, mode) in [("a/b", 0o500), ("a", 0o000)] {
            fs::set_permissions(top.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        let left = empty(fs::File::open(top.path()).unwrap()).unwrap();
        assert_eq!(left.entries, 0, "{left:?}");
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 0);
        assert_eq!(fs::read(outside.path().join("kept")).unwrap(), b"kept");
    }

    #[test]
    fn no_depth_and_no_breadth_is_too_much() {
        let top = tempfile::tempdir().unwrap();
        let mut folder = OwnedFd::from(fs::File::open(top.path()).unwrap());
        // Names that the moved directories would like to have.
        for n in 0..40 {
            fs::write(top.path().join(format!("deep-{n}")), "").unwrap();
        }
        for n in 0..3000 {
            rustix::fs::mkdirat(&folder, c"nested", Mode::RWXU).unwrap();
            let inner = open_folder(&folder, c"nested").unwrap();
            rustix::fs::symlinkat(c"/", &folder, c"link").unwrap();
            if n % 3 == 0 && n > 0 {
                rustix::fs::fchmod(&folder, Mode::RUSR | Mode::XUSR).unwrap();
            }
            folder = inner;
        }
        for n in 0..3000 {
            fs::create_dir(top.path().join(format!("wide{n}"))).unwrap();
        }
        let left = empty(fs::File::open(top.path()).unwrap()).unwrap();
        assert_eq!(left.entries, 0, "{left:?}");
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 0);
    }
}
