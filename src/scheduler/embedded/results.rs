//! The action cache: results of actions, one file each, below a directory of its own.
//!
//! A file is written beside its place and renamed into it, and carries a hash of its content: whatever a crash or a disk
//! leaves behind is either a whole result or a miss. The least recently used results go first when there are too many, or when they
//! take too much of the disk. Their files count as the store's own, in its quota and above its floor of free space; when it has no
//! blob left to evict, results go.
//! Files are named `FUNCTION/HH/HASH-SIZE`; their modification time is the time of their last use, as far as a restart
//! needs to know it.

use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use prost::Message;

use super::references::available;
use crate::cas::{Beside, CasError, LocalStore, Spare, disk_size};
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

/// What a file begins with; then follows the BLAKE3 hash of the rest.
const MAGIC: &[u8; 8] = b"bxresult";
const HEADER: usize = MAGIC.len() + 32;
/// The largest result that is kept, in bytes: one that still fits into an answer.
pub const MAX_RESULT: usize = (4 << 20) - (64 << 10);
/// The part of the store's size that results may take.
const SHARE: u64 = 16;
/// Bytes of disk that results give up at a time, if the store has no room.
const SLICE: u64 = 1 << 20;
/// How stale a file's modification time may become before a use refreshes it.
const STALE: Duration = Duration::from_secs(600);

/// Results of actions, on disk. All methods block.
pub struct ActionCache {
    directory: PathBuf,
    store: Arc<LocalStore>,
    index: Mutex<Index>,
    /// Bytes of disk that they may take.
    most: u64,
    /// Left with the store, which drops it when it needs room; `None` before there is a result.
    spare: Mutex<Option<Spare>>,
    this: Weak<ActionCache>,
    /// Of results, and of files that are not in their places yet.
    numbers: AtomicU64,
}

struct Index {
    results: LruCache<Digest, Kept>,
    /// Their bytes of disk.
    bytes: u64,
}

/// A result that is here.
struct Kept {
    /// No other one's, also not of the same action: which result somebody has looked at.
    number: u64,
    room: Beside,
}

impl Index {
    /// Takes the least recently used out, as long as there are more than so many bytes.
    fn shrink(&mut self, most: u64) -> Vec<(Digest, Kept)> {
        let mut gone = Vec::new();
        while self.bytes > most {
            let Some((digest, kept)) = self.results.pop_lru() else {
                break;
            };
            self.bytes = self.bytes.saturating_sub(kept.room.bytes());
            gone.push((digest, kept));
        }
        gone
    }
}

/// Dropped by the store, it takes some results with it.
struct Giving(Weak<ActionCache>);

impl Drop for Giving {
    fn drop(&mut self) {
        if let Some(cache) = self.0.upgrade() {
            cache.give(SLICE);
            cache.leave();
        }
    }
}

impl ActionCache {
    /// Opens or creates the cache in `directory`; keeps at most `max_entries` results, and at most a sixteenth of what the store may
    /// take (but always one), the least recently used go first.
    pub fn open(
        directory: &Path,
        max_entries: usize,
        store: Arc<LocalStore>,
    ) -> Result<Arc<Self>, CasError> {
        let unwritten = directory.join("unwritten");
        match fs::remove_dir_all(&unwritten) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(disk("empty", &unwritten, error));
            }
            _ => {}
        }
        fs::create_dir_all(&unwritten).map_err(|error| disk("create", &unwritten, error))?;
        // Results hold what commands said: no other user of the host may read them.
        fs::set_permissions(directory, Permissions::from_mode(0o700))
            .map_err(|error| disk("set the mode of", directory, error))?;
        let mut found = Vec::new();
        for function in DigestFunction::ALL {
            scan(&directory.join(function.name()), function, &mut found)?;
        }
        let max_entries = NonZeroUsize::new(max_entries).unwrap_or(NonZeroUsize::MIN);
        let largest = disk_size((HEADER + MAX_RESULT) as u64);
        let cache = Arc::new_cyclic(|this| ActionCache {
            directory: directory.to_owned(),
            most: (store.high_water() / SHARE).max(largest),
            store,
            index: Mutex::new(Index {
                results: LruCache::new(max_entries),
                bytes: 0,
            }),
            spare: Mutex::default(),
            this: this.clone(),
            numbers: AtomicU64::new(0),
        });
        cache.take_in(found, max_entries.get());
        Ok(cache)
    }

    /// Takes in what an earlier process has left, and first removes what is too much.
    fn take_in(&self, mut found: Vec<Found>, max_entries: usize) {
        // The last used first.
        found.sort_by_key(|found| std::cmp::Reverse(found.used));
        let mut bytes: u64 = 0;
        let over = found.iter().take(max_entries).position(|found| {
            bytes = bytes.saturating_add(found.bytes);
            bytes > self.most
        });
        for found in found.drain(over.unwrap_or(max_entries).min(found.len())..) {
            let _ = fs::remove_file(self.path(found.digest));
        }
        for found in found.into_iter().rev() {
            match self.store.beside(found.bytes) {
                Ok(beside) => self.note(self.index.lock(), found.digest, beside),
                Err(why) => {
                    tracing::warn!(%why, "action cache: removed a result");
                    let _ = fs::remove_file(self.path(found.digest));
                }
            }
        }
        self.leave();
        // They were on the disk before anybody counted them.
        self.store.keep_free(0);
    }

    /// The result of an action, if it is here and every blob that it names is still in the store.
    pub fn get(&self, action: Digest) -> Result<Option<re::ActionResult>, CasError> {
        let known = self
            .index
            .lock()
            .results
            .get(&action)
            .map(|kept| kept.number);
        let Some(seen) = known else {
            return Ok(None);
        };
        let path = self.path(action);
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.remove(action, seen);
                return Ok(None);
            }
            Err(error) => return Err(disk("read", &path, error)),
        };
        let Some(result) = decode(&bytes) else {
            tracing::warn!(path = %path.display(), "action cache: removed a damaged entry");
            self.remove(action, seen);
            return Ok(None);
        };
        if !available(&self.store, action.function(), &result)? {
            self.remove(action, seen);
            return Ok(None);
        }
        Ok(Some(result))
    }

    /// Keeps a result. One that is larger than [`MAX_RESULT`] is refused with `TooLarge`.
    pub fn put(&self, action: Digest, result: &re::ActionResult) -> Result<(), CasError> {
        let content = result.encode_to_vec();
        if content.len() > MAX_RESULT {
            return Err(CasError::TooLarge {
                digest: action,
                limit: MAX_RESULT as u64,
                what: "a cached ActionResult",
            });
        }
        let mut bytes = Vec::with_capacity(HEADER + content.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(blake3::hash(&content).as_bytes());
        bytes.extend_from_slice(&content);
        let size = disk_size(bytes.len() as u64);
        let gone = self.index.lock().shrink(self.most.saturating_sub(size));
        self.unlink(gone);
        let mut beside = self.store.reserve_beside(bytes.len() as u64)?;
        let path = self.path(action);
        let unwritten = self
            .directory
            .join("unwritten")
            .join(self.numbers.fetch_add(1, Ordering::Relaxed).to_string());
        // The name and the index change together: what a name leads to is what is counted.
        let place = || {
            fs::write(&unwritten, &bytes)?;
            let index = self.index.lock();
            fs::rename(&unwritten, &path).or_else(|error| match path.parent() {
                Some(parent) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir_all(parent)?;
                    fs::rename(&unwritten, &path)
                }
                _ => Err(error),
            })?;
            Ok(index)
        };
        let placed = place().or_else(|error: io::Error| match error.kind() {
            // Others fill the disk as well.
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let _ = fs::remove_file(&unwritten);
                self.give(size);
                self.store.make_room(size);
                place()
            }
            _ => Err(error),
        });
        match placed {
            Ok(index) => {
                beside.written();
                self.note(index, action, beside);
            }
            Err(error) => {
                let _ = fs::remove_file(&unwritten);
                return Err(disk("write", &path, error));
            }
        }
        self.leave();
        Ok(())
    }

    /// How many results there are.
    pub fn len(&self) -> usize {
        self.index.lock().results.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes `action` the most recently used and removes what goes beyond the bound.
    fn note(&self, mut index: MutexGuard<'_, Index>, action: Digest, beside: Beside) {
        index.bytes = index.bytes.saturating_add(beside.bytes());
        let kept = Kept {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            room: beside,
        };
        let pushed_out = index.results.push(action, kept);
        if let Some((_, kept)) = &pushed_out {
            index.bytes = index.bytes.saturating_sub(kept.room.bytes());
        }
        // Others may have put some at the same time.
        let mut gone = index.shrink(self.most);
        drop(index);
        // What was here under the same name has gone with the rename.
        gone.extend(pushed_out.filter(|(gone, _)| *gone != action));
        self.unlink(gone);
    }

    /// Removes the least recently used results, for about so many bytes of disk.
    fn give(&self, bytes: u64) {
        let mut index = self.index.lock();
        let most = index.bytes.saturating_sub(bytes);
        let gone = index.shrink(most);
        drop(index);
        self.unlink(gone);
    }

    /// Leaves the results with the store, unless they are there, or there are none.
    fn leave(&self) {
        let mut spare = self.spare.lock();
        if !self.is_empty() && spare.as_ref().is_none_or(Spare::is_gone) {
            *spare = Some(self.store.spare(Arc::new(Giving(self.this.clone()))));
        }
    }

    /// Their room ends with their files, unless there is a newer one of that name.
    fn unlink(&self, gone: Vec<(Digest, Kept)>) {
        for (digest, kept) in gone {
            let index = self.index.lock();
            if !index.results.contains(&digest) {
                let _ = fs::remove_file(self.path(digest));
            }
            drop(index);
            drop(kept);
        }
    }

    /// Takes a result out that is of no use, with its file if it has one, unless that was replaced since it was seen.
    fn remove(&self, action: Digest, seen: u64) {
        let mut index = self.index.lock();
        let is = { index.results.peek(&action) }.is_some_and(|kept| kept.number == seen);
        if is && let Some(kept) = index.results.pop(&action) {
            index.bytes = index.bytes.saturating_sub(kept.room.bytes());
            let _ = fs::remove_file(self.path(action));
        }
    }

    fn path(&self, action: Digest) -> PathBuf {
        let hash = action.hash_hex();
        let mut path = self.directory.join(action.function().name());
        path.push(&hash[..2]);
        path.push(format!("{hash}-{}", action.size()));
        path
    }
}

fn disk(action: &'static str, path: &Path, source: io::Error) -> CasError {
    CasError::Disk {
        action,
        object: path.display().to_string(),
        source,
    }
}

/// Reads a whole entry, bounded, and refreshes its time of last use.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let about = file.metadata()?;
    let now = SystemTime::now();
    let stale = about
        .modified()
        .ok()
        .and_then(|then| now.duration_since(then).ok())
        .is_some_and(|age| age > STALE);
    if stale {
        // Only the order after a restart depends on it.
        let _ = file.set_modified(now);
    }
    let bound = (HEADER + MAX_RESULT + 1) as u64;
    let mut bytes = Vec::with_capacity(about.len().min(bound) as usize);
    file.take(bound).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Option<re::ActionResult> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (hash, content) = rest.split_at_checked(32)?;
    if blake3::hash(content).as_bytes() != hash {
        return None;
    }
    re::ActionResult::decode(content).ok()
}

/// What an earlier process has left.
struct Found {
    used: SystemTime,
    digest: Digest,
    /// Of disk.
    bytes: u64,
}

/// Collects the entries below one function's directory. What does not look like an entry is left alone.
fn scan(
    directory: &Path,
    function: DigestFunction,
    found: &mut Vec<Found>,
) -> Result<(), CasError> {
    let list = |directory: &Path| match fs::read_dir(directory) {
        Ok(list) => Ok(Some(list)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(disk("list", directory, error)),
    };
    let Some(shards) = list(directory)? else {
        return Ok(());
    };
    for shard in shards.flatten() {
        let Some(entries) = list(&shard.path())? else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let digest = name
                .to_str()
                .and_then(|name| name.split_once('-'))
                .and_then(|(hash, size)| Digest::parse(function, hash, size.parse().ok()?).ok());
            let Ok(about) = entry.metadata() else {
                continue;
            };
            if let (Some(digest), Ok(used)) = (digest, about.modified()) {
                found.push(Found {
                    used,
                    digest,
                    bytes: disk_size(about.len()),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
