//! The client of a CAS elsewhere, over the REAPI ContentAddressableStorage and ByteStream services.
//!
//! What it promises: every call ends, after a bounded number of tries without progress, each with a
//! deadline; every error names the call and the remote; blobs read in batches are verified; memory stays bounded
//! whatever the size of a blob and whatever the server sends. One subject a file: which failures are tried again
//! ([`retry`]), what the server can do ([`capabilities`]), connections ([`channels`]), and each call.

mod batch_read;
mod batch_write;
mod behalf;
mod capabilities;
mod channels;
mod find;
mod retry;
mod stream_read;
mod stream_write;
mod tree;
mod zstd;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message;
use tonic::metadata::{Binary, MetadataValue};
use tonic::{Code, Request, Response, Status};

use super::{BlobSource, CasError};
use crate::config::{Credentials, Endpoint, EndpointError, Line};
use crate::reapi::proto::bytestream::byte_stream_client::ByteStreamClient;
use crate::reapi::proto::re;
use crate::reapi::proto::re::capabilities_client::CapabilitiesClient;
use crate::reapi::proto::re::content_addressable_storage_client::ContentAddressableStorageClient;
use crate::reapi::{Digest, DigestFunction};

pub(crate) use behalf::Behalf;
pub use behalf::on_behalf_of;
use capabilities::Capabilities;
use channels::{Channels, Load};
use retry::{Retry, is_transient};
use stream_write::Origin;

/// The largest message that is taken from a remote. Batches are asked for in 2 MiB; servers choose the size of
/// stream chunks and GetTree pages themselves, up to the 4 MiB of gRPC's default in practice.
const LARGEST_MESSAGE: usize = 8 << 20;

/// Calls of one operation that are under way at the same time.
const CONCURRENT_CALLS: usize = 4;

const METADATA_HEADER: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";

/// How to reach a remote and how patient to be with it.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// Where and how to connect.
    pub endpoint: Endpoint,
    /// What it is shown.
    pub credentials: Credentials,
    /// The REAPI instance name.
    pub instance: String,
    /// How often a failed call is tried again.
    pub retries: u32,
    /// The first pause between tries; it doubles, with jitter.
    pub retry_delay: Duration,
    /// The deadline of one unary call, and of a stream that does not move.
    pub call_timeout: Duration,
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct RemoteCas {
    inner: Arc<Inner>,
    metadata: MetadataValue<Binary>,
}

struct Inner {
    config: RemoteConfig,
    name: String,
    compress: bool,
    channels: Channels,
    capabilities: Capabilities,
}

impl RemoteCas {
    /// Makes the client; connects lazily, so that a scheduler may start after its workers.
    ///
    /// Compression, where the remote announces it, is used unless the remote is on this machine,
    /// where it only costs.
    pub fn new(config: RemoteConfig) -> Result<Self, EndpointError> {
        let compress = !config.endpoint.is_here();
        Self::with_compression(config, compress)
    }

    /// Like `new`, with the say on compression: `false` never uses it, `true` wherever it is announced.
    pub fn with_compression(config: RemoteConfig, compress: bool) -> Result<Self, EndpointError> {
        Ok(RemoteCas {
            metadata: encode(re::RequestMetadata::default()),
            inner: Arc::new(Inner {
                name: config.endpoint.to_string(),
                channels: Channels::new(&config.endpoint, &config.credentials)?,
                capabilities: Capabilities::default(),
                config,
                compress,
            }),
        })
    }

    /// The same client (connections, knowledge), with this RequestMetadata sent along with its calls that are not made
    /// [`on_behalf_of`] somebody else. The tool's name and version are filled in.
    pub fn with_metadata(&self, metadata: re::RequestMetadata) -> Self {
        RemoteCas {
            inner: self.inner.clone(),
            metadata: encode(metadata),
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = Behalf::current().metadata();
        request.metadata_mut().insert_bin(
            METADATA_HEADER,
            metadata.unwrap_or_else(|| self.metadata.clone()),
        );
        request
    }

    fn retry(&self) -> Retry {
        Retry::new(self.inner.config.retries, self.inner.config.retry_delay)
    }

    fn error(&self, call: &'static str, status: Status) -> CasError {
        CasError::Remote {
            call,
            remote: self.inner.name.clone(),
            status: Box::new(status),
        }
    }

    /// Notes what a failure says about the remote itself.
    fn note(&self, failure: &Status) {
        if failure.code() == Code::Unavailable {
            self.inner.capabilities.doubt();
        }
    }

    /// Ends a step of a stream that takes longer than the call's timeout.
    async fn in_time<T>(
        &self,
        doing: &'static str,
        step: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let patience = self.inner.config.call_timeout;
        match tokio::time::timeout(patience, step).await {
            Ok(result) => result,
            Err(_) => Err(Status::deadline_exceeded(format!(
                "{doing} within {} ms",
                patience.as_millis()
            ))),
        }
    }

    /// One unary call with its deadline and retries. `make` is called for each try.
    async fn unary<T, F>(
        &self,
        call: &'static str,
        load: Load,
        make: impl Fn(Line) -> F,
    ) -> Result<T, CasError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.unary_with(call, load, None, make).await
    }

    /// The same with another number of tries.
    async fn unary_with<T, F>(
        &self,
        call: &'static str,
        load: Load,
        retries: Option<u32>,
        make: impl Fn(Line) -> F,
    ) -> Result<T, CasError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut retry = match retries {
            Some(retries) => Retry::new(retries, self.inner.config.retry_delay),
            None => self.retry(),
        };
        loop {
            let result = {
                let loan = self.inner.channels.borrow(load);
                self.in_time("no answer", make(loan.line.clone())).await
            };
            let status = match result {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            self.note(&status);
            match is_transient(&status).then(|| retry.next(&status)).flatten() {
                Some(pause) => {
                    tracing::debug!(call, remote = %self.inner.name, %status, ?pause, "trying again");
                    tokio::time::sleep(pause).await;
                }
                None => return Err(self.error(call, status)),
            }
        }
    }

    /// A request of a unary call, with the deadline that the server should know of.
    fn unary_request<T>(&self, message: T) -> Request<T> {
        let mut request = self.request(message);
        request.set_timeout(self.inner.config.call_timeout);
        request
    }

    /// Refuses digest functions that the remote does not know.
    fn check_functions(
        &self,
        call: &'static str,
        limits: &capabilities::Limits,
        digests: impl Iterator<Item = Digest>,
    ) -> Result<(), CasError> {
        let mut checked: Option<DigestFunction> = None;
        for function in digests.map(Digest::function) {
            if checked != Some(function) {
                limits
                    .check_function(function)
                    .map_err(|status| self.error(call, status))?;
                checked = Some(function);
            }
        }
        Ok(())
    }
}

fn encode(mut metadata: re::RequestMetadata) -> MetadataValue<Binary> {
    metadata.tool_details = Some(re::ToolDetails {
        tool_name: env!("CARGO_PKG_NAME").to_owned(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
    });
    MetadataValue::from_bytes(&metadata.encode_to_vec())
}

fn cas_client(line: Line) -> ContentAddressableStorageClient<Line> {
    ContentAddressableStorageClient::new(line).max_decoding_message_size(LARGEST_MESSAGE)
}

fn capabilities_client(line: Line) -> CapabilitiesClient<Line> {
    CapabilitiesClient::new(line).max_decoding_message_size(LARGEST_MESSAGE)
}

fn stream_client(line: Line) -> ByteStreamClient<Line> {
    ByteStreamClient::new(line).max_decoding_message_size(LARGEST_MESSAGE)
}

#[async_trait]
impl BlobSource for RemoteCas {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, CasError> {
        find::find_missing(self, digests).await
    }

    async fn read_batch(
        &self,
        digests: &[Digest],
        sink: &mut (dyn FnMut(Digest, Bytes) + Send),
    ) -> Result<Vec<Digest>, CasError> {
        batch_read::read_batch(self, digests, sink).await
    }

    async fn read_stream(
        &self,
        digest: Digest,
        sink: &mut (dyn FnMut(Bytes) -> Result<(), CasError> + Send),
    ) -> Result<(), CasError> {
        stream_read::read_stream(self, digest, sink).await
    }

    async fn write_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Result<(), CasError> {
        batch_write::write_batch(self, blobs).await
    }

    async fn write_stream(&self, digest: Digest, file: std::fs::File) -> Result<(), CasError> {
        stream_write::write_stream(self, digest, Origin::File(Arc::new(file))).await
    }

    async fn get_tree(&self, root: Digest) -> Result<Option<Vec<(Digest, Bytes)>>, CasError> {
        tree::get_tree(self, root).await
    }

    /// Until the remote has been asked for its limits this is the client's own, which every server
    /// takes in practice; larger blobs than the real limit are streamed by the batch calls themselves.
    fn batch_limit(&self) -> u64 {
        self.inner
            .capabilities
            .last()
            .unwrap_or_default()
            .largest_in_batch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_is_for_other_machines() {
        for (address, here) in [
            ("http://127.0.0.1:8980", true),
            ("http://[::1]:8980", true),
            ("grpc://localhost:8980", true),
            ("unix:/run/x.sock", true),
            ("https://cas.example:443", false),
            ("http://10.0.0.1:1", false),
        ] {
            assert_eq!(
                address.parse::<Endpoint>().unwrap().is_here(),
                here,
                "{address}"
            );
        }
    }
}
