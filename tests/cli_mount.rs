//! `boxwright mount`: a tree of a CAS as a file system, files fetched when they are read.

#[path = "common/faulty_cas/mod.rs"]
mod faulty_cas;
#[path = "common/skipped.rs"]
mod skipped;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use boxwright::reapi::Digest;
use boxwright::reapi::proto::re;
use faulty_cas::{FaultyCas, blob};
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};

fn possible() -> bool {
    if !skipped::unless_root_and_fuse() {
        return false;
    }
    let there = Command::new("fusermount3").arg("-V").output().is_ok();
    if !there {
        skipped::program("fusermount3");
    }
    there
}

/// A tree of `a` (small), `sub/big` (8 MiB) and `link`.
async fn tree(cas: &FaultyCas) -> (Digest, Digest) {
    let (_, small) = blob(1, 100);
    let small = cas.put(small);
    let big = cas.put_pattern(8 << 20);
    let file = |name: &str, digest: Digest| re::FileNode {
        name: name.into(),
        digest: Some(digest.to_proto()),
        ..Default::default()
    };
    let sub = re::Directory {
        files: vec![file("big", big)],
        ..Default::default()
    };
    let sub = cas.put(sub.encode_to_vec().into());
    let root = re::Directory {
        files: vec![file("a", small)],
        directories: vec![re::DirectoryNode {
            name: "sub".into(),
            digest: Some(sub.to_proto()),
        }],
        symlinks: vec![re::SymlinkNode {
            name: "link".into(),
            target: "sub/big".into(),
            node_properties: None,
        }],
        ..Default::default()
    };
    (cas.put(root.encode_to_vec().into()), big)
}

fn mount(cas: &FaultyCas, root: Digest, at: &Path) -> Child {
    mount_with(cas, root, at, &std::env::temp_dir(), &[]).0
}

/// Also what it said.
fn mount_with(
    cas: &FaultyCas,
    root: Digest,
    at: &Path,
    temporary: &Path,
    flags: &[&str],
) -> (Child, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_boxwright"))
        .args(["mount", "--instance", "main", "--remote", &cas.address])
        .args(flags)
        .arg(root.to_string())
        .arg(at)
        .env("TMPDIR", temporary)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    while !said.contains("is mounted at") {
        let before = said.len();
        stderr.read_line(&mut said).unwrap();
        assert!(said.len() > before, "it ended: {said}");
    }
    (child, said)
}

fn end(mut child: Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_is_there_at_once_and_its_files_when_they_are_read() {
    if !possible() {
        return;
    }
    let cas = FaultyCas::start().await;
    let (root, big) = tree(&cas).await;
    let dir = tempfile::tempdir().unwrap();
    let (cas, at) = (cas.clone(), dir.path().to_owned());
    let work = move || {
        let child = mount(&cas, root, &at);
        let size = std::fs::metadata(at.join("link")).unwrap().len();
        assert_eq!(size, 8 << 20);
        assert!(
            !cas.state.seen.lock().sent.contains_key(&big),
            "nobody has read it yet"
        );
        assert_eq!(std::fs::read(at.join("a")).unwrap().len(), 100);
        assert!(std::fs::read(at.join("link")).unwrap() == faulty_cas::pattern(0, 8 << 20));
        assert_eq!(cas.state.seen.lock().sent[&big], 1, "it is fetched once");
        let error = std::fs::write(at.join("new"), "x").unwrap_err();
        assert!(std::fs::metadata(at.join("new")).is_err(), "{error}");
        let mut names: Vec<_> = { std::fs::read_dir(&at).unwrap() }
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["a", "link", "sub"]);
        end(child);
        assert_eq!(
            std::fs::read_dir(&at).unwrap().count(),
            0,
            "it is unmounted"
        );
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_when_somebody_unmounts_it() {
    if !possible() {
        return;
    }
    let cas = FaultyCas::start().await;
    let (root, _) = tree(&cas).await;
    let dir = tempfile::tempdir().unwrap();
    let (cas, at) = (cas.clone(), dir.path().to_owned());
    let work = move || {
        let mut child = mount(&cas, root, &at);
        let status = Command::new("fusermount3")
            .arg("-u")
            .arg(&at)
            .status()
            .unwrap();
        assert!(status.success());
        assert!(child.wait().unwrap().success());
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

/// Bytes of disk below a directory.
fn disk(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.metadata().unwrap() {
            found if found.is_dir() => disk(&entry.path()),
            found => found.blocks() * 512,
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_is_kept_up_to_a_bound_and_fetched_again() {
    if !possible() {
        return;
    }
    let cas = FaultyCas::start().await;
    let contents: Vec<_> = (0..12).map(|n| blob(n, 1 << 20).1).collect();
    let file = |name: String, digest: Digest| re::FileNode {
        name,
        digest: Some(digest.to_proto()),
        ..Default::default()
    };
    let mut files: Vec<_> = { contents.iter().enumerate() }
        .map(|(n, content)| file(format!("f{n:02}"), cas.put(content.clone())))
        .collect();
    files.push(file("huge".into(), cas.put_pattern(8 << 20)));
    let root = re::Directory {
        files,
        ..Default::default()
    };
    let root = cas.put(root.encode_to_vec().into());
    let (dir, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let work = move || {
        let flags = ["--cache-size", "4M"];
        let (child, said) = mount_with(&cas, root, dir.path(), temporary.path(), &flags);
        assert!(
            said.contains("1 files are larger") && said.contains("--cache-size"),
            "{said}"
        );
        for _ in 0..2 {
            for (n, content) in contents.iter().enumerate() {
                let read = std::fs::read(dir.path().join(format!("f{n:02}"))).unwrap();
                assert!(read == *content, "f{n:02}");
                let kept = disk(temporary.path());
                assert!(kept <= 5 << 20, "{kept} bytes are kept");
            }
        }
        assert!(std::fs::read(dir.path().join("huge")).is_err());
        end(child);
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_mount_left_does_not_stop_the_next() {
    if !possible() {
        return;
    }
    let cas = FaultyCas::start().await;
    let (root, _) = tree(&cas).await;
    let (dir, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let work = move || {
        let mount = || mount_with(&cas, root, dir.path(), temporary.path(), &[]);
        let (mut first, _) = mount();
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap().len(), 100);
        first.kill().unwrap();
        first.wait().unwrap();
        // The kernel remembers what it was told of the directory itself, and asks for this.
        let dead = rustix::fs::statfs(dir.path()).map(drop);
        assert_eq!(dead, Err(rustix::io::Errno::NOTCONN));
        let (second, said) = mount();
        assert!(
            said.contains("unmounted what a killed program had left"),
            "{said}"
        );
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap().len(), 100);
        let scratches = std::fs::read_dir(temporary.path()).unwrap().count();
        assert_eq!(scratches, 1, "the first one's is gone");
        end(second);
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}
