//! ByteStream.Read: blobs, plain or packed, and live output.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::unfold;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Code, Status};

use super::super::compress::Deflate;
use super::super::pieces::Pieces;
use super::super::request::{blocking, failed, instance};
use super::{ByteStreamService, Reading};
use crate::cas::LocalStore;
use crate::reapi::Digest;
use crate::reapi::proto::bytestream as bs;
use crate::reapi::resource::{BlobName, Compressor};
use crate::scheduler::embedded::{Follower, StreamError};

/// Bytes of a blob that are read and sent at a time.
const PIECE: usize = 256 << 10;
/// What live output is named by; an instance name may come before it.
const STREAMS: &str = "logStreams/";

/// A blob on its way out.
struct Outgoing {
    digest: Digest,
    file: File,
    at: u64,
    end: u64,
    deflate: Option<Deflate>,
    _permit: OwnedSemaphorePermit,
}

impl Pieces for Outgoing {
    type Piece = Bytes;

    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let broken = |what: &str, error: std::io::Error| {
            Status::internal(format!("cannot {what} blob {}: {error}", self.digest))
        };
        let mut packed = Vec::new();
        while self.at < self.end {
            let mut data = vec![0; PIECE.min((self.end - self.at) as usize)];
            self.file
                .read_exact_at(&mut data, self.at)
                .map_err(|error| broken("read", error))?;
            self.at += data.len() as u64;
            let Some(deflate) = &mut self.deflate else {
                return Ok(Some(data.into()));
            };
            deflate
                .push(&data, &mut packed)
                .map_err(|error| broken("pack", error))?;
            // What packs well is worth collecting until it makes a piece.
            if packed.len() >= PIECE / 4 {
                return Ok(Some(packed.into()));
            }
        }
        if let Some(mut deflate) = self.deflate.take() {
            deflate
                .finish(&mut packed)
                .map_err(|error| broken("pack", error))?;
        }
        Ok((!packed.is_empty()).then(|| packed.into()))
    }
}

impl ByteStreamService {
    pub(super) async fn begin_read(&self, request: bs::ReadRequest) -> Result<Reading, Status> {
        if let Some(at) = request.resource_name.find(STREAMS)
            && (at == 0 || request.resource_name[..at].ends_with('/'))
        {
            return self.read_stream(&request, at);
        }
        let name = BlobName::parse_read(&request.resource_name)
            .map_err(|error| Status::invalid_argument(format!("resource_name: {error}")))?;
        instance(&name.instance)?;
        let size = name.digest.size();
        let (at, limit) = range(&request, size)?;
        let packed = name.compressor == Compressor::Zstd;
        if packed && limit.is_some() {
            return Err(Status::invalid_argument(
                "read_limit: packed blobs cannot be read in part; leave it 0",
            ));
        }
        let end = limit.map_or(size, |limit| size.min(at.saturating_add(limit)));
        let permit = self
            .readers
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| Status::unavailable("the server is shutting down"))?;
        let store = self.store.clone();
        let digest = name.digest;
        let first = blocking(move || open(&store, digest, at, end, packed, permit)).await?;
        Ok(match first {
            First::Whole(data, place) => Box::pin(unfold(Some((data, place)), |whole| async {
                let (data, place) = whole?;
                (!data.is_empty())
                    .then(|| (Ok(bs::ReadResponse { data }), Some((Bytes::new(), place))))
            })),
            First::Pieces(blob) => {
                Box::pin((blob.send()).map(|piece| Ok(bs::ReadResponse { data: piece? })))
            }
        })
    }

    /// Live output: the stream goes on until the action ends.
    fn read_stream(&self, request: &bs::ReadRequest, at: usize) -> Result<Reading, Status> {
        let (instance_name, name) = request.resource_name.split_at(at);
        instance(instance_name.strip_suffix('/').unwrap_or(""))?;
        let (offset, limit) = range(request, u64::MAX)?;
        let follower = self
            .scheduler
            .as_ref()
            .and_then(|scheduler| scheduler.streams().follow(name, offset))
            .ok_or_else(|| {
                Status::not_found(
                    "resource_name: there is no such live output; that of ended actions is in their results",
                )
            })?;
        let state = Some((follower, limit.unwrap_or(u64::MAX)));
        Ok(Box::pin(unfold(state, |state| async move {
            let (mut follower, left): (Follower, u64) = state?;
            if left == 0 {
                return None;
            }
            match follower.next().await {
                Ok(Some(mut data)) => {
                    data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - data.len() as u64;
                    Some((Ok(bs::ReadResponse { data }), Some((follower, left))))
                }
                Ok(None) => None,
                Err(error @ (StreamError::Forgotten { .. } | StreamError::BeyondEnd { .. })) => {
                    let error = Status::new(Code::OutOfRange, format!("read_offset: {error}"));
                    Some((Err(error), None))
                }
            }
        })))
    }
}

/// Offset and limit of a request for something of `size` bytes.
///
/// ByteStream: "A `read_offset` that is negative or greater than the size of the resource will cause an `OUT_OF_RANGE` error."
/// "A `read_limit` of zero indicates that there is no limit, and a negative `read_limit` will cause an error."
fn range(request: &bs::ReadRequest, size: u64) -> Result<(u64, Option<u64>), Status> {
    let offset = u64::try_from(request.read_offset)
        .ok()
        .filter(|offset| *offset <= size)
        .ok_or_else(|| {
            Status::out_of_range(format!(
                "read_offset: {} is outside of the {size} bytes of the resource",
                request.read_offset
            ))
        })?;
    let limit = u64::try_from(request.read_limit)
        .map_err(|_| Status::invalid_argument("read_limit: it is negative"))?;
    Ok((offset, (limit > 0).then_some(limit)))
}

enum First {
    /// With the place that it keeps until it was taken.
    Whole(Bytes, OwnedSemaphorePermit),
    Pieces(Outgoing),
}

/// Finds the blob; a small one is read at once. Blocks.
fn open(
    store: &Arc<LocalStore>,
    digest: Digest,
    at: u64,
    end: u64,
    packed: bool,
    permit: OwnedSemaphorePermit,
) -> Result<First, Status> {
    let missing = || Status::not_found(format!("blob {digest} is not in the CAS"));
    if digest.size() <= PIECE as u64 && !packed {
        let data = store
            .read(digest, PIECE as u64)
            .map_err(failed)?
            .ok_or_else(missing)?;
        let range = at as usize..(end as usize).min(data.len());
        return Ok(First::Whole(data.slice(range), permit));
    }
    let deflate = packed
        .then(|| Deflate::new(end - at))
        .transpose()
        .map_err(|error| Status::internal(format!("cannot pack blob {digest}: {error}")))?;
    let file = store
        .open_blob(digest)
        .map_err(failed)?
        .ok_or_else(missing)?;
    Ok(First::Pieces(Outgoing {
        digest,
        file,
        at,
        end,
        deflate,
        _permit: permit,
    }))
}
