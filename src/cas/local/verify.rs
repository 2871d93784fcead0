//! Blobs that must prove themselves: after a power loss, or because somebody doubts them. A blob
//! that is not what its name says goes to the quarantine, is counted and logged, and is absent.

use std::io::Read;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::claim::Claim;
use super::names::{BlobName, Kind};
use super::{CasError, LocalStore, disk};
use crate::reapi::Digest;

/// What hashing a file showed.
enum Verdict {
    Right,
    Wrong(String),
    Gone,
}

impl LocalStore {
    /// Hashes a blob again; one that is not what its name says is quarantined. Says whether it is
    /// here, and right. For callers that saw something odd in it.
    pub fn verify(&self, digest: Digest) -> Result<bool, CasError> {
        let mut claim = self.claim(digest)?;
        self.verify_claimed(&mut claim)?;
        Ok(claim.files.any())
    }

    pub(super) fn verify_claimed(&self, claim: &mut Claim<'_>) -> Result<(), CasError> {
        let digest = claim.digest;
        let unverified = claim.files.unverified();
        let from = self.layout.blobs(digest.function(), unverified);
        let mut moved = false;
        for kind in claim.files.kinds() {
            let name = BlobName::new(digest, kind);
            let verdict = self.judge(digest, kind, unverified).and_then(|verdict| {
                if matches!(verdict, Verdict::Right) && unverified {
                    self.move_in("trust blob", digest, (from, name.path()), &name)?;
                }
                Ok(verdict)
            });
            match verdict {
                Ok(Verdict::Right) => moved = true,
                Ok(Verdict::Gone) => claim.remove(kind),
                Ok(Verdict::Wrong(why)) => {
                    tracing::warn!(blob = %digest, "a stored blob went bad and is quarantined: {why}");
                    self.counters.quarantined.fetch_add(1, Ordering::Relaxed);
                    self.condemn(from, &name);
                    claim.remove(kind);
                }
                // Nothing is known, so nothing changes; but of two kinds, one alone is no loss.
                Err(e) if !moved => return Err(e),
                Err(_) => {
                    let _ = rustix::fs::unlinkat(from, name.path(), AtFlags::empty());
                    claim.remove(kind);
                }
            }
        }
        claim.files = claim.files.set_unverified(false);
        Ok(())
    }

    fn condemn(&self, blobs: BorrowedFd<'_>, name: &BlobName) {
        let shard = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(shard) = rustix::fs::openat(blobs, name.shard(), shard, Mode::empty()) {
            self.quarantine
                .take(&self.layout, shard, name.file(), "wrong");
        }
    }

    /// Hashes one file. An error is one of the moment, such as too many open files.
    fn judge(&self, digest: Digest, kind: Kind, unverified: bool) -> Result<Verdict, CasError> {
        let name = BlobName::new(digest, kind);
        let blobs = self.layout.blobs(digest.function(), unverified);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = match rustix::fs::openat(blobs, name.path(), flags, Mode::empty()) {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT) => return Ok(Verdict::Gone),
            Err(e @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR)) => {
                return Err(disk("open blob", digest, e));
            }
            Err(e) => return Ok(Verdict::Wrong(format!("cannot be opened: {e}"))),
        };
        let mut hasher = digest.function().hasher();
        let mut buffer = vec![0; 128 << 10];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => hasher.update(&buffer[..read]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if Errno::from_io_error(&e) == Some(Errno::NOMEM) => {
                    return Err(disk("read blob", digest, e));
                }
                Err(e) => return Ok(Verdict::Wrong(format!("cannot be read: {e}"))),
            }
            if hasher.size() > digest.size() {
                return Ok(Verdict::Wrong("it is longer than its name says".to_owned()));
            }
        }
        let actual = hasher.finish();
        Ok(if actual == digest {
            Verdict::Right
        } else {
            Verdict::Wrong(format!("its content is that of {actual}"))
        })
    }
}
