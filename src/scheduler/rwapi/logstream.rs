//! Live output for whoever watches a running action: the scheduler made a log stream for it and
//! told the worker its write name in the lease's trailer; the pieces go there by ByteStream.Write.
//!
//! Watching is a comfort, not a result: a stream that cannot be written is logged once and given
//! up, and the action goes on.

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::action::LiveOutput;
use crate::config::{Credentials, Endpoint, EndpointError, Line};
use crate::reapi::proto::bytestream::byte_stream_client::ByteStreamClient;
use crate::reapi::proto::bytestream::{QueryWriteStatusRequest, WriteRequest};

/// Pieces of one stream that may wait for the network; a command that writes faster than that is
/// shown as far as it came until then, and in full in its result.
const WAITING: usize = 64;

/// Writes log streams at one endpoint.
pub struct LogStreams {
    line: Line,
}

impl LogStreams {
    /// Connects when the first stream is opened. To be called inside the tokio runtime.
    pub fn new(endpoint: &Endpoint, credentials: &Credentials) -> Result<Self, EndpointError> {
        Ok(LogStreams {
            line: endpoint.line(credentials)?,
        })
    }
}

impl LiveOutput for LogStreams {
    fn open(&self, stream: &str) -> Option<mpsc::Sender<Bytes>> {
        let (sender, pieces) = mpsc::channel(WAITING);
        let client = ByteStreamClient::new(self.line.clone());
        let name = stream.to_owned();
        tokio::spawn(async move {
            if let Err(status) = write(client, name.clone(), pieces).await {
                tracing::info!(stream = %name, %status, "live output is not shown: the log stream cannot be written");
            }
        });
        Some(sender)
    }
}

async fn write(
    mut client: ByteStreamClient<Line>,
    name: String,
    pieces: mpsc::Receiver<Bytes>,
) -> Result<(), tonic::Status> {
    // The server is asked for the stream first, so that a name it does not know fails before the
    // first piece, and an earlier attempt's bytes are not written over.
    let status = client
        .query_write_status(QueryWriteStatusRequest {
            resource_name: name.clone(),
        })
        .await?
        .into_inner();
    let mut offset = status.committed_size.max(0);
    let mut first = Some(name);
    let requests = ReceiverStream::new(pieces)
        .map(Some)
        .chain(futures::stream::once(async { None }))
        .map(move |piece| {
            let finish_write = piece.is_none();
            let data = piece.unwrap_or_default();
            let write_offset = offset;
            offset += data.len() as i64;
            WriteRequest {
                // The name must be in the first request and may be left out of the others.
                resource_name: first.take().unwrap_or_default(),
                write_offset,
                finish_write,
                data,
            }
        });
    client.write(requests).await.map(|_| ())
}
