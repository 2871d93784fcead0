//! A store with the ways of showing trees over it, in a directory that goes in the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxwright::cas::{Cas, LocalStore, StoreConfig};
use boxwright::config::Owner;
use boxwright::inputs::fuse::FuseRoots;
use boxwright::inputs::staged::Staged;
use boxwright::inputs::{InputRoots, StageRequest, StagedRoot};
use boxwright::reapi::Digest;
use boxwright::tree::{Tree, TreeLimits, TreeStore, fetch};

use crate::peer::Peer;

/// The user of the actions.
pub(crate) const OWNER: Owner = Owner {
    uid: 0x7000_0000,
    gid: 0x7000_0000,
};

pub(crate) struct Ground {
    pub(crate) store: Arc<LocalStore>,
    pub(crate) cas: Cas,
    /// With every blob that is put into the store, if it is here.
    pub(crate) peer: Option<Peer>,
    trees: TreeStore,
    dir: tempfile::TempDir,
}

impl Ground {
    pub(crate) fn new(at: Option<&Path>) -> Self {
        let dir = match at {
            Some(at) => tempfile::tempdir_in(at),
            None => tempfile::tempdir(),
        };
        let dir = dir.expect("a directory");
        own_file_system(dir.path());
        let store = LocalStore::open(StoreConfig {
            root: dir.path().join("cas"),
            high_water: 64 << 30,
            low_water: 32 << 30,
            free_floor: 0,
        })
        .expect("a store");
        Ground {
            cas: Cas::new(store.clone(), None),
            store,
            peer: Peer::find(dir.path()),
            trees: TreeStore::new(64 << 20),
            dir,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn staged(&self) -> Arc<dyn InputRoots> {
        Arc::new(Staged::new(self.cas.clone(), self.path("staged")).expect("staged roots"))
    }

    pub(crate) fn cached(&self) -> Arc<dyn InputRoots> {
        let dir = self.path("cached");
        let roots = Staged::with_cache(self.cas.clone(), dir, 500_000);
        Arc::new(roots.expect("staged roots with a cache"))
    }

    pub(crate) fn fuse(&self, name: &str) -> Arc<dyn InputRoots> {
        Arc::new(FuseRoots::new(self.cas.clone(), &self.path(name)).expect("roots on FUSE"))
    }

    /// Waits until all is on the disk.
    pub(crate) fn settle(&self) {
        let dir = std::fs::File::open(self.dir.path()).expect("a directory");
        rustix::fs::syncfs(dir).expect("a disk");
    }

    pub(crate) async fn tree(&self, root: Digest) -> Arc<Tree> {
        let tree = fetch(&self.cas, &self.trees, root, TreeLimits::default()).await;
        tree.expect("a tree")
    }
}

/// Mounts a new file system over a directory, for this process and as long as it lives: an old one may charge one way for what
/// another has deleted.
fn own_file_system(dir: &Path) {
    let image = dir.join("image");
    let file = std::fs::File::create(&image).expect("an image");
    file.set_len(24 << 30).expect("an image");
    let run = |program: &str, args: &[&str]| {
        let status = std::process::Command::new(program).args(args).status();
        assert!(status.expect(program).success(), "{program}");
    };
    let image = image.to_str().expect("a path in UTF-8");
    let dir = dir.to_str().expect("a path in UTF-8");
    run(
        "mkfs.ext4",
        &[
            "-q",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
            "-N",
            "1000000",
            image,
        ],
    );
    run("mount", &["-o", "loop", image, dir]);
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.dir.path())
            .status();
    }
}

/// Shows a tree.
pub(crate) async fn stage(roots: &Arc<dyn InputRoots>, tree: &Arc<Tree>) -> Box<dyn StagedRoot> {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let request = StageRequest {
        name: format!("bench-{number}"),
        tree: tree.clone(),
        directories: vec!["out".to_owned()],
        outputs: vec!["out/result".to_owned()],
        owner: Some(OWNER),
        shapes: Vec::new(),
        writable: false,
        watched: false,
        hold: None,
    };
    roots.stage(request).await.expect("a root")
}

/// The time of an action that does `work` with its root: setup, work and teardown.
pub(crate) async fn action(
    roots: &Arc<dyn InputRoots>,
    tree: &Arc<Tree>,
    work: impl FnOnce(PathBuf) + Send + 'static,
) -> Duration {
    let begun = Instant::now();
    let root = stage(roots, tree).await;
    let path = root.path().to_owned();
    let worked = tokio::task::spawn_blocking(move || work(path));
    worked.await.expect("the work of an action");
    root.remove().await.expect("a removal");
    begun.elapsed()
}
