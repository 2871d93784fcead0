//! One file or link of a staged root.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{InputError, Place, directories, failed};
use crate::config::Owner;
use crate::reapi::status::MissingBlob;
use crate::tree::{File, Properties, Symlink, quote};

pub(super) struct Placer<'p> {
    place: &'p Place,
    owner: Option<Owner>,
    /// Blobs may be hard-linked: the action's user cannot write them.
    link: bool,
    missing: Vec<MissingBlob>,
}

impl<'p> Placer<'p> {
    pub(super) fn new(place: &'p Place, owner: Option<Owner>) -> Self {
        let own = rustix::process::geteuid().as_raw();
        Placer {
            place,
            owner,
            link: owner.is_some_and(|owner| owner.uid != own),
            missing: Vec::new(),
        }
    }

    /// Reports what was missing, all of it.
    pub(super) fn finish(self) -> Result<(), InputError> {
        if self.missing.is_empty() {
            Ok(())
        } else {
            Err(InputError::Missing(self.missing))
        }
    }

    /// Makes `file` in `directory`, which is at `parent`.
    pub(super) fn file(
        &mut self,
        directory: &OwnedFd,
        parent: &str,
        file: &File,
    ) -> Result<(), InputError> {
        let kind = Mode::from_raw_mode(if file.executable { 0o555 } else { 0o444 });
        let properties = file.properties.as_deref();
        let mode = properties.and_then(directories::mode).unwrap_or(kind);
        if file.digest.is_empty() {
            // An inode of its own is as cheap as a link, and never has too many links.
            return self
                .copy(directory, file, None, mode)
                .map_err(|error| named(error, parent, &file.name));
        }
        let store = self.place.cas.local();
        let Some(source) = store.path(file.digest, file.executable)? else {
            let path = join(parent, &file.name);
            self.missing.push(MissingBlob {
                digest: file.digest,
                what: format!("input file {}", quote::path(&path)),
            });
            return Ok(());
        };
        // A mode or time of its own needs an inode of its own.
        let plain = mode == kind && properties.is_none_or(|p| p.mtime.is_none());
        if self.link && plain {
            match rustix::fs::linkat(CWD, &source, directory, &*file.name, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                // Too many links, another file system, or one that has no links: a copy does.
                Err(Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(error) => {
                    return Err(failed("link", &join(parent, &file.name))(error));
                }
            }
        }
        self.copy(directory, file, Some(&source), mode)
            .map_err(|error| named(error, parent, &file.name))
    }

    fn copy(
        &self,
        directory: &OwnedFd,
        file: &File,
        source: Option<&Path>,
        mode: Mode,
    ) -> Result<(), (&'static str, Errno)> {
        let step = |action| move |error| (action, error);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(directory, &*file.name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(step("create"))?;
        if let Some(source) = source {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let from = rustix::fs::openat(CWD, source, flags, Mode::empty())
                .map_err(step("open the blob of"))?;
            self.fill(&from, &to, file.digest.size())
                .map_err(step("copy"))?;
        }
        directories::chown(&to, self.owner).map_err(step("change the owner of"))?;
        rustix::fs::fchmod(&to, mode).map_err(step("set the mode of"))?;
        if let Some(times) = file.properties.as_deref().and_then(directories::times) {
            rustix::fs::futimens(&to, &times).map_err(step("set the modification time of"))?;
        }
        Ok(())
    }

    /// Clones the whole file if the file system can, else has the kernel copy it.
    fn fill(&self, from: &OwnedFd, to: &OwnedFd, size: u64) -> rustix::io::Result<()> {
        let clones = &self.place.clones;
        if clones.load(Ordering::Relaxed) {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(()),
                // ext4 and many others never can, whatever the file.
                Err(_) => clones.store(false, Ordering::Relaxed),
            }
        }
        let mut left = size;
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(1 << 30);
            match rustix::fs::copy_file_range(from, None, to, None, length) {
                Ok(0) => return Err(Errno::IO),
                Ok(copied) => left = left.saturating_sub(copied as u64),
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    return by_hand(from, to, left);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes a link in `directory`, which is at `parent`, as it is in the tree; where it leads is the action's matter.
    pub(super) fn symlink(
        &mut self,
        directory: &OwnedFd,
        parent: &str,
        link: &Symlink,
    ) -> Result<(), InputError> {
        let path = || join(parent, &link.name);
        rustix::fs::symlinkat(&*link.target, directory, &*link.name)
            .map_err(|e| failed("create symbolic link", &path())(e))?;
        if let Some((uid, gid)) = directories::ids(self.owner) {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(directory, &*link.name, Some(uid), Some(gid), flags)
                .map_err(|e| failed("change the owner of", &path())(e))?;
        }
        let properties: Option<&Properties> = link.properties.as_deref();
        if let Some(times) = properties.and_then(directories::times) {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(directory, &*link.name, &times, flags)
                .map_err(|e| failed("set the modification time of", &path())(e))?;
        }
        Ok(())
    }
}

fn by_hand(from: impl AsFd, to: impl AsFd, mut left: u64) -> rustix::io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    while left > 0 {
        let mut rest = match rustix::io::read(&from, &mut buffer) {
            Ok(0) => return Err(Errno::IO),
            Ok(read) => &buffer[..read],
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        left = left.saturating_sub(rest.len() as u64);
        while !rest.is_empty() {
            match rustix::io::write(&to, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn named((action, error): (&'static str, Errno), parent: &str, name: &str) -> InputError {
    failed(action, &join(parent, name))(error)
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}/{name}")
    }
}
