//! Reading blobs, and finding out that they are not what the index says.

use std::fs::File;

use bytes::Bytes;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::claim::Claim;
use super::double::read_whole;
use super::names::{BlobName, Kind};
use super::{CasError, LocalStore, disk};
use crate::reapi::Digest;

impl LocalStore {
    /// The whole blob; `None` if it is not here. For blobs that fit in memory: `limit` bytes at most, else `TooLarge`.
    pub fn read(&self, digest: Digest, limit: u64) -> Result<Option<Bytes>, CasError> {
        if self.is_empty_blob(digest) {
            return Ok(Some(Bytes::new()));
        }
        if digest.size() > limit {
            return Err(CasError::TooLarge {
                digest,
                limit,
                what: "a read into memory",
            });
        }
        let Some(file) = self.open_any(digest)? else {
            return Ok(None);
        };
        let data = read_whole(&file, digest.size()).map_err(|e| disk("read blob", digest, e))?;
        if data.len() as u64 != digest.size() {
            self.verify(digest)?;
            return Ok(None);
        }
        Ok(Some(data.into()))
    }

    /// The blob's file, opened to read; stays readable even if the blob is evicted meanwhile.
    pub fn open_blob(&self, digest: Digest) -> Result<Option<File>, CasError> {
        if self.is_empty_blob(digest) {
            self.path(digest, false)?;
        }
        self.open_any(digest)
    }

    fn open_any(&self, digest: Digest) -> Result<Option<File>, CasError> {
        // Between the look at the index and the open, the blob may be evicted, and put again.
        for _ in 0..8 {
            let Some(files) = self.lookup(digest)? else {
                return Ok(None);
            };
            let Some(kind) = files.kinds().next() else {
                return Ok(None);
            };
            match self.open_file(digest, kind) {
                Ok(file) => return Ok(Some(file)),
                Err(Errno::NOENT) => {
                    self.recheck(digest)?;
                }
                Err(e) => return Err(disk("open blob", digest, e)),
            };
        }
        Ok(None)
    }

    pub(super) fn open_file(&self, digest: Digest, kind: Kind) -> rustix::io::Result<File> {
        let name = BlobName::new(digest, kind);
        let blobs = self.layout.blobs(digest.function(), false);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(blobs, name.path(), flags, Mode::empty())?.into())
    }

    /// Looks whether the blob's files are there and have their size, and forgets those that are
    /// not; says whether any is left. For callers that found a file missing: somebody else removed it.
    pub fn recheck(&self, digest: Digest) -> Result<bool, CasError> {
        let mut claim = self.claim(digest)?;
        self.recheck_claimed(&mut claim);
        Ok(claim.files.any())
    }

    fn recheck_claimed(&self, claim: &mut Claim<'_>) {
        let digest = claim.digest;
        let blobs = self
            .layout
            .blobs(digest.function(), claim.files.unverified());
        for kind in claim.files.kinds() {
            let name = BlobName::new(digest, kind);
            let whole = rustix::fs::statat(blobs, name.path(), AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| u64::try_from(stat.st_size) == Ok(digest.size()));
            if !whole {
                tracing::warn!(blob = %digest, "the blob's file was removed or cut short by somebody else");
                let _ = rustix::fs::unlinkat(blobs, name.path(), AtFlags::empty());
                claim.remove(kind);
            }
        }
    }
}
