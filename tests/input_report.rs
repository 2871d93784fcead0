//! The report of what a command did with its inputs: exact, the same every time, and only where somebody asked.

#[path = "common/action.rs"]
mod common;
#[path = "common/skipped.rs"]
mod skipped;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use boxwright::action::{Ending, Finished};
use boxwright::reapi::Digest;
use boxwright::reapi::any::unpack;
use boxwright::reapi::proto::re;
use common::{Bench, action, sh};
use tokio_util::sync::CancellationToken;

/// A static shell, for an input root that is a root.
const BUSYBOX: &str = "/bin/busybox";

const SCRIPT: &str = "cat src/main.c src/empty link > /dev/null; ./tool; ls listed; [ -f listed/one ]; cat < src/same-2 > /dev/null; \
     [ -f src/stamp ]; [ -e src/main.h ]; [ -e include/main.h ]; [ -e src/\u{fc}.h ]; echo made > src/made.o; \
     mkdir -p out/below; [ -e out/none ]; echo more >> src/grows; exit 3";

const REPORT: &str = "inputs: 15 files and links, 4094 bytes
read: 6, 56 bytes
looked at, never read: 2, 6 bytes
never used: 7, 4032 bytes
looked up in vain: 3

read:
0\tlink
0\tsrc/empty
5\tsrc/grows
9\tsrc/main.c
12\tsrc/same-2
30\ttool

looked at, never read:
1\tlisted/one
5\tsrc/stamp

never used:
1\tlisted/two
2\tother
12\tsrc/same-1
15\tsrc/unread
4002\ttools/ (3)

looked up in vain:
include
src/main.h
src/\u{fc}.h
";

fn file(bench: &Bench, name: &str, content: &[u8]) -> re::FileNode {
    re::FileNode {
        name: name.into(),
        digest: Some(bench.put(content).to_proto()),
        is_executable: content.starts_with(b"#!"),
        ..Default::default()
    }
}

fn below(bench: &Bench, name: &str, directory: &re::Directory) -> re::DirectoryNode {
    re::DirectoryNode {
        name: name.into(),
        digest: Some(bench.put_message(directory).to_proto()),
    }
}

fn tree(bench: &Bench) -> Digest {
    let files = |files: &[(&str, &[u8])]| re::Directory {
        files: { files.iter() }
            .map(|(name, content)| file(bench, name, content))
            .collect(),
        ..Default::default()
    };
    let tools = files(&[("cc", &[b'c'; 3000]), ("ld", &[b'l'; 1000])]);
    let both = re::Directory {
        directories: vec![below(bench, "a", &tools), below(bench, "b", &files(&[]))],
        ..files(&[("version", b"1\n")])
    };
    bench.put_message(&re::Directory {
        directories: vec![
            below(bench, "listed", &files(&[("one", b"1"), ("two", b"2")])),
            below(
                bench,
                "src",
                &files(&[
                    ("empty", b""),
                    ("grows", b"grow\n"),
                    ("main.c", b"int main;"),
                    ("same-1", b"just as this"),
                    ("same-2", b"just as this"),
                    ("stamp", b"stamp"),
                    ("unread", b"nobody wants it"),
                ]),
            ),
            below(bench, "tools", &both),
        ],
        files: vec![
            file(bench, "other", b"x\n"),
            file(bench, "tool", b"#!/bin/sh\n# does nothing much\n"),
        ],
        symlinks: vec![re::SymlinkNode {
            name: "link".into(),
            target: "src/main.c".into(),
            ..Default::default()
        }],
        ..Default::default()
    })
}

async fn run(bench: &Bench, property: Option<&str>) -> Finished {
    let command = re::Command {
        output_paths: vec!["src/made.o".into()],
        ..sh(SCRIPT)
    };
    let properties = property.map(|value| re::platform::Property {
        name: "boxwright-input-report".into(),
        value: value.into(),
    });
    let action = re::Action {
        platform: Some(re::Platform {
            properties: properties.into_iter().collect(),
        }),
        ..action(bench.put_message(&command), tree(bench))
    };
    bench.run_action(action, CancellationToken::new()).await
}

/// What is in the report, behind the line that names the action.
fn report(bench: &Bench, finished: &Finished) -> String {
    assert_eq!(finished.ending, Ending::Exited(3), "{finished:?}");
    let [log] = &finished.logs[..] else {
        panic!("{finished:?}")
    };
    assert_eq!(log.name, "input-report");
    let text = bench.blob(log.file().digest.as_ref());
    let text = String::from_utf8(text).unwrap();
    let action = "\naction: ";
    let at = text.find(action).unwrap() + action.len();
    text[at..].split_once('\n').unwrap().1.to_owned()
}

#[tokio::test]
async fn it_lists_exactly_what_was_read_never_read_and_looked_up_in_vain() {
    let Some(bench) = Bench::fuse(None, |_| {}) else {
        return;
    };
    let cold = report(&bench, &run(&bench, Some("true")).await);
    assert_eq!(cold, REPORT);
    // Whatever the kernel knows by now of the same tree.
    for _ in 0..2 {
        let other = run(&bench, None).await;
        assert_eq!(other.ending, Ending::Exited(3), "{other:?}");
        assert!(other.logs.is_empty());
    }
    let warm = report(&bench, &run(&bench, Some("on")).await);
    assert_eq!(warm, REPORT);
}

#[tokio::test]
async fn who_has_not_asked_gets_it_where_the_operator_wants_it() {
    let Some(bench) = Bench::fuse(None, |settings| settings.input_report = true) else {
        return;
    };
    let asked = run(&bench, None).await;
    assert_eq!(report(&bench, &asked), REPORT);
    // Not every scheduler has a place for it.
    let metadata = asked.result.unwrap().execution_metadata.unwrap();
    let in_result = { metadata.auxiliary_metadata.iter() }
        .find_map(unpack::<re::LogFile>)
        .unwrap();
    assert_eq!(in_result, Ok(asked.logs[0].file()));
    let unasked = run(&bench, Some("false")).await;
    assert!(unasked.logs.is_empty());
}

#[tokio::test]
async fn another_value_of_the_property_is_refused_by_its_name() {
    let bench = Bench::new(|_| {});
    let finished = run(&bench, Some("maybe")).await;
    let Ending::Unsupported(why) = &finished.ending else {
        panic!("{finished:?}")
    };
    assert!(why.contains("boxwright-input-report=maybe"), "{why}");
}

#[tokio::test]
async fn a_worker_that_cannot_know_says_so() {
    let bench = Bench::new(|_| {});
    let text = report(&bench, &run(&bench, Some("true")).await);
    assert!(
        text.contains("There is none") && text.contains("--inputs fuse"),
        "{text}"
    );
}

/// A standalone of its own that runs this script over a directory with the report in a file; its code, standard error and
/// report.
fn run_here(place: &Path, level: &str, flags: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_boxwright"))
        .args(["run", "--input", "in", "--input-report", "report"])
        .args(flags)
        .args(["--", "sh", "-c", "cat read; [ -e none ]; exit 3"])
        .current_dir(place)
        .env("BOXWRIGHT_STATE_DIR", place.join("state"))
        .env("BOXWRIGHT_SANDBOX", level)
        .output()
        .unwrap();
    let report = std::fs::read_to_string(place.join("report")).unwrap_or_default();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said, report)
}

#[test]
fn run_writes_it_to_a_file_at_every_level() {
    if !skipped::unless_root_and_fuse() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir(place.path().join("in")).unwrap();
    std::fs::write(place.path().join("in/read"), "read").unwrap();
    std::fs::write(place.path().join("in/unread"), "unread").unwrap();
    let lists = "\nread:\n4\tread\n\nlooked at, never read:\n\nnever used:\n6\tunread\n\nlooked up in vain:\nnone\n";
    // The second one of each would be known to the cache.
    for level in ["process", "full", "process", "full"] {
        let (code, said, report) = run_here(place.path(), level, &[]);
        if said.contains("boxwright doctor") {
            skipped::here(format!("this host cannot give level {level}"));
            continue;
        }
        assert_eq!(code, Some(3), "{said}");
        assert!(report.ends_with(lists), "{report}");
        assert!(said.is_empty(), "{said}");
        std::fs::remove_file(place.path().join("report")).unwrap();
    }
    // Who has not asked is told where it is.
    let told = |quiet: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_boxwright"))
            .args(["run", "--no-cache"])
            .args(quiet)
            .args(["--", "true"])
            .env("BOXWRIGHT_STATE_DIR", place.path().join("state"))
            .env("BOXWRIGHT_SANDBOX", "process")
            .env("BOXWRIGHT_INPUT_REPORT", "true")
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let said = told(&[]);
    assert!(
        said.starts_with("boxwright: server log input-report: "),
        "{said}"
    );
    assert_eq!(told(&["--quiet"]), "");
    // It does not keep the command's own end from being told.
    let (code, said, _) = run_here(place.path(), "process", &["--platform", "pool=none"]);
    assert!(
        code == Some(65) && said.contains("pool=none"),
        "{code:?} {said}"
    );
}

#[test]
fn what_the_sandbox_looks_for_in_a_root_is_not_the_commands_affair() {
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    if !skipped::unless_root_and_fuse() {
        return;
    }
    if !Path::new(BUSYBOX).exists() {
        skipped::program("busybox (package busybox-static)");
        return;
    }
    std::fs::create_dir_all(place.path().join("in/bin")).unwrap();
    std::fs::copy(BUSYBOX, place.path().join("in/bin/sh")).unwrap();
    std::fs::write(place.path().join("in/read"), "read").unwrap();
    let flags = ["--platform", "root=input", "--env", "PATH=/bin"];
    let (code, said, report) = run_here(place.path(), "full", &flags);
    if said.contains("boxwright doctor") {
        skipped::here("this host cannot give level full");
        return;
    }
    assert_eq!(code, Some(3), "{said}");
    assert!(report.contains("\nread: 2, "), "{report}");
    assert!(report.ends_with("\nlooked up in vain:\nnone\n"), "{report}");
}
