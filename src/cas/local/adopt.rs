//! Taking over a file that a command left behind, by rename: no byte of it is copied.
//!
//! A command may have passed a descriptor for writing to somebody who outlives it. So a file is *sealed* before
//! it is hashed: it becomes ours and read-only, so that nobody opens it for writing any more, and then the
//! kernel is asked whether anybody still has it open so. One that cannot be sealed is copied. When a sealed
//! file has got its name here, that name
//! must lead to that same file, unless nobody else could change the name; if something else was put in its place meanwhile,
//! it is thrown out. A file that is not ours alone, because it has other links, lies on another file system or
//! belongs to somebody whose files we may not take, is copied, and verified by that.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::claim::Claim;
use super::files::disk_size;
use super::lease::{Writers, writers};
use super::names::{BlobName, Kind};
use super::temp::TempFile;
use super::{CasError, LocalStore, clear, disk};
use crate::reapi::Digest;

/// What [`LocalStore::seal`] found out about a file.
pub struct Sealed {
    stat: Stat,
    /// Nobody can change its content any more, and a rename may bring it here.
    whole: bool,
    /// The name that will be renamed leads to the file, and will until then.
    fixed: bool,
}

impl Sealed {
    /// Says whether nobody but the caller could change what the file's name leads to, since before it was opened by that
    /// name: then it need not be asked again when it has moved.
    pub fn fixed(self, fixed: bool) -> Self {
        Sealed { fixed, ..self }
    }

    /// Says that others may write to the file although it is sealed: it is copied.
    pub fn open(self) -> Self {
        Sealed {
            whole: false,
            ..self
        }
    }
}

impl LocalStore {
    /// Takes over a file on the store's own file system whose digest is known, by rename. A file that has other links,
    /// that somebody may still write, or that is on another file system is copied instead; either way its
    /// content is verified.
    /// `executable`: which of the two kinds of file it becomes. If the blob is here already the file
    /// is removed. Whatever the result, the file may be gone afterwards.
    pub fn adopt(&self, digest: Digest, file: &Path, executable: bool) -> Result<(), CasError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = || rustix::fs::open(file, flags, Mode::empty());
        let opened = match open() {
            // A command may leave a file that its owner may not read. Root may read all the same, and
            // must not follow what could be a link by now; anybody else could be led to nothing new.
            Err(Errno::ACCESS) if !rustix::process::geteuid().is_root() => {
                rustix::fs::chmod(file, Mode::RUSR)
                    .map_err(|e| disk("set the mode of", file.display(), e))?;
                open()
            }
            other => other,
        };
        let opened = File::from(opened.map_err(|e| disk("open output", file.display(), e))?);
        let sealed = self.seal(opened.as_fd(), executable)?;
        if sealed.whole && u64::try_from(sealed.stat.st_size) == Ok(digest.size()) {
            let mut buffer = vec![0; (128 << 10).min(digest.size() as usize + 1)];
            let actual = crate::tree::digest_file(&opened, digest.function(), &mut buffer)
                .map_err(|e| disk("read output", file.display(), e))?;
            if actual != digest {
                return Err(CasError::Corrupt {
                    expected: digest,
                    actual,
                });
            }
        }
        self.adopt_at(
            digest,
            CWD,
            file.as_os_str(),
            opened.as_fd(),
            executable,
            &sealed,
        )
    }

    /// The first step of taking a file over, before it is hashed. `file` is open for reading only. Its owner and mode
    /// become those of a blob, if it is a file that a rename could bring here.
    pub fn seal(&self, file: BorrowedFd<'_>, executable: bool) -> Result<Sealed, CasError> {
        let stat = rustix::fs::fstat(file).map_err(|e| disk("examine", "an output", e))?;
        self.seal_examined(file, stat, executable)
    }

    /// Like [`LocalStore::seal`], for who has just asked for the file's `stat`.
    pub fn seal_examined(
        &self,
        file: BorrowedFd<'_>,
        stat: Stat,
        executable: bool,
    ) -> Result<Sealed, CasError> {
        let ours = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_nlink == 1
            && stat.st_dev == self.layout.device
            && self.own(file, &stat, Kind::of(executable))?;
        let whole = ours
            && match writers(file) {
                Writers::None => true,
                Writers::Some => false,
                // RATIONALE: some file systems (FUSE, some of the network) have no leases. If we are root, commands run as
                // somebody else as a rule, and a copy is what keeps them off the blob. If we are not, a
                // command of our own user could change the mode back whatever was found here, and a
                // copy of every output would buy nothing.
                Writers::Unknown => !rustix::process::geteuid().is_root(),
            };
        let fixed = false;
        Ok(Sealed { stat, whole, fixed })
    }

    /// Takes over a file that the caller has open, for reading, has sealed with the same `executable`, and has hashed
    /// after that: `name` in `dir` is what will be renamed, and must be that file.
    pub fn adopt_at(
        &self,
        digest: Digest,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        file: BorrowedFd<'_>,
        executable: bool,
        sealed: &Sealed,
    ) -> Result<(), CasError> {
        let shown = Path::new(name).display();
        let failed = |action, e: Errno| disk(action, shown.to_string(), e);
        let stat = &sealed.stat;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || u64::try_from(stat.st_size) != Ok(digest.size())
        {
            return Err(disk(
                "adopt",
                shown,
                std::io::Error::other(format!(
                    "it is not a regular file of {} bytes",
                    digest.size()
                )),
            ));
        }
        let claim = if self.is_empty_blob(digest) {
            None
        } else {
            self.claim_absent(digest)?
        };
        let remove = || rustix::fs::unlinkat(dir, name, AtFlags::empty());
        let Some(mut claim) = claim else {
            return remove().map_err(|e| failed("remove", e));
        };
        let kind = Kind::of(executable);
        let disk_bytes = disk_size(digest.size());
        let mut room = LocalStore::reserve_quota(self, digest.size())?;
        if sealed.whole {
            let target = BlobName::new(digest, kind);
            let blobs = self.layout.blobs(digest.function(), false);
            // It has its blocks.
            room.written(disk_bytes);
            let rename = || {
                self.layout.in_shard(blobs, &target, || {
                    rustix::fs::renameat(dir, name, blobs, target.path())
                })
            };
            let renamed = match rename() {
                // The directory that it goes to takes some.
                Err(Errno::NOSPC | Errno::DQUOT) => {
                    self.make_room(0);
                    rename()
                }
                other => other,
            };
            match renamed {
                Ok(()) => {
                    claim.charge(room);
                    if sealed.fixed {
                        claim.add(kind);
                    } else {
                        self.same_file(&mut claim, kind, &target, stat)?;
                    }
                    // With the claim held: it makes room, and is not what goes for it.
                    self.settle_the_floor(disk_bytes);
                    return Ok(());
                }
                // Another mount of the same file system.
                Err(Errno::XDEV) => room.unwritten(),
                Err(e) => return Err(failed("take over", e)),
            }
        }
        claim.charge(room);
        self.keep_the_floor(disk_bytes)?;
        self.copy_in(&mut claim, kind, file)?;
        remove().map_err(|e| failed("remove", e))
    }

    /// Makes the file ours with the mode of a blob; `false` if it cannot be made ours.
    fn own(&self, file: BorrowedFd<'_>, stat: &Stat, kind: Kind) -> Result<bool, CasError> {
        if !self.layout.owns(stat) {
            let (user, group) = self.layout.owner;
            match rustix::fs::fchown(file, Some(user), Some(group)) {
                Ok(()) => {}
                Err(Errno::PERM) => return Ok(false),
                Err(e) => return Err(disk("take ownership of", "an output", e)),
            }
        }
        // After the owner: changing that clears set-user-id bits, but not always.
        if Mode::from_raw_mode(stat.st_mode) != kind.mode() {
            match rustix::fs::fchmod(file, kind.mode()) {
                Ok(()) => {}
                Err(Errno::PERM) => return Ok(false),
                Err(e) => return Err(disk("set the mode of", "an output", e)),
            }
        }
        Ok(true)
    }

    fn same_file(
        &self,
        claim: &mut Claim<'_>,
        kind: Kind,
        name: &BlobName,
        wanted: &Stat,
    ) -> Result<(), CasError> {
        let blobs = self.layout.blobs(claim.digest.function(), false);
        let found = rustix::fs::statat(blobs, name.path(), AtFlags::SYMLINK_NOFOLLOW);
        if found.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (wanted.st_dev, wanted.st_ino)) {
            claim.add(kind);
            return Ok(());
        }
        let _ = clear::remove(blobs, name.path());
        Err(disk(
            "adopt blob",
            claim.digest,
            std::io::Error::other("another file was put in its place meanwhile"),
        ))
    }

    /// Copies the open file, whatever its offset is.
    fn copy_in(
        &self,
        claim: &mut Claim<'_>,
        kind: Kind,
        file: BorrowedFd<'_>,
    ) -> Result<(), CasError> {
        let digest = claim.digest;
        let failed = |e: std::io::Error| disk("copy blob", digest, e);
        let file = File::from(file.try_clone_to_owned().map_err(failed)?);
        let temp = TempFile::new(self, digest, kind)?;
        let mut hasher = digest.function().hasher();
        let mut buffer = vec![0; (128 << 10).min(digest.size() as usize + 1)];
        loop {
            let read = match file.read_at(&mut buffer, hasher.size()) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.map_err(failed)?,
            };
            // One that grows meanwhile is no longer what it was.
            if read == 0 || hasher.size() > digest.size() {
                break;
            }
            let piece = &buffer[..read];
            self.with_space(read as u64, "copy blob", digest, || {
                temp.file.write_all_at(piece, hasher.size())
            })?;
            hasher.update(piece);
        }
        let actual = hasher.finish();
        if actual != digest {
            return Err(CasError::Corrupt {
                expected: digest,
                actual,
            });
        }
        temp.publish(claim)
    }
}
