//! Keeping a blob that is given whole.
//!
//! Its file is made under its final name with one write: half the directory operations of a
//! temporary file and a rename. That is safe, because nobody goes by the directory:
//! within this process, readers and writers go by the index, which learns of the file after the
//! last byte is written, and the claim keeps others off the name until then. After a kill, the
//! file holds a beginning of the blob, since bytes are appended in order by one writer; if
//! it is not the whole, its size is not the one in its name, and the next open removes it.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::claim::Claim;
use super::names::{BlobName, Kind};
use super::{CasError, LocalStore};
use crate::reapi::Digest;

/// Creates a file, to write, with exactly this mode whatever the umask is.
pub(super) fn create(
    dir: impl AsFd,
    path: impl rustix::path::Arg,
    mode: Mode,
) -> rustix::io::Result<std::fs::File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, path, flags, mode)?;
    if Mode::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != mode {
        rustix::fs::fchmod(&file, mode)?;
    }
    Ok(file.into())
}

impl LocalStore {
    /// Keeps a blob given whole. `executable` is a hint on which kind of file will be asked for.
    /// The content is hashed; on a mismatch nothing is kept.
    pub fn put(&self, digest: Digest, data: &[u8], executable: bool) -> Result<(), CasError> {
        let actual = digest.function().digest(data);
        if actual != digest {
            return Err(CasError::Corrupt {
                expected: digest,
                actual,
            });
        }
        self.put_verified(digest, data, executable)
    }

    /// Like `put` for content whose digest the caller has just computed or verified itself.
    pub fn put_verified(
        &self,
        digest: Digest,
        data: &[u8],
        executable: bool,
    ) -> Result<(), CasError> {
        if data.len() as u64 != digest.size() {
            return Err(CasError::Corrupt {
                expected: digest,
                actual: digest.function().digest(data),
            });
        }
        if self.is_empty_blob(digest) {
            return Ok(());
        }
        let Some(mut claim) = self.claim_absent(digest)? else {
            return Ok(());
        };
        claim.charge(LocalStore::reserve(self, digest.size())?);
        self.write_whole(&mut claim, Kind::of(executable), data)
    }

    /// Makes one kind of file for a blob from its verified content.
    pub(super) fn write_whole(
        &self,
        claim: &mut Claim<'_>,
        kind: Kind,
        data: &[u8],
    ) -> Result<(), CasError> {
        let name = BlobName::new(claim.digest, kind);
        let blobs = self.layout.blobs(claim.digest.function(), false);
        self.with_space(claim.digest.size(), "write blob", claim.digest, || {
            self.write_once(blobs, &name, kind.mode(), data)
        })?;
        claim.add(kind);
        Ok(())
    }

    fn write_once(
        &self,
        blobs: BorrowedFd<'_>,
        name: &BlobName,
        mode: Mode,
        data: &[u8],
    ) -> io::Result<()> {
        let made = self
            .layout
            .in_shard(blobs, name, || create(blobs, name.path(), mode));
        let mut file = match made {
            // Nobody's: the claim is ours, and the index knows of no such file. What an eviction could not
            // unlink, or somebody put here by hand.
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(blobs, name.path(), AtFlags::empty())?;
                create(blobs, name.path(), mode)?
            }
            other => other?,
        };
        file.write_all(data).inspect_err(|_| {
            let _ = rustix::fs::unlinkat(blobs, name.path(), AtFlags::empty());
        })
    }
}
