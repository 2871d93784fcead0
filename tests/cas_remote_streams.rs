//! Promise: large blobs are streamed, and resumed where a broken stream ended, in both directions, packed or
//! not.
#![allow(missing_docs)]

#[path = "common/faulty_cas/mod.rs"]
mod faulty_cas;

use std::time::Duration;

use boxwright::cas::{BlobSource, CasError};
use boxwright::reapi::resource::Compressor::{Identity, Zstd};
use faulty_cas::ask::*;
use faulty_cas::{FaultyCas, SHA256, blob, pattern};
use tonic::Code;

const EVER: u32 = u32::MAX;

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
    let client = server.client_with(1, Duration::from_secs(1));
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
        // What was taken of the broken tries is not sent again, but for what a frame's end hides.
        let sent: usize = server.state.seen.lock().write_bytes.iter().sum();
        let whole = match packed {
            true => zstd::bulk::compress(&data, 1).unwrap().len(),
            false => data.len(),
        };
        assert!(sent < whole + (1 << 20), "{sent} of {whole}");
    }
}

/// REAPI counts the bytes of the blob; not every server does.
#[tokio::test]
async fn a_packed_upload_that_is_counted_otherwise_is_sent_plain() {
    let server = FaultyCas::start().await;
    server.announce_zstd();
    let data: Vec<u8> = (0..400_000u32)
        .flat_map(|n| {
            let noise = blake3::hash(&n.to_le_bytes());
            let noise = noise.as_bytes();
            [noise[0], noise[1], noise[2], 0, 0, 0]
        })
        .collect();
    let digest = SHA256.digest(&data);
    server.faults(|f| {
        f.counts_packed = true;
        f.write_breaks = [1].into();
    });
    server
        .client()
        .write_stream(digest, file(&data))
        .await
        .unwrap();
    assert_eq!(server.get(digest).unwrap(), data);
    let writes = server.state.seen.lock().writes.clone();
    assert_eq!(writes.len(), 3, "{writes:?}");
    assert!(writes[1].0 > 0 && writes[1].1 == Zstd, "{writes:?}");
    assert_eq!(writes[2], (0, Identity));
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
async fn an_upload_that_was_given_up_does_not_block_its_connection() {
    let server = FaultyCas::start().await;
    let digest = server.put(pattern(0, 1_000_000));
    let client = server.client_with(0, Duration::from_secs(1));
    server.faults(|f| {
        f.hang.insert("Write", EVER);
    });
    for n in 0..3 {
        let (upload, data) = blob(n, 8_000_000);
        client.write_stream(upload, file(&data)).await.unwrap_err();
    }
    // Its request needs room on the connection, which the server has not taken from the dead uploads.
    let whole = read_stream(&client, digest).await.unwrap();
    assert_eq!(whole, pattern(0, 1_000_000));
}
