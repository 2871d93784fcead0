//! Staged roots whose recurring directories are kept and mounted: an action sees what it would with a root of its own, cannot change
//! what others see, and what is in use stays whatever else comes and goes.

#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/skipped.rs"]
mod skipped;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use boxwright::cas::{Cas, CasError, LocalStore, StoreConfig};
use boxwright::config::Owner;
use boxwright::inputs::fuse::private_mounts;
use boxwright::inputs::staged::Staged;
use boxwright::inputs::{InputRoots, StageRequest, StagedRoot};
use boxwright::reapi::proto::re;
use boxwright::reapi::{Digest, DigestFunction};
use boxwright::tree::{TreeLimits, TreeStore, fetch};
use mounted::Mounted;
use prost::Message;

const OTHER: Owner = Owner {
    uid: 65534,
    gid: 65534,
};
const PLENTY: u64 = 1 << 20;

/// A command that runs as the action's user.
fn as_other(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    command.arg(program);
    command
}

struct World {
    dir: tempfile::TempDir,
    cas: Cas,
    _disk: Option<Mounted>,
}

impl World {
    /// `None`, and said so, where nothing can be mounted.
    fn new() -> Option<World> {
        World::of(1 << 40, None)
    }

    /// With a store of so many bytes, on a disk of so many.
    fn of(high_water: u64, disk: Option<u64>) -> Option<World> {
        if !skipped::unless_root() {
            return None;
        }
        // Of this thread and those that it starts.
        private_mounts().unwrap();
        let (disk, dir) = match disk {
            Some(bytes) => {
                let disk = Mounted::new(&format!("size={bytes},mode=711"))?;
                let dir = tempfile::tempdir_in(disk.path()).unwrap();
                (Some(disk), dir)
            }
            None => (None, tempfile::tempdir().unwrap()),
        };
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let local = LocalStore::open(StoreConfig {
            root: dir.path().join("cas"),
            high_water,
            low_water: high_water / 10 * 8,
            free_floor: 0,
        });
        let cas = Cas::new(local.unwrap(), None);
        Some(World {
            dir,
            cas,
            _disk: disk,
        })
    }

    fn cached(&self, idle_nodes: u64) -> Staged {
        Staged::with_cache(self.cas.clone(), self.dir.path().join("cached"), idle_nodes).unwrap()
    }

    fn plain(&self) -> Staged {
        Staged::new(self.cas.clone(), self.dir.path().join("plain")).unwrap()
    }

    fn put(&self, data: &[u8]) -> Digest {
        let digest = DigestFunction::Sha256.digest(data);
        self.cas.local().put(digest, data, false).unwrap();
        digest
    }

    fn directory(&self, directory: &re::Directory) -> Digest {
        self.put(&directory.encode_to_vec())
    }

    fn files(&self, label: &str, count: usize) -> Vec<re::FileNode> {
        let file = |n: usize| re::FileNode {
            name: format!("f{n:03}"),
            digest: Some(self.put(format!("{label} {n}").as_bytes()).to_proto()),
            is_executable: n.is_multiple_of(7),
            ..Default::default()
        };
        (0..count).map(file).collect()
    }

    /// A tree with a library of 130 nodes, and a file of its own.
    fn tree(&self, library: &str, own: &str) -> Digest {
        let deep = self.directory(&re::Directory {
            files: self.files(&format!("{library} deep"), 9),
            node_properties: Some(re::NodeProperties {
                mtime: Some(prost_types::Timestamp {
                    seconds: 1_000_000,
                    nanos: 5,
                }),
                unix_mode: Some(0o750),
                ..Default::default()
            }),
            ..Default::default()
        });
        let library = self.directory(&re::Directory {
            files: self.files(library, 120),
            directories: vec![node("deep", deep)],
            symlinks: vec![re::SymlinkNode {
                name: "link".into(),
                target: "deep/f001".into(),
                ..Default::default()
            }],
            ..Default::default()
        });
        self.directory(&re::Directory {
            files: vec![re::FileNode {
                name: "own".into(),
                digest: Some(self.put(own.as_bytes()).to_proto()),
                ..Default::default()
            }],
            directories: vec![node("lib", library)],
            ..Default::default()
        })
    }

    async fn stage(
        &self,
        staged: &Staged,
        root: Digest,
        directories: &[&str],
        outputs: &[&str],
    ) -> Box<dyn StagedRoot> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let trees = TreeStore::new(64 << 20);
        let tree = fetch(&self.cas, &trees, root, TreeLimits::default());
        let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        let request = StageRequest {
            shapes: Vec::new(),
            watched: false,
            name: format!("action-{number}"),
            tree: tree.await.unwrap(),
            directories: owned(directories),
            outputs: owned(outputs),
            owner: Some(OTHER),
            writable: false,
            hold: None,
        };
        staged.stage(request).await.unwrap()
    }

    /// A tree with a directory of 20 files of 256 KiB that no other round has, dated or not.
    fn heavy(&self, round: u32, dated: bool) -> Digest {
        let file = |n: u32| {
            let data = [round, n].map(u32::to_le_bytes).concat().repeat(32 << 10);
            re::FileNode {
                name: format!("f{n:02}"),
                digest: Some(self.put(&data).to_proto()),
                node_properties: dated.then(|| re::NodeProperties {
                    mtime: Some(prost_types::Timestamp {
                        seconds: 1_000_000,
                        nanos: 0,
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }
        };
        let lib = self.directory(&re::Directory {
            files: (0..20).map(file).collect(),
            ..Default::default()
        });
        self.directory(&re::Directory {
            directories: vec![node("lib", lib)],
            ..Default::default()
        })
    }

    /// Bytes of disk that all files here take, however many names they have.
    fn on_disk(&self) -> u64 {
        let mut inodes = HashMap::new();
        let mut stack = vec![self.dir.path().to_owned()];
        while let Some(path) = stack.pop() {
            for entry in std::fs::read_dir(path).unwrap() {
                let entry = entry.unwrap();
                // What is removed in the background goes while this looks.
                let Ok(meta) = entry.metadata() else { continue };
                match meta.is_dir() {
                    true => stack.push(entry.path()),
                    false => drop(inodes.insert(meta.ino(), meta.blocks() * 512)),
                }
            }
        }
        inodes.values().sum()
    }

    /// The directories that are kept.
    fn kept(&self) -> usize {
        let kept = std::fs::read_dir(self.dir.path().join("cached/.kept")).unwrap();
        kept.count()
    }
}

fn node(name: &str, digest: Digest) -> re::DirectoryNode {
    re::DirectoryNode {
        name: name.into(),
        digest: Some(digest.to_proto()),
    }
}

fn mounted(root: &dyn StagedRoot) -> bool {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let lib = format!("{} ", root.path().join("lib").display());
    table.contains(&lib)
}

/// Everything below a directory: path, mode, owner, and what is in it. Times of directories too, where the tree says them.
fn look(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    let mut stack = vec![root.to_owned()];
    while let Some(path) = stack.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let content = if meta.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            stack.extend(entries.map(|entry| entry.unwrap().path()));
            match name == Path::new("lib/deep") {
                true => format!("{} {}", meta.mtime(), meta.mtime_nsec()),
                false => String::new(),
            }
        } else if meta.is_symlink() {
            std::fs::read_link(&path).unwrap().display().to_string()
        } else {
            std::fs::read_to_string(&path).unwrap()
        };
        let looks = format!("{:o} {} {} {content}", meta.mode(), meta.uid(), meta.gid());
        seen.insert(name, looks);
    }
    seen
}

#[tokio::test]
async fn a_root_with_mounted_directories_is_what_its_tree_says() {
    let Some(world) = World::new() else { return };
    let (cached, plain) = (world.cached(PLENTY), world.plain());
    for own in ["one", "two", "three"] {
        let root = world.tree("library", own);
        let shown = world
            .stage(&cached, root, &["out/deep"], &["out/deep/result"])
            .await;
        let real = world
            .stage(&plain, root, &["out/deep"], &["out/deep/result"])
            .await;
        assert!(mounted(&*shown));
        let (seen, expected) = (look(shown.path()), look(real.path()));
        assert!(expected.len() > 130);
        assert_eq!(seen, expected);
        // Outputs are renamed into the store, which no mount may be in the way of.
        let made = shown.path().join("out/deep/result");
        std::fs::write(&made, own).unwrap();
        std::fs::rename(made, world.dir.path().join("taken")).unwrap();
        let path = shown.path().to_owned();
        shown.remove().await.unwrap();
        real.remove().await.unwrap();
        assert!(!path.exists());
    }
    assert_eq!(world.kept(), 1);
}

#[tokio::test]
async fn what_is_to_be_written_is_never_shared() {
    let Some(world) = World::new() else { return };
    let cached = world.cached(PLENTY);
    for (directories, outputs, at) in [
        (&["lib"][..], &["lib/made"][..], "lib/other"),
        (&[], &["lib"], "lib/deep/made"),
        (&["lib/deep"], &["lib/deep/made"], "lib/deep/made"),
    ] {
        for _ in 0..2 {
            let root = world.tree("library", "own");
            let shown = world.stage(&cached, root, directories, outputs).await;
            assert!(!mounted(&*shown), "{outputs:?}");
            let made = shown.path().join(at).display().to_string();
            let status = as_other("touch").arg(&made).status().unwrap();
            assert!(status.success(), "{outputs:?}");
            shown.remove().await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_may_be_written_is_the_same_whether_it_is_kept_or_not() {
    let Some(world) = World::new() else { return };
    let cached = world.cached(PLENTY);
    // Far too small to be kept.
    let small = world.directory(&re::Directory {
        files: world.files("small", 2),
        ..Default::default()
    });
    let root = world.directory(&re::Directory {
        directories: vec![
            node("empty", world.directory(&re::Directory::default())),
            node("lib", small),
            node("out", small),
        ],
        ..Default::default()
    });
    for _ in 0..3 {
        let shown = world.stage(&cached, root, &["out"], &["out/made"]).await;
        let writable = |name: &str| {
            let made = shown.path().join(name).join("new");
            let status = as_other("touch")
                .arg(made)
                .stderr(std::process::Stdio::null())
                .status();
            status.unwrap().success()
        };
        let writable = ["", "empty", "lib", "out"].map(writable);
        assert_eq!(writable, [true, true, false, true]);
        // Outputs are renamed into the store, which no mount may be in the way of.
        let taken = world.dir.path().join("taken");
        std::fs::rename(shown.path().join("out/new"), taken).unwrap();
        shown.remove().await.unwrap();
    }
}

#[tokio::test]
async fn what_may_not_be_written_goes_with_its_root_wherever_a_command_moved_it() {
    let Some(world) = World::new() else { return };
    let cached = world.cached(PLENTY);
    let small = world.directory(&re::Directory {
        files: world.files("small", 2),
        ..Default::default()
    });
    let deep = world.directory(&re::Directory {
        directories: vec![node("lib", small)],
        ..Default::default()
    });
    let root = world.directory(&re::Directory {
        directories: vec![node("deep", deep)],
        ..Default::default()
    });
    let elsewhere = world.dir.path().join("elsewhere");
    std::fs::create_dir_all(elsewhere.join("lib")).unwrap();
    let mount = |args: &[&str]| {
        let status = Command::new(args[0])
            .args(&args[1..])
            .arg(elsewhere.join("lib"))
            .status();
        assert!(status.unwrap().success());
    };
    mount(&["mount", "-t", "tmpfs", "tmpfs"]);
    let table = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let before = table().lines().count();
    let shown = world.stage(&cached, root, &["deep"], &["deep/made"]).await;
    assert_eq!(table().lines().count(), before + 1);
    let script = format!("mv deep moved && ln -s {} deep", elsewhere.display());
    let status = as_other("sh")
        .args(["-c", &script])
        .current_dir(shown.path())
        .status();
    assert!(status.unwrap().success());
    shown.remove().await.unwrap();
    assert_eq!(table().lines().count(), before, "{}", table());
    assert!(table().contains("elsewhere/lib"));
    mount(&["umount"]);
}

/// Descriptors are few: so many mounts go with one over the root.
#[tokio::test]
async fn many_directories_that_may_not_be_written_take_one_descriptor_and_go_with_their_root() {
    let Some(world) = World::new() else { return };
    let cached = world.cached(PLENTY);
    let small = |n: usize| {
        let directory = re::Directory {
            files: world.files(&n.to_string(), 2),
            ..Default::default()
        };
        node(&format!("d{n:02}"), world.directory(&directory))
    };
    let root = world.directory(&re::Directory {
        directories: (0..30).map(small).collect(),
        ..Default::default()
    });
    let table = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    // Others of this process come and go.
    let open = |root: &dyn StagedRoot| {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        { open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()) }
            .filter(|target| target.starts_with(root.path()))
            .count()
    };
    let before = table().lines().count();
    let shown = world.stage(&cached, root, &["out"], &["out/made"]).await;
    assert_eq!(table().lines().count(), before + 31);
    assert_eq!(open(&*shown), 1);
    for at in ["d00/new", "d29/new"] {
        let made = shown.path().join(at);
        let status = as_other("touch")
            .arg(made)
            .stderr(std::process::Stdio::null())
            .status();
        assert!(!status.unwrap().success(), "{at}");
    }
    let path = shown.path().to_owned();
    shown.remove().await.unwrap();
    assert_eq!(table().lines().count(), before, "{}", table());
    assert!(!path.exists());
}

#[tokio::test]
async fn nobody_can_change_what_others_see() {
    let Some(world) = World::new() else { return };
    let cached = world.cached(PLENTY);
    let first = world
        .stage(&cached, world.tree("library", "one"), &[], &[])
        .await;
    let second = world
        .stage(&cached, world.tree("library", "two"), &[], &[])
        .await;
    let before = look(&second.path().join("lib"));
    let lib = first.path().join("lib");
    for attempt in [
        "echo x > f001",
        "echo x >> f007",
        "chmod 777 f001",
        "rm f001",
        "mv f001 f999",
        "touch new",
        "ln -s f001 other",
        "mkdir more",
        "rm -r deep",
        "chmod 700 .",
        "touch -d @0 deep",
    ] {
        let script = format!("cd {} && {attempt}", lib.display());
        let status = as_other("sh")
            .args(["-c", &script])
            .stderr(std::process::Stdio::null())
            .status();
        assert!(!status.unwrap().success(), "{attempt}");
    }
    // Where they lie, no action's user comes.
    let kept = world.dir.path().join("cached/.kept");
    let status = as_other("ls")
        .arg(kept)
        .stderr(std::process::Stdio::null())
        .status();
    assert!(!status.unwrap().success());
    first.remove().await.unwrap();
    assert_eq!(look(&second.path().join("lib")), before);
    second.remove().await.unwrap();
}

#[tokio::test]
async fn what_is_used_stays_and_what_is_not_goes() {
    let Some(world) = World::new() else { return };
    let cached = world.cached(150);
    let used = world
        .stage(&cached, world.tree("used", "own"), &[], &[])
        .await;
    let come_and_go = async |library: String| {
        let root = world.tree(&library, "own");
        let shown = world.stage(&cached, root, &[], &[]).await;
        shown.remove().await.unwrap();
    };
    let before = look(used.path());
    for n in 0..4 {
        come_and_go(format!("library {n}")).await;
    }
    // The one in use, and of the others one that fits the bound.
    settles(|| world.kept() == 2).await;
    assert_eq!(look(used.path()), before);
    used.remove().await.unwrap();
    come_and_go("the last".to_owned()).await;
    settles(|| world.kept() == 1).await;
}

/// A few actions with a tree, one after another; the last finds a part of it kept.
async fn some_actions(world: &World, cached: &Staged, root: Digest) {
    for n in 0..3 {
        let shown = world.stage(cached, root, &["out"], &["out/made"]).await;
        assert!(n < 2 || mounted(&*shown));
        shown.remove().await.unwrap();
    }
}

async fn rounds_within_a_quota(dated: bool) {
    const HIGH: u64 = 24 << 20;
    let Some(world) = World::of(HIGH, None) else {
        return;
    };
    let cached = world.cached(PLENTY);
    for round in 0..10 {
        let root = world.heavy(round, dated);
        some_actions(&world, &cached, root).await;
        settles(|| world.on_disk() <= HIGH).await;
    }
    // A quarter of the store: one of these directories.
    settles(|| world.kept() == 1).await;
    // Nothing else is there than what the store says, but for its own small files.
    let counted = world.cas.local().usage().disk;
    let copies = if dated { 20 * (256 << 10) } else { 0 };
    assert!(world.on_disk() <= counted + copies + (64 << 10));
}

#[tokio::test]
async fn the_quota_holds_on_the_disk_with_all_that_is_kept() {
    rounds_within_a_quota(false).await;
}

/// A file with a time of its own is no link.
#[tokio::test]
async fn the_quota_holds_on_the_disk_with_copies_that_are_kept() {
    rounds_within_a_quota(true).await;
}

async fn rounds_on_a_small_disk(dated: bool) {
    let Some(world) = World::of(1 << 40, Some(32 << 20)) else {
        return;
    };
    let cached = world.cached(PLENTY);
    for round in 0..10 {
        // Putting its files fails when there is no room.
        let root = world.heavy(round, dated);
        some_actions(&world, &cached, root).await;
    }
    assert!(world.kept() > 0);
    world.put(&vec![1; 30 << 20]);
    settles(|| world.kept() == 0).await;
}

/// A quota larger than the disk would let more be kept than there is room for.
#[tokio::test]
async fn a_full_disk_takes_uploads_as_long_as_something_is_kept_that_nobody_uses() {
    rounds_on_a_small_disk(false).await;
}

#[tokio::test]
async fn a_full_disk_takes_uploads_as_long_as_copies_are_kept_that_nobody_uses() {
    rounds_on_a_small_disk(true).await;
}

/// What an action uses does not go for an upload; what it has left does.
#[tokio::test]
async fn what_is_used_does_not_make_room() {
    let Some(world) = World::of(24 << 20, None) else {
        return;
    };
    let cached = world.cached(PLENTY);
    let root = world.heavy(0, false);
    some_actions(&world, &cached, root).await;
    let used = world.stage(&cached, root, &["out"], &["out/made"]).await;
    let before = look(used.path());
    let large = vec![1; 20 << 20];
    let digest = DigestFunction::Sha256.digest(&large);
    let refused = world.cas.local().put(digest, &large, false);
    assert!(matches!(refused, Err(CasError::Full { .. })), "{refused:?}");
    assert_eq!(look(used.path()), before);
    used.remove().await.unwrap();
    world.put(&large);
}

#[tokio::test]
async fn what_an_earlier_run_left_is_taken_away() {
    let Some(world) = World::new() else { return };
    let earlier = world.cached(PLENTY);
    let left = world
        .stage(&earlier, world.tree("library", "own"), &[], &[])
        .await;
    let path = left.path().to_owned();
    // As if it had been killed, in a mount namespace that lives on.
    std::mem::forget((left, earlier));
    assert!(path.join("lib/f001").exists());
    let next = world.cached(PLENTY);
    assert!(!path.exists());
    let shown = world
        .stage(&next, world.tree("library", "own"), &[], &[])
        .await;
    assert!(mounted(&*shown));
    shown.remove().await.unwrap();
}

/// Waits for what happens in the background.
async fn settles(there: impl Fn() -> bool) {
    for _ in 0..500 {
        if there() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("it never came to be");
}
