//! Whatever a command leaves behind, collecting it reads nothing outside the root, opens no pipe or device,
//! ends, and says what is wrong; and every sound output reaches the store, however the
//! declarations overlap.

#[path = "common/everyone.rs"]
mod everyone;
#[path = "common/skipped.rs"]
mod skipped;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

use boxwright::cas::{LocalStore, StoreConfig};
use boxwright::outputs::{
    CollectRequest, Collected, OutputError, OutputKind, OutputLimits, OutputPath, collect,
};
use boxwright::reapi::proto::re;
use boxwright::reapi::proto::re::command::OutputDirectoryFormat as Format;
use boxwright::reapi::{Digest, DigestFunction};
use boxwright::tree::{Tree, decode};
use prost::Message;

const SHA256: DigestFunction = DigestFunction::Sha256;

/// A tree of nothing.
fn nothing() -> Arc<Tree> {
    let root = SHA256.digest(b"");
    Arc::new(Tree {
        root,
        directories: [(root, Arc::default())].into(),
        nodes: 0,
        bytes: 0,
    })
}

struct World {
    dir: tempfile::TempDir,
    store: Arc<LocalStore>,
    request: CollectRequest,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(StoreConfig {
        root: dir.path().join("cas"),
        high_water: 1 << 40,
        low_water: 1 << 39,
        free_floor: 0,
    })
    .unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    World {
        store,
        request: CollectRequest {
            beneath: None,
            overlay: None,
            root,
            outputs: Vec::new(),
            format: Format::TreeOnly,
            node_properties: Vec::new(),
            function: SHA256,
            limits: OutputLimits::default(),
            cancel: CancellationToken::new(),
        },
        dir,
    }
}

/// An overlay, unmounted when dropped.
struct Overlay(PathBuf);

impl Overlay {
    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let umount = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
        assert!(umount.is_ok_and(|status| status.success()));
    }
}

impl World {
    /// Lays an overlay over nothing, what is written to it goes to the root; `None`, and a word on why, if that cannot be.
    fn lay_overlay(&mut self) -> Option<Overlay> {
        for name in ["lower", "work", "shown"] {
            std::fs::create_dir(self.dir.path().join(name)).unwrap();
        }
        let at = |name| self.dir.path().join(name).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=on,xino=off,volatile",
            at("lower"),
            at("root"),
            at("work")
        );
        let shown = self.dir.path().join("shown");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "overlay", "-o", &options, "overlay"]);
        let mounted = mount.arg(&shown).output().unwrap();
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
            skipped::here(format!("cannot mount an overlay: {why}"));
            return None;
        }
        self.request.overlay = Some(shown.clone());
        self.request.beneath = Some(nothing());
        Some(Overlay(shown))
    }
    fn path(&self, path: &str) -> PathBuf {
        self.request.root.join(path)
    }
    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    fn declare(&mut self, kind: OutputKind, paths: &[&str]) {
        self.request
            .outputs
            .extend(paths.iter().map(|path| OutputPath {
                declared: (*path).to_owned(),
                within_root: (*path).to_owned(),
                kind,
            }));
    }
    fn collect(&self) -> Result<Collected, OutputError> {
        collect(&self.store, &self.request)
    }
    /// Collects these paths of any kind.
    fn collect_any(&mut self, paths: &[&str]) -> Result<Collected, OutputError> {
        self.request.outputs.clear();
        self.declare(OutputKind::Any, paths);
        self.collect()
    }
    fn refusal(&mut self, paths: &[&str]) -> String {
        match self.collect_any(paths) {
            Err(error @ OutputError::Refused { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }
    fn beyond(&mut self, paths: &[&str]) -> String {
        match self.collect_any(paths) {
            Err(error @ OutputError::Limit { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }
    fn content(&self, digest: Option<&re::Digest>) -> Vec<u8> {
        let digest = Digest::from_proto(SHA256, digest).unwrap();
        let bytes = self.store.read(digest, 1 << 30).unwrap();
        let bytes = bytes.unwrap_or_else(|| panic!("{digest} is not in the store"));
        assert_eq!(SHA256.digest(&bytes), digest);
        bytes.to_vec()
    }
    /// User, group and mode.
    fn owner(&self, path: &str) -> (u32, u32, u32) {
        let stat = self.path(path).metadata().unwrap();
        (stat.uid(), stat.gid(), stat.mode() & 0o777)
    }
    fn file(&self, result: &re::ActionResult, path: &str) -> String {
        let file = result.output_files.iter().find(|f| f.path == path);
        let digest = &file.unwrap_or_else(|| panic!("no {path}")).digest;
        String::from_utf8(self.content(digest.as_ref())).unwrap()
    }
    fn tree(&self, result: &re::ActionResult, path: &str) -> re::Tree {
        let directory = result.output_directories.iter().find(|d| d.path == path);
        let digest = &directory.unwrap_or_else(|| panic!("no {path}")).tree_digest;
        re::Tree::decode(&*self.content(digest.as_ref())).unwrap()
    }
}

/// Every file in a tree with its content, by walking it from the root.
fn files_of(world: &World, tree: &re::Tree) -> Vec<(String, String)> {
    let by_digest: std::collections::HashMap<Digest, &re::Directory> = tree
        .children
        .iter()
        .map(|d| (SHA256.digest(&d.encode_to_vec()), d))
        .collect();
    let mut files = Vec::new();
    let mut queue = vec![(String::new(), tree.root.as_ref().unwrap())];
    while let Some((path, directory)) = queue.pop() {
        let bytes = directory.encode_to_vec();
        decode(SHA256.digest(&bytes), &bytes).expect("what we make, we accept");
        for file in &directory.files {
            let content = world.content(file.digest.as_ref());
            let content = String::from_utf8(content).unwrap();
            files.push((format!("{path}{}", file.name), content));
        }
        for child in &directory.directories {
            let digest = Digest::from_proto(SHA256, child.digest.as_ref()).unwrap();
            queue.push((format!("{path}{}/", child.name), by_digest[&digest]));
        }
    }
    files.sort();
    files
}

#[test]
fn sound_outputs_are_collected() {
    let mut world = world();
    world.write("out/a.o", "object");
    world.write("out/dir/sub/x", "x");
    world.write("run", "#!");
    std::fs::set_permissions(world.path("run"), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir(world.path("out/dir/empty")).unwrap();
    symlink("../gone", world.path("out/dir/link")).unwrap();
    let collected = world
        .collect_any(&["out/dir", "out/a.o", "run", "not/there", "run/below"])
        .unwrap();
    let result = &collected.result;
    assert_eq!(world.file(result, "out/a.o"), "object");
    assert_eq!(result.output_files.len(), 2);
    let executable = |path| {
        let file = result.output_files.iter().find(|f| f.path == path);
        file.unwrap().is_executable
    };
    assert!(executable("run") && !executable("out/a.o"));
    let directory = &result.output_directories[0];
    assert!(directory.is_topologically_sorted && directory.root_directory_digest.is_none());
    let tree = world.tree(result, "out/dir");
    assert_eq!(files_of(&world, &tree), [("sub/x".into(), "x".into())]);
    let root = tree.root.unwrap();
    assert_eq!(root.symlinks[0].target, "../gone");
    assert_eq!(root.directories.len(), 2);
    assert!(world.store.missing(&collected.blobs).is_empty());
}

#[test]
fn links_are_reported_and_never_followed() {
    let mut world = world();
    let secret = world.dir.path().join("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("file"), "SECRET").unwrap();
    symlink("/etc/passwd", world.path("file")).unwrap();
    symlink(&secret, world.path("dir")).unwrap();
    symlink("/proc/self/root", world.path("magic")).unwrap();
    symlink("..", world.path("up")).unwrap();
    world.declare(OutputKind::File, &["file"]);
    world.declare(OutputKind::Directory, &["dir"]);
    world.declare(OutputKind::Any, &["magic", "up"]);
    let collected = world.collect().unwrap();
    let result = collected.result;
    assert!(result.output_files.is_empty() && result.output_directories.is_empty());
    let targets = |links: &[re::OutputSymlink]| {
        let pairs = links.iter().map(|l| (l.path.clone(), l.target.clone()));
        pairs.collect::<Vec<_>>()
    };
    let secret = secret.to_str().unwrap().to_owned();
    assert_eq!(
        targets(&result.output_symlinks),
        [
            ("dir".to_owned(), secret.clone()),
            ("file".to_owned(), "/etc/passwd".to_owned()),
            ("magic".to_owned(), "/proc/self/root".to_owned()),
            ("up".to_owned(), "..".to_owned()),
        ]
    );
    #[allow(deprecated)]
    {
        let file = ("file".to_owned(), "/etc/passwd".to_owned());
        assert_eq!(targets(&result.output_file_symlinks), [file]);
        let dir = ("dir".to_owned(), secret);
        assert_eq!(targets(&result.output_directory_symlinks), [dir]);
    }
    assert!(collected.blobs.is_empty());
    for below in ["dir/file", "magic/etc/passwd", "up/secret/file"] {
        let text = world.refusal(&[below]);
        assert!(
            text.contains(below) && text.contains("symbolic link"),
            "{text}"
        );
    }
}

#[test]
fn paths_that_leave_the_root_are_refused() {
    let mut world = world();
    std::fs::write(world.dir.path().join("secret"), "SECRET").unwrap();
    for bad in [
        "../secret",
        "a/../../secret",
        "/etc/passwd",
        "a//b",
        "./a",
        "a\0b",
    ] {
        world.refusal(&[bad]);
    }
}

#[test]
fn pipes_sockets_and_devices_are_refused_without_waiting() {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    for place in ["special", "dir/special"] {
        for (kind, name) in [
            (FileType::Fifo, "named pipe"),
            (FileType::Socket, "socket"),
            (FileType::CharacterDevice, "character device"),
        ] {
            let mut world = world();
            std::fs::create_dir(world.path("dir")).unwrap();
            let mode = Mode::RUSR | Mode::WUSR;
            let made = mknodat(CWD, world.path(place), kind, mode, makedev(1, 3));
            if made == Err(rustix::io::Errno::PERM) {
                eprintln!("only root can make a device: not tried");
                continue;
            }
            made.unwrap();
            let text = world.refusal(&[place]);
            assert!(text.contains(place) && text.contains(name), "{text}");
        }
    }
}

#[test]
fn pipes_and_sockets_in_directories_are_left_out_and_named() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let mut world = world();
    world.write("dir/file", "kept");
    for (kind, name) in [(FileType::Fifo, "pipe"), (FileType::Socket, "socket")] {
        let path = world.path(&format!("dir/{name}"));
        mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }
    world.declare(OutputKind::Any, &["dir"]);
    let mut collected = world.collect().unwrap();
    collected.left_out.sort();
    assert_eq!(
        collected.left_out,
        ["dir/pipe (a named pipe)", "dir/socket (a socket)"]
    );
    let kept = files_of(&world, &world.tree(&collected.result, "dir"));
    assert_eq!(kept, [("file".into(), "kept".into())]);
}

#[test]
fn overlapping_declarations_all_work() {
    let mut world = world();
    world.write("out/file", "one");
    world.write("out/sub/file", "two");
    let paths = ["out/file", "out", "out/sub", "out/sub/file", "out/file", ""];
    world.declare(OutputKind::File, &["out/sub/file"]);
    world.declare(OutputKind::Any, &paths);
    world.request.outputs.push(OutputPath {
        declared: "./again".into(),
        within_root: "out/file".into(),
        kind: OutputKind::File,
    });
    let collected = world.collect().unwrap();
    let result = &collected.result;
    assert_eq!(world.file(result, "out/file"), "one");
    assert_eq!(world.file(result, "./again"), "one");
    assert_eq!(world.file(result, "out/sub/file"), "two");
    let all = [
        ("file".into(), "one".into()),
        ("sub/file".into(), "two".into()),
    ];
    assert_eq!(files_of(&world, &world.tree(result, "out")), all);
    let sub = files_of(&world, &world.tree(result, "out/sub"));
    assert_eq!(sub, [("file".into(), "two".into())]);
    assert_eq!(files_of(&world, &world.tree(result, "")).len(), 2);
    let paths: Vec<_> = result.output_directories.iter().map(|d| &d.path).collect();
    assert_eq!(paths, ["", "out", "out/sub"]);
}

/// Declared outputs of one directory are found by a listing, if they are many.
#[test]
fn many_declared_outputs_of_a_directory_are_what_each_is_alone() {
    everyone::as_everyone(
        "many_declared_outputs_of_a_directory_are_what_each_is_alone",
        || {
            let make = || {
                let mut world = world();
                world.request.node_properties = vec!["unix_mode".into()];
                let mode = |path: &str, mode| {
                    let mode = PermissionsExt::from_mode(mode);
                    std::fs::set_permissions(world.path(path), mode).unwrap();
                };
                for n in 0..20 {
                    world.write(&format!("out/{n}"), &n.to_string());
                    mode(&format!("out/{n}"), 0o640);
                }
                world.write("out/dir/file", "in a directory");
                world.write("out/nothing", "");
                world.write("out/unreadable", "unreadable");
                mode("out/dir/file", 0o644);
                mode("out/nothing", 0o644);
                mode("out/unreadable", 0o200);
                mode("out/5", 0o755);
                std::fs::hard_link(world.path("out/7"), world.path("out/same")).unwrap();
                symlink("7", world.path("out/link")).unwrap();
                world
            };
            let named = [
                "dir",
                "nothing",
                "unreadable",
                "same",
                "link",
                "absent",
                ".hidden",
            ];
            let numbers = (0..20).map(|n| n.to_string());
            let paths: Vec<String> = named
                .map(str::to_owned)
                .into_iter()
                .chain(numbers)
                .map(|name| format!("out/{name}"))
                .collect();
            let mut apart = re::ActionResult::default();
            for path in &paths {
                let one = make().collect_any(&[path]).unwrap().result;
                apart.output_files.extend(one.output_files);
                apart.output_directories.extend(one.output_directories);
                apart.output_symlinks.extend(one.output_symlinks);
            }
            let mut world = make();
            let all: Vec<&str> = paths.iter().map(|path| &**path).collect();
            let mut together = world.collect_any(&all).unwrap().result;
            assert_eq!(together.output_files.len(), 23);
            assert_eq!(world.file(&together, "out/unreadable"), "unreadable");
            assert_eq!(world.file(&together, "out/same"), "7");
            let unreadable = { together.output_files.iter() }
                .find(|file| file.path == "out/unreadable")
                .and_then(|file| file.node_properties.as_ref());
            assert_eq!(unreadable.unwrap().unix_mode, Some(0o200));
            for result in [&mut apart, &mut together] {
                result.output_files.sort_by(|a, b| a.path.cmp(&b.path));
            }
            assert_eq!(together.output_files, apart.output_files);
            assert_eq!(together.output_directories, apart.output_directories);
            assert_eq!(together.output_symlinks, apart.output_symlinks);
        },
    );
}

#[test]
fn hard_links_are_stored_once_and_spoil_nothing() {
    let mut world = world();
    let (input, output) = ("an input", "an output");
    let digest = SHA256.digest(input.as_bytes());
    world.store.put(digest, input.as_bytes(), false).unwrap();
    let stored = world.store.path(digest, false).unwrap().unwrap();
    std::fs::hard_link(&stored, world.path("input")).unwrap();
    world.write("one", output);
    std::fs::hard_link(world.path("one"), world.path("two")).unwrap();
    std::fs::create_dir(world.path("dir")).unwrap();
    std::fs::hard_link(world.path("one"), world.path("dir/three")).unwrap();
    // A link to a file that the action cannot own, outside the root.
    let outside = world.dir.path().join("outside");
    std::fs::write(&outside, "outside").unwrap();
    std::fs::hard_link(&outside, world.path("linked")).unwrap();
    let inode = std::fs::metadata(&outside).unwrap();

    let collected = world
        .collect_any(&["input", "one", "two", "dir", "linked"])
        .unwrap();
    let result = &collected.result;
    assert_eq!(world.file(result, "input"), input);
    assert_eq!(world.file(result, "one"), output);
    assert_eq!(world.file(result, "two"), output);
    let dir = files_of(&world, &world.tree(result, "dir"));
    assert_eq!(dir, [("three".into(), output.into())]);
    assert_eq!(world.file(result, "linked"), "outside");
    // What is outside is still its owner's, and no file of the store.
    let after = std::fs::metadata(&outside).unwrap();
    assert_eq!(
        (after.ino(), after.uid(), after.mode()),
        (inode.ino(), inode.uid(), inode.mode())
    );
    let digest = SHA256.digest(b"outside");
    let stored = world.store.path(digest, false).unwrap().unwrap();
    assert_ne!(std::fs::metadata(stored).unwrap().ino(), inode.ino());
}

/// The first name is moved away before the last is looked at.
#[test]
fn a_file_with_two_names_counts_once_however_many_outputs_lie_between() {
    let mut world = world();
    let large = "x".repeat(10_000);
    world.write("out/a", &large);
    let mut paths = vec!["out/a".to_owned(), "out/z".to_owned()];
    for n in 0..200 {
        world.write(&format!("out/m{n}"), &n.to_string());
        paths.push(format!("out/m{n}"));
    }
    std::fs::hard_link(world.path("out/a"), world.path("out/z")).unwrap();
    world.request.limits.bytes = 15_000;
    let paths: Vec<&str> = paths.iter().map(|path| &**path).collect();
    let collected = world.collect_any(&paths).unwrap();
    assert_eq!(world.file(&collected.result, "out/z"), large);
    assert_eq!(collected.result.output_files.len(), 202);
}

#[test]
fn files_are_moved_not_copied() {
    let mut world = world();
    world.write("big", &"0123456789abcdef".repeat(1 << 16));
    let inode = std::fs::metadata(world.path("big")).unwrap().ino();
    let collected = world.collect_any(&["big"]).unwrap();
    let stored = world
        .store
        .path(collected.blobs[0], false)
        .unwrap()
        .unwrap();
    let stored = std::fs::metadata(stored).unwrap();
    assert_eq!((stored.ino(), stored.mode() & 0o7777), (inode, 0o444));
    assert!(!world.path("big").exists());
}

/// Somebody of the command's user outlives it and puts other files in the outputs' places, over and over: where they are, or through an
/// overlay.
#[test]
fn no_file_put_in_an_outputs_place_meanwhile_becomes_its_blob() {
    use rustix::fs::{Mode, OFlags, RenameFlags};
    use std::sync::atomic::{AtomicBool, Ordering};
    if !skipped::unless_root() {
        return;
    }
    const FILES: usize = 300;
    let user = rustix::fs::Uid::from_raw(12_345);
    for round in 0..10 {
        let mut world = world();
        let overlay = match round % 2 {
            0 => None,
            _ => match world.lay_overlay() {
                None => return,
                overlay => overlay,
            },
        };
        let shown = { overlay.as_ref() }.map_or(world.request.root.clone(), |o| o.0.clone());
        let names: Vec<String> = (0..FILES).map(|n| format!("f-{n:03}")).collect();
        for name in &names {
            for path in ["out", "evil"] {
                std::fs::create_dir_all(shown.join(path)).unwrap();
                let text = format!("{path} {round} {name}");
                std::fs::write(shown.join(path).join(name), text).unwrap();
            }
        }
        for path in ["out", "evil"] {
            std::os::unix::fs::chown(shown.join(path), Some(12_345), None).unwrap();
        }
        let open = |path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            rustix::fs::open(shown.join(path), flags, Mode::empty()).unwrap()
        };
        let (out, evil) = (open("out"), open("evil"));
        let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
        let paths: Vec<String> = names.iter().map(|name| format!("out/{name}")).collect();
        let paths: Vec<&str> = paths.iter().map(|path| &**path).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                rustix::thread::set_thread_res_uid(user, user, user).unwrap();
                while !done.load(Ordering::Relaxed) {
                    // Not the first ones: each of them is looked at twice, and its action fails.
                    for name in &names[10..] {
                        let exchange = RenameFlags::EXCHANGE;
                        let _ = rustix::fs::renameat_with(&out, name, &evil, name, exchange);
                    }
                    begun.store(true, Ordering::Relaxed);
                }
            });
            while !begun.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            let collected = world.collect_any(&paths);
            done.store(true, Ordering::Relaxed);
            let collected = match collected {
                // The overlay may have been in use when it was to be closed: then a file may be another when it is opened.
                Err(OutputError::Refused { .. }) if overlay.is_some() => return,
                collected => collected.unwrap(),
            };
            assert_eq!(collected.result.output_files.len(), FILES);
            for file in &collected.result.output_files {
                // Also checks that it is what its digest says.
                let content = String::from_utf8(world.content(file.digest.as_ref())).unwrap();
                assert!(content.ends_with(file.path.trim_start_matches("out/")));
            }
        });
        let stored = (world.dir.path().join("cas/sha256").read_dir().unwrap())
            .flat_map(|shard| shard.unwrap().path().read_dir().unwrap())
            .map(|file| file.unwrap().path());
        for file in stored {
            let digest = SHA256.digest(&std::fs::read(&file).unwrap());
            let name = file.file_name().unwrap().to_str().unwrap();
            assert!(name.starts_with(&digest.hash_hex()), "{name}: {digest}");
        }
    }
}

/// The one change that an overlay lets by comes while the file is hashed, when it is certain to be after it was looked at.
#[test]
fn no_file_put_in_an_outputs_place_through_an_overlay_while_it_is_hashed_becomes_its_blob() {
    use rustix::fs::{CWD, Mode, OFlags};
    use std::sync::atomic::{AtomicBool, Ordering};
    if !skipped::unless_root() {
        return;
    }
    const LARGE: u64 = 256 << 20;
    let user = rustix::fs::Uid::from_raw(12_345);
    let mut world = world();
    let Some(overlay) = world.lay_overlay() else {
        return;
    };
    for directory in ["out", "evil"] {
        let at = overlay.path(directory);
        std::fs::create_dir(&at).unwrap();
        // After so many that their directory would be closed.
        for n in 0..20 {
            std::fs::write(at.join(n.to_string()), directory).unwrap();
        }
        let large = std::fs::File::create(at.join("large")).unwrap();
        large.set_len(LARGE).unwrap();
        large.write_all_at(directory.as_bytes(), 0).unwrap();
        for at in [&at.join("large"), &at] {
            std::os::unix::fs::chown(at, Some(12_345), None).unwrap();
        }
    }
    let open = |path| rustix::fs::openat(CWD, path, OFlags::PATH, Mode::empty()).unwrap();
    let (out, evil) = (open(overlay.path("out")), open(overlay.path("evil")));
    let below = open(world.path("out/large"));
    let done = AtomicBool::new(false);
    let (collected, moved) = std::thread::scope(|scope| {
        let survivor = scope.spawn(|| {
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            // It is sealed before it is hashed.
            while rustix::fs::fstat(&below).unwrap().st_uid != 0 {
                if done.load(Ordering::Relaxed) {
                    return None;
                }
                std::thread::yield_now();
            }
            Some(rustix::fs::renameat(&evil, "large", &out, "large"))
        });
        let collected = world.collect_any(&["out"]);
        done.store(true, Ordering::Relaxed);
        (collected, survivor.join().unwrap())
    });
    assert!(moved.is_some(), "it was never sealed");
    if let Ok(collected) = &collected {
        assert_eq!(collected.result.output_directories.len(), 1);
    }
    let stored = (world.dir.path().join("cas/sha256").read_dir().unwrap())
        .flat_map(|shard| shard.unwrap().path().read_dir().unwrap())
        .map(|file| file.unwrap().path());
    for file in stored {
        let digest = SHA256.digest(&std::fs::read(&file).unwrap());
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(&digest.hash_hex()), "{name}: {digest}");
    }
}

/// One of the command's user outlives it and can open one of its files at any time, through an overlay that knows nothing of what
/// became of the file below it.
#[test]
fn nobody_writes_to_a_blob_through_an_overlay() {
    use rustix::fs::{CWD, Mode, OFlags};
    use std::os::fd::AsRawFd;
    if !skipped::unless_root() {
        return;
    }
    let user = rustix::fs::Uid::from_raw(12_345);
    // If he writes to another file meanwhile, the overlay cannot be closed.
    for busy in [false, true] {
        let mut world = world();
        let Some(overlay) = world.lay_overlay() else {
            return;
        };
        for name in ["out", "other"] {
            std::fs::write(overlay.path(name), "good").unwrap();
            std::os::unix::fs::chown(overlay.path(name), Some(12_345), None).unwrap();
        }
        let options = OFlags::PATH | OFlags::NOFOLLOW;
        let known = rustix::fs::openat(CWD, overlay.path("out"), options, Mode::empty()).unwrap();
        let other = busy.then(|| {
            let mut options = std::fs::File::options();
            options.write(true).open(overlay.path("other")).unwrap()
        });
        let inode = world.path("out").metadata().unwrap().ino();
        let collected = world.collect_any(&["out"]).unwrap();
        drop(other);
        let blob = world
            .store
            .path(collected.blobs[0], false)
            .unwrap()
            .unwrap();
        assert_eq!(blob.metadata().unwrap().ino() == inode, !busy);
        let written = std::thread::scope(|scope| {
            let write = || {
                rustix::thread::set_thread_res_uid(user, user, user).unwrap();
                std::fs::write(
                    format!("/proc/thread-self/fd/{}", known.as_raw_fd()),
                    "evil",
                )
            };
            scope.spawn(write).join().unwrap()
        });
        let error = written.err().map(|error| error.raw_os_error().unwrap());
        let refused = rustix::io::Errno::ROFS.raw_os_error();
        assert_eq!(error, (!busy).then_some(refused));
        assert_eq!(world.file(&collected.result, "out"), "good");
    }
}

/// A world with a directory of few files and one of many, which are a command's user's.
fn few_and_many() -> World {
    let world = world();
    for (directory, files) in [("few", 3), ("many", 100)] {
        for n in 0..files {
            world.write(&format!("{directory}/{n}"), &format!("{directory} {n}"));
        }
        let path = world.path(directory);
        std::os::unix::fs::chown(&path, Some(12_345), Some(12_345)).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    }
    world
}

/// What many files are taken out of is closed to the command's user first; one file is looked at twice instead.
#[test]
fn a_directory_of_many_outputs_is_closed_to_the_commands_user() {
    if !skipped::unless_root() {
        return;
    }
    let mut world = few_and_many();
    let collected = world.collect_any(&["few", "many"]).unwrap();
    assert_eq!(collected.result.output_directories.len(), 2);
    assert_eq!(world.owner("few"), (12_345, 12_345, 0o777));
    assert_eq!(world.owner("many"), (0, 0, 0o700));
}

/// Through an overlay that is still open somewhere, one more change gets by what is closed below it. So each file is looked at twice.
#[test]
fn a_directory_below_an_overlay_counts_as_open_to_the_commands_user() {
    if !skipped::unless_root() {
        return;
    }
    let mut world = few_and_many();
    world.request.beneath = Some(nothing());
    let collected = world.collect_any(&["few", "many"]).unwrap();
    assert_eq!(collected.result.output_directories.len(), 2);
    assert_eq!(world.owner("many"), (12_345, 12_345, 0o777));
}

#[test]
fn sparse_files_are_refused_unread() {
    let mut world = world();
    world.request.limits.bytes = 1 << 30;
    world.write("dir/small", "x");
    let huge = std::fs::File::create(world.path("dir/huge")).unwrap();
    huge.set_len(1 << 42).unwrap();
    for declared in ["dir", "dir/huge"] {
        let text = world.beyond(&[declared]);
        assert!(
            text.contains("dir/huge") && text.contains("1073741824 bytes"),
            "{text}"
        );
    }
    huge.set_len(1 << 20).unwrap();
    assert!(world.collect_any(&["dir"]).is_ok());
}

#[test]
fn what_a_command_locked_is_collected() {
    everyone::as_everyone("what_a_command_locked_is_collected", || {
        let mut world = world();
        world.write("out/unreadable", "one");
        world.write("out/locked/file", "two");
        world.write("sealed/file", "three");
        for (path, mode) in [
            ("out/unreadable", 0),
            ("out/locked", 0),
            ("out", 0o500),
            ("sealed", 0o500),
        ] {
            std::fs::set_permissions(world.path(path), PermissionsExt::from_mode(mode)).unwrap();
        }
        let collected = world
            .collect_any(&["out", "out/unreadable", "sealed/file"])
            .unwrap();
        let result = &collected.result;
        assert_eq!(world.file(result, "out/unreadable"), "one");
        assert_eq!(world.file(result, "sealed/file"), "three");
        let files = files_of(&world, &world.tree(result, "out"));
        assert_eq!(files[0], ("locked/file".to_owned(), "two".to_owned()));
        let unlock = PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(world.path("sealed"), unlock).unwrap();
    });
}

#[test]
fn depth_and_number_are_bounded() {
    let mut world = world();
    world.write("many/a", "");
    world.write("many/b", "");
    world.write("many/c", "");
    world.request.limits.nodes = 3;
    let text = world.beyond(&["many"]);
    assert!(text.contains("more than 3 files"), "{text}");
    world.request.limits.nodes = 4;
    assert!(world.collect_any(&["many"]).is_ok());

    let mut world = self::world();
    world.request.limits.depth = 5;
    world.write("1/2/3/4/5/file", "");
    assert!(world.collect_any(&["1"]).is_ok());
    world.write("1/2/3/4/5/6/file", "");
    let text = world.beyond(&["1"]);
    assert!(text.contains("deeper than 5 directories"), "{text}");
}

#[test]
fn trees_too_deep_for_a_path_are_walked() {
    let mut world = world();
    let name = "n".repeat(250);
    let mut at = rustix::fs::open(
        &world.request.root,
        rustix::fs::OFlags::PATH,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    for _ in 0..200 {
        rustix::fs::mkdirat(&at, &*name, rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::PATH;
        at = rustix::fs::openat(&at, &*name, flags, rustix::fs::Mode::empty()).unwrap();
    }
    let collected = world.collect_any(&[&name]).unwrap();
    let tree = world.tree(&collected.result, &name);
    assert_eq!(tree.children.len(), 199);
}

#[test]
fn names_that_are_no_text_are_refused_escaped() {
    let mut world = world();
    std::fs::create_dir(world.path("dir")).unwrap();
    let name = OsStr::from_bytes(b"caf\xe9\n");
    std::fs::write(world.path("dir").join(name), "").unwrap();
    let text = world.refusal(&["dir"]);
    assert!(text.contains(r"caf\xe9\n"), "{text}");

    let mut world = self::world();
    symlink(name, world.path("link")).unwrap();
    let text = world.refusal(&["link"]);
    assert!(text.contains(r"caf\xe9\n"), "{text}");
}

#[test]
fn the_wrong_kind_is_refused_by_its_declared_name() {
    let mut world = world();
    world.write("file", "");
    std::fs::create_dir(world.path("dir")).unwrap();
    for (kind, path) in [(OutputKind::File, "dir"), (OutputKind::Directory, "file")] {
        world.request.outputs.clear();
        world.declare(kind, &[path]);
        let error = world.collect().unwrap_err();
        assert!(matches!(error, OutputError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(path), "{error}");
    }
    // Whatever order they are declared in.
    world.request.outputs.clear();
    world.declare(OutputKind::Any, &["dir"]);
    world.declare(OutputKind::File, &["dir"]);
    assert!(world.collect().is_err());
}

#[test]
fn directories_are_described_in_every_format() {
    for format in [
        Format::TreeOnly,
        Format::DirectoryOnly,
        Format::TreeAndDirectory,
    ] {
        let mut world = world();
        world.request.format = format;
        // `same` is in three places, and `b/c` equals `a`: each once in the tree, after all that name it.
        world.write("out/a/same/x", "x");
        world.write("out/b/c/same/x", "x");
        world.write("out/same/x", "x");
        world.write("out/y", "y");
        let collected = world.collect_any(&["out"]).unwrap();
        let output = &collected.result.output_directories[0];
        let wants_tree = format != Format::DirectoryOnly;
        assert_eq!(output.tree_digest.is_some(), wants_tree);
        assert_eq!(output.is_topologically_sorted, wants_tree);
        assert_eq!(
            output.root_directory_digest.is_some(),
            format != Format::TreeOnly
        );
        if wants_tree {
            let tree = world.tree(&collected.result, "out");
            assert_eq!(files_of(&world, &tree).len(), 4);
            assert_eq!(tree.children.len(), 3);
            let mut promised = std::collections::HashSet::new();
            for (n, directory) in tree.root.iter().chain(&tree.children).enumerate() {
                let own = SHA256.digest(&directory.encode_to_vec()).to_proto().hash;
                assert!(n == 0 || promised.contains(&own), "before its parent");
                for child in &directory.directories {
                    promised.insert(child.digest.clone().unwrap().hash);
                }
            }
        }
        if format != Format::TreeOnly {
            let mut queue = vec![output.root_directory_digest.clone().unwrap()];
            let mut count = 0;
            while let Some(digest) = queue.pop() {
                count += 1;
                let bytes = world.content(Some(&digest));
                let directory = re::Directory::decode(&*bytes).unwrap();
                queue.extend(directory.directories.into_iter().filter_map(|d| d.digest));
            }
            assert_eq!(count, 7);
        }
    }
}

#[test]
fn node_properties_are_reported_when_asked_for() {
    let mut world = world();
    world.write("dir/file", "x");
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(&world.path("dir/file"), 0o640);
    mode(&world.path("dir"), 0o750);
    let plain = world.collect_any(&["dir"]).unwrap();
    let tree = world.tree(&plain.result, "dir").root.unwrap();
    assert!(tree.node_properties.is_none() && tree.files[0].node_properties.is_none());

    world.write("dir/file", "x");
    mode(&world.path("dir/file"), 0o640);
    let file = std::fs::File::open(world.path("dir/file")).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5_000);
    file.set_modified(time).unwrap();
    world.request.node_properties = vec!["mtime".into(), "unix_mode".into(), "other".into()];
    for link in ["dir/link", "link"] {
        use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
        symlink("file", world.path(link)).unwrap();
        let time = Timespec {
            tv_sec: 1_200_000_000,
            tv_nsec: 7_000,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, world.path(link), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let collected = world.collect_any(&["dir", "link"]).unwrap();
    let tree = world.tree(&collected.result, "dir").root.unwrap();
    let file = tree.files[0].node_properties.as_ref().unwrap();
    assert_eq!(file.unix_mode, Some(0o640));
    let time = file.mtime.as_ref().unwrap();
    assert_eq!((time.seconds, time.nanos), (1_000_000_000, 5_000));
    assert_eq!(tree.node_properties.unwrap().unix_mode, Some(0o750));
    let alone = &collected.result.output_symlinks[0].node_properties;
    for link in [alone, &tree.symlinks[0].node_properties] {
        let link = link.as_ref().unwrap();
        let time = link.mtime.as_ref().unwrap();
        assert_eq!((time.seconds, time.nanos), (1_200_000_000, 7_000));
        assert_eq!(
            link.unix_mode, None,
            "it would be given to what it points to"
        );
    }
}

#[test]
fn a_thousand_files_and_many_large_ones_arrive_whole() {
    let mut world = world();
    for n in 0..1000 {
        world.write(&format!("out/{}/f{n}", n % 7), &format!("content {n}"));
    }
    // More than one thread's worth of bytes in one batch.
    for n in 0..5 {
        let large = std::fs::File::create(world.path("out").join(format!("large{n}"))).unwrap();
        large.set_len((16 << 20) + n).unwrap();
    }
    let collected = world.collect_any(&["out"]).unwrap();
    assert!(world.store.missing(&collected.blobs).is_empty());
    let tree = world.tree(&collected.result, "out");
    let files: Vec<_> = tree.children.iter().flat_map(|d| &d.files).collect();
    assert_eq!(files.len(), 1000);
    for file in files.iter().step_by(97) {
        let text = format!("content {}", &file.name[1..]);
        assert_eq!(world.content(file.digest.as_ref()), text.as_bytes());
    }
    let large = &tree.root.as_ref().unwrap().files;
    assert_eq!(large.len(), 5);
    for (n, file) in large.iter().enumerate() {
        let zeros = vec![0; (16 << 20) + n];
        let digest = Digest::from_proto(SHA256, file.digest.as_ref()).unwrap();
        assert_eq!(digest, SHA256.digest(&zeros));
    }
}

#[test]
fn collecting_stops_when_nobody_wants_it() {
    let mut world = world();
    let huge = std::fs::File::create(world.path("huge")).unwrap();
    huge.set_len(1 << 37).unwrap();
    let cancel = world.request.cancel.clone();
    let collecting = std::thread::spawn(move || world.collect_any(&["huge"]).unwrap_err());
    // Hashing this many zeros takes minutes: if this returns, it was cut short.
    cancel.cancel();
    assert!(matches!(collecting.join().unwrap(), OutputError::Cancelled));
}

/// Hashing this sparse file would take most of an hour.
#[test]
fn a_file_that_the_store_cannot_take_is_refused_before_it_is_read() {
    let mut world = world();
    world.store = LocalStore::open(StoreConfig {
        root: world.dir.path().join("small"),
        high_water: 1 << 30,
        low_water: 1 << 29,
        free_floor: 0,
    })
    .unwrap();
    world.request.limits.bytes = u64::MAX;
    let vast = std::fs::File::create(world.path("vast")).unwrap();
    vast.set_len(1 << 42).unwrap();
    let error = world.beyond(&["vast"]);
    assert!(
        error.contains("vast") && error.contains("cas-quota-high"),
        "{error}"
    );
    assert_eq!(world.store.usage().blobs, 0);
}
