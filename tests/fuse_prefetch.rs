//! What a command has read is fetched before it asks for it the next time, also by another worker process and with other inputs.

#[path = "common/action.rs"]
mod common;
#[path = "common/faulty_cas/mod.rs"]
mod faulty_cas;
#[path = "common/skipped.rs"]
mod skipped;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use boxwright::action::Ending;
use boxwright::reapi::Digest;
use boxwright::reapi::proto::re;
use common::{Bench, F, action, sh};
use faulty_cas::FaultyCas;
use prost::Message;
use tokio_util::sync::CancellationToken;

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

/// A worker that knows what the one in `before` has learnt; `watched` if it reports what is done with inputs.
fn bench(cas: &FaultyCas, before: Option<&Path>, watched: bool) -> Option<Bench> {
    let remote = cas.client_with(3, Duration::from_secs(20));
    Bench::fuse_after(Some(Arc::new(remote)), before, |settings| {
        settings.input_report = watched;
    })
}

/// Runs a command that reads the files one after the other; the id of its action.
async fn run(bench: &Bench, root: Digest) -> String {
    let last = FILES - 1;
    let script = format!("for n in $(seq -w 0 {last}); do cat f0$n; done | wc -l");
    let action = action(bench.put_message(&sh(&script)), root);
    let id = F.digest(&action.encode_to_vec()).hash_hex();
    let finished = bench.run_action(action, CancellationToken::new()).await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    let lines = format!("{}\n", FILES * 50);
    assert_eq!(&finished.result.unwrap().stdout_raw[..], lines.as_bytes());
    id
}

/// The groups in which files were fetched since the last time; each call said for which action it was.
fn groups(cas: &FaultyCas, action: &str) -> Vec<usize> {
    let mut seen = cas.state.seen.lock();
    let told = seen.metadata_of.remove("BatchReadBlobs").unwrap();
    for metadata in &told {
        assert_eq!(metadata.action_id, action, "{told:?}");
    }
    std::mem::take(&mut seen.batches)
        .iter()
        .map(Vec::len)
        .collect()
}

#[tokio::test]
async fn the_second_run_of_a_command_does_not_wait_for_each_file() {
    learn_and_use(false).await;
}

#[tokio::test]
async fn a_command_of_which_a_report_is_made_is_no_exception() {
    learn_and_use(true).await;
}

async fn learn_and_use(watched: bool) {
    let cas = FaultyCas::start().await;
    let Some(first) = bench(&cas, None, watched) else {
        return;
    };
    let (tree, idle) = root(&first, &cas, 1);
    let id = run(&first, tree).await;
    // It had to ask often: for the first by itself, and then for some more than it had read by then.
    let asked = groups(&cas, &id);
    assert!(
        (5..=15).contains(&asked.len()) && asked[0] == 1,
        "{asked:?}"
    );
    let unread: Vec<Digest> = {
        let seen = cas.state.seen.lock();
        idle.into_iter()
            .filter(|digest| !seen.sent.contains_key(digest))
            .collect()
    };
    // What it has learnt is written at the latest when it ends.
    let learnt = first.end();
    let learnt = learnt.path().join("input-profiles");

    let second = bench(&cas, Some(&learnt), watched).unwrap();
    // Each file is another one by now.
    let (tree, idle_too) = root(&second, &cas, 2);
    let id = run(&second, tree).await;
    assert_eq!(groups(&cas, &id), [FILES]);
    let seen = cas.state.seen.lock();
    let mut unread = unread.iter().chain(&idle_too);
    assert!(unread.all(|digest| !seen.sent.contains_key(digest)));
}
