//! Decoded directories, kept between actions: most input roots share most of their subtrees with
//! the one before. What is let go of is still found as long as somebody else holds it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use lru::LruCache;
use parking_lot::Mutex;

use super::{Directory, Properties};
use crate::reapi::Digest;

/// Decoded directories, shared by all actions, least recently used ones dropped by bytes.
pub struct TreeStore {
    // One lock, held for a look-up of some 100 ns: shards would make "least recently used" a guess.
    kept: Mutex<Kept>,
    capacity: u64,
}

struct Kept {
    directories: LruCache<Digest, (Arc<Directory>, u64)>,
    bytes: u64,
    /// Let go of, while others held them.
    elsewhere: HashMap<Digest, Weak<Directory>>,
    /// Once it holds so many, those that nobody holds any more are cleared.
    clear_at: usize,
}

/// Those that are held elsewhere, before it is looked which of them still are.
const ELSEWHERE: usize = 1024;

impl Kept {
    fn note(&mut self, digest: Digest, held: &Arc<Directory>) {
        self.elsewhere.insert(digest, Arc::downgrade(held));
        if self.elsewhere.len() >= self.clear_at {
            self.elsewhere.retain(|_, held| held.strong_count() > 0);
            self.clear_at = ELSEWHERE.max(self.elsewhere.len() * 2);
        }
    }
}

impl TreeStore {
    /// A store that keeps about `bytes` of decoded messages.
    pub fn new(bytes: u64) -> Self {
        TreeStore {
            kept: Mutex::new(Kept {
                directories: LruCache::unbounded(),
                bytes: 0,
                elsewhere: HashMap::new(),
                clear_at: ELSEWHERE,
            }),
            capacity: bytes,
        }
    }

    /// The bytes that are kept now, as estimated.
    pub fn bytes(&self) -> u64 {
        self.kept.lock().bytes
    }

    pub(super) fn get(&self, digest: Digest) -> Option<Arc<Directory>> {
        let mut kept = self.kept.lock();
        let here = kept.directories.get(&digest).map(|(d, _)| d.clone());
        here.or_else(|| kept.elsewhere.get(&digest)?.upgrade())
    }

    /// Keeps a directory that was decoded from the verified bytes of `digest`.
    pub(super) fn put(&self, digest: Digest, directory: Arc<Directory>) {
        let weight = weight(&directory);
        if weight > self.capacity {
            self.kept.lock().note(digest, &directory);
            return;
        }
        let mut dropped = Vec::new();
        {
            let mut kept = self.kept.lock();
            kept.bytes += weight;
            if let Some((_, old)) = kept.directories.put(digest, (directory, weight)) {
                kept.bytes -= old;
            }
            while kept.bytes > self.capacity
                && let Some((digest, (old, weight))) = kept.directories.pop_lru()
            {
                if Arc::strong_count(&old) > 1 {
                    kept.note(digest, &old);
                }
                kept.bytes -= weight;
                dropped.push(old);
            }
        }
        // A large directory takes a while to free: not under the lock.
        drop(dropped);
    }
}

/// What a directory occupies, with the allocator's rounding guessed at.
pub(crate) fn weight(directory: &Directory) -> u64 {
    const ENTRY: usize = 200;
    const ALLOCATION: usize = 16;
    let properties = |p: &Option<Box<Properties>>| {
        p.as_ref().map_or(0, |p| {
            let named = p.named.iter().map(|(n, v)| n.len() + v.len() + 80);
            size_of::<Properties>() + named.sum::<usize>()
        })
    };
    let files = directory
        .files
        .iter()
        .map(|f| size_of::<super::File>() + f.name.len() + ALLOCATION + properties(&f.properties));
    let directories = (directory.directories.iter())
        .map(|d| size_of::<super::Subdirectory>() + d.name.len() + ALLOCATION);
    let symlinks = directory.symlinks.iter().map(|s| {
        let text = s.name.len() + s.target.len() + 2 * ALLOCATION;
        size_of::<super::Symlink>() + text + properties(&s.properties)
    });
    let entries: usize = files.chain(directories).chain(symlinks).sum();
    (ENTRY + entries + properties(&directory.properties)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction;
    use crate::tree::Symlink;

    fn directory(name: &str) -> (Digest, Arc<Directory>) {
        let directory = Directory {
            symlinks: vec![Symlink {
                name: name.into(),
                target: "t".into(),
                properties: None,
            }],
            ..Default::default()
        };
        let digest = DigestFunction::Sha256.digest(name.as_bytes());
        (digest, Arc::new(directory))
    }

    #[test]
    fn stays_within_its_bytes_and_keeps_what_is_used() {
        let store = TreeStore::new(100_000);
        let (favourite, content) = directory("favourite");
        store.put(favourite, content);
        for n in 0..10_000 {
            let (digest, content) = directory(&n.to_string());
            store.put(digest, content);
            assert!(store.bytes() <= 100_000);
            assert!(store.get(digest).is_some());
            assert!(store.get(favourite).is_some(), "after {n}");
        }
        assert!(store.bytes() > 50_000);
        assert!(store.get(directory("0").0).is_none());
    }

    #[test]
    fn what_somebody_else_holds_is_found_however_much_there_is() {
        let store = TreeStore::new(10_000);
        let all: Vec<_> = (0..5_000).map(|n| directory(&n.to_string())).collect();
        for (digest, content) in &all {
            store.put(*digest, content.clone());
        }
        let found = |(digest, content): &(Digest, Arc<Directory>)| {
            store
                .get(*digest)
                .is_some_and(|found| Arc::ptr_eq(&found, content))
        };
        assert!(all.iter().all(found));
        assert!(store.bytes() <= 10_000);
        let digests: Vec<Digest> = all.into_iter().map(|(digest, _)| digest).collect();
        let left = digests
            .iter()
            .filter(|digest| store.get(**digest).is_some());
        assert!(left.count() < 100);
        for n in 0..20_000 {
            let (digest, content) = directory(&format!("more {n}"));
            store.put(digest, content);
        }
        assert!(store.kept.lock().elsewhere.len() < 12_000);
    }

    #[test]
    fn the_same_directory_counts_once() {
        let store = TreeStore::new(100_000);
        let (digest, content) = directory("a");
        store.put(digest, content.clone());
        let once = store.bytes();
        store.put(digest, content);
        assert_eq!(store.bytes(), once);
        let nothing = TreeStore::new(0);
        let (digest, content) = directory("a");
        nothing.put(digest, content);
        assert_eq!((nothing.bytes(), nothing.get(digest)), (0, None));
    }
}
