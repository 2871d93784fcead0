//! The store's own directory: what is in it, who may have it open, which version of the layout it
//! has.
//!
//! ```text
//! lock          held with flock(2) by the one process that has the store open
//! layout        the version of this layout
//! state         `open` or `clean`, and the id of the boot that wrote it
//! sha256/ blake3/             blobs
//! unverified/sha256/ ...      blobs that must be hashed before their first use
//! tmp/          blobs being written
//! scratch/      lent to the rest of the process
//! quarantine/   files whose content was not what their name says
//! ```
//!
//! Which blobs are unverified, and why, is told in `trust.rs`.

use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::names::BlobName;
use super::{CasError, clear, disk, trust};
use crate::reapi::DigestFunction;

const VERSION: &str = "boxwright blob store 1\n";
const FOLDERS: [&str; 6] = [
    "sha256",
    "blake3",
    "unverified",
    "tmp",
    "scratch",
    "quarantine",
];

/// The open directories of a store.
pub(super) struct Layout {
    /// Absolute.
    pub(super) root: PathBuf,
    pub(super) scratch: PathBuf,
    pub(super) tmp: OwnedFd,
    pub(super) quarantine: OwnedFd,
    /// The device that the store is on.
    pub(super) device: u64,
    /// Whom blobs belong to: the owner of files that this process makes. It is asked for with each output.
    pub(super) owner: (Uid, Gid),
    pub(super) top: OwnedFd,
    trusted: [OwnedFd; 2],
    unverified: [OwnedFd; 2],
    boot: String,
    lock: std::fs::File,
}

impl Layout {
    /// Opens or makes the directory, takes the lock, and sorts out what may be trusted. Before any blob is written,
    /// [`Layout::note_open`] is due.
    pub(super) fn open(root: &Path, boot: Option<String>) -> Result<Self, CasError> {
        let root = std::path::absolute(root).map_err(|e| disk("find", root.display(), e))?;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&root)
            .map_err(|e| disk("create blob store", root.display(), e))?;
        let top = rustix::fs::open(
            &root,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| disk("open blob store", root.display(), e))?;

        refuse_foreign(&top, &root)?;
        let lock = lock(&top, &root)?;
        check_version(&top, &root)?;

        // What actions may see lies in scratch; the way there can be passed, but not listed.
        set_mode(&top, 0o711).map_err(|e| disk("set the mode of", root.display(), e))?;
        let folder = |path: &str, mode| {
            make_folder(&top, path, mode).map_err(|e| disk("open", root.join(path).display(), e))
        };
        folder("unverified", 0o700)?;

        let boot = trust::set_aside(&top, &root, boot)?;
        let functions = |below: &str| -> Result<[OwnedFd; 2], CasError> {
            let [first, second] = DigestFunction::ALL;
            Ok([
                folder(&format!("{below}{}", first.name()), 0o700)?,
                folder(&format!("{below}{}", second.name()), 0o700)?,
            ])
        };
        let layout = Layout {
            trusted: functions("")?,
            unverified: functions("unverified/")?,
            tmp: folder("tmp", 0o700)?,
            quarantine: folder("quarantine", 0o700)?,
            scratch: root.join("scratch"),
            device: rustix::fs::fstat(&top)
                .map_err(|e| disk("examine", root.display(), e))?
                .st_dev,
            owner: (rustix::process::geteuid(), rustix::process::getegid()),
            lock,
            boot,
            root,
            top,
        };
        layout.empty("tmp", &layout.tmp)?;
        layout.empty("scratch", folder_of(&layout, "scratch", 0o711)?)?;
        Ok(layout)
    }

    /// The directory of a function's blobs; names in it are [`BlobName::path`].
    pub(super) fn blobs(&self, function: DigestFunction, unverified: bool) -> BorrowedFd<'_> {
        let area = if unverified {
            &self.unverified
        } else {
            &self.trusted
        };
        match function {
            DigestFunction::Sha256 => area[0].as_fd(),
            DigestFunction::Blake3 => area[1].as_fd(),
        }
    }

    /// Does something that puts a file in the name's shard, which is made if that fails for want of it.
    pub(super) fn in_shard<T>(
        &self,
        blobs: BorrowedFd<'_>,
        name: &BlobName,
        act: impl Fn() -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match act() {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(blobs, name.shard(), Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(e),
                }
                act()
            }
            other => other,
        }
    }

    /// Notes that the store is open.
    pub(super) fn note_open(&self) -> io::Result<()> {
        trust::write_open(&self.top, &self.boot)
    }

    /// Flushes everything and notes that it was.
    pub(super) fn close(&self) -> io::Result<()> {
        rustix::fs::syncfs(&self.top)?;
        trust::write_clean(&self.top, &self.boot)
    }

    /// Whether the file belongs to the owner of blobs.
    pub(super) fn owns(&self, stat: &rustix::fs::Stat) -> bool {
        stat.st_uid == self.owner.0.as_raw()
    }

    fn empty(&self, name: &str, folder: impl AsFd) -> Result<(), CasError> {
        let path = self.root.join(name);
        let left = clear::empty(folder).map_err(|e| disk("empty", path.display(), e))?;
        if let Some((example, why)) = left.example {
            tracing::warn!(
                directory = %path.display(),
                entries = left.entries,
                "could not remove {example:?}: {why}; unmount or remove it by hand"
            );
        }
        Ok(())
    }
}

impl Drop for Layout {
    /// Closing the file would do, were it not for children of this process that have its descriptors
    /// between fork and exec.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

fn folder_of(layout: &Layout, name: &str, mode: u32) -> Result<OwnedFd, CasError> {
    make_folder(&layout.top, name, mode)
        .map_err(|e| disk("open", layout.root.join(name).display(), e))
}

fn invalid(why: String) -> io::Error {
    io::Error::other(why)
}

/// A directory that has our names in it but not our version file belongs to somebody else, and
/// opening empties `tmp` and `scratch`.
fn refuse_foreign(top: &OwnedFd, root: &Path) -> Result<(), CasError> {
    let exists = |name| {
        !matches!(
            rustix::fs::statat(top, name, AtFlags::SYMLINK_NOFOLLOW),
            Err(Errno::NOENT)
        )
    };
    if exists("layout") {
        return Ok(());
    }
    match FOLDERS.into_iter().find(|&name| exists(name)) {
        Some(name) => Err(disk(
            "open blob store",
            root.display(),
            invalid(format!(
                "it has {name:?} in it but is not a blob store; give an empty directory"
            )),
        )),
        None => Ok(()),
    }
}

fn lock(top: &OwnedFd, root: &Path) -> Result<std::fs::File, CasError> {
    let failed = |e: io::Error| disk("lock blob store", root.display(), e);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(top, "lock", flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| failed(e.into()))?;
    let mut file = std::fs::File::from(file);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut owner = String::new();
            let _ = (&mut file).take(20).read_to_string(&mut owner);
            let owner = match owner.trim().parse::<u32>() {
                Ok(pid) => format!("process {pid}"),
                Err(_) => "another process".to_owned(),
            };
            return Err(failed(invalid(format!(
                "{owner} has it open; stop that one, or give this one a directory of its own"
            ))));
        }
        Err(e) => return Err(failed(e.into())),
    }
    // For the message above only. Written over what is there: a full disk may have nothing for it once it is cut.
    let owner = format!("{}\n", std::process::id());
    let _ = file.rewind();
    let _ = file.write_all(owner.as_bytes());
    let _ = file.set_len(owner.len() as u64);
    Ok(file)
}

fn check_version(top: &OwnedFd, root: &Path) -> Result<(), CasError> {
    let failed = |e| disk("read the layout version of blob store", root.display(), e);
    match read_small(top, "layout") {
        Ok(text) if text == VERSION => Ok(()),
        Ok(text) => Err(failed(invalid(format!(
            "{:?} is not known to this version, which writes {:?}; \
             remove the directory, or use the version that made it",
            text.trim(),
            VERSION.trim(),
        )))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => replace(top, "layout", VERSION)
            .map_err(|e| disk("write", root.join("layout").display(), e)),
        Err(e) => Err(failed(e)),
    }
}

pub(super) fn read_small(top: &OwnedFd, name: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(top, name, flags, Mode::empty())?;
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(200)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Replaces a small file so that a power loss leaves the old or the new content.
pub(super) fn replace(top: &OwnedFd, name: &str, text: &str) -> io::Result<()> {
    let new = format!("{name}.new");
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let written: io::Result<()> = (|| {
        let file = rustix::fs::openat(top, new.as_str(), flags, Mode::from_raw_mode(0o644))?;
        let mut file = std::fs::File::from(file);
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        rustix::fs::renameat(top, new.as_str(), top, name)?;
        Ok(())
    })();
    if written.is_err() {
        // A full disk wants its block and its inode back.
        let _ = rustix::fs::unlinkat(top, new.as_str(), AtFlags::empty());
    }
    written?;
    rustix::fs::fsync(top)?;
    Ok(())
}

/// Writes over a small file that exists. That takes no space but on a file system that never writes in place; a kill leaves the
/// old or the new content, maybe with the end of the old one behind it, and a power loss may mix the two.
pub(super) fn overwrite(top: &OwnedFd, name: &str, text: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(top, name, flags, Mode::empty())?;
    let mut file = std::fs::File::from(file);
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
}

fn set_mode(folder: &OwnedFd, mode: u32) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    if Mode::from_raw_mode(rustix::fs::fstat(folder)?.st_mode) == mode {
        return Ok(());
    }
    rustix::fs::fchmod(folder, mode)
}

pub(super) fn make_folder(top: &OwnedFd, path: &str, mode: u32) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(top, path, Mode::RWXU) {
        // A strange umask may have taken even our own access.
        Ok(()) => rustix::fs::chmodat(top, path, Mode::RWXU, AtFlags::empty())?,
        Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match rustix::fs::openat(top, path, flags, Mode::empty()) {
        Err(Errno::LOOP | Errno::NOTDIR) => {
            return Err(invalid(
                "a link or a file stands where a directory should be; remove it".to_owned(),
            ));
        }
        other => other?,
    };
    set_mode(&folder, mode)?;
    Ok(folder)
}
