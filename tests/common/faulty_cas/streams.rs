//! The faulty ByteStream service.

use std::pin::Pin;

use boxwright::reapi::proto::bytestream::byte_stream_server::ByteStream;
use boxwright::reapi::proto::bytestream::*;
use boxwright::reapi::resource::{BlobName, Compressor};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::{FaultyCas, SHA256, Upload, take};

type ReadStream = Pin<Box<dyn Stream<Item = Result<ReadResponse, Status>> + Send + 'static>>;

#[tonic::async_trait]
impl ByteStream for FaultyCas {
    type ReadStream = ReadStream;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadStream>, Status> {
        self.enter("Read", &request).await?;
        let request = request.into_inner();
        let name = BlobName::parse_read(&request.resource_name)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        assert_eq!(name.instance, "main");
        self.state
            .seen
            .lock()
            .reads
            .push((request.read_offset, name.compressor));
        let content = self.state.blobs.lock().get(&name.digest).cloned();
        let content = content.ok_or_else(|| Status::not_found("no such blob"))?;
        *self.state.seen.lock().sent.entry(name.digest).or_default() += 1;
        let mut offset = request.read_offset as u64;
        let size = name.digest.size();
        let wrong = take(self.state.faults.lock().wrong_bytes.get_mut(&name.digest));
        let (breaks, ends, stalls, surplus) = {
            let mut faults = self.state.faults.lock();
            (
                faults.read_breaks.pop_front(),
                faults.read_ends.pop_front(),
                faults.read_stalls.pop_front(),
                faults.surplus,
            )
        };
        let packed = name.compressor == Compressor::Zstd;
        let until = breaks
            .or(ends)
            .or(stalls)
            .map_or(size, |n| size.min(offset + n));
        let this = self.clone();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            while offset < until {
                let length = (until - offset).min(64 << 10) as usize;
                let mut data = content.slice(offset, length);
                if wrong {
                    data = data.iter().map(|b| b ^ 1).collect::<Vec<u8>>().into();
                }
                if packed {
                    data = this.packed(&data);
                }
                offset += length as u64;
                if sender.send(Ok(ReadResponse { data })).await.is_err() {
                    return;
                }
            }
            if surplus > 0 {
                let data = vec![7; surplus];
                let data = if packed {
                    this.packed(&data)
                } else {
                    data.into()
                };
                let _ = sender.send(Ok(ReadResponse { data })).await;
            }
            if breaks.is_some() {
                let _ = sender
                    .send(Err(Status::internal("reset by the test")))
                    .await;
            } else if stalls.is_some() {
                sender.closed().await;
            }
        });
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        self.enter("Write", &request).await?;
        let mut stream = request.into_inner();
        let breaks = self.state.faults.lock().write_breaks.pop_front();
        let mut resource = String::new();
        let mut name = None;
        let mut taken = 0;
        let mut expected = 0;
        let counts_packed = self.state.faults.lock().counts_packed;
        while let Some(message) = stream.message().await? {
            if name.is_none() {
                resource = message.resource_name.clone();
                let parsed = BlobName::parse_write(&resource)
                    .map_err(|e| Status::invalid_argument(e.to_string()))?;
                self.state
                    .seen
                    .lock()
                    .writes
                    .push((message.write_offset, parsed.compressor));
                if let Some(committed_size) = self.state.faults.lock().early {
                    return Ok(Response::new(WriteResponse { committed_size }));
                }
                name = Some(parsed);
            }
            let parsed = name.as_ref().unwrap();
            {
                let keep = *self.state.keep.lock() || parsed.compressor == Compressor::Zstd;
                let mut uploads = self.state.uploads.lock();
                let upload = uploads.entry(resource.clone()).or_insert_with(|| Upload {
                    hasher: SHA256.hasher(),
                    bytes: keep.then(Vec::new),
                    received: 0,
                    packed: Vec::new(),
                });
                if taken == 0 {
                    expected = upload.received;
                    self.state.seen.lock().write_bytes.push(0);
                }
                if message.write_offset as u64 != expected {
                    return Err(Status::invalid_argument(format!(
                        "offset {} instead of {expected}",
                        message.write_offset
                    )));
                }
                expected += message.data.len() as u64;
                if parsed.compressor == Compressor::Zstd && !counts_packed {
                    upload.packed.extend_from_slice(&message.data);
                } else {
                    upload.hasher.update(&message.data);
                    upload.received += message.data.len() as u64;
                    if let Some(bytes) = &mut upload.bytes {
                        bytes.extend_from_slice(&message.data);
                    }
                }
            }
            taken += message.data.len();
            if let Some(bytes) = self.state.seen.lock().write_bytes.last_mut() {
                *bytes = taken;
            }
            let ended = message.finish_write || breaks.is_some_and(|after| taken >= after);
            if ended
                && !counts_packed
                && parsed.compressor == Compressor::Zstd
                && let Some(upload) = self.state.uploads.lock().get_mut(&resource)
            {
                upload.unpack();
            }
            if message.finish_write {
                let upload = self.state.uploads.lock().remove(&resource).unwrap();
                let received = expected as i64;
                self.finish(parsed, upload)?;
                let committed_size = self.state.faults.lock().committed.unwrap_or(received);
                return Ok(Response::new(WriteResponse { committed_size }));
            }
            if breaks.is_some_and(|after| taken >= after) {
                if self.state.faults.lock().forget {
                    self.state.uploads.lock().remove(&resource);
                }
                return Err(Status::unavailable("broken by the test"));
            }
        }
        Err(Status::invalid_argument(
            "the stream ended without finish_write",
        ))
    }

    async fn query_write_status(
        &self,
        request: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        self.enter("QueryWriteStatus", &request).await?;
        let resource = request.into_inner().resource_name;
        let name = BlobName::parse_write(&resource).unwrap();
        if self.state.blobs.lock().contains_key(&name.digest) {
            return Ok(Response::new(QueryWriteStatusResponse {
                committed_size: name.digest.size() as i64,
                complete: true,
            }));
        }
        match self.state.uploads.lock().get(&resource) {
            Some(upload) => Ok(Response::new(QueryWriteStatusResponse {
                committed_size: upload.received as i64,
                complete: false,
            })),
            None => Err(Status::not_found("no such upload")),
        }
    }
}
