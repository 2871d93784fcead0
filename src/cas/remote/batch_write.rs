//! BatchUpdateBlobs: small blobs, many in a call; one that fails alone is sent again alone.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstEncoder;

use super::retry::{Retry, is_transient};
use super::{CONCURRENT_CALLS, LARGEST_MESSAGE, Line, Load, RemoteCas, stream_write, zstd};
use crate::cas::CasError;
use crate::cas::pack::pack;
use crate::reapi::codec::Reads;
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

const CALL: &str = "BatchUpdateBlobs";

/// Batches above this size travel on the connections for bulk data.
const LIGHT: u64 = 64 << 10;

struct Batch {
    blobs: Vec<(Digest, Bytes)>,
    retry: Retry,
    pause: Duration,
}

/// See [`crate::cas::BlobSource::write_batch`].
pub(super) async fn write_batch(
    cas: &RemoteCas,
    blobs: Vec<(Digest, Bytes)>,
) -> Result<(), CasError> {
    if blobs.is_empty() {
        return Ok(());
    }
    let limits = cas.limits().await?;
    let mut unique = HashMap::with_capacity(blobs.len());
    for (digest, bytes) in blobs {
        limits
            .check_write(digest)
            .map_err(|status| cas.error(CALL, status))?;
        if bytes.len() as u64 != digest.size() {
            return Err(CasError::Corrupt {
                expected: digest,
                actual: digest.function().digest(&bytes),
            });
        }
        unique.insert(digest, bytes);
    }
    let (small, large): (Vec<_>, Vec<_>) = unique
        .into_iter()
        .partition(|(digest, _)| digest.size() <= limits.largest_in_batch());
    let mut waiting: VecDeque<Batch> = pack(small, limits.batch, |(digest, _)| *digest)
        .into_iter()
        .map(|blobs| Batch {
            blobs,
            retry: cas.retry(),
            pause: Duration::ZERO,
        })
        .collect();
    let zstd = limits.zstd_updates && cas.inner.compress;
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() < CONCURRENT_CALLS
            && let Some(batch) = waiting.pop_front()
        {
            under_way.push(one_call(cas, batch, zstd));
        }
        let Some(again) = under_way.next().await else {
            break;
        };
        waiting.extend(again?);
    }
    // The caller's idea of what is small may be older than the server's.
    for (digest, bytes) in large {
        stream_write::write_stream(cas, digest, stream_write::Origin::Memory(bytes)).await?;
    }
    Ok(())
}

/// Sends one batch; returns what of it must be sent again.
async fn one_call(cas: &RemoteCas, batch: Batch, zstd: bool) -> Result<Option<Batch>, CasError> {
    if !batch.pause.is_zero() {
        tokio::time::sleep(batch.pause).await;
    }
    let function = batch
        .blobs
        .first()
        .map_or_else(DigestFunction::default, |(d, _)| d.function());
    let size: u64 = batch.blobs.iter().map(|(d, _)| d.size()).sum();
    let requests = if zstd
        && batch
            .blobs
            .iter()
            .any(|(d, _)| d.size() >= zstd::WORTH_FROM)
    {
        let blobs = batch.blobs.clone();
        tokio::task::spawn_blocking(move || requests(&blobs, true))
            .await
            .unwrap_or_else(|_| requests(&batch.blobs, false))
    } else {
        requests(&batch.blobs, false)
    };
    let message = re::BatchUpdateBlobsRequest {
        instance_name: cas.inner.config.instance.clone(),
        requests,
        digest_function: function.to_proto() as i32,
    };
    let load = if size <= LIGHT { Load::Light } else { Load::Up };
    let answer = cas
        .unary(CALL, load, |line| {
            let request = cas.unary_request(message.clone());
            send(line, request)
        })
        .await?;
    let mut open: HashMap<Digest, Bytes> = batch.blobs.into_iter().collect();
    let mut again = Vec::new();
    let mut failure = None;
    for response in answer.responses {
        let digest = Digest::from_proto(function, response.digest.as_ref())
            .map_err(|e| cas.error(CALL, Status::data_loss(format!("malformed answer: {e}"))))?;
        let Some(bytes) = open.remove(&digest) else {
            let why = format!("the answer names blob {digest}, which was not sent, or twice");
            return Err(cas.error(CALL, Status::data_loss(why)));
        };
        let status = response.status.unwrap_or_default();
        match Code::from_i32(status.code) {
            Code::Ok | Code::AlreadyExists => {}
            code => {
                let status = Status::new(code, format!("blob {digest}: {}", status.message));
                if !is_transient(&status) {
                    return Err(cas.error(CALL, status));
                }
                again.push((digest, bytes));
                failure = Some(status);
            }
        }
    }
    // Not a word on a blob: it may or may not be there, and sending it twice does no harm.
    for (digest, bytes) in open {
        failure.get_or_insert_with(|| {
            Status::data_loss(format!("blob {digest}: the answer leaves it out"))
        });
        again.push((digest, bytes));
    }
    let Some(failure) = failure else {
        return Ok(None);
    };
    let mut retry = batch.retry;
    match retry.next(&failure) {
        Some(pause) => Ok(Some(Batch {
            blobs: again,
            retry,
            pause,
        })),
        None => Err(cas.error(CALL, failure)),
    }
}

const PATH: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs";

/// The generated client would encode into a buffer that begins small and is copied each time that it doubles.
async fn send(
    line: Line,
    request: Request<re::BatchUpdateBlobsRequest>,
) -> Result<Response<re::BatchUpdateBlobsResponse>, Status> {
    let codec = AtOnce {
        size: request.get_ref().encoded_len(),
    };
    let mut client = tonic::client::Grpc::new(line).max_decoding_message_size(LARGEST_MESSAGE);
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(PATH);
    client.unary(request, path, codec).await
}

/// Encodes a message of a size that is known.
struct AtOnce {
    size: usize,
}

impl Codec for AtOnce {
    type Encode = re::BatchUpdateBlobsRequest;
    type Decode = re::BatchUpdateBlobsResponse;
    type Encoder = ProstEncoder<Self::Encode>;
    type Decoder = Reads<Self::Decode>;

    fn encoder(&mut self) -> Self::Encoder {
        // gRPC puts five bytes before each message; the other number is the library's own.
        ProstEncoder::new(BufferSettings::new(self.size + 5, 32 << 10))
    }

    fn decoder(&mut self) -> Self::Decoder {
        Reads::default()
    }
}

fn requests(blobs: &[(Digest, Bytes)], zstd: bool) -> Vec<re::batch_update_blobs_request::Request> {
    blobs
        .iter()
        .map(|(digest, bytes)| {
            let packed = (zstd && digest.size() >= zstd::WORTH_FROM)
                .then(|| zstd::pack(bytes))
                .flatten();
            let compressor = match packed {
                Some(_) => re::compressor::Value::Zstd,
                None => re::compressor::Value::Identity,
            };
            re::batch_update_blobs_request::Request {
                digest: Some(digest.to_proto()),
                data: packed.unwrap_or_else(|| bytes.clone()),
                compressor: compressor as i32,
            }
        })
        .collect()
}
