//! Actions that see their inputs on the file system behave as with real files, and what they leave is collected
//! as it is.

#[path = "common/action.rs"]
mod common;
#[path = "common/skipped.rs"]
mod skipped;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use boxwright::action::{Ending, Settings};
use boxwright::reapi::Digest;
use boxwright::reapi::proto::re;
use common::{Bench, F, sh};

/// A directory of files (`name`, or `name*` if executable) and subdirectories.
enum Item<'a> {
    File(&'a [u8]),
    Link(&'a str),
    Dir(&'a [(&'a str, Item<'a>)]),
}
use Item::{Dir, File, Link};

fn put(bench: &Bench, items: &[(&str, Item<'_>)]) -> Digest {
    let mut directory = re::Directory::default();
    for (name, item) in items {
        match item {
            File(data) => directory.files.push(re::FileNode {
                name: name.trim_end_matches('*').into(),
                digest: Some(bench.put(data).to_proto()),
                is_executable: name.ends_with('*'),
                node_properties: None,
            }),
            Link(target) => directory.symlinks.push(re::SymlinkNode {
                name: (*name).into(),
                target: (*target).into(),
                node_properties: None,
            }),
            Dir(items) => directory.directories.push(re::DirectoryNode {
                name: (*name).into(),
                digest: Some(put(bench, items).to_proto()),
            }),
        }
    }
    directory.files.sort_by(|a, b| a.name.cmp(&b.name));
    directory.directories.sort_by(|a, b| a.name.cmp(&b.name));
    directory.symlinks.sort_by(|a, b| a.name.cmp(&b.name));
    bench.put_message(&directory)
}

fn outputs(paths: &[&str], script: &str) -> re::Command {
    re::Command {
        output_paths: paths.iter().map(|p| (*p).to_owned()).collect(),
        ..sh(script)
    }
}

/// The files of an output directory by path, with their content; links as `-> target`; directories as `/`.
fn flatten(bench: &Bench, directory: &re::OutputDirectory) -> BTreeMap<String, String> {
    let tree: re::Tree =
        prost::Message::decode(&bench.blob(directory.tree_digest.as_ref())[..]).unwrap();
    let children: BTreeMap<Digest, re::Directory> = { tree.children.into_iter() }
        .map(|d| (F.digest(&prost::Message::encode_to_vec(&d)), d))
        .collect();
    let mut all = BTreeMap::new();
    let mut stack = vec![(String::new(), tree.root.unwrap())];
    while let Some((path, directory)) = stack.pop() {
        for file in &directory.files {
            let content = String::from_utf8(bench.blob(file.digest.as_ref())).unwrap();
            all.insert(format!("{path}{}", file.name), content);
        }
        for link in &directory.symlinks {
            all.insert(
                format!("{path}{}", link.name),
                format!("-> {}", link.target),
            );
        }
        for child in &directory.directories {
            let path = format!("{path}{}/", child.name);
            all.insert(path.clone(), "/".into());
            let digest = Digest::from_proto(F, child.digest.as_ref()).unwrap();
            stack.push((path, children[&digest].clone()));
        }
    }
    all
}

#[tokio::test]
async fn a_command_sees_its_inputs_and_leaves_its_outputs() {
    let Some(bench) = Bench::fuse(None, |_| {}) else {
        return;
    };
    let root = put(
        &bench,
        &[
            ("in.txt", File(b"hello\n")),
            ("tool*", File(b"#!/bin/sh\necho tool says $1\n")),
            ("link", Link("in.txt")),
            ("empty", File(b"")),
            (
                "src",
                Dir(&[("a.c", File(b"int a;\n")), ("none", Dir(&[]))]),
            ),
        ],
    );
    let script = "set -e; cat in.txt link empty src/a.c > deep/er/out.txt; ./tool yes >> deep/er/out.txt; \
                  ls -a . src >> deep/er/out.txt; test ! -e absent; mkdir dir; echo 1 > dir/a; chmod +x dir/a; \
                  ln -s in.txt made; stat -c '%a %u %s %F' in.txt tool src > looks; id -u >> looks";
    let command = outputs(
        &["deep/er/out.txt", "dir", "made", "looks", "absent"],
        script,
    );
    for _ in 0..3 {
        let finished = bench.run(command.clone(), root).await;
        assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
        let result = finished.result.unwrap();
        let paths: Vec<&str> = result.output_files.iter().map(|f| &*f.path).collect();
        assert_eq!(paths, ["deep/er/out.txt", "looks"]);
        let out = String::from_utf8(bench.blob(result.output_files[0].digest.as_ref())).unwrap();
        assert_eq!(
            out,
            "hello\nhello\nint a;\ntool says yes\n.:\n.\n..\ndeep\nempty\nin.txt\nlink\nsrc\ntool\n\nsrc:\n.\n..\na.c\nnone\n"
        );
        let looks = String::from_utf8(bench.blob(result.output_files[1].digest.as_ref())).unwrap();
        let uid = looks.lines().last().unwrap();
        assert_eq!(
            looks,
            format!(
                "644 {uid} 6 regular file\n755 {uid} 28 regular file\n755 {uid} 4096 directory\n{uid}\n"
            )
        );
        assert_eq!(result.output_symlinks[0].target, "in.txt");
        let dir = &result.output_directories[0];
        assert_eq!(
            flatten(&bench, dir),
            BTreeMap::from([("a".into(), "1\n".into())])
        );
    }
    // Places are used again, with nothing in them of what was there before: two for trees that are new, and two for known ones, as
    // the last one may not be cleared yet.
    let places = ["stage/roots", "stage/behind/layers"].map(|place| bench.dir.path().join(place));
    for place in &places {
        let count = std::fs::read_dir(place).unwrap().count();
        assert!(count <= 4, "{}: {count}", place.display());
    }
    let finished = bench
        .run(sh("ls -A"), put(&bench, &[("only", File(b""))]))
        .await;
    assert_eq!(&finished.result.unwrap().stdout_raw[..], b"only\n");
}

/// Nobody writes to an input root when its command has ended, so that nothing need be copied.
#[tokio::test]
async fn outputs_are_moved_into_the_store() {
    let full = || Bench::fuse_at_full(None, 0x7380_0000, |_| {});
    for bench in [Bench::fuse(None, |_| {}), full()] {
        let Some(bench) = bench else { continue };
        let script = "sleep 100 > behind & echo made > out; stat -c %i out";
        let root = put(&bench, &[("in", File(b"in"))]);
        let finished = bench.run(outputs(&["out"], script), root).await;
        assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
        let blob = bench.store.path(F.digest(b"made\n"), false).unwrap();
        let inode = std::fs::metadata(blob.unwrap()).unwrap().ino();
        let said = finished.result.unwrap().stdout_raw;
        assert_eq!(String::from_utf8_lossy(&said).trim(), inode.to_string());
    }
}

/// The launcher unmounts when it has a moment; until then the kernel lets nobody else have the directories of an overlay.
#[tokio::test]
async fn a_root_that_a_launcher_still_holds_is_in_nobodys_way() {
    let Some(bench) = Bench::fuse_at_full(None, 0x7300_0000, |_| {}) else {
        return;
    };
    for new in [true, false] {
        for n in 0..60 {
            let content = format!("{}", if new { n } else { 0 });
            let root = put(&bench, &[("file", File(content.as_bytes()))]);
            let finished = bench.run(sh("cat file; echo more > made"), root).await;
            assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
            let result = finished.result.unwrap();
            assert_eq!(&result.stdout_raw[..], content.as_bytes());
        }
    }
    // None had to be given up; some may wait to be cleared.
    let places = bench.dir.path().join("stage/behind/layers");
    let count = std::fs::read_dir(places).unwrap().count();
    assert!(count <= 30, "{count}");
}

#[tokio::test]
async fn what_has_no_name_any_more_counts_as_written() {
    let bound =
        |settings: &mut Settings| settings.strategies.base.limits.disk_bytes = Some(8 << 20);
    let Some(bench) = Bench::fuse_at_full(None, 0x7300_0100, bound) else {
        return;
    };
    let root = put(&bench, &[("file", File(b"in"))]);
    let hidden = "exec 3> big; rm big; head -c 64M /dev/zero >&3; sleep 30";
    let finished = bench.run(sh(hidden), root).await;
    let Ending::LimitExceeded(why) = &finished.ending else {
        panic!("{finished:?}");
    };
    assert!(why.contains("disk_bytes"), "{why}");
    let little = "exec 3> little; rm little; head -c 1M /dev/zero >&3; sleep 1";
    assert_eq!(bench.run(sh(little), root).await.ending, Ending::Exited(0));
}

#[tokio::test]
async fn outputs_among_inputs_are_merged_replaced_and_removed() {
    let Some(bench) = Bench::fuse(None, |_| {}) else {
        return;
    };
    let root = put(
        &bench,
        &[(
            "out",
            Dir(&[
                ("kept", File(b"kept")),
                ("changed", File(b"old")),
                ("removed", File(b"x")),
                ("link", Link("kept")),
                ("whole", Dir(&[("deep", Dir(&[("f", File(b"deep"))]))])),
                ("gone", Dir(&[("f", File(b"g"))])),
                (
                    "replaced",
                    Dir(&[("old", File(b"old")), ("sub", Dir(&[("x", File(b"x"))]))]),
                ),
                ("moved", Dir(&[("m", File(b"m"))])),
                ("turned", Dir(&[("t", File(b"t"))])),
                ("file", File(b"was a file")),
            ]),
        )],
    );
    let script = "set -e; cd out; rm changed removed; echo new > changed; rm -r gone replaced turned file; \
                  mkdir replaced; echo n > replaced/new; mv moved elsewhere; echo flat > turned; mkdir file; \
                  echo in > file/in; echo more > whole/deep/more; ln -s kept another";
    let finished = bench
        .run(
            outputs(
                &[
                    "out",
                    "out/kept",
                    "out/removed",
                    "out/turned",
                    "out/whole/deep/f",
                ],
                script,
            ),
            root,
        )
        .await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    let result = finished.result.unwrap();
    let files: Vec<(&str, Vec<u8>)> = { result.output_files.iter() }
        .map(|f| (&*f.path, bench.blob(f.digest.as_ref())))
        .collect();
    assert_eq!(
        files,
        [
            ("out/kept", b"kept".to_vec()),
            ("out/turned", b"flat\n".to_vec()),
            ("out/whole/deep/f", b"deep".to_vec()),
        ]
    );
    let expected = [
        ("another", "-> kept"),
        ("changed", "new\n"),
        ("elsewhere/", "/"),
        ("elsewhere/m", "m"),
        ("file/", "/"),
        ("file/in", "in\n"),
        ("kept", "kept"),
        ("link", "-> kept"),
        ("replaced/", "/"),
        ("replaced/new", "n\n"),
        ("turned", "flat\n"),
        ("whole/", "/"),
        ("whole/deep/", "/"),
        ("whole/deep/f", "deep"),
        ("whole/deep/more", "more\n"),
    ];
    let expected = expected.map(|(path, content)| (path.to_owned(), content.to_owned()));
    assert_eq!(
        flatten(&bench, &result.output_directories[0]),
        BTreeMap::from(expected)
    );
}

#[tokio::test]
async fn inputs_of_equal_content_are_files_of_their_own() {
    let Some(bench) = Bench::fuse(None, |_| {}) else {
        return;
    };
    let root = |own: &[u8]| {
        put(
            &bench,
            &[
                ("a", File(b"same\n")),
                ("b", File(b"same\n")),
                (
                    "sub",
                    Dir(&[("c", File(b"same\n")), ("d", File(b"same\n"))]),
                ),
                ("link-1", Link("a")),
                ("link-2", Link("a")),
                ("own", File(own)),
            ],
        )
    };
    // All of them are known to the kernel when one of them changes.
    let script = "set -e; cat a b sub/c sub/d link-1 link-2 > /dev/null; echo more >> a; cat b sub/c sub/d; \
                  chmod 600 sub/c; stat -c %a b sub/d; mv sub/c b; cat b; test ! -e sub/c; mv link-1 link-2; test ! -e link-1; \
                  cat a link-2";
    for own in [b"1\n", b"2\n"] {
        let command = outputs(&["made", "sub/made"], script);
        let finished = bench.run(command, root(own)).await;
        assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
        assert_eq!(
            String::from_utf8_lossy(&finished.result.unwrap().stdout_raw),
            "same\nsame\nsame\n644\n644\nsame\nsame\nmore\nsame\nmore\n"
        );
    }
}

/// As many as make a directory worth sharing at once.
fn many_files() -> Vec<(String, Vec<u8>)> {
    (0..120)
        .map(|n| (format!("f{n:03}"), format!("{n}\n").into_bytes()))
        .collect()
}

#[tokio::test]
async fn a_directory_that_is_an_output_is_writable_below_whatever_was_there_before() {
    let Some(bench) = Bench::fuse(None, |_| {}) else {
        return;
    };
    let many = many_files();
    let files: Vec<(&str, Item<'_>)> = { many.iter() }
        .map(|(name, data)| (&**name, File(data)))
        .collect();
    let root = put(
        &bench,
        &[(
            "out",
            Dir(&[
                (
                    "few",
                    Dir(&[("x", File(b"x")), ("y", File(b"y")), ("z", File(b"z"))]),
                ),
                ("many", Dir(&files)),
            ]),
        )],
    );
    // At once because it is large, and later because it is known: both would be worth sharing.
    for _ in 0..3 {
        let script = "echo new > out/few/new && echo new > out/many/new && rm out/many/f000";
        let finished = bench.run(outputs(&["out"], script), root).await;
        assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
        let all = flatten(&bench, &finished.result.unwrap().output_directories[0]);
        assert_eq!(all.get("few/new").map(String::as_str), Some("new\n"));
        assert_eq!(all.get("many/new").map(String::as_str), Some("new\n"));
        assert!(!all.contains_key("many/f000") && all.contains_key("many/f001"));
    }
}

#[tokio::test]
async fn inputs_that_no_action_uses_any_more_make_room() {
    let Some(bench) = Bench::fuse_in(48 << 20) else {
        return;
    };
    let content = |n: u32, size: usize| {
        let mut data = vec![n as u8; size];
        data[..4].copy_from_slice(&n.to_le_bytes());
        data
    };
    // Of both kinds: as they are in the store, and read piece by piece. The kernel remembers all of it.
    let script = "ls -R > /dev/null; cat lib/large lib/small other > all; sh -c 'exec 3< lib/large; cat lib/small' > /dev/null";
    for n in 0..16 {
        let (large, small, other) = (
            content(n, 4 << 20),
            content(100 + n, 900 << 10),
            content(200 + n, 700 << 10),
        );
        let lib = [
            ("large", File(&large)),
            ("more", File(b"more")),
            ("small", File(&small)),
        ];
        // Putting them fails when there is no room.
        let root = put(&bench, &[("lib", Dir(&lib)), ("other", File(&other))]);
        for _ in 0..2 {
            let finished = bench.run(outputs(&[], script), root).await;
            assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
        }
    }
    let usage = bench.store.usage();
    assert!(usage.bytes <= 48 << 20, "{usage:?}");
    // Nor does a mount keep what was evicted.
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let dir = bench.dir.path().to_str().unwrap();
    let gone = { mounts.lines() }.filter(|line| line.contains(dir) && line.contains("//deleted"));
    assert_eq!(gone.count(), 0, "{mounts}");
}

/// How many files called `large` are mounted over their paths in parts of roots.
fn laid(bench: &Bench) -> usize {
    let dir = bench.dir.path().to_str().unwrap();
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let laid = { mounts.lines() }
        .filter(|line| line.contains(dir) && line.contains("/parts/"))
        .filter(|line| line.contains("/large "));
    laid.count()
}

#[tokio::test]
async fn large_inputs_of_an_action_that_ended_are_not_kept_by_its_mounts() {
    let Some(bench) = Bench::fuse_in(48 << 20) else {
        return;
    };
    // More than what is kept for the next action's sake.
    let large = vec![7; 20 << 20];
    let root = put(&bench, &[("lib", Dir(&[("large", File(&large))]))]);
    let laid = || laid(&bench);
    for _ in 0..2 {
        let finished = bench.run(sh("cmp -n 9 lib/large lib/large"), root).await;
        assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
        assert_eq!(laid(), 0);
    }
    let another = bench
        .store
        .put(F.digest(&vec![8; 40 << 20]), &vec![8; 40 << 20], false);
    assert!(another.is_ok(), "{another:?}");
}

/// What is kept for the next action's sake goes before an upload is refused, from the disk too.
#[tokio::test]
async fn inputs_kept_for_the_next_action_make_room_for_an_upload() {
    const HIGH: u64 = 48 << 20;
    let Some(bench) = Bench::fuse_in(HIGH) else {
        return;
    };
    let large = vec![7; 8 << 20];
    let root = put(&bench, &[("lib", Dir(&[("large", File(&large))]))]);
    for _ in 0..2 {
        let finished = bench.run(sh("cmp -n 9 lib/large lib/large"), root).await;
        assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    }
    let laid = || laid(&bench);
    assert_eq!(laid(), 1);
    let upload = vec![8; 44 << 20];
    let put = bench.store.put(F.digest(&upload), &upload, false);
    assert!(put.is_ok(), "{put:?}");
    assert_eq!(laid(), 0);
    assert!(bench.store.usage().disk <= HIGH);
}

#[tokio::test]
async fn an_output_that_is_an_untouched_input_costs_no_read() {
    let Some(bench) = Bench::fuse(None, |_| {}) else {
        return;
    };
    let root = put(
        &bench,
        &[
            ("in", File(b"as it is")),
            (
                "sub",
                Dir(&[("run*", File(b"program")), ("link", Link("run"))]),
            ),
        ],
    );
    let finished = bench
        .run(outputs(&["in", "sub/run", "sub/link", "sub"], "true"), root)
        .await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    let result = finished.result.unwrap();
    assert_eq!(
        result.output_files[0].digest,
        Some(F.digest(b"as it is").to_proto())
    );
    assert!(result.output_files[1].is_executable);
    assert_eq!(result.output_symlinks[0].target, "run");
    assert_eq!(flatten(&bench, &result.output_directories[0]).len(), 2);
}

#[tokio::test]
async fn a_missing_input_is_named_and_a_bad_directory_refused() {
    let Some(bench) = Bench::fuse(None, |_| {}) else {
        return;
    };
    let absent = F.digest(b"absent");
    let root = bench.put_message(&re::Directory {
        files: vec![re::FileNode {
            name: "gone.h".into(),
            digest: Some(absent.to_proto()),
            ..Default::default()
        }],
        ..Default::default()
    });
    let finished = bench.run(sh("true"), root).await;
    let Ending::MissingInputs(missing) = finished.ending else {
        panic!("{finished:?}")
    };
    assert_eq!(
        (missing[0].digest, &*missing[0].what),
        (absent, "input file gone.h")
    );

    let root = put(&bench, &[("in.txt", File(b"x"))]);
    let finished = bench.run(outputs(&["in.txt/out"], "true"), root).await;
    assert!(
        matches!(&finished.ending, Ending::BadRequest(text) if text.contains("in.txt")),
        "{finished:?}"
    );
}

/// Otherwise a build that writes beside its inputs works until a worker knows them.
#[tokio::test]
async fn what_may_be_written_is_the_same_whatever_earlier_actions_had() {
    let many = many_files();
    let files: Vec<(&str, Item<'_>)> = { many.iter() }
        .map(|(name, data)| (&**name, File(data)))
        .collect();
    let few = || Dir(&[("x", File(b"x")), ("y", File(b"y")), ("z", File(b"z"))]);
    let script = "for at in . empty few many one sub sub/lib sub/deep/lib; do \
                  if (echo x > $at/new && rm $at/new) 2> /dev/null; then echo $at; fi; done > sub/out";
    let asking = |writable: &str| {
        Some(re::Platform {
            properties: vec![re::platform::Property {
                name: "boxwright-writable-inputs".into(),
                value: writable.into(),
            }],
        })
    };
    let some = ".\nempty\nsub\n";
    let all = ".\nempty\nfew\nmany\none\nsub\nsub/lib\nsub/deep/lib\n";
    for (platform, report, expected) in [
        (None, false, some),
        (None, true, some),
        (asking("false"), false, some),
        (asking("true"), false, all),
        (asking("true"), true, all),
    ] {
        let Some(bench) = Bench::fuse(None, |settings| settings.input_report = report) else {
            return;
        };
        let root = put(
            &bench,
            &[
                ("empty", Dir(&[])),
                ("few", few()),
                ("many", Dir(&headers_of(&files))),
                ("one", Dir(&[("x", File(b"x"))])),
                (
                    "sub",
                    Dir(&[("lib", few()), ("deep", Dir(&[("lib", few())]))]),
                ),
            ],
        );
        for _ in 0..3 {
            let command = bench.put_message(&outputs(&["sub/out"], script));
            let action = re::Action {
                platform: platform.clone(),
                ..common::action(command, root)
            };
            let finished = bench.run_action(action, Default::default()).await;
            assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
            let result = finished.result.unwrap();
            let said = bench.blob(result.output_files[0].digest.as_ref());
            assert_eq!(String::from_utf8_lossy(&said), expected, "report: {report}");
        }
    }
}

#[tokio::test]
async fn shared_subtrees_are_read_only_and_outputs_in_them_are_not() {
    let Some(bench) = Bench::fuse(None, |_| {}) else {
        return;
    };
    let many: Vec<(String, Vec<u8>)> = (0..40)
        .map(|n| {
            (
                format!("h{n:02}.h"),
                format!("#define H {n}\n").into_bytes(),
            )
        })
        .collect();
    let headers: Vec<(&str, Item<'_>)> = many
        .iter()
        .map(|(name, data)| (&**name, File(data)))
        .collect();
    let big = vec![7_u8; 3 << 20];
    let root = |own: &[u8]| {
        put(
            &bench,
            &[
                ("include", Dir(&headers_of(&headers))),
                (
                    "tool",
                    Dir(&[("big", File(&big)), ("a", File(b"a")), ("b", File(b"b"))]),
                ),
                ("own", File(own)),
            ],
        )
    };
    let script = "cat include/*.h | cksum > sum; cksum tool/big | cut -d' ' -f1-2 > big; \
                  (echo x > include/new) 2>/dev/null && echo writable > said || echo read-only > said; cat own >> said";
    // Small as they are, they are shared once they were seen.
    assert_eq!(
        bench.run(sh("true"), root(b"0\n")).await.ending,
        Ending::Exited(0)
    );
    for own in [b"1\n", b"2\n", b"3\n"] {
        let finished = bench
            .run(outputs(&["sum", "big", "said"], script), root(own))
            .await;
        assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
        let result = finished.result.unwrap();
        let said = bench.blob(result.output_files[1].digest.as_ref());
        assert_eq!(
            String::from_utf8(said).unwrap(),
            format!("read-only\n{}", String::from_utf8_lossy(own))
        );
        let finished = bench
            .run(
                outputs(&["include/out"], "echo x > include/out; rm include/h00.h"),
                root(own),
            )
            .await;
        assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
        assert_eq!(finished.result.unwrap().output_files.len(), 1);
    }
}

fn headers_of<'a>(headers: &[(&'a str, Item<'a>)]) -> Vec<(&'a str, Item<'a>)> {
    let copy = |item: &Item<'a>| match item {
        File(data) => File(data),
        Link(target) => Link(target),
        Dir(items) => Dir(items),
    };
    headers
        .iter()
        .map(|(name, item)| (*name, copy(item)))
        .collect()
}
