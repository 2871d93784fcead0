//! An action's view of its inputs behaves as a file system of real files does: the same operations and the same programs, once
//! over files and once in an action, say the same.

#[path = "../common/action.rs"]
mod common;
#[path = "../common/skipped.rs"]
mod skipped;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use boxwright::action::Ending;
use boxwright::reapi::Digest;
use boxwright::reapi::proto::re;
use common::{Bench, sh};

/// A user that nobody is, for the comparison.
const SOMEBODY: u32 = 0x6fff_fff0;

/// A directory on disk, as a tree in the store.
fn put(bench: &Bench, path: &Path) -> Digest {
    let mut message = re::Directory::default();
    let mut entries: Vec<_> = { std::fs::read_dir(path).unwrap() }
        .map(|entry| entry.unwrap())
        .collect();
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let name = entry.file_name().into_string().unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            let digest = Some(put(bench, &entry.path()).to_proto());
            message.directories.push(re::DirectoryNode { name, digest });
        } else if kind.is_symlink() {
            let target = std::fs::read_link(entry.path()).unwrap();
            message.symlinks.push(re::SymlinkNode {
                name,
                target: target.to_str().unwrap().into(),
                node_properties: None,
            });
        } else {
            let data = std::fs::read(entry.path()).unwrap();
            let mode = entry.metadata().unwrap().permissions().mode();
            message.files.push(re::FileNode {
                name,
                digest: Some(bench.put(&data).to_proto()),
                is_executable: mode & 0o100 != 0,
                node_properties: None,
            });
        }
    }
    bench.put_message(&message)
}

/// Files as an action sees them: somebody's, and read-only.
fn give(path: &Path) {
    std::os::unix::fs::lchown(path, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    let metadata = std::fs::symlink_metadata(path).unwrap();
    if metadata.is_dir() {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path());
        }
    } else if metadata.is_file() {
        let mode = if metadata.permissions().mode() & 0o100 != 0 {
            0o755
        } else {
            0o644
        };
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
}

fn write(root: &Path, path: &str, data: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, data).unwrap();
}

fn inputs(root: &Path) {
    for name in ["file", "moved", "over", "gone", "late", "text"] {
        write(
            root,
            &format!("in/{name}"),
            &format!("old content of {name}\n"),
        );
    }
    write(root, "in/program", "#!/bin/sh\necho ran\n");
    std::fs::set_permissions(root.join("in/program"), PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("file", root.join("in/link")).unwrap();
    write(root, "in/sub/one", "one\n");
    write(root, "in/sub/two", "two\n");
    write(root, "in/tree/deep/er", "deep\n");
    write(root, "in/tree/other", "other\n");
    for n in 0..60 {
        write(root, &format!("in/many/old-{n:02}"), "");
    }
    write(root, "in/project/hello.h", "#define TEXT \"hello\"\n");
    write(
        root,
        "in/project/hello.c",
        "#include <stdio.h>\n#include \"hello.h\"\nint main(void) { puts(TEXT); return 0; }\n",
    );
    write(
        root,
        "in/project/Makefile",
        "hello: hello.c hello.h\n\t$(CC) -o hello hello.c\n",
    );
    write(root, "in/package/__init__.py", "");
    write(
        root,
        "in/package/module.py",
        "def answer():\n    return 42\n",
    );
}

/// What a command says over real files, and what it says in an action.
async fn compare(script: &str, name: &str) {
    let Some(bench) = Bench::fuse(None, |_| {}) else {
        return;
    };
    let files = bench.dir.path().join("files");
    inputs(&files);
    write(&files, name, script);
    let root = put(&bench, &files);
    give(&files);
    let interpreter = if name.ends_with(".py") {
        "python3"
    } else {
        "sh"
    };
    let path = "/usr/local/bin:/usr/bin:/bin";
    let real = Command::new("/usr/bin/env")
        .args([interpreter, name])
        .current_dir(&files)
        .env_clear()
        .env("PATH", path)
        .uid(SOMEBODY)
        .gid(SOMEBODY)
        .output()
        .unwrap();
    let (said, errors) = (
        String::from_utf8_lossy(&real.stdout),
        String::from_utf8_lossy(&real.stderr),
    );
    assert!(real.status.success(), "over files: {said}{errors}");

    let mut command = sh(&format!("exec {interpreter} {name}"));
    command.environment_variables[0].value = path.into();
    // In the tree of its inputs, which no output is declared in.
    let action = re::Action {
        platform: Some(re::Platform {
            properties: vec![re::platform::Property {
                name: "boxwright-writable-inputs".into(),
                value: "true".into(),
            }],
        }),
        ..common::action(bench.put_message(&command), root)
    };
    // The second time everything in it is known.
    for _ in 0..2 {
        let finished = bench.run_action(action.clone(), Default::default()).await;
        let result = finished.result.unwrap();
        let stdout = match &result.stdout_digest {
            Some(digest) => bench.blob(Some(digest)),
            None => result.stdout_raw.to_vec(),
        };
        let stdout = String::from_utf8(stdout).unwrap();
        let errors = String::from_utf8_lossy(&result.stderr_raw);
        assert_eq!(finished.ending, Ending::Exited(0), "{stdout}{errors}");
        for (real, shown) in said.lines().zip(stdout.lines()) {
            assert_eq!(shown, real);
        }
        assert_eq!(said.lines().count(), stdout.lines().count(), "{stdout}");
        assert!(said.lines().count() > 20, "{said}");
    }
}

#[tokio::test]
async fn operations_do_what_they_do_with_files() {
    compare(include_str!("operations.py"), "operations.py").await;
}

#[tokio::test]
async fn programs_do_what_they_do_with_files() {
    compare(include_str!("tools.sh"), "tools.sh").await;
}
