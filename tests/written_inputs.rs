//! What becomes of an input that an action writes to: the same by each way of showing inputs where it was declared as an output, and
//! elsewhere what the documentation says.

#[path = "common/everyone.rs"]
mod everyone;
#[path = "common/skipped.rs"]
mod skipped;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use boxwright::cas::{Cas, LocalStore, StoreConfig};
use boxwright::config::Owner;
use boxwright::inputs::fuse::{FuseRoots, private_mounts};
use boxwright::inputs::staged::Staged;
use boxwright::inputs::{InputRoots, StageRequest};
use boxwright::reapi::{Digest, DigestFunction};
use boxwright::tree::{TreeBuilder, TreeLimits, TreeStore, fetch};
use everyone::{as_everyone, as_other, is_root};

const F: DigestFunction = DigestFunction::Sha256;
const OTHER: Owner = Owner {
    uid: 65534,
    gid: 65534,
};

/// A way of showing inputs, to a command of this user.
struct Way {
    name: &'static str,
    roots: Box<dyn InputRoots>,
    owner: Option<Owner>,
}

struct World {
    dir: tempfile::TempDir,
    cas: Cas,
}

impl World {
    fn new() -> World {
        if is_root() {
            // Of this thread and those that it starts; first, for there are no links from one namespace to another.
            private_mounts().unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let local = LocalStore::open(StoreConfig {
            root: dir.path().join("cas"),
            high_water: 1 << 30,
            low_water: 1 << 29,
            free_floor: 0,
        });
        let cas = Cas::new(local.unwrap(), None);
        World { dir, cas }
    }

    /// All that this user can have.
    fn ways(&self) -> Vec<Way> {
        let at = |name: &str| self.dir.path().join(name);
        let way = |name, roots, owner| Way { name, roots, owner };
        let copies = Box::new(Staged::new(self.cas.clone(), at("copies")).unwrap());
        let mut ways = vec![way("copies", copies, None)];
        if is_root() {
            let links = Box::new(Staged::new(self.cas.clone(), at("links")).unwrap());
            // The user of the daemon is not bound by permissions.
            ways = vec![way("links", links, Some(OTHER))];
            let kept = Staged::with_cache(self.cas.clone(), at("kept"), 1 << 20).unwrap();
            ways.push(way("kept", Box::new(kept), Some(OTHER)));
            if skipped::unless_root_and_fuse() {
                let fuse = FuseRoots::new(self.cas.clone(), &at("fuse")).unwrap();
                ways.push(way("fuse", Box::new(fuse), Some(OTHER)));
            }
        }
        ways
    }

    fn blob(&self, data: &[u8]) -> Digest {
        let digest = F.digest(data);
        self.cas.local().put(digest, data, false).unwrap();
        digest
    }

    async fn request(&self, owner: Option<Owner>) -> StageRequest {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut tree = TreeBuilder::new(F);
        let (old, none) = (self.blob(b"old\n"), F.digest(b""));
        for path in INPUTS {
            tree.file(path, old, path.ends_with("run"), None).unwrap();
        }
        tree.file("out/empty", none, false, None).unwrap();
        tree.symlink("by-link", "real/deep", None).unwrap();
        tree.symlink("out/to", "../real/target", None).unwrap();
        for n in 0..120 {
            tree.file(&format!("lib/f{n}"), old, false, None).unwrap();
        }
        let (root, messages) = tree.finish();
        for (digest, message) in messages {
            self.cas.local().put(digest, &message, false).unwrap();
        }
        let trees = TreeStore::new(64 << 20);
        let tree = fetch(&self.cas, &trees, root, TreeLimits::default());
        let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        StageRequest {
            name: format!("action-{number}"),
            tree: tree.await.unwrap(),
            directories: owned(&["out", "whole", "by-link"]),
            outputs: owned(&[
                "out/file",
                "out/run",
                "out/empty",
                "out/to",
                "whole",
                "by-link/file",
            ]),
            owner,
            shapes: Vec::new(),
            writable: false,
            watched: false,
            hold: None,
        }
    }
}

const INPUTS: [&str; 9] = [
    "out/file",
    "out/run",
    "out/beside",
    "whole/file",
    "whole/deep/run",
    "real/deep/file",
    "real/target",
    "lib/deep/file",
    "lib/deep/run",
];

/// What a command does with a file, with what is in it then if that worked.
const DEEDS: [(&str, &str, &str); 5] = [
    ("write", "echo new > $F", "new\n"),
    ("append", "echo new >> $F", "old\nnew\n"),
    ("replace", "echo new > $F.new && mv -f $F.new $F", "new\n"),
    ("chmod", "chmod 600 $F", "old\n"),
    ("remove", "rm -f $F", "gone"),
];

/// What became of `path` by each of the deeds: those that did not work.
async fn refused(world: &World, way: &Way, path: &str) -> Vec<&'static str> {
    let mut refused = Vec::new();
    for (deed, script, then) in DEEDS {
        let request = world.request(way.owner).await;
        let root = way.roots.stage(request).await.unwrap();
        let mut shell = match way.owner {
            Some(_) => as_other("sh"),
            None => Command::new("sh"),
        };
        let status = shell
            .args(["-c", script])
            .env("F", path)
            .current_dir(root.path())
            .stderr(Stdio::null())
            .status();
        let worked = status.unwrap().success();
        let now = std::fs::read_to_string(root.path().join(path)).unwrap_or("gone".to_owned());
        let then = match (worked, then) {
            (true, "old\nnew\n") if path.ends_with("empty") => "new\n",
            (true, "old\n") | (false, _) if path.ends_with("empty") => "",
            (true, then) => then,
            (false, _) => "old\n",
        };
        assert_eq!(now, then, "{} {path} {deed}", way.name);
        if !worked {
            refused.push(deed);
        }
        root.remove().await.unwrap();
    }
    // Nothing of that came to where it was from.
    let old = F.digest(b"old\n");
    for executable in [false, true] {
        let blob = world.cas.local().path(old, executable).unwrap().unwrap();
        assert_eq!(std::fs::read(&blob).unwrap(), b"old\n");
        let mode = std::fs::metadata(&blob).unwrap().mode() & 0o7777;
        assert_eq!(mode, if executable { 0o555 } else { 0o444 });
    }
    refused
}

fn in_runtime(test: impl AsyncFn()) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(test());
}

#[test]
fn what_a_command_can_do_to_inputs() {
    const ALL: &[&str] = &["write", "append", "replace", "chmod", "remove"];
    /// In place, that is.
    const SHARED: &[&str] = &["write", "append", "chmod"];
    as_everyone("what_a_command_can_do_to_inputs", || {
        in_runtime(async || {
            let world = World::new();
            for way in world.ways() {
                for (path, by_fuse, by_links, by_kept) in [
                    ("out/file", &[][..], &[][..], &[][..]),
                    ("out/run", &[], &[], &[]),
                    ("out/empty", &[], &[], &[]),
                    ("whole/file", &[], &[], &[]),
                    ("whole/deep/run", &[], &[], &[]),
                    ("by-link/file", &[], &[], &[]),
                    ("out/beside", &[], SHARED, SHARED),
                    ("lib/deep/file", ALL, SHARED, ALL),
                    ("lib/deep/run", ALL, SHARED, ALL),
                ] {
                    let expected = match way.name {
                        "fuse" => by_fuse,
                        "links" => by_links,
                        "kept" => by_kept,
                        // Files of its own in a directory of its own.
                        _ => &[],
                    };
                    let refused = refused(&world, &way, path).await;
                    assert_eq!(refused, expected, "{} {path}", way.name);
                }
            }
        });
    });
}

/// Mode and owner of each input, as its command sees them.
fn looks(root: &Path) -> BTreeMap<&'static str, (u32, u32)> {
    let look = |path| {
        let meta = std::fs::symlink_metadata(root.join(path)).unwrap();
        (path, (meta.mode() & 0o7777, meta.uid()))
    };
    { INPUTS.into_iter() }
        .chain(["out/empty"])
        .map(look)
        .collect()
}

#[test]
fn declared_outputs_that_are_inputs_look_alike_whatever_shows_them() {
    as_everyone(
        "declared_outputs_that_are_inputs_look_alike_whatever_shows_them",
        || {
            in_runtime(async || {
                let world = World::new();
                for way in world.ways() {
                    let root = way
                        .roots
                        .stage(world.request(way.owner).await)
                        .await
                        .unwrap();
                    let own = rustix::process::geteuid().as_raw();
                    let uid = way.owner.map_or(own, |owner| owner.uid);
                    let seen = looks(root.path());
                    for (path, mode) in [
                        ("out/file", 0o644),
                        ("out/run", 0o755),
                        ("out/empty", 0o644),
                        ("whole/file", 0o644),
                        ("whole/deep/run", 0o755),
                        ("real/deep/file", 0o644),
                        // Where a declared output leads that is a link.
                        ("real/target", 0o644),
                    ] {
                        assert_eq!(seen[path], (mode, uid), "{} {path}", way.name);
                    }
                    // What is nobody's output is a link where it can be one.
                    let linked = matches!(way.name, "links" | "kept");
                    let beside = if linked { (0o444, own) } else { (0o644, uid) };
                    assert_eq!(seen["out/beside"], beside, "{}", way.name);
                    root.remove().await.unwrap();
                }
            });
        },
    );
}
