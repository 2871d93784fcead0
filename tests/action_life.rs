//! An action goes through its phases and ends in exactly one class, with a result that says what
//! happened.

#[path = "common/action.rs"]
mod common;
#[path = "common/skipped.rs"]
mod skipped;

use std::time::Duration;

use boxwright::action::Ending;
use boxwright::reapi::any::unpack;
use boxwright::reapi::proto::boxwright::CommandUsage;
use boxwright::reapi::proto::{buildbox, re};
use common::{Bench, F, action, sh};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_command_sees_its_inputs_and_leaves_its_outputs() {
    let bench = Bench::new(|_| {});
    let root = bench.root(&[("in.txt", b"hello\n")]);
    let command = re::Command {
        output_paths: vec![
            "deep/er/out.txt".into(),
            "dir".into(),
            "link".into(),
            "absent".into(),
        ],
        ..sh(
            "cat in.txt > deep/er/out.txt; mkdir dir; echo 1 > dir/a; chmod +x dir/a; ln -s in.txt link; echo said; echo warned >&2",
        )
    };
    let finished = bench.run(command, root).await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    assert!(finished.cacheable);
    let result = finished.result.unwrap();
    assert_eq!(
        (&result.stdout_raw[..], &result.stderr_raw[..]),
        (&b"said\n"[..], &b"warned\n"[..])
    );
    assert_eq!(result.output_files.len(), 1);
    assert_eq!(result.output_files[0].path, "deep/er/out.txt");
    assert_eq!(
        bench.blob(result.output_files[0].digest.as_ref()),
        b"hello\n"
    );
    assert_eq!(result.output_symlinks[0].target, "in.txt");
    let tree: re::Tree =
        prost::Message::decode(&bench.blob(result.output_directories[0].tree_digest.as_ref())[..])
            .unwrap();
    assert!(tree.root.unwrap().files[0].is_executable);
}

#[tokio::test]
async fn a_failing_command_is_told_with_its_code_and_is_not_cacheable() {
    let bench = Bench::new(|_| {});
    let finished = bench
        .run(sh("echo oops >&2; exit 7"), bench.root(&[]))
        .await;
    assert_eq!(finished.ending, Ending::Exited(7));
    assert!(!finished.cacheable);
    let result = finished.result.unwrap();
    assert_eq!(
        (result.exit_code, &result.stderr_raw[..]),
        (7, &b"oops\n"[..])
    );

    let finished = bench.run(sh("kill -SEGV $$"), bench.root(&[])).await;
    assert_eq!(finished.ending, Ending::Signalled(11));
    assert!(!finished.cacheable);
    assert_eq!(finished.result.unwrap().exit_code, 139);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_the_command_s_fault() {
    let bench = Bench::new(|_| {});
    let command = re::Command {
        arguments: vec!["no-such-tool".into()],
        ..sh("")
    };
    let finished = bench.run(command, bench.root(&[])).await;
    assert_eq!(finished.ending, Ending::Exited(127));
    let stderr = String::from_utf8(finished.result.unwrap().stderr_raw.to_vec()).unwrap();
    assert!(
        stderr.contains("no-such-tool") && stderr.contains("/usr/bin:/bin"),
        "{stderr}"
    );
}

#[tokio::test]
async fn do_not_cache_is_honoured() {
    let bench = Bench::new(|_| {});
    let command = bench.put_message(&sh("true"));
    let action = re::Action {
        do_not_cache: true,
        ..action(command, bench.root(&[]))
    };
    let finished = bench.run_action(action, CancellationToken::new()).await;
    assert_eq!(
        (finished.ending, finished.cacheable),
        (Ending::Exited(0), false)
    );
}

#[tokio::test]
async fn a_timeout_keeps_the_partial_result() {
    let bench = Bench::new(|_| {});
    let command = bench.put_message(&re::Command {
        output_paths: vec!["partial".into()],
        ..sh("echo begun; echo x > partial; sleep 100; echo never")
    });
    let action = re::Action {
        timeout: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..action(command, bench.root(&[]))
    };
    let finished = bench.run_action(action, CancellationToken::new()).await;
    assert_eq!(
        finished.ending,
        Ending::TimedOut {
            after: Duration::from_secs(1),
            bound_of: "its action"
        }
    );
    assert!(!finished.cacheable);
    let result = finished.result.unwrap();
    assert_eq!(&result.stdout_raw[..], b"begun\n");
    assert_eq!(result.output_files.len(), 1);
    assert_ne!(result.exit_code, 0);
    assert!(
        String::from_utf8_lossy(&result.stderr_raw).contains("timeout of 1s that its action sets")
    );
}

#[tokio::test]
async fn a_cancelled_action_has_no_result_and_no_processes() {
    let bench = Bench::new(|_| {});
    let mark = format!("{}.4711", std::process::id());
    let script = format!("(setsid sleep {mark} &) ; touch started; sleep {mark}");
    let command = bench.put_message(&sh(&script));
    let cancel = CancellationToken::new();
    let running = bench.run_action(action(command, bench.root(&[])), cancel.clone());
    let watch = async {
        while processes(&mark) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.cancel();
    };
    let (finished, ()) = tokio::join!(running, watch);
    assert_eq!(finished.ending, Ending::Cancelled);
    assert!(finished.result.is_none());
    assert_eq!(processes(&mark), 0);
}

/// Processes of `sleep MARK`.
fn processes(mark: &str) -> usize {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| *line == format!("sleep\0{mark}\0").into_bytes())
        .count()
}

#[tokio::test]
async fn every_missing_blob_is_named_at_once() {
    let bench = Bench::new(|_| {});
    let absent = |text: &str| F.digest(text.as_bytes());
    let file = |name: &str, digest: boxwright::reapi::Digest| re::FileNode {
        name: name.into(),
        digest: Some(digest.to_proto()),
        ..Default::default()
    };
    let sub = bench.put_message(&re::Directory {
        files: vec![
            file("here.c", bench.put(b"here")),
            file("lost.c", absent("lost")),
        ],
        ..Default::default()
    });
    let root = bench.put_message(&re::Directory {
        files: vec![file("gone.h", absent("gone"))],
        directories: vec![
            re::DirectoryNode {
                name: "src".into(),
                digest: Some(sub.to_proto()),
            },
            re::DirectoryNode {
                name: "vanished".into(),
                digest: Some(absent("vanished").to_proto()),
            },
        ],
        ..Default::default()
    });
    let finished = bench
        .run_action(action(absent("command"), root), CancellationToken::new())
        .await;
    let Ending::MissingInputs(missing) = finished.ending else {
        panic!("{:?}", finished.ending)
    };
    let mut digests: Vec<_> = missing.iter().map(|m| m.digest).collect();
    digests.sort();
    let mut expected = ["command", "gone", "lost", "vanished"].map(absent).to_vec();
    expected.sort();
    assert_eq!(digests, expected, "{missing:?}");
    let what: String = missing
        .iter()
        .map(|m| m.what.as_str())
        .collect::<Vec<_>>()
        .join("; ");
    for word in ["src/lost.c", "gone.h", "vanished", "Command"] {
        assert!(what.contains(word), "{what}");
    }
}

#[tokio::test]
async fn large_output_is_a_blob_and_cut_output_says_so() {
    let bench = Bench::new(|settings| settings.keep_output = 200_000);
    let finished = bench
        .run(
            sh("head -c 100000 /dev/zero; head -c 300000 /dev/zero >&2"),
            bench.root(&[]),
        )
        .await;
    let Ending::LimitExceeded(why) = &finished.ending else {
        panic!("{:?}", finished.ending)
    };
    assert!(why.contains("100000 bytes of standard error"), "{why}");
    assert!(
        !finished.cacheable,
        "a part must not be cached as the whole"
    );
    let result = finished.result.unwrap();
    assert_eq!(result.exit_code, 0);
    assert!(result.stdout_raw.is_empty());
    assert_eq!(bench.blob(result.stdout_digest.as_ref()), vec![0; 100_000]);
    let stderr = bench.blob(result.stderr_digest.as_ref());
    let line = b"\n[boxwright: 100000 bytes are left out here]\n";
    let (kept, notice) = stderr.split_at(200_000 + line.len());
    assert!(kept == [&[0; 100_000][..], line, &[0; 100_000]].concat());
    assert!(
        String::from_utf8_lossy(notice).contains("100000 bytes of standard error were left out")
    );
}

#[tokio::test]
async fn outputs_that_cannot_be_are_refused_by_name() {
    let bench = Bench::new(|_| {});
    let command = re::Command {
        output_paths: vec!["pipe".into()],
        ..sh("mkfifo pipe; echo said")
    };
    let finished = bench.run(command, bench.root(&[])).await;
    let Ending::BadOutput(text) = &finished.ending else {
        panic!("{finished:?}")
    };
    assert!(text.contains("pipe"), "{text}");
    assert_eq!(&finished.result.unwrap().stdout_raw[..], b"said\n");
}

#[tokio::test]
async fn a_command_that_failed_is_told_as_that_whatever_it_left_at_its_outputs() {
    let bench = Bench::new(|_| {});
    let command = |script: &str| re::Command {
        output_paths: vec!["pipe".into()],
        ..sh(script)
    };
    let script = "mkfifo pipe; echo wrong >&2; exit 3";
    let finished = bench.run(command(script), bench.root(&[])).await;
    assert_eq!(finished.ending, Ending::Exited(3), "{finished:?}");
    assert!(finished.message.contains("pipe") && !finished.cacheable);
    let said = format!("wrong\nboxwright: {}\n", finished.message);
    assert_eq!(&finished.result.unwrap().stderr_raw[..], said.as_bytes());
    let action = re::Action {
        timeout: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..action(
            bench.put_message(&command("mkfifo pipe; sleep 100")),
            bench.root(&[]),
        )
    };
    let finished = bench.run_action(action, CancellationToken::new()).await;
    let timed_out = matches!(finished.ending, Ending::TimedOut { .. });
    assert!(timed_out, "{finished:?}");
    let stderr = finished.result.unwrap().stderr_raw;
    let stderr = String::from_utf8_lossy(&stderr);
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(
        matches!(&lines[..], [end, beside] if end.contains("timeout") && beside.contains("pipe")),
        "{stderr}"
    );
}

#[tokio::test]
async fn what_is_left_out_of_a_clean_result_is_told_in_it_and_the_same_each_time() {
    let bench = Bench::new(|_| {});
    let run = async |script: &str| {
        let command = re::Command {
            output_paths: vec!["d".into()],
            ..sh(script)
        };
        let finished = bench.run(command, bench.root(&[])).await;
        assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
        assert!(finished.cacheable);
        let result = finished.result.unwrap();
        let stderr = match &result.stderr_digest {
            None => result.stderr_raw.to_vec(),
            digest => bench.blob(digest.as_ref()),
        };
        (finished.message, String::from_utf8(stderr).unwrap())
    };
    let several = "mkdir d; echo x > d/f; for n in";
    let (message, stderr) = run(&format!("{several} 1 2 3; do mkfifo d/pipe$n; done")).await;
    assert_eq!(stderr, format!("boxwright: {message}\n"));
    let paths = ["d/pipe1", "d/pipe2", "d/pipe3"].map(|path| message.find(path));
    assert!(paths[0].is_some() && paths.is_sorted(), "{message}");
    // Whatever order a directory lists them in; and on a line of its own, in a blob as well.
    let again = format!("{several} 2 3 1; do mkfifo d/pipe$n; done");
    assert_eq!(run(&again).await, (message.clone(), stderr));
    for size in [10, 2000, 100_000] {
        let script = format!("{again}; head -c {size} /dev/zero | tr '\\0' x >&2");
        let (_, stderr) = run(&script).await;
        let said = stderr.strip_prefix(&"x".repeat(size));
        assert_eq!(said, Some(&*format!("\nboxwright: {message}\n")), "{size}");
    }
    assert_eq!(run("mkdir d; echo said >&2").await.1, "said\n");
}

#[tokio::test]
#[allow(deprecated)]
async fn outputs_of_the_other_kind_are_the_command_s_fault_and_not_the_request_s() {
    let bench = Bench::new(|_| {});
    for (files, directories, script) in [
        (vec!["out".to_owned()], vec![], "echo said; mkdir out"),
        (
            vec![],
            vec!["out".to_owned()],
            "echo said; rm -rf out; echo > out",
        ),
    ] {
        let command = re::Command {
            output_files: files,
            output_directories: directories,
            ..sh(script)
        };
        let finished = bench.run(command, bench.root(&[])).await;
        assert!(
            matches!(&finished.ending, Ending::BadOutput(text) if text.contains("out")),
            "{script}: {finished:?}"
        );
        assert!(!finished.cacheable);
        assert_eq!(&finished.result.unwrap().stdout_raw[..], b"said\n");
    }
}

#[tokio::test]
async fn a_file_in_the_place_of_an_output_s_parent_is_a_bad_request() {
    let bench = Bench::new(|_| {});
    let command = re::Command {
        output_paths: vec!["in.txt/out".into()],
        ..sh("true")
    };
    let finished = bench.run(command, bench.root(&[("in.txt", b"x")])).await;
    assert!(
        matches!(&finished.ending, Ending::BadRequest(text) if text.contains("in.txt")),
        "{finished:?}"
    );
}

#[tokio::test]
async fn garbage_is_a_bad_request_not_a_crash() {
    let bench = Bench::new(|_| {});
    let garbage = bench.put(&[0xff; 40]);
    let good = bench.put_message(&sh("true"));
    for (command, root) in [(garbage, bench.root(&[])), (good, garbage)] {
        let finished = bench
            .run_action(action(command, root), CancellationToken::new())
            .await;
        assert!(
            matches!(finished.ending, Ending::BadRequest(_)),
            "{finished:?}"
        );
    }
    let finished = bench
        .run_action(re::Action::default(), CancellationToken::new())
        .await;
    assert!(matches!(finished.ending, Ending::BadRequest(text) if text.contains("command_digest")));
}

/// Each two bytes of these would be some dozens in memory.
#[tokio::test]
async fn a_command_of_too_many_empty_entries_is_refused_before_it_is_decoded() {
    let bench = Bench::new(|_| {});
    let variables = [0x12, 0].repeat(1_000_001);
    let mut properties = vec![0x2a];
    let inner = [0x0a, 0].repeat(1_000_000);
    prost::encoding::encode_varint(inner.len() as u64, &mut properties);
    properties.extend(inner);
    for (message, what) in [
        (variables, "environment variables"),
        (properties, "platform properties"),
    ] {
        let command = bench.put(&message);
        let finished = bench
            .run_action(action(command, bench.root(&[])), CancellationToken::new())
            .await;
        assert!(
            matches!(&finished.ending, Ending::BadRequest(text) if text.contains(what)),
            "{:?}",
            finished.ending
        );
    }
    // A long one is none the worse.
    let mut long = sh("test $# = 100000 && echo good > out");
    long.arguments.push("sh".to_owned());
    long.arguments.extend((0..100_000).map(|n| format!("{n}")));
    let command = bench.put_message(&long);
    let finished = bench
        .run_action(action(command, bench.root(&[])), CancellationToken::new())
        .await;
    assert_eq!(finished.ending, Ending::Exited(0));
}

#[tokio::test]
async fn all_timestamps_are_there_and_in_order() {
    let bench = Bench::new(|_| {});
    let result = bench
        .run(sh("true"), bench.root(&[("a", b"1")]))
        .await
        .result
        .unwrap();
    let m = result.execution_metadata.unwrap();
    assert_eq!(m.worker, "bench");
    let times: Vec<(i64, i32)> = [
        m.worker_start_timestamp,
        m.input_fetch_start_timestamp,
        m.input_fetch_completed_timestamp,
        m.execution_start_timestamp,
        m.execution_completed_timestamp,
        m.output_upload_start_timestamp,
        m.output_upload_completed_timestamp,
        m.worker_completed_timestamp,
    ]
    .map(|t| t.map(|t| (t.seconds, t.nanos)).expect("timestamp is set"))
    .to_vec();
    assert!(times.is_sorted(), "{times:?}");
    assert!(m.virtual_execution_duration.is_some());
}

#[tokio::test]
async fn what_the_command_used_is_in_its_result() {
    let bench = Bench::new(|_| {});
    let script = sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done");
    let result = bench.run(script, bench.root(&[])).await.result.unwrap();
    let auxiliary = result.execution_metadata.unwrap().auxiliary_metadata;
    let statistics: buildbox::ExecutionStatistics = auxiliary
        .iter()
        .find_map(unpack)
        .expect("BuildBox's form")
        .unwrap();
    let rusage = statistics.command_rusage.unwrap();
    let user = rusage.utime.unwrap();
    assert!(user.seconds > 0 || user.nanos > 0);
    assert!(rusage.maxrss > 100, "KiB");
    let own: CommandUsage = auxiliary
        .iter()
        .find_map(unpack)
        .expect("our own form")
        .unwrap();
    assert!(["wait4", "cgroup-v1", "cgroup-v2"].contains(&&*own.source));
    assert_eq!(own.user_time, Some(user));
    assert_eq!(own.largest_process_bytes / 1024, rusage.maxrss as u64);
}
