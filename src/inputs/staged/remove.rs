//! Removing what an action left behind, however it left it: unreadable directories, links to
//! anywhere, ten thousand levels. Everything is unlinked relative to the directory that it is in, no
//! link is followed and no mount entered. The memory that it takes does not grow with what is there: what is
//! deeper than some levels is moved up to the top first.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, SeekFrom};
use rustix::io::Errno;
use rustix::path::Arg;

use super::{DIRECTORY, InputError, failed};
use crate::beneath;
use crate::tree::quote;

/// Levels that are cleared by recursion.
const LEVELS: usize = 32;
const BUFFER: usize = 16 << 10;

/// Removes the directory `name` in `parent` with all below it; that it is gone already is no error.
pub(in crate::inputs) fn directory(parent: &OwnedFd, name: &str) -> Result<(), InputError> {
    let top = match enter(parent, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed("open", name)(error)),
    };
    contents(&top)?;
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(failed("remove", name))
}

/// Empties a directory. What can be removed is removed, even if something else cannot; the first failure is reported.
pub(in crate::inputs) fn contents(top: &OwnedFd) -> Result<(), InputError> {
    let mut clearing = Clearing {
        top,
        buried: 0,
        failure: None,
    };
    loop {
        let before = clearing.buried;
        clearing.clear(top, 0);
        if clearing.buried == before {
            break;
        }
    }
    match clearing.failure {
        None => Ok(()),
        Some((action, name, error)) => Err(InputError::Disk {
            action,
            object: name,
            source: error.into(),
        }),
    }
}

struct Clearing<'a> {
    top: &'a OwnedFd,
    /// Directories that were moved to the top so far.
    buried: u64,
    failure: Option<(&'static str, String, Errno)>,
}

impl Clearing<'_> {
    fn clear(&mut self, at: &OwnedFd, level: usize) {
        if let Err(error) = rustix::fs::seek(at, SeekFrom::Start(0)) {
            return self.failed("list", c".", error);
        }
        let mut buffer = Vec::with_capacity(BUFFER);
        let mut entries = RawDir::new(at, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return self.failed("list", c".", error),
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if entry.file_type() != FileType::Directory {
                match insist(at, || rustix::fs::unlinkat(at, name, AtFlags::empty())) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    // The file system does not tell types in its listings.
                    Err(Errno::ISDIR) => {}
                    Err(error) => {
                        self.failed("remove", name, error);
                        continue;
                    }
                }
            }
            self.subdirectory(at, name, level);
        }
    }

    fn subdirectory(&mut self, at: &OwnedFd, name: &CStr, level: usize) {
        let remove = || rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR);
        if level + 1 >= LEVELS {
            match insist(at, remove) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => self.bury(at, name),
                Err(error) => self.failed("remove", name, error),
            }
            return;
        }
        let child = insist(at, || open(at, name)).or_else(|_| enter(at, name));
        match child {
            Ok(child) => self.clear(&child, level + 1),
            Err(Errno::NOENT) => return,
            Err(error) => return self.failed("open", name, error),
        }
        match insist(at, remove) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => self.failed("remove", name, error),
        }
    }

    /// Moves a directory to the top, to be cleared from there.
    fn bury(&mut self, at: &OwnedFd, name: &CStr) {
        let mut regained = false;
        loop {
            self.buried += 1;
            let grave = format!(".buried-{}", self.buried);
            let bury =
                || rustix::fs::renameat_with(at, name, self.top, &grave, RenameFlags::NOREPLACE);
            match insist(at, bury) {
                Ok(()) => return,
                Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                // Moving a directory changes its `..`, so it must be writable itself.
                Err(Errno::ACCESS) if !regained => {
                    regained = true;
                    if let Err(error) = regain(at, name) {
                        return self.failed("move", name, error);
                    }
                }
                Err(error) => return self.failed("move", name, error),
            }
        }
    }

    fn failed(&mut self, action: &'static str, name: &CStr, error: Errno) {
        if self.failure.is_none() {
            self.failure = Some((action, quote::bytes(name.to_bytes()), error));
        }
    }
}

fn open(at: &OwnedFd, name: impl Arg + Copy) -> rustix::io::Result<OwnedFd> {
    beneath::entry(at, name, DIRECTORY)
}

/// Opens a directory, with access to it regained if the action took it away.
fn enter(at: &OwnedFd, name: impl Arg + Copy) -> rustix::io::Result<OwnedFd> {
    match open(at, name) {
        Err(Errno::ACCESS) => {
            regain(at, name)?;
            open(at, name)
        }
        result => result,
    }
}

/// Tries again with access to the directory regained, if the action took it away. Only the owner can, and needs to.
fn insist<T>(at: &OwnedFd, operation: impl Fn() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    match operation() {
        Err(Errno::ACCESS) => {
            rustix::fs::fchmod(at, Mode::RWXU)?;
            operation()
        }
        result => result,
    }
}

/// Regains access to a directory that cannot be opened as it is.
fn regain(at: &OwnedFd, name: impl Arg + Copy) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    beneath::regain(&beneath::entry(at, name, flags)?, Mode::RWXU)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    fn dir(path: &Path) -> OwnedFd {
        rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn removes_ten_thousand_levels() {
        // In memory where there is such a place: this is about depth, not about a disk.
        let memory = Path::new("/dev/shm");
        let base = match memory.is_dir() {
            true => tempfile::tempdir_in(memory).unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(base.path().join("root")).unwrap();
        let mut at = dir(&base.path().join("root"));
        // Names that are in the way of those that the removal makes.
        for n in 0..3 {
            rustix::fs::mkdirat(&at, format!(".buried-{n}"), Mode::RWXU).unwrap();
        }
        for _ in 0..10_000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open(&at, "d").unwrap();
        }
        rustix::fs::mkdirat(&at, "last", Mode::RWXU).unwrap();
        directory(&dir(base.path()), "root").unwrap();
        assert!(!base.path().join("root").exists());
        directory(&dir(base.path()), "root").unwrap();
    }

    #[test]
    fn leaves_alone_what_links_point_at() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("root");
        let outside = base.path().join("outside");
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(outside.join("file"), "kept").unwrap();
        symlink(&outside, root.join("a/link")).unwrap();
        symlink(&root, root.join("a/cycle")).unwrap();
        std::fs::hard_link(outside.join("file"), root.join("hard")).unwrap();
        rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        directory(&dir(base.path()), "root").unwrap();
        assert!(!root.exists());
        assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"kept");
    }

    #[test]
    fn regains_what_was_made_inaccessible() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("root");
        for name in ["none", "unreadable", "unwritable"] {
            std::fs::create_dir_all(root.join(name).join("below")).unwrap();
            std::fs::write(root.join(name).join("below/file"), "").unwrap();
        }
        for (name, mode) in [
            ("none/below", 0),
            ("none", 0),
            ("unreadable", 0o300),
            ("unwritable", 0o500),
        ] {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(root.join(name), mode).unwrap();
        }
        directory(&dir(base.path()), "root").unwrap();
        assert!(!root.exists());
    }
}
