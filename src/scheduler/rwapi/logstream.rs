//! Live output for whoever watches a running action: the scheduler made a log stream for it and
//! told the worker its write name in the lease's trailer; the pieces go there by ByteStream.Write.
//!
//! Watching is a comfort, not a result: a stream that cannot be written is logged once and given
//! up, and the action goes on. A server that does not answer, or takes nothing, is given as long as any other call
//! takes; what waits for it meanwhile is bounded, stream by stream and over all of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Request, Status};

use crate::action::LiveOutput;
use crate::config::{Credentials, Endpoint, EndpointError, Line};
use crate::reapi::proto::bytestream::byte_stream_client::ByteStreamClient;
use crate::reapi::proto::bytestream::{QueryWriteStatusRequest, WriteRequest};
use crate::sandbox::LiveSink;

/// Bytes of one stream that may wait for the network; a command that writes faster than that is
/// shown as far as it came until then, and in full in its result.
const WAITING: usize = 4 << 20;
/// The same of all streams together: a server that has stopped takes this much of the worker's memory, however many actions write.
const ALL_WAITING: usize = 16 << 20;
/// What a piece counts for beside its bytes, so that many small ones are bounded too.
const PER_PIECE: usize = 128;

/// Writes log streams at one endpoint.
pub struct LogStreams {
    line: Line,
    /// How long the server may leave unanswered what it is asked, or untaken what it is sent.
    patience: Duration,
    /// For the pieces of all streams.
    room: Arc<Semaphore>,
}

impl LogStreams {
    /// Connects when the first stream is opened. `patience` is for each answer of the server. To be called inside the tokio
    /// runtime.
    pub fn new(
        endpoint: &Endpoint,
        credentials: &Credentials,
        patience: Duration,
    ) -> Result<Self, EndpointError> {
        Ok(LogStreams {
            line: endpoint.line(credentials)?,
            patience,
            room: Arc::new(Semaphore::new(ALL_WAITING)),
        })
    }

    fn begin(&self, name: &str) -> Sink {
        let queue = Arc::new(Queue::new(self.room.clone()));
        let (client, patience) = (ByteStreamClient::new(self.line.clone()), self.patience);
        let (name, pieces) = (name.to_owned(), queue.clone());
        tokio::spawn(async move {
            let written = tokio::select! {
                written = write(client, &name, &pieces, patience) => written,
                () = pieces.stalled(patience) => Err(Status::deadline_exceeded(format!(
                    "the server took nothing for {patience:?}"
                ))),
            };
            // Not left to the call, parts of which may outlive it.
            pieces.give_up();
            if let Err(status) = written {
                tracing::info!(stream = %name, %status, "live output is not shown: the log stream cannot be written");
            }
        });
        Sink(queue)
    }
}

impl LiveOutput for LogStreams {
    fn open(&self, stream: &str) -> Option<Box<dyn LiveSink>> {
        Some(Box::new(self.begin(stream)))
    }
}

async fn write(
    mut client: ByteStreamClient<Line>,
    name: &str,
    pieces: &Arc<Queue>,
    patience: Duration,
) -> Result<(), Status> {
    // The server is asked for the stream first, so that a name it does not know fails before the
    // first piece, and an earlier attempt's bytes are not written over.
    let mut asked = Request::new(QueryWriteStatusRequest {
        resource_name: name.to_owned(),
    });
    asked.set_timeout(patience);
    let status = timeout(patience, client.query_write_status(asked))
        .await
        .map_err(|_| {
            Status::deadline_exceeded(format!("no answer to QueryWriteStatus within {patience:?}"))
        })??
        .into_inner();
    let mut offset = status.committed_size.max(0);
    let mut first = Some(name.to_owned());
    let requests = futures::stream::unfold(Some(pieces.clone()), |pieces| async {
        let pieces = pieces?;
        match pieces.next().await {
            Next::Piece(piece) => Some((Some(piece), Some(pieces))),
            Next::End => Some((None, None)),
            Next::GivenUp => None,
        }
    })
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

/// The command's end of a stream.
struct Sink(Arc<Queue>);

impl LiveSink for Sink {
    fn piece(&mut self, piece: &[u8]) -> bool {
        self.0.push(piece)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What a command has written and the network has not taken.
struct Queue {
    state: Mutex<State>,
    room: Arc<Semaphore>,
    /// Tells the call that there is something to send.
    to_send: Notify,
    /// Tells whoever watches the call that something is due from now on.
    is_due: Notify,
}

struct State {
    pieces: VecDeque<(Bytes, OwnedSemaphorePermit)>,
    /// What `pieces` count for.
    waiting: usize,
    stage: Stage,
    /// When the server last did what it should, or was first asked to.
    since: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The command writes, or may.
    Open,
    /// It has written all.
    Ended,
    /// Nobody sends what is written.
    GivenUp,
}

enum Next {
    Piece(Bytes),
    End,
    GivenUp,
}

impl Queue {
    fn new(room: Arc<Semaphore>) -> Self {
        Queue {
            state: Mutex::new(State {
                pieces: VecDeque::new(),
                waiting: 0,
                stage: Stage::Open,
                since: Instant::now(),
            }),
            room,
            to_send: Notify::new(),
            is_due: Notify::new(),
        }
    }

    /// Whether there was a place for it.
    fn push(&self, piece: &[u8]) -> bool {
        let mut state = self.state.lock();
        let counts = piece.len() + PER_PIECE;
        if state.stage != Stage::Open || state.waiting + counts > WAITING {
            return false;
        }
        // Below WAITING, which is far from what the type holds.
        let Ok(room) = self.room.clone().try_acquire_many_owned(counts as u32) else {
            return false;
        };
        if state.pieces.is_empty() {
            state.since = Instant::now();
        }
        state
            .pieces
            .push_back((Bytes::copy_from_slice(piece), room));
        state.waiting += counts;
        self.to_send.notify_one();
        self.is_due.notify_one();
        true
    }

    /// The command writes no more.
    fn end(&self) {
        let mut state = self.state.lock();
        if state.stage == Stage::Open {
            state.stage = Stage::Ended;
            state.since = Instant::now();
        }
        self.to_send.notify_one();
        self.is_due.notify_one();
    }

    /// Forgets what waits, and takes nothing more.
    fn give_up(&self) {
        let mut state = self.state.lock();
        state.stage = Stage::GivenUp;
        state.pieces = VecDeque::new();
        self.to_send.notify_one();
    }

    /// What is to be sent next, once there is something.
    async fn next(&self) -> Next {
        loop {
            {
                let mut state = self.state.lock();
                match (state.stage, state.pieces.pop_front()) {
                    (Stage::GivenUp, _) => return Next::GivenUp,
                    (stage, Some((piece, _room))) => {
                        state.waiting -= piece.len() + PER_PIECE;
                        // After the end there is one deadline for all: the rest must not trickle for longer than that.
                        if stage == Stage::Open {
                            state.since = Instant::now();
                        }
                        return Next::Piece(piece);
                    }
                    (Stage::Ended, None) => return Next::End,
                    (Stage::Open, None) => {}
                }
            }
            self.to_send.notified().await;
        }
    }

    /// Returns when the server has had pieces to take for `patience` and took none, or has not answered for as long since the
    /// command's end. While the command is silent nothing is due.
    async fn stalled(&self, patience: Duration) {
        loop {
            let due = {
                let state = self.state.lock();
                let open = state.stage == Stage::Open && state.pieces.is_empty();
                (!open).then_some(state.since + patience)
            };
            match due {
                None => self.is_due.notified().await,
                Some(due) if due <= Instant::now() => return,
                Some(due) => sleep_until(due).await,
            }
        }
    }
}

#[cfg(test)]
mod tests;
