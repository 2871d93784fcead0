//! ByteStream.Write: a blob of any size, in memory of a bounded size.
//!
//! Messages are collected into groups of [`GROUP`] bytes, and a group goes to the disk at once; a small blob is one group.
//! Whatever ends a call before the blob is whole, what has come is kept, and QueryWriteStatus tells how much that is.
//! Only content that is wrong (too long, another digest, no zstd) ends the upload itself.
//!
//! REAPI: "When attempting an upload, if another client has already completed the upload [...] the request will terminate
//! immediately [...] with a response whose `committed_size` is the value `-1` if this is a compressed upload, or with the full
//! size of the uploaded file if this is an uncompressed upload." And of a packed upload's offsets: the first `write_offset` "refers to the offset
//! in the uncompressed form of the blob", later ones add the packed bytes.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};
use tonic::{Status, Streaming};

use super::super::compress::Inflate;
use super::super::request::{blocking, failed};
use super::uploads::{Partial, Turn, Upload};
use super::{ByteStreamService, write_name};
use crate::cas::LocalStore;
use crate::reapi::Digest;
use crate::reapi::proto::bytestream as bs;
use crate::reapi::resource::{BlobName, Compressor};

/// Bytes that are collected before they go to the disk.
const GROUP: usize = 256 << 10;
/// Blobs of up to this size that come in one group are unpacked in memory.
const SMALL: u64 = 1 << 20;

/// How a call ended.
enum Outcome {
    /// The blob is whole; the size to tell.
    Whole(i64),
    /// The upload can be gone on with.
    Interrupted(Result<i64, Status>),
    /// The content is wrong.
    Void(Status),
}

/// What a call holds while it writes.
struct Intake {
    store: Arc<LocalStore>,
    digest: Digest,
    upload: Arc<Upload>,
    state: OwnedMutexGuard<Partial>,
    inflate: Option<Inflate>,
    group: Vec<Bytes>,
    group_bytes: usize,
}

/// An error of a sink that unpacked bytes go to.
struct Refusal(Status);

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal(Status::invalid_argument(format!(
            "data: it is not zstd: {error}"
        )))
    }
}

impl ByteStreamService {
    /// Receives one Write call; returns the size to tell.
    pub(super) async fn take_upload(
        &self,
        mut stream: Streaming<bs::WriteRequest>,
        _writer: OwnedSemaphorePermit,
    ) -> Result<i64, Status> {
        let first = tokio::time::timeout(self.idle, stream.message())
            .await
            .map_err(|_| self.silent())??
            .ok_or_else(|| Status::invalid_argument("resource_name: the call has no message"))?;
        let name = write_name(&first.resource_name)?;
        let packed = name.compressor == Compressor::Zstd;
        if !packed {
            bounded(&first, name.digest)?;
        }
        if self.present(&name).await? {
            return Ok(if packed {
                -1
            } else {
                name.digest.size() as i64
            });
        }
        let key = name.render();
        let mut turn = self.uploads.take(&key);
        match self.receive(&name, first, &mut stream, &mut turn).await {
            Outcome::Whole(size) => {
                self.uploads.remove(&key, &turn.upload);
                Ok(size)
            }
            Outcome::Interrupted(told) => {
                self.uploads.interrupt(&turn);
                told
            }
            Outcome::Void(status) => {
                self.uploads.remove(&key, &turn.upload);
                Err(status)
            }
        }
    }

    fn silent(&self) -> Status {
        Status::deadline_exceeded(format!(
            "nothing came for {} s; what came before is kept for a while",
            self.idle.as_secs()
        ))
    }

    async fn receive(
        &self,
        name: &BlobName,
        first: bs::WriteRequest,
        stream: &mut Streaming<bs::WriteRequest>,
        turn: &mut Turn,
    ) -> Outcome {
        let mut state = turn.state().await;
        let committed = turn.upload.committed();
        if first.write_offset == 0 && committed != 0 {
            state.writer = None;
            turn.upload.commit(0);
        } else if first.write_offset != committed as i64 {
            return Outcome::Interrupted(Err(Status::invalid_argument(format!(
                "write_offset: it is {}, and {committed} bytes are committed; go on there, or begin again at 0",
                first.write_offset
            ))));
        }
        let packed = name.compressor == Compressor::Zstd;
        let inflate = match packed.then(Inflate::new).transpose() {
            Ok(inflate) => inflate,
            Err(error) => {
                let error = Status::internal(format!("cannot unpack zstd: {error}"));
                return Outcome::Interrupted(Err(error));
            }
        };
        let mut intake = Intake {
            store: self.store.clone(),
            digest: name.digest,
            upload: turn.upload.clone(),
            state,
            inflate,
            group: Vec::new(),
            group_bytes: 0,
        };
        let mut expected = first.write_offset;
        let resource = first.resource_name.clone();
        let mut message = first;
        loop {
            if message.write_offset != expected {
                return intake
                    .interrupted(Err(Status::invalid_argument(format!(
                        "write_offset: it is {}, and the message before ended at {expected}",
                        message.write_offset
                    ))))
                    .await;
            }
            if !message.resource_name.is_empty() && message.resource_name != resource {
                return intake
                    .interrupted(Err(Status::invalid_argument(
                        "resource_name: it changed within the call",
                    )))
                    .await;
            }
            if !packed && let Err(error) = bounded(&message, name.digest) {
                return Outcome::Void(error);
            }
            expected = expected.saturating_add(message.data.len() as i64);
            intake.group_bytes += message.data.len();
            if !message.data.is_empty() {
                intake.group.push(message.data);
            }
            if message.finish_write || intake.group_bytes >= GROUP {
                intake = match intake.flushed(message.finish_write).await {
                    Ok(intake) => intake,
                    Err(error) => return Outcome::Void(error),
                };
            }
            if message.finish_write {
                return Outcome::Whole(expected);
            }
            let next = tokio::select! {
                biased;
                () = turn.taken_over() => {
                    let taken = Status::aborted("another call writes to this upload now");
                    return intake.interrupted(Err(taken)).await;
                }
                next = tokio::time::timeout(self.idle, stream.message()) => next,
            };
            message = match next {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => return intake.interrupted(Ok(())).await,
                Ok(Err(error)) => return intake.interrupted(Err(error)).await,
                Err(_) => return intake.interrupted(Err(self.silent())).await,
            };
        }
    }
}

/// More bytes than the digest promises are refused at once.
fn bounded(message: &bs::WriteRequest, digest: Digest) -> Result<(), Status> {
    let end = u64::try_from(message.write_offset)
        .map_err(|_| Status::invalid_argument("write_offset: it is negative"))?
        .saturating_add(message.data.len() as u64);
    if end > digest.size() {
        return Err(too_long(digest));
    }
    Ok(())
}

fn too_long(digest: Digest) -> Status {
    Status::invalid_argument(format!(
        "data: more than the {} bytes of blob {digest} came",
        digest.size()
    ))
}

impl Intake {
    /// Stores what has come, on a thread that may block.
    async fn flushed(mut self, finish: bool) -> Result<Self, Status> {
        blocking(move || {
            self.flush(finish)?;
            Ok(self)
        })
        .await
    }

    /// Ends the call, but not the upload.
    async fn interrupted(self, told: Result<(), Status>) -> Outcome {
        match self.flushed(false).await {
            Ok(intake) => {
                let committed = intake.upload.committed() as i64;
                Outcome::Interrupted(told.map(|()| committed))
            }
            Err(error) => Outcome::Void(error),
        }
    }

    fn flush(&mut self, finish: bool) -> Result<(), Status> {
        let group = std::mem::take(&mut self.group);
        self.group_bytes = 0;
        if finish && self.state.writer.is_none() && self.digest.size() <= SMALL {
            return self.put(group);
        }
        if group.is_empty() && !finish {
            return Ok(());
        }
        let digest = self.digest;
        let writer = match &mut self.state.writer {
            Some(writer) => writer,
            none => none.insert(self.store.writer(digest, false).map_err(failed)?),
        };
        let mut write = |data: &[u8]| -> Result<(), Refusal> {
            if writer.written() + data.len() as u64 > digest.size() {
                return Err(Refusal(too_long(digest)));
            }
            writer.write(data).map_err(|error| Refusal(failed(error)))
        };
        for piece in &group {
            match &mut self.inflate {
                Some(inflate) => inflate.push(piece, &mut write),
                None => write(piece),
            }
            .map_err(|Refusal(status)| status)?;
        }
        self.upload.commit(writer.written());
        if finish {
            self.whole(writer_size(&self.state))?;
            if let Some(writer) = self.state.writer.take() {
                writer.commit().map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Keeps a small blob that came in one group.
    fn put(&mut self, group: Vec<Bytes>) -> Result<(), Status> {
        let whole: Bytes = match (&mut self.inflate, group.as_slice()) {
            (None, [one]) => one.clone(),
            (None, pieces) => pieces.concat().into(),
            (Some(inflate), pieces) => {
                let mut whole = Vec::with_capacity(self.digest.size() as usize);
                let mut take = |data: &[u8]| -> Result<(), Refusal> {
                    if (whole.len() + data.len()) as u64 > self.digest.size() {
                        return Err(Refusal(too_long(self.digest)));
                    }
                    whole.extend_from_slice(data);
                    Ok(())
                };
                for piece in pieces {
                    inflate
                        .push(piece, &mut take)
                        .map_err(|Refusal(status)| status)?;
                }
                whole.into()
            }
        };
        self.whole(whole.len() as u64)?;
        self.store.put(self.digest, &whole, false).map_err(failed)
    }

    /// Whether `size` bytes, and whole frames, are the blob.
    fn whole(&self, size: u64) -> Result<(), Status> {
        if self
            .inflate
            .as_ref()
            .is_some_and(|inflate| !inflate.at_end())
        {
            return Err(Status::invalid_argument(
                "data: the zstd data ends within a frame",
            ));
        }
        if size != self.digest.size() {
            return Err(Status::invalid_argument(format!(
                "finish_write: {size} of the {} bytes of blob {} came",
                self.digest.size(),
                self.digest
            )));
        }
        Ok(())
    }
}

fn writer_size(state: &Partial) -> u64 {
    state.writer.as_ref().map_or(0, |writer| writer.written())
}
