//! The index in memory: which blobs are here, as which files, in the order of their last use, and
//! how often each is pinned. One entry is 64 bytes, so that a cache of a million blobs costs less
//! than 100 MB. Nothing here touches the disk, and every operation but growing is constant time.
//!
//! An entry is in the list of evictable blobs if it has a file, no pin and no claim. A *claim* is
//! the exclusive right to change a digest's files; it is marked here and handed out in `claim.rs`.

use std::hash::{BuildHasher, RandomState};

use super::StoreUsage;
use super::files::{Files, disk_size};
use super::room::Promised;
use crate::reapi::{Digest, DigestFunction};

const NONE: u32 = u32::MAX;

struct Entry {
    hash: [u8; 32],
    size: u64,
    /// Next in the bucket; in a vacant entry, the next vacant one.
    chain: u32,
    newer: u32,
    older: u32,
    pins: u32,
    function: DigestFunction,
    files: Files,
    claimed: bool,
    listed: bool,
}

/// A place in the index; valid while the digest is pinned, claimed, or has files.
pub(super) type Slot = u32;

pub(super) struct Index {
    entries: Vec<Entry>,
    buckets: Vec<u32>,
    /// Keyed, and of the whole digest: digests come from outside without having been computed, and nobody there can
    /// choose some that all meet in one bucket.
    hash: RandomState,
    vacant: u32,
    occupied: usize,
    newest: u32,
    oldest: u32,
    usage: StoreUsage,
    /// Blobs whose files must be hashed before their first use.
    doubtful: usize,
    /// What is promised to files that are on their way here.
    pub(super) promised: Promised,
    /// Claims held now.
    pub(super) claims: usize,
    /// Whether the store was closed.
    pub(super) closed: bool,
    /// Whether eviction is on its way from the high to the low water mark.
    pub(super) draining: bool,
}

impl Index {
    pub(super) fn new() -> Self {
        Index {
            entries: Vec::new(),
            buckets: vec![NONE; 1024],
            hash: RandomState::new(),
            vacant: NONE,
            occupied: 0,
            newest: NONE,
            oldest: NONE,
            usage: StoreUsage::default(),
            doubtful: 0,
            promised: Promised::default(),
            claims: 0,
            closed: false,
            draining: false,
        }
    }

    pub(super) fn usage(&self) -> StoreUsage {
        self.usage
    }

    pub(super) fn doubtful(&self) -> usize {
        self.doubtful
    }

    /// Disk bytes of all files, also of those that are only promised.
    pub(super) fn taken(&self) -> u64 {
        self.usage.disk.saturating_add(self.promised.all)
    }

    fn entry(&self, slot: Slot) -> &Entry {
        &self.entries[slot as usize]
    }

    fn entry_mut(&mut self, slot: Slot) -> &mut Entry {
        &mut self.entries[slot as usize]
    }

    pub(super) fn digest(&self, slot: Slot) -> Digest {
        let entry = self.entry(slot);
        Digest::new(entry.function, entry.hash, entry.size)
    }

    pub(super) fn files(&self, slot: Slot) -> Files {
        self.entry(slot).files
    }

    pub(super) fn claimed(&self, slot: Slot) -> bool {
        self.entry(slot).claimed
    }

    fn bucket(&self, digest: Digest) -> usize {
        self.hash.hash_one(digest) as usize & (self.buckets.len() - 1)
    }

    pub(super) fn find(&self, digest: Digest) -> Option<Slot> {
        let hash = digest.hash();
        let mut slot = self.buckets[self.bucket(digest)];
        while slot != NONE {
            let entry = self.entry(slot);
            if entry.hash == hash
                && entry.size == digest.size()
                && entry.function == digest.function()
            {
                return Some(slot);
            }
            slot = entry.chain;
        }
        None
    }

    pub(super) fn find_or_insert(&mut self, digest: Digest) -> Slot {
        match self.find(digest) {
            Some(slot) => slot,
            None => self.insert(digest),
        }
    }

    /// Takes in a digest that is not in it.
    pub(super) fn insert(&mut self, digest: Digest) -> Slot {
        if self.occupied >= self.buckets.len() {
            self.grow();
        }
        let bucket = self.bucket(digest);
        let entry = Entry {
            hash: digest.hash(),
            size: digest.size(),
            chain: self.buckets[bucket],
            newer: NONE,
            older: NONE,
            pins: 0,
            function: digest.function(),
            files: Files::none(),
            claimed: false,
            listed: false,
        };
        let slot = if self.vacant != NONE {
            let slot = self.vacant;
            self.vacant = self.entry(slot).chain;
            *self.entry_mut(slot) = entry;
            slot
        } else {
            if self.entries.len() == self.entries.capacity() {
                // By a quarter, not by doubling: half of a large index would lie idle.
                self.entries
                    .reserve_exact((self.entries.len() / 4).max(256));
            }
            self.entries.push(entry);
            (self.entries.len() - 1) as u32
        };
        self.buckets[bucket] = slot;
        self.occupied += 1;
        slot
    }

    fn grow(&mut self) {
        self.buckets = vec![NONE; self.buckets.len() * 2];
        // Vacant entries stand in no bucket; their chain is the list of vacant ones.
        let mut vacant = vec![false; self.entries.len()];
        let mut slot = self.vacant;
        while slot != NONE {
            vacant[slot as usize] = true;
            slot = self.entry(slot).chain;
        }
        for (slot, vacant) in vacant.into_iter().enumerate() {
            if !vacant {
                let bucket = self.bucket(self.digest(slot as Slot));
                self.entries[slot].chain = self.buckets[bucket];
                self.buckets[bucket] = slot as u32;
            }
        }
    }

    /// Gives the entry back if nothing is known of its digest any more, and keeps the list right.
    fn settle(&mut self, slot: Slot) {
        let entry = self.entry(slot);
        let (any, pinned, claimed, listed) = (
            entry.files.any(),
            entry.pins > 0,
            entry.claimed,
            entry.listed,
        );
        let evictable = any && !pinned && !claimed;
        if evictable && !listed {
            self.list(slot);
        } else if !evictable && listed {
            self.unlist(slot);
        }
        if !any && !pinned && !claimed {
            self.vacate(slot);
        }
    }

    fn vacate(&mut self, slot: Slot) {
        let bucket = self.bucket(self.digest(slot));
        let after = self.entry(slot).chain;
        if self.buckets[bucket] == slot {
            self.buckets[bucket] = after;
        } else {
            let mut before = self.buckets[bucket];
            while self.entry(before).chain != slot {
                before = self.entry(before).chain;
            }
            self.entry_mut(before).chain = after;
        }
        self.entry_mut(slot).chain = self.vacant;
        self.vacant = slot;
        self.occupied -= 1;
    }

    fn list(&mut self, slot: Slot) {
        let second = self.newest;
        let entry = self.entry_mut(slot);
        entry.listed = true;
        entry.newer = NONE;
        entry.older = second;
        if second == NONE {
            self.oldest = slot;
        } else {
            self.entry_mut(second).newer = slot;
        }
        self.newest = slot;
    }

    fn unlist(&mut self, slot: Slot) {
        let entry = self.entry_mut(slot);
        entry.listed = false;
        let (newer, older) = (entry.newer, entry.older);
        if newer == NONE {
            self.newest = older;
        } else {
            self.entry_mut(newer).older = older;
        }
        if older == NONE {
            self.oldest = newer;
        } else {
            self.entry_mut(older).newer = newer;
        }
    }

    /// The files of a blob if they may be used as they are, which counts as a use.
    pub(super) fn used(&mut self, slot: Slot) -> Option<Files> {
        let files = self.files(slot);
        (files.any() && !files.unverified()).then(|| {
            self.touch(slot);
            files
        })
    }

    /// Counts as a use. A pinned blob comes to the front when its last pin goes.
    pub(super) fn touch(&mut self, slot: Slot) {
        if self.entry(slot).listed && self.newest != slot {
            self.unlist(slot);
            self.list(slot);
        }
    }

    /// Takes note of what a blob's files are now.
    pub(super) fn set_files(&mut self, slot: Slot, files: Files) {
        let entry = self.entry_mut(slot);
        let before = std::mem::replace(&mut entry.files, files);
        let size = entry.size;
        let disk = disk_size(size);
        self.usage.disk = self
            .usage
            .disk
            .saturating_sub(disk.saturating_mul(before.count()))
            .saturating_add(disk.saturating_mul(files.count()));
        let doubtful = |files: Files| usize::from(files.any() && files.unverified());
        self.doubtful = self.doubtful + doubtful(files) - doubtful(before);
        match (before.any(), files.any()) {
            (false, true) => {
                self.usage.blobs += 1;
                self.usage.bytes = self.usage.bytes.saturating_add(size);
            }
            (true, false) => {
                self.usage.blobs -= 1;
                self.usage.bytes = self.usage.bytes.saturating_sub(size);
            }
            _ => {}
        }
        self.settle(slot);
    }

    pub(super) fn set_claimed(&mut self, slot: Slot, claimed: bool) {
        if std::mem::replace(&mut self.entry_mut(slot).claimed, claimed) != claimed {
            if claimed {
                self.claims += 1;
            } else {
                self.claims -= 1;
            }
        }
        self.settle(slot);
    }

    pub(super) fn pin(&mut self, digest: Digest) -> Slot {
        let slot = self.find_or_insert(digest);
        self.entry_mut(slot).pins += 1;
        self.settle(slot);
        slot
    }

    pub(super) fn unpin(&mut self, slot: Slot) {
        self.entry_mut(slot).pins -= 1;
        self.settle(slot);
    }

    /// The blob whose last use is longest ago, of those that may go.
    pub(super) fn oldest(&self) -> Option<Slot> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Disk bytes of blobs that may not be evicted now; walks the whole list of those that may.
    pub(super) fn held(&self) -> u64 {
        let mut evictable: u64 = 0;
        let mut slot = self.oldest;
        while slot != NONE {
            let entry = self.entry(slot);
            evictable =
                evictable.saturating_add(disk_size(entry.size).saturating_mul(entry.files.count()));
            slot = entry.newer;
        }
        self.taken().saturating_sub(evictable)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    fn digest(n: u8) -> Digest {
        DigestFunction::Sha256.digest(&vec![n; usize::from(n) * 100])
    }

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Entry>() <= 64);
    }

    #[test]
    fn digests_that_are_alike_meet_in_no_bucket() {
        let mut index = Index::new();
        // Alike but for one part of it, which a caller would vary.
        let alike = (0..1u32 << 14).flat_map(|n| {
            let at = |place: usize, n: u32| {
                let mut hash = [0x5a; 32];
                hash[place..place + 4].copy_from_slice(&n.to_be_bytes());
                hash
            };
            let mut tops = [0x5a; 32];
            for word in 0..7 {
                tops[word * 4 + 3] = (n >> (word * 2)) as u8 & 3;
            }
            let known = |hash| Digest::new(DigestFunction::Sha256, hash, 1);
            let sized = Digest::new(DigestFunction::Sha256, [0x5a; 32], u64::from(n) << 20 | 1);
            [
                sized,
                known(at(0, n)),
                known(at(28, n)),
                known(at(12, n << 18)),
                known(tops),
            ]
        });
        for digest in alike {
            index.pin(digest);
        }
        let below = |slot: u32| (slot != NONE).then_some(slot);
        let longest = index.buckets.iter().map(|&first| {
            std::iter::successors(below(first), |&slot| below(index.entry(slot).chain)).count()
        });
        let longest = longest.max().unwrap();
        assert!(
            longest < 24,
            "{longest} of {} in one bucket",
            index.occupied
        );
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u8, u8),
        Pin(u8),
        Unpin(u8),
        Touch(u8),
        EvictOldest,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..60u8, 0..4u8).prop_map(|(n, files)| Step::Set(n, files)),
            (0..60u8).prop_map(Step::Pin),
            (0..60u8).prop_map(Step::Unpin),
            (0..60u8).prop_map(Step::Touch),
            Just(Step::EvictOldest),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Against the plainest model there is: a map and a queue.
        #[test]
        fn it_is_a_map_with_a_queue(steps in prop::collection::vec(step(), 0..400)) {
            let mut index = Index::new();
            // Few buckets, so that chains and growth are exercised.
            index.buckets = vec![NONE; 2];
            let mut files: HashMap<u8, u8> = HashMap::new();
            let mut pins: HashMap<u8, Vec<Slot>> = HashMap::new();
            let mut queue: VecDeque<u8> = VecDeque::new();
            for step in steps {
                match step {
                    Step::Set(n, now) => {
                        let slot = index.find_or_insert(digest(n));
                        index.set_files(slot, Files(now));
                        files.insert(n, now);
                        if now == 0 {
                            queue.retain(|&m| m != n);
                        } else if !queue.contains(&n) && !pins.contains_key(&n) {
                            queue.push_back(n);
                        }
                    }
                    Step::Pin(n) => {
                        pins.entry(n).or_default().push(index.pin(digest(n)));
                        queue.retain(|&m| m != n);
                    }
                    Step::Unpin(n) => {
                        let Some(slots) = pins.get_mut(&n) else { continue };
                        index.unpin(slots.pop().unwrap());
                        if slots.is_empty() {
                            pins.remove(&n);
                            if files.get(&n).copied().unwrap_or(0) != 0 {
                                queue.push_back(n);
                            }
                        }
                    }
                    Step::Touch(n) => {
                        if let Some(slot) = index.find(digest(n)) {
                            index.touch(slot);
                        }
                        if queue.contains(&n) {
                            queue.retain(|&m| m != n);
                            queue.push_back(n);
                        }
                    }
                    Step::EvictOldest => {
                        let oldest = index.oldest();
                        prop_assert_eq!(oldest.map(|s| index.digest(s)), queue.front().map(|&n| digest(n)));
                        if let (Some(slot), Some(n)) = (oldest, queue.pop_front()) {
                            index.set_files(slot, Files::none());
                            files.insert(n, 0);
                        }
                    }
                }
                let mut usage = StoreUsage::default();
                for (&n, &now) in &files {
                    let slot = index.find(digest(n));
                    prop_assert_eq!(slot.map_or(0, |s| index.files(s).0), now);
                    prop_assert_eq!(slot.is_some(), now != 0 || pins.contains_key(&n));
                    if now != 0 {
                        usage.blobs += 1;
                        usage.bytes += digest(n).size();
                        usage.disk += disk_size(digest(n).size()) * Files(now).count();
                    }
                }
                prop_assert_eq!(index.usage(), usage);
                let evictable: u64 = queue.iter().map(|n| disk_size(digest(*n).size()) * Files(files[n]).count()).sum();
                prop_assert_eq!(index.held(), usage.disk - evictable);
            }
        }
    }
}
