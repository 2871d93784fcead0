//! `kill -9` at any moment costs nothing: what the store said it keeps is there after reopening, and
//! whatever it has is whole and right.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boxwright::cas::local::{LocalStore, StoreConfig};
use boxwright::reapi::{Digest, DigestFunction};

const CHILD: &str = "BOXWRIGHT_TEST_STORE";
const ROUNDS: u64 = 60;
const BLOBS: u64 = 400;

/// The child's store has room for everything, or for so little that it evicts all the time.
fn open(root: &Path, roomy: bool) -> Arc<LocalStore> {
    let high_water = if roomy { 1 << 30 } else { 3 << 20 };
    LocalStore::open(StoreConfig {
        root: root.to_owned(),
        high_water,
        low_water: high_water / 4 * 3,
        free_floor: 0,
    })
    .unwrap()
}

/// Small ones, and some that take several writes.
fn blob(n: u64) -> (Digest, Vec<u8>) {
    let size = match n % 8 {
        0 => 150_000 + n as usize,
        1 => 40_000 + n as usize,
        _ => 1 + n as usize * 13,
    };
    let data: Vec<u8> = (0..size as u64)
        .map(|i| (i.wrapping_mul(n * 2 + 1) >> 3) as u8)
        .collect();
    (DigestFunction::Sha256.digest(&data), data)
}

fn random(seed: &mut u64) -> u64 {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// Writes until it is killed. A line for each blob, once it is kept.
fn child(root: &Path, roomy: bool, seed: u64) -> ! {
    let store = open(root, roomy);
    for thread in 0..3 {
        let store = Arc::clone(&store);
        std::thread::spawn(move || {
            let mut seed = seed ^ (thread << 40);
            let scratch = store.scratch().join(thread.to_string());
            loop {
                let n = random(&mut seed) % BLOBS;
                let (digest, data) = blob(n);
                let executable = random(&mut seed) % 2 == 1;
                let _pins = store.pin([digest]);
                match random(&mut seed) % 4 {
                    0 | 1 => store.put(digest, &data, executable).unwrap(),
                    2 => {
                        let mut writer = store.writer(digest, executable).unwrap();
                        for piece in data.chunks(20_000) {
                            writer.write(piece).unwrap();
                        }
                        writer.commit().unwrap();
                    }
                    _ => {
                        fs::write(&scratch, &data).unwrap();
                        store.adopt(digest, &scratch, executable).unwrap();
                    }
                }
                if random(&mut seed) % 3 == 1 {
                    store.path(digest, executable).unwrap().unwrap();
                }
                writeln!(std::io::stdout().lock(), "kept {n}").unwrap();
            }
        });
    }
    loop {
        std::thread::park();
    }
}

#[test]
fn nothing_is_lost_or_wrong_after_a_kill() {
    if let Some(root) = std::env::var_os(CHILD) {
        let parameter = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
        child(Path::new(&root), parameter("ROOMY") == 1, parameter("SEED"));
    }
    let blobs: Vec<(Digest, Vec<u8>)> = (0..BLOBS).map(blob).collect();
    let mut seed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64;
    eprintln!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let (mut promised, mut truncated, mut wrote) = (0, 0, 0);
    for round in 0..ROUNDS {
        let roomy = round % 2 == 0;
        // Now and then from nothing, so that there is something to write.
        let root = dir.path().join((round / 4).to_string());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "nothing_is_lost_or_wrong_after_a_kill",
                "--nocapture",
            ])
            .env(CHILD, &root)
            .env("ROOMY", if roomy { "1" } else { "0" })
            .env("SEED", random(&mut seed).to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let (tell, told) = mpsc::channel::<u64>();
        let reader = std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if let Some(n) = line.strip_prefix("kept ") {
                    let _ = tell.send(n.parse().unwrap());
                }
            }
        });
        // Any moment: often after some blob, else by the clock, those while it is still opening included.
        let mut kept: Vec<u64> = Vec::new();
        if random(&mut seed) % 4 < 3 {
            let some = random(&mut seed) % 60;
            kept.extend(told.iter().take(some as usize));
        }
        std::thread::sleep(Duration::from_micros(random(&mut seed) % 20_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut complaints = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut complaints)
            .unwrap();
        assert!(!complaints.contains("panicked"), "{complaints}");
        reader.join().unwrap();
        kept.extend(told.try_iter());

        let store = open(&root, true);
        if roomy {
            for &n in &kept {
                let (digest, data) = &blobs[n as usize];
                let read = store.read(*digest, u64::MAX).unwrap();
                assert!(
                    read.is_some_and(|read| read == data),
                    "blob {n} was kept, and is lost"
                );
            }
            promised += kept.len();
        }
        wrote += kept.len();
        truncated += store.counters().truncated;
        assert_eq!(store.counters().strays, 0);
        let mut here = 0;
        for (n, (digest, data)) in blobs.iter().enumerate() {
            let digest = *digest;
            if !store.contains(digest) {
                assert!(store.read(digest, u64::MAX).unwrap().is_none());
                continue;
            }
            here += 1;
            assert!(
                store.read(digest, u64::MAX).unwrap().unwrap() == data,
                "blob {n} is wrong"
            );
            for executable in [false, true] {
                let path = store.path(digest, executable).unwrap().unwrap();
                assert!(
                    fs::read(path).unwrap() == *data,
                    "a file of blob {n} is wrong"
                );
            }
        }
        assert_eq!(store.usage().blobs, here);
        assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(store.scratch()).unwrap().count(), 0);
    }
    eprintln!(
        "{wrote} blobs written, {promised} of them looked for, {truncated} half-written files"
    );
    assert!(
        promised > 100,
        "the children were killed too early to show anything"
    );
}
