//! An execution service for tests that does what a script says: each Execute or WaitExecution call gets the next
//! turn. Its CAS claims to have everything, and gives what it was told to under a digest, right or wrong.
#![allow(dead_code)] // each test file uses its own part

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use boxwright::reapi::any::pack;
use boxwright::reapi::proto::bytestream::byte_stream_server::{ByteStream, ByteStreamServer};
use boxwright::reapi::proto::longrunning::{Operation, operation};
use boxwright::reapi::proto::re::content_addressable_storage_server::{
    ContentAddressableStorage, ContentAddressableStorageServer,
};
use boxwright::reapi::proto::re::execution_server::{Execution, ExecutionServer};
use boxwright::reapi::proto::{bytestream, re};
use boxwright::reapi::{Digest, DigestFunction};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

type Stream<T> = futures::stream::BoxStream<'static, Result<T, Status>>;

/// What one call gets: these operations, then the end of the stream, well or not.
pub(crate) struct Turn {
    pub(crate) operations: Vec<Operation>,
    pub(crate) end: Result<(), Status>,
    /// Whether it waits for [`Script::open`].
    pub(crate) gated: bool,
}

/// The script, and what was asked.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) turns: Mutex<VecDeque<Turn>>,
    /// `execute` or `wait NAME`, in order.
    pub(crate) calls: Mutex<Vec<String>>,
    /// Lets gated turns begin.
    pub(crate) open: tokio::sync::Notify,
    /// Contents by hash.
    pub(crate) blobs: Mutex<HashMap<String, Bytes>>,
    /// Live streams by name: their pieces.
    pub(crate) streams: Mutex<HashMap<String, Vec<Bytes>>>,
    /// Blobs that are given out in part, by hash: what was to follow never comes.
    pub(crate) stalled: Mutex<HashSet<String>>,
    /// Told whenever one of these was given out.
    pub(crate) stalls: tokio::sync::Notify,
}

/// The name of the operation.
pub(crate) const OPERATION: &str = "operations/1";

/// An operation that goes on.
pub(crate) fn executing(stdout_stream: &str) -> Operation {
    let metadata = re::ExecuteOperationMetadata {
        stage: re::execution_stage::Value::Executing as i32,
        stdout_stream_name: stdout_stream.to_owned(),
        ..Default::default()
    };
    Operation {
        name: OPERATION.to_owned(),
        metadata: Some(pack(&metadata)),
        ..Default::default()
    }
}

/// The operation with its response.
pub(crate) fn done(response: re::ExecuteResponse) -> Operation {
    Operation {
        name: OPERATION.to_owned(),
        done: true,
        result: Some(operation::Result::Response(pack(&response))),
        ..Default::default()
    }
}

/// The operation with a result.
pub(crate) fn result(result: re::ActionResult) -> Operation {
    done(re::ExecuteResponse {
        result: Some(result),
        ..Default::default()
    })
}

impl Script {
    /// Serves at a socket in `dir` until the test ends; the address.
    pub(crate) fn serve(self: &Arc<Self>, dir: &Path) -> String {
        let path = dir.join("socket");
        let listener = UnixListenerStream::new(tokio::net::UnixListener::bind(&path).unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(ExecutionServer::from_arc(self.clone()))
            .add_service(ContentAddressableStorageServer::from_arc(self.clone()))
            .add_service(ByteStreamServer::from_arc(self.clone()));
        tokio::spawn(server.serve_with_incoming(listener));
        format!("unix:{}", path.display())
    }

    pub(crate) fn turn(&self, operations: Vec<Operation>, end: Result<(), Status>) {
        let gated = false;
        self.turns.lock().push_back(Turn {
            operations,
            end,
            gated,
        });
    }

    /// A turn that waits for [`Script::open`], and ends well.
    pub(crate) fn gated_turn(&self, operations: Vec<Operation>) {
        self.turn(operations, Ok(()));
        if let Some(turn) = self.turns.lock().back_mut() {
            turn.gated = true;
        }
    }

    /// Gives this content out under the digest of that one.
    pub(crate) fn blob(&self, name: &[u8], content: &[u8]) -> re::Digest {
        let digest: Digest = DigestFunction::Sha256.digest(name);
        self.blobs
            .lock()
            .insert(digest.hash_hex(), Bytes::copy_from_slice(content));
        digest.to_proto()
    }

    async fn next(&self, call: String) -> Result<Response<Stream<Operation>>, Status> {
        self.calls.lock().push(call);
        let turn = self
            .turns
            .lock()
            .pop_front()
            .ok_or_else(|| Status::internal("the script is over"))?;
        if turn.gated {
            self.open.notified().await;
        }
        if turn.operations.is_empty() {
            turn.end?;
            return Err(Status::internal("an empty turn"));
        }
        let items = turn
            .operations
            .into_iter()
            .map(Ok)
            .chain(turn.end.err().map(Err));
        Ok(Response::new(Box::pin(futures::stream::iter(
            items.collect::<Vec<_>>(),
        ))))
    }
}

#[tonic::async_trait]
impl Execution for Script {
    type ExecuteStream = Stream<Operation>;
    type WaitExecutionStream = Stream<Operation>;

    async fn execute(
        &self,
        _request: Request<re::ExecuteRequest>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        self.next("execute".to_owned()).await
    }

    async fn wait_execution(
        &self,
        request: Request<re::WaitExecutionRequest>,
    ) -> Result<Response<Self::WaitExecutionStream>, Status> {
        self.next(format!("wait {}", request.into_inner().name))
            .await
    }
}

#[tonic::async_trait]
impl ContentAddressableStorage for Script {
    type GetTreeStream = Stream<re::GetTreeResponse>;

    async fn find_missing_blobs(
        &self,
        _request: Request<re::FindMissingBlobsRequest>,
    ) -> Result<Response<re::FindMissingBlobsResponse>, Status> {
        Ok(Response::new(re::FindMissingBlobsResponse::default()))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<re::BatchReadBlobsRequest>,
    ) -> Result<Response<re::BatchReadBlobsResponse>, Status> {
        let blobs = self.blobs.lock();
        let read = |digest: re::Digest| {
            let data = blobs.get(&digest.hash).cloned();
            re::batch_read_blobs_response::Response {
                status: Some(boxwright::reapi::status::status(
                    if data.is_some() {
                        Code::Ok
                    } else {
                        Code::NotFound
                    },
                    "",
                )),
                data: data.unwrap_or_default(),
                digest: Some(digest),
                ..Default::default()
            }
        };
        let responses = request.into_inner().digests.into_iter().map(read).collect();
        Ok(Response::new(re::BatchReadBlobsResponse { responses }))
    }

    async fn batch_update_blobs(
        &self,
        _request: Request<re::BatchUpdateBlobsRequest>,
    ) -> Result<Response<re::BatchUpdateBlobsResponse>, Status> {
        Err(Status::internal("nothing was missing"))
    }

    async fn get_tree(
        &self,
        _request: Request<re::GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn split_blob(
        &self,
        _request: Request<re::SplitBlobRequest>,
    ) -> Result<Response<re::SplitBlobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn splice_blob(
        &self,
        _request: Request<re::SpliceBlobRequest>,
    ) -> Result<Response<re::SpliceBlobResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl ByteStream for Script {
    type ReadStream = Stream<bytestream::ReadResponse>;

    async fn read(
        &self,
        request: Request<bytestream::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let name = request.into_inner().resource_name;
        let hash = name.rsplit('/').nth(1).unwrap_or_default().to_owned();
        let streamed = self.streams.lock().get(&name).cloned();
        let blob = self.blobs.lock().get(&hash).cloned();
        let pieces = streamed
            .or(blob.map(|blob| vec![blob]))
            .ok_or_else(|| Status::not_found(name))?;
        let pieces = pieces
            .into_iter()
            .map(|data| Ok(bytestream::ReadResponse { data }));
        let pieces = futures::stream::iter(pieces);
        if self.stalled.lock().contains(&hash) {
            self.stalls.notify_one();
            let never = futures::stream::pending();
            return Ok(Response::new(Box::pin(pieces.chain(never))));
        }
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn write(
        &self,
        _request: Request<tonic::Streaming<bytestream::WriteRequest>>,
    ) -> Result<Response<bytestream::WriteResponse>, Status> {
        Err(Status::internal("nothing was missing"))
    }

    async fn query_write_status(
        &self,
        _request: Request<bytestream::QueryWriteStatusRequest>,
    ) -> Result<Response<bytestream::QueryWriteStatusResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
