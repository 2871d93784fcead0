//! The action cache: results of actions, one file each, below a directory of its own.
//!
//! A file is written beside its place and renamed into it, and carries a hash of its content: whatever a crash or a disk
//! leaves behind is either a whole result or a miss. The least recently used results go first when there are too many.
//! Files are named `FUNCTION/HH/HASH-SIZE`; their modification time is the time of their last use, as far as a restart
//! needs to know it.

use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use lru::LruCache;
use parking_lot::Mutex;
use prost::Message;

use super::references::available;
use crate::cas::{CasError, LocalStore};
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

/// What a file begins with; then follows the BLAKE3 hash of the rest.
const MAGIC: &[u8; 8] = b"bxresult";
const HEADER: usize = MAGIC.len() + 32;
/// The largest result that is kept, in bytes: one that still fits into an answer.
pub const MAX_RESULT: usize = (4 << 20) - (64 << 10);
/// How stale a file's modification time may become before a use refreshes it.
const STALE: Duration = Duration::from_secs(600);

/// Results of actions, on disk. All methods block.
pub struct ActionCache {
    directory: PathBuf,
    store: Arc<LocalStore>,
    index: Mutex<LruCache<Digest, ()>>,
    names: AtomicU64,
}

impl ActionCache {
    /// Opens or creates the cache in `directory`; keeps at most `max_entries` results, the least recently used go first.
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
        found.sort_by_key(|(used, _)| *used);
        let cache = ActionCache {
            directory: directory.to_owned(),
            store,
            index: Mutex::new(LruCache::new(
                NonZeroUsize::new(max_entries).unwrap_or(NonZeroUsize::MIN),
            )),
            names: AtomicU64::new(0),
        };
        for (_, digest) in found {
            cache.note(digest);
        }
        Ok(Arc::new(cache))
    }

    /// The result of an action, if it is here and every blob that it names is still in the store.
    pub fn get(&self, action: Digest) -> Result<Option<re::ActionResult>, CasError> {
        if self.index.lock().get(&action).is_none() {
            return Ok(None);
        }
        let path = self.path(action);
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.index.lock().pop(&action);
                return Ok(None);
            }
            Err(error) => return Err(disk("read", &path, error)),
        };
        let Some(result) = decode(&bytes) else {
            tracing::warn!(path = %path.display(), "action cache: removed a damaged entry");
            self.remove(action);
            return Ok(None);
        };
        if !available(&self.store, action.function(), &result)? {
            self.remove(action);
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
        let path = self.path(action);
        let unwritten = self
            .directory
            .join("unwritten")
            .join(self.names.fetch_add(1, Ordering::Relaxed).to_string());
        fs::write(&unwritten, &bytes).map_err(|error| disk("write", &unwritten, error))?;
        let placed = fs::rename(&unwritten, &path).or_else(|error| match path.parent() {
            Some(parent) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(parent)?;
                fs::rename(&unwritten, &path)
            }
            _ => Err(error),
        });
        if let Err(error) = placed {
            let _ = fs::remove_file(&unwritten);
            return Err(disk("rename to", &path, error));
        }
        self.note(action);
        Ok(())
    }

    /// How many results there are.
    pub fn len(&self) -> usize {
        self.index.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes `action` the most recently used and removes what goes beyond the bound.
    fn note(&self, action: Digest) {
        let gone = self.index.lock().push(action, ());
        if let Some((gone, ())) = gone.filter(|(gone, ())| *gone != action) {
            let _ = fs::remove_file(self.path(gone));
        }
    }

    fn remove(&self, action: Digest) {
        self.index.lock().pop(&action);
        let _ = fs::remove_file(self.path(action));
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

/// Collects the entries below one function's directory. What does not look like an entry is left alone.
fn scan(
    directory: &Path,
    function: DigestFunction,
    found: &mut Vec<(SystemTime, Digest)>,
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
            let used = entry.metadata().and_then(|about| about.modified());
            if let (Some(digest), Ok(used)) = (digest, used) {
                found.push((used, digest));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cas::StoreConfig;

    fn store(root: &Path) -> Arc<LocalStore> {
        LocalStore::open(StoreConfig {
            root: root.join("cas"),
            high_water: 1 << 24,
            low_water: 1 << 23,
            free_floor: 0,
        })
        .unwrap()
    }

    fn action(i: u8) -> Digest {
        DigestFunction::Blake3.digest(&[i])
    }

    fn result(i: u8) -> re::ActionResult {
        re::ActionResult {
            stdout_raw: vec![i].into(),
            ..Default::default()
        }
    }

    #[test]
    fn results_survive_a_restart_in_their_order() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("ac");
        let store = store(root.path());
        let cache = ActionCache::open(&directory, 3, store.clone()).unwrap();
        for i in 0..3 {
            cache.put(action(i), &result(i)).unwrap();
            let used = SystemTime::UNIX_EPOCH + Duration::from_secs(100 - u64::from(i));
            let file = fs::File::open(cache.path(action(i))).unwrap();
            file.set_modified(used).unwrap();
        }
        fs::write(directory.join("unwritten/left"), b"by a crash").unwrap();
        fs::write(directory.join("blake3/stray"), b"not ours").unwrap();
        let cache = ActionCache::open(&directory, 2, store.clone()).unwrap();
        assert_eq!(cache.len(), 2);
        assert_eq!(cache.get(action(2)).unwrap(), None);
        assert!(!cache.path(action(2)).exists());
        assert_eq!(cache.get(action(0)).unwrap(), Some(result(0)));
        assert!(!directory.join("unwritten/left").exists());
        // 1 is now the least recently used.
        cache.put(action(3), &result(3)).unwrap();
        assert_eq!(cache.get(action(1)).unwrap(), None);
        assert_eq!(cache.get(action(0)).unwrap(), Some(result(0)));
    }

    #[test]
    fn other_users_of_the_host_cannot_read_it() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("ac");
        // As an earlier release made it.
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        ActionCache::open(&directory, 10, store(root.path())).unwrap();
        let mode = fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_damaged_entry_is_a_miss() {
        let root = tempfile::tempdir().unwrap();
        let cache = ActionCache::open(&root.path().join("ac"), 10, store(root.path())).unwrap();
        let path = cache.path(action(1));
        for damage in [
            |bytes: &mut Vec<u8>| bytes.truncate(20),
            |bytes: &mut Vec<u8>| bytes.clear(),
            |bytes: &mut Vec<u8>| bytes[HEADER] ^= 1,
        ] {
            cache.put(action(1), &result(1)).unwrap();
            assert!(cache.get(action(1)).unwrap().is_some());
            let mut bytes = fs::read(&path).unwrap();
            damage(&mut bytes);
            fs::write(&path, &bytes).unwrap();
            assert_eq!(cache.get(action(1)).unwrap(), None);
            assert!(!path.exists());
        }
        cache.put(action(1), &result(1)).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(cache.get(action(1)).unwrap(), None);
    }

    #[test]
    fn an_enormous_result_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let cache = ActionCache::open(&root.path().join("ac"), 10, store(root.path())).unwrap();
        let huge = re::ActionResult {
            stdout_raw: vec![0; MAX_RESULT].into(),
            ..Default::default()
        };
        let error = cache.put(action(1), &huge).unwrap_err();
        assert!(matches!(error, CasError::TooLarge { .. }));
        assert_eq!(cache.get(action(1)).unwrap(), None);
    }
}
