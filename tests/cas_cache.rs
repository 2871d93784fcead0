//! Promise: a blob is moved once, however many actions want it; all missing blobs are named; nobody is left
//! hanging by a caller that goes away; pinned blobs stay.
#![allow(missing_docs)]

#[path = "common/faulty_cas/mod.rs"]
mod faulty_cas;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use boxwright::cas::{BlobSource, Cas, CasError, LocalStore, StoreConfig, Wanted};
use boxwright::reapi::Digest;
use bytes::Bytes;
use faulty_cas::{FaultyCas, SHA256, blob, pattern};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tonic::Code;

fn store(high_water: u64) -> (Arc<LocalStore>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(StoreConfig {
        root: dir.path().join("cas"),
        high_water,
        low_water: high_water / 2,
        free_floor: 0,
    })
    .unwrap();
    (store, dir)
}

async fn with_server() -> (FaultyCas, Cas, TempDir) {
    let server = FaultyCas::start().await;
    let (local, dir) = store(1 << 40);
    let cas = Cas::new(local, Some(Arc::new(server.client())));
    (server, cas, dir)
}

fn wanted(digests: &[Digest]) -> Vec<Wanted> {
    digests
        .iter()
        .map(|digest| Wanted {
            digest: *digest,
            executable: false,
        })
        .collect()
}

fn missing(error: CasError) -> HashSet<Digest> {
    match error {
        CasError::Missing(digests) => {
            let set: HashSet<_> = digests.iter().copied().collect();
            assert_eq!(set.len(), digests.len(), "named twice");
            set
        }
        other => panic!("{other}"),
    }
}

/// A source in memory whose answers wait for permits.
struct Gated {
    blobs: HashMap<Digest, Bytes>,
    gate: Semaphore,
    /// A permit for each answer that began to wait.
    entered: Semaphore,
    /// A permit for each answer that was given up while it waited.
    abandoned: Semaphore,
    finished: AtomicUsize,
    served: Mutex<Vec<Digest>>,
}

impl Gated {
    fn new(blobs: impl IntoIterator<Item = (Digest, Bytes)>) -> Arc<Self> {
        Arc::new(Gated {
            blobs: blobs.into_iter().collect(),
            gate: Semaphore::new(0),
            entered: Semaphore::new(0),
            abandoned: Semaphore::new(0),
            finished: AtomicUsize::new(0),
            served: Mutex::default(),
        })
    }

    fn open(&self) {
        self.gate.add_permits(1000);
    }

    async fn pass(&self) {
        struct Abandoned<'a>(&'a Gated, bool);
        impl Drop for Abandoned<'_> {
            fn drop(&mut self) {
                if !self.1 {
                    self.0.abandoned.add_permits(1);
                }
            }
        }
        let mut guard = Abandoned(self, false);
        self.entered.add_permits(1);
        self.gate.acquire().await.unwrap().forget();
        guard.1 = true;
        self.finished.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl BlobSource for Gated {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, CasError> {
        Ok(digests
            .iter()
            .copied()
            .filter(|d| !self.blobs.contains_key(d))
            .collect())
    }
    async fn read_batch(
        &self,
        digests: &[Digest],
        sink: &mut (dyn FnMut(Digest, Bytes) + Send),
    ) -> Result<Vec<Digest>, CasError> {
        self.pass().await;
        let mut missing = Vec::new();
        for digest in digests {
            match self.blobs.get(digest) {
                Some(bytes) => {
                    self.served.lock().push(*digest);
                    sink(*digest, bytes.clone());
                }
                None => missing.push(*digest),
            }
        }
        Ok(missing)
    }
    async fn read_stream(
        &self,
        digest: Digest,
        sink: &mut (dyn FnMut(Bytes) -> Result<(), CasError> + Send),
    ) -> Result<(), CasError> {
        self.pass().await;
        let bytes = self
            .blobs
            .get(&digest)
            .ok_or(CasError::Missing(vec![digest]))?;
        self.served.lock().push(digest);
        sink(bytes.clone())
    }
    async fn write_batch(&self, _: Vec<(Digest, Bytes)>) -> Result<(), CasError> {
        unreachable!("nothing is uploaded in these tests")
    }
    async fn write_stream(&self, _: Digest, _: std::fs::File) -> Result<(), CasError> {
        unreachable!("nothing is uploaded in these tests")
    }
    async fn get_tree(&self, _: Digest) -> Result<Option<Vec<(Digest, Bytes)>>, CasError> {
        Ok(None)
    }
    fn batch_limit(&self) -> u64 {
        1 << 20
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_actions_download_each_blob_once() {
    let (server, cas, _dir) = with_server().await;
    let mut digests: Vec<Digest> = (0..97).map(|n| server.put(blob(n, 4096).1)).collect();
    digests.extend((0..3).map(|n| server.put(pattern(n, 3_000_000))));
    let actions: Vec<_> = (0..50)
        .map(|n| {
            let (cas, mut mine) = (cas.clone(), digests.clone());
            mine.rotate_left(n);
            tokio::spawn(async move {
                let pins = cas.fetch(&wanted(&mine)).await;
                assert!(cas.local().missing(&mine).is_empty());
                pins
            })
        })
        .collect();
    for action in actions {
        action.await.unwrap().unwrap();
    }
    let sent = server.state.seen.lock().sent.clone();
    assert_eq!(sent.len(), 100);
    assert!(sent.values().all(|times| *times == 1), "{sent:?}");
}

#[tokio::test]
async fn fifty_readers_download_each_message_once() {
    let blobs: Vec<_> = (0..100).map(|n| blob(n, 300)).collect();
    let source = Gated::new(blobs.clone());
    let (local, _dir) = store(1 << 30);
    let cas = Cas::new(local, Some(source.clone()));
    let digests: Vec<Digest> = blobs.iter().map(|(d, _)| *d).collect();
    let mut readers: Vec<_> = (0..50)
        .map(|_| Box::pin(cas.read_many(&digests, 1000, "Directory")))
        .collect();
    for reader in &mut readers {
        assert!(futures::poll!(reader).is_pending());
    }
    source.open();
    for reader in readers {
        let came: HashMap<_, _> = reader.await.unwrap().into_iter().collect();
        assert_eq!(came, blobs.iter().cloned().collect());
    }
    assert_eq!(source.served.lock().len(), 100);
}

#[tokio::test]
async fn a_cancelled_leader_does_not_take_others_down() {
    for size in [300, 3_000_000] {
        let (digest, data) = blob(1, size);
        let source = Gated::new([(digest, data)]);
        let (local, _dir) = store(1 << 30);
        let cas = Cas::new(local, Some(source.clone()));
        let want = wanted(&[digest]);
        let mut leader = Box::pin(cas.fetch(&want));
        assert!(futures::poll!(&mut leader).is_pending());
        source.entered.acquire().await.unwrap().forget();
        let mut other = Box::pin(cas.fetch(&want));
        assert!(futures::poll!(&mut other).is_pending());
        drop(leader);
        source.open();
        other.await.unwrap();
        assert!(cas.local().contains(digest));
        assert_eq!(source.finished.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_download_that_nobody_wants_any_more_is_stopped() {
    for size in [300, 3_000_000] {
        let (digest, data) = blob(1, size);
        let source = Gated::new([(digest, data)]);
        let (local, _dir) = store(1 << 30);
        let cas = Cas::new(local, Some(source.clone()));
        let want = wanted(&[digest]);
        let mut only = Box::pin(cas.fetch(&want));
        assert!(futures::poll!(&mut only).is_pending());
        source.entered.acquire().await.unwrap().forget();
        drop(only);
        source.abandoned.acquire().await.unwrap().forget();
        // And can be had again.
        source.open();
        cas.fetch(&want).await.unwrap();
        assert!(cas.local().contains(digest));
    }
}

#[tokio::test]
async fn a_failure_hits_only_those_who_asked_for_the_blob() {
    let (server, cas, _dir) = with_server().await;
    let good = server.put(blob(1, 100).1);
    let bad = server.put(blob(2, 100).1);
    server.faults(|f| {
        f.blob_fails.insert(bad, (Code::PermissionDenied, u32::MAX));
    });
    let both = wanted(&[good, bad]);
    let one = wanted(&[good]);
    let (first, second) = tokio::join!(cas.fetch(&both), cas.fetch(&one));
    assert!(matches!(first, Err(CasError::Remote { .. })));
    second.unwrap();
    assert!(cas.local().contains(good));
}

#[tokio::test]
async fn all_missing_blobs_are_named() {
    let (server, cas, _dir) = with_server().await;
    let mut asked: Vec<Digest> = (0..20).map(|n| server.put(blob(n, 100).1)).collect();
    let mut gone: HashSet<Digest> = (100..5100).map(|n| blob(n, 90).0).collect();
    gone.insert(blob(1, 5_000_000).0);
    gone.insert(blob(2, 5_000_000).0);
    asked.extend(&gone);
    assert_eq!(missing(cas.fetch(&wanted(&asked)).await.unwrap_err()), gone);
    assert_eq!(
        missing(
            cas.read_many(&asked, u64::MAX, "Directory")
                .await
                .unwrap_err()
        ),
        gone
    );
    assert_eq!(missing(cas.publish(&asked).await.unwrap_err()), gone);
}

#[tokio::test]
async fn fetched_blobs_have_their_bytes_and_their_kind() {
    let (server, cas, _dir) = with_server().await;
    let blobs: Vec<_> = [(1, 0), (2, 10), (3, 5000), (4, 3_000_000)]
        .map(|(n, size)| blob(n, size))
        .into();
    for (_, data) in &blobs {
        server.put(data.clone());
    }
    let want: Vec<Wanted> = blobs
        .iter()
        .flat_map(|(digest, _)| {
            [true, false].map(|executable| Wanted {
                digest: *digest,
                executable,
            })
        })
        .collect();
    let _pins = cas.fetch(&want).await.unwrap();
    for (digest, data) in blobs {
        for executable in [true, false] {
            let path = cas.local().path(digest, executable).unwrap().unwrap();
            assert_eq!(std::fs::read(path).unwrap(), data);
        }
    }
}

#[tokio::test]
async fn pinned_blobs_stay_however_much_is_fetched() {
    let server = FaultyCas::start().await;
    let (local, _dir) = store(4 << 20);
    let cas = Cas::new(local, Some(Arc::new(server.client())));
    let first: Vec<Digest> = (0..200).map(|n| server.put(blob(n, 4096).1)).collect();
    let pins = cas.fetch(&wanted(&first)).await.unwrap();
    for round in 1..6 {
        let more: Vec<Digest> = (0..500)
            .map(|n| server.put(blob(round * 1000 + n, 4096).1))
            .collect();
        cas.fetch(&wanted(&more)).await.unwrap();
    }
    assert!(cas.local().missing(&first).is_empty());
    assert!(cas.local().usage().bytes <= 4 << 20);
    drop(pins);
}

#[tokio::test]
async fn a_stream_with_wrong_bytes_is_fetched_again_once() {
    let (server, cas, _dir) = with_server().await;
    let digest = server.put(pattern(0, 5_000_000));
    server.faults(|f| {
        f.wrong_bytes.insert(digest, u32::MAX);
    });
    let error = cas.fetch(&wanted(&[digest])).await.unwrap_err();
    assert!(matches!(error, CasError::Corrupt { expected, .. } if expected == digest));
    assert_eq!(server.calls("Read"), 2);
    assert!(!cas.local().contains(digest));
    assert_eq!(cas.local().usage().bytes, 0);
    server.faults(|f| {
        f.wrong_bytes.insert(digest, 1);
    });
    cas.fetch(&wanted(&[digest])).await.unwrap();
    assert!(cas.local().contains(digest));
}

#[tokio::test]
async fn messages_are_read_from_memory_disk_or_remote_and_not_written_to_disk() {
    let (server, cas, _dir) = with_server().await;
    let (digest, data) = blob(1, 500);
    server.put(data.clone());
    assert_eq!(cas.read(digest, 1000, "Command").await.unwrap(), data);
    assert_eq!(cas.read(digest, 1000, "Command").await.unwrap(), data);
    assert_eq!(server.calls("BatchReadBlobs"), 1);
    assert!(!cas.local().contains(digest));

    let (here, data) = blob(2, 500);
    cas.local().put(here, &data, false).unwrap();
    assert_eq!(cas.read(here, 1000, "Command").await.unwrap(), data);
    assert_eq!(server.calls("BatchReadBlobs"), 1);

    let (large, data) = blob(3, 4_000_000);
    server.put(data.clone());
    assert_eq!(cas.read(large, 5_000_000, "Directory").await.unwrap(), data);
    assert!(matches!(
        cas.read(large, 100, "Command").await.unwrap_err(),
        CasError::TooLarge {
            what: "Command",
            limit: 100,
            ..
        }
    ));
    assert!(
        cas.read(Digest::empty(SHA256), 0, "Command")
            .await
            .unwrap()
            .is_empty()
    );

    let both = cas
        .read_many(&[here, digest, here], 1000, "Directory")
        .await
        .unwrap();
    assert_eq!(both.len(), 2);
}

#[tokio::test]
async fn a_damaged_local_message_comes_from_the_remote() {
    let (server, cas, _dir) = with_server().await;
    let (digest, data) = blob(1, 500);
    server.put(data.clone());
    cas.local().put(digest, &data, false).unwrap();
    let path = cas.local().path(digest, false).unwrap().unwrap();
    std::fs::remove_file(path).unwrap();
    assert_eq!(cas.read(digest, 1000, "Command").await.unwrap(), data);
}

#[tokio::test]
async fn publishing_asks_once_and_uploads_what_is_lacking() {
    let (server, cas, _dir) = with_server().await;
    let there: Vec<_> = (0..50).map(|n| blob(n, 4096)).collect();
    let lacking: Vec<_> = (100..1100)
        .map(|n| blob(n, 4096))
        .chain([blob(1, 3_000_000), blob(2, 0)])
        .collect();
    for (digest, data) in there.iter().chain(&lacking) {
        cas.local().put(*digest, data, false).unwrap();
    }
    for (_, data) in &there {
        server.put(data.clone());
    }
    // Only the remote has it: an output that is an input which was never read here.
    let elsewhere = server.put(blob(5, 123).1);
    let all: Vec<Digest> = there
        .iter()
        .chain(&lacking)
        .map(|(d, _)| *d)
        .chain([elsewhere])
        .collect();
    cas.publish(&all).await.unwrap();
    for (digest, data) in &lacking {
        assert_eq!(&server.get(*digest).unwrap(), data);
    }
    assert_eq!(server.calls("FindMissingBlobs"), 1);
    assert_eq!(server.calls("Write"), 1);
    assert!(server.calls("BatchUpdateBlobs") <= 3);
    cas.publish(&all).await.unwrap();
    assert_eq!(server.calls("BatchUpdateBlobs") + server.calls("Write"), 4);
    cas.publish(&[]).await.unwrap();
    assert_eq!(server.calls("FindMissingBlobs"), 2);
}

#[tokio::test]
async fn without_a_remote_everything_is_local() {
    let (local, _dir) = store(1 << 30);
    let cas = Cas::new(local, None);
    let (here, data) = blob(1, 100);
    let gone = blob(2, 100).0;
    cas.local().put(here, &data, false).unwrap();
    cas.fetch(&wanted(&[here])).await.unwrap();
    cas.publish(&[here]).await.unwrap();
    assert_eq!(cas.read(here, 100, "Command").await.unwrap(), data);
    assert!(cas.read_tree(here).await.unwrap().is_empty());
    for error in [
        cas.fetch(&wanted(&[here, gone])).await.unwrap_err(),
        cas.publish(&[here, gone]).await.unwrap_err(),
        cas.read(gone, 100, "Command").await.unwrap_err(),
    ] {
        assert_eq!(missing(error), HashSet::from([gone]));
    }
}

#[test]
fn shutting_down_does_not_wait_for_downloads() {
    let (done, ended) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let (digest, data) = blob(1, 3_000_000);
        let source = Gated::new([(digest, data)]);
        let (local, _dir) = store(1 << 30);
        let cas = Cas::new(local, Some(source.clone()));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            tokio::spawn(async move { cas.fetch(&wanted(&[digest])).await.map(drop) });
            source.entered.acquire().await.unwrap().forget();
        });
        drop(runtime);
        done.send(()).unwrap();
    });
    // A download that is waited for would never end, as nobody opens the gate.
    ended
        .recv_timeout(std::time::Duration::from_secs(30))
        .unwrap();
    thread.join().unwrap();
}
