//! An action between its store and a remote CAS: what it asks for says on whose behalf, what its result needs is there.

#[path = "common/action.rs"]
mod common;
#[path = "common/faulty_cas/mod.rs"]
mod faulty_cas;
#[path = "common/skipped.rs"]
mod skipped;

use std::sync::Arc;

use boxwright::action::Ending;
use boxwright::reapi::any::unpack;
use boxwright::reapi::proto::buildbox::ExecutionStatistics;
use boxwright::reapi::proto::re;
use boxwright::scheduler::Lease;
use bytes::Bytes;
use common::{Bench, F, action, lease, sh};
use faulty_cas::FaultyCas;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::Code;

fn message(server: &FaultyCas, message: &impl Message) -> boxwright::reapi::Digest {
    server.put(Bytes::from(message.encode_to_vec()))
}

fn node(name: &str, digest: boxwright::reapi::Digest) -> re::FileNode {
    re::FileNode {
        name: name.into(),
        digest: Some(digest.to_proto()),
        ..Default::default()
    }
}

/// A command over a root with a small and a large file in two new directories, which leaves small and large outputs.
fn work(server: &FaultyCas) -> re::Action {
    let below = |name: &str, file| re::DirectoryNode {
        name: name.into(),
        digest: Some(
            message(
                server,
                &re::Directory {
                    files: vec![file],
                    ..Default::default()
                },
            )
            .to_proto(),
        ),
    };
    let small = server.put(Bytes::from_static(b"small"));
    let large = server.put(Bytes::from(vec![7; 6_000_000]));
    let root = message(
        server,
        &re::Directory {
            directories: vec![
                below("a", node("small", small)),
                below("b", node("large", large)),
            ],
            ..Default::default()
        },
    );
    let command = message(
        server,
        &re::Command {
            output_paths: ["out", "copy", "one", "again", "none"]
                .map(str::to_owned)
                .to_vec(),
            ..sh(
                "mkdir out; for n in $(seq 300); do echo $n > out/$n; done; \
                 head -c 7000000 b/large > copy; cat a/small b/large > copy; echo 1 > one; echo 1 > again; : > none",
            )
        },
    );
    action(command, root)
}

#[tokio::test]
async fn every_call_for_an_action_names_it_and_who_asked() {
    let server = FaultyCas::start().await;
    let action = work(&server);
    let bench = Bench::with_remote(Some(Arc::new(server.client())), |_| {});
    let lease = Lease {
        origin: Some(re::RequestMetadata {
            tool_invocation_id: "the build".into(),
            action_mnemonic: "Genrule".into(),
            tool_details: Some(re::ToolDetails {
                tool_name: "bazel".into(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..lease(&action)
    };
    let cancel = CancellationToken::new();
    let finished = bench.runner.run(&lease, 0, &cancel, &|_| {}).await;
    bench.runner.settle().await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    let id = F.digest(&action.encode_to_vec()).hash_hex();
    let seen = server.state.seen.lock();
    for call in [
        "GetTree",
        "BatchReadBlobs",
        "Read",
        "FindMissingBlobs",
        "BatchUpdateBlobs",
        "Write",
    ] {
        let told = seen
            .metadata_of
            .get(call)
            .unwrap_or_else(|| panic!("no {call}"));
        for metadata in told {
            assert_eq!(metadata.action_id, id, "{call}");
            assert_eq!(metadata.tool_invocation_id, "the build", "{call}");
            assert_eq!(metadata.action_mnemonic, "Genrule", "{call}");
            let tool = metadata.tool_details.as_ref().unwrap();
            assert_eq!(tool.tool_name, "boxwright", "{call}");
        }
    }
}

#[tokio::test]
async fn what_a_command_used_is_in_a_blob_too_where_buildgrid_looks_for_it() {
    let server = FaultyCas::start().await;
    let bench = Bench::with_remote(Some(Arc::new(server.client())), |_| {});
    let finished = bench.run(sh("true"), bench.root(&[])).await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    let metadata = finished.result.unwrap().execution_metadata.unwrap();
    let messages = &metadata.auxiliary_metadata;
    let named: Vec<re::Digest> = { messages.iter() }
        .filter_map(|any| unpack(any).map(Result::unwrap))
        .collect();
    let [named] = &named[..] else {
        panic!("{messages:?}")
    };
    let digest = boxwright::reapi::Digest::from_proto(F, Some(named)).unwrap();
    let blob = server.get(digest).expect("the remote has it");
    let inner = prost_types::Any::decode(blob).unwrap();
    let by_blob: ExecutionStatistics = unpack(&inner).unwrap().unwrap();
    let direct: Vec<ExecutionStatistics> = { messages.iter() }
        .filter_map(|any| unpack(any).map(Result::unwrap))
        .collect();
    assert_eq!([by_blob], direct[..]);
    assert!(by_blob.command_rusage.unwrap().maxrss > 0);
    // It costs one call, and no file.
    let calls = ["FindMissingBlobs", "BatchUpdateBlobs"].map(|name| server.calls(name));
    assert_eq!(calls, [0, 1]);
    assert!(!bench.store.contains(digest));
}

/// A command with an output of so many bytes.
fn zeros(size: usize) -> re::Command {
    re::Command {
        output_paths: vec!["out".into()],
        ..sh(&format!("head -c {size} /dev/zero > out"))
    }
}

#[tokio::test]
async fn an_upload_that_is_refused_for_good_is_no_failure_of_the_worker() {
    let server = FaultyCas::start().await;
    let bench = Bench::with_remote(Some(Arc::new(server.client())), |_| {});
    let run = async |size: usize| bench.run(zeros(size), bench.root(&[])).await.ending;
    let fails = |code| {
        server.faults(|faults| {
            faults.fail.insert("BatchUpdateBlobs", (code, u32::MAX));
            faults.fail.insert("Write", (code, u32::MAX));
        });
    };
    for (size, code) in [
        (5_000, Code::InvalidArgument),
        (6_000_000, Code::OutOfRange),
        (5_001, Code::FailedPrecondition),
    ] {
        fails(code);
        let ending = run(size).await;
        let Ending::Refused(why) = &ending else {
            panic!("{ending:?}")
        };
        assert!(
            why.contains("as the test wants it") && why.contains(&server.address),
            "{why}"
        );
    }
    // That is said of the worker, or passes.
    for (size, code) in [
        (5_002, Code::PermissionDenied),
        (5_003, Code::Unauthenticated),
        (6_000_001, Code::Internal),
    ] {
        fails(code);
        let ending = run(size).await;
        assert!(matches!(ending, Ending::Infrastructure(_)), "{ending:?}");
    }
}

#[tokio::test]
async fn an_output_larger_than_the_remote_takes_is_refused_with_its_bound() {
    let server = FaultyCas::start().await;
    server.state.capabilities.lock().max_cas_blob_size_bytes = 4000;
    let bench = Bench::with_remote(Some(Arc::new(server.client())), |_| {});
    for size in [5_000, 6_000_000] {
        let finished = bench.run(zeros(size), bench.root(&[])).await;
        let Ending::Refused(why) = &finished.ending else {
            panic!("{finished:?}")
        };
        assert!(why.contains("4000 bytes"), "{why}");
        assert!(!finished.cacheable && finished.result.is_none());
    }
}

/// An action that reads a file which is said to be larger than the store of the bench.
fn too_large(server: &FaultyCas) -> re::Action {
    let digest = re::Digest {
        hash: F.digest(b"never read").hash_hex(),
        size_bytes: 2 << 30,
    };
    let large = boxwright::reapi::Digest::from_proto(F, Some(&digest)).unwrap();
    let content = faulty_cas::Content::Pattern(2 << 30);
    server.state.blobs.lock().insert(large, content);
    let root = re::Directory {
        files: vec![node("large", large)],
        ..Default::default()
    };
    action(
        message(server, &sh("cat large; true")),
        message(server, &root),
    )
}

#[tokio::test]
async fn inputs_that_do_not_fit_into_the_store_are_refused_with_its_bound() {
    let server = FaultyCas::start().await;
    let remote = || Some(Arc::new(server.client()) as Arc<dyn boxwright::cas::BlobSource>);
    let benches = [
        Some(Bench::with_remote(remote(), |_| {})),
        Bench::fuse(remote(), |_| {}),
    ];
    for bench in benches.into_iter().flatten() {
        let kept = bench.put(b"kept");
        let finished = bench
            .run_action(too_large(&server), CancellationToken::new())
            .await;
        let Ending::Refused(why) = &finished.ending else {
            panic!("{finished:?}")
        };
        for word in ["2.0GiB", "cas-quota-high", "max-input-bytes"] {
            assert!(why.contains(word), "{why}");
        }
        assert!(bench.store.contains(kept), "nothing is evicted for it");
    }
    assert_eq!(server.calls("Read"), 0);
}

#[tokio::test]
async fn every_blob_of_a_result_is_at_the_remote() {
    let server = FaultyCas::start().await;
    let action = work(&server);
    let bench = Bench::with_remote(Some(Arc::new(server.client())), |_| {});
    let finished = bench.run_action(action, CancellationToken::new()).await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    let result = finished.result.unwrap();
    let there = |digest: Option<&re::Digest>| {
        let digest = boxwright::reapi::Digest::from_proto(F, digest).unwrap();
        match digest.is_empty() {
            true => Bytes::new(),
            false => server.get(digest).expect("the remote has it"),
        }
    };
    let file = |path: &str| {
        let file = result.output_files.iter().find(|f| f.path == path).unwrap();
        there(file.digest.as_ref())
    };
    assert!(file("copy") == [&b"small"[..], &[7; 6_000_000]].concat());
    assert_eq!(
        (&file("one")[..], &file("again")[..]),
        (&b"1\n"[..], &b"1\n"[..])
    );
    assert_eq!(file("none"), "");
    let tree = there(result.output_directories[0].tree_digest.as_ref());
    let tree = re::Tree::decode(tree).unwrap();
    let files = tree.root.unwrap().files;
    assert_eq!(files.len(), 300);
    for file in files {
        assert_eq!(there(file.digest.as_ref()), format!("{}\n", file.name));
    }
    assert_eq!(server.calls("FindMissingBlobs"), 1);
    assert_eq!(server.calls("BatchUpdateBlobs"), 1);
}
