//! One file or link of a staged root.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::{InputError, Place, directories, failed};
use crate::cas::{CasError, LocalStore, disk_size};
use crate::config::Owner;
use crate::reapi::status::MissingBlob;
use crate::tree::{File, Properties, Symlink, file_mode, quote};

// Steps whose errors are told apart.
const LINK: &str = "link";
const OPEN_BLOB: &str = "open the blob of";
const COPY: &str = "copy";

pub(super) struct Placer<'p> {
    place: &'p Place,
    owner: Option<Owner>,
    /// Blobs may be hard-linked: the action's user cannot write them.
    link: bool,
    missing: Vec<MissingBlob>,
    /// Bytes of disk of files that are no links.
    copied: u64,
}

impl<'p> Placer<'p> {
    pub(super) fn new(place: &'p Place, owner: Option<Owner>) -> Self {
        let own = rustix::process::geteuid().as_raw();
        Placer {
            place,
            owner,
            link: owner.is_some_and(|owner| owner.uid != own),
            missing: Vec::new(),
            copied: 0,
        }
    }

    /// Reports what was missing, all of it; or else how many bytes of disk were taken by files that are no links.
    pub(super) fn finish(self) -> Result<u64, InputError> {
        if self.missing.is_empty() {
            Ok(self.copied)
        } else {
            Err(InputError::Missing(self.missing))
        }
    }

    /// Makes `file` in `directory`, which is at `parent`. If it is to be `written` it is the action's own.
    pub(super) fn file(
        &mut self,
        directory: &OwnedFd,
        parent: &str,
        file: &File,
        written: bool,
    ) -> Result<(), InputError> {
        // Which inputs can be written must not depend on which could not be linked.
        let link = self.link && !written;
        let kind = Mode::from_raw_mode(match link {
            true => LocalStore::file_mode(file.executable),
            false => file_mode(file.executable),
        });
        let mode = (file.properties.as_deref())
            .and_then(directories::mode)
            .unwrap_or(kind);
        if file.digest.is_empty() {
            // An inode of its own is as cheap as a link, and never has too many links.
            return self
                .copy(directory, file, None, mode)
                .map_err(|error| named(error, parent, &file.name));
        }
        let store = self.place.cas.local();
        // What was removed by hand may still be here as the other kind of file.
        for _ in 0..2 {
            let Some(source) = store.path(file.digest, file.executable)? else {
                break;
            };
            match self.place_from(directory, file, &source, link.then_some(kind), mode) {
                Ok(()) => return Ok(()),
                Err((LINK | OPEN_BLOB, Errno::NOENT)) => {
                    if !store.recheck(file.digest)? {
                        break;
                    }
                }
                Err((COPY, Errno::NOSPC | Errno::DQUOT)) => {
                    return Err(CasError::Full {
                        needed: file.digest.size(),
                        why: format!(
                            "there is no space to copy input file {} to {}, and evicting blobs made \
                             none; free some space there",
                            quote::path(&join(parent, &file.name)),
                            self.place.dir.display()
                        ),
                    }
                    .into());
                }
                Err(error) => return Err(named(error, parent, &file.name)),
            }
        }
        let path = join(parent, &file.name);
        self.missing.push(MissingBlob {
            digest: file.digest,
            what: format!("input file {}", quote::path(&path)),
        });
        Ok(())
    }

    /// By a link if it is to be `linked`, which gives it that mode, and can be.
    fn place_from(
        &mut self,
        directory: &OwnedFd,
        file: &File,
        source: &Path,
        linked: Option<Mode>,
        mode: Mode,
    ) -> Result<(), (&'static str, Errno)> {
        let properties = file.properties.as_deref();
        // A mode or time of its own needs an inode of its own.
        let plain = linked == Some(mode) && properties.is_none_or(|p| p.mtime.is_none());
        if plain {
            match rustix::fs::linkat(CWD, source, directory, &*file.name, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                // Too many links, another file system, or one that has no links: a copy does.
                Err(Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(error) => return Err((LINK, error)),
            }
        }
        self.copy(directory, file, Some(source), mode)?;
        self.copied = self.copied.saturating_add(disk_size(file.digest.size()));
        Ok(())
    }

    fn copy(
        &self,
        directory: &OwnedFd,
        file: &File,
        source: Option<&Path>,
        mode: Mode,
    ) -> Result<(), (&'static str, Errno)> {
        let step = |action| move |error| (action, error);
        // First, so that nothing stands under the name if the blob is gone.
        let from = source.map(|source| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, source, flags, Mode::empty())
        });
        let from = from.transpose().map_err(step(OPEN_BLOB))?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(directory, &*file.name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(step("create"))?;
        if let Some(from) = &from {
            let size = file.digest.size();
            match self.fill(from, &to, size) {
                Err(Errno::NOSPC | Errno::DQUOT) => {
                    self.place.cas.local().make_room(size);
                    self.refill(from, &to, size).map_err(step(COPY))?;
                }
                other => other.map_err(step(COPY))?,
            }
        }
        directories::chown(&to, self.owner).map_err(step("change the owner of"))?;
        rustix::fs::fchmod(&to, mode).map_err(step("set the mode of"))?;
        if let Some(times) = file.properties.as_deref().and_then(directories::times) {
            rustix::fs::futimens(&to, &times).map_err(step("set the modification time of"))?;
        }
        Ok(())
    }

    /// Once more from the beginning.
    fn refill(&self, from: &OwnedFd, to: &OwnedFd, size: u64) -> rustix::io::Result<()> {
        rustix::fs::ftruncate(to, 0)?;
        rustix::fs::seek(from, SeekFrom::Start(0))?;
        rustix::fs::seek(to, SeekFrom::Start(0))?;
        self.fill(from, to, size)
    }

    /// Clones the whole file if the file system can, else has the kernel copy it.
    fn fill(&self, from: &OwnedFd, to: &OwnedFd, size: u64) -> rustix::io::Result<()> {
        let clones = &self.place.clones;
        if clones.load(Ordering::Relaxed) {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(()),
                // ext4 and many others never can, whatever the file.
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::XDEV | Errno::NOTTY) => {
                    clones.store(false, Ordering::Relaxed);
                }
                // This one could not, at this moment.
                Err(_) => {}
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

pub(super) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}/{name}")
    }
}
