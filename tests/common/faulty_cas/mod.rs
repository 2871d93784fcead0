//! An in-process REAPI CAS that fails on demand: each fault is set by the test, and what the client did is counted.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod ask;
pub mod pages;
mod services;
mod streams;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use boxwright::cas::{RemoteCas, RemoteConfig};
use boxwright::config::Endpoint;
use boxwright::reapi::any::pack;
use boxwright::reapi::digest::Hasher;
use boxwright::reapi::proto::bytestream::byte_stream_server::ByteStreamServer;
use boxwright::reapi::proto::re::capabilities_server::CapabilitiesServer;
use boxwright::reapi::proto::re::content_addressable_storage_server::ContentAddressableStorageServer;
use boxwright::reapi::proto::{re, rpc};
use boxwright::reapi::resource::{BlobName, Compressor};
use boxwright::reapi::{Digest, DigestFunction, status, time};
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;

use tonic::transport::ServerTlsConfig;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Status};

pub const SHA256: DigestFunction = DigestFunction::Sha256;
const ZSTD: i32 = re::compressor::Value::Zstd as i32;

/// What goes wrong. Counts say how often; `u32::MAX` is for ever.
#[derive(Default)]
pub struct Faults {
    /// Calls of this name fail so often with this code.
    pub fail: HashMap<&'static str, (Code, u32)>,
    /// How long failing calls ask the client to wait.
    pub retry_after: Option<Duration>,
    /// How long every call takes at least, as over a long line.
    pub latency: Duration,
    /// Calls of this name never answer, so often.
    pub hang: HashMap<&'static str, u32>,
    /// This blob fails in batches with this code, so often.
    pub blob_fails: HashMap<Digest, (Code, u32)>,
    /// This blob comes with other bytes of the same length, so often.
    pub wrong_bytes: HashMap<Digest, u32>,
    /// Batch answers leave these out.
    pub omit: HashSet<Digest>,
    /// Batch answers hold these twice.
    pub twice: HashSet<Digest>,
    /// Answers name this blob, whoever asked.
    pub intruder: Option<Digest>,
    /// Packed blobs unpack to far too much.
    pub bomb: bool,
    /// zstd data is damaged.
    pub damaged_zstd: bool,
    /// Answers of BatchReadBlobs have so many bytes of ballast.
    pub ballast: usize,
    /// Answers of BatchUpdateBlobs have so many entries more, of nothing.
    pub empty_entries: usize,
    /// Reads break after so many bytes, one entry a try.
    pub read_breaks: VecDeque<u64>,
    /// Reads end well after so many bytes, one entry a try.
    pub read_ends: VecDeque<u64>,
    /// Reads go silent after so many bytes, one entry a try.
    pub read_stalls: VecDeque<u64>,
    /// Reads send so many bytes too many.
    pub surplus: usize,
    /// Writes break after so many received bytes, one entry a try.
    pub write_breaks: VecDeque<usize>,
    /// Packed uploads are counted in packed bytes, which REAPI does not mean.
    pub counts_packed: bool,
    /// Broken uploads are forgotten.
    pub forget: bool,
    /// Writes end at their first message with this committed size.
    pub early: Option<i64>,
    /// Whole writes are answered with this committed size.
    pub committed: Option<i64>,
    /// GetTree breaks after so many pages, one entry a try.
    pub tree_breaks: VecDeque<usize>,
}

#[derive(Default)]
pub struct Seen {
    pub calls: HashMap<&'static str, u32>,
    /// How often each blob's bytes were sent.
    pub sent: HashMap<Digest, u32>,
    /// The digests of each BatchReadBlobs call.
    pub batches: Vec<Vec<Digest>>,
    /// The size of each BatchUpdateBlobs message.
    pub update_sizes: Vec<usize>,
    /// Offset and compressor of each Read.
    pub reads: Vec<(i64, Compressor)>,
    /// First offset and compressor of each Write.
    pub writes: Vec<(i64, Compressor)>,
    /// Bytes of each Write's messages that were taken.
    pub write_bytes: Vec<usize>,
    /// Uploads that came packed in batches.
    pub packed_updates: u32,
    /// The metadata of the last call.
    pub metadata: Option<re::RequestMetadata>,
    /// The `authorization` of each call.
    pub tokens: Vec<Option<String>>,
    /// The metadata of each call, by its name.
    pub metadata_of: HashMap<&'static str, Vec<re::RequestMetadata>>,
}

/// A blob on the server.
#[derive(Clone)]
pub enum Content {
    Bytes(Bytes),
    /// So many bytes that are made when they are asked for.
    Pattern(u64),
}

/// The bytes of a pattern from `offset` on. Its period is prime, so that pieces in the wrong place do not fit.
pub fn pattern(offset: u64, length: usize) -> Bytes {
    const PERIOD: usize = 1_000_003;
    static BLOCK: std::sync::LazyLock<Vec<u8>> =
        std::sync::LazyLock::new(|| (0..PERIOD).map(|n| (n ^ (n >> 11)) as u8).collect());
    let mut bytes = Vec::with_capacity(length);
    let mut at = (offset % PERIOD as u64) as usize;
    while bytes.len() < length {
        let piece = (length - bytes.len()).min(PERIOD - at);
        bytes.extend_from_slice(&BLOCK[at..at + piece]);
        at = 0;
    }
    bytes.into()
}

impl Content {
    fn slice(&self, offset: u64, length: usize) -> Bytes {
        match self {
            Content::Bytes(bytes) => bytes.slice(offset as usize..offset as usize + length),
            Content::Pattern(_) => pattern(offset, length),
        }
    }
}

struct Upload {
    hasher: Hasher,
    bytes: Option<Vec<u8>>,
    received: u64,
    /// What came packed in this call and is not unpacked yet.
    packed: Vec<u8>,
}

impl Upload {
    /// Takes what can be unpacked of this call's bytes, as a server that counts as REAPI says.
    fn unpack(&mut self) {
        use std::io::Read;
        let packed = std::mem::take(&mut self.packed);
        let mut decoder = zstd::stream::read::Decoder::new(&packed[..]).unwrap();
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = decoder.read(&mut buffer) {
            let bytes = self.bytes.get_or_insert_default();
            bytes.extend_from_slice(&buffer[..length]);
            self.received += length as u64;
        }
    }
}

pub struct State {
    pub faults: Mutex<Faults>,
    pub seen: Mutex<Seen>,
    pub blobs: Mutex<HashMap<Digest, Content>>,
    uploads: Mutex<HashMap<String, Upload>>,
    pub capabilities: Mutex<re::CacheCapabilities>,
    /// Whether uploaded bytes are kept, or only hashed.
    pub keep: Mutex<bool>,
    /// What GetTree answers, in place of what is there.
    pub pages: Arc<Mutex<Option<pages::Pages>>>,
}

#[derive(Clone)]
pub struct FaultyCas {
    pub state: Arc<State>,
    pub address: String,
}

pub fn blob(n: usize, size: usize) -> (Digest, Bytes) {
    let mut data = format!("blob {n} ").repeat(size / 6 + 1).into_bytes();
    data.truncate(size);
    let data = Bytes::from(data);
    (SHA256.digest(&data), data)
}

impl FaultyCas {
    pub async fn start() -> Self {
        Self::start_with(true).await
    }

    pub async fn start_with(capabilities: bool) -> Self {
        Self::start_as(capabilities, None).await
    }

    /// Behind TLS, at a name that the certificate has.
    pub async fn start_tls(tls: ServerTlsConfig) -> Self {
        Self::start_as(true, Some(tls)).await
    }

    async fn start_as(capabilities: bool, tls: Option<ServerTlsConfig>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let address = match tls {
            None => format!("http://{at}"),
            Some(_) => format!("https://localhost:{}", at.port()),
        };
        let server = FaultyCas {
            state: Arc::new(State {
                faults: Mutex::default(),
                seen: Mutex::default(),
                blobs: Mutex::default(),
                uploads: Mutex::default(),
                capabilities: Mutex::new(re::CacheCapabilities {
                    digest_functions: vec![re::digest_function::Value::Sha256 as i32],
                    max_batch_total_size_bytes: 4_193_280,
                    ..Default::default()
                }),
                keep: Mutex::new(true),
                pages: Arc::default(),
            }),
            address,
        };
        let mut builder = tonic::transport::Server::builder();
        if let Some(tls) = tls {
            builder = builder.tls_config(tls).unwrap();
        }
        let mut router = builder
            .add_service(pages::WithPages {
                inner: ContentAddressableStorageServer::new(server.clone()),
                pages: server.state.pages.clone(),
            })
            .add_service(ByteStreamServer::new(server.clone()));
        if capabilities {
            router = router.add_service(CapabilitiesServer::new(server.clone()));
        }
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(router.serve_with_incoming(incoming));
        server
    }

    /// A client with so many retries after next to no pause, and this patience.
    pub fn client_with(&self, retries: u32, call_timeout: Duration) -> RemoteCas {
        RemoteCas::with_compression(
            RemoteConfig {
                endpoint: self.address.parse::<Endpoint>().unwrap(),
                credentials: Default::default(),
                instance: "main".to_owned(),
                retries,
                retry_delay: Duration::from_millis(1),
                call_timeout,
            },
            true,
        )
        .unwrap()
    }

    pub fn client(&self) -> RemoteCas {
        self.client_with(3, Duration::from_secs(20))
    }

    pub fn announce_zstd(&self) {
        let mut capabilities = self.state.capabilities.lock();
        capabilities.supported_compressors = vec![ZSTD];
        capabilities.supported_batch_update_compressors = vec![ZSTD];
    }

    pub fn put(&self, data: Bytes) -> Digest {
        let digest = SHA256.digest(&data);
        self.state.blobs.lock().insert(digest, Content::Bytes(data));
        digest
    }

    /// Serves a pattern of this size.
    pub fn put_pattern(&self, size: u64) -> Digest {
        let digest = pattern_digest(size);
        self.state
            .blobs
            .lock()
            .insert(digest, Content::Pattern(size));
        digest
    }

    pub fn get(&self, digest: Digest) -> Option<Bytes> {
        match self.state.blobs.lock().get(&digest)? {
            Content::Bytes(bytes) => Some(bytes.clone()),
            Content::Pattern(size) => Some(pattern(0, *size as usize)),
        }
    }

    pub fn faults(&self, set: impl FnOnce(&mut Faults)) {
        set(&mut self.state.faults.lock());
    }

    pub fn calls(&self, name: &str) -> u32 {
        self.state.seen.lock().calls.get(name).copied().unwrap_or(0)
    }

    /// Counts the call, and fails or hangs it if so set.
    async fn enter<T>(&self, name: &'static str, request: &Request<T>) -> Result<(), Status> {
        {
            let mut seen = self.state.seen.lock();
            *seen.calls.entry(name).or_default() += 1;
            seen.metadata = request
                .metadata()
                .get_bin("build.bazel.remote.execution.v2.requestmetadata-bin")
                .and_then(|value| re::RequestMetadata::decode(value.to_bytes().ok()?).ok());
            let token = request.metadata().get("authorization");
            seen.tokens
                .push(token.map(|token| token.to_str().unwrap().to_owned()));
            let metadata = seen.metadata.clone().unwrap_or_default();
            seen.metadata_of.entry(name).or_default().push(metadata);
        }
        let latency = self.state.faults.lock().latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let hang = take(self.state.faults.lock().hang.get_mut(name));
        if hang {
            std::future::pending::<()>().await;
        }
        let mut faults = self.state.faults.lock();
        let retry_after = faults.retry_after;
        if let Some((code, count)) = faults.fail.get_mut(name)
            && take(Some(count))
        {
            let details = retry_after.map(|delay| {
                pack(&rpc::RetryInfo {
                    retry_delay: Some(time::duration(delay)),
                })
            });
            return Err(status::to_call_status(&rpc::Status {
                details: details.into_iter().collect(),
                ..status::status(*code, "as the test wants it")
            }));
        }
        Ok(())
    }

    fn wrong(&self, digest: Digest, data: Bytes) -> Bytes {
        let wrong = take(self.state.faults.lock().wrong_bytes.get_mut(&digest));
        match wrong {
            true => data.iter().map(|b| b ^ 0x20).collect::<Vec<u8>>().into(),
            false => data,
        }
    }

    /// Hashes and keeps what an upload holds once it is whole.
    fn finish(&self, name: &BlobName, upload: Upload) -> Result<(), Status> {
        let (digest, bytes) = match name.compressor {
            Compressor::Identity => (upload.hasher.finish(), upload.bytes),
            Compressor::Zstd if !self.state.faults.lock().counts_packed => {
                let bytes = upload.bytes.unwrap_or_default();
                (SHA256.digest(&bytes), Some(bytes))
            }
            Compressor::Zstd => {
                let packed = upload.bytes.unwrap_or_default();
                let bytes = zstd::decode_all(&packed[..])
                    .map_err(|e| Status::invalid_argument(e.to_string()))?;
                (SHA256.digest(&bytes), Some(bytes))
            }
        };
        if digest != name.digest {
            return Err(Status::invalid_argument(format!("that is {digest}")));
        }
        let content = match bytes {
            Some(bytes) => Content::Bytes(bytes.into()),
            None => Content::Pattern(digest.size()),
        };
        self.state.blobs.lock().insert(digest, content);
        Ok(())
    }
}

pub fn pattern_digest(size: u64) -> Digest {
    let mut hasher = SHA256.hasher();
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(1 << 20) as usize;
        hasher.update(&pattern(offset, length));
        offset += length as u64;
    }
    hasher.finish()
}

/// Uses up one of a count.
fn take(count: Option<&mut u32>) -> bool {
    match count {
        Some(count) if *count == u32::MAX => true,
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    }
}

fn digest_of(digest: &Option<re::Digest>) -> Digest {
    Digest::from_proto(SHA256, digest.as_ref()).unwrap()
}
