//! The plainest REAPI client: uploads, downloads and executes on one endpoint, and says what went wrong.

use std::collections::HashMap;

use boxwright::reapi::proto::{bytestream as bs, longrunning as lr, re};
use boxwright::reapi::resource::{BlobName, Compressor};
use boxwright::reapi::{Digest, DigestFunction, any};
use bytes::Bytes;
use re::content_addressable_storage_client::ContentAddressableStorageClient;
use tonic::transport::{Channel, Endpoint};

use crate::layout;

/// Errors are only ever printed.
pub(crate) type Result<T> = std::result::Result<T, String>;

const MESSAGE_LIMIT: usize = 64 << 20;
const BATCH: u64 = 3 << 20;
const PIECE: u64 = 1 << 20;

/// Where the bytes of a blob come from when it has to be sent.
#[derive(Clone)]
pub(crate) enum Source {
    Bytes(Bytes),
    Key(u64),
}

impl Source {
    fn piece(&self, offset: u64, length: u64) -> Bytes {
        match self {
            Source::Bytes(bytes) => bytes.slice(offset as usize..(offset + length) as usize),
            Source::Key(key) => {
                let mut piece = vec![0; length as usize];
                layout::fill(*key, offset, &mut piece);
                piece.into()
            }
        }
    }
}

/// The digest of a blob in memory.
pub(crate) fn digest(data: &[u8]) -> Digest {
    DigestFunction::Sha256.digest(data)
}

/// The digest of the contents that `key` stands for.
pub(crate) fn key_digest(key: u64, size: u64) -> Digest {
    let mut hasher = DigestFunction::Sha256.hasher();
    let mut buffer = vec![0; size.min(PIECE) as usize];
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(PIECE) as usize;
        layout::fill(key, offset, &mut buffer[..length]);
        hasher.update(&buffer[..length]);
        offset += length as u64;
    }
    hasher.finish()
}

/// A few connections to one endpoint.
#[derive(Clone)]
pub(crate) struct Client {
    instance: String,
    channels: Vec<Channel>,
}

impl Client {
    pub(crate) async fn connect(url: &str, instance: &str) -> Result<Client> {
        let mut channels = Vec::new();
        for _ in 0..2 {
            let endpoint = Endpoint::from_shared(url.to_owned())
                .map_err(|e| format!("{url}: {e}"))?
                .tcp_nodelay(true)
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(16 << 20);
            let channel = endpoint.connect().await;
            channels.push(channel.map_err(|e| format!("connecting to {url}: {e:?}"))?);
        }
        Ok(Client {
            instance: instance.to_owned(),
            channels,
        })
    }

    fn channel(&self, lane: usize) -> Channel {
        self.channels[lane % self.channels.len()].clone()
    }

    fn cas(&self, lane: usize) -> ContentAddressableStorageClient<Channel> {
        ContentAddressableStorageClient::new(self.channel(lane))
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    fn byte_stream(&self, lane: usize) -> bs::byte_stream_client::ByteStreamClient<Channel> {
        bs::byte_stream_client::ByteStreamClient::new(self.channel(lane))
            .max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// Uploads what the server does not have; returns how many blobs and bytes that was.
    pub(crate) async fn upload(
        &self,
        lane: usize,
        blobs: Vec<(Digest, Source)>,
    ) -> Result<(usize, u64)> {
        let by_digest: HashMap<Digest, Source> = blobs
            .into_iter()
            .filter(|(digest, _)| !digest.is_empty())
            .collect();
        let all: Vec<Digest> = by_digest.keys().copied().collect();
        let mut missing = Vec::new();
        for part in all.chunks(8000) {
            let request = re::FindMissingBlobsRequest {
                instance_name: self.instance.clone(),
                blob_digests: part.iter().map(|d| d.to_proto()).collect(),
                ..Default::default()
            };
            let reply = self.cas(lane).find_missing_blobs(request).await;
            let reply = reply.map_err(|e| format!("FindMissingBlobs: {e}"))?;
            for found in reply.into_inner().missing_blob_digests {
                missing.push(
                    Digest::from_proto(DigestFunction::Sha256, Some(&found))
                        .map_err(|e| e.to_string())?,
                );
            }
        }
        let total = missing.iter().map(|d| d.size()).sum();
        let (mut batch, mut held) = (Vec::new(), 0);
        for digest in &missing {
            let source = by_digest.get(digest).ok_or("a digest never asked about")?;
            if digest.size() > BATCH {
                self.write(lane, *digest, source.clone()).await?;
                continue;
            }
            if held + digest.size() > BATCH {
                self.update(lane, std::mem::take(&mut batch)).await?;
                held = 0;
            }
            held += digest.size() + 128;
            batch.push(re::batch_update_blobs_request::Request {
                digest: Some(digest.to_proto()),
                data: source.piece(0, digest.size()),
                ..Default::default()
            });
        }
        self.update(lane, batch).await?;
        Ok((missing.len(), total))
    }

    async fn update(
        &self,
        lane: usize,
        requests: Vec<re::batch_update_blobs_request::Request>,
    ) -> Result<()> {
        if requests.is_empty() {
            return Ok(());
        }
        let request = re::BatchUpdateBlobsRequest {
            instance_name: self.instance.clone(),
            requests,
            ..Default::default()
        };
        let reply = self.cas(lane).batch_update_blobs(request).await;
        let reply = reply.map_err(|e| format!("BatchUpdateBlobs: {e}"))?;
        let failed = reply
            .into_inner()
            .responses
            .into_iter()
            .filter_map(|r| r.status)
            .find(|status| status.code != 0);
        match failed {
            Some(status) => Err(format!("BatchUpdateBlobs: {}", status.message)),
            None => Ok(()),
        }
    }

    async fn write(&self, lane: usize, digest: Digest, source: Source) -> Result<()> {
        let name = BlobName {
            instance: self.instance.clone(),
            digest,
            compressor: Compressor::Identity,
            upload: Some(uuid::Uuid::new_v4().to_string()),
        }
        .render();
        let size = digest.size();
        let pieces = (0..size.div_ceil(PIECE)).map(move |i| {
            let offset = i * PIECE;
            let length = (size - offset).min(PIECE);
            bs::WriteRequest {
                resource_name: name.clone(),
                write_offset: offset as i64,
                finish_write: offset + length == size,
                data: source.piece(offset, length),
            }
        });
        let reply = self
            .byte_stream(lane)
            .write(tokio_stream::iter(pieces))
            .await;
        let committed = reply
            .map_err(|e| format!("ByteStream.Write of {digest}: {e}"))?
            .into_inner()
            .committed_size;
        if committed != size as i64 {
            return Err(format!(
                "ByteStream.Write of {digest} took {committed} bytes"
            ));
        }
        Ok(())
    }

    /// Downloads one blob whole and checks its digest.
    pub(crate) async fn read(&self, wanted: Digest) -> Result<Vec<u8>> {
        let name = BlobName {
            instance: self.instance.clone(),
            digest: wanted,
            compressor: Compressor::Identity,
            upload: None,
        }
        .render();
        let failed = |e: tonic::Status| format!("ByteStream.Read of {wanted}: {e}");
        let request = bs::ReadRequest {
            resource_name: name,
            ..Default::default()
        };
        let reply = self.byte_stream(0).read(request).await;
        let mut stream = reply.map_err(failed)?.into_inner();
        let mut data = Vec::with_capacity(wanted.size() as usize);
        while let Some(part) = stream.message().await.map_err(failed)? {
            data.extend_from_slice(&part.data);
        }
        if digest(&data) != wanted {
            return Err(format!("blob {wanted} came with other contents"));
        }
        Ok(data)
    }

    /// Runs one action to its end.
    pub(crate) async fn execute(&self, lane: usize, action: Digest) -> Result<re::ExecuteResponse> {
        let request = re::ExecuteRequest {
            instance_name: self.instance.clone(),
            skip_cache_lookup: true,
            action_digest: Some(action.to_proto()),
            ..Default::default()
        };
        let failed = |e: tonic::Status| format!("Execute: {:?} {}", e.code(), e.message());
        let mut client = re::execution_client::ExecutionClient::new(self.channel(lane))
            .max_decoding_message_size(MESSAGE_LIMIT);
        let mut stream = client.execute(request).await.map_err(failed)?.into_inner();
        let mut end = Err("Execute: the stream ended before the operation".to_owned());
        // Read to the stream's own end: a reset per call would make servers close the connection.
        while let Some(operation) = stream.message().await.map_err(failed)? {
            if operation.done {
                end = response(operation);
            }
        }
        end
    }
}

fn response(operation: lr::Operation) -> Result<re::ExecuteResponse> {
    match operation.result {
        Some(lr::operation::Result::Response(any)) => {
            let response: re::ExecuteResponse = any::unpack(&any)
                .ok_or_else(|| format!("the operation holds a {}", any.type_url))?
                .map_err(|e| format!("ExecuteResponse: {e}"))?;
            match &response.status {
                Some(status) if status.code != 0 => {
                    Err(format!("status {}: {}", status.code, status.message))
                }
                _ => Ok(response),
            }
        }
        Some(lr::operation::Result::Error(status)) => Err(format!(
            "operation error {}: {}",
            status.code, status.message
        )),
        None => Err("the operation is done without a result".to_owned()),
    }
}
