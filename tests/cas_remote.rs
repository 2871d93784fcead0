//! Promise: whatever a remote CAS does wrong, its client gives the right bytes or a clear error, after a
//! bounded number of tries, and never hangs.
#![allow(missing_docs)]

#[path = "common/faulty_cas.rs"]
mod faulty_cas;

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

use boxwright::cas::{BlobSource, CasError, RemoteCas};
use boxwright::reapi::proto::re;
use boxwright::reapi::resource::Compressor::{Identity, Zstd};
use boxwright::reapi::{Digest, DigestFunction};
use bytes::Bytes;
use faulty_cas::{FaultyCas, SHA256, blob, pattern};
use prost::Message;
use tonic::Code;

const EVER: u32 = u32::MAX;

async fn read_batch(
    client: &RemoteCas,
    digests: &[Digest],
) -> Result<(HashMap<Digest, Bytes>, Vec<Digest>), CasError> {
    let mut came = HashMap::new();
    let missing = client
        .read_batch(digests, &mut |digest, bytes| {
            assert_eq!(
                SHA256.digest(&bytes),
                digest,
                "unverified bytes came through"
            );
            assert!(came.insert(digest, bytes).is_none(), "{digest} came twice");
        })
        .await?;
    Ok((came, missing))
}

async fn read_stream(client: &RemoteCas, digest: Digest) -> Result<Vec<u8>, CasError> {
    let mut whole = Vec::new();
    client
        .read_stream(digest, &mut |chunk| {
            whole.extend_from_slice(&chunk);
            assert!(
                whole.len() as u64 <= digest.size(),
                "too many bytes came through"
            );
            Ok(())
        })
        .await?;
    Ok(whole)
}

fn file(data: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(data).unwrap();
    file
}

fn blobs(server: &FaultyCas, count: usize, size: usize) -> Vec<Digest> {
    (0..count).map(|n| server.put(blob(n, size).1)).collect()
}

/// The code and the whole text of a remote error.
fn remote(error: CasError) -> (Code, String) {
    let text = error.to_string();
    match error {
        CasError::Remote { status, .. } => (status.code(), text),
        other => panic!("not a remote error: {other:?}"),
    }
}

#[tokio::test]
async fn batches_bring_every_blob_once_and_stay_within_what_is_announced() {
    let server = FaultyCas::start().await;
    server.state.capabilities.lock().max_batch_total_size_bytes = 100_000;
    let client = server.client();
    let mut digests = blobs(&server, 300, 4096);
    digests.extend(blobs(&server, 1, 99_800));
    // Larger than a batch by itself: the caller did not know the limit yet.
    digests.push(server.put(blob(7, 250_000).1));
    digests.push(Digest::empty(SHA256));
    digests.push(digests[0]);
    let gone = blob(1, 77).0;
    digests.push(gone);
    let (came, missing) = read_batch(&client, &digests).await.unwrap();
    assert_eq!(missing, [gone]);
    assert_eq!(came.len(), 303);
    assert!(server.calls("BatchReadBlobs") <= 17);
    assert_eq!(server.calls("GetCapabilities"), 1);
    assert_eq!(client.batch_limit(), 100_000 - 160);
}

#[tokio::test]
async fn uploads_are_packed_into_messages_that_every_server_takes() {
    let server = FaultyCas::start().await;
    let client = server.client();
    let given: Vec<_> = (0..3000).map(|n| blob(n, 3000)).collect();
    client.write_batch(given.clone()).await.unwrap();
    for (digest, data) in given {
        assert_eq!(server.get(digest).unwrap(), data);
    }
    let seen = server.state.seen.lock();
    assert!(seen.update_sizes.iter().all(|size| *size <= 4_193_280));
    assert!(seen.update_sizes.len() <= 6);
}

#[tokio::test]
async fn uploads_larger_than_the_announced_batch_are_streamed() {
    let server = FaultyCas::start().await;
    server.state.capabilities.lock().max_batch_total_size_bytes = 10_000;
    let (digest, data) = blob(1, 500_000);
    server
        .client()
        .write_batch(vec![(digest, data.clone())])
        .await
        .unwrap();
    assert_eq!(server.get(digest).unwrap(), data);
    assert_eq!(
        (server.calls("BatchUpdateBlobs"), server.calls("Write")),
        (0, 1)
    );
}

#[tokio::test]
async fn bytes_that_are_not_the_blob_are_not_sent() {
    let server = FaultyCas::start().await;
    let error = server
        .client()
        .write_batch(vec![(blob(1, 10).0, blob(1, 11).1)])
        .await
        .unwrap_err();
    assert!(matches!(error, CasError::Corrupt { .. }));
    assert_eq!(server.calls("BatchUpdateBlobs"), 0);
}

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
    let client = server.client_with(1, Duration::from_millis(200));
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
    let errors = [
        client.find_missing(&[digest]).await.unwrap_err(),
        read_batch(&client, &[digest]).await.unwrap_err(),
        client.write_batch(vec![(digest, data)]).await.unwrap_err(),
        read_stream(&client, digest).await.unwrap_err(),
        client
            .write_stream(other.0, file(&other.1))
            .await
            .unwrap_err(),
        client.get_tree(digest).await.unwrap_err(),
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
    let client = server.client_with(2, Duration::from_millis(500));
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
async fn blobs_that_fail_alone_are_asked_for_alone() {
    let server = FaultyCas::start().await;
    let digests = blobs(&server, 50, 100);
    server.faults(|f| {
        f.blob_fails.insert(digests[3], (Code::Unavailable, 2));
        f.blob_fails.insert(digests[4], (Code::NotFound, EVER));
    });
    let (came, missing) = read_batch(&server.client(), &digests).await.unwrap();
    assert_eq!((came.len(), missing), (49, vec![digests[4]]));
    let batches = server.state.seen.lock().batches.clone();
    assert_eq!(batches.len(), 3);
    assert_eq!(batches[1..], [vec![digests[3]], vec![digests[3]]]);
}

#[tokio::test]
async fn a_blob_that_fails_for_ever_is_named() {
    for (code, calls) in [(Code::Unavailable, 4), (Code::PermissionDenied, 1)] {
        let server = FaultyCas::start().await;
        let digests = blobs(&server, 5, 100);
        let upload = blob(9, 100);
        server.faults(|f| {
            f.blob_fails.insert(digests[3], (code, EVER));
            f.blob_fails.insert(upload.0, (code, EVER));
        });
        let client = server.client();
        let (got, text) = remote(read_batch(&client, &digests).await.unwrap_err());
        assert_eq!(got, code);
        assert!(text.contains(&digests[3].to_string()), "{text}");
        assert_eq!(server.calls("BatchReadBlobs"), calls);
        let (got, text) = remote(
            client
                .write_batch(vec![blob(1, 5), upload.clone()])
                .await
                .unwrap_err(),
        );
        assert_eq!(got, code);
        assert!(text.contains(&upload.0.to_string()), "{text}");
        assert_eq!(server.calls("BatchUpdateBlobs"), calls);
    }
}

#[tokio::test]
async fn an_upload_that_fails_alone_is_sent_alone() {
    let server = FaultyCas::start().await;
    let given: Vec<_> = (0..20).map(|n| blob(n, 1000)).collect();
    server.faults(|f| {
        f.blob_fails
            .insert(given[7].0, (Code::ResourceExhausted, 1));
        f.blob_fails.insert(given[8].0, (Code::AlreadyExists, 1));
    });
    server.client().write_batch(given.clone()).await.unwrap();
    assert_eq!(server.get(given[7].0).unwrap(), given[7].1);
    let sizes = server.state.seen.lock().update_sizes.clone();
    assert_eq!(sizes.len(), 2);
    assert!(sizes[1] < 1300);
}

#[tokio::test]
async fn wrong_bytes_get_one_more_chance_and_never_reach_the_caller() {
    let server = FaultyCas::start().await;
    let digests = blobs(&server, 20, 100);
    server.faults(|f| {
        f.wrong_bytes.insert(digests[5], 1);
    });
    let (came, _) = read_batch(&server.client(), &digests).await.unwrap();
    assert_eq!(came.len(), 20);
    server.faults(|f| {
        f.wrong_bytes.insert(digests[5], EVER);
    });
    match read_batch(&server.client(), &digests).await.unwrap_err() {
        CasError::Corrupt { expected, actual } => {
            assert_eq!(expected, digests[5]);
            assert_eq!(actual.size(), 100);
            assert_ne!(actual, expected);
        }
        other => panic!("{other}"),
    }
    assert_eq!(server.calls("BatchReadBlobs"), 4);
}

#[tokio::test]
async fn answers_that_leave_blobs_out_or_repeat_them_are_errors() {
    let server = FaultyCas::start().await;
    let digests = blobs(&server, 5, 100);
    let upload = blob(9, 100);
    let client = server.client();
    server.faults(|f| f.omit.extend([digests[2], upload.0]));
    for error in [
        read_batch(&client, &digests).await.unwrap_err(),
        client.write_batch(vec![upload.clone()]).await.unwrap_err(),
    ] {
        let (_, text) = remote(error);
        assert!(text.contains("leaves it out"), "{text}");
    }
    assert_eq!(server.calls("BatchReadBlobs"), 2);
    server.faults(|f| {
        f.omit.clear();
        f.twice.extend([digests[2], upload.0]);
    });
    for error in [
        read_batch(&client, &digests).await.unwrap_err(),
        client.write_batch(vec![upload]).await.unwrap_err(),
    ] {
        assert_eq!(remote(error).0, Code::DataLoss);
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_refused() {
    let server = FaultyCas::start().await;
    let digests = blobs(&server, 2, 100);
    server.faults(|f| f.ballast = 9 << 20);
    let (_, text) = remote(read_batch(&server.client(), &digests).await.unwrap_err());
    assert!(text.contains("too large"), "{text}");
    server.faults(|f| f.ballast = 200);
    assert!(matches!(
        read_batch(&server.client(), &digests).await.unwrap_err(),
        CasError::Corrupt { .. }
    ));
}

#[tokio::test]
async fn batches_travel_packed_where_that_is_announced() {
    let server = FaultyCas::start().await;
    server.announce_zstd();
    let digests = blobs(&server, 100, 20_000);
    let client = server.client();
    let (came, _) = read_batch(&client, &digests).await.unwrap();
    assert_eq!(came.len(), 100);
    let uploads: Vec<_> = (200..210)
        .map(|n| blob(n, 20_000))
        .chain([blob(1, 30)])
        .collect();
    client.write_batch(uploads.clone()).await.unwrap();
    for (digest, data) in uploads {
        assert_eq!(server.get(digest).unwrap(), data);
    }
    assert_eq!(server.state.seen.lock().packed_updates, 10);
}

#[tokio::test]
async fn packed_bombs_and_rubbish_are_refused() {
    let server = FaultyCas::start().await;
    server.announce_zstd();
    let digest = server.put(blob(1, 50_000).1);
    let client = server.client();
    server.faults(|f| f.bomb = true);
    for error in [
        read_batch(&client, &[digest]).await.unwrap_err(),
        read_stream(&client, digest).await.unwrap_err(),
    ] {
        let (code, text) = remote(error);
        assert_eq!(code, Code::DataLoss);
        assert!(text.contains("more than the 50000 bytes"), "{text}");
    }
    server.faults(|f| {
        f.bomb = false;
        f.damaged_zstd = true;
    });
    let (_, text) = remote(read_batch(&client, &[digest]).await.unwrap_err());
    assert!(text.contains("malformed"), "{text}");
    // A stream can be asked for unpacked.
    assert_eq!(
        read_stream(&client, digest).await.unwrap(),
        blob(1, 50_000).1
    );
}

#[tokio::test]
async fn a_broken_stream_is_resumed_where_it_ended() {
    for packed in [false, true] {
        let server = FaultyCas::start().await;
        if packed {
            server.announce_zstd();
        }
        let digest = server.put(pattern(0, 3_000_000));
        server.faults(|f| {
            f.read_breaks = [1_000_000, 500_000, 700_000, 0, 100_000, 0].into();
        });
        let whole = read_stream(&server.client(), digest).await.unwrap();
        assert_eq!(whole, pattern(0, 3_000_000));
        let reads = server.state.seen.lock().reads.clone();
        let offsets: Vec<i64> = reads.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets[0], 0);
        assert_eq!(offsets.len(), 7);
        assert!(offsets.is_sorted() && offsets[6] > 2_000_000, "{offsets:?}");
        let expected = if packed { Zstd } else { Identity };
        assert!(reads.iter().all(|(_, compressor)| *compressor == expected));
    }
}

#[tokio::test]
async fn a_stream_that_never_moves_is_given_up() {
    let server = FaultyCas::start().await;
    let digest = server.put(pattern(0, 1_000_000));
    server.faults(|f| f.read_breaks = [10; 1000].into());
    let (code, text) = remote(read_stream(&server.client(), digest).await.unwrap_err());
    assert_eq!(code, Code::Internal);
    assert!(text.contains(&digest.to_string()), "{text}");
    assert_eq!(server.calls("Read"), 4);
}

#[tokio::test]
async fn a_stream_that_goes_silent_is_resumed() {
    let server = FaultyCas::start().await;
    let digest = server.put(pattern(0, 1_000_000));
    server.faults(|f| f.read_stalls = [300_000, 200_000].into());
    let client = server.client_with(1, Duration::from_millis(300));
    assert_eq!(
        read_stream(&client, digest).await.unwrap(),
        pattern(0, 1_000_000)
    );
    assert_eq!(server.calls("Read"), 3);
}

#[tokio::test]
async fn a_stream_that_ends_early_is_resumed_and_given_up_in_the_end() {
    let server = FaultyCas::start().await;
    let digest = server.put(pattern(0, 1_000_000));
    server.faults(|f| f.read_ends = [300_000, 500_000].into());
    let client = server.client();
    assert_eq!(
        read_stream(&client, digest).await.unwrap(),
        pattern(0, 1_000_000)
    );
    server.faults(|f| f.read_ends = [[300_000].as_slice(), &[0; 100]].concat().into());
    let (_, text) = remote(read_stream(&client, digest).await.unwrap_err());
    assert!(text.contains("700000 bytes early"), "{text}");
    assert_eq!(server.calls("Read"), 3 + 4);
}

#[tokio::test]
async fn more_bytes_than_promised_end_a_stream_at_once() {
    for packed in [false, true] {
        let server = FaultyCas::start().await;
        if packed {
            server.announce_zstd();
        }
        let digest = server.put(pattern(0, 100_000));
        server.faults(|f| f.surplus = 1);
        let (_, text) = remote(read_stream(&server.client(), digest).await.unwrap_err());
        assert!(text.contains("more than the 100000 bytes"), "{text}");
        assert_eq!(server.calls("Read"), 1);
    }
}

#[tokio::test]
async fn a_stream_of_a_missing_blob_says_so() {
    for packed in [false, true] {
        let server = FaultyCas::start().await;
        if packed {
            server.announce_zstd();
        }
        let gone = blob(1, 10_000_000).0;
        match read_stream(&server.client(), gone).await.unwrap_err() {
            CasError::Missing(missing) => assert_eq!(missing, [gone]),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn the_sink_can_end_a_stream() {
    let server = FaultyCas::start().await;
    let digest = server.put(pattern(0, 1_000_000));
    let full = || CasError::Full {
        needed: 1,
        why: "test".into(),
    };
    let result = server
        .client()
        .read_stream(digest, &mut |_| Err(full()))
        .await;
    assert!(matches!(result, Err(CasError::Full { .. })));
    assert_eq!(server.calls("Read"), 1);
}

#[tokio::test]
async fn a_broken_upload_is_resumed_where_it_ended() {
    for packed in [false, true] {
        let server = FaultyCas::start().await;
        if packed {
            server.announce_zstd();
        }
        // Shrinks, but not to nothing.
        let data: Vec<u8> = (0..400_000u32)
            .flat_map(|n| {
                blake3::hash(&n.to_le_bytes()).as_bytes()[..3]
                    .iter()
                    .copied()
                    .chain([0; 3])
                    .collect::<Vec<u8>>()
            })
            .collect();
        let digest = SHA256.digest(&data);
        server.faults(|f| f.write_breaks = [1, 600_000, 1].into());
        server
            .client()
            .write_stream(digest, file(&data))
            .await
            .unwrap();
        assert_eq!(server.get(digest).unwrap(), data);
        let writes = server.state.seen.lock().writes.clone();
        assert_eq!(writes.len(), 4);
        assert!(writes[1].0 > 0 && writes[2].0 > writes[1].0, "{writes:?}");
        let expected = if packed { Zstd } else { Identity };
        assert!(writes.iter().all(|(_, compressor)| *compressor == expected));
    }
}

#[tokio::test]
async fn a_forgotten_upload_starts_over() {
    let server = FaultyCas::start().await;
    let data = pattern(0, 2_000_000);
    let digest = SHA256.digest(&data);
    server.faults(|f| {
        f.forget = true;
        f.write_breaks = [500_000, 1_000_000].into();
    });
    server
        .client()
        .write_stream(digest, file(&data))
        .await
        .unwrap();
    assert_eq!(server.get(digest).unwrap(), data);
    let offsets: Vec<i64> = server
        .state
        .seen
        .lock()
        .writes
        .iter()
        .map(|(o, _)| *o)
        .collect();
    assert_eq!(offsets, [0, 0, 0]);
    server.state.blobs.lock().clear();
    server.faults(|f| f.write_breaks = [500_000; 100].into());
    server
        .client()
        .write_stream(digest, file(&data))
        .await
        .unwrap_err();
    assert_eq!(server.calls("Write"), 3 + 4);
}

#[tokio::test]
async fn an_upload_that_somebody_else_finished_is_done() {
    let data = pattern(0, 5_000_000);
    let digest = SHA256.digest(&data);
    let server = FaultyCas::start().await;
    server.faults(|f| f.early = Some(5_000_000));
    server
        .client()
        .write_stream(digest, file(&data))
        .await
        .unwrap();
    server.faults(|f| {
        f.early = None;
        f.fail.insert("Write", (Code::AlreadyExists, 1));
    });
    server
        .client()
        .write_stream(digest, file(&data))
        .await
        .unwrap();
    assert_eq!(server.calls("Write"), 2);

    let packed = FaultyCas::start().await;
    packed.announce_zstd();
    packed.faults(|f| f.early = Some(-1));
    packed
        .client()
        .write_stream(digest, file(&data))
        .await
        .unwrap();
    assert_eq!(packed.state.seen.lock().writes[..], [(0, Zstd)]);
}

#[tokio::test]
async fn a_committed_size_that_cannot_be_is_an_error() {
    let data = pattern(0, 1_000_000);
    let digest = SHA256.digest(&data);
    for committed in [1_000_001, -1, i64::MIN, i64::MAX] {
        let server = FaultyCas::start().await;
        server.faults(|f| f.committed = Some(committed));
        let (code, text) = remote(
            server
                .client()
                .write_stream(digest, file(&data))
                .await
                .unwrap_err(),
        );
        assert_eq!(code, Code::DataLoss);
        assert!(text.contains(&committed.to_string()), "{text}");
        assert_eq!(server.calls("Write"), 1);
    }
    let server = FaultyCas::start().await;
    server.faults(|f| f.early = Some(0));
    remote(
        server
            .client()
            .write_stream(digest, file(&data))
            .await
            .unwrap_err(),
    );
    assert_eq!(server.calls("Write"), 4);
}

#[tokio::test]
async fn a_file_that_is_too_short_is_a_local_error() {
    let server = FaultyCas::start().await;
    let data = pattern(0, 1_000_000);
    let error = server
        .client()
        .write_stream(SHA256.digest(&data), file(&data[..900_000]))
        .await
        .unwrap_err();
    assert!(matches!(error, CasError::Disk { .. }), "{error}");
    assert_eq!(server.calls("Write"), 1);
}

#[tokio::test]
async fn empty_and_incompressible_blobs_are_uploaded() {
    let server = FaultyCas::start().await;
    server.announce_zstd();
    let noise: Vec<u8> = (0..20_000u32)
        .flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes())
        .collect();
    for data in [vec![], noise] {
        let digest = SHA256.digest(&data);
        server
            .client()
            .write_stream(digest, file(&data))
            .await
            .unwrap();
        assert_eq!(server.get(digest).unwrap(), data);
    }
    assert!(
        server
            .state
            .seen
            .lock()
            .writes
            .iter()
            .all(|(_, c)| *c == Identity)
    );
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
