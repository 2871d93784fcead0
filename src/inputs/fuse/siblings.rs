//! Which files are fetched along with one that is read: small ones of its directory, when others of it were read before.
//!
//! A call for each file costs more than the file. Who reads several files of a directory often reads most of it, in its order:
//! `cp -r`, a package that is imported, an archive that is made. So what is fetched along grows with what was really read, and is never
//! more than [`EACH`] files for each of those; of a directory of which one file is read, only that one is fetched.

use std::collections::{HashMap, HashSet};

use crate::cas::{LocalStore, Wanted};
use crate::reapi::Digest;
use crate::tree::Directory;

/// Files that are fetched along, at most, for each that was read.
const EACH: usize = 2;
/// Larger ones are worth a call of their own.
const SMALL: u64 = 64 << 10;
/// Bytes of one turn, which whoever reads waits for.
const TURN: u64 = 1 << 20;
/// Files of which it is looked whether they are here already, in one turn.
const LOOKED_AT: usize = 1024;
/// Directories, and files that were fetched along and are unread, of which something is remembered.
const REMEMBERED: usize = 32_768;

/// Of one action, or of other readers: what was read of which directory.
pub(super) struct Siblings {
    directories: HashMap<Digest, Habit>,
    /// What was fetched along and is not read yet, and of which directory.
    unread: HashMap<Digest, Digest>,
    /// Bytes that may still be fetched along.
    room: u64,
}

#[derive(Clone, Copy, Default)]
struct Habit {
    read: usize,
    along: usize,
    /// The last that was not here when it was read: the kernel asks more than once for what cannot be had.
    last: Option<usize>,
}

impl Siblings {
    /// May fetch so many bytes along.
    pub(super) fn new(room: u64) -> Self {
        Siblings {
            directories: HashMap::new(),
            unread: HashMap::new(),
            room,
        }
    }

    /// The file at this place of a directory is not here, and somebody reads it: what to fetch along.
    pub(super) fn along(
        &mut self,
        of: Digest,
        directory: &Directory,
        at: usize,
        store: &LocalStore,
    ) -> Vec<Wanted> {
        if directory
            .files
            .get(at)
            .is_none_or(|file| file.digest.size() > SMALL)
        {
            return Vec::new();
        }
        if self.directories.len() >= REMEMBERED || self.unread.len() >= REMEMBERED {
            self.directories.clear();
            self.unread.clear();
        }
        let habit = self.directories.entry(of).or_default();
        if habit.last.replace(at) != Some(at) {
            habit.read += 1;
        }
        let most = (EACH * (habit.read - 1)).saturating_sub(habit.along);
        if most == 0 {
            return Vec::new();
        }
        let along = after(directory, at, most, self.room.min(TURN), store);
        habit.along += along.len();
        self.unread
            .extend(along.iter().map(|wanted| (wanted.digest, of)));
        self.room -= along.iter().map(|wanted| wanted.digest.size()).sum::<u64>();
        along
    }

    /// A content was read, perhaps one that was fetched along.
    pub(super) fn read(&mut self, digest: Digest) {
        if let Some(directory) = self.unread.remove(&digest)
            && let Some(habit) = self.directories.get_mut(&directory)
        {
            habit.read += 1;
        }
    }
}

/// The small files that come after the one at this place, and then those before it, as far as they are not here.
fn after(
    directory: &Directory,
    at: usize,
    most: usize,
    bytes: u64,
    store: &LocalStore,
) -> Vec<Wanted> {
    let (before, after) = directory.files.split_at(at);
    let candidates: Vec<Wanted> = { after.iter().skip(1).chain(before) }
        .filter(|file| !file.digest.is_empty() && file.digest.size() <= SMALL)
        .take(LOOKED_AT.min(most.saturating_mul(4)))
        .map(|file| Wanted {
            digest: file.digest,
            executable: file.executable,
        })
        .collect();
    let digests: Vec<Digest> = candidates.iter().map(|wanted| wanted.digest).collect();
    let mut lacking: HashSet<Digest> = store.missing(&digests).into_iter().collect();
    let mut left = bytes;
    { candidates.into_iter() }
        // Each once: two files may have one content.
        .filter(|wanted| lacking.remove(&wanted.digest))
        .take(most)
        .map_while(|wanted| {
            left = left.checked_sub(wanted.digest.size())?;
            Some(wanted)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::subtree::tests::{directory, file, store};
    use super::*;

    fn files(n: usize) -> Vec<crate::tree::File> {
        let name = |n: usize| format!("f{n:04}");
        (0..n).map(|n| file(&name(n), name(n).as_bytes())).collect()
    }

    /// Reads files in this order; how many calls were made, and how many files came that were not read.
    fn read_all(of: &[crate::tree::File], order: impl Iterator<Item = usize>) -> (usize, usize) {
        let (_dir, store) = store();
        let tree = directory(of, &[]);
        let mut siblings = Siblings::new(1 << 30);
        let mut here = HashSet::new();
        let (mut calls, mut read) = (0, HashSet::new());
        for at in order {
            let digest = of[at].digest;
            read.insert(digest);
            if here.insert(digest) {
                calls += 1;
                let along = siblings.along(tree.digest, &tree.directory, at, &store);
                let name = |digest| &*of.iter().find(|file| file.digest == digest).unwrap().name;
                for digest in along.iter().map(|wanted| wanted.digest).chain([digest]) {
                    store.put(digest, name(digest).as_bytes(), false).unwrap();
                    here.insert(digest);
                }
                let unread = here.difference(&read).count();
                assert!(unread <= EACH * (read.len() - 1));
            } else {
                siblings.read(digest);
            }
        }
        (calls, here.difference(&read).count())
    }

    #[test]
    fn who_reads_a_directory_needs_few_calls_and_who_reads_one_file_gets_one() {
        let files = files(1000);
        let (calls, _) = read_all(&files, 0..1000);
        assert!(calls <= 10, "{calls}");
        // In any order it takes more; 7 and 1000 have no common divisor.
        let (calls, _) = read_all(&files, (0..1000).map(|n| n * 7 % 1000));
        assert!(calls <= 200, "{calls}");
        assert_eq!(read_all(&files, [500, 500, 500].into_iter()), (1, 0));
        let (_, unread) = read_all(&files, (0..5).map(|n| n * 100));
        assert!(unread <= 8, "{unread}");
    }

    #[test]
    fn neither_large_files_nor_those_that_are_here_nor_more_than_there_is_room_for_come_along() {
        let (_dir, store) = store();
        let mut all = files(40);
        let large = vec![0; SMALL as usize + 1];
        all[20] = file("f0020", &large);
        for file in &all[21..30] {
            store.put(file.digest, file.name.as_bytes(), false).unwrap();
        }
        let tree = directory(&all, &[]);
        let (of, directory) = (tree.digest, &tree.directory);
        let mut siblings = Siblings::new(1 << 30);
        for at in 0..15 {
            // Nothing of what comes is read: the bound holds over all turns.
            let along = siblings.along(of, directory, at, &store);
            assert_eq!(along.len(), if at == 0 { 0 } else { EACH });
        }
        let unread = &siblings.unread;
        assert!(
            all[20..30]
                .iter()
                .all(|file| !unread.contains_key(&file.digest))
        );
        assert!(siblings.along(of, directory, 20, &store).is_empty());
        let mut narrow = Siblings::new(12);
        let each: Vec<usize> = (0..3)
            .map(|at| narrow.along(of, directory, at, &store).len())
            .collect();
        assert_eq!((each, narrow.room), (vec![0, 2, 0], 2));
    }
}
