//! Promise: small blobs travel in few messages that every server takes, each verified; what fails alone is
//! tried again alone; what the server makes up, repeats or leaves out is an error.
#![allow(missing_docs)]

#[path = "common/faulty_cas/mod.rs"]
mod faulty_cas;

use boxwright::cas::{BlobSource, CasError};
use boxwright::reapi::Digest;
use faulty_cas::ask::*;
use faulty_cas::{FaultyCas, SHA256, blob};
use tonic::Code;

const EVER: u32 = u32::MAX;

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
async fn an_answer_of_empty_entries_is_refused_before_it_is_decoded() {
    let server = FaultyCas::start().await;
    server.faults(|f| f.empty_entries = 1 << 19);
    let written = server.client().write_batch(vec![blob(1, 5)]).await;
    let (_, text) = remote(written.unwrap_err());
    assert!(text.contains("more than 524288 entries"), "{text}");
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
