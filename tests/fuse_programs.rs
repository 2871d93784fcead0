//! A program that cannot be had: its start is the first read of an action's inputs, and fails as any other read of them does.

#[path = "common/action.rs"]
mod common;
#[path = "common/faulty_cas/mod.rs"]
mod faulty_cas;
#[path = "common/skipped.rs"]
mod skipped;

use std::sync::Arc;
use std::time::{Duration, Instant};

use boxwright::action::Ending;
use boxwright::reapi::Digest;
use boxwright::reapi::proto::re;
use boxwright::tree::TreeBuilder;
use bytes::Bytes;
use common::{Bench, action, missing, sh, soon};
use faulty_cas::{FaultyCas, blob};
use tokio_util::sync::CancellationToken;
use tonic::Code;

fn bench(cas: &FaultyCas, retries: u32, patience: Duration) -> Option<Bench> {
    Bench::fuse(Some(Arc::new(cas.client_with(retries, patience))), |_| {})
}

/// The same with a full sandbox, whose commands have users from this on.
fn full(cas: &FaultyCas, first_uid: u32) -> Option<Bench> {
    let source = Arc::new(cas.client_with(0, Duration::from_secs(60)));
    Bench::fuse_at_full(Some(source), first_uid, |_| {})
}

/// What an input root holds.
enum Node<'a> {
    Program(Digest),
    Link(&'a str),
}

fn root(bench: &Bench, nodes: &[(&str, Node)]) -> Digest {
    let mut builder = TreeBuilder::new(common::F);
    for (path, node) in nodes {
        match node {
            Node::Program(digest) => builder.file(path, *digest, true, None),
            Node::Link(target) => builder.symlink(path, target, None),
        }
        .unwrap();
    }
    let (root, messages) = builder.finish();
    for (digest, bytes) in messages {
        bench.store.put(digest, &bytes, false).unwrap();
    }
    root
}

/// A command of one word.
fn command(program: &str) -> re::Command {
    let mut command = sh("");
    command.arguments = vec![program.into()];
    command.environment_variables[0].value += ":bin";
    command
}

/// `true` with its loader at a path below the working directory, and that path.
fn with_a_loader_of_its_own() -> (Bytes, String) {
    const PT_INTERP: usize = 3;
    let mut program = std::fs::read("/bin/true").unwrap();
    let number = |at: usize, size: usize| {
        let bytes = program[at..at + size].iter().rev();
        bytes.fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    // The program headers of a 64-bit ELF file.
    let (first, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let header = { 0..count }
        .map(|n| first + n * size)
        .find(|at| number(*at, 4) == PT_INTERP)
        .expect("/bin/true has a loader");
    let (at, length) = (number(header + 8, 8), number(header + 32, 8));
    let path = program[at + 1..at + length - 1].to_vec();
    program[at..][..path.len()].copy_from_slice(&path);
    program[at + path.len()] = 0;
    (program.into(), String::from_utf8(path).unwrap())
}

#[tokio::test]
async fn a_program_that_nobody_has_is_a_missing_input() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 2, Duration::from_secs(5)) else {
        return;
    };
    let (gone, lost) = (blob(1, 3000).0, blob(2, 3000).0);
    let script = Node::Program(cas.put(Bytes::from_static(b"#!interpreter\n")));
    let (elf, loader) = with_a_loader_of_its_own();
    let elf = Node::Program(cas.put(elf));
    // The program itself, by its path, by a link and by PATH; then what the kernel wants to start it.
    for (argv, path, beside) in [
        ("./program", "program", None),
        ("./link", "program", Some(("link", Node::Link("program")))),
        ("program", "bin/program", None),
        ("./script", "interpreter", Some(("script", script))),
        ("./elf", &loader, Some(("elf", elf))),
    ] {
        let mut nodes = vec![(path, Node::Program(gone)), ("z/lost", Node::Program(lost))];
        nodes.extend(beside);
        let finished = bench.run(command(argv), root(&bench, &nodes)).await;
        let path = format!("input file {path}");
        let all = [(&*path, gone), ("input file z/lost", lost)];
        assert_eq!(missing(&finished), all, "{argv}");
    }
    // Nothing is wrong with these roots but for what they lack.
    let (elf, loader) = with_a_loader_of_its_own();
    let of_host = std::fs::read(format!("/{loader}")).unwrap();
    let nodes = [
        ("elf", Node::Program(cas.put(elf))),
        (&*loader, Node::Program(cas.put(of_host.into()))),
    ];
    let finished = bench.run(command("./elf"), root(&bench, &nodes)).await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
}

#[tokio::test]
async fn so_is_one_of_a_full_sandbox_and_of_a_chroot() {
    let cas = FaultyCas::start().await;
    let Some(bench) = full(&cas, 0x7300_0200) else {
        return;
    };
    let gone = blob(1, 3000).0;
    let shell = root(&bench, &[("bin/sh", Node::Program(gone))]);
    let finished = bench.run(command("bin/sh"), shell).await;
    assert_eq!(missing(&finished), [("input file bin/sh", gone)]);
    let with_chroot = re::Action {
        platform: Some(re::Platform {
            properties: vec![re::platform::Property {
                name: "chrootRootDigest".into(),
                value: shell.to_string(),
            }],
        }),
        ..action(bench.put_message(&command("/bin/sh")), bench.root(&[]))
    };
    let cancel = CancellationToken::new();
    let finished = bench.run_action(with_chroot, cancel).await;
    assert_eq!(missing(&finished), [("input file bin/sh", gone)]);
}

#[tokio::test]
async fn a_program_that_cannot_be_read_is_a_failure_of_the_worker_and_is_named() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 1, Duration::from_secs(5)) else {
        return;
    };
    let why = async |digest| {
        let root = root(&bench, &[("program", Node::Program(digest))]);
        let finished = bench.run(command("./program"), root).await;
        let Ending::Infrastructure(why) = finished.ending else {
            panic!("{finished:?}")
        };
        why
    };
    let here = bench.put(b"cannot be opened");
    let path = bench.store.path(here, false).unwrap().unwrap();
    let executable = bench.store.path(here, true).unwrap();
    for path in [Some(path), executable].into_iter().flatten() {
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink(&path, &path).unwrap();
    }
    let text = why(here).await;
    assert!(
        text.contains("could not read input file \"program\""),
        "{text}"
    );

    let there = cas.put(blob(1, 3000).1);
    cas.faults(|faults| {
        faults
            .fail
            .insert("BatchReadBlobs", (Code::Unavailable, u32::MAX));
    });
    let text = why(there).await;
    assert!(
        text.contains("\"program\"") && text.contains("BatchReadBlobs"),
        "{text}"
    );
}

#[tokio::test]
async fn a_program_that_does_not_come_is_waited_for_as_long_as_it_may_run() {
    let cas = FaultyCas::start().await;
    let process = bench(&cas, 0, Duration::from_secs(60));
    let full = full(&cas, 0x7300_0300);
    cas.faults(|faults| {
        faults.hang.insert("BatchReadBlobs", u32::MAX);
    });
    for (n, bench) in [process, full].into_iter().flatten().enumerate() {
        let gone = blob(7, 3000).0;
        // Each its own: the second could wait for what was asked for on behalf of the first.
        let waits = |slow: usize| {
            let slow = cas.put(blob(slow, 3000).1);
            let nodes = [("program", Node::Program(slow)), ("z", Node::Program(gone))];
            action(
                bench.put_message(&command("./program")),
                root(&bench, &nodes),
            )
        };
        let limited = re::Action {
            timeout: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            ..waits(n)
        };
        let begun = Instant::now();
        let finished = bench.run_action(limited, CancellationToken::new()).await;
        assert!(
            matches!(finished.ending, Ending::TimedOut { .. }),
            "{finished:?}"
        );
        assert!(begun.elapsed() < Duration::from_secs(10));

        cas.state.seen.lock().calls.clear();
        let begun = Instant::now();
        let ended = cancelled_at(&cas, "BatchReadBlobs", &bench, waits(10 + n)).await;
        assert_eq!(ended, Ending::Cancelled);
        assert!(begun.elapsed() < Duration::from_secs(2));
        bench.settle().await;

        // The slot is as good as new.
        let finished = bench.run(sh("echo said"), bench.root(&[])).await;
        assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
        assert_eq!(&finished.result.unwrap().stdout_raw[..], b"said\n");
    }
}

/// How an action ends that is cancelled when this has been called for it, and ends soon.
async fn cancelled_at(
    cas: &FaultyCas,
    call: &'static str,
    bench: &Bench,
    action: re::Action,
) -> Ending {
    let cancel = CancellationToken::new();
    let mut running = std::pin::pin!(bench.start(action, cancel.clone()));
    let asked = soon(call, || cas.calls(call) > 0);
    tokio::select! {
        finished = &mut running => panic!("{finished:?}"),
        () = asked => {}
    }
    cancel.cancel();
    let finished = tokio::time::timeout(Duration::from_secs(5), running).await;
    finished.unwrap().ending
}

#[tokio::test]
async fn a_cancel_is_honoured_while_what_else_is_missing_is_looked_for() {
    let cas = FaultyCas::start().await;
    let Some(bench) = bench(&cas, 0, Duration::from_secs(60)) else {
        return;
    };
    cas.faults(|faults| {
        faults.hang.insert("FindMissingBlobs", u32::MAX);
    });
    let gone = Node::Program(blob(1, 3000).0);
    let root = root(&bench, &[("program", gone)]);
    let command = bench.put_message(&command("./program"));
    let action = action(command, root);
    let ended = cancelled_at(&cas, "FindMissingBlobs", &bench, action).await;
    assert_eq!(ended, Ending::Cancelled);
}
