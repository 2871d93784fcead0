//! Keeping a blob that comes in pieces: hashed while written, published when all of it is there and
//! is what it should be. Small ones are gathered in memory and written like those given whole.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::files::disk_size;
use super::names::Kind;
use super::room::Reservation;
use super::temp::TempFile;
use super::{CasError, LocalStore};
use crate::reapi::Digest;
use crate::reapi::digest::Hasher;

/// Blobs up to this size are gathered in memory.
const SMALL: u64 = 64 << 10;

/// Room is taken ahead of what has come: as much again, in these bounds.
const AHEAD: std::ops::RangeInclusive<u64> = (1 << 20)..=(64 << 20);

/// A blob being written; dropped before `commit`, it leaves nothing behind.
pub struct BlobWriter {
    store: Arc<LocalStore>,
    digest: Digest,
    kind: Kind,
    hasher: Hasher,
    sink: Sink,
}

enum Sink {
    Memory(Vec<u8>),
    // In this order: the file goes first, then the room for it.
    File(TempFile<Arc<LocalStore>>, Reservation<Arc<LocalStore>>),
}

impl LocalStore {
    /// Begins a blob that comes in pieces. One that is larger than the store fails here. Room is taken as it comes: its
    /// size is what somebody says, and might be all that ever comes.
    pub fn writer(
        self: &Arc<Self>,
        digest: Digest,
        executable: bool,
    ) -> Result<BlobWriter, CasError> {
        let kind = Kind::of(executable);
        let sink = if digest.size() <= SMALL {
            Sink::Memory(Vec::new())
        } else {
            let room = LocalStore::reserve_as_it_comes(Arc::clone(self), digest.size())?;
            Sink::File(TempFile::new(Arc::clone(self), digest, kind)?, room)
        };
        Ok(BlobWriter {
            store: Arc::clone(self),
            digest,
            kind,
            hasher: digest.function().hasher(),
            sink,
        })
    }
}

impl BlobWriter {
    /// Appends bytes. More bytes than the digest promises are refused at once. After an error
    /// the same bytes may be given again.
    pub fn write(&mut self, data: &[u8]) -> Result<(), CasError> {
        let written = self.written();
        if data.len() as u64 > self.digest.size() - written {
            return Err(CasError::TooLarge {
                digest: self.digest,
                limit: self.digest.size(),
                what: "content under this digest",
            });
        }
        match &mut self.sink {
            Sink::Memory(bytes) => {
                if bytes.capacity() == 0 {
                    bytes.reserve_exact(self.digest.size() as usize);
                }
                bytes.extend_from_slice(data);
            }
            // At an offset: bytes given again after an error land where they belong.
            Sink::File(temp, room) => {
                let size = data.len() as u64;
                let taken = room.bytes();
                if written + size > taken {
                    let (first, most) = AHEAD.into_inner();
                    let ahead = taken.clamp(first, most).max(written + size - taken);
                    let all = disk_size(self.digest.size());
                    room.grow(disk_size(ahead).min(all - taken))?;
                }
                self.store.with_space(size, "write blob", self.digest, || {
                    temp.file.write_all_at(data, written)
                })?;
                room.written(size);
            }
        }
        self.hasher.update(data);
        Ok(())
    }

    /// How many bytes were written.
    pub fn written(&self) -> u64 {
        self.hasher.size()
    }

    /// Verifies and publishes the blob.
    pub fn commit(self) -> Result<(), CasError> {
        let actual = self.hasher.finish();
        if actual != self.digest {
            return Err(CasError::Corrupt {
                expected: self.digest,
                actual,
            });
        }
        match self.sink {
            Sink::Memory(bytes) => {
                self.store
                    .put_verified(self.digest, &bytes, self.kind == Kind::Executable)
            }
            Sink::File(temp, room) => match self.store.claim_absent(self.digest)? {
                Some(mut claim) => {
                    claim.charge(room);
                    temp.publish(&mut claim)
                }
                None => Ok(()),
            },
        }
    }
}
