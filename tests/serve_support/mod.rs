//! A standalone server within the test's own process, and a client of it.
#![allow(dead_code, unreachable_pub)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use boxwright::cas::{LocalStore, StoreConfig};
use boxwright::reapi::proto::bytestream as bs;
use boxwright::reapi::proto::bytestream::byte_stream_client::ByteStreamClient;
use boxwright::reapi::proto::longrunning::operations_client::OperationsClient;
use boxwright::reapi::proto::re;
use boxwright::reapi::proto::re::action_cache_client::ActionCacheClient;
use boxwright::reapi::proto::re::capabilities_client::CapabilitiesClient;
use boxwright::reapi::proto::re::content_addressable_storage_client::ContentAddressableStorageClient;
use boxwright::reapi::proto::re::execution_client::ExecutionClient;
use boxwright::reapi::{Digest, DigestFunction};
use boxwright::scheduler::embedded::{ActionCache, Embedded, EmbeddedConfig};
use boxwright::serve::{Server, ServerConfig};
use prost::Message;
use tokio::sync::oneshot;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// Nothing in these tests should take longer; a wait that does is a failure, not a hang.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Standalone {
    pub store: Arc<LocalStore>,
    pub cache: Arc<ActionCache>,
    pub scheduler: Arc<Embedded>,
    pub channel: Channel,
    pub address: String,
    pub stop: Option<oneshot::Sender<()>>,
    pub stopped: tokio::task::JoinHandle<()>,
    pub state: tempfile::TempDir,
}

pub fn store(root: &Path) -> Arc<LocalStore> {
    LocalStore::open(StoreConfig {
        root: root.join("cas"),
        high_water: 1 << 30,
        low_water: 1 << 29,
        free_floor: 0,
    })
    .unwrap()
}

pub async fn standalone() -> Standalone {
    standalone_with(|_| {}, |_| {}).await
}

pub async fn standalone_with(
    change_server: impl FnOnce(&mut ServerConfig),
    change_scheduler: impl FnOnce(&mut EmbeddedConfig),
) -> Standalone {
    let state = tempfile::tempdir().unwrap();
    let store = store(state.path());
    let cache = ActionCache::open(&state.path().join("ac"), 1000, store.clone()).unwrap();
    let mut config = EmbeddedConfig::with_slots(2);
    change_scheduler(&mut config);
    let scheduler = Embedded::new(config, store.clone(), cache.clone());
    let mut config = ServerConfig {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        ..ServerConfig::default()
    };
    change_server(&mut config);
    let server = Server::bind(
        config,
        store.clone(),
        cache.clone(),
        Some(scheduler.clone()),
    )
    .await
    .unwrap();
    let address = server.addresses()[0].to_string();
    let channel = Endpoint::from_shared(address.clone())
        .unwrap()
        .tcp_nodelay(true)
        .connect_lazy();
    let (stop, stopping) = oneshot::channel();
    let stopped = tokio::spawn(async move {
        server
            .run(async {
                let _ = stopping.await;
            })
            .await
            .unwrap();
    });
    Standalone {
        store,
        cache,
        scheduler,
        channel,
        address,
        stop: Some(stop),
        stopped,
        state,
    }
}

impl Standalone {
    pub fn capabilities(&self) -> CapabilitiesClient<Channel> {
        CapabilitiesClient::new(self.channel.clone())
    }
    pub fn cas(&self) -> ContentAddressableStorageClient<Channel> {
        ContentAddressableStorageClient::new(self.channel.clone())
            .max_decoding_message_size(32 << 20)
    }
    pub fn bytes(&self) -> ByteStreamClient<Channel> {
        ByteStreamClient::new(self.channel.clone())
    }
    pub fn results(&self) -> ActionCacheClient<Channel> {
        ActionCacheClient::new(self.channel.clone())
    }
    pub fn execution(&self) -> ExecutionClient<Channel> {
        ExecutionClient::new(self.channel.clone())
    }
    pub fn operations(&self) -> OperationsClient<Channel> {
        OperationsClient::new(self.channel.clone())
    }

    /// Keeps a blob without asking the server.
    pub fn keep(&self, data: &[u8]) -> Digest {
        let digest = sha(data);
        self.store.put(digest, data, false).unwrap();
        digest
    }

    /// Loses a blob, as an eviction does.
    pub fn lose(&self, digest: Digest) {
        let path = self.store.path(digest, false).unwrap().unwrap();
        std::fs::remove_file(path).unwrap();
        assert!(!self.store.recheck(digest).unwrap());
    }

    /// Keeps an Action that nothing here looks into; `salt` makes it another.
    pub fn action(&self, salt: &str, do_not_cache: bool) -> Digest {
        let action = re::Action {
            command_digest: Some(sha(b"command").to_proto()),
            input_root_digest: Some(sha(b"").to_proto()),
            salt: salt.as_bytes().to_vec().into(),
            do_not_cache,
            ..Default::default()
        };
        self.keep(&action.encode_to_vec())
    }

    /// The whole of a resource.
    pub async fn read(&self, name: &str, offset: i64, limit: i64) -> Result<Vec<u8>, Status> {
        let mut stream = self
            .bytes()
            .read(bs::ReadRequest {
                resource_name: name.to_owned(),
                read_offset: offset,
                read_limit: limit,
            })
            .await?
            .into_inner();
        let mut data = Vec::new();
        while let Some(piece) = stream.message().await? {
            data.extend_from_slice(&piece.data);
        }
        Ok(data)
    }

    /// Writes in pieces of `piece` bytes.
    pub async fn write(&self, name: &str, data: &[u8], piece: usize) -> Result<i64, Status> {
        let messages = messages(name, 0, data, piece, true);
        let response = self.bytes().write(tokio_stream::iter(messages)).await?;
        Ok(response.into_inner().committed_size)
    }
}

/// The messages of a Write call.
pub fn messages(
    name: &str,
    offset: usize,
    data: &[u8],
    piece: usize,
    finish: bool,
) -> Vec<bs::WriteRequest> {
    let mut at = offset;
    let mut messages: Vec<_> = data
        .chunks(piece)
        .map(|chunk| {
            let message = bs::WriteRequest {
                resource_name: name.to_owned(),
                write_offset: at as i64,
                finish_write: false,
                data: chunk.to_vec().into(),
            };
            at += chunk.len();
            message
        })
        .collect();
    if finish {
        match messages.last_mut() {
            Some(last) => last.finish_write = true,
            None => messages.push(bs::WriteRequest {
                resource_name: name.to_owned(),
                write_offset: offset as i64,
                finish_write: true,
                ..Default::default()
            }),
        }
    }
    messages
}

pub fn sha(data: &[u8]) -> Digest {
    DigestFunction::Sha256.digest(data)
}

/// Bytes that do not pack.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64 ^ size as u64;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Sends one message to a method, whatever type that takes.
pub async fn send<A: Message + Default + 'static>(
    channel: Channel,
    method: &str,
    message: impl Message + 'static,
) -> Result<Streaming<A>, Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::default();
    let answer = client.server_streaming(Request::new(message), method.parse().unwrap(), codec);
    Ok(answer.await?.into_inner())
}

/// A connection of its own, on which little is on its way unread.
pub async fn connection(server: &Standalone) -> Channel {
    connection_of(server, 64 << 10).await
}

/// A connection of its own, on which as much may be unread, but little of one answer.
pub async fn connection_of(server: &Standalone, unread: u32) -> Channel {
    let endpoint = Endpoint::from_shared(server.address.clone()).unwrap();
    let endpoint = endpoint
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(unread);
    endpoint.connect().await.unwrap()
}

/// Asks for a blob of a MiB.
pub fn read(server: &Standalone) -> re::BatchReadBlobsRequest {
    re::BatchReadBlobsRequest {
        digests: vec![server.keep(&noise(1 << 20)).to_proto()],
        ..Default::default()
    }
}
