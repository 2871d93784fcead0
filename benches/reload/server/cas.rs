//! ContentAddressableStorage, ByteStream and ActionCache of the benchmark scheduler.

use std::collections::{HashSet, VecDeque};
use std::pin::Pin;

use boxwright::reapi::proto::{bytestream as bs, re, rpc};
use boxwright::reapi::resource::BlobName;
use bytes::BytesMut;
use prost::Message;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::Server;

pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

const PIECE: usize = 1 << 20;
const PAGE: usize = 2 << 20;

fn name(text: &str, write: bool) -> Result<BlobName, Status> {
    let parse = if write {
        BlobName::parse_write
    } else {
        BlobName::parse_read
    };
    parse(text).map_err(|e| Status::invalid_argument(e.to_string()))
}

#[tonic::async_trait]
impl re::content_addressable_storage_server::ContentAddressableStorage for Server {
    async fn find_missing_blobs(
        &self,
        request: Request<re::FindMissingBlobsRequest>,
    ) -> Result<Response<re::FindMissingBlobsResponse>, Status> {
        self.0.counts.add("FindMissingBlobs");
        let mut missing = Vec::new();
        for digest in request.into_inner().blob_digests {
            if !self.has(self.digest(Some(&digest))?) {
                missing.push(digest);
            }
        }
        Ok(Response::new(re::FindMissingBlobsResponse {
            missing_blob_digests: missing,
        }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<re::BatchUpdateBlobsRequest>,
    ) -> Result<Response<re::BatchUpdateBlobsResponse>, Status> {
        self.0.counts.add("BatchUpdateBlobs");
        let mut responses = Vec::new();
        for blob in request.into_inner().requests {
            let put = self.put(self.digest(blob.digest.as_ref())?, blob.data);
            responses.push(re::batch_update_blobs_response::Response {
                digest: blob.digest,
                status: Some(outcome(put.err())),
            });
        }
        Ok(Response::new(re::BatchUpdateBlobsResponse { responses }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<re::BatchReadBlobsRequest>,
    ) -> Result<Response<re::BatchReadBlobsResponse>, Status> {
        self.0.counts.add("BatchReadBlobs");
        let mut responses = Vec::new();
        for digest in request.into_inner().digests {
            let got = self
                .digest(Some(&digest))
                .and_then(|digest| self.get(digest));
            let (data, error) = match got {
                Ok(data) => (data, None),
                Err(error) => (Default::default(), Some(error)),
            };
            responses.push(re::batch_read_blobs_response::Response {
                digest: Some(digest),
                data,
                status: Some(outcome(error)),
                ..Default::default()
            });
        }
        Ok(Response::new(re::BatchReadBlobsResponse { responses }))
    }

    type GetTreeStream = Answers<re::GetTreeResponse>;

    async fn get_tree(
        &self,
        request: Request<re::GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        self.0.counts.add("GetTree");
        let root = self.digest(request.get_ref().root_digest.as_ref())?;
        let (mut pages, mut page, mut held) = (Vec::new(), Vec::new(), 0);
        let (mut seen, mut ahead) = (HashSet::from([root]), VecDeque::from([root]));
        while let Some(digest) = ahead.pop_front() {
            let directory = re::Directory::decode(self.get(digest)?)
                .map_err(|e| Status::invalid_argument(e.to_string()))?;
            for child in &directory.directories {
                let child = self.digest(child.digest.as_ref())?;
                if seen.insert(child) {
                    ahead.push_back(child);
                }
            }
            held += digest.size() as usize;
            page.push(directory);
            if held > PAGE || ahead.is_empty() {
                pages.push(Ok(re::GetTreeResponse {
                    directories: std::mem::take(&mut page),
                    ..Default::default()
                }));
                held = 0;
            }
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }

    async fn split_blob(
        &self,
        _: Request<re::SplitBlobRequest>,
    ) -> Result<Response<re::SplitBlobResponse>, Status> {
        Err(Status::unimplemented("SplitBlob"))
    }

    async fn splice_blob(
        &self,
        _: Request<re::SpliceBlobRequest>,
    ) -> Result<Response<re::SpliceBlobResponse>, Status> {
        Err(Status::unimplemented("SpliceBlob"))
    }
}

fn outcome(error: Option<Status>) -> rpc::Status {
    match error {
        None => rpc::Status::default(),
        Some(status) => rpc::Status {
            code: status.code() as i32,
            message: status.message().to_owned(),
            details: Vec::new(),
        },
    }
}

#[tonic::async_trait]
impl bs::byte_stream_server::ByteStream for Server {
    type ReadStream = Answers<bs::ReadResponse>;

    async fn read(
        &self,
        request: Request<bs::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        self.0.counts.add("Read");
        let request = request.into_inner();
        let blob = self.get(name(&request.resource_name, false)?.digest)?;
        let offset = usize::try_from(request.read_offset).unwrap_or(usize::MAX);
        if offset > blob.len() {
            return Err(Status::out_of_range("read_offset"));
        }
        let wanted = match usize::try_from(request.read_limit) {
            Ok(limit) if limit > 0 => blob.slice(offset..blob.len().min(offset + limit)),
            _ => blob.slice(offset..),
        };
        let pieces = (0..wanted.len().div_ceil(PIECE)).map(move |i| {
            Ok(bs::ReadResponse {
                data: wanted.slice(i * PIECE..wanted.len().min((i + 1) * PIECE)),
            })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn write(
        &self,
        request: Request<Streaming<bs::WriteRequest>>,
    ) -> Result<Response<bs::WriteResponse>, Status> {
        self.0.counts.add("Write");
        let mut stream = request.into_inner();
        let (mut digest, mut data) = (None, BytesMut::new());
        while let Some(part) = stream.message().await? {
            if digest.is_none() {
                digest = Some(name(&part.resource_name, true)?.digest);
            }
            data.extend_from_slice(&part.data);
        }
        let digest = digest.ok_or_else(|| Status::invalid_argument("an empty stream"))?;
        self.put(digest, data.freeze())?;
        Ok(Response::new(bs::WriteResponse {
            committed_size: digest.size() as i64,
        }))
    }

    async fn query_write_status(
        &self,
        request: Request<bs::QueryWriteStatusRequest>,
    ) -> Result<Response<bs::QueryWriteStatusResponse>, Status> {
        let digest = name(&request.get_ref().resource_name, true)?.digest;
        let complete = self.has(digest);
        Ok(Response::new(bs::QueryWriteStatusResponse {
            committed_size: if complete { digest.size() as i64 } else { 0 },
            complete,
        }))
    }
}

#[tonic::async_trait]
impl re::action_cache_server::ActionCache for Server {
    async fn get_action_result(
        &self,
        request: Request<re::GetActionResultRequest>,
    ) -> Result<Response<re::ActionResult>, Status> {
        let action = self.digest(request.get_ref().action_digest.as_ref())?;
        let results = self.0.results.lock().expect("results");
        let result = results.get(&action).cloned();
        result
            .map(Response::new)
            .ok_or_else(|| Status::not_found(format!("no result of action {action}")))
    }

    async fn update_action_result(
        &self,
        _: Request<re::UpdateActionResultRequest>,
    ) -> Result<Response<re::ActionResult>, Status> {
        Err(Status::permission_denied(
            "the scheduler itself writes the action cache",
        ))
    }
}
