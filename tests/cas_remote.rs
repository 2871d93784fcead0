//! Promise: whatever a remote CAS does wrong, its client gives the right answer or a clear error, after a
//! bounded number of tries, and never hangs.
#![allow(missing_docs)]

#[path = "common/faulty_cas/mod.rs"]
mod faulty_cas;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use boxwright::cas::{BlobSource, Cas, LocalStore, StoreConfig};
use boxwright::reapi::proto::re;
use boxwright::reapi::{Digest, DigestFunction};
use boxwright::tree::{Tree, TreeError, TreeLimits, TreeStore, fetch};
use bytes::Bytes;
use faulty_cas::ask::*;
use faulty_cas::pages::{Page, Pages};
use faulty_cas::{FaultyCas, SHA256, blob};
use prost::Message;
use tonic::{Code, Status};

const EVER: u32 = u32::MAX;

#[tokio::test]
async fn missing_blobs_are_asked_for_in_bounded_calls() {
    let server = FaultyCas::start().await;
    let here = blobs(&server, 10, 20);
    let mut asked: Vec<Digest> = (0..25_000)
        .map(|n| SHA256.digest(format!("{n}").as_bytes()))
        .collect();
    let expected = asked.clone();
    asked.extend(&here);
    asked.extend(expected[..5].to_vec());
    let missing = server.client().find_missing(&asked).await.unwrap();
    assert_eq!(missing, expected);
    assert_eq!(server.calls("FindMissingBlobs"), 3);
    assert!(server.client().find_missing(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn answers_about_blobs_that_nobody_asked_for_are_refused() {
    let server = FaultyCas::start().await;
    let asked = blobs(&server, 3, 50);
    let intruder = blob(9, 9).0;
    server.faults(|f| f.intruder = Some(intruder));
    let client = server.client();
    let errors = [
        client.find_missing(&asked).await.unwrap_err(),
        read_batch(&client, &asked).await.unwrap_err(),
        client.write_batch(vec![blob(1, 5)]).await.unwrap_err(),
    ];
    for error in errors {
        let (code, text) = remote(error);
        assert_eq!(code, Code::DataLoss);
        assert!(text.contains(&intruder.to_string()), "{text}");
    }
}

#[tokio::test]
async fn a_call_that_fails_for_a_while_succeeds() {
    let server = FaultyCas::start().await;
    let digests = blobs(&server, 5, 100);
    for code in [
        Code::Unavailable,
        Code::Aborted,
        Code::ResourceExhausted,
        Code::Internal,
        Code::Cancelled,
    ] {
        server.faults(|f| {
            for call in [
                "GetCapabilities",
                "BatchReadBlobs",
                "FindMissingBlobs",
                "Read",
            ] {
                f.fail.insert(call, (code, 3));
            }
        });
        let client = server.client();
        assert_eq!(
            read_batch(&client, &digests).await.unwrap().0.len(),
            5,
            "{code:?}"
        );
        assert!(client.find_missing(&digests).await.unwrap().is_empty());
        assert_eq!(
            read_stream(&client, digests[0]).await.unwrap(),
            blob(0, 100).1
        );
    }
}

#[tokio::test]
async fn a_call_that_fails_for_ever_is_given_up_and_named() {
    let server = FaultyCas::start().await;
    let (digest, data) = blob(1, 100);
    server.put(data.clone());
    server.faults(|f| {
        for call in [
            "FindMissingBlobs",
            "BatchReadBlobs",
            "BatchUpdateBlobs",
            "Read",
            "Write",
            "GetTree",
        ] {
            f.fail.insert(call, (Code::Unavailable, EVER));
        }
    });
    let client = server.client();
    let errors = [
        (
            "FindMissingBlobs",
            client.find_missing(&[digest]).await.unwrap_err(),
        ),
        (
            "BatchReadBlobs",
            read_batch(&client, &[digest]).await.unwrap_err(),
        ),
        (
            "BatchUpdateBlobs",
            client
                .write_batch(vec![(digest, data.clone())])
                .await
                .unwrap_err(),
        ),
        ("Read", read_stream(&client, digest).await.unwrap_err()),
        ("GetTree", client.get_tree(digest).await.unwrap_err()),
    ];
    for (call, error) in errors {
        let (code, text) = remote(error);
        assert_eq!(code, Code::Unavailable);
        assert!(
            text.contains(call) && text.contains(&server.address),
            "{text}"
        );
        assert_eq!(server.calls(call), 4, "{call}");
    }
    let (other, data) = blob(2, 100);
    let (_, text) = remote(client.write_stream(other, file(&data)).await.unwrap_err());
    assert!(text.contains("ByteStream.Write") && text.contains(&other.to_string()));
    assert_eq!(server.calls("Write"), 4);
}

#[tokio::test]
async fn a_server_s_final_word_is_not_questioned() {
    let server = FaultyCas::start().await;
    let digest = server.put(blob(1, 100).1);
    server.faults(|f| {
        f.fail
            .insert("FindMissingBlobs", (Code::PermissionDenied, EVER));
        f.fail.insert("Read", (Code::Unauthenticated, EVER));
    });
    let client = server.client();
    assert_eq!(
        remote(client.find_missing(&[digest]).await.unwrap_err()).0,
        Code::PermissionDenied
    );
    assert_eq!(
        remote(read_stream(&client, digest).await.unwrap_err()).0,
        Code::Unauthenticated
    );
    assert_eq!(
        (server.calls("FindMissingBlobs"), server.calls("Read")),
        (1, 1)
    );
}

#[tokio::test]
async fn the_server_s_retry_delay_is_kept() {
    let server = FaultyCas::start().await;
    let digest = server.put(blob(1, 100).1);
    server.faults(|f| {
        f.fail.insert("FindMissingBlobs", (Code::Unavailable, 2));
        f.retry_after = Some(Duration::from_millis(150));
    });
    let start = Instant::now();
    server.client().find_missing(&[digest]).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn calls_that_hang_end_by_their_deadline() {
    let server = FaultyCas::start().await;
    let (digest, data) = blob(1, 300_000);
    server.put(data.clone());
    let client = server.client_with(1, Duration::from_secs(1));
    client.find_missing(&[digest]).await.unwrap();
    server.faults(|f| {
        for call in [
            "FindMissingBlobs",
            "BatchReadBlobs",
            "BatchUpdateBlobs",
            "Read",
            "Write",
            "QueryWriteStatus",
            "GetTree",
        ] {
            f.hang.insert(call, EVER);
        }
    });
    let other = blob(2, 3_000_000);
    let asked = [digest];
    let (find, read, update, stream, write, tree) = tokio::join!(
        client.find_missing(&asked),
        read_batch(&client, &asked),
        client.write_batch(vec![(digest, data)]),
        read_stream(&client, digest),
        client.write_stream(other.0, file(&other.1)),
        client.get_tree(digest),
    );
    let errors = [
        find.unwrap_err(),
        read.unwrap_err(),
        update.unwrap_err(),
        stream.unwrap_err(),
        write.unwrap_err(),
        tree.unwrap_err(),
    ];
    for error in errors {
        let (code, text) = remote(error);
        assert!(
            matches!(code, Code::DeadlineExceeded | Code::Cancelled),
            "{text}"
        );
    }
    assert_eq!((server.calls("Read"), server.calls("Write")), (2, 2));
}

#[tokio::test]
async fn a_call_that_hangs_once_is_tried_again() {
    let server = FaultyCas::start().await;
    let (digest, data) = blob(1, 300_000);
    server.put(data.clone());
    server.faults(|f| {
        f.hang.insert("Read", 1);
        f.hang.insert("BatchReadBlobs", 1);
    });
    let client = server.client_with(2, Duration::from_secs(1));
    assert_eq!(read_stream(&client, digest).await.unwrap(), data);
    assert_eq!(
        read_batch(&client, &[digest]).await.unwrap().0[&digest],
        data
    );
}

#[tokio::test]
async fn a_remote_that_is_not_there_is_an_error() {
    let server = FaultyCas {
        address: "http://127.0.0.1:1".into(),
        ..FaultyCas::start().await
    };
    let client = server.client();
    let (code, text) = remote(client.find_missing(&[blob(1, 1).0]).await.unwrap_err());
    assert_eq!(code, Code::Unavailable);
    assert!(text.contains("127.0.0.1:1"), "{text}");
}

#[tokio::test]
async fn a_server_without_capabilities_gets_what_all_servers_take() {
    let server = FaultyCas::start_with(false).await;
    let client = server.client();
    let (digest, data) = blob(1, 100_000);
    client
        .write_batch(vec![(digest, data.clone())])
        .await
        .unwrap();
    assert_eq!(
        read_batch(&client, &[digest]).await.unwrap().0[&digest],
        data
    );
    assert_eq!(server.state.seen.lock().packed_updates, 0);
}

#[tokio::test]
async fn what_the_server_does_not_take_is_refused_before_it_is_sent() {
    let server = FaultyCas::start().await;
    server.state.capabilities.lock().max_cas_blob_size_bytes = 1000;
    let client = server.client();
    let (large, data) = blob(1, 1001);
    let (code, text) = remote(client.write_stream(large, file(&data)).await.unwrap_err());
    assert_eq!(code, Code::FailedPrecondition);
    assert!(text.contains("1000 bytes"), "{text}");
    let other = DigestFunction::Blake3.digest(b"x");
    let (_, text) = remote(client.find_missing(&[other]).await.unwrap_err());
    assert!(text.contains("blake3"), "{text}");
    assert_eq!(server.calls("Write") + server.calls("FindMissingBlobs"), 0);
}

#[tokio::test]
async fn capabilities_are_asked_for_again_after_a_broken_connection() {
    let server = FaultyCas::start().await;
    let digest = server.put(blob(1, 100).1);
    let client = server.client();
    client.find_missing(&[digest]).await.unwrap();
    client.find_missing(&[digest]).await.unwrap();
    assert_eq!(server.calls("GetCapabilities"), 1);
    server.faults(|f| {
        f.fail.insert("FindMissingBlobs", (Code::Unavailable, 1));
    });
    client.find_missing(&[digest]).await.unwrap();
    client.find_missing(&[digest]).await.unwrap();
    assert_eq!(server.calls("GetCapabilities"), 2);
    // While it cannot be asked, the last answer counts.
    server.faults(|f| {
        f.fail.insert("FindMissingBlobs", (Code::Unavailable, 1));
        f.fail.insert("GetCapabilities", (Code::Unavailable, EVER));
    });
    client.find_missing(&[digest]).await.unwrap();
    client.find_missing(&[digest]).await.unwrap();
    client.find_missing(&[digest]).await.unwrap();
    assert_eq!(server.calls("GetCapabilities"), 3);
}

#[tokio::test]
async fn every_call_says_who_makes_it_and_for_which_action() {
    let server = FaultyCas::start().await;
    let digest = server.put(blob(1, 100).1);
    let client = server.client();
    client.find_missing(&[digest]).await.unwrap();
    let tool = |m: &re::RequestMetadata| m.tool_details.as_ref().unwrap().tool_name.clone();
    let seen = server.state.seen.lock().metadata.take().unwrap();
    assert_eq!(
        (tool(&seen), seen.action_id),
        ("boxwright".to_owned(), String::new())
    );
    let client = client.with_metadata(re::RequestMetadata {
        action_id: "abc/3".into(),
        ..Default::default()
    });
    read_stream(&client, digest).await.unwrap();
    let seen = server.state.seen.lock().metadata.take().unwrap();
    assert_eq!(
        (tool(&seen), seen.action_id),
        ("boxwright".to_owned(), "abc/3".to_owned())
    );
    assert_eq!(server.calls("GetCapabilities"), 1);
}

#[tokio::test]
async fn a_tree_comes_in_one_call_and_is_resumed_by_pages() {
    let server = FaultyCas::start().await;
    let directories: Vec<(Digest, Bytes)> = (0..20)
        .map(|n| {
            let message = re::Directory {
                files: vec![re::FileNode {
                    name: format!("file {n}"),
                    digest: Some(blob(n, 10).0.to_proto()),
                    ..Default::default()
                }],
                ..Default::default()
            };
            let bytes = Bytes::from(message.encode_to_vec());
            (server.put(bytes.clone()), bytes)
        })
        .collect();
    server.faults(|f| f.tree_breaks = [5, 3, 0].into());
    let client = server.client();
    let mut came = client.get_tree(directories[0].0).await.unwrap().unwrap();
    came.sort();
    let mut expected = directories.clone();
    expected.sort();
    assert_eq!(came, expected);
    assert_eq!(server.calls("GetTree"), 4);

    // What came before the last failure is given.
    server.faults(|f| f.tree_breaks = [5, 0, 0, 0, 0, 0].into());
    let part = client.get_tree(directories[0].0).await.unwrap().unwrap();
    assert_eq!(part.len(), 5);
    server.faults(|f| f.tree_breaks.clear());

    server.faults(|f| {
        f.fail.insert("GetTree", (Code::Unimplemented, 1));
    });
    assert!(client.get_tree(directories[0].0).await.unwrap().is_none());
    server.faults(|f| {
        f.fail.insert("GetTree", (Code::NotFound, 1));
    });
    assert!(
        client
            .get_tree(directories[0].0)
            .await
            .unwrap()
            .unwrap()
            .is_empty()
    );
}

/// A tree of a root and two directories below it, all of them on the server.
fn small_tree(server: &FaultyCas) -> Digest {
    let below: Vec<re::DirectoryNode> = ["a", "b"]
        .into_iter()
        .map(|name| {
            let message = re::Directory {
                files: vec![re::FileNode {
                    name: format!("file in {name}"),
                    digest: Some(blob(1, 10).0.to_proto()),
                    ..Default::default()
                }],
                ..Default::default()
            };
            re::DirectoryNode {
                name: name.to_owned(),
                digest: Some(server.put(message.encode_to_vec().into()).to_proto()),
            }
        })
        .collect();
    let root = re::Directory {
        directories: below,
        ..Default::default()
    };
    server.put(root.encode_to_vec().into())
}

async fn whole_tree(server: &FaultyCas, root: Digest) -> Result<Arc<Tree>, TreeError> {
    let dir = tempfile::tempdir().unwrap();
    let local = LocalStore::open(StoreConfig {
        root: dir.path().join("cas"),
        high_water: 1 << 30,
        low_water: 1 << 29,
        free_floor: 0,
    })
    .unwrap();
    let cas = Cas::new(local, Some(Arc::new(server.client())));
    fetch(&cas, &TreeStore::new(1 << 20), root, TreeLimits::default()).await
}

fn page(directories: Vec<Bytes>) -> Page {
    Page {
        directories,
        next_page_token: "more".into(),
    }
}

#[tokio::test]
async fn whatever_get_tree_answers_the_tree_is_right() {
    let server = FaultyCas::start().await;
    let root = small_tree(&server);
    let stranger = re::Directory {
        symlinks: vec![re::SymlinkNode {
            name: "a".into(),
            target: "/etc/passwd".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let stranger = Bytes::from(stranger.encode_to_vec());
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let hostile: [(&str, Pages); 7] = [
        ("nothing", Arc::new(|_| None)),
        (
            "empty pages",
            Arc::new(|n| (n < 10_000).then(|| Ok(page(vec![])))),
        ),
        (
            "no messages at all",
            Arc::new(|n| {
                let rubbish = (0..100u8).map(|b| vec![b ^ 0xff; 1000 + n].into());
                (n < 5).then(|| Ok(page(rubbish.collect())))
            }),
        ),
        (
            "somebody else's directories",
            Arc::new(move |n| (n < 3).then(|| Ok(page(vec![stranger.clone(); 100])))),
        ),
        (
            "a page beyond every message size",
            Arc::new(|n| (n < 1).then(|| Ok(page(vec![vec![0; 6 << 20].into()])))),
        ),
        (
            "pages without end",
            Arc::new(move |n| {
                count.fetch_add(64 << 10, Ordering::SeqCst);
                let mut rubbish = vec![0; 64 << 10];
                rubbish[..8].copy_from_slice(&n.to_le_bytes());
                Some(Ok(page(vec![rubbish.into()])))
            }),
        ),
        (
            "a break after the same page each time",
            Arc::new(|n| match n {
                0 => Some(Ok(page(vec![b"rubbish"[..].into()]))),
                _ => Some(Err(Status::unavailable("again"))),
            }),
        ),
    ];
    for (what, pages) in hostile {
        *server.state.pages.lock() = Some(pages);
        let tree = whole_tree(&server, root).await;
        let tree = tree.unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut paths: Vec<String> = tree
            .paths_of(&[blob(1, 10).0])
            .into_values()
            .map(|path| path.to_string())
            .collect();
        paths.sort();
        assert_eq!(
            (tree.nodes, paths),
            (4, vec!["a/file in a".to_owned()]),
            "{what}"
        );
    }
    // What is cut off at 32 MiB may be some MiB more on its way.
    assert!(sent.load(Ordering::SeqCst) < 48 << 20);
}

#[tokio::test]
async fn a_bad_directory_of_a_page_is_refused_by_name() {
    let server = FaultyCas::start().await;
    let bad = re::Directory {
        files: vec![re::FileNode {
            name: "..".into(),
            digest: Some(blob(1, 10).0.to_proto()),
            ..Default::default()
        }],
        ..Default::default()
    };
    let bad = Bytes::from(bad.encode_to_vec());
    let root = re::Directory {
        directories: vec![re::DirectoryNode {
            name: "sub".into(),
            digest: Some(SHA256.digest(&bad).to_proto()),
        }],
        ..Default::default()
    };
    let root = server.put(root.encode_to_vec().into());
    *server.state.pages.lock() = Some(Arc::new(move |n| {
        (n < 1).then(|| Ok(page(vec![bad.clone()])))
    }));
    let error = whole_tree(&server, root).await.unwrap_err().to_string();
    assert!(error.contains("\"..\""), "{error}");
}
