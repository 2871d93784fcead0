//! What clients send that is no message, or too much of one, and answers that they do not read: each costs the client, not the
//! server.

mod serve_support;

use std::time::Duration;

use boxwright::reapi::proto::bytestream as bs;
use boxwright::reapi::proto::re;
use bytes::Bytes;
use serve_support::*;
use tonic::{Code, Status, Streaming};

const CAS: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage";

#[tokio::test]
async fn what_is_no_message_is_the_senders_fault() {
    let server = standalone().await;
    // The first field is a name, and this is no text.
    let garbage = || Bytes::from_static(&[0xff, 0xfe]);
    for method in [
        format!("{CAS}/FindMissingBlobs"),
        format!("{CAS}/GetTree"),
        "/build.bazel.remote.execution.v2.Execution/Execute".to_owned(),
        "/google.bytestream.ByteStream/Write".to_owned(),
    ] {
        let channel = connection(&server).await;
        let error = send::<re::GetTreeResponse>(channel, &method, garbage())
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{method}: {error}");
        assert!(error.message().contains("_name"), "{method}: {error}");
    }
}

#[tokio::test]
async fn a_message_of_empty_entries_is_refused_before_it_is_decoded() {
    let server = standalone().await;
    const COUNT: usize = 1_000_000;
    let missing = re::FindMissingBlobsRequest {
        blob_digests: vec![re::Digest::default(); COUNT],
        ..Default::default()
    };
    let error = server.cas().find_missing_blobs(missing).await.unwrap_err();
    let result = re::ActionResult {
        output_files: vec![re::OutputFile::default(); COUNT],
        ..Default::default()
    };
    let update = re::UpdateActionResultRequest {
        action_digest: Some(sha(b"action").to_proto()),
        action_result: Some(result),
        ..Default::default()
    };
    let other = server
        .results()
        .update_action_result(update)
        .await
        .unwrap_err();
    for error in [error, other] {
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("entries"), "{error}");
    }
}

#[tokio::test]
async fn entries_are_counted_wherever_they_are() {
    let server = standalone().await;
    const COUNT: usize = 1_000_000;
    let metadata = re::ExecutedActionMetadata {
        auxiliary_metadata: vec![Default::default(); COUNT],
        ..Default::default()
    };
    let properties = re::NodeProperties {
        properties: vec![re::NodeProperty::default(); COUNT],
        ..Default::default()
    };
    let file = re::OutputFile {
        path: "a".into(),
        node_properties: Some(properties),
        ..Default::default()
    };
    for result in [
        re::ActionResult {
            execution_metadata: Some(metadata),
            ..Default::default()
        },
        re::ActionResult {
            output_files: vec![file],
            ..Default::default()
        },
    ] {
        let update = re::UpdateActionResultRequest {
            action_digest: Some(sha(b"action").to_proto()),
            action_result: Some(result),
            ..Default::default()
        };
        let error = { server.results().update_action_result(update).await }.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("entries"), "{error}");
    }
}

/// As many calls as may hold messages at a time, none of whose answers is read.
async fn stalled(server: &Standalone) -> Vec<Streaming<re::BatchReadBlobsResponse>> {
    let (mut stalled, asked) = (Vec::new(), read(server));
    let method = format!("{CAS}/BatchReadBlobs");
    for _ in 0..64 {
        let answer = send(connection(server).await, &method, asked.clone()).await;
        stalled.push(answer.unwrap());
    }
    stalled
}

#[tokio::test]
async fn answers_that_nobody_reads_keep_their_places() {
    let server = standalone().await;
    let stalled = stalled(&server).await;
    let mut cas = server.cas();
    let mut another = std::pin::pin!(cas.batch_read_blobs(read(&server)));
    // It waits: what it answers would be one more message in memory.
    assert!(
        tokio::time::timeout(Duration::from_millis(500), &mut another)
            .await
            .is_err()
    );
    drop(stalled);
    let read = tokio::time::timeout(PATIENCE, another)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(read.into_inner().responses[0].data.len(), 1 << 20);
}

#[tokio::test]
async fn who_reads_nothing_of_an_answer_keeps_no_place() {
    let server = standalone_with(
        |config| config.download_idle = Duration::from_millis(200),
        |_| {},
    )
    .await;
    let mut stalled = stalled(&server).await;
    let mut cas = server.cas();
    let read = tokio::time::timeout(PATIENCE, cas.batch_read_blobs(read(&server))).await;
    assert_eq!(read.unwrap().unwrap().into_inner().responses.len(), 1);
    // What was not taken is told to be missing, and not left out in silence.
    let error = stalled[0].message().await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
}

/// More of them than there are places: there is no room on the connection for anything of most.
#[tokio::test]
async fn calls_of_one_connection_that_reads_nothing_keep_no_places() {
    let server = standalone_with(
        |config| config.download_idle = Duration::from_millis(200),
        |_| {},
    )
    .await;
    let (channel, asked) = (connection(&server).await, read(&server));
    let method = format!("{CAS}/BatchReadBlobs");
    let calls = (0..80).map(|_| send(channel.clone(), &method, asked.clone()));
    let calls = futures::future::join_all(calls);
    // Those that have no place yet learn of it too.
    let calls: Vec<Result<Streaming<re::BatchReadBlobsResponse>, Status>> =
        tokio::time::timeout(PATIENCE, calls).await.unwrap();
    let mut cas = server.cas();
    let read = tokio::time::timeout(PATIENCE, cas.batch_read_blobs(asked)).await;
    assert_eq!(read.unwrap().unwrap().into_inner().responses.len(), 1);
    for call in calls {
        let end = async { call?.message().await };
        let end = tokio::time::timeout(PATIENCE, end).await.unwrap();
        // Its connection was closed at last; not all clients have a code for that.
        let code = end.unwrap_err().code();
        assert!(matches!(code, Code::Unavailable | Code::Unknown), "{code}");
    }
}

#[tokio::test]
async fn an_answer_waits_while_its_connection_takes_others() {
    let idle = Duration::from_secs(1);
    let server = standalone_with(|config| config.download_idle = idle, |_| {}).await;
    let channel = connection_of(&server, 1 << 20).await;
    let method = format!("{CAS}/BatchReadBlobs");
    let stalled = send(channel.clone(), &method, read(&server)).await;
    let mut stalled: Streaming<re::BatchReadBlobsResponse> = stalled.unwrap();
    let other = bs::ReadRequest {
        resource_name: format!("blobs/{}", server.keep(&noise(1 << 20))),
        ..Default::default()
    };
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < idle * 5 / 2 {
        let mut bytes = bs::byte_stream_client::ByteStreamClient::new(channel.clone());
        let mut taken = bytes.read(other.clone()).await.unwrap().into_inner();
        while taken.message().await.unwrap().is_some() {}
    }
    let message = stalled.message().await.unwrap().unwrap();
    assert_eq!(message.responses[0].data.len(), 1 << 20);
}

#[tokio::test]
async fn an_upload_in_pieces_that_look_like_many_entries_is_content() {
    let server = standalone().await;
    let data = [0x12, 0].repeat(1 << 20);
    let name = format!("uploads/u/blobs/{}", sha(&data));
    server.write(&name, &data, 2 << 20).await.unwrap();
    let request = bs::ReadRequest {
        resource_name: format!("blobs/{}", sha(&data)),
        ..Default::default()
    };
    let mut stream = server.bytes().read(request).await.unwrap().into_inner();
    let mut size = 0;
    while let Some(piece) = stream.message().await.unwrap() {
        size += piece.data.len();
    }
    assert_eq!(size, data.len());
}
