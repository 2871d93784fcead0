//! Who has places for large messages, and what becomes of clients that keep them: each costs itself, and nobody else.

mod serve_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use boxwright::action::{Ending, Finished};
use boxwright::reapi::DigestFunction;
use boxwright::reapi::proto::bytestream as bs;
use boxwright::reapi::proto::longrunning as lro;
use boxwright::reapi::proto::re;
use boxwright::scheduler::{Event, Scheduler};
use serve_support::*;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// As many as there are.
const PLACES: usize = 64;
/// Long enough for a call that need not wait.
const MOMENT: Duration = Duration::from_millis(500);

/// An action that has ended with a result of a MiB: what it was asked for with, and the name of its operation.
async fn ended(server: &Standalone) -> (re::ExecuteRequest, String) {
    let asked = re::ExecuteRequest {
        action_digest: Some(server.action("a", false).to_proto()),
        ..Default::default()
    };
    let mut stream = server.execution().execute(asked.clone()).await.unwrap();
    let event = tokio::time::timeout(PATIENCE, server.scheduler.next()).await;
    let Event::Lease(lease) = event.unwrap() else {
        panic!("no lease");
    };
    let finished = Finished {
        cacheable: true,
        result: Some(re::ActionResult {
            stdout_raw: noise(1 << 20).into(),
            ..Default::default()
        }),
        ending: Ending::Exited(0),
        message: String::new(),
        details: Vec::new(),
        logs: Vec::new(),
        inputs: None,
    };
    server.scheduler.complete(&lease.id, finished);
    loop {
        let told = stream.get_mut().message().await.unwrap().unwrap();
        if told.done {
            return (asked, told.name);
        }
    }
}

/// The calls that tell of an operation.
const TELL: [&str; 4] = [
    "/google.longrunning.Operations/GetOperation",
    "/google.longrunning.Operations/WaitOperation",
    "/build.bazel.remote.execution.v2.Execution/WaitExecution",
    "/build.bazel.remote.execution.v2.Execution/Execute",
];

/// Makes one of them.
async fn tell(
    channel: Channel,
    method: &str,
    (asked, name): (re::ExecuteRequest, String),
) -> Result<Streaming<lro::Operation>, Status> {
    match method.ends_with("/Execute") {
        true => send(channel, method, asked).await,
        // The others have the name in the same field.
        false => send(channel, method, lro::GetOperationRequest { name }).await,
    }
}

/// As many of them as there are places, each on a connection of its own, of which nothing is read.
async fn stalled(
    server: &Standalone,
    method: &str,
    operation: &(re::ExecuteRequest, String),
) -> Vec<Streaming<lro::Operation>> {
    let mut stalled = Vec::new();
    for _ in 0..PLACES {
        let answer = tell(connection(server).await, method, operation.clone()).await;
        stalled.push(answer.unwrap());
    }
    stalled
}

/// Whether a call that needs a place gets one soon.
async fn goes_on(server: &Standalone) -> bool {
    let (mut cas, asked) = (server.cas(), read(server));
    let answered = tokio::time::timeout(MOMENT, cas.batch_read_blobs(asked)).await;
    answered.is_ok_and(|answered| answered.is_ok())
}

async fn until(what: impl AsyncFn() -> bool) {
    let waits = async {
        while !what().await {
            tokio::time::sleep(MOMENT / 50).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.unwrap();
}

#[tokio::test]
async fn what_is_told_of_an_ended_operation_keeps_its_place_until_it_is_taken() {
    let server = standalone().await;
    let operation = ended(&server).await;
    for method in TELL {
        let mut stalled = stalled(&server, method, &operation).await;
        until(async || !goes_on(&server).await).await;
        // Of the streams one message is left, which the client has: its place is free, though the stream is not at its end.
        let mut taken = stalled.pop().unwrap();
        done(&mut taken).await;
        until(async || goes_on(&server).await).await;
        drop(stalled);
    }
}

#[tokio::test]
async fn the_end_of_an_operation_is_told_when_there_is_a_place() {
    let keep_alive = Duration::from_millis(100);
    let server = standalone_with(|config| config.keep_alive = keep_alive, |_| {}).await;
    let operation = ended(&server).await;
    let stalled = stalled(&server, TELL[0], &operation).await;
    // A stream that has told how an action stands tells it again meanwhile.
    let mut other = operation.0.clone();
    other.action_digest = Some(server.action("b", false).to_proto());
    let mut stream = server.execution().execute(other).await.unwrap();
    let first = stream.get_mut().message().await.unwrap().unwrap();
    server.scheduler.cancel(&first.name);
    for _ in 0..5 {
        let told = tokio::time::timeout(PATIENCE, stream.get_mut().message()).await;
        assert!(!told.unwrap().unwrap().unwrap().done);
    }
    let waiting = TELL.map(|method| {
        let (channel, operation) = (server.channel.clone(), operation.clone());
        tokio::spawn(async move {
            done(&mut tell(channel, method, operation).await.unwrap()).await;
        })
    });
    let mut operations = server.operations();
    let list = tokio::spawn(async move {
        operations
            .list_operations(lro::ListOperationsRequest::default())
            .await
    });
    tokio::time::sleep(MOMENT).await;
    assert!(!list.is_finished());
    assert!(waiting.iter().all(|call| !call.is_finished()));
    drop(stalled);
    let list = tokio::time::timeout(PATIENCE, list).await.unwrap().unwrap();
    assert!(!list.unwrap().into_inner().operations.is_empty());
    for call in waiting {
        tokio::time::timeout(PATIENCE, call).await.unwrap().unwrap();
    }
    done(stream.get_mut()).await;
    assert!(stream.get_mut().message().await.unwrap().is_none());
}

async fn done(stream: &mut Streaming<lro::Operation>) {
    let done = async { while !stream.message().await.unwrap().unwrap().done {} };
    tokio::time::timeout(PATIENCE, done).await.unwrap();
}

#[tokio::test]
async fn one_connection_does_not_have_all_places() {
    let server = standalone().await;
    let channel = connection(&server).await;
    let method = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs";
    let asked = read(&server);
    let answered = Arc::new(AtomicUsize::new(0));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..PLACES {
        let call = send(channel.clone(), method, asked.clone());
        let answered = answered.clone();
        calls.spawn(async move {
            let _stalled: Streaming<re::BatchReadBlobsResponse> = call.await.unwrap();
            answered.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
        });
    }
    let half = async || answered.load(Ordering::Relaxed) >= PLACES / 2;
    until(half).await;
    tokio::time::sleep(MOMENT).await;
    assert_eq!(answered.load(Ordering::Relaxed), PLACES / 2);
    until(async || goes_on(&server).await).await;
}

/// What waits for a place is not read, and must leave room on its connection for what has one.
#[tokio::test]
async fn large_calls_at_a_time_over_one_connection_all_go_through() {
    let server = standalone().await;
    let calls = (0..PLACES / 2 + 96).map(|n| {
        let data = noise(2 << 20);
        let digest = DigestFunction::Sha256.digest(&data);
        let request = re::BatchUpdateBlobsRequest {
            requests: vec![re::batch_update_blobs_request::Request {
                digest: Some(digest.to_proto()),
                data: data.into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut cas = server.cas();
        async move {
            let answer = cas.batch_update_blobs(request).await;
            answer.unwrap_or_else(|error| panic!("{n}: {error}"))
        }
    });
    // A call that is not read has two minutes.
    let all = futures::future::join_all(calls);
    let all = tokio::time::timeout(Duration::from_secs(100), all).await;
    assert_eq!(all.unwrap().len(), PLACES / 2 + 96);
}

/// There is no room for what all of them could send: those that are too many are told so, and the others get through.
#[tokio::test]
async fn uploads_beyond_those_that_may_wait_are_refused_at_once() {
    let server = standalone_with(|config| config.max_streams = 1, |_| {}).await;
    let uploads = (0..500u32).map(|n| {
        let data = noise(1 << 20);
        let digest = DigestFunction::Sha256.digest(&data);
        let pieces: Vec<_> = { data.chunks(64 << 10).enumerate() }
            .map(|(at, piece)| bs::WriteRequest {
                resource_name: format!("uploads/{n}/blobs/{digest}"),
                write_offset: (at * (64 << 10)) as i64,
                finish_write: (at + 1) * (64 << 10) == data.len(),
                data: piece.to_vec().into(),
            })
            .collect();
        let mut bytes = server.bytes();
        async move { bytes.write(futures::stream::iter(pieces)).await }
    });
    let all = tokio::time::timeout(PATIENCE, futures::future::join_all(uploads));
    let ends: Vec<_> = { all.await.unwrap().into_iter() }
        .map(|end| end.map_or_else(|refused| refused.code(), |_| Code::Ok))
        .collect();
    let count = |code| ends.iter().filter(|end| **end == code).count();
    // What comes of those that were refused closes no connection.
    let (well, refused) = (count(Code::Ok), count(Code::Unavailable));
    assert!(
        well >= 96 && refused >= 96 && well + refused == 500,
        "{ends:?}"
    );
}

#[tokio::test]
async fn who_does_not_wait_for_an_upload_any_more_is_in_nobodys_way() {
    let server = standalone_with(|config| config.max_streams = 1, |_| {}).await;
    let write = |n: u32| {
        let data = noise(1 << 10);
        let digest = DigestFunction::Sha256.digest(&data);
        let whole = bs::WriteRequest {
            resource_name: format!("uploads/{n}/blobs/{digest}"),
            write_offset: 0,
            finish_write: true,
            data: data.into(),
        };
        let mut bytes = server.bytes();
        async move { bytes.write(futures::stream::iter([whole])).await }
    };
    // It never says anything.
    let mut bytes = server.bytes();
    let first = tokio::spawn(async move { bytes.write(futures::stream::pending()).await });
    tokio::time::sleep(MOMENT).await;
    for _ in 0..3 {
        let waiting = futures::future::join_all((0..60).map(write));
        assert!(tokio::time::timeout(MOMENT, waiting).await.is_err());
    }
    first.abort();
    let last = tokio::time::timeout(PATIENCE, write(60)).await;
    assert_eq!(last.unwrap().unwrap().into_inner().committed_size, 1 << 10);
}

/// Downloads, each of which lost its place without the client having heard of it, until these are too many.
#[tokio::test]
async fn a_connection_of_which_nothing_is_read_is_closed() {
    let server = standalone_with(
        |config| {
            config.download_idle = Duration::from_millis(200);
            config.max_connections = 1;
        },
        |_| {},
    )
    .await;
    let bytes = bs::byte_stream_client::ByteStreamClient::new(connection(&server).await);
    let asked = bs::ReadRequest {
        resource_name: format!("blobs/{}", server.keep(&noise(1 << 20))),
        ..Default::default()
    };
    // At once: who comes late is told so, and could come back over another connection.
    let downloads = (0..40).map(|_| {
        let (mut bytes, asked) = (bytes.clone(), asked.clone());
        async move { bytes.read(asked).await }
    });
    let _stalled = futures::future::join_all(downloads).await;
    // There is no room for another before that.
    let mut cas = server.cas();
    let read = tokio::time::timeout(PATIENCE, cas.batch_read_blobs(read(&server))).await;
    assert_eq!(read.unwrap().unwrap().into_inner().responses.len(), 1);
}

/// What is paused costs the client that answer, and not what it does beside it.
#[tokio::test]
async fn an_upload_goes_on_beside_a_download_that_is_not_taken() {
    let idle = Duration::from_millis(200);
    let server = standalone_with(|config| config.download_idle = idle, |_| {}).await;
    let mut bytes = server.bytes();
    let asked = bs::ReadRequest {
        resource_name: format!("blobs/{}", server.keep(&noise(8 << 20))),
        ..Default::default()
    };
    let mut paused = bytes.read(asked).await.unwrap().into_inner();
    let data = noise(1 << 20);
    let digest = DigestFunction::Sha256.digest(&data);
    let name = format!("uploads/u/blobs/{digest}");
    let pieces = futures::stream::unfold(0, move |at| {
        let (piece, name) = (data.get(at..at + (32 << 10)), name.clone());
        let piece = piece.map(|piece| bs::WriteRequest {
            resource_name: name,
            write_offset: at as i64,
            finish_write: at + piece.len() == data.len(),
            data: piece.to_vec().into(),
        });
        async move {
            tokio::time::sleep(idle / 4).await;
            Some((piece?, at + (32 << 10)))
        }
    });
    let written = tokio::time::timeout(PATIENCE, bytes.write(pieces)).await;
    let written = written.unwrap().unwrap().into_inner();
    assert_eq!(written.committed_size, 1 << 20);
    let end = async {
        while paused.message().await?.is_some() {}
        Ok::<_, Status>(())
    };
    let end = tokio::time::timeout(PATIENCE, end).await.unwrap();
    assert_eq!(end.unwrap_err().code(), Code::DeadlineExceeded);
}
