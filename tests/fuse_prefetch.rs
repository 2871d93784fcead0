//! What a command has read is fetched before it asks for it the next time, also by another worker process and with other inputs.

#[path = "common/action.rs"]
mod common;
#[path = "common/faulty_cas/mod.rs"]
mod faulty_cas;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxwright::action::Ending;
use boxwright::reapi::Digest;
use boxwright::reapi::proto::re;
use common::{Bench, sh};
use faulty_cas::FaultyCas;

const FILES: usize = 60;
/// Files of the tree that nobody reads.
const IDLE: usize = 40;

/// A tree of which only the CAS has the files; `generation` is in all of them.
fn root(bench: &Bench, cas: &FaultyCas, generation: u32) -> (Digest, Vec<Digest>) {
    let content = |n: usize| format!("{generation} {n}\n").repeat(50).into_bytes();
    let files: Vec<re::FileNode> = (0..FILES + IDLE)
        .map(|n| re::FileNode {
            name: format!("f{n:03}"),
            digest: Some(cas.put(content(n).into()).to_proto()),
            ..Default::default()
        })
        .collect();
    let idle = { files[FILES..].iter() }
        .map(|file| Digest::from_proto(common::F, file.digest.as_ref()).unwrap())
        .collect();
    let directory = re::Directory {
        files,
        ..Default::default()
    };
    (bench.put_message(&directory), idle)
}

/// A worker that knows what the one in `before` has learnt.
fn bench(cas: &FaultyCas, before: Option<&Path>) -> Option<Bench> {
    let remote = cas.client_with(3, Duration::from_secs(20));
    Bench::fuse_after(Some(Arc::new(remote)), before, |_| {})
}

async fn run(bench: &Bench, root: Digest) -> Duration {
    let last = FILES - 1;
    let script = format!("for n in $(seq -w 0 {last}); do cat f0$n; done | wc -l");
    let begun = Instant::now();
    let finished = bench.run(sh(&script), root).await;
    let took = begun.elapsed();
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    let lines = format!("{}\n", FILES * 50);
    assert_eq!(&finished.result.unwrap().stdout_raw[..], lines.as_bytes());
    took
}

#[tokio::test]
async fn the_second_run_of_a_command_does_not_wait_for_each_file() {
    let cas = FaultyCas::start().await;
    cas.faults(|faults| faults.latency = Duration::from_millis(20));
    let Some(first) = bench(&cas, None) else {
        return;
    };
    let cold = {
        let (root, idle) = root(&first, &cas, 1);
        let cold = run(&first, root).await;
        let seen = cas.state.seen.lock();
        assert!(idle.iter().all(|digest| !seen.sent.contains_key(digest)));
        cold
    };
    assert!(cold > Duration::from_millis(20) * FILES as u32, "{cold:?}");
    let learnt = first.dir.path().join("learnt");
    std::fs::create_dir(&learnt).unwrap();
    let from = first.dir.path().join("input-profiles");
    // What it has learnt is written at the latest when it ends.
    let dir = first.end();
    std::fs::copy(from, learnt.join("input-profiles")).unwrap();

    let second = bench(&cas, Some(&learnt.join("input-profiles"))).unwrap();
    // Each file is another one by now.
    let (root, idle) = root(&second, &cas, 2);
    let warned = run(&second, root).await;
    assert!(warned * 3 < cold, "{warned:?} after {cold:?}");
    let seen = cas.state.seen.lock();
    assert!(idle.iter().all(|digest| !seen.sent.contains_key(digest)));
    drop(dir);
}
