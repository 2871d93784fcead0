//! A tree from outside is read whole or refused, at a cost that follows its distinct messages and
//! never the number of paths in it; whatever is missing is named, all of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use boxwright::cas::{BlobSource, Cas, CasError, LocalStore, StoreConfig};
use boxwright::reapi::proto::re;
use boxwright::reapi::{Digest, DigestFunction};
use boxwright::tree::{Node, Tree, TreeBuilder, TreeError, TreeLimits, TreeStore, fetch};
use bytes::Bytes;
use prost::Message;

const SHA256: DigestFunction = DigestFunction::Sha256;

/// A remote in memory that counts its calls.
#[derive(Default)]
struct Remote {
    blobs: HashMap<Digest, Bytes>,
    whole_trees: bool,
    /// GetTree fails.
    tree_fails: bool,
    batches: AtomicUsize,
    trees: AtomicUsize,
}

#[async_trait]
impl BlobSource for Remote {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, CasError> {
        let absent = |d: &&Digest| !self.blobs.contains_key(d);
        Ok(digests.iter().filter(absent).copied().collect())
    }
    async fn read_batch(
        &self,
        digests: &[Digest],
        sink: &mut (dyn FnMut(Digest, Bytes) + Send),
    ) -> Result<Vec<Digest>, CasError> {
        self.batches.fetch_add(1, Ordering::SeqCst);
        let mut missing = Vec::new();
        for digest in digests {
            match self.blobs.get(digest) {
                Some(data) => sink(*digest, data.clone()),
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
        match self.blobs.get(&digest) {
            Some(data) => sink(data.clone()),
            None => Err(CasError::Missing(vec![digest])),
        }
    }
    async fn write_batch(&self, _: Vec<(Digest, Bytes)>) -> Result<(), CasError> {
        panic!("reading a tree uploads nothing")
    }
    async fn write_stream(&self, _: Digest, _: std::fs::File) -> Result<(), CasError> {
        panic!("reading a tree uploads nothing")
    }
    async fn get_tree(&self, root: Digest) -> Result<Option<Vec<(Digest, Bytes)>>, CasError> {
        if !self.whole_trees {
            return Ok(None);
        }
        self.trees.fetch_add(1, Ordering::SeqCst);
        if self.tree_fails {
            return Err(CasError::Missing(vec![root]));
        }
        assert!(self.blobs.contains_key(&root));
        let all = self.blobs.iter();
        Ok(Some(all.map(|(d, b)| (*d, b.clone())).collect()))
    }
    fn batch_limit(&self) -> u64 {
        4 << 20
    }
}

struct World {
    _dir: tempfile::TempDir,
    cas: Cas,
    remote: Arc<Remote>,
    store: TreeStore,
}

fn world(remote: Remote) -> World {
    let dir = tempfile::tempdir().unwrap();
    let local = LocalStore::open(StoreConfig {
        root: dir.path().join("cas"),
        high_water: 1 << 30,
        low_water: 1 << 29,
        free_floor: 0,
    })
    .unwrap();
    let remote = Arc::new(remote);
    World {
        _dir: dir,
        cas: Cas::new(local, Some(remote.clone())),
        remote,
        store: TreeStore::new(64 << 20),
    }
}

impl World {
    async fn fetch(&self, root: Digest, limits: TreeLimits) -> Result<Arc<Tree>, TreeError> {
        fetch(&self.cas, &self.store, root, limits).await
    }
}

fn put(blobs: &mut HashMap<Digest, Bytes>, message: &re::Directory) -> Digest {
    let bytes = Bytes::from(message.encode_to_vec());
    let digest = SHA256.digest(&bytes);
    blobs.insert(digest, bytes);
    digest
}

fn file(name: &str, digest: Digest) -> re::FileNode {
    re::FileNode {
        name: name.to_owned(),
        digest: Some(digest.to_proto()),
        ..Default::default()
    }
}

fn child(name: &str, digest: Digest) -> re::DirectoryNode {
    re::DirectoryNode {
        name: name.to_owned(),
        digest: Some(digest.to_proto()),
    }
}

/// `levels` directories, each of which names the next one `names.len()` times; the last has a file of `size` bytes.
fn ladder(names: &[&str], levels: usize, size: u64) -> (Digest, HashMap<Digest, Bytes>) {
    let mut blobs = HashMap::new();
    let content = Digest::new(SHA256, [7; 32], size);
    let mut digest = put(
        &mut blobs,
        &re::Directory {
            files: vec![file("file", content)],
            ..Default::default()
        },
    );
    for _ in 0..levels {
        let directories = names.iter().map(|name| child(name, digest)).collect();
        digest = put(
            &mut blobs,
            &re::Directory {
                directories,
                ..Default::default()
            },
        );
    }
    (digest, blobs)
}

fn remote(blobs: HashMap<Digest, Bytes>) -> Remote {
    Remote {
        blobs,
        ..Default::default()
    }
}

fn too_large(result: Result<Arc<Tree>, TreeError>) -> &'static str {
    match result {
        Err(TreeError::TooLarge { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_tree_of_2_to_the_60_paths_is_refused() {
    let (root, blobs) = ladder(&["a", "b"], 60, 1);
    let world = world(remote(blobs));
    let limits = TreeLimits::default();
    assert_eq!(too_large(world.fetch(root, limits).await), "nodes");
    // Counted without running over, too: 2^200 paths are more than any bound.
    let (root, blobs) = ladder(&["a", "b"], 200, 1);
    let world = self::world(remote(blobs));
    let limits = TreeLimits {
        nodes: u64::MAX - 1,
        bytes: u64::MAX,
        ..limits
    };
    assert_eq!(too_large(world.fetch(root, limits).await), "nodes");
}

#[tokio::test]
async fn bytes_are_counted_with_repetition() {
    let (root, blobs) = ladder(&["a", "b"], 10, 1 << 20);
    let world = world(remote(blobs));
    let limits = TreeLimits {
        bytes: 1 << 30,
        ..Default::default()
    };
    let tree = world.fetch(root, limits).await.unwrap();
    assert_eq!(tree.bytes, 1 << 30);
    assert_eq!(tree.nodes, (1 << 11) - 2 + (1 << 10));
    assert_eq!(tree.directories.len(), 11);
    let limits = TreeLimits {
        bytes: (1 << 30) - 1,
        ..limits
    };
    let what = too_large(world.fetch(root, limits).await);
    assert_eq!(what, "bytes of file content");
    let (root, blobs) = ladder(&["a", "b", "c"], 3, i64::MAX as u64);
    let world = self::world(remote(blobs));
    let what = too_large(world.fetch(root, TreeLimits::default()).await);
    assert_eq!(what, "bytes of file content");
}

#[tokio::test]
async fn distinct_messages_are_bounded() {
    let (root, blobs) = ladder(&["a", "b"], 10, 1);
    let world = world(remote(blobs));
    let limits = |messages| TreeLimits {
        messages,
        ..Default::default()
    };
    let what = too_large(world.fetch(root, limits(1000)).await);
    assert_eq!(what, "bytes of Directory messages");
    world.fetch(root, limits(100_000)).await.unwrap();
    // What is known already counts as well.
    let what = too_large(world.fetch(root, limits(1000)).await);
    assert_eq!(what, "bytes of Directory messages");
}

#[tokio::test]
async fn a_tree_that_cannot_be_had_whole_is_read_by_level() {
    let (root, blobs) = ladder(&["a"], 8, 1);
    let world = world(Remote {
        blobs,
        whole_trees: true,
        tree_fails: true,
        ..Default::default()
    });
    let tree = world.fetch(root, TreeLimits::default()).await.unwrap();
    assert_eq!(tree.directories.len(), 9);
    assert_eq!(world.remote.trees.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn depth_is_bounded() {
    let (root, blobs) = ladder(&["d"], 40, 1);
    let world = world(remote(blobs));
    let limits = |depth| TreeLimits {
        depth,
        ..Default::default()
    };
    assert!(world.fetch(root, limits(40)).await.is_ok());
    let what = too_large(world.fetch(root, limits(39)).await);
    assert_eq!(what, "levels of directories");
    let (root, blobs) = ladder(&["d"], 5000, 1);
    let world = self::world(remote(blobs));
    let what = too_large(world.fetch(root, TreeLimits::default()).await);
    assert_eq!(what, "levels of directories");
}

#[tokio::test]
async fn the_longest_way_down_counts() {
    // `short` leads to the bottom in one step, and is met first; `long` leads there in five.
    let (bottom, mut blobs) = ladder(&["d"], 5, 1);
    let (long, more) = ladder(&["d"], 10, 1);
    blobs.extend(more);
    let root = put(
        &mut blobs,
        &re::Directory {
            directories: vec![child("long", long), child("short", bottom)],
            ..Default::default()
        },
    );
    let world = world(remote(blobs));
    let limits = |depth| TreeLimits {
        depth,
        ..Default::default()
    };
    assert!(world.fetch(root, limits(11)).await.is_ok());
    let what = too_large(world.fetch(root, limits(10)).await);
    assert_eq!(what, "levels of directories");
}

#[tokio::test]
async fn wide_directories_are_bounded_by_nodes_and_message_size() {
    let mut builder = TreeBuilder::new(SHA256);
    let content = SHA256.digest(b"x");
    for n in 0..100_000 {
        builder
            .file(&format!("f{n:06}"), content, false, None)
            .unwrap();
    }
    let (root, messages) = builder.finish();
    let world = world(remote(messages.into_iter().collect()));
    let limits = TreeLimits::default();
    let tree = world.fetch(root, limits).await.unwrap();
    assert_eq!((tree.nodes, tree.bytes), (100_000, 100_000));
    assert_eq!(tree.blobs().len(), 1);
    let fewer = TreeLimits {
        nodes: 99_999,
        ..limits
    };
    assert_eq!(too_large(world.fetch(root, fewer).await), "nodes");
    let cold = TreeStore::new(0);
    let shorter = TreeLimits {
        message: root.size() - 1,
        ..limits
    };
    let refused = fetch(&world.cas, &cold, root, shorter).await;
    assert_eq!(too_large(refused), "bytes in one Directory message");
}

#[tokio::test]
async fn everything_missing_is_named_with_its_path() {
    let (kept, mut blobs) = ladder(&["deep"], 1, 1);
    let lost = |n: u8| Digest::new(SHA256, [n; 32], 10);
    let below = put(
        &mut blobs,
        &re::Directory {
            directories: vec![child("gone", lost(1)), child("kept", kept)],
            ..Default::default()
        },
    );
    let root = put(
        &mut blobs,
        &re::Directory {
            directories: vec![
                child("a", lost(2)),
                child("b", below),
                child("line\nbreak", lost(3)),
            ],
            ..Default::default()
        },
    );
    let world = world(remote(blobs));
    let missing = match world.fetch(root, TreeLimits::default()).await {
        Err(TreeError::Missing(missing)) => missing,
        other => panic!("{other:?}"),
    };
    let mut named: Vec<_> = missing.iter().map(|m| (m.digest, &*m.what)).collect();
    named.sort();
    assert_eq!(
        named,
        [
            (lost(1), "input directory b/gone"),
            (lost(2), "input directory a"),
            (lost(3), "input directory line\\nbreak"),
        ]
    );
    match world.fetch(lost(9), TreeLimits::default()).await {
        Err(TreeError::Missing(missing)) => assert_eq!(missing[0].what, "the input root"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_bad_message_is_named_with_its_path() {
    let mut blobs = HashMap::new();
    let content = SHA256.digest(b"x");
    let bad = put(
        &mut blobs,
        &re::Directory {
            files: vec![file("..", content)],
            ..Default::default()
        },
    );
    let middle = put(
        &mut blobs,
        &re::Directory {
            directories: vec![child("inner", bad)],
            ..Default::default()
        },
    );
    let root = put(
        &mut blobs,
        &re::Directory {
            directories: vec![child("outer", middle)],
            ..Default::default()
        },
    );
    let world = world(remote(blobs));
    let error = world.fetch(root, TreeLimits::default()).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("outer/inner") && text.contains("\"..\""),
        "{text}"
    );
}

#[tokio::test]
async fn a_tree_is_asked_for_whole_only_if_all_of_it_is_new() {
    let (first, mut blobs) = ladder(&["a"], 8, 1);
    let second = put(
        &mut blobs,
        &re::Directory {
            directories: vec![child("shared", first)],
            ..Default::default()
        },
    );
    let world = world(Remote {
        blobs,
        whole_trees: true,
        ..Default::default()
    });
    let calls = || {
        let remote = &world.remote;
        (
            remote.batches.load(Ordering::SeqCst),
            remote.trees.load(Ordering::SeqCst),
        )
    };
    world.fetch(first, TreeLimits::default()).await.unwrap();
    assert_eq!(calls(), (1, 1));
    world.fetch(first, TreeLimits::default()).await.unwrap();
    assert_eq!(calls(), (1, 1));
    // Only its own root is new.
    world.fetch(second, TreeLimits::default()).await.unwrap();
    assert_eq!(calls(), (2, 1));
}

#[tokio::test]
async fn paths_lead_to_what_the_tree_has() {
    let blob = |text: &str| SHA256.digest(text.as_bytes());
    let mut builder = TreeBuilder::new(SHA256);
    builder.file("src/a.c", blob("a"), false, None).unwrap();
    builder.file("src/sub/b.c", blob("b"), false, None).unwrap();
    builder.file("run", blob("a"), true, None).unwrap();
    builder.file("empty", blob(""), false, None).unwrap();
    builder.symlink("src/link", "a.c", None).unwrap();
    let (root, messages) = builder.finish();
    let world = world(remote(messages.into_iter().collect()));
    let tree = world.fetch(root, TreeLimits::default()).await.unwrap();
    assert!(matches!(tree.lookup("src/sub/b.c"), Some(Node::File(f)) if f.digest == blob("b")));
    assert!(matches!(tree.lookup("src/link"), Some(Node::Symlink(l)) if &*l.target == "a.c"));
    assert!(matches!(tree.lookup(""), Some(Node::Directory(d, _)) if d == root));
    assert!(tree.lookup("src/none").is_none());
    assert!(tree.lookup("run/below").is_none());
    // One content in two kinds, and no empty blob.
    assert_eq!(tree.blobs().len(), 3);
    // As many as fit, and one more.
    let within = |bytes| tree.paths_within(&[blob("b"), blob("a")], bytes);
    assert_eq!(within(2), [(blob("a"), "run".to_owned())].into());
    assert_eq!(within(3).len(), 2);
    let paths = tree.paths_of(&[blob("b"), blob("elsewhere")]);
    assert_eq!(paths.len(), 1);
    assert_eq!(paths[&blob("b")], "src/sub/b.c");
}
