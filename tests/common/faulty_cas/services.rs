//! The faulty Capabilities and ContentAddressableStorage services.

use std::pin::Pin;

use boxwright::reapi::proto::re;
use boxwright::reapi::proto::re::capabilities_server::Capabilities;
use boxwright::reapi::proto::re::content_addressable_storage_server::ContentAddressableStorage;
use boxwright::reapi::{Digest, status};
use bytes::Bytes;
use prost::Message;
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status};

use super::{Content, FaultyCas, SHA256, ZSTD, digest_of, take};

#[tonic::async_trait]
impl Capabilities for FaultyCas {
    async fn get_capabilities(
        &self,
        request: Request<re::GetCapabilitiesRequest>,
    ) -> Result<Response<re::ServerCapabilities>, Status> {
        self.enter("GetCapabilities", &request).await?;
        Ok(Response::new(re::ServerCapabilities {
            cache_capabilities: Some(self.state.capabilities.lock().clone()),
            ..Default::default()
        }))
    }
}

#[tonic::async_trait]
impl ContentAddressableStorage for FaultyCas {
    async fn find_missing_blobs(
        &self,
        request: Request<re::FindMissingBlobsRequest>,
    ) -> Result<Response<re::FindMissingBlobsResponse>, Status> {
        self.enter("FindMissingBlobs", &request).await?;
        let blobs = self.state.blobs.lock();
        let mut missing: Vec<re::Digest> = request
            .into_inner()
            .blob_digests
            .into_iter()
            .filter(|d| !blobs.contains_key(&digest_of(&Some(d.clone()))))
            .collect();
        missing.extend(self.state.faults.lock().intruder.map(Digest::to_proto));
        Ok(Response::new(re::FindMissingBlobsResponse {
            missing_blob_digests: missing,
        }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<re::BatchUpdateBlobsRequest>,
    ) -> Result<Response<re::BatchUpdateBlobsResponse>, Status> {
        self.enter("BatchUpdateBlobs", &request).await?;
        let request = request.into_inner();
        self.state
            .seen
            .lock()
            .update_sizes
            .push(request.encoded_len());
        let mut responses = Vec::new();
        for update in request.requests {
            let digest = digest_of(&update.digest);
            let failing = {
                let mut faults = self.state.faults.lock();
                match faults.blob_fails.get_mut(&digest) {
                    Some((code, count)) => take(Some(count)).then_some(*code),
                    None => None,
                }
            };
            let data = match update.compressor {
                ZSTD => {
                    self.state.seen.lock().packed_updates += 1;
                    zstd::decode_all(&update.data[..]).unwrap().into()
                }
                _ => update.data,
            };
            let status = match failing {
                Some(code) => status::status(code, "as the test wants it"),
                None if SHA256.digest(&data) == digest => {
                    self.put(data);
                    status::ok()
                }
                None => status::status(Code::InvalidArgument, "other digest"),
            };
            let faults = self.state.faults.lock();
            let response = re::batch_update_blobs_response::Response {
                digest: update.digest,
                status: Some(status),
            };
            if faults.twice.contains(&digest) {
                responses.push(response.clone());
            }
            if !faults.omit.contains(&digest) {
                responses.push(response);
            }
        }
        let more = responses.len() + self.state.faults.lock().empty_entries;
        responses.resize(more, Default::default());
        if let Some(intruder) = self.state.faults.lock().intruder {
            responses.push(re::batch_update_blobs_response::Response {
                digest: Some(intruder.to_proto()),
                status: None,
            });
        }
        Ok(Response::new(re::BatchUpdateBlobsResponse { responses }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<re::BatchReadBlobsRequest>,
    ) -> Result<Response<re::BatchReadBlobsResponse>, Status> {
        self.enter("BatchReadBlobs", &request).await?;
        let request = request.into_inner();
        let asked: Vec<Digest> = request
            .digests
            .iter()
            .map(|d| digest_of(&Some(d.clone())))
            .collect();
        self.state.seen.lock().batches.push(asked.clone());
        let total: u64 = asked.iter().map(|d| d.size()).sum();
        let limit = self.state.capabilities.lock().max_batch_total_size_bytes;
        if limit > 0 && total > limit as u64 {
            return Err(Status::invalid_argument(
                "the batch is larger than announced",
            ));
        }
        let mut responses = Vec::new();
        for digest in asked {
            let failing = {
                let mut faults = self.state.faults.lock();
                match faults.blob_fails.get_mut(&digest) {
                    Some((code, count)) => take(Some(count)).then_some(*code),
                    None => None,
                }
            };
            let mut response = re::batch_read_blobs_response::Response {
                digest: Some(digest.to_proto()),
                ..Default::default()
            };
            match (failing, self.get(digest)) {
                (Some(code), _) => {
                    response.status = Some(status::status(code, "as the test wants it"));
                }
                (None, None) => response.status = Some(status::status(Code::NotFound, "")),
                (None, Some(data)) => {
                    *self.state.seen.lock().sent.entry(digest).or_default() += 1;
                    response.data = self.wrong(digest, data);
                    if request.acceptable_compressors.contains(&ZSTD) {
                        response.compressor = ZSTD;
                        response.data = self.packed(&response.data);
                    }
                }
            }
            let faults = self.state.faults.lock();
            if faults.twice.contains(&digest) {
                responses.push(response.clone());
            }
            if !faults.omit.contains(&digest) {
                responses.push(response);
            }
        }
        let faults = self.state.faults.lock();
        if let Some(intruder) = faults.intruder {
            responses.push(re::batch_read_blobs_response::Response {
                digest: Some(intruder.to_proto()),
                ..Default::default()
            });
        }
        if faults.ballast > 0
            && let Some(first) = responses.first_mut()
        {
            first.data = vec![0; faults.ballast].into();
        }
        Ok(Response::new(re::BatchReadBlobsResponse { responses }))
    }

    type GetTreeStream =
        Pin<Box<dyn Stream<Item = Result<re::GetTreeResponse, Status>> + Send + 'static>>;

    /// The tree is every stored blob that is a Directory message, one a page.
    async fn get_tree(
        &self,
        request: Request<re::GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        self.enter("GetTree", &request).await?;
        let from: usize = request.get_ref().page_token.parse().unwrap_or(0);
        let mut messages: Vec<Bytes> = self
            .state
            .blobs
            .lock()
            .values()
            .map(|content| match content {
                Content::Bytes(bytes) => bytes.clone(),
                Content::Pattern(_) => Bytes::new(),
            })
            .collect();
        messages.sort();
        let pages = messages.len();
        let breaks = self.state.faults.lock().tree_breaks.pop_front();
        let mut answers: Vec<Result<re::GetTreeResponse, Status>> = messages
            .into_iter()
            .enumerate()
            .skip(from)
            .map(|(n, bytes)| {
                Ok(re::GetTreeResponse {
                    directories: vec![re::Directory::decode(bytes).unwrap()],
                    next_page_token: match n + 1 < pages {
                        true => (n + 1).to_string(),
                        false => String::new(),
                    },
                })
            })
            .collect();
        if let Some(after) = breaks {
            answers.truncate(after);
            answers.push(Err(Status::unavailable("broken by the test")));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    async fn split_blob(
        &self,
        _: Request<re::SplitBlobRequest>,
    ) -> Result<Response<re::SplitBlobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn splice_blob(
        &self,
        _: Request<re::SpliceBlobRequest>,
    ) -> Result<Response<re::SpliceBlobResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

impl FaultyCas {
    pub(super) fn packed(&self, data: &[u8]) -> Bytes {
        let faults = self.state.faults.lock();
        if faults.damaged_zstd {
            return Bytes::from_static(b"this is no zstd frame at all");
        }
        match faults.bomb {
            true => zstd::bulk::compress(&vec![0; 256 << 20], 1).unwrap().into(),
            false => zstd::bulk::compress(data, 1).unwrap().into(),
        }
    }
}
