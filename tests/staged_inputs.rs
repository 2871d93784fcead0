//! An input root shows what its tree says; whatever is done in it, the CAS keeps its content; and
//! it can always be taken down again.
//!
//! Each test runs as the user that runs the tests. If that is root, it runs once more as an unprivileged user, in a process of
//! its own: an action of the daemon's own user and one of another user are different cases.

#[path = "common/everyone.rs"]
mod everyone;
#[path = "common/faulty_cas/mod.rs"]
mod faulty_cas;
#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/skipped.rs"]
mod skipped;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use boxwright::cas::{BlobSource, Cas, CasError, LocalStore, StoreConfig};
use boxwright::config::Owner;
use boxwright::inputs::staged::Staged;
use boxwright::inputs::{InputError, InputRoots, StageRequest, StagedRoot};
use boxwright::reapi::{Digest, DigestFunction};
use boxwright::tree::{Properties, Tree, TreeBuilder, TreeLimits, TreeStore, fetch};
use everyone::{as_other, is_root};
use faulty_cas::FaultyCas;
use mounted::Mounted;

const SHA256: DigestFunction = DigestFunction::Sha256;
const OTHER: Owner = Owner {
    uid: 65534,
    gid: 65534,
};

struct World {
    dir: PathBuf,
    cas: Cas,
    staged: Staged,
    _temporary: Option<tempfile::TempDir>,
}

fn world() -> World {
    let temporary = tempfile::tempdir().unwrap();
    let mut world = world_in(temporary.path(), None);
    world._temporary = Some(temporary);
    world
}

/// What is not local comes from `remote`.
fn world_in(dir: &Path, remote: Option<Arc<dyn BlobSource>>) -> World {
    let dir = dir.to_owned();
    // Actions of other users pass through here.
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o711)).unwrap();
    let local = LocalStore::open(StoreConfig {
        root: dir.join("cas"),
        high_water: 1 << 40,
        low_water: 1 << 39,
        free_floor: 0,
    })
    .unwrap();
    let cas = Cas::new(local, remote);
    World {
        staged: Staged::new(cas.clone(), dir.join("roots")).unwrap(),
        dir,
        cas,
        _temporary: None,
    }
}

impl World {
    fn store(&self) -> &Arc<LocalStore> {
        self.cas.local()
    }

    fn blob(&self, text: &str) -> Digest {
        let digest = SHA256.digest(text.as_bytes());
        self.store().put(digest, text.as_bytes(), false).unwrap();
        digest
    }

    async fn tree(&self, builder: TreeBuilder) -> Arc<Tree> {
        let (root, messages) = builder.finish();
        for (digest, message) in messages {
            self.store().put(digest, &message, false).unwrap();
        }
        let trees = TreeStore::new(64 << 20);
        fetch(&self.cas, &trees, root, TreeLimits::default())
            .await
            .unwrap()
    }

    async fn stage(
        &self,
        tree: &Arc<Tree>,
        directories: &[&str],
        owner: Option<Owner>,
    ) -> Result<Box<dyn StagedRoot>, InputError> {
        let request = StageRequest {
            outputs: Vec::new(),
            shapes: Vec::new(),
            writable: false,
            watched: false,
            name: "action-1".to_owned(),
            tree: tree.clone(),
            directories: directories.iter().map(|d| (*d).to_owned()).collect(),
            owner,
            hold: None,
        };
        self.staged.stage(request).await
    }

    fn intact_content(&self, digest: Digest, text: &str) {
        let content = self.store().read(digest, text.len() as u64).unwrap();
        assert!(content.unwrap() == text.as_bytes());
    }

    fn intact(&self, text: &str) {
        let digest = SHA256.digest(text.as_bytes());
        for executable in [false, true] {
            let path = self.store().path(digest, executable).unwrap().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), text.as_bytes());
            let mode = std::fs::metadata(&path).unwrap().mode() & 0o7777;
            assert_eq!(mode, if executable { 0o555 } else { 0o444 });
        }
    }
}

fn as_everyone(name: &str, test: impl AsyncFn()) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    everyone::as_everyone(name, || runtime.block_on(test()));
}

/// The owners that a daemon of this user can give a root to.
fn owners() -> Vec<Option<Owner>> {
    if is_root() {
        vec![None, Some(OTHER), Some(Owner { uid: 0, gid: 0 })]
    } else {
        vec![None]
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_root_is_what_its_tree_says() {
    as_everyone("a_root_is_what_its_tree_says", async || {
        for owner in owners() {
            let world = world();
            let properties = |unix_mode, seconds: Option<i64>| {
                Some(Properties {
                    unix_mode,
                    mtime: seconds.map(|seconds| prost_types::Timestamp { seconds, nanos: 7 }),
                    named: vec![("SubtreeReadOnly".into(), "true".into())],
                })
            };
            let mut tree = TreeBuilder::new(SHA256);
            let (text, empty) = (world.blob("content"), world.blob(""));
            tree.file("src/plain", text, false, None).unwrap();
            tree.file("src/run", text, true, None).unwrap();
            tree.file("src/empty", empty, false, None).unwrap();
            let odd = properties(Some(0o6640), Some(1_000_000_000));
            tree.file("src/odd", text, false, odd).unwrap();
            tree.file("src/same", text, false, properties(Some(0o444), None))
                .unwrap();
            tree.symlink("src/link", "/no/such/place", None).unwrap();
            tree.symlink("src/dir", "../void", None).unwrap();
            tree.directory("void").unwrap();
            let dated = properties(Some(0o750), Some(1_111_111_111));
            tree.directory_properties("dated", dated.unwrap()).unwrap();
            tree.file("dated/file", text, false, None).unwrap();
            let tree = world.tree(tree).await;

            let out = ["out/a/b", "out", "src", "src/new", "src/dir/in-void", ""];
            let root = world.stage(&tree, &out, owner).await.unwrap();
            let path = |p: &str| root.path().join(p);
            // A link has the mode of the blob; what is the action's own it may write.
            let (plain, run) = match owner == Some(OTHER) {
                true => (0o444, 0o555),
                false => (0o644, 0o755),
            };
            for (name, bits) in [
                ("src/plain", plain),
                ("src/run", run),
                ("src/odd", 0o640),
                ("src/same", 0o444),
            ] {
                assert_eq!(std::fs::read(path(name)).unwrap(), b"content", "{name}");
                assert_eq!(mode(&path(name)), bits, "{name}");
            }
            assert_eq!(std::fs::read(path("src/empty")).unwrap(), b"");
            assert_eq!(mode(&path("src/empty")), plain);
            let odd = std::fs::metadata(path("src/odd")).unwrap();
            assert_eq!((odd.mtime(), odd.mtime_nsec()), (1_000_000_000, 7));
            let link = std::fs::read_link(path("src/link")).unwrap();
            assert_eq!(link, Path::new("/no/such/place"));
            for directory in ["", "src", "void", "out/a/b", "src/new", "void/in-void"] {
                assert!(path(directory).is_dir(), "{directory}");
                assert_eq!(mode(&path(directory)), 0o755, "{directory}");
            }
            let dated = std::fs::metadata(path("dated")).unwrap();
            assert_eq!(
                (dated.mtime(), mode(&path("dated"))),
                (1_111_111_111, 0o750)
            );
            let uid = owner.map_or(rustix::process::geteuid().as_raw(), |o| o.uid);
            for mine in [
                "",
                "src",
                "out/a",
                "src/new",
                "src/link",
                "src/odd",
                "src/empty",
            ] {
                let owner = std::fs::symlink_metadata(path(mine)).unwrap().uid();
                assert_eq!(owner, uid, "{mine}");
            }
            assert_eq!(mode(&world.dir.join("roots")), 0o711);
            // Links are taken only where the action's user cannot write through them.
            let links = std::fs::metadata(path("src/plain")).unwrap().nlink();
            assert_eq!(links > 1, owner == Some(OTHER));

            let gone = root.path().to_owned();
            root.remove().await.unwrap();
            assert!(!gone.exists());
            world.intact("content");
        }
    });
}

/// What a command could try on its inputs.
const ATTACK: &str = "
    chmod 666 plain; chmod 777 run; echo evil > plain; echo evil >> run
    ln plain another; chmod 666 another; echo evil > another
    touch -d 2001-01-01 plain; truncate -s 0 run
    set -e
    echo mine > new; mkdir made; mv plain made/moved; rm -f run; mv link made/; rmdir void
    ";

#[test]
fn an_action_owns_its_root_but_not_the_cas() {
    as_everyone("an_action_owns_its_root_but_not_the_cas", async || {
        for owner in owners() {
            let world = world();
            let mut tree = TreeBuilder::new(SHA256);
            let text = world.blob("content");
            tree.file("plain", text, false, None).unwrap();
            tree.file("run", text, true, None).unwrap();
            tree.symlink("link", "plain", None).unwrap();
            tree.directory("void").unwrap();
            let tree = world.tree(tree).await;
            let root = world.stage(&tree, &[], owner).await.unwrap();
            let mut shell = match owner == Some(OTHER) {
                true => as_other("sh"),
                false => Command::new("sh"),
            };
            let output = shell
                .args(["-c", ATTACK])
                .current_dir(root.path())
                .output()
                .unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{owner:?}: {stderr}");
            assert!(root.path().join("made/moved").exists());
            assert!(!root.path().join("run").exists());
            if owner == Some(OTHER) {
                assert!(stderr.contains("not permitted"), "{stderr}");
                assert_eq!(
                    std::fs::read(root.path().join("made/moved")).unwrap(),
                    b"content"
                );
            }
            world.intact("content");
            root.remove().await.unwrap();
            world.intact("content");
        }
    });
}

#[test]
fn every_missing_file_is_named() {
    as_everyone("every_missing_file_is_named", async || {
        let world = world();
        let mut tree = TreeBuilder::new(SHA256);
        let here = world.blob("here");
        let lost = |text: &str| SHA256.digest(text.as_bytes());
        tree.file("here", here, false, None).unwrap();
        tree.file("src/a.c", lost("a"), false, None).unwrap();
        tree.file("src/deep/b\n.c", lost("b"), true, None).unwrap();
        let tree = world.tree(tree).await;
        let error = match world.stage(&tree, &[], None).await {
            Err(InputError::Missing(missing)) => missing,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("staged what is not there"),
        };
        let mut named: Vec<_> = error.into_iter().map(|m| (m.digest, m.what)).collect();
        named.sort_by(|a, b| a.1.cmp(&b.1));
        assert_eq!(
            named,
            [
                (lost("a"), "input file src/a.c".to_owned()),
                (lost("b"), "input file src/deep/b\\n.c".to_owned()),
            ]
        );
        assert_eq!(
            std::fs::read_dir(world.dir.join("roots")).unwrap().count(),
            0
        );
    });
}

#[test]
fn what_is_in_the_way_of_a_directory_is_named() {
    as_everyone("what_is_in_the_way_of_a_directory_is_named", async || {
        let world = world();
        let outside = world.dir.join("outside");
        std::fs::create_dir(&outside).unwrap();
        let mut tree = TreeBuilder::new(SHA256);
        let text = world.blob("content");
        tree.file("src/file", text, false, None).unwrap();
        tree.symlink("absolute", outside.to_str().unwrap(), None)
            .unwrap();
        tree.symlink("up", "../../outside", None).unwrap();
        tree.symlink("nowhere", "not/there", None).unwrap();
        tree.symlink("self", "self", None).unwrap();
        let tree = world.tree(tree).await;
        for (path, way, why) in [
            ("src/file", "src/file", "is not a directory"),
            ("src/file/a/b", "src/file", "is not a directory"),
            ("absolute/made", "absolute", "leads out"),
            ("up/made", "up", "leads out"),
            ("up", "up", "leads out"),
            ("nowhere/made", "nowhere", "leads nowhere"),
            ("self/made", "self", "leads to itself"),
            ("../outside/made", "..", "parent"),
            ("a//b", "a//b", "is empty"),
            ("/etc/made", "/etc/made", "is empty"),
        ] {
            match world.stage(&tree, &[path], None).await {
                Err(error @ InputError::Directory { .. }) => {
                    let text = error.to_string();
                    assert!(text.contains(way) && text.contains(why), "{path}: {text}");
                }
                Err(error) => panic!("{path}: {error}"),
                Ok(_) => panic!("{path} was made"),
            }
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        // Nothing of the failed attempts is left.
        assert_eq!(
            std::fs::read_dir(world.dir.join("roots")).unwrap().count(),
            0
        );
    });
}

#[test]
fn a_blob_has_more_places_than_a_file_system_has_links() {
    let world = world();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut tree = TreeBuilder::new(SHA256);
        let text = world.blob("everywhere");
        // ext4 takes 65 000 links to a file.
        for n in 0..66_000 {
            tree.file(&format!("{}/{n}", n % 8), text, false, None)
                .unwrap();
        }
        let tree = world.tree(tree).await;
        let owner = is_root().then_some(OTHER);
        let root = world.stage(&tree, &[], owner).await.unwrap();
        let mode = if is_root() { 0o444 } else { 0o644 };
        let mut count = 0;
        let mut inodes = std::collections::HashSet::new();
        for n in 0..8 {
            for entry in std::fs::read_dir(root.path().join(n.to_string())).unwrap() {
                let meta = entry.unwrap().metadata().unwrap();
                assert_eq!((meta.len(), meta.mode() & 0o7777), (10, mode));
                inodes.insert(meta.ino());
                count += 1;
            }
        }
        assert_eq!(count, 66_000);
        if is_root() {
            assert!(inodes.len() < 2_000, "{} inodes", inodes.len());
        }
        root.remove().await.unwrap();
        world.intact("everywhere");
    });
}

#[test]
fn deep_trees_are_staged_and_removed() {
    as_everyone("deep_trees_are_staged_and_removed", async || {
        let world = world();
        let mut tree = TreeBuilder::new(SHA256);
        let text = world.blob("content");
        let mut path = String::new();
        for level in 0..400 {
            path.push_str(&format!("level-{level}-{}/", "x".repeat(20)));
            // Files in the way back up: the upper directories are closed on the way down.
            tree.file(&format!("{path}z{}/file", level), text, false, None)
                .unwrap();
        }
        let tree = world.tree(tree).await;
        let root = world.stage(&tree, &[], None).await.unwrap();
        let count = Command::new("find")
            .args([".", "-type", "f"])
            .current_dir(root.path())
            .output()
            .unwrap();
        assert_eq!(count.stdout.split(|b| *b == b'\n').count(), 401);
        let gone = root.path().to_owned();
        root.remove().await.unwrap();
        assert!(!gone.exists());
    });
}

#[test]
fn roots_are_removed_whatever_became_of_them() {
    as_everyone("roots_are_removed_whatever_became_of_them", async || {
        for owner in owners() {
            let world = world();
            let outside = world.dir.join("outside");
            std::fs::write(&outside, "kept").unwrap();
            let mut tree = TreeBuilder::new(SHA256);
            let text = world.blob("content");
            tree.file("a/b/c", text, false, None).unwrap();
            tree.file("d/e", text, false, None).unwrap();
            let tree = world.tree(tree).await;
            let root = world.stage(&tree, &[], owner).await.unwrap();
            symlink(&outside, root.path().join("link")).unwrap();
            std::fs::hard_link(&outside, root.path().join("hard")).unwrap();
            for (name, bits) in [("a/b", 0), ("a", 0), ("d", 0o500), ("", 0)] {
                let mode = PermissionsExt::from_mode(bits);
                std::fs::set_permissions(root.path().join(name), mode).unwrap();
            }
            let gone = root.path().to_owned();
            root.remove().await.unwrap();
            assert!(!gone.exists());
            assert_eq!(std::fs::read(&outside).unwrap(), b"kept");
        }
    });
}

#[test]
fn what_is_left_over_is_removed_at_the_next_start() {
    as_everyone(
        "what_is_left_over_is_removed_at_the_next_start",
        async || {
            let world = world();
            let roots = world.dir.join("roots");
            std::fs::create_dir_all(roots.join("old/dir")).unwrap();
            std::fs::write(roots.join("old/dir/file"), "").unwrap();
            std::fs::write(roots.join("stray"), "").unwrap();
            symlink(&world.dir, roots.join("link")).unwrap();
            Staged::new(world.cas.clone(), roots.clone()).unwrap();
            assert_eq!(std::fs::read_dir(&roots).unwrap().count(), 0);
            assert!(world.dir.join("cas").exists());
        },
    );
}

#[test]
fn a_dropped_root_goes_by_itself() {
    let world = world();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let roots = world.dir.join("roots");
    let gone = |deadline: std::time::Instant| {
        while std::fs::read_dir(&roots).unwrap().count() > 0 {
            assert!(deadline > std::time::Instant::now(), "still there");
            std::thread::yield_now();
        }
    };
    let stage = || {
        runtime.block_on(async {
            let mut tree = TreeBuilder::new(SHA256);
            let text = world.blob("content");
            tree.file("a/b/c", text, false, None).unwrap();
            let tree = world.tree(tree).await;
            world.stage(&tree, &[], None).await.unwrap()
        })
    };
    let soon = || std::time::Instant::now() + std::time::Duration::from_secs(60);
    let root = stage();
    runtime.block_on(async move { drop(root) });
    gone(soon());
    // And where there is no runtime.
    drop(stage());
    gone(soon());
}

#[test]
fn a_blob_whose_file_somebody_removed_is_named_as_missing() {
    as_everyone(
        "a_blob_whose_file_somebody_removed_is_named_as_missing",
        async || {
            for owner in owners() {
                let world = world();
                let mut builder = TreeBuilder::new(SHA256);
                let digest = world.blob("gone");
                builder.file("dir/file", digest, false, None).unwrap();
                let tree = world.tree(builder).await;
                let path = world.store().path(digest, false).unwrap().unwrap();
                std::fs::remove_file(path).unwrap();
                match world.stage(&tree, &[], owner).await {
                    Err(InputError::Missing(missing)) => {
                        assert_eq!(missing[0].digest, digest);
                        assert!(missing[0].what.contains("dir/file"), "{}", missing[0].what);
                    }
                    Err(error) => panic!("{error}"),
                    Ok(_) => panic!("staged without its file"),
                }
                // The store knows by now: what is put again is staged.
                world.blob("gone");
                let root = world.stage(&tree, &[], owner).await.unwrap();
                assert_eq!(
                    std::fs::read(root.path().join("dir/file")).unwrap(),
                    b"gone"
                );
            }
        },
    );
}

#[test]
fn a_blob_whose_file_somebody_removed_is_fetched_again() {
    as_everyone(
        "a_blob_whose_file_somebody_removed_is_fetched_again",
        async || {
            let server = FaultyCas::start().await;
            let temporary = tempfile::tempdir().unwrap();
            std::fs::set_permissions(temporary.path(), PermissionsExt::from_mode(0o711)).unwrap();
            let world = world_in(temporary.path(), Some(Arc::new(server.client())));
            let digests = ["one", "two"].map(|text| server.put(text.into()));
            let mut tree = TreeBuilder::new(SHA256);
            tree.file("dir/one", digests[0], false, None).unwrap();
            tree.file("dir/two", digests[1], true, None).unwrap();
            let tree = world.tree(tree).await;
            let owner = owners().pop().unwrap();
            let stage = async || {
                let root = world.stage(&tree, &[], owner).await?;
                for text in ["one", "two"] {
                    let path = root.path().join("dir").join(text);
                    assert_eq!(std::fs::read_to_string(path).unwrap(), text);
                }
                root.remove().await
            };
            stage().await.unwrap();
            let asked = server.calls("BatchReadBlobs");
            stage().await.unwrap();
            assert_eq!(server.calls("BatchReadBlobs"), asked, "it is here");

            let file = world.store().path(digests[1], true).unwrap().unwrap();
            std::fs::remove_file(&file).unwrap();
            stage().await.unwrap();
            assert_eq!(server.calls("BatchReadBlobs"), asked + 1);
            assert!(file.exists());
            let sent = server.state.seen.lock().sent.clone();
            assert_eq!((sent[&digests[0]], sent[&digests[1]]), (1, 2));

            // If nobody has it any more, it is named.
            std::fs::remove_file(&file).unwrap();
            server.state.blobs.lock().remove(&digests[1]);
            let Err(InputError::Missing(missing)) = stage().await else {
                panic!("nobody has it");
            };
            assert_eq!(missing.len(), 1);
            assert!(missing[0].what.contains("dir/two"), "{}", missing[0].what);
        },
    );
}

/// What is copied finds the disk full of blobs that nobody needs now: they go. If there are none, that is said.
#[test]
fn copying_inputs_makes_room() {
    const LARGE: usize = 1 << 20;
    let Some(mounted) = Mounted::new("size=4m,mode=711") else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let world = world_in(mounted.path(), None);
        let text = "x".repeat(LARGE);
        let large = world.blob(&text);
        let old: Vec<Digest> = (0..550).map(|n| world.blob(&format!("old {n}"))).collect();
        let mut tree = TreeBuilder::new(SHA256);
        tree.file("large", large, false, None).unwrap();
        let tree = world.tree(tree).await;
        // The daemon's own user gets copies.
        let root = world.stage(&tree, &[], None).await.unwrap();
        assert_eq!(
            std::fs::read_to_string(root.path().join("large")).unwrap(),
            text
        );
        assert!(world.store().counters().evicted > 0);
        root.remove().await.unwrap();

        // Now all that is here is needed.
        let mut pins = vec![world.store().pin(old.into_iter().chain([large]))];
        for n in 0.. {
            let text = format!("more {n}");
            let digest = SHA256.digest(text.as_bytes());
            pins.push(world.store().pin([digest]));
            if world.store().put(digest, text.as_bytes(), false).is_err() {
                break;
            }
        }
        match world.stage(&tree, &[], None).await {
            Err(InputError::Cas(full @ CasError::Full { .. })) => {
                let said = full.to_string();
                assert!(
                    said.contains("input file") && said.contains("large"),
                    "{said}"
                );
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("there is no room"),
        }
        world.intact_content(large, &text);
        assert_eq!(
            std::fs::read_dir(mounted.path().join("roots"))
                .unwrap()
                .count(),
            0
        );
    });
}
