//! Taking over a file that a command left behind, by rename: no byte of it is copied.
//!
//! Owner and mode are set through a descriptor before the file gets its name here. Afterwards the name
//! must lead to that same file; if something else was put in its place meanwhile, it is thrown
//! out. A file that is not ours alone, because it has other links, lies on another file system or
//! belongs to somebody whose files we may not take, is copied, and verified by that.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::claim::Claim;
use super::layout::is_ours;
use super::names::{BlobName, Kind};
use super::temp::TempFile;
use super::{CasError, LocalStore, clear, disk};
use crate::reapi::Digest;

impl LocalStore {
    /// Takes over a file on the store's own file system whose digest the caller just computed, by rename. The
    /// caller answers for it that nobody has the file open for writing; its owner and mode are set here. A file
    /// that has other links or is on another file system is copied instead, and verified by that.
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
        let opened = opened.map_err(|e| disk("open output", file.display(), e))?;
        self.adopt_at(digest, CWD, file.as_os_str(), opened.as_fd(), executable)
    }

    /// The same for a caller that has the file open, for reading: `name` in `dir` is what will be renamed,
    /// and must be that file.
    pub fn adopt_at(
        &self,
        digest: Digest,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        file: BorrowedFd<'_>,
        executable: bool,
    ) -> Result<(), CasError> {
        let shown = Path::new(name).display();
        let failed = |action, e: Errno| disk(action, shown.to_string(), e);
        let stat = rustix::fs::fstat(file).map_err(|e| failed("examine", e))?;
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
        claim.charge(LocalStore::reserve(self, digest.size())?);
        let kind = Kind::of(executable);
        if stat.st_nlink == 1 && stat.st_dev == self.layout.device && own(file, &stat, kind)? {
            let target = BlobName::new(digest, kind);
            let blobs = self.layout.blobs(digest.function(), false);
            let renamed = self.layout.in_shard(blobs, &target, || {
                rustix::fs::renameat(dir, name, blobs, target.path())
            });
            match renamed {
                Ok(()) => return self.same_file(&mut claim, kind, &stat),
                // Another mount of the same file system.
                Err(Errno::XDEV) => {}
                Err(e) => return Err(failed("take over", e)),
            }
        }
        self.copy_in(&mut claim, kind, file)?;
        remove().map_err(|e| failed("remove", e))
    }

    fn same_file(&self, claim: &mut Claim<'_>, kind: Kind, wanted: &Stat) -> Result<(), CasError> {
        let name = BlobName::new(claim.digest, kind);
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

/// Makes the file ours with the mode of a blob; `false` if it cannot be made ours.
fn own(file: BorrowedFd<'_>, stat: &Stat, kind: Kind) -> Result<bool, CasError> {
    if !is_ours(stat) {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
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
