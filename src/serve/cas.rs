//! The ContentAddressableStorage service: many small blobs per call, grouped on the disk.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use tonic::{Code, Request, Response, Status};

use super::request::{blocking, code, digest, digests, failed, function, instance};
use super::{MAX_BATCH, compress, get_tree};
use crate::cas::LocalStore;
use crate::reapi::Digest;
use crate::reapi::proto::re;
use crate::reapi::proto::re::content_addressable_storage_server::ContentAddressableStorage;
use crate::reapi::proto::rpc;
use crate::reapi::status::{ok, status};

/// Smaller blobs are not worth packing.
const PACK_FROM: usize = 512;

/// The ContentAddressableStorage service.
pub(super) struct CasService {
    pub(super) store: Arc<LocalStore>,
    pub(super) trees: get_tree::Trees,
}

/// One blob to be kept, as far as the request could be read.
struct Incoming {
    digest: Digest,
    data: Bytes,
    packed: bool,
}

impl Incoming {
    fn keep(self, store: &LocalStore) -> rpc::Status {
        let mismatch = |what: String| status(Code::InvalidArgument, what);
        let unpacked;
        let data: &[u8] = if self.packed {
            match compress::unpack(&self.data, self.digest.size() as usize) {
                Ok(data) => {
                    unpacked = data;
                    &unpacked
                }
                Err(why) => return mismatch(format!("data of blob {}: {why}", self.digest)),
            }
        } else {
            &self.data
        };
        if data.len() as u64 != self.digest.size() {
            return mismatch(format!(
                "data of blob {} has {} bytes",
                self.digest,
                data.len()
            ));
        }
        match store.put(self.digest, data, false) {
            Ok(()) => ok(),
            Err(error) => status(code(&error), error.to_string()),
        }
    }
}

fn too_large(total: u64) -> Status {
    Status::invalid_argument(format!(
        "the blobs of this batch have {total} bytes in all, and a batch has at most {MAX_BATCH}; use ByteStream for large blobs"
    ))
}

#[tonic::async_trait]
impl ContentAddressableStorage for CasService {
    async fn find_missing_blobs(
        &self,
        request: Request<re::FindMissingBlobsRequest>,
    ) -> Result<Response<re::FindMissingBlobsResponse>, Status> {
        let request = request.into_inner();
        instance(&request.instance_name)?;
        let function = function(request.digest_function)?;
        let wanted = digests("blob_digests", function, &request.blob_digests)?;
        let store = self.store.clone();
        let missing = blocking(move || Ok(store.missing(&wanted))).await?;
        Ok(Response::new(re::FindMissingBlobsResponse {
            missing_blob_digests: missing.into_iter().map(Digest::to_proto).collect(),
        }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<re::BatchUpdateBlobsRequest>,
    ) -> Result<Response<re::BatchUpdateBlobsResponse>, Status> {
        let request = request.into_inner();
        instance(&request.instance_name)?;
        let function = function(request.digest_function)?;
        let mut total = 0u64;
        let mut blobs = Vec::with_capacity(request.requests.len());
        for (i, one) in request.requests.into_iter().enumerate() {
            let field = format!("requests[{i}].digest");
            let digest = digest(&field, function, one.digest.as_ref())?;
            let packed = match re::compressor::Value::try_from(one.compressor) {
                Ok(re::compressor::Value::Identity) => false,
                Ok(re::compressor::Value::Zstd) => true,
                _ => {
                    return Err(Status::invalid_argument(format!(
                        "requests[{i}].compressor: number {} is not supported; IDENTITY and ZSTD are",
                        one.compressor
                    )));
                }
            };
            // Whichever is larger, the content or what travels, counts.
            total = total.saturating_add(digest.size().max(one.data.len() as u64));
            blobs.push(Incoming {
                digest,
                data: one.data,
                packed,
            });
        }
        if total > MAX_BATCH {
            return Err(too_large(total));
        }
        let store = self.store.clone();
        let responses = blocking(move || {
            Ok(blobs
                .into_iter()
                .map(|blob| re::batch_update_blobs_response::Response {
                    digest: Some(blob.digest.to_proto()),
                    status: Some(blob.keep(&store)),
                })
                .collect())
        })
        .await?;
        Ok(Response::new(re::BatchUpdateBlobsResponse { responses }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<re::BatchReadBlobsRequest>,
    ) -> Result<Response<re::BatchReadBlobsResponse>, Status> {
        let request = request.into_inner();
        instance(&request.instance_name)?;
        let function = function(request.digest_function)?;
        let wanted = digests("digests", function, &request.digests)?;
        let total = wanted
            .iter()
            .fold(0u64, |total, digest| total.saturating_add(digest.size()));
        if total > MAX_BATCH {
            return Err(too_large(total));
        }
        let zstd = request
            .acceptable_compressors
            .contains(&(re::compressor::Value::Zstd as i32));
        let store = self.store.clone();
        let responses = blocking(move || {
            Ok(wanted
                .into_iter()
                .map(|digest| read(&store, digest, zstd))
                .collect())
        })
        .await?;
        Ok(Response::new(re::BatchReadBlobsResponse { responses }))
    }

    type GetTreeStream = Pin<Box<dyn Stream<Item = Result<re::GetTreeResponse, Status>> + Send>>;

    async fn get_tree(
        &self,
        request: Request<re::GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        let request = request.into_inner();
        instance(&request.instance_name)?;
        let function = function(request.digest_function)?;
        let root = digest("root_digest", function, request.root_digest.as_ref())?;
        let (store, token) = (self.store.clone(), &request.page_token);
        let pages = self.trees.pages(store, root, request.page_size, token);
        Ok(Response::new(pages.await?))
    }

    async fn split_blob(
        &self,
        _: Request<re::SplitBlobRequest>,
    ) -> Result<Response<re::SplitBlobResponse>, Status> {
        Err(Status::unimplemented(
            "this server does not split blobs; its capabilities say so",
        ))
    }

    async fn splice_blob(
        &self,
        _: Request<re::SpliceBlobRequest>,
    ) -> Result<Response<re::SpliceBlobResponse>, Status> {
        Err(Status::unimplemented(
            "this server does not splice blobs; its capabilities say so",
        ))
    }
}

fn read(store: &LocalStore, digest: Digest, zstd: bool) -> re::batch_read_blobs_response::Response {
    let (data, told) = match store.read(digest, MAX_BATCH) {
        Ok(Some(data)) => (data, ok()),
        Ok(None) => (
            Bytes::new(),
            status(Code::NotFound, format!("blob {digest} is not in the CAS")),
        ),
        Err(error) => {
            let error = failed(error);
            (Bytes::new(), status(error.code(), error.message()))
        }
    };
    let packed = (zstd && data.len() >= PACK_FROM)
        .then(|| compress::pack(&data))
        .flatten();
    let compressor = match packed {
        Some(_) => re::compressor::Value::Zstd,
        None => re::compressor::Value::Identity,
    };
    re::batch_read_blobs_response::Response {
        digest: Some(digest.to_proto()),
        data: packed.map_or(data, Bytes::from),
        compressor: compressor as i32,
        status: Some(told),
    }
}
