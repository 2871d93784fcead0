//! The blob store keeps its promises: what it has is whole and right, pinned blobs stay, limits
//! are kept, and nothing that lies in its directory makes it fail.

#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/skipped.rs"]
mod skipped;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use boxwright::cas::CasError;
use boxwright::cas::local::{LocalStore, StoreConfig, StoreUsage};
use boxwright::reapi::proto::re;
use boxwright::reapi::{Digest, DigestFunction};
use boxwright::scheduler::embedded::ActionCache;
use mounted::Mounted;

const BLOCK: u64 = 4096;

fn config(root: &Path) -> StoreConfig {
    StoreConfig {
        root: root.to_owned(),
        high_water: 1 << 30,
        low_water: 1 << 29,
        free_floor: 0,
    }
}

fn open(root: &Path) -> Arc<LocalStore> {
    LocalStore::open(config(root)).unwrap()
}

fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut data = Vec::with_capacity(size + 8);
    while data.len() < size {
        data.extend_from_slice(&random.next().to_le_bytes());
    }
    data.truncate(size);
    data
}

fn blob(seed: u64, size: usize) -> (Digest, Vec<u8>) {
    let data = content(seed, size);
    (DigestFunction::Sha256.digest(&data), data)
}

fn put(store: &LocalStore, seed: u64, size: usize) -> Digest {
    let (digest, data) = blob(seed, size);
    store.put(digest, &data, false).unwrap();
    digest
}

/// Xorshift; the seeds are printed by the tests that use it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Every file below, relative to it.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn what_is_put_is_found_again_also_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut all = Vec::new();
    for function in DigestFunction::ALL {
        for (seed, size) in [(1, 1), (2, 4096), (3, 100_000), (4, 3 << 20)] {
            let data = content(seed, size);
            let digest = function.digest(&data);
            assert!(!store.contains(digest));
            assert!(store.read(digest, u64::MAX).unwrap().is_none());
            assert!(store.open_blob(digest).unwrap().is_none());
            assert!(store.path(digest, false).unwrap().is_none());
            store.put(digest, &data, seed % 2 == 0).unwrap();
            store.put(digest, &data, true).unwrap();
            all.push((digest, data));
        }
    }
    let usage = StoreUsage {
        blobs: 8,
        bytes: 2 * (1 + 4096 + 100_000 + (3 << 20)),
        disk: 2 * (BLOCK + BLOCK + 25 * BLOCK + (3 << 20)),
    };
    let mut store = Some(store);
    for _ in 0..2 {
        let store = store.take().unwrap_or_else(|| open(dir.path()));
        assert_eq!(store.usage(), usage);
        for (digest, data) in &all {
            assert!(store.contains(*digest));
            assert_eq!(store.read(*digest, digest.size()).unwrap().unwrap(), data);
            let mut file = store.open_blob(*digest).unwrap().unwrap();
            let mut read = Vec::new();
            std::io::Read::read_to_end(&mut file, &mut read).unwrap();
            assert_eq!(&read, data);
        }
        let (absent, _) = blob(99, 99);
        let asked: Vec<Digest> = [absent]
            .into_iter()
            .chain(all.iter().map(|b| b.0))
            .collect();
        assert_eq!(store.missing(&asked), [absent]);
    }
}

#[test]
fn both_kinds_of_file_have_their_exact_mode_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for (seed, size) in [(1, 100), (2, 1 << 20)] {
        let before = store.usage();
        let digest = put(&store, seed, size);
        for executable in [false, true, false] {
            let path = store.path(digest, executable).unwrap().unwrap();
            assert!(path.is_absolute());
            assert_eq!(mode(&path), if executable { 0o555 } else { 0o444 });
            assert_eq!(fs::read(&path).unwrap(), content(seed, size));
        }
        let after = store.usage();
        assert_eq!(after.blobs, before.blobs + 1);
        assert_eq!(after.bytes, before.bytes + size as u64);
        assert_eq!(
            after.disk,
            before.disk + 2 * (size as u64).next_multiple_of(BLOCK)
        );
    }
    let (digest, data) = blob(3, 10);
    store.put(digest, &data, true).unwrap();
    assert_eq!(files(&dir.path().join("sha256")).len(), 5);
    assert_eq!(mode(&store.path(digest, true).unwrap().unwrap()), 0o555);
    assert_eq!(files(&dir.path().join("sha256")).len(), 5);
    let usage = store.usage();
    drop(store);
    assert_eq!(open(dir.path()).usage(), usage);
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    // The umask belongs to the whole process, so it is a child of its own.
    const CHILD: &str = "BOXWRIGHT_TEST_UMASK";
    if let Some(root) = std::env::var_os(CHILD) {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let root = Path::new(&root);
        let store = open(root);
        let digest = put(&store, 1, 100);
        assert_eq!(mode(&store.path(digest, false).unwrap().unwrap()), 0o444);
        assert_eq!(mode(&store.path(digest, true).unwrap().unwrap()), 0o555);
        let (large, data) = blob(2, 1 << 20);
        let mut writer = store.writer(large, true).unwrap();
        writer.write(&data).unwrap();
        writer.commit().unwrap();
        assert_eq!(mode(&store.path(large, true).unwrap().unwrap()), 0o555);
        assert_eq!(mode(store.scratch()), 0o711);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "modes_do_not_depend_on_the_umask"])
        .env(CHILD, dir.path().join("store"))
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn wrong_content_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (digest, data) = blob(1, 100_000);
    let mut wrong = data.clone();
    wrong[99_999] ^= 1;
    let lying = Digest::new(DigestFunction::Sha256, digest.hash(), 99_999);
    for (name, data) in [
        (digest, &wrong[..]),
        (digest, &data[..99_999]),
        (digest, b""),
        (lying, &data[..]),
        (Digest::new(DigestFunction::Sha256, [0; 32], 0), b""),
    ] {
        match store.put(name, data, false).unwrap_err() {
            CasError::Corrupt { expected, actual } => {
                assert_eq!(
                    (expected, actual),
                    (name, DigestFunction::Sha256.digest(data))
                );
            }
            other => panic!("{other}"),
        }
        let mut writer = store.writer(name, false).unwrap();
        if writer.write(data).is_ok() {
            assert!(matches!(writer.commit(), Err(CasError::Corrupt { .. })));
        }
        assert!(!store.contains(name));
    }
    assert!(matches!(
        store.put_verified(lying, &data, false),
        Err(CasError::Corrupt { .. })
    ));
    // More than promised is refused at once, and no less than all of it is kept.
    for size in [100, 1 << 20] {
        let (digest, data) = blob(2, size);
        let mut writer = store.writer(digest, false).unwrap();
        writer.write(&data[..size - 1]).unwrap();
        assert!(matches!(
            writer.write(b"xy"),
            Err(CasError::TooLarge { .. })
        ));
        assert_eq!(writer.written(), size as u64 - 1);
        drop(writer);
        assert!(!store.contains(digest));
    }
    assert_eq!(store.usage(), StoreUsage::default());
    for place in ["sha256", "tmp", "quarantine"] {
        assert_eq!(
            files(&dir.path().join(place)),
            [] as [PathBuf; 0],
            "{place}"
        );
    }
}

#[test]
fn a_size_beyond_reason_is_refused_before_anything_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for size in [1 << 31, i64::MAX as u64, u64::MAX] {
        let digest = Digest::new(DigestFunction::Sha256, [7; 32], size);
        let Err(error) = store.writer(digest, false) else {
            panic!("{size} bytes were promised")
        };
        assert!(matches!(error, CasError::Full { .. }), "{error}");
        assert!(
            error.to_string().contains("raise its size limit"),
            "{error}"
        );
        assert!(matches!(
            store.read(digest, 1 << 20),
            Err(CasError::TooLarge { limit: 1048576, .. })
        ));
    }
}

#[test]
fn a_size_that_is_only_claimed_evicts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(StoreConfig {
        high_water: 64 << 20,
        low_water: 60 << 20,
        ..config(dir.path())
    });
    let store = store.unwrap();
    for n in 0..50 {
        put(&store, n, 1 << 20);
    }
    let (digest, data) = blob(100, 60 << 20);
    let mut writer = store.writer(digest, false).unwrap();
    writer.write(&data[..300_000]).unwrap();
    assert_eq!(store.usage().blobs, 50);
    // What does come has its room.
    for piece in data[300_000..].chunks(1 << 20) {
        writer.write(piece).unwrap();
    }
    assert!(store.usage().blobs < 10, "{:?}", store.usage());
    writer.commit().unwrap();
    assert_eq!(
        store.usage().disk,
        store.usage().blobs * (1 << 20) + (59 << 20)
    );
    assert!(store.usage().disk <= 64 << 20);
}

#[test]
fn pieces_become_the_blob() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for (seed, size) in [(1, 5), (2, 65_536), (3, 65_537), (4, 2_000_003)] {
        let (digest, data) = blob(seed, size);
        let mut writer = store.writer(digest, false).unwrap();
        for piece in data.chunks(1 + size / 7) {
            writer.write(piece).unwrap();
        }
        assert_eq!(writer.written(), size as u64);
        assert!(!store.contains(digest));
        // Somebody else is faster.
        if seed % 2 == 0 {
            store.put(digest, &data, false).unwrap();
        }
        writer.commit().unwrap();
        assert_eq!(store.read(digest, u64::MAX).unwrap().unwrap(), data);
    }
    assert_eq!(store.usage().blobs, 4);
    assert_eq!(files(&dir.path().join("tmp")).len(), 0);
}

#[test]
fn the_empty_blob_is_always_here() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for function in DigestFunction::ALL {
        let empty = Digest::empty(function);
        assert!(store.contains(empty));
        assert!(store.missing(&[empty]).is_empty());
        assert_eq!(store.read(empty, 0).unwrap().unwrap(), "");
        store.put(empty, b"", true).unwrap();
        store.writer(empty, false).unwrap().commit().unwrap();
        let _pins = store.pin([empty]);
        for executable in [true, false] {
            let path = store.path(empty, executable).unwrap().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"");
            assert_eq!(mode(&path), if executable { 0o555 } else { 0o444 });
        }
        let file = store.open_blob(empty).unwrap().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        let output = store.scratch().join("empty");
        fs::write(&output, "").unwrap();
        store.adopt(empty, &output, false).unwrap();
        assert!(!output.exists());
    }
    // Its name is not enough: no blob of size zero has another hash.
    let lying = Digest::new(DigestFunction::Sha256, [1; 32], 0);
    assert!(!store.contains(lying));
    assert_eq!(store.missing(&[lying]), [lying]);
    assert!(store.path(lying, false).unwrap().is_none());
}

#[test]
fn the_longest_unused_go_first_and_pinned_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.high_water = 10 * BLOCK;
    config.low_water = 6 * BLOCK;
    let store = LocalStore::open(config).unwrap();
    let absent = blob(100, 4096).0;
    let digests: Vec<Digest> = (0..10).map(|n| blob(n, 4096).0).collect();
    let pins = store.pin([digests[0], digests[1], digests[1], absent]);
    for n in 0..10 {
        assert_eq!(put(&store, n, 4096), digests[n as usize]);
    }
    let empty = DigestFunction::Sha256.digest(b"");
    assert!(store.pin([digests[0], empty, digests[9]]).whole());
    assert!(!pins.whole() && !store.pin([digests[0], absent]).whole());
    // A use each: the pinned ones do not care.
    assert!(store.contains(digests[2]));
    assert!(store.missing(&[digests[3]]).is_empty());
    assert!(store.path(digests[4], false).unwrap().is_some());
    let new = put(&store, 10, 4096);
    assert_eq!(
        store.missing(&digests),
        [digests[5], digests[6], digests[7], digests[8]]
    );
    assert!(store.contains(new));
    assert_eq!(store.usage().disk, 7 * BLOCK);
    assert_eq!(store.counters().evicted, 4);
    assert_eq!(files(&dir.path().join("sha256")).len(), 7);

    // Pinned before it came.
    put(&store, 100, 4096);
    let held = store.pin((20..30).map(|n| blob(n, 4096).0));
    let mut kept = 0;
    let full = loop {
        let (digest, data) = blob(20 + kept, 4096);
        match store.put(digest, &data, false) {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    // Ten, less the three that were pinned before.
    assert_eq!(kept, 7);
    assert!(
        matches!(&full, CasError::Full { needed: 4096, .. }),
        "{full}"
    );
    assert!(
        full.to_string().contains("of which 40960 are in use now"),
        "{full}"
    );
    assert!(store.missing(&[digests[0], digests[1], absent]).is_empty());
    drop(held);
    drop(pins);
    put(&store, 200, 4096);
    // The first to be let go are the first to go.
    let held: Vec<Digest> = (20..27).map(|n| blob(n, 4096).0).collect();
    assert_eq!(store.missing(&held), held[..4]);
    assert!(store.usage().disk <= 10 * BLOCK);
}

#[test]
fn lowered_marks_hold_from_the_next_open_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..500 {
        put(&store, n, 100);
    }
    drop(store);
    let mut config = config(dir.path());
    (config.high_water, config.low_water) = (20 * BLOCK, 20 * BLOCK);
    let store = LocalStore::open(config.clone()).unwrap();
    assert!(store.usage().disk <= 20 * BLOCK);
    assert_eq!(
        files(&dir.path().join("sha256")).len() as u64,
        store.usage().blobs
    );
    drop(store);
    config.low_water += 1;
    let error = LocalStore::open(config).unwrap_err();
    assert!(error.to_string().contains("low water mark"), "{error}");
}

#[test]
fn the_order_of_use_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digests: Vec<Digest> = (0..3).map(|n| put(&store, n, 100)).collect();
    let path = |n: usize| store.path(digests[n], false).unwrap().unwrap();
    let changed = |n: usize| {
        let stat = fs::metadata(path(n)).unwrap();
        (stat.ctime(), stat.ctime_nsec())
    };
    // Use the oldest as an input root does, until the clock of the file system has moved on.
    let link = store.scratch().join("link");
    loop {
        fs::hard_link(path(0), &link).unwrap();
        fs::remove_file(&link).unwrap();
        if changed(0) > changed(2) {
            break;
        }
    }
    drop(store);
    let mut config = config(dir.path());
    (config.high_water, config.low_water) = (BLOCK, BLOCK);
    let store = LocalStore::open(config).unwrap();
    assert_eq!(store.missing(&digests), digests[1..]);
}

#[test]
fn a_hundred_thousand_pins_are_one_call() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digests = (0..100_000u32).map(|n| {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&n.to_le_bytes());
        Digest::new(DigestFunction::Blake3, hash, 1)
    });
    let pins: Vec<_> = (0..3).map(|_| store.pin(digests.clone())).collect();
    drop(pins);
    assert_eq!(store.usage(), StoreUsage::default());
}

#[test]
fn an_output_is_taken_over_by_rename() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for (seed, executable) in [(1, false), (2, true)] {
        let (digest, data) = blob(seed, 5000);
        let output = store.scratch().join("output");
        fs::write(&output, &data).unwrap();
        fs::set_permissions(&output, fs::Permissions::from_mode(0o6777)).unwrap();
        if is_root() {
            std::os::unix::fs::chown(&output, Some(4321), Some(4321)).unwrap();
        }
        let inode = fs::metadata(&output).unwrap().ino();
        store.adopt(digest, &output, executable).unwrap();
        assert!(!output.exists());
        let path = store.path(digest, executable).unwrap().unwrap();
        let stat = fs::metadata(&path).unwrap();
        assert_eq!(stat.ino(), inode);
        assert_eq!(stat.uid(), rustix::process::geteuid().as_raw());
        assert_eq!(mode(&path), if executable { 0o555 } else { 0o444 });
        assert_eq!(fs::read(&path).unwrap(), data);
        // Here already.
        fs::write(&output, &data).unwrap();
        store.adopt(digest, &output, executable).unwrap();
        assert!(!output.exists());
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    }
    assert_eq!(store.usage().disk, 4 * BLOCK);
}

#[test]
fn an_output_with_other_links_is_copied_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (digest, data) = blob(1, 300_000);
    let (output, other) = (
        store.scratch().join("output"),
        store.scratch().join("other"),
    );
    fs::write(&output, &data).unwrap();
    fs::hard_link(&output, &other).unwrap();
    store.adopt(digest, &output, false).unwrap();
    assert!(!output.exists());
    fs::write(&other, "changed through the other link").unwrap();
    assert_eq!(store.read(digest, u64::MAX).unwrap().unwrap(), data);

    // The copy is hashed, so what is not the blob does not become it.
    let (wanted, _) = blob(2, 100);
    fs::write(&output, content(3, 100)).unwrap();
    fs::hard_link(&output, store.scratch().join("third")).unwrap();
    assert!(matches!(
        store.adopt(wanted, &output, false),
        Err(CasError::Corrupt { expected, .. }) if expected == wanted
    ));
    assert!(!store.contains(wanted));
    assert_eq!(files(&dir.path().join("tmp")).len(), 0);
}

#[test]
fn only_a_regular_file_of_the_right_size_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (digest, data) = blob(1, 100);
    let at = |name: &str| store.scratch().join(name);
    fs::write(at("real"), &data).unwrap();
    symlink(at("real"), at("link")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("short"), &data[..99]).unwrap();
    fs::write(at("long"), content(1, 101)).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(at("fifo"))
            .status()
            .unwrap()
            .success()
    );
    for name in ["link", "folder", "short", "long", "fifo", "absent"] {
        let error = store.adopt(digest, &at(name), false).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert!(!store.contains(digest));
    }
    assert_eq!(fs::read(at("real")).unwrap(), data);
    store.adopt(digest, &at("real"), false).unwrap();
}

#[test]
fn another_file_put_in_an_outputs_place_does_not_become_the_blob() {
    use std::os::fd::AsFd;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (digest, data) = blob(1, 100);
    fs::write(store.scratch().join("hashed"), &data).unwrap();
    fs::write(store.scratch().join("swapped"), content(2, 100)).unwrap();
    let folder = fs::File::open(store.scratch()).unwrap();
    let hashed = fs::File::open(store.scratch().join("hashed")).unwrap();
    let sealed = store.seal(hashed.as_fd(), false).unwrap();
    let adopt = |name: &str| {
        let file = hashed.as_fd();
        store.adopt_at(digest, folder.as_fd(), name.as_ref(), file, false, &sealed)
    };
    let error = adopt("swapped").unwrap_err();
    assert!(error.to_string().contains("another file"), "{error}");
    assert!(!store.contains(digest));
    assert_eq!(files(&dir.path().join("sha256")).len(), 0);
    adopt("hashed").unwrap();
    assert_eq!(store.read(digest, 100).unwrap().unwrap(), data);
}

#[test]
fn who_still_writes_to_an_output_does_not_change_the_blob() {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (digest, data) = blob(1, 10_000);
    let output = store.scratch().join("output");
    let mut writer = fs::File::create(&output).unwrap();
    writer.write_all(&data).unwrap();
    store.adopt(digest, &output, false).unwrap();
    assert!(!output.exists());
    writer.write_all_at(b"poison", 0).unwrap();
    assert_eq!(store.read(digest, 10_000).unwrap().unwrap(), data);
    drop(writer);

    // It wrote after the hash: that is no blob.
    let (digest, data) = blob(2, 10_000);
    fs::write(&output, &data).unwrap();
    let writer = fs::OpenOptions::new().write(true).open(&output).unwrap();
    let file = fs::File::open(&output).unwrap();
    let sealed = store.seal(file.as_fd(), false).unwrap();
    writer.write_all_at(b"poison", 0).unwrap();
    drop(writer);
    let folder = fs::File::open(store.scratch()).unwrap();
    let name = "output".as_ref();
    let adopted = store.adopt_at(digest, folder.as_fd(), name, file.as_fd(), false, &sealed);
    assert!(
        matches!(adopted, Err(CasError::Corrupt { .. })),
        "{adopted:?}"
    );
    assert!(!store.contains(digest));
}

#[test]
fn an_output_from_another_file_system_is_copied() {
    let elsewhere = Path::new("/dev/shm");
    let dir = tempfile::tempdir().unwrap();
    let device = |path: &Path| fs::metadata(path).map(|stat| stat.dev());
    if device(elsewhere).is_err() || device(elsewhere).ok() == device(dir.path()).ok() {
        skipped::here("/dev/shm is no other file system than the temporary directory");
        return;
    }
    let store = open(dir.path());
    let (digest, data) = blob(1, 200_000);
    let folder = tempfile::tempdir_in(elsewhere).unwrap();
    let output = folder.path().join("output");
    fs::write(&output, &data).unwrap();
    store.adopt(digest, &output, true).unwrap();
    assert!(!output.exists());
    assert_eq!(
        fs::read(store.path(digest, true).unwrap().unwrap()).unwrap(),
        data
    );
}

#[test]
fn a_second_opener_is_told_who_has_it_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = LocalStore::open(config(dir.path()))
        .unwrap_err()
        .to_string();
    for part in [
        dir.path().to_str().unwrap(),
        &format!("process {} has it open", std::process::id()),
        "give this one a directory of its own",
    ] {
        assert!(error.contains(part), "{error}");
    }
    // And does no harm.
    let digest = put(&store, 1, 100);
    assert!(LocalStore::open(config(dir.path())).is_err());
    assert!(store.contains(digest));
    drop(store);
    assert!(open(dir.path()).contains(digest));
}

#[test]
fn a_directory_of_somebody_else_is_left_alone() {
    for name in ["tmp", "scratch", "sha256"] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("precious"), "").unwrap();
        let error = LocalStore::open(config(dir.path()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("is not a blob store; give an empty directory"),
            "{error}"
        );
        assert_eq!(files(dir.path()), [Path::new(name).join("precious")]);
    }
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    fs::write(dir.path().join("layout"), "boxwright blob store 7\n").unwrap();
    let error = LocalStore::open(config(dir.path()))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("blob store 7") && error.contains("remove the directory"),
        "{error}"
    );
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = LocalStore::open(config(&file)).unwrap_err().to_string();
    assert!(error.contains(file.to_str().unwrap()), "{error}");
}

#[test]
fn garbage_in_the_directory_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), "").unwrap();
    let store = open(dir.path());
    let kept = put(&store, 1, 5000);
    let kept_path = store.path(kept, false).unwrap().unwrap();
    let cut = put(&store, 2, 5000);
    let cut_path = store.path(cut, false).unwrap().unwrap();
    let grown = put(&store, 3, 5000);
    let grown_path = store.path(grown, false).unwrap().unwrap();
    let (opened_up, data) = blob(4, 5000);
    store.put(opened_up, &data, true).unwrap();
    let opened_up_path = store.path(opened_up, true).unwrap().unwrap();
    drop(store);

    let sha256 = dir.path().join("sha256");
    let writable = |path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::OpenOptions::new().write(true).open(path).unwrap()
    };
    writable(&cut_path).set_len(4999).unwrap();
    writable(&grown_path).set_len(5001).unwrap();
    fs::set_permissions(&opened_up_path, fs::Permissions::from_mode(0o755)).unwrap();
    let shard = kept_path.parent().unwrap();
    fs::write(shard.join("README"), "hello").unwrap();
    fs::write(shard.join("0".repeat(250)), "").unwrap();
    let name = kept_path.file_name().unwrap().to_str().unwrap();
    fs::write(shard.join(name.replace("-5000", "-05000")), "").unwrap();
    symlink(
        outside.path().join("precious"),
        shard.join(format!("{name}.x")),
    )
    .unwrap();
    fs::create_dir_all(shard.join("folder/folder")).unwrap();
    fs::write(shard.join("folder/folder/file"), "").unwrap();
    fs::write(sha256.join("zz"), "").unwrap();
    fs::create_dir_all(sha256.join("lost/found")).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(sha256.join("fifo"))
            .status()
            .unwrap()
            .success()
    );
    // A shard that leads elsewhere, and one that is a file.
    let free: Vec<String> = (0..=255)
        .map(|n| format!("{n:02x}"))
        .filter(|name| !sha256.join(name).exists())
        .take(2)
        .collect();
    symlink(outside.path(), sha256.join(&free[0])).unwrap();
    fs::write(sha256.join(&free[1]), "").unwrap();
    fs::write(dir.path().join("tmp/7"), "half a blob").unwrap();
    fs::write(dir.path().join("not-ours"), "").unwrap();

    let store = open(dir.path());
    assert!(store.contains(kept));
    assert_eq!(store.missing(&[cut, grown, opened_up]), [cut, grown]);
    assert_eq!(mode(&opened_up_path), 0o555);
    assert_eq!(store.counters().truncated, 2);
    assert_eq!(store.counters().strays, 10);
    assert_eq!(files(outside.path()).len(), 1);
    assert!(dir.path().join("not-ours").exists());
    assert_eq!(files(&dir.path().join("tmp")).len(), 0);
    assert_eq!(files(&sha256).len(), 2);
    // Blobs find room in the shards that were not.
    for n in 10..2000 {
        put(&store, n, 10);
    }
    assert_eq!(files(outside.path()).len(), 1);
    put(&store, 2, 5000);
    assert_eq!(store.read(cut, 5000).unwrap().unwrap(), content(2, 5000));
}

#[test]
fn a_link_in_place_of_the_stores_own_directories_is_refused() {
    for name in ["sha256", "tmp", "scratch", "quarantine", "unverified"] {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "").unwrap();
        drop(open(dir.path()));
        fs::rename(dir.path().join(name), dir.path().join("moved")).unwrap();
        symlink(outside.path(), dir.path().join(name)).unwrap();
        let error = LocalStore::open(config(dir.path()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(name) && error.contains("remove it"),
            "{error}"
        );
        assert_eq!(files(outside.path()).len(), 1);
    }
}

#[test]
fn scratch_is_emptied_whatever_an_action_left_there() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), "").unwrap();
    let store = open(dir.path());
    let deep = store.scratch().join("a/b/c");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "").unwrap();
    symlink(outside.path(), deep.join("link")).unwrap();
    fs::hard_link(
        store.path(put(&store, 1, 10), false).unwrap().unwrap(),
        deep.join("input"),
    )
    .unwrap();
    for path in ["a/b/c", "a/b", "a"] {
        let path = store.scratch().join(path);
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    drop(store);
    let store = open(dir.path());
    assert_eq!(fs::read_dir(store.scratch()).unwrap().count(), 0);
    assert_eq!(files(outside.path()).len(), 1);
    assert_eq!(store.usage().blobs, 1);
}

#[test]
fn files_that_somebody_removed_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for size in [100, 100_000] {
        let digest = put(&store, 1, size);
        let path = store.path(digest, false).unwrap().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(store.open_blob(digest).unwrap().is_none());
        assert!(!store.contains(digest));
        put(&store, 1, size);
        fs::remove_file(&path).unwrap();
        assert!(store.path(digest, true).unwrap().is_none());
        put(&store, 1, size);
        fs::remove_file(&path).unwrap();
        assert!(!store.recheck(digest).unwrap());
        // Cut short, without the mode saying so.
        put(&store, 1, size);
        let file = fs::OpenOptions::new().write(true).open(&path);
        if let Ok(file) = file {
            file.set_len(50).unwrap();
            assert!(store.read(digest, u64::MAX).unwrap().is_none());
            assert!(!store.contains(digest));
        }
        // Something else under its name, which the index does not know of.
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        if !store.contains(digest) {
            fs::write(&path, "in the way").unwrap();
        }
        put(&store, 1, size);
    }
    // The whole of a shard.
    let digest = put(&store, 5, 10);
    fs::remove_dir_all(
        store
            .path(digest, false)
            .unwrap()
            .unwrap()
            .parent()
            .unwrap(),
    )
    .unwrap();
    assert!(store.read(digest, 10).unwrap().is_none());
    put(&store, 5, 10);
    assert_eq!(store.read(digest, 10).unwrap().unwrap(), content(5, 10));
}

#[test]
fn a_directory_that_cannot_be_written_is_a_clear_error() {
    if is_root() {
        skipped::here("root may write everywhere");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let sha256 = dir.path().join("sha256");
    fs::set_permissions(&sha256, fs::Permissions::from_mode(0o500)).unwrap();
    let (digest, data) = blob(1, 10);
    let error = store.put(digest, &data, false).unwrap_err().to_string();
    assert!(
        error.contains("cannot write blob") && error.contains("ermission"),
        "{error}"
    );
    assert!(!store.contains(digest));
    fs::set_permissions(&sha256, fs::Permissions::from_mode(0o700)).unwrap();
    store.put(digest, &data, false).unwrap();
}

/// A file system of its own, as large as given; none without the right to mount.
#[test]
fn a_full_disk_makes_room_or_says_so() {
    let Some(mounted) = Mounted::new("size=4m") else {
        return;
    };
    let root = mounted.path().join("store");
    // The quota alone would let the disk fill up.
    let store = open(&root);
    for n in 0..2000 {
        put(&store, n, 4096);
    }
    for n in 3000..3010 {
        let (digest, data) = blob(n, 300_000);
        let mut writer = store.writer(digest, true).unwrap();
        for piece in data.chunks(70_000) {
            writer.write(piece).unwrap();
        }
        writer.commit().unwrap();
        assert!(store.path(digest, false).unwrap().is_some());
    }
    assert!(store.counters().evicted > 1000);
    let files_now = files(&root.join("sha256")).len();
    drop(store);
    let store = open(&root);
    assert_eq!(store.counters().truncated, 0);
    assert!(files_now > 0);

    // Nothing can be evicted.
    let pins = store.pin((5000..7000).map(|n| blob(n, 4096).0));
    let mut kept = 5000;
    let full = loop {
        let (digest, data) = blob(kept, 4096);
        match store.put(digest, &data, false) {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&full, CasError::Full { .. }), "{full}");
    assert!(full.to_string().contains("free some space"), "{full}");
    assert!(kept > 5900, "{kept}");
    let (large, data) = blob(9000, 200_000);
    let failed = store
        .writer(large, false)
        .and_then(|mut writer| writer.write(&data));
    assert!(matches!(failed, Err(CasError::Full { .. })));
    for n in 5000..kept {
        assert_eq!(
            store.read(blob(n, 4096).0, 4096).unwrap().unwrap(),
            content(n, 4096)
        );
    }
    assert_eq!(files(&root.join("tmp")).len(), 0);
    let usage = store.usage();
    drop(pins);
    drop(store);
    let store = open(&root);
    assert_eq!((store.usage(), store.counters().truncated), (usage, 0));
}

/// Takes all that is free, bytes and inodes.
fn fill(mounted: &Mounted) {
    for n in 0.. {
        let Ok(mut other) = fs::File::create(mounted.path().join(format!("other{n}"))) else {
            break;
        };
        std::io::copy(&mut std::io::repeat(1), &mut other).unwrap_err();
    }
    assert_eq!(mounted.free(), 0);
}

#[test]
fn a_store_opens_and_closes_on_a_disk_that_others_filled() {
    let Some(mounted) = Mounted::new("size=4m,nr_inodes=1000") else {
        return;
    };
    let root = mounted.path().join("store");
    let state = || fs::read_to_string(root.join("state")).unwrap();
    let store = open(&root);
    let digests: Vec<Digest> = (0..100).map(|n| put(&store, n, 20_000)).collect();
    store.close().unwrap();
    drop(store);
    fill(&mounted);

    // Closed in order, killed in this boot, killed in another one: nothing need go for it.
    let closed = state();
    assert!(closed.starts_with("clean "), "{closed}");
    for other_boot in [false, false, true] {
        if other_boot {
            let file = fs::File::options().write(true).open(root.join("state"));
            std::io::Write::write_all(&mut file.unwrap(), b"open elsewhere").unwrap();
        }
        let store = open(&root);
        assert!(state().starts_with("open "), "{}", state());
        assert_eq!((state().len(), mounted.free()), (closed.len() - 1, 0));
        assert_eq!(store.has_doubtful(), other_boot);
        assert_eq!(
            (store.usage().blobs, store.counters().evicted),
            (100, 0),
            "{other_boot}"
        );
        let refused = LocalStore::open(config(&root)).unwrap_err().to_string();
        let owner = format!("process {}", std::process::id());
        assert!(refused.contains(&owner), "{refused}");
        drop(store);
    }
    let store = open(&root);
    store.close().unwrap();
    assert_eq!((state(), store.counters().evicted), (closed, 0));
    drop(store);

    // Where there is no note to write over, the longest unused make room for one.
    fs::remove_file(root.join("state")).unwrap();
    fill(&mounted);
    let store = open(&root);
    assert!(state().starts_with("open "), "{}", state());
    let evicted = store.counters().evicted as usize;
    assert!((1..50).contains(&evicted), "{evicted}");
    // Without the note nothing was trusted. What has proved itself is moved, for which others go: each is alone in its directory.
    assert!(store.has_doubtful());
    let here = digests.iter().filter(|&&digest| store.contains(digest));
    assert!(here.count() > 40);
    // And it is in use again.
    let new = put(&store, 1000, 100_000);
    assert!(store.contains(new));
    store.close().unwrap();
}

#[test]
fn a_full_disk_makes_room_for_the_directories_of_what_has_come() {
    let Some(mounted) = Mounted::new("size=4m,nr_inodes=1000") else {
        return;
    };
    let root = mounted.path().join("store");
    let store = open(&root);
    for n in 0..40 {
        put(&store, n, 4096);
    }
    let place = |digest: Digest| root.join("sha256").join(&digest.to_string()[..2]);
    let mut others = (100..).map(|n| blob(n, 4096));
    let mut another = || {
        let found = others.find(|(digest, _)| !place(*digest).exists());
        found.unwrap()
    };
    // All of both is on the disk already.
    let ((written, data), (adopted, output)) = (another(), another());
    let mut writer = store.writer(written, false).unwrap();
    writer.write(&data).unwrap();
    let path = store.scratch().join("output");
    fs::write(&path, &output).unwrap();
    fill(&mounted);
    writer.commit().unwrap();
    assert_eq!(store.read(written, 4096).unwrap().unwrap(), data);
    fill(&mounted);
    store.adopt(adopted, &path, false).unwrap();
    assert_eq!(store.read(adopted, 4096).unwrap().unwrap(), output);
    assert!(store.counters().evicted > 0);
}

#[test]
fn a_store_that_cannot_be_opened_on_a_full_disk_says_what_to_do() {
    let Some(mounted) = Mounted::new("size=4m,nr_inodes=1000") else {
        return;
    };
    let root = mounted.path().join("store");
    drop(open(&root));
    fs::remove_file(root.join("state")).unwrap();
    fill(&mounted);
    let full = LocalStore::open(config(&root)).unwrap_err();
    assert!(matches!(&full, CasError::Full { .. }), "{full}");
    assert!(full.to_string().contains("free some space"), "{full}");
    // What was begun takes no room from who frees some.
    assert!(!root.join("state.new").exists());
    for n in 0..4 {
        fs::remove_file(mounted.path().join(format!("other{n}"))).unwrap();
    }
    put(&open(&root), 1, 4096);
}

#[test]
fn the_floor_of_free_space_is_kept() {
    let Some(mounted) = Mounted::new("size=8m") else {
        return;
    };
    let mut config = config(&mounted.path().join("store"));
    config.free_floor = 2 << 20;
    let store = LocalStore::open(config).unwrap();
    let free = || mounted.free();
    for n in 0..3000 {
        put(&store, n, 4096);
        assert!(free() >= 2 << 20, "{} after {n}", free());
    }
    assert!(store.usage().disk > 5 << 20);
    // Somebody else takes what is left.
    fs::write(mounted.path().join("other"), vec![0; 1 << 20]).unwrap();
    for n in 3000..3600 {
        put(&store, n, 4096);
    }
    assert!(free() >= 2 << 20, "{}", free());
}

#[test]
fn the_floor_counts_what_was_promised_and_not_what_is_taken_over() {
    let Some(mounted) = Mounted::new("size=8m") else {
        return;
    };
    let mut config = config(&mounted.path().join("store"));
    config.free_floor = 2 << 20;
    let store = LocalStore::open(config).unwrap();
    // Both come at the same time; 8 MiB have no room for both and the floor.
    let ((one, one_data), (two, two_data)) = (blob(1, 4 << 20), blob(2, 4 << 20));
    let free = || mounted.free();
    let mut first = store.writer(one, false).unwrap();
    let mut second = Some(store.writer(two, false).unwrap());
    let mut came = 0;
    for (a, b) in one_data.chunks(64 << 10).zip(two_data.chunks(64 << 10)) {
        let refused = first.write(a).err();
        // What the other was promised is not given twice.
        if let Some(error) = refused {
            assert!(matches!(error, CasError::Full { .. }), "{error}");
            second = None;
            first.write(a).unwrap();
        }
        if let Some(other) = &mut second {
            match other.write(b) {
                Ok(()) => came += b.len(),
                Err(error) => {
                    assert!(matches!(error, CasError::Full { .. }), "{error}");
                    second = None;
                }
            }
        }
        assert!(free() >= 2 << 20, "{} after {came} of the other", free());
    }
    assert!(second.is_none());
    assert!(came > 1 << 20, "{came}");
    first.commit().unwrap();
    let (digest, data) = (two, two_data);

    // Less than the floor is free, but a rename takes nothing more.
    assert!(store.make_room(4 << 20) > 0);
    let output = store.scratch().join("output");
    fs::write(&output, &data).unwrap();
    let rest = free() as usize - (3 << 19);
    fs::write(mounted.path().join("other"), vec![0; rest]).unwrap();
    store.adopt(digest, &output, false).unwrap();
    assert_eq!(store.read(digest, 4 << 20).unwrap().unwrap(), data);
}

#[test]
fn after_an_adoption_the_floor_holds_again() {
    let Some(mounted) = Mounted::new("size=16m") else {
        return;
    };
    let mut config = config(&mounted.path().join("store"));
    config.free_floor = 2 << 20;
    let store = LocalStore::open(config).unwrap();
    let free = || mounted.free();
    // A look at the disk while it is empty allows for much.
    put(&store, 0, 4096);
    for n in 1..40 {
        let (digest, data) = blob(n, 1 << 20);
        let output = store.scratch().join("output");
        fs::write(&output, &data).unwrap();
        store.adopt(digest, &output, false).unwrap();
        assert!(free() >= 2 << 20, "{} after {n}", free());
        assert!(store.contains(digest));
    }
    assert!(store.usage().disk > 10 << 20);
    // What a command writes is counted by nobody; whoever looks makes room for it.
    let look = || store.look().unwrap();
    assert!(!look().full);
    let mut other = fs::File::create(mounted.path().join("other")).unwrap();
    std::io::copy(&mut std::io::repeat(1), &mut other).unwrap_err();
    assert!(look().above_floor == 0 && look().full);
    store.keep_free(0);
    assert!(free() >= 2 << 20 && !look().full, "{}", free());
    store.keep_free(3 << 20);
    assert!(look().above_floor >= 3 << 20, "{}", free());
}

/// As with files that are open, or linked elsewhere: whoever looks after the floor many times a second would have the whole cache gone.
#[test]
fn what_frees_nothing_is_not_evicted_over_and_over() {
    for linked in [true, false] {
        let Some(mounted) = Mounted::new("size=64m") else {
            return;
        };
        let mut config = config(&mounted.path().join("store"));
        config.free_floor = 2 << 20;
        let root = config.root.clone();
        let store = LocalStore::open(config).unwrap();
        for n in 0..40 {
            put(&store, n, 512 << 10);
        }
        let (mut directories, mut held) = (vec![root], Vec::new());
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.metadata().unwrap().len() == 512 << 10 {
                    let name = format!("held{}", held.len());
                    held.push((!linked).then(|| fs::File::open(&path).unwrap()));
                    if linked {
                        fs::hard_link(path, mounted.path().join(name)).unwrap();
                    }
                }
            }
        }
        assert_eq!(held.len(), 40);
        let rest = mounted.free() as usize - (1 << 20);
        fs::write(mounted.path().join("other"), vec![0; rest]).unwrap();
        for _ in 0..100 {
            store.keep_free(0);
        }
        let here = (0..40).filter(|n| store.contains(blob(*n, 512 << 10).0));
        let here = here.count();
        assert!(here < 40, "nothing was tried");
        assert!(here >= 20, "{here} are left");
    }
}

#[test]
fn room_for_a_command_comes_on_top_of_what_uploads_were_promised() {
    let Some(mounted) = Mounted::new("size=64m") else {
        return;
    };
    let mut config = config(&mounted.path().join("store"));
    config.free_floor = 2 << 20;
    let store = LocalStore::open(config).unwrap();
    for n in 0..100 {
        put(&store, n, 512 << 10);
    }
    let promised = store.reserve_beside(16 << 20).unwrap();
    store.keep_free(16 << 20);
    assert!(mounted.free() >= 34 << 20, "{}", mounted.free());
    drop(promised);
}

#[test]
fn results_of_actions_do_not_fill_the_disk() {
    let Some(mounted) = Mounted::new("size=32m") else {
        return;
    };
    let mut config = config(&mounted.path().join("store"));
    config.free_floor = 2 << 20;
    let open = || {
        let store = LocalStore::open(config.clone()).unwrap();
        let results = ActionCache::open(&mounted.path().join("ac"), 1000, store.clone()).unwrap();
        (store, results)
    };
    let free = || mounted.free();
    let result = |n| re::ActionResult {
        stdout_raw: content(n, 3_900_000).into(),
        ..Default::default()
    };
    let (store, results) = open();
    for n in 0..12 {
        results.put(blob(n, 9).0, &result(n)).unwrap();
        assert!(free() >= 2 << 20, "{} after {n}", free());
    }
    assert!(results.len() > 5 && results.get(blob(11, 9).0).unwrap().is_some());
    put(&store, 1, 4 << 20);
    // Somebody else takes all that is left, and nobody can shut down.
    let mut other = fs::File::create(mounted.path().join("other")).unwrap();
    std::io::copy(&mut std::io::repeat(1), &mut other).unwrap_err();
    results.put(blob(20, 9).0, &result(20)).unwrap();
    assert!(results.get(blob(20, 9).0).unwrap().is_some());
    assert!(free() >= 2 << 20, "{}", free());
    std::io::copy(&mut std::io::repeat(1), &mut other).unwrap_err();
    store.close().unwrap();
    drop((store, results));
    // After a kill, whoever opens it finds too little free, and makes room.
    drop(open());
    std::io::copy(&mut std::io::repeat(1), &mut other).unwrap_err();
    let (store, results) = open();
    assert!(free() >= 2 << 20 && !results.is_empty(), "{}", free());
    put(&store, 2, 4 << 20);
}

#[test]
fn mounts_in_scratch_are_not_entered() {
    let Some(mounted) = Mounted::new("size=1m") else {
        return;
    };
    let dir = tempfile::tempdir_in(mounted.path()).unwrap();
    let store = open(dir.path());
    let precious = mounted.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "").unwrap();
    // A bind mount of the same file system: its device number does not tell.
    let target = store.scratch().join("a/bound");
    fs::create_dir_all(&target).unwrap();
    let bound = Command::new("mount")
        .arg("--bind")
        .args([&precious, &target])
        .status()
        .unwrap();
    assert!(bound.success());
    fs::write(store.scratch().join("a/file"), "").unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(files(&precious).len(), 1);
    assert!(!store.scratch().join("a/file").exists());
    assert!(
        Command::new("umount")
            .arg(&target)
            .status()
            .unwrap()
            .success()
    );
}

/// Many threads do everything at once with few blobs and too little room. Whatever is read must be
/// right, what is pinned and was put must stay, and in the end the directory is what the index says.
#[test]
fn everything_at_once() {
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64;
    eprintln!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    (config.high_water, config.low_water) = (150 * BLOCK, 120 * BLOCK);
    let store = LocalStore::open(config.clone()).unwrap();
    let blobs: Vec<(Digest, Vec<u8>)> = (0..60)
        .map(|n| {
            blob(
                n,
                if n % 10 == 0 {
                    70_000
                } else {
                    100 + n as usize * 90
                },
            )
        })
        .collect();
    let full = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let (store, blobs, full) = (&store, &blobs, &full);
            scope.spawn(move || {
                let mut random = Random(seed ^ (thread + 1) << 32 | 1);
                let scratch = store.scratch().join(thread.to_string());
                let done = |result: Result<(), CasError>| match result {
                    Ok(()) => true,
                    Err(CasError::Full { .. }) => {
                        full.fetch_add(1, Ordering::Relaxed);
                        false
                    }
                    Err(other) => panic!("{other}"),
                };
                for _ in 0..4000 {
                    let (digest, data) = &blobs[random.below(60) as usize];
                    let executable = random.below(3) == 0;
                    match random.below(12) {
                        0..3 => drop(done(store.put(*digest, data, executable))),
                        3 => match store.writer(*digest, executable) {
                            Ok(mut writer) => {
                                for piece in data.chunks(30_000) {
                                    done(writer.write(piece));
                                }
                                if random.below(4) > 0 {
                                    done(writer.commit());
                                }
                            }
                            Err(error) => drop(done(Err(error))),
                        },
                        4 => {
                            fs::write(&scratch, data).unwrap();
                            done(store.adopt(*digest, &scratch, executable));
                            let _ = fs::remove_file(&scratch);
                        }
                        5..7 => {
                            if let Some(read) = store.read(*digest, u64::MAX).unwrap() {
                                assert!(read == data, "wrong content of {digest}");
                            }
                        }
                        7 => {
                            if let Some(file) = store.open_blob(*digest).unwrap() {
                                assert_eq!(file.metadata().unwrap().len(), digest.size());
                            }
                        }
                        8..11 => {
                            let _pins = store.pin([*digest]);
                            if !done(store.put(*digest, data, executable)) {
                                continue;
                            }
                            for _ in 0..2 {
                                match store.path(*digest, random.below(2) == 0) {
                                    Ok(Some(path)) => {
                                        assert!(fs::read(path).unwrap() == *data);
                                    }
                                    Ok(None) => panic!("{digest} was pinned and is gone"),
                                    Err(error) => drop(done(Err(error))),
                                }
                            }
                            assert!(store.contains(*digest));
                        }
                        _ => {
                            assert!(store.verify(*digest).is_ok());
                        }
                    }
                    assert!(store.usage().disk <= 150 * BLOCK);
                }
            });
        }
    });
    eprintln!(
        "{:?} {:?}, full {} times",
        store.usage(),
        store.counters(),
        full.load(Ordering::Relaxed)
    );
    assert!(store.counters().evicted > 100);
    assert_eq!(store.counters().quarantined, 0);
    check_directory(&store, dir.path(), &blobs.into_iter().collect());
    let usage = store.usage();
    drop(store);
    let store = LocalStore::open(config).unwrap();
    assert_eq!(store.usage(), usage);
    assert_eq!(store.counters(), Default::default());
}

fn check_directory(store: &LocalStore, root: &Path, blobs: &HashMap<Digest, Vec<u8>>) {
    let mut disk = 0;
    for file in files(&root.join("sha256")) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let (stem, executable) = match name.strip_suffix(".x") {
            Some(stem) => (stem, true),
            None => (name, false),
        };
        let digest: Digest = stem.replace('-', "/").parse().unwrap();
        assert!(store.contains(digest), "{name} is not in the index");
        let path = root.join("sha256").join(&file);
        assert_eq!(store.path(digest, executable).unwrap().unwrap(), path);
        assert!(fs::read(&path).unwrap() == blobs[&digest], "{name}");
        assert_eq!(mode(&path), if executable { 0o555 } else { 0o444 });
        disk += digest.size().next_multiple_of(BLOCK);
    }
    assert_eq!(store.usage().disk, disk);
    for place in ["tmp", "quarantine", "unverified"] {
        assert_eq!(files(&root.join(place)).len(), 0, "{place}");
    }
}

/// Prints what one small blob costs; for a look by hand:
/// `cargo test --release --test cas_store -- --ignored --nocapture cost`.
#[test]
#[ignore = "a measurement, not a test"]
fn cost_of_small_blobs() {
    const MANY: u64 = 10_000;
    fn cpu() -> f64 {
        use nix::sys::resource::{UsageWho, getrusage};
        use nix::sys::time::TimeValLike;
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        (usage.user_time() + usage.system_time()).num_microseconds() as f64
    }
    fn measure(what: &str, mut act: impl FnMut(u64)) {
        let (cpu_before, clock) = (cpu(), std::time::Instant::now());
        for n in 0..MANY {
            act(n);
        }
        eprintln!(
            "{what:40} {:6.1} us CPU, {:6.1} us",
            (cpu() - cpu_before) / MANY as f64,
            clock.elapsed().as_micros() as f64 / MANY as f64
        );
    }
    let dir =
        tempfile::tempdir_in(std::env::var_os("COST_DIR").unwrap_or("target".into())).unwrap();
    let store = open(dir.path());
    let blobs: Vec<(Digest, Vec<u8>)> = (0..MANY).map(|n| blob(n, 4096)).collect();
    let get = |n: u64| &blobs[n as usize];
    let plain = dir.path().join("plain");
    for shard in 0..256 {
        fs::create_dir_all(plain.join(format!("{shard:02x}"))).unwrap();
    }
    measure("create and write only", |n| {
        let (digest, data) = get(n);
        let hash = digest.hash_hex();
        fs::write(plain.join(&hash[..2]).join(&hash), data).unwrap();
    });
    measure("put", |n| store.put(get(n).0, &get(n).1, false).unwrap());
    measure("put again", |n| {
        store.put(get(n).0, &get(n).1, false).unwrap()
    });
    measure("contains", |n| assert!(store.contains(get(n).0)));
    measure("path", |n| {
        drop(store.path(get(n).0, false).unwrap().unwrap())
    });
    measure("read", |n| {
        drop(store.read(get(n).0, 1 << 20).unwrap().unwrap())
    });
    measure("path of the other kind", |n| {
        drop(store.path(get(n).0, true).unwrap().unwrap())
    });
    drop(store);
    let clock = std::time::Instant::now();
    let store = open(dir.path());
    eprintln!(
        "{:40} {:6.1} us a file",
        "open",
        clock.elapsed().as_micros() as f64 / (2 * MANY) as f64
    );
    drop(store);
    fs::remove_dir_all(dir.path().join("sha256")).unwrap();
    let store = open(dir.path());
    for (digest, data) in &blobs {
        fs::write(store.scratch().join(digest.hash_hex()), data).unwrap();
        if is_root() {
            std::os::unix::fs::chown(
                store.scratch().join(digest.hash_hex()),
                Some(4321),
                Some(4321),
            )
            .unwrap();
        }
    }
    measure("adopt", |n| {
        let file = store.scratch().join(get(n).0.hash_hex());
        store.adopt(get(n).0, &file, false).unwrap();
    });
    drop(store);
    let mut small = config(dir.path());
    (small.high_water, small.low_water) = (100 * BLOCK, 50 * BLOCK);
    let (cpu_before, files) = (cpu(), MANY - 50);
    drop(LocalStore::open(small).unwrap());
    eprintln!(
        "{:40} {:6.1} us CPU",
        "open and evict",
        (cpu() - cpu_before) / files as f64
    );
}
