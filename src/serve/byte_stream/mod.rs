//! The ByteStream service: blobs of any size, in pieces, and the live output of running actions.

mod read;
mod uploads;
mod write;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, Streaming};

use super::places::Places;
use super::request::{blocking, instance};
use crate::cas::LocalStore;
use crate::reapi::proto::bytestream as bs;
use crate::reapi::proto::bytestream::byte_stream_server::ByteStream;
use crate::reapi::resource::BlobName;
use crate::scheduler::embedded::Embedded;

use uploads::Uploads;

/// Bounds of the service.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    /// Uploads and downloads at a time, each.
    pub(super) streams: usize,
    /// How long an interrupted upload can be gone on with.
    pub(super) upload_kept: Duration,
    /// How long a client may stay silent within an upload.
    pub(super) upload_idle: Duration,
}

/// The ByteStream service.
#[derive(Clone)]
pub(super) struct ByteStreamService {
    store: Arc<LocalStore>,
    scheduler: Option<Arc<Embedded>>,
    uploads: Arc<Uploads>,
    writers: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    idle: Duration,
}

impl ByteStreamService {
    pub(super) fn new(
        store: Arc<LocalStore>,
        scheduler: Option<Arc<Embedded>>,
        bounds: &Bounds,
    ) -> Self {
        ByteStreamService {
            store,
            scheduler,
            uploads: Arc::new(Uploads::new(bounds.upload_kept)),
            writers: Arc::new(Semaphore::new(bounds.streams)),
            readers: Arc::new(Semaphore::new(bounds.streams)),
            idle: bounds.upload_idle,
        }
    }

    /// Forgets uploads that nobody went on with; to be called now and then.
    pub(super) fn expire(&self) {
        self.uploads.expire();
    }

    /// Waits for one of the places of uploads. Who gives up meanwhile has sent nothing that is worth keeping.
    async fn writer(&self, places: &Places) -> Result<OwnedSemaphorePermit, Status> {
        if let Ok(writer) = self.writers.clone().try_acquire_owned() {
            return Ok(writer);
        }
        let _waits = places.upload()?;
        let writer = self.writers.clone().acquire_owned().await;
        writer.map_err(|_| Status::unavailable("the server is shutting down"))
    }

    async fn present(&self, name: &BlobName) -> Result<bool, Status> {
        let (store, digest) = (self.store.clone(), name.digest);
        blocking(move || Ok(store.contains(digest))).await
    }
}

fn write_name(name: &str) -> Result<BlobName, Status> {
    let name = BlobName::parse_write(name)
        .map_err(|error| Status::invalid_argument(format!("resource_name: {error}")))?;
    instance(&name.instance)?;
    Ok(name)
}

type Reading = Pin<Box<dyn Stream<Item = Result<bs::ReadResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ByteStream for ByteStreamService {
    type ReadStream = Reading;

    async fn read(&self, request: Request<bs::ReadRequest>) -> Result<Response<Reading>, Status> {
        self.begin_read(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn write(
        &self,
        request: Request<Streaming<bs::WriteRequest>>,
    ) -> Result<Response<bs::WriteResponse>, Status> {
        let writer = self.writer(&Places::of(request.extensions())?).await?;
        // A task of its own: when the client breaks off, this call is dropped at once, and what has come so far must still
        // be kept for the client to go on with.
        let me = self.clone();
        tokio::spawn(async move { me.take_upload(request.into_inner(), writer).await })
            .await
            .unwrap_or_else(|error| Err(Status::internal(format!("the upload broke: {error}"))))
            .map(|committed_size| Response::new(bs::WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        request: Request<bs::QueryWriteStatusRequest>,
    ) -> Result<Response<bs::QueryWriteStatusResponse>, Status> {
        let name = write_name(&request.get_ref().resource_name)?;
        let complete = self.present(&name).await?;
        let committed = match complete {
            true => name.digest.size(),
            false => self.uploads.committed(&name.render()),
        };
        Ok(Response::new(bs::QueryWriteStatusResponse {
            committed_size: committed as i64,
            complete,
        }))
    }
}
