//! Blobs as files to link, clone or bind: the kind of file that is asked for is made when it is
//! first asked for, sharing the blocks of the other one where the file system can do that.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::claim::Claim;
use super::names::{BlobName, Kind};
use super::temp::TempFile;
use super::{CasError, LocalStore, disk};
use crate::reapi::Digest;

/// Up to this size, reading and writing is cheaper than any clever way of copying.
const SMALL: u64 = 64 << 10;

impl LocalStore {
    /// The path of a file with the blob's content, mode 0444, or 0555 if `executable`, to hard-link or clone
    /// from; it stays while the blob is pinned. `None` if the blob is not here. If the file turns out to be
    /// missing, because somebody removed it by hand, [`LocalStore::recheck`] puts that right.
    pub fn path(&self, digest: Digest, executable: bool) -> Result<Option<PathBuf>, CasError> {
        let kind = Kind::of(executable);
        let files = match self.lookup(digest)? {
            None if self.is_empty_blob(digest) => None,
            None => return Ok(None),
            some => some,
        };
        if !files.is_some_and(|files| files.has(kind)) && !self.make(digest, kind)? {
            return Ok(None);
        }
        let mut path = self.layout.root.join(digest.function().name());
        path.push(BlobName::new(digest, kind).text());
        Ok(Some(path))
    }

    /// Makes one kind of file out of the other; `false` if the blob is not here.
    fn make(&self, digest: Digest, kind: Kind) -> Result<bool, CasError> {
        // The claim of one who removes what it finds missing is taken after this one is given back.
        for _ in 0..2 {
            let mut claim = self.claim(digest)?;
            if claim.files.unverified() {
                self.verify_claimed(&mut claim)?;
            }
            if claim.files.has(kind) {
                return Ok(true);
            }
            if self.is_empty_blob(digest) {
                claim.charge(LocalStore::reserve(self, 0)?);
                self.write_whole(&mut claim, kind, b"")?;
                return Ok(true);
            }
            let Some(other) = claim.files.kinds().next() else {
                return Ok(false);
            };
            claim.charge(LocalStore::reserve(self, digest.size())?);
            let done = match self.open_file(digest, other) {
                Ok(source) => self.copy_file(&mut claim, &source, kind)?,
                Err(Errno::NOENT) => false,
                Err(e) => return Err(disk("open blob", digest, e)),
            };
            if done {
                return Ok(true);
            }
            drop(claim);
            self.recheck(digest)?;
        }
        Ok(false)
    }

    /// `false` if the source has not the size of the blob.
    fn copy_file(
        &self,
        claim: &mut Claim<'_>,
        mut source: &File,
        kind: Kind,
    ) -> Result<bool, CasError> {
        let digest = claim.digest;
        if digest.size() <= SMALL {
            let data =
                read_whole(source, digest.size()).map_err(|e| disk("read blob", digest, e))?;
            if data.len() as u64 != digest.size() {
                return Ok(false);
            }
            self.write_whole(claim, kind, &data)?;
            return Ok(true);
        }
        let temp = TempFile::new(self, digest, kind)?;
        let mut cloned = false;
        if self.clones.load(Ordering::Relaxed) {
            match rustix::fs::ioctl_ficlone(&temp.file, source) {
                Ok(()) => cloned = true,
                Err(Errno::NOSPC | Errno::DQUOT | Errno::IO) => {}
                // Not on this file system; asked once.
                Err(_) => self.clones.store(false, Ordering::Relaxed),
            }
        }
        if !cloned {
            use std::io::Seek;
            self.with_space(digest.size(), "copy blob", digest, || {
                source.rewind()?;
                temp.file.set_len(0)?;
                (&temp.file).rewind()?;
                std::io::copy(&mut source, &mut &temp.file)
            })?;
        }
        let size = rustix::fs::fstat(&temp.file).map_err(|e| disk("examine blob", digest, e))?;
        if u64::try_from(size.st_size) != Ok(digest.size()) {
            return Ok(false);
        }
        temp.publish(claim)?;
        Ok(true)
    }
}

/// At most `size` bytes from where the file stands.
pub(super) fn read_whole(file: &File, size: u64) -> std::io::Result<Vec<u8>> {
    let size = usize::try_from(size).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    let mut data = Vec::new();
    data.try_reserve_exact(size)
        .map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    while data.len() < size {
        match rustix::io::read(file, rustix::buffer::spare_capacity(&mut data)) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    // The allocator may have given more room than was asked for.
    data.truncate(size);
    Ok(data)
}
