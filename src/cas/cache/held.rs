//! The content of small blobs on their way up: what was just read to be hashed is not read from the disk again. Bounded over
//! all actions; what finds no room is read again.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::reapi::Digest;

/// Bytes over all actions.
pub(super) const ROOM: usize = 16 << 20;
/// Blobs are held in pieces of memory of this size: a piece each would cost more than reading some of them again.
const PIECE: usize = 256 << 10;

/// Blobs in memory, of one action. Dropped, it gives their room back.
#[derive(Debug, Default)]
pub struct Held {
    room: Option<Arc<Semaphore>>,
    taken: Option<OwnedSemaphorePermit>,
    blobs: HashMap<Digest, Bytes>,
    piece: BytesMut,
    /// Blobs that are nowhere else.
    fresh: Vec<Digest>,
}

impl Held {
    /// Larger blobs are not worth their room: reading them again costs little for each byte.
    pub const LARGEST: u64 = 64 << 10;

    /// Holds nothing, whatever is given.
    pub fn nothing() -> Self {
        Held::default()
    }

    pub(super) fn within(room: &Arc<Semaphore>) -> Self {
        Held {
            room: Some(room.clone()),
            ..Held::default()
        }
    }

    /// Holds a copy of the blob's content, if there is room.
    pub fn hold(&mut self, digest: Digest, content: &[u8]) {
        let Some(room) = &self.room else { return };
        if digest.size() > Self::LARGEST || self.blobs.contains_key(&digest) {
            return;
        }
        let Ok(permit) = room.clone().try_acquire_many_owned(content.len() as u32) else {
            return;
        };
        match &mut self.taken {
            Some(taken) => taken.merge(permit),
            None => self.taken = Some(permit),
        }
        if self.piece.capacity() < content.len() {
            self.piece = BytesMut::with_capacity(PIECE);
        }
        self.piece.extend_from_slice(content);
        self.blobs.insert(digest, self.piece.split().freeze());
    }

    /// Holds a small blob that nobody has yet: it is uploaded with the others without asking, and not kept here.
    pub fn bring(&mut self, digest: Digest, content: Bytes) {
        if self.room.is_some() {
            self.blobs.insert(digest, content);
            self.fresh.push(digest);
        }
    }

    /// What was brought.
    pub(super) fn fresh(&self) -> &[Digest] {
        &self.fresh
    }

    /// The content, if it is held.
    pub(super) fn get(&self, digest: Digest) -> Option<Bytes> {
        self.blobs.get(&digest).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction;

    fn blob(n: u32, size: usize) -> (Digest, Vec<u8>) {
        let mut content = n.to_le_bytes().to_vec();
        content.resize(size, 0);
        (DigestFunction::Sha256.digest(&content), content)
    }

    #[test]
    fn what_is_held_is_bounded_and_given_back() {
        let room = Arc::new(Semaphore::new(1_000_000));
        let mut first = Held::within(&room);
        for n in 0..1000 {
            let (digest, content) = blob(n, 4096);
            first.hold(digest, &content);
            first.hold(digest, &content);
        }
        assert_eq!(first.blobs.len(), 1_000_000 / 4096);
        for n in 0..first.blobs.len() as u32 {
            let (digest, content) = blob(n, 4096);
            assert_eq!(first.get(digest).unwrap(), content);
        }
        let mut second = Held::within(&room);
        let (digest, content) = blob(0, 4096);
        second.hold(digest, &content);
        assert_eq!(second.get(digest), None);
        drop(first);
        assert_eq!(room.available_permits(), 1_000_000);
        second.hold(digest, &content);
        assert!(second.get(digest).is_some());
        let (large, content) = blob(0, Held::LARGEST as usize + 1);
        second.hold(large, &content);
        assert_eq!(second.get(large), None);
        let mut none = Held::nothing();
        none.hold(digest, b"");
        assert_eq!(none.get(digest), None);
    }
}
