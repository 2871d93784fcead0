//! A few MiB of small messages read lately.

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use crate::reapi::Digest;

const BYTES: u64 = 4 << 20;
/// Larger messages are rare and would push out many.
const LARGEST: u64 = 64 << 10;
/// What an entry costs beside its bytes.
const ENTRY: u64 = 200;

/// Least recently used ones go first, by bytes.
pub(super) struct Recent {
    blobs: Mutex<(LruCache<Digest, Bytes>, u64)>,
}

impl Default for Recent {
    fn default() -> Self {
        Recent {
            blobs: Mutex::new((LruCache::unbounded(), 0)),
        }
    }
}

impl Recent {
    pub(super) fn get(&self, digest: Digest) -> Option<Bytes> {
        self.blobs.lock().0.get(&digest).cloned()
    }

    /// Keeps a copy: the bytes given may be a slice of a much larger message.
    pub(super) fn put(&self, digest: Digest, bytes: &Bytes) {
        if digest.size() > LARGEST {
            return;
        }
        let (blobs, total) = &mut *self.blobs.lock();
        if blobs.contains(&digest) {
            return;
        }
        blobs.put(digest, Bytes::copy_from_slice(bytes));
        *total += digest.size() + ENTRY;
        while *total > BYTES
            && let Some((oldest, _)) = blobs.pop_lru()
        {
            *total -= oldest.size() + ENTRY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction;

    #[test]
    fn memory_is_bounded_and_the_latest_stay() {
        let recent = Recent::default();
        let blob = |n: u64| {
            let mut data = vec![0; 10_000];
            data[..8].copy_from_slice(&n.to_le_bytes());
            (DigestFunction::Sha256.digest(&data), Bytes::from(data))
        };
        for n in 0..2000 {
            let (digest, bytes) = blob(n);
            recent.put(digest, &bytes);
            recent.put(digest, &bytes);
        }
        let (blobs, total) = &*recent.blobs.lock();
        let real: u64 = blobs.iter().map(|(_, b)| b.len() as u64 + ENTRY).sum();
        assert_eq!(real, *total);
        assert!(*total <= BYTES && *total > BYTES / 2);
        assert!(blobs.contains(&blob(1999).0) && !blobs.contains(&blob(0).0));
    }
}
