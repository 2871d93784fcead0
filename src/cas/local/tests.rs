//! What needs a made-up boot, or a look at the directory, to be shown.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::room::Promised;
use super::*;

fn config(root: &Path) -> StoreConfig {
    StoreConfig {
        root: root.to_owned(),
        high_water: 64 << 20,
        low_water: 48 << 20,
        free_floor: 0,
    }
}

fn boot(root: &Path, id: &str) -> Arc<LocalStore> {
    LocalStore::open_in_boot(config(root), Some(id.to_owned())).unwrap()
}

fn blob(n: u32) -> (Digest, Vec<u8>) {
    let data = n.to_le_bytes().repeat(700 + n as usize % 50);
    (DigestFunction::Sha256.digest(&data), data)
}

fn put(store: &LocalStore, n: u32) -> Digest {
    let (digest, data) = blob(n);
    store.put(digest, &data, false).unwrap();
    digest
}

fn file(root: &Path, area: &str, digest: Digest) -> PathBuf {
    let name = names::BlobName::new(digest, names::Kind::Plain);
    root.join(area).join(name.text())
}

/// Same length, mode and owner, other content: what a power loss leaves.
fn garble(path: &Path) {
    let length = fs::metadata(path).unwrap().len() as usize;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, vec![0xAA; length]).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn after_a_power_loss_blobs_are_hashed_before_their_first_use() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let store = boot(root, "one");
    let digests: Vec<Digest> = (0..6).map(|n| put(&store, n)).collect();
    let doubled = store.path(digests[5], true).unwrap().unwrap();
    drop(store);
    garble(&file(root, "sha256", digests[0]));
    garble(&file(root, "sha256", digests[5]));

    let store = boot(root, "two");
    assert_eq!(store.usage().blobs, 6);
    assert!(!store.pin([digests[1]]).whole());
    assert!(!store.contains(digests[0]));
    assert_eq!(store.missing(&digests[..2]), digests[..1]);
    assert_eq!(store.read(digests[1], 1 << 20).unwrap().unwrap(), blob(1).1);
    assert!(store.pin([digests[1]]).whole());
    assert!(store.open_blob(digests[0]).unwrap().is_none());
    assert_eq!(store.counters().quarantined, 1);
    assert_eq!(fs::read_dir(root.join("quarantine")).unwrap().count(), 1);
    // One bad file of two does not lose the blob.
    assert_eq!(store.path(digests[5], true).unwrap().unwrap(), doubled);
    assert_eq!(
        fs::read(store.path(digests[5], false).unwrap().unwrap()).unwrap(),
        blob(5).1
    );
    assert_eq!(store.counters().quarantined, 2);

    // What was used has proved itself for good; the others are still in doubt, also after a kill.
    drop(store);
    garble(&file(root, "unverified/sha256", digests[2]));
    let store = boot(root, "two");
    assert!(file(root, "sha256", digests[1]).exists());
    assert!(!store.contains(digests[2]));
    assert!(store.contains(digests[3]));

    // And after a second power loss.
    drop(store);
    garble(&file(root, "sha256", digests[1]));
    garble(&file(root, "unverified/sha256", digests[4]));
    let store = boot(root, "three");
    assert_eq!(
        store.missing(&digests),
        [digests[0], digests[1], digests[2], digests[4]]
    );
    // They may come back.
    for n in 0..6 {
        put(&store, n);
    }
    assert!(store.missing(&digests).is_empty());
    for n in 0..6 {
        assert_eq!(
            store.read(digests[n as usize], 1 << 20).unwrap().unwrap(),
            blob(n).1
        );
    }
}

#[test]
fn the_store_says_whether_a_look_may_take_long() {
    let dir = tempfile::tempdir().unwrap();
    let store = boot(dir.path(), "one");
    let digests: Vec<Digest> = (0..3).map(|n| put(&store, n)).collect();
    assert!(!store.has_doubtful());
    drop(store);
    let store = boot(dir.path(), "two");
    for digest in digests {
        assert!(store.has_doubtful());
        assert!(store.contains(digest));
    }
    assert!(!store.has_doubtful());
}

#[test]
fn what_is_unverified_can_be_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let digest = put(&boot(dir.path(), "one"), 1);
    let store = boot(dir.path(), "two");
    assert!(store.evict(1).bytes > 0);
    assert!(!store.contains(digest));
    assert!(!file(dir.path(), "unverified/sha256", digest).exists());
    assert_eq!(store.usage(), StoreUsage::default());
}

#[test]
fn an_orderly_shutdown_is_trusted_in_the_next_boot() {
    let dir = tempfile::tempdir().unwrap();
    let store = boot(dir.path(), "one");
    let digest = put(&store, 1);
    store.close().unwrap();
    store.close().unwrap();
    assert!(store.contains(digest));
    let (other, data) = blob(2);
    let refused = store.put(other, &data, false).unwrap_err();
    assert!(refused.to_string().contains("is closed"), "{refused}");
    drop(store);
    let store = boot(dir.path(), "two");
    assert!(file(dir.path(), "sha256", digest).exists());
    assert!(store.contains(digest));
    // From here on it is open again.
    drop(store);
    drop(boot(dir.path(), "three"));
    assert!(file(dir.path(), "unverified/sha256", digest).exists());
}

#[test]
fn where_the_boot_is_unknown_only_an_orderly_shutdown_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let unknown = || LocalStore::open_in_boot(config(dir.path()), None).unwrap();
    let digest = put(&unknown(), 1);
    let store = unknown();
    assert!(file(dir.path(), "unverified/sha256", digest).exists());
    assert!(store.contains(digest));
    store.close().unwrap();
    drop(store);
    drop(unknown());
    assert!(file(dir.path(), "sha256", digest).exists());
}

#[test]
fn a_state_file_with_anything_in_it_means_distrust() {
    for text in ["", "open", "clear sky\n", "\0\0\0\0", "open elsewhere\n"] {
        let dir = tempfile::tempdir().unwrap();
        let digest = put(&boot(dir.path(), "one"), 1);
        fs::write(dir.path().join("state"), text).unwrap();
        let store = boot(dir.path(), "one");
        assert!(
            file(dir.path(), "unverified/sha256", digest).exists(),
            "{text:?}"
        );
        assert!(store.contains(digest));
    }
}

#[test]
fn a_note_that_a_power_loss_left_half_written_is_not_believed() {
    let notes = [
        ("clean one\n", "open three\n"),
        ("open one\n", "open three\n"),
        ("clean three\n", "open one\n"),
        ("open three\n", "open one\n"),
    ];
    for (old, new) in notes {
        // Both ways: the beginning of one, and the end of the other.
        for (head, tail) in [(old, new), (new, old)] {
            for at in 1..head.len().min(tail.len()) {
                let text = format!("{}{}", &head[..at], &tail[at..]);
                let whole = text.starts_with("clean ") || text == old || text == new;
                if whole {
                    continue;
                }
                let dir = tempfile::tempdir().unwrap();
                let digest = put(&boot(dir.path(), "one"), 1);
                fs::write(dir.path().join("state"), &text).unwrap();
                drop(boot(dir.path(), "two"));
                assert!(
                    file(dir.path(), "unverified/sha256", digest).exists(),
                    "{text:?}"
                );
            }
        }
    }
}

#[test]
fn a_doubted_blob_is_hashed_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let store = boot(dir.path(), "one");
    let (good, bad) = (put(&store, 1), put(&store, 2));
    garble(&file(dir.path(), "sha256", bad));
    assert!(store.verify(good).unwrap());
    assert!(!store.verify(bad).unwrap());
    assert!(!store.contains(bad));
    put(&store, 2);
    assert_eq!(store.read(bad, 1 << 20).unwrap().unwrap(), blob(2).1);
}

#[test]
fn the_quarantine_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = boot(dir.path(), "one");
    for n in 0..300 {
        let digest = put(&store, n);
        garble(&file(dir.path(), "sha256", digest));
        assert!(!store.verify(digest).unwrap());
    }
    assert_eq!(
        fs::read_dir(dir.path().join("quarantine")).unwrap().count(),
        256
    );
    drop(store);
    let store = boot(dir.path(), "one");
    let digest = put(&store, 300);
    garble(&file(dir.path(), "sha256", digest));
    assert!(!store.verify(digest).unwrap());
    let mut names: Vec<_> = fs::read_dir(dir.path().join("quarantine"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 256);
    assert!(names[255].starts_with("00000300-wrong-"), "{}", names[255]);
}

#[test]
fn the_floor_of_free_space_is_kept_by_evicting_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.free_floor = u64::MAX / 2;
    let store = LocalStore::open(config).unwrap();
    let (digest, data) = blob(1);
    let error = store.put(digest, &data, false).unwrap_err();
    assert!(matches!(&error, CasError::Full { .. }), "{error}");
    assert!(error.to_string().contains("are to stay free"), "{error}");
    assert_eq!(store.index.lock().promised, Promised::default());
    assert!(!store.contains(digest));
}

#[test]
fn the_store_may_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<LocalStore>();
    shared::<Pins>();
    shared::<BlobWriter>();
}
