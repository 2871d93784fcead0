//! The directory that is written into. Every directory on the way to a file is opened without
//! following links, so that neither a link that a server made nor one that was there leads out.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, renameat, symlinkat, unlinkat};
use rustix::io::Errno;

use crate::cli::blobs::unwritable;
use crate::cli::exit::{Exit, Failure};

/// The directory.
pub(super) struct Destination {
    root: OwnedFd,
    path: PathBuf,
    names: AtomicU64,
    given_up: AtomicBool,
}

/// What is copied without a look at whether it is still wanted.
const PIECE: u64 = 64 << 20;
const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::CLOEXEC)
    .union(OFlags::RDONLY);

impl Destination {
    /// Opens it, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(path).map_err(|e| unwritable(path, &e))?;
        let root =
            openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|e| unwritable(path, &e.into()))?;
        Ok(Destination {
            root,
            path: path.to_owned(),
            names: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
        })
    }

    /// No file appears from now on, and the threads that write soon end.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    fn wanted(&self, path: &str) -> Result<(), Failure> {
        match self.given_up.load(Ordering::Relaxed) {
            true => Err(self.failed(path, io::ErrorKind::Interrupted.into())),
            false => Ok(()),
        }
    }

    /// Makes sure of a directory.
    pub(super) fn directory(&self, path: &str) -> Result<(), Failure> {
        self.descend(path).map(drop)
    }

    /// A file whose content is in memory.
    pub(super) fn whole(&self, path: &str, data: &[u8], executable: bool) -> Result<(), Failure> {
        let mut file = self.begin(path, executable)?;
        file.write(data)?;
        file.finish()
    }

    /// A second file with the content of one that was just written.
    pub(super) fn copy(&self, from: &str, to: &str, executable: bool) -> Result<(), Failure> {
        let (parent, name) = self.parent(from)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let original =
            openat(&parent, name, flags, Mode::empty()).map_err(|e| self.failed(from, e.into()))?;
        let mut file = self.begin(to, executable)?;
        let original = File::from(original);
        loop {
            self.wanted(to)?;
            let piece = io::copy(&mut (&original).take(PIECE), &mut file.file);
            if piece.map_err(|e| self.failed(to, e))? == 0 {
                return file.finish();
            }
        }
    }

    /// A symbolic link, in place of a file or link that is there.
    pub(super) fn link(&self, path: &str, target: &str) -> Result<(), Failure> {
        let (parent, name) = self.parent(path)?;
        let temporary = self.temporary();
        symlinkat(target, &parent, &temporary).map_err(|e| self.failed(path, e.into()))?;
        renameat(&parent, &temporary, &parent, name).map_err(|e| {
            let _ = unlinkat(&parent, &temporary, AtFlags::empty());
            self.failed(path, e.into())
        })
    }

    /// A file that comes in pieces.
    pub(super) fn begin<'a>(
        &'a self,
        path: &'a str,
        executable: bool,
    ) -> Result<NewFile<'a>, Failure> {
        self.wanted(path)?;
        let (parent, name) = self.parent(path)?;
        let temporary = self.temporary();
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // The user's mask takes away from this, as from any file that is made.
        let mode = Mode::from_raw_mode(if executable { 0o777 } else { 0o666 });
        let file =
            openat(&parent, &temporary, flags, mode).map_err(|e| self.failed(path, e.into()))?;
        Ok(NewFile {
            destination: self,
            path,
            name,
            parent,
            temporary: Some(temporary),
            file: file.into(),
        })
    }

    fn temporary(&self) -> String {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        format!(".boxwright-{}-{number}", std::process::id())
    }

    fn parent<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str), Failure> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.descend(parent)?, name))
    }

    fn descend(&self, path: &str) -> Result<OwnedFd, Failure> {
        let mut at = self.root.try_clone().map_err(|e| self.failed(path, e))?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            match mkdirat(&at, name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(self.failed(path, e.into())),
            }
            at = openat(&at, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(|e| match e {
                Errno::LOOP | Errno::NOTDIR => Failure::new(
                    Exit::CannotCreate,
                    format!(
                        "cannot write {}: {name:?} on the way is not a directory (links are not followed); \
                         remove it or write elsewhere",
                        self.path.join(path).display()
                    ),
                ),
                e => self.failed(path, e.into()),
            })?;
        }
        Ok(at)
    }

    fn failed(&self, path: &str, error: io::Error) -> Failure {
        unwritable(&self.path.join(path), &error)
    }
}

/// A file that has no name of its own yet; dropped before `finish`, it is gone.
pub(super) struct NewFile<'a> {
    destination: &'a Destination,
    path: &'a str,
    name: &'a str,
    parent: OwnedFd,
    temporary: Option<String>,
    file: File,
}

impl NewFile<'_> {
    /// Appends.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.file
            .write_all(data)
            .map_err(|e| self.destination.failed(self.path, e))
    }

    /// Gives it its name, in place of a file or link that is there.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        let Some(temporary) = self.temporary.take() else {
            return Ok(());
        };
        renameat(&self.parent, &temporary, &self.parent, self.name).map_err(|e| {
            let _ = unlinkat(&self.parent, &temporary, AtFlags::empty());
            self.destination.failed(self.path, e.into())
        })
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = unlinkat(&self.parent, temporary, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn files_appear_whole_with_their_bits() {
        let dir = tempfile::tempdir().unwrap();
        let target = Destination::open(&dir.path().join("made/here")).unwrap();
        target.whole("a/b/tool", b"#!", true).unwrap();
        target.copy("a/b/tool", "a/text", false).unwrap();
        target.link("a/link", "b/tool").unwrap();
        target.link("a/link", "text").unwrap();
        let mode = |path: &str| {
            let path = dir.path().join("made/here").join(path);
            path.symlink_metadata().unwrap().permissions().mode() & 0o111
        };
        assert_eq!((mode("a/b/tool") != 0, mode("a/text")), (true, 0));
        assert_eq!(
            std::fs::read_link(dir.path().join("made/here/a/link")).unwrap(),
            Path::new("text")
        );
        drop(target.begin("a/half", false).unwrap());
        let names: Vec<_> = std::fs::read_dir(dir.path().join("made/here/a"))
            .unwrap()
            .collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }

    #[test]
    fn what_was_given_up_leaves_no_files() {
        let dir = tempfile::tempdir().unwrap();
        let target = Destination::open(dir.path()).unwrap();
        target.whole("a", b"whole", false).unwrap();
        target.give_up();
        assert!(target.whole("b", b"never", false).is_err());
        assert!(target.copy("a", "c", false).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        symlink(&outside, inside.join("door")).unwrap();
        symlink(outside.join("victim"), inside.join("file")).unwrap();
        let target = Destination::open(&inside).unwrap();
        let error = target.whole("door/x", b"x", false).unwrap_err();
        assert!(error.text.contains("door"), "{}", error.text);
        assert!(target.directory("door/d").is_err());
        target.whole("file", b"new", false).unwrap();
        assert_eq!(std::fs::read(inside.join("file")).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
}
