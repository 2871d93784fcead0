//! Output reaches a server that takes it; one that does not costs the worker a bounded time and amount of memory.

use std::future::pending;

use futures::stream::BoxStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Streaming};

use super::*;
use crate::reapi::proto::bytestream::byte_stream_server::{ByteStream, ByteStreamServer};
use crate::reapi::proto::bytestream::{
    QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteResponse,
};

const PATIENCE: Duration = Duration::from_millis(300);

/// What a server does not do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// It says nothing to QueryWriteStatus.
    Mute,
    /// It reads nothing of a Write.
    Full,
    /// It reads a Write, and does not answer.
    Endless,
}

/// What is told of each call: its data, and whether it ended as it should.
type Call = (Vec<u8>, bool);

struct Server {
    fault: Fault,
    calls: mpsc::UnboundedSender<Call>,
}

/// Tells of the call when it is dropped.
struct Telling(Call, mpsc::UnboundedSender<Call>);

impl Drop for Telling {
    fn drop(&mut self) {
        let _ = self.1.send(std::mem::take(&mut self.0));
    }
}

impl Server {
    fn telling(&self) -> Telling {
        Telling(Call::default(), self.calls.clone())
    }
}

#[tonic::async_trait]
impl ByteStream for Server {
    type ReadStream = BoxStream<'static, Result<ReadResponse, Status>>;

    async fn read(&self, _: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        Err(Status::unimplemented("read"))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let mut telling = self.telling();
        if self.fault == Fault::Full {
            let _request = request;
            pending::<()>().await;
            return Err(Status::internal("not reached"));
        }
        let mut requests = request.into_inner();
        while let Some(request) = requests.message().await? {
            let call = &mut telling.0;
            assert_eq!(request.write_offset, call.0.len() as i64);
            call.0.extend(&request.data);
            call.1 |= request.finish_write;
        }
        if self.fault == Fault::Endless {
            pending::<()>().await;
        }
        let committed_size = telling.0.0.len() as i64;
        Ok(Response::new(WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        _: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        if self.fault == Fault::Mute {
            let _telling = self.telling();
            pending::<()>().await;
        }
        Ok(Response::new(QueryWriteStatusResponse::default()))
    }
}

async fn streams(fault: Fault) -> (LogStreams, mpsc::UnboundedReceiver<Call>) {
    let (calls, told) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(65_535)
        .add_service(ByteStreamServer::new(Server { fault, calls }))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    let endpoint = Endpoint::Http(address.to_string());
    let streams = LogStreams::new(&endpoint, &Credentials::default(), PATIENCE).unwrap();
    (streams, told)
}

impl LogStreams {
    /// Waits until no piece of any stream waits for the network.
    async fn emptied(&self) {
        let all = self.room.acquire_many(ALL_WAITING as u32).await.unwrap();
        drop(all);
    }
}

/// Waits until the stream is given up.
async fn refused(sink: &Sink) {
    while sink.0.state.lock().stage != Stage::GivenUp {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stream_arrives_whole_and_is_finished() {
    let (streams, mut told) = streams(Fault::None).await;
    let mut sink = streams.begin("s");
    let mut said = Vec::new();
    for n in 0..100_u8 {
        let piece = vec![n; 1 + 100 * usize::from(n)];
        assert!(sink.piece(&piece));
        said.extend(piece);
    }
    // A silent command is no reason to give its stream up.
    tokio::time::sleep(2 * PATIENCE).await;
    assert!(sink.piece(b"the end"));
    said.extend(b"the end");
    drop(sink);
    assert_eq!(told.recv().await.unwrap(), (said, true));
}

#[tokio::test]
async fn a_server_that_never_answers_holds_no_pieces_and_no_call() {
    for fault in [Fault::Mute, Fault::Full, Fault::Endless] {
        let (streams, mut told) = streams(fault).await;
        let mut sink = streams.begin("s");
        for _ in 0..40 {
            assert!(sink.piece(&[7; 60 << 10]));
        }
        // The action has ended, and knows of nothing.
        drop(sink);
        streams.emptied().await;
        told.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_takes_nothing_is_given_up_while_the_action_runs() {
    for fault in [Fault::Mute, Fault::Full] {
        let (streams, mut told) = streams(fault).await;
        let mut sink = streams.begin("s");
        for _ in 0..40 {
            assert!(sink.piece(&[7; 60 << 10]));
        }
        refused(&sink).await;
        assert!(!sink.piece(b"more"));
        streams.emptied().await;
        told.recv().await.unwrap();
    }
}

#[tokio::test]
async fn what_waits_is_bounded_for_each_stream_and_for_all() {
    let (streams, _told) = streams(Fault::Mute).await;
    let mut sinks = Vec::new();
    let mut taken = 0;
    loop {
        let mut sink = streams.begin("s");
        let mut here = 0;
        // Tiny pieces: what holds them counts too.
        while sink.piece(b"x") {
            here += 1 + PER_PIECE;
        }
        assert!(here <= WAITING);
        taken += here;
        sinks.push(sink);
        if here == 0 {
            break;
        }
    }
    assert!(taken <= ALL_WAITING);
    assert!(taken > ALL_WAITING - 2 * (1 + PER_PIECE), "{taken}");
    assert!(sinks.len() > 2);
    // All of it is free again once they are given up.
    streams.emptied().await;
}
