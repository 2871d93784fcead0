//! Results are whole or missing, bounded in number and bytes, and give way to who needs room.

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
fn who_looked_at_a_damaged_result_leaves_the_one_that_replaced_it() {
    let root = tempfile::tempdir().unwrap();
    let cache = ActionCache::open(&root.path().join("ac"), 10, store(root.path())).unwrap();
    cache.put(action(1), &result(1)).unwrap();
    // A damaged one, of which it can be told when it is open: who opens it waits for the other end.
    let (pipe, path) = (root.path().join("pipe"), cache.path(action(1)));
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::remove_file(&path).unwrap();
    fs::hard_link(&pipe, &path).unwrap();
    std::thread::scope(|scope| {
        let look = scope.spawn(|| cache.get(action(1)).unwrap());
        let other_end = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
        cache.put(action(1), &result(2)).unwrap();
        drop(other_end);
        assert_eq!(look.join().unwrap(), None);
    });
    assert_eq!(cache.get(action(1)).unwrap(), Some(result(2)));
}

#[test]
fn results_are_bounded_in_bytes_and_count_in_the_store() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("ac");
    let store = store(root.path());
    let large = |i| re::ActionResult {
        stdout_raw: vec![i; 1 << 20].into(),
        ..Default::default()
    };
    let files = || -> u64 {
        let mut found = Vec::new();
        scan(
            &directory.join("blake3"),
            DigestFunction::Blake3,
            &mut found,
        )
        .unwrap();
        found.iter().map(|found| found.bytes).sum()
    };
    let cache = ActionCache::open(&directory, 100, store.clone()).unwrap();
    for i in 0..10 {
        cache.put(action(i), &large(i)).unwrap();
        assert!(files() <= cache.most, "{} after {i}", files());
    }
    assert_eq!(cache.get(action(0)).unwrap(), None);
    assert_eq!(cache.get(action(9)).unwrap(), Some(large(9)));
    assert_eq!(files(), cache.index.lock().bytes);
    let kept = cache.len();
    assert!(kept > 1);
    // What an earlier release left.
    for i in 20..40 {
        let path = cache.path(action(i));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(cache.path(action(9)), path).unwrap();
    }
    drop(cache);
    let cache = ActionCache::open(&directory, 100, store.clone()).unwrap();
    assert!(files() <= cache.most && cache.len() == kept);
    assert_eq!(files(), cache.index.lock().bytes);

    // All of the store pinned: results go before anybody is refused, and are refused after that.
    let mut pins = Vec::new();
    let mut n: u64 = 0;
    let full = loop {
        n += 1;
        let data = [&n.to_le_bytes()[..], &[0; 1 << 20]].concat();
        let digest = DigestFunction::Blake3.digest(&data);
        pins.push(store.pin([digest]));
        if let Err(error) = store.put(digest, &data, false) {
            break error;
        }
    };
    assert!(matches!(full, CasError::Full { .. }), "{full}");
    assert!(n > 15 && cache.is_empty() && files() == 0, "{n}");
    let refused = cache.put(action(1), &large(1)).unwrap_err();
    assert!(matches!(refused, CasError::Full { .. }), "{refused}");
    drop(pins);
    cache.put(action(1), &large(1)).unwrap();
    assert_eq!(cache.get(action(1)).unwrap(), Some(large(1)));
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
