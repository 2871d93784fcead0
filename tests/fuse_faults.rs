//! An action whose inputs come from a CAS that stalls, fails, lies or lacks them: it dies when it is told to, it never reads a
//! wrong byte, and its end says what was wrong.

#[path = "common/action.rs"]
mod common;
#[path = "common/connection.rs"]
mod connection;
#[path = "common/faulty_cas/mod.rs"]
mod faulty_cas;
#[path = "common/log.rs"]
mod log;
#[path = "common/skipped.rs"]
mod skipped;

use std::sync::Arc;
use std::time::{Duration, Instant};

use boxwright::action::Ending;
use boxwright::reapi::Digest;
use boxwright::reapi::proto::re;
use bytes::Bytes;
use common::{Bench, F, action, missing, sh, soon};
use connection::Connection;
use faulty_cas::{FaultyCas, blob};
use log::Log;
use tokio_util::sync::CancellationToken;
use tonic::Code;

/// A worker whose CAS is `cas`, with this patience.
fn bench(cas: &FaultyCas, retries: u32, patience: Duration) -> Option<Bench> {
    Bench::fuse(Some(Arc::new(cas.client_with(retries, patience))), |_| {})
}

/// A root whose files the worker does not have.
fn root(bench: &Bench, files: &[(&str, Digest)]) -> Digest {
    let files = files.iter().map(|(name, digest)| re::FileNode {
        name: (*name).into(),
        digest: Some(digest.to_proto()),
        ..Default::default()
    });
    bench.put_message(&re::Directory {
        files: files.collect(),
        ..Default::default()
    })
}

/// Reads a page of `big` by itself, not as part of a read-ahead, while signals come that it has a handler for.
const SIGNALLED_READER: &str = "python3 -c '
import mmap, signal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
f = open(\"big\")
m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
m.madvise(mmap.MADV_RANDOM)
print(m[9])'";

/// The same with python3 where it is.
fn with_python(script: &str) -> re::Command {
    let mut command = sh(script);
    command.environment_variables[0].value += ":/usr/local/bin";
    command
}

/// What the running action has written, in a bench of one slot.
fn written(bench: &Bench, name: &str) -> Vec<u8> {
    let layers = std::fs::read_dir(bench.dir.path().join("stage/behind/layers")).unwrap();
    { layers.flatten() }
        .find_map(|layer| std::fs::read(layer.path().join("upper").join(name)).ok())
        .unwrap_or_default()
}

#[tokio::test]
async fn only_what_is_read_is_fetched() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 3, Duration::from_secs(20)) else {
        return;
    };
    let (read, unread) = (cas.put(blob(1, 5000).1), cas.put(blob(2, 5000).1));
    let root = root(&bench, &[("read", read), ("unread", unread)]);
    let finished = bench
        .run(sh("cat read | wc -c; wc -c < unread"), root)
        .await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    assert_eq!(&finished.result.unwrap().stdout_raw[..], b"5000\n5000\n");
    let seen = cas.state.seen.lock();
    assert_eq!(
        (seen.sent.get(&read), seen.sent.get(&unread)),
        (Some(&1), None)
    );
}

#[tokio::test]
async fn an_action_that_waits_for_a_stalled_cas_dies_at_once_when_it_is_cancelled() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 0, Duration::from_secs(30)) else {
        return;
    };
    // By a read, by a mapping and by its start: each waits in the kernel in a way of its own.
    let scripts = [
        "cat big",
        "python3 -c 'import mmap; f = open(\"big\"); print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[9])'",
        "./big",
        "(cat big & cat big & cp big copy & wait)",
        SIGNALLED_READER,
    ];
    for (n, script) in scripts.iter().enumerate() {
        cas.faults(|faults| {
            faults.hang.insert("Read", u32::MAX);
            faults.hang.insert("BatchReadBlobs", u32::MAX);
        });
        let big = cas.put_pattern((9 << 20) + n as u64);
        let command = bench.put_message(&with_python(script));
        let cancel = CancellationToken::new();
        let root = bench.put_message(&re::Directory {
            files: vec![re::FileNode {
                name: "big".into(),
                digest: Some(big.to_proto()),
                is_executable: true,
                ..Default::default()
            }],
            ..Default::default()
        });
        let mut running = std::pin::pin!(bench.start(action(command, root), cancel.clone()));
        let asked = async {
            while cas.calls("Read") == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            finished = &mut running => panic!("{script}: {finished:?}"),
            () = asked => {}
        }
        cas.state.seen.lock().calls.clear();
        let begun = Instant::now();
        cancel.cancel();
        let finished = running.await;
        let took = begun.elapsed();
        assert_eq!(finished.ending, Ending::Cancelled, "{script}");
        assert!(took < Duration::from_millis(200), "{script}: {took:?}");
        bench.settle().await;
    }
}

#[tokio::test]
async fn a_failing_cas_is_an_infrastructure_failure_whatever_the_command_makes_of_it() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 1, Duration::from_secs(5)) else {
        return;
    };
    for (n, code) in [Code::Unavailable, Code::Internal, Code::PermissionDenied]
        .into_iter()
        .enumerate()
    {
        let lost = cas.put(blob(n, 3000).1);
        cas.faults(|faults| {
            faults.fail.insert("BatchReadBlobs", (code, u32::MAX));
            faults.fail.insert("Read", (code, u32::MAX));
        });
        let root = root(&bench, &[("in", lost)]);
        let finished = bench
            .run(sh("cat in || echo never mind; exit 0"), root)
            .await;
        let Ending::Infrastructure(why) = &finished.ending else {
            panic!("{finished:?}")
        };
        assert!(
            why.contains("\"in\"") && why.contains("BatchReadBlobs"),
            "{why}"
        );
        assert!(!finished.cacheable && finished.result.is_none());
    }
}

#[tokio::test]
async fn a_lying_cas_is_never_believed() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 2, Duration::from_secs(5)) else {
        return;
    };
    let wrong = cas.put(blob(1, 3000).1);
    let big = cas.put_pattern(9 << 20);
    cas.faults(|faults| {
        faults.wrong_bytes.insert(wrong, u32::MAX);
        faults.wrong_bytes.insert(big, u32::MAX);
    });
    for (name, digest) in [("small", wrong), ("big", big)] {
        let root = root(&bench, &[(name, digest)]);
        let finished = bench.run(sh(&format!("cat {name}; true")), root).await;
        let Ending::Infrastructure(why) = &finished.ending else {
            panic!("{finished:?}")
        };
        assert!(why.contains(name), "{why}");
        assert!(!bench.store.contains(digest));
    }
}

#[tokio::test]
async fn what_nobody_has_is_named_all_of_it() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 2, Duration::from_secs(5)) else {
        return;
    };
    let here = cas.put(blob(1, 3000).1);
    let (gone, lost) = (blob(2, 3000).0, blob(3, 3000).0);
    let root = root(&bench, &[("gone", gone), ("here", here), ("lost", lost)]);
    let finished = bench.run(sh("cat here gone; true"), root).await;
    let all = [("input file gone", gone), ("input file lost", lost)];
    assert_eq!(missing(&finished), all);
    // What is not read is not missed.
    let finished = bench.run(sh("cat here > /dev/null"), root).await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
}

#[tokio::test]
async fn an_input_that_only_the_result_needs_is_missing_all_the_same() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 2, Duration::from_secs(5)) else {
        return;
    };
    let here = cas.put(blob(1, 3000).1);
    let (gone, lost) = (blob(2, 3000).0, blob(3, 3000).0);
    let root = root(&bench, &[("gone", gone), ("here", here), ("lost", lost)]);
    let all = [("input file gone", gone), ("input file lost", lost)];
    for outputs in [".", "gone"] {
        let command = re::Command {
            output_paths: vec![outputs.into()],
            ..sh("true")
        };
        let finished = bench.run(command, root).await;
        assert_eq!(missing(&finished), all, "{outputs}");
        assert!(!finished.cacheable && finished.result.is_none());
    }
    let nothing = bench.run(sh("true"), root).await;
    assert_eq!(nothing.ending, Ending::Exited(0));
}

#[tokio::test]
async fn what_is_missing_is_found_out_without_fetching_the_rest() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 2, Duration::from_secs(5)) else {
        return;
    };
    let (gone, lost) = (blob(1, 3000).0, blob(2, 3000).0);
    let there = [cas.put(blob(3, 3000).1), cas.put_pattern(9 << 20)];
    let files = [
        ("a", there[0]),
        ("b", there[1]),
        ("gone", gone),
        ("lost", lost),
    ];
    let root = root(&bench, &files);
    let all = [("input file gone", gone), ("input file lost", lost)];
    // A command that reads one of them, and one that is itself missing.
    let finished = bench.run(sh("cat gone"), root).await;
    assert_eq!(missing(&finished), all);
    let command = F.digest(b"no command");
    let finished = bench
        .run_action(action(command, root), CancellationToken::new())
        .await;
    let with_it = [all[0], all[1], ("the Command", command)];
    assert_eq!(missing(&finished), with_it);
    let sent = cas.state.seen.lock().sent.clone();
    assert!(
        there.iter().all(|digest| !sent.contains_key(digest)),
        "{sent:?}"
    );
    assert!(there.iter().all(|digest| !bench.store.contains(*digest)));
}

#[tokio::test]
async fn broken_streams_are_resumed_and_short_ones_are_not_taken_for_whole() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 4, Duration::from_secs(5)) else {
        return;
    };
    let big = cas.put_pattern(9 << 20);
    cas.faults(|faults| {
        faults.read_breaks.extend([1 << 20, 3 << 20]);
        faults.read_ends.push_back(2 << 20);
    });
    let root = root(&bench, &[("big", big)]);
    let finished = bench.run(sh("sha256sum < big"), root).await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    let said = String::from_utf8(finished.result.unwrap().stdout_raw.to_vec()).unwrap();
    assert!(said.starts_with(&big.hash_hex()), "{said}");
}

#[tokio::test]
async fn the_time_spent_waiting_for_inputs_is_not_the_commands_own() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 3, Duration::from_millis(1500)) else {
        return;
    };
    // The first call is never answered: it is given up after its deadline, and tried again.
    cas.faults(|faults| {
        faults.hang.insert("BatchReadBlobs", 1);
    });
    let slow = cas.put(Bytes::from_static(b"slow\n"));
    let root = root(&bench, &[("slow", slow)]);
    let begun = Instant::now();
    let log = Log::default();
    let logged = tracing::subscriber::set_default(log.clone().subscriber());
    let finished = bench.run(sh("cat slow"), root).await;
    drop(logged);
    let took = begun.elapsed();
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    let metadata = finished.result.unwrap().execution_metadata.unwrap();
    let own = metadata.virtual_execution_duration.unwrap();
    let own = Duration::new(own.seconds as u64, own.nanos as u32);
    assert!(took >= Duration::from_millis(1500), "{took:?}");
    assert!(
        own + Duration::from_millis(1000) < took,
        "{own:?} of {took:?}"
    );
    // The action's line in the log says it too.
    let log = log.text();
    let stalled = log.split("stall_ms=").nth(1).expect(&log);
    let stalled: u64 = stalled.split(' ').next().unwrap().parse().unwrap();
    assert!(
        stalled >= 1000 && u128::from(stalled) <= took.as_millis(),
        "{log}"
    );
}

#[tokio::test]
async fn a_timeout_does_not_count_the_time_spent_waiting_for_inputs() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 3, Duration::from_millis(1500)) else {
        return;
    };
    let run = async |script: &str, hangs: u32, slow: &'static str| {
        cas.faults(|faults| {
            faults.hang.insert("BatchReadBlobs", hangs);
        });
        let slow = cas.put(Bytes::from_static(slow.as_bytes()));
        let command = bench.put_message(&sh(script));
        let limited = re::Action {
            timeout: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            ..action(command, root(&bench, &[("slow", slow)]))
        };
        bench.run_action(limited, CancellationToken::new()).await
    };
    let finished = run("cat slow", 1, "slow\n").await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    // What it waits for is its own affair otherwise, and a CAS that never answers gets no more than its own time again.
    for (script, hangs, slow) in [
        ("sleep 10", 0, "slower\n"),
        ("cat slow", u32::MAX, "slowest\n"),
    ] {
        let begun = Instant::now();
        let finished = run(script, hangs, slow).await;
        assert!(
            matches!(finished.ending, Ending::TimedOut { .. }),
            "{finished:?}"
        );
        assert!(begun.elapsed() < Duration::from_secs(5), "{script}");
    }
}

#[tokio::test]
async fn a_signal_that_kills_nobody_ends_no_read() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 3, Duration::from_secs(20)) else {
        return;
    };
    // Signals come more often than contents.
    cas.faults(|faults| faults.latency = Duration::from_millis(400));
    let big = cas.put(Bytes::from_static(b"0123456789"));
    let root = root(&bench, &[("big", big)]);
    let finished = bench.run(with_python(SIGNALLED_READER), root);
    let finished = tokio::time::timeout(Duration::from_secs(10), finished).await;
    let finished = finished.expect("it gets its page");
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    assert_eq!(&finished.result.unwrap().stdout_raw[..], b"57\n");
    assert_eq!(cas.calls("BatchReadBlobs"), 1);
}

/// Bytes of what is there: more than the kernel reads by the way.
const HERE: usize = 300_000;

/// A tree of `cold` files that never come, and one that is there.
fn mostly_cold(bench: &Bench, cas: &FaultyCas, cold: usize) -> Digest {
    let here = bench.put(&blob(999, HERE).1);
    let names: Vec<String> = (0..cold).map(|n| format!("cold-{n}")).collect();
    let mut files = vec![("here", here)];
    let cold = names.iter().enumerate();
    files.extend(cold.map(|(n, name)| (&**name, cas.put(blob(1000 + n, HERE).1))));
    files.sort_unstable();
    root(bench, &files)
}

#[tokio::test]
async fn who_waits_for_a_stalled_cas_is_in_nobodys_way() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 0, Duration::from_secs(60)) else {
        return;
    };
    cas.faults(|faults| {
        faults.hang.insert("BatchReadBlobs", u32::MAX);
    });
    let cold = 100;
    let root = mostly_cold(&bench, &cas, cold);
    let script = format!(
        "for n in $(seq 0 {}); do cat cold-$n & done; while [ ! -e go ]; do sleep 0.02; done; cat here > got; wait",
        cold - 1
    );
    let connection = Connection::at(&bench.dir.path().join("stage/behind/tree"));
    let cancel = CancellationToken::new();
    let action = action(bench.put_message(&sh(&script)), root);
    let mut running = std::pin::pin!(bench.start(action, cancel.clone()));
    let checks = async {
        // As many as the kernel lets through.
        let mut before = 0;
        soon("many wait", || {
            let now = connection.waiting();
            let still = now == before && now >= 64;
            before = now;
            still
        })
        .await;
        let mut roots = std::fs::read_dir(bench.dir.path().join("stage/roots")).unwrap();
        let root = { roots.by_ref().flatten() }.find(|root| root.path().join("here").exists());
        std::fs::write(root.unwrap().path().join("go"), "").unwrap();
        soon("what is here is read", || {
            written(&bench, "got").len() == HERE
        })
        .await;
        cancel.cancel();
    };
    tokio::select! {
        finished = &mut running => panic!("{finished:?}"),
        () = checks => {}
    }
    assert_eq!(running.await.ending, Ending::Cancelled);
    bench.settle().await;
    // What it asked for is asked for no longer.
    soon("nothing waits", || connection.waiting() == 0).await;
    cas.faults(|faults| faults.hang.clear());
    let root = mostly_cold(&bench, &cas, cold);
    let begun = Instant::now();
    let finished = bench.run(sh("cat cold-7 > /dev/null"), root).await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_cancelled_action_does_not_go_on_looking_for_what_else_is_missing() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 0, Duration::from_secs(60)) else {
        return;
    };
    cas.faults(|faults| {
        faults.hang.insert("FindMissingBlobs", u32::MAX);
    });
    let root = root(
        &bench,
        &[("gone", blob(1, 3000).0), ("lost", blob(2, 3000).0)],
    );
    let command = bench.put_message(&sh("cat gone; true"));
    let cancel = CancellationToken::new();
    let mut running = std::pin::pin!(bench.start(action(command, root), cancel.clone()));
    let asked = async {
        while cas.calls("FindMissingBlobs") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        finished = &mut running => panic!("{finished:?}"),
        () = asked => {}
    }
    cancel.cancel();
    let finished = tokio::time::timeout(Duration::from_secs(5), running).await;
    assert_eq!(finished.unwrap().ending, Ending::Cancelled);
}

#[tokio::test]
async fn an_input_that_cannot_be_read_here_is_an_infrastructure_failure_too() {
    let Some(bench) = Bench::fuse(None, |_| {}) else {
        return;
    };
    let digest = bench.put(b"cannot be opened");
    let root = root(&bench, &[("in", digest)]);
    let path = bench.store.path(digest, false).unwrap().unwrap();
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let finished = bench.run(sh("cat in || true"), root).await;
    let Ending::Infrastructure(why) = &finished.ending else {
        panic!("{finished:?}")
    };
    assert!(why.contains("\"in\""), "{why}");
    assert!(!finished.cacheable && finished.result.is_none());
}

#[tokio::test]
async fn a_large_input_looks_the_same_whether_it_is_here_or_not() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 3, Duration::from_secs(20)) else {
        return;
    };
    let node = |name: &str, digest: Digest| re::FileNode {
        name: name.into(),
        digest: Some(digest.to_proto()),
        is_executable: name == "program",
        ..Default::default()
    };
    let library = bench.put_message(&re::Directory {
        files: vec![
            node("data", cas.put_pattern(3 << 20)),
            node("program", cas.put_pattern(2 << 20)),
            node("small", bench.put(b"small")),
        ],
        ..Default::default()
    });
    let root = bench.put_message(&re::Directory {
        directories: vec![re::DirectoryNode {
            name: "lib".into(),
            digest: Some(library.to_proto()),
        }],
        ..Default::default()
    });
    let script = "stat -c '%n %f %s %u %g %Y %h' lib/*; cat lib/* | cksum";
    let cold = bench.run(sh(script), root).await;
    assert_eq!(cold.ending, Ending::Exited(0), "{cold:?}");
    let cold = cold.result.unwrap().stdout_raw;
    for _ in 0..2 {
        let warm = bench.run(sh(script), root).await;
        let warm = warm.result.unwrap().stdout_raw;
        assert_eq!(
            String::from_utf8_lossy(&warm),
            String::from_utf8_lossy(&cold)
        );
    }
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let laid = { table.lines() }
        .filter(|line| line.contains("/stage/behind/parts/") && line.contains("/data "));
    assert_eq!(
        laid.count(),
        1,
        "it is shown as the store's own file: {table}"
    );
}
