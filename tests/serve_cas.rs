//! The server keeps blobs and results: what it accepted it gives back, what is wrong it refuses with the field's name, and
//! no client makes it take more memory or time than it announced.

mod serve_support;

use std::time::Duration;

use boxwright::reapi::proto::bytestream as bs;
use boxwright::reapi::proto::re;
use boxwright::reapi::proto::re::compressor::Value as Compressor;
use boxwright::reapi::proto::re::content_addressable_storage_client::ContentAddressableStorageClient;
use boxwright::reapi::{Digest, DigestFunction};
use boxwright::serve::MAX_BATCH;
use prost::Message;
use serve_support::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

#[tokio::test]
async fn capabilities_are_what_old_and_new_clients_accept() {
    let server = standalone().await;
    for instance_name in ["", "main", "remote-execution/x"] {
        let told = server
            .capabilities()
            .get_capabilities(re::GetCapabilitiesRequest {
                instance_name: instance_name.into(),
            })
            .await
            .unwrap()
            .into_inner();
        let cache = told.cache_capabilities.unwrap();
        assert_eq!(cache.digest_functions, [1, 9]);
        assert!(
            cache
                .action_cache_update_capabilities
                .unwrap()
                .update_enabled
        );
        assert_eq!(cache.max_batch_total_size_bytes as u64, MAX_BATCH);
        assert_eq!(cache.supported_compressors, [Compressor::Zstd as i32]);
        assert_eq!(told.low_api_version.unwrap().minor, 0);
        assert_eq!(told.high_api_version.unwrap().major, 2);
        assert!(told.deprecated_api_version.is_none());
        let execution = told.execution_capabilities.unwrap();
        assert!(execution.exec_enabled);
        assert_eq!(execution.supported_node_properties, ["mtime", "unix_mode"]);
    }
}

#[tokio::test]
async fn batches_keep_and_give_back_blobs_of_both_functions() {
    let server = standalone().await;
    for function in DigestFunction::ALL {
        let digest_function = function.to_proto() as i32;
        let plain = b"plain".to_vec();
        let long = vec![7; 100_000];
        let digests: Vec<_> = [&plain, &long]
            .map(|data| function.digest(data).to_proto())
            .into();
        let ask = re::FindMissingBlobsRequest {
            blob_digests: digests.clone(),
            digest_function,
            ..Default::default()
        };
        let missing = server.cas().find_missing_blobs(ask.clone()).await.unwrap();
        assert_eq!(missing.into_inner().missing_blob_digests, digests);
        let update = re::BatchUpdateBlobsRequest {
            requests: vec![
                re::batch_update_blobs_request::Request {
                    digest: Some(digests[0].clone()),
                    data: plain.clone().into(),
                    compressor: Compressor::Identity as i32,
                },
                re::batch_update_blobs_request::Request {
                    digest: Some(digests[1].clone()),
                    data: zstd::bulk::compress(&long, 3).unwrap().into(),
                    compressor: Compressor::Zstd as i32,
                },
            ],
            digest_function,
            ..Default::default()
        };
        let kept = server.cas().batch_update_blobs(update).await.unwrap();
        for response in kept.into_inner().responses {
            assert_eq!(response.status.unwrap().code, 0);
        }
        let missing = server.cas().find_missing_blobs(ask).await.unwrap();
        assert!(missing.into_inner().missing_blob_digests.is_empty());
        let read = server
            .cas()
            .batch_read_blobs(re::BatchReadBlobsRequest {
                digests,
                acceptable_compressors: vec![Compressor::Zstd as i32],
                digest_function,
                ..Default::default()
            })
            .await
            .unwrap()
            .into_inner()
            .responses;
        assert_eq!(read[0].data, plain);
        assert_eq!(read[1].compressor, Compressor::Zstd as i32);
        assert!(read[1].data.len() < 10_000);
        assert_eq!(
            zstd::bulk::decompress(&read[1].data, 100_000).unwrap(),
            long
        );
    }
}

#[tokio::test]
async fn each_blob_of_a_batch_has_its_own_status() {
    let server = standalone().await;
    let request = |digest: Digest, data: &[u8], compressor: Compressor| {
        re::batch_update_blobs_request::Request {
            digest: Some(digest.to_proto()),
            data: data.to_vec().into(),
            compressor: compressor as i32,
        }
    };
    let bomb = zstd::bulk::compress(&vec![0; 32 << 20], 3).unwrap();
    let liar = Digest::new(DigestFunction::Sha256, [1; 32], 4);
    let responses = server
        .cas()
        .batch_update_blobs(re::BatchUpdateBlobsRequest {
            requests: vec![
                request(sha(b"good"), b"good", Compressor::Identity),
                request(liar, b"evil", Compressor::Identity),
                request(sha(b"good"), b"longer than that", Compressor::Identity),
                request(sha(b"good"), &bomb, Compressor::Zstd),
                request(sha(b"good"), b"no zstd", Compressor::Zstd),
            ],
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner()
        .responses;
    let codes: Vec<_> = responses
        .iter()
        .map(|r| r.status.as_ref().unwrap().code)
        .collect();
    assert_eq!(codes, [0, 3, 3, 3, 3]);
    let status = responses[3].status.as_ref().unwrap();
    assert!(
        status.message.contains("more than the 4 bytes"),
        "{status:?}"
    );
    let missing = server.store.missing(&[sha(b"good"), liar]);
    assert_eq!(missing, [liar]);

    let read = server
        .cas()
        .batch_read_blobs(re::BatchReadBlobsRequest {
            digests: vec![
                liar.to_proto(),
                sha(b"good").to_proto(),
                sha(b"").to_proto(),
            ],
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner()
        .responses;
    let codes: Vec<_> = read
        .iter()
        .map(|r| r.status.as_ref().unwrap().code)
        .collect();
    assert_eq!(codes, [Code::NotFound as i32, 0, 0]);
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_refused_and_one_that_just_fits_is_not() {
    let server = standalone().await;
    let update = |data: Vec<u8>| re::BatchUpdateBlobsRequest {
        requests: vec![re::batch_update_blobs_request::Request {
            digest: Some(sha(&data).to_proto()),
            data: data.into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let fits = noise(MAX_BATCH as usize);
    let digest = sha(&fits).to_proto();
    server.cas().batch_update_blobs(update(fits)).await.unwrap();
    let over = noise(MAX_BATCH as usize + 1);
    let error = server
        .cas()
        .batch_update_blobs(update(over))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("ByteStream"), "{error}");
    let mut read = re::BatchReadBlobsRequest {
        digests: vec![digest, sha(b"x").to_proto()],
        ..Default::default()
    };
    let error = server
        .cas()
        .batch_read_blobs(read.clone())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    read.digests.pop();
    server.cas().batch_read_blobs(read).await.unwrap();
}

#[tokio::test]
async fn errors_name_the_offending_field() {
    let server = standalone().await;
    let bad = re::Digest {
        hash: "nonsense".into(),
        size_bytes: 1,
    };
    let good = sha(b"x").to_proto();
    let find = |digests: &[&re::Digest], function, instance: &str| re::FindMissingBlobsRequest {
        blob_digests: digests.iter().map(|d| (*d).clone()).collect(),
        digest_function: function,
        instance_name: instance.into(),
    };
    for (request, field) in [
        (find(&[&good, &bad], 0, ""), "blob_digests[1]"),
        (find(&[&good], 2, ""), "digest_function"),
        (find(&[&good], 0, "a/uploads"), "instance_name"),
    ] {
        let error = server.cas().find_missing_blobs(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().starts_with(field), "{error}");
    }
    for call in [
        server.read("x/blobs/y/1", 0, 0).await.unwrap_err(),
        server.write("blobs/y/1", b"x", 1).await.unwrap_err(),
    ] {
        assert_eq!(call.code(), Code::InvalidArgument);
        assert!(call.message().starts_with("resource_name"), "{call}");
    }
}

fn directory(server: &Standalone, children: &[(&str, Digest)]) -> Digest {
    let message = re::Directory {
        directories: children
            .iter()
            .map(|(name, digest)| re::DirectoryNode {
                name: (*name).into(),
                digest: Some(digest.to_proto()),
            })
            .collect(),
        ..Default::default()
    };
    server.keep(&message.encode_to_vec())
}

async fn tree(
    server: &Standalone,
    root: Digest,
    page_size: i32,
    token: &str,
) -> Result<Vec<re::GetTreeResponse>, tonic::Status> {
    let mut stream = server
        .cas()
        .get_tree(re::GetTreeRequest {
            root_digest: Some(root.to_proto()),
            page_size,
            page_token: token.into(),
            ..Default::default()
        })
        .await?
        .into_inner();
    let mut pages = Vec::new();
    while let Some(page) = stream.message().await? {
        pages.push(page);
    }
    Ok(pages)
}

/// Two bytes of an empty node would be more than a hundred in memory.
#[tokio::test]
async fn a_tree_of_nodes_without_names_is_refused_before_it_is_decoded() {
    let server = standalone().await;
    let root = server.keep(&[0x0a, 0].repeat(1_000_000));
    let error = tree(&server, root, 0, "").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("is not a Directory"), "{error}");
}

#[tokio::test]
async fn a_directory_too_large_for_an_answer_is_left_out_of_a_tree() {
    let server = standalone().await;
    let file = |n: u32| re::FileNode {
        name: format!("{n:0100}"),
        digest: Some(sha(b"x").to_proto()),
        ..Default::default()
    };
    let large = re::Directory {
        files: (0..25_000).map(file).collect(),
        ..Default::default()
    };
    let large = server.keep(&large.encode_to_vec());
    assert!(large.size() > 4 << 20);
    let small = directory(&server, &[]);
    let root = directory(&server, &[("large", large), ("small", small)]);
    let pages = tree(&server, root, 0, "").await.unwrap();
    assert_eq!(pages[0].directories.len(), 2);
    let error = tree(&server, large, 0, "").await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn who_takes_no_page_of_a_tree_keeps_no_place() {
    let server = standalone_with(
        |config| config.download_idle = Duration::from_millis(50),
        |_| {},
    )
    .await;
    // Some pages of a megabyte each, which is more than fits between the two.
    let file = |n: u32, m: u32| re::FileNode {
        name: format!("{n:0100}-{m}"),
        digest: Some(sha(b"x").to_proto()),
        ..Default::default()
    };
    let page = |m: u32| re::Directory {
        files: (0..5_000).map(|n| file(n, m)).collect(),
        ..Default::default()
    };
    let parts: Vec<(String, Digest)> = (0..8)
        .map(|m| (format!("part-{m}"), server.keep(&page(m).encode_to_vec())))
        .collect();
    let parts: Vec<(&str, Digest)> = parts.iter().map(|(n, d)| (&**n, *d)).collect();
    let root = directory(&server, &parts);
    let mut stalled = Vec::new();
    let ask = || re::GetTreeRequest {
        root_digest: Some(root.to_proto()),
        ..Default::default()
    };
    // More than there are places, each on a connection of its own, as they share what a connection may hold.
    for _ in 0..40 {
        let channel = tonic::transport::Endpoint::from_shared(server.address.clone()).unwrap();
        let mut client = ContentAddressableStorageClient::new(channel.connect().await.unwrap());
        stalled.push(client.get_tree(ask()).await.unwrap());
    }
    let mut ends = Vec::new();
    for stream in stalled {
        let mut stream = stream.into_inner();
        ends.push(loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => break Code::Ok,
                Err(error) => break error.code(),
            }
        });
    }
    assert!(ends.contains(&Code::DeadlineExceeded), "{ends:?}");
}

/// It would keep its place from others as long as it likes.
#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = standalone_with(
        |config| {
            config.max_connections = 2;
            config.greeting = Duration::from_millis(200);
        },
        |_| {},
    )
    .await;
    let address = server.address.strip_prefix("http://").unwrap().to_owned();
    let mut silent = tokio::net::TcpStream::connect(&address).await.unwrap();
    let mut slow = tokio::net::TcpStream::connect(&address).await.unwrap();
    slow.write_all(b"PRI * HTTP/2.0").await.unwrap();
    // Both places are taken: it waits for one of them.
    let root = directory(&server, &[]);
    assert_eq!(tree(&server, root, 0, "").await.unwrap().len(), 1);
    for connection in [&mut silent, &mut slow] {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut rest));
        let _ = closed.await.expect("it is closed");
    }
    // One that has spoken stays, however long it is silent then.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(tree(&server, root, 0, "").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_tree_comes_in_pages_each_directory_once_and_without_what_is_missing() {
    let server = standalone().await;
    let leaf = directory(&server, &[("empty", sha(b""))]);
    let lost = Digest::new(DigestFunction::Sha256, [5; 32], 9);
    let left = directory(&server, &[("leaf", leaf), ("lost", lost)]);
    let right = directory(&server, &[("a", leaf), ("b", leaf)]);
    let root = directory(&server, &[("left", left), ("right", right)]);
    let all = tree(&server, root, 0, "").await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].directories.len(), 5);
    assert_eq!(all[0].directories[0].directories.len(), 2);
    assert!(all[0].next_page_token.is_empty());

    let pages = tree(&server, root, 2, "").await.unwrap();
    let counts: Vec<_> = pages.iter().map(|p| p.directories.len()).collect();
    assert_eq!(counts, [2, 2, 1]);
    let rest = tree(&server, root, 2, &pages[0].next_page_token)
        .await
        .unwrap();
    assert_eq!(rest, pages[1..]);

    let error = tree(&server, lost, 0, "").await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let error = tree(&server, root, 0, "elsewhere").await.unwrap_err();
    assert!(error.message().starts_with("page_token"), "{error}");
    let text = server.keep(b"\xff\xff no directory");
    let error = tree(&server, text, 0, "").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn blobs_are_read_whole_in_part_and_packed() {
    let server = standalone().await;
    let data = noise(3_000_000);
    let digest = server.keep(&data);
    let name = format!("main/blobs/{digest}");
    assert_eq!(server.read(&name, 0, 0).await.unwrap(), data);
    assert_eq!(
        server.read(&name, 1_000_000, 5).await.unwrap(),
        data[1_000_000..1_000_005]
    );
    assert_eq!(
        server.read(&name, 2_999_999, 100).await.unwrap(),
        data[2_999_999..]
    );
    assert_eq!(server.read(&name, 3_000_000, 0).await.unwrap(), b"");
    for offset in [-1, 3_000_001] {
        let error = server.read(&name, offset, 0).await.unwrap_err();
        assert_eq!(error.code(), Code::OutOfRange);
    }
    let error = server.read(&name, 0, -1).await.unwrap_err();
    assert!(error.message().starts_with("read_limit"), "{error}");

    let small = server.keep(b"small");
    let part = server.read(&format!("blobs/{small}"), 1, 3).await.unwrap();
    assert_eq!(part, b"mal");
    let text = vec![b'x'; 5_000_000];
    let digest = server.keep(&text);
    let name = format!("compressed-blobs/zstd/{digest}");
    let packed = server.read(&name, 0, 0).await.unwrap();
    assert!(packed.len() < 100_000);
    assert_eq!(zstd::decode_all(&packed[..]).unwrap(), text);
    let packed = server.read(&name, 4_999_000, 0).await.unwrap();
    assert_eq!(zstd::decode_all(&packed[..]).unwrap().len(), 1000);
    let error = server.read(&name, 0, 10).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let empty = format!("compressed-blobs/zstd/{}", sha(b""));
    let packed = server.read(&empty, 0, 0).await.unwrap();
    assert_eq!(zstd::decode_all(&packed[..]).unwrap(), b"");
    let absent = format!("blobs/{}", sha(b"absent"));
    let error = server.read(&absent, 0, 0).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn blobs_are_written_in_pieces_of_any_size() {
    let server = standalone().await;
    for (i, size) in [0usize, 1, 5000, 262_144, 3_000_001]
        .into_iter()
        .enumerate()
    {
        for piece in [1 << 10, 1 << 20] {
            let mut data = noise(size);
            data.push(piece as u8);
            let digest = sha(&data);
            let name = format!("main/uploads/u{i}/blobs/{digest}/some/file.c");
            assert_eq!(
                server.write(&name, &data, piece).await.unwrap(),
                data.len() as i64
            );
            assert_eq!(server.store.read(digest, u64::MAX).unwrap().unwrap(), data);
        }
        let data = vec![i as u8 + 1; size + 10];
        let packed = zstd::bulk::compress(&data, 3).unwrap();
        let digest = DigestFunction::Blake3.digest(&data);
        let name = format!("uploads/u{i}/compressed-blobs/zstd/blake3/{digest}");
        let committed = server.write(&name, &packed, 1000).await.unwrap();
        assert_eq!(committed, packed.len() as i64);
        assert_eq!(server.store.read(digest, u64::MAX).unwrap().unwrap(), data);
    }
}

#[tokio::test]
async fn a_blob_that_is_there_already_ends_the_upload_at_once() {
    let server = standalone().await;
    let data = noise(100_000);
    let digest = server.keep(&data);
    let (send, receive) = mpsc::channel(1);
    let name = format!("uploads/u/blobs/{digest}");
    send.send(messages(&name, 0, &data[..10], 10, false).remove(0))
        .await
        .unwrap();
    // The client never goes on; the answer comes all the same.
    let mut client = server.bytes();
    let answer = client.write(ReceiverStream::new(receive));
    let answer = tokio::time::timeout(PATIENCE, answer)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.into_inner().committed_size, 100_000);
    drop(send);
    let name = format!("uploads/u/compressed-blobs/zstd/{digest}");
    assert_eq!(server.write(&name, b"whatever", 8).await.unwrap(), -1);
}

#[tokio::test]
async fn wrong_content_is_refused_and_leaves_nothing() {
    let server = standalone().await;
    let data = noise(600_000);
    let digest = sha(&data);
    let name = format!("uploads/u/blobs/{digest}");
    let mut other = data.clone();
    other[5] ^= 1;
    for wrong in [&other, &data[..599_999].to_vec()] {
        let error = server.write(&name, wrong, 100_000).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    // One byte too many is refused when it comes, not when all has come.
    let (send, receive) = mpsc::channel(100);
    for message in messages(&name, 0, &[data.clone(), vec![0]].concat(), 100_000, false) {
        send.send(message).await.unwrap();
    }
    let mut client = server.bytes();
    let answer = client.write(ReceiverStream::new(receive));
    let error = tokio::time::timeout(PATIENCE, answer)
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        error.message().contains("more than the 600000 bytes"),
        "{error}"
    );
    drop(send);
    // Small blobs take another way.
    let small = format!("uploads/u/blobs/{}", sha(b"small"));
    for wrong in ["smell", "smal", "smaller"] {
        let error = server.write(&small, wrong.as_bytes(), 3).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    assert_eq!(server.store.usage().blobs, 0);
    // And the same names can be written rightly afterwards.
    assert_eq!(server.write(&name, &data, 100_000).await.unwrap(), 600_000);
}

#[tokio::test]
async fn a_bomb_does_not_go_off() {
    let server = standalone().await;
    let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 3).unwrap();
    for size in [1000u64, 2 << 20] {
        let digest = Digest::new(DigestFunction::Sha256, [3; 32], size);
        let name = format!("uploads/u/compressed-blobs/zstd/{digest}");
        let error = server.write(&name, &bomb, 1 << 20).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("more than the"), "{error}");
    }
    let name = format!("uploads/u/compressed-blobs/zstd/{}", sha(b"text"));
    let error = server.write(&name, b"text", 4).await.unwrap_err();
    assert!(error.message().contains("not zstd"), "{error}");
}

async fn status(server: &Standalone, name: &str) -> (i64, bool) {
    let status = server
        .bytes()
        .query_write_status(bs::QueryWriteStatusRequest {
            resource_name: name.to_owned(),
        })
        .await
        .unwrap()
        .into_inner();
    (status.committed_size, status.complete)
}

/// Sends a part of a blob and breaks the call off; returns when the server has kept it.
async fn broken_off(server: &Standalone, name: &str, data: &[u8], expect: i64) {
    let (send, receive) = mpsc::channel(100);
    for message in messages(name, 0, data, 100_000, false) {
        send.send(message).await.unwrap();
    }
    let mut client = server.bytes();
    let call = tokio::spawn(async move { client.write(ReceiverStream::new(receive)).await });
    let mut waited = Duration::ZERO;
    // Whole groups are committed while the call goes on; that is when it is cut.
    while status(server, name).await.0 < expect.min(262_144) {
        assert!(waited < PATIENCE);
        waited += Duration::from_millis(5);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    call.abort();
    let _ = call.await;
    while status(server, name).await.0 < expect {
        assert!(waited < PATIENCE, "{:?}", status(server, name).await);
        waited += Duration::from_millis(5);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(send);
}

#[tokio::test]
async fn an_upload_that_broke_off_goes_on_where_it_was() {
    let server = standalone().await;
    let data = noise(1_000_000);
    let digest = sha(&data);
    let name = format!("main/uploads/u/blobs/{digest}");
    assert_eq!(status(&server, &name).await, (0, false));
    broken_off(&server, &name, &data[..500_000], 500_000).await;
    // Neither a gap nor a repetition is taken for the rest.
    for offset in [499_999, 500_001] {
        let rest = messages(&name, offset, &data[offset..], 100_000, true);
        let error = server
            .bytes()
            .write(tokio_stream::iter(rest))
            .await
            .unwrap_err();
        assert!(
            error.message().contains("500000 bytes are committed"),
            "{error}"
        );
    }
    let rest = messages(&name, 500_000, &data[500_000..], 100_000, true);
    let answer = server
        .bytes()
        .write(tokio_stream::iter(rest))
        .await
        .unwrap();
    assert_eq!(answer.into_inner().committed_size, 1_000_000);
    assert_eq!(status(&server, &name).await, (1_000_000, true));
    assert_eq!(server.store.read(digest, u64::MAX).unwrap().unwrap(), data);
}

#[tokio::test]
async fn a_packed_upload_goes_on_at_its_unpacked_offset() {
    let server = standalone().await;
    let data = noise(1_000_000);
    let digest = sha(&data);
    let name = format!("uploads/u/compressed-blobs/zstd/{digest}");
    let half = zstd::bulk::compress(&data[..500_000], 1).unwrap();
    broken_off(&server, &name, &half, 500_000).await;
    let rest = zstd::bulk::compress(&data[500_000..], 1).unwrap();
    let rest = messages(&name, 500_000, &rest, 100_000, true);
    server
        .bytes()
        .write(tokio_stream::iter(rest))
        .await
        .unwrap();
    assert_eq!(server.store.read(digest, u64::MAX).unwrap().unwrap(), data);
}

#[tokio::test]
async fn an_upload_may_begin_again() {
    let server = standalone().await;
    let data = noise(1_000_000);
    let name = format!("uploads/u/blobs/{}", sha(&data));
    // What came first was wrong; the digest of the whole is right only if it is forgotten.
    broken_off(&server, &name, &vec![0; 500_000], 500_000).await;
    assert_eq!(
        server.write(&name, &data, 100_000).await.unwrap(),
        1_000_000
    );
}

#[tokio::test]
async fn uploads_that_nobody_goes_on_with_are_forgotten() {
    let server = standalone_with(
        |config| config.upload_idle = Duration::from_millis(50),
        |_| {},
    )
    .await;
    let data = noise(1_000_000);
    let name = format!("uploads/u/blobs/{}", sha(&data));
    let (send, receive) = mpsc::channel(100);
    for message in messages(&name, 0, &data[..300_000], 100_000, false) {
        send.send(message).await.unwrap();
    }
    // The client stays silent: the call ends, the upload does not.
    let mut client = server.bytes();
    let answer = client.write(ReceiverStream::new(receive));
    let error = tokio::time::timeout(PATIENCE, answer)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    drop(send);
    assert_eq!(status(&server, &name).await, (300_000, false));

    let server = standalone_with(|config| config.upload_kept = Duration::ZERO, |_| {}).await;
    let part = messages(&name, 0, &data[..300_000], 100_000, false);
    let answer = server
        .bytes()
        .write(tokio_stream::iter(part))
        .await
        .unwrap();
    assert_eq!(answer.into_inner().committed_size, 300_000);
    assert_eq!(status(&server, &name).await, (0, false));
}

#[tokio::test]
async fn a_download_that_nobody_takes_gives_its_place_up() {
    let server = standalone_with(
        |config| {
            config.max_streams = 1;
            config.download_idle = Duration::from_millis(50);
        },
        |_| {},
    )
    .await;
    let data = noise(16 << 20);
    let name = format!("uploads/u/blobs/{}", sha(&data));
    server.write(&name, &data, 1 << 20).await.unwrap();
    let request = bs::ReadRequest {
        resource_name: format!("blobs/{}", sha(&data)),
        ..Default::default()
    };
    let mut other = bs::byte_stream_client::ByteStreamClient::new(connection(&server).await);
    let stalled = other.read(request.clone()).await.unwrap();
    let mut stalled = stalled.into_inner();
    // There is one place, and the first one has it until it is dropped.
    let mut bytes = server.bytes();
    let second = async {
        let mut stream = bytes.read(request).await.unwrap().into_inner();
        let mut size = 0;
        while let Some(piece) = stream.message().await.unwrap() {
            size += piece.data.len();
        }
        size
    };
    let size = tokio::time::timeout(PATIENCE, second).await.unwrap();
    assert_eq!(size, data.len());
    // What was not taken is told to be missing, and not left out in silence.
    let error = loop {
        match stalled.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the download ended as if it were whole"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
}

#[tokio::test]
async fn a_second_writer_of_the_same_upload_takes_it_over() {
    let server = standalone().await;
    let data = noise(1_000_000);
    let name = format!("uploads/u/blobs/{}", sha(&data));
    let (send, receive) = mpsc::channel(100);
    for message in messages(&name, 0, &data[..300_000], 100_000, false) {
        send.send(message).await.unwrap();
    }
    let mut client = server.bytes();
    let first = tokio::spawn(async move { client.write(ReceiverStream::new(receive)).await });
    while status(&server, &name).await.0 == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        server.write(&name, &data, 100_000).await.unwrap(),
        1_000_000
    );
    let error = tokio::time::timeout(PATIENCE, first)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.code(), Code::Aborted, "{error}");
    drop(send);
}

#[tokio::test]
async fn uploads_of_one_blob_under_many_ids_all_succeed() {
    let server = standalone().await;
    let data = noise(2_000_000);
    let digest = sha(&data);
    let names: Vec<_> = (0..8)
        .map(|i| format!("uploads/{i}/blobs/{digest}"))
        .collect();
    let all = names.iter().map(|name| server.write(name, &data, 50_000));
    for committed in futures::future::join_all(all).await {
        assert_eq!(committed.unwrap(), 2_000_000);
    }
    assert_eq!(server.store.usage().blobs, 1);
}

fn update(action: Digest, result: re::ActionResult) -> re::UpdateActionResultRequest {
    re::UpdateActionResultRequest {
        instance_name: "any".into(),
        action_digest: Some(action.to_proto()),
        action_result: Some(result),
        ..Default::default()
    }
}

fn ask(action: Digest) -> re::GetActionResultRequest {
    re::GetActionResultRequest {
        action_digest: Some(action.to_proto()),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_result_is_given_only_while_all_its_blobs_are_there() {
    let server = standalone().await;
    let file = server.keep(b"a file");
    let log = server.keep(b"a log");
    let inner = server.keep(b"within a tree");
    let deep = server.keep(b"deep");
    let below = re::Directory {
        files: vec![re::FileNode {
            name: "deep".into(),
            digest: Some(deep.to_proto()),
            ..Default::default()
        }],
        ..Default::default()
    };
    let below_digest = server.keep(&below.encode_to_vec());
    let root = re::Directory {
        files: vec![re::FileNode {
            name: "inner".into(),
            digest: Some(inner.to_proto()),
            ..Default::default()
        }],
        directories: vec![re::DirectoryNode {
            name: "below".into(),
            digest: Some(below_digest.to_proto()),
        }],
        ..Default::default()
    };
    let root_digest = server.keep(&root.encode_to_vec());
    let tree = re::Tree {
        root: Some(root),
        children: vec![below],
    };
    let tree_digest = server.keep(&tree.encode_to_vec());
    let with_tree = |tree: Option<Digest>, root: Option<Digest>| re::ActionResult {
        output_files: vec![re::OutputFile {
            path: "file".into(),
            digest: Some(file.to_proto()),
            ..Default::default()
        }],
        stdout_digest: Some(log.to_proto()),
        output_directories: vec![re::OutputDirectory {
            path: "dir".into(),
            tree_digest: tree.map(Digest::to_proto),
            root_directory_digest: root.map(Digest::to_proto),
            ..Default::default()
        }],
        ..Default::default()
    };
    let by_tree = with_tree(Some(tree_digest), None);
    let by_root = with_tree(None, Some(root_digest));
    let action = sha(b"action");
    let mut client = server.results();
    for (result, blobs) in [
        (by_tree, vec![file, log, tree_digest, inner, deep]),
        (
            by_root,
            vec![file, log, root_digest, inner, below_digest, deep],
        ),
    ] {
        for blob in blobs {
            client
                .update_action_result(update(action, result.clone()))
                .await
                .unwrap();
            let found = client.get_action_result(ask(action)).await.unwrap();
            assert_eq!(found.into_inner(), result);
            let content = server.store.read(blob, u64::MAX).unwrap().unwrap();
            server.lose(blob);
            let error = client.get_action_result(ask(action)).await.unwrap_err();
            assert_eq!(error.code(), Code::NotFound, "without {blob}");
            server.store.put(blob, &content, false).unwrap();
        }
    }
}

#[tokio::test]
async fn output_is_inlined_when_asked_for_and_not_too_large() {
    let server = standalone().await;
    let large = noise(2 << 20);
    let result = re::ActionResult {
        stdout_digest: Some(server.keep(b"to stdout").to_proto()),
        stderr_digest: Some(server.keep(&large).to_proto()),
        output_files: ["a", "b"]
            .map(|name| re::OutputFile {
                path: name.into(),
                digest: Some(server.keep(name.as_bytes()).to_proto()),
                ..Default::default()
            })
            .into(),
        ..Default::default()
    };
    let action = sha(b"action");
    let mut client = server.results();
    client
        .update_action_result(update(action, result))
        .await
        .unwrap();
    let plain = client
        .get_action_result(ask(action))
        .await
        .unwrap()
        .into_inner();
    assert!(plain.stdout_raw.is_empty());
    let inlined = client
        .get_action_result(re::GetActionResultRequest {
            inline_stdout: true,
            inline_stderr: true,
            inline_output_files: vec!["b".into(), "c".into()],
            ..ask(action)
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(&inlined.stdout_raw[..], b"to stdout");
    assert!(inlined.stderr_raw.is_empty());
    assert_eq!(inlined.stderr_digest.unwrap().size_bytes, 2 << 20);
    assert!(inlined.output_files[0].contents.is_empty());
    assert_eq!(&inlined.output_files[1].contents[..], b"b");
}

#[tokio::test]
async fn the_action_cache_can_be_closed_to_clients() {
    let server = standalone_with(|config| config.cache_updates = false, |_| {}).await;
    let update = update(sha(b"action"), re::ActionResult::default());
    let error = server
        .results()
        .update_action_result(update)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    let told = server
        .capabilities()
        .get_capabilities(re::GetCapabilitiesRequest::default())
        .await
        .unwrap()
        .into_inner();
    let cache = told.cache_capabilities.unwrap();
    assert!(
        !cache
            .action_cache_update_capabilities
            .unwrap()
            .update_enabled
    );
}

#[tokio::test]
async fn a_failed_result_is_not_cached_for_anybody() {
    let server = standalone().await;
    let failed = re::ActionResult {
        exit_code: 1,
        ..Default::default()
    };
    let mut client = server.results();
    let error = client
        .update_action_result(update(sha(b"a"), failed))
        .await
        .unwrap_err();
    assert!(
        error.message().starts_with("action_result.exit_code"),
        "{error}"
    );
}

#[tokio::test]
async fn a_unix_socket_serves_too_and_a_stale_one_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let address = format!("unix:{}", path.display());
    let listen = address.parse().unwrap();
    let server = standalone_with(|config| config.listen.push(listen), |_| {}).await;
    let channel = address
        .parse::<boxwright::config::Endpoint>()
        .unwrap()
        .line(&Default::default())
        .unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let told = health
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(told.status, 1);
    let error = boxwright::serve::Server::bind(
        boxwright::serve::ServerConfig {
            listen: vec![address.parse().unwrap()],
            ..Default::default()
        },
        server.store.clone(),
        server.cache.clone(),
        None,
    )
    .await
    .err()
    .unwrap();
    assert!(
        error.to_string().contains("another server runs there"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_stops_although_clients_hold_on() {
    let mut server = standalone().await;
    let told = server
        .capabilities()
        .get_capabilities(re::GetCapabilitiesRequest::default())
        .await;
    told.unwrap();
    server.stop.take().unwrap().send(()).unwrap();
    tokio::time::timeout(PATIENCE, &mut server.stopped)
        .await
        .unwrap()
        .unwrap();
}
