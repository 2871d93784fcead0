//! The answer of a call, which keeps what the call holds, such as its place among those that are bounded, until the client has
//! taken it. Large messages are handed on in small pieces, for the transport buffers what it is given until the client makes
//! room; and it does not ask for more before that, so that who takes (next to) nothing for a while is noticed here
//! alone, and loses the rest.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tonic::Status;

use super::taken::{Pace, Taken};

/// What the transport is given at a time, in bytes.
const PIECE: usize = 32 << 10;
/// The largest message of which all stays in memory while the transport has a piece, in bytes; pieces of others are copied.
const SHARED: usize = 512 << 10;

/// The body of an answer.
pub(super) struct Answer<R>(Kind<R>);

enum Kind<R> {
    /// One that holds nothing worth a watch.
    Free(R),
    Held {
        rest: Shared<R>,
        idle: Duration,
        watch: JoinHandle<()>,
        /// The client has been told that it took too long.
        told: bool,
    },
}

/// Empty once the client has taken too long. What decides on that is looked at and changed while it is locked: nothing is taken
/// from a transport that waits for it, and would never be woken.
type Shared<R> = Arc<Mutex<Option<Rest<R>>>>;

/// What has not been handed on.
struct Rest<R> {
    body: R,
    piece: Bytes,
    /// That is a part of a large message.
    large: bool,
    /// Of one message: given back with the last of it.
    place: Option<OwnedSemaphorePermit>,
    /// Until nothing is held that is worth a watch.
    pace: Option<Pace>,
}

impl<R> Answer<R>
where
    R: Body<Data = Bytes> + Send + Unpin + 'static,
{
    /// An answer that holds nothing.
    pub(super) fn free(body: R) -> Self {
        Answer(Kind::Free(body))
    }

    /// One message of a call that keeps `place`, on a connection of which a client may take nothing for as long as `idle`.
    pub(super) fn message(
        body: R,
        place: OwnedSemaphorePermit,
        connection: Taken,
        idle: Duration,
    ) -> Self {
        Answer::held(body, Some(place), connection, idle)
    }

    /// A stream of messages that holds what it is made of, on a connection of which a client may take nothing for as long as
    /// `idle`.
    pub(super) fn stream(body: R, connection: Taken, idle: Duration) -> Self {
        Answer::held(body, None, connection, idle)
    }

    fn held(
        body: R,
        place: Option<OwnedSemaphorePermit>,
        connection: Taken,
        idle: Duration,
    ) -> Self {
        if body.is_end_stream() {
            return Answer::free(body);
        }
        let rest = Arc::new(Mutex::new(Some(Rest {
            body,
            piece: Bytes::new(),
            large: false,
            pace: Some(Pace::new(connection, idle, place.is_some())),
            place,
        })));
        Answer(Kind::Held {
            // At once: a transport without room need not ask for anything.
            watch: tokio::spawn(give_up(rest.clone())),
            rest,
            idle,
            told: false,
        })
    }
}

impl<R: Body<Data = Bytes> + Unpin> Rest<R> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        if self.piece.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) => (self.large, self.piece) = (data.len() > SHARED, data),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let mut next = self.piece.split_to(self.piece.len().min(PIECE));
        if self.large {
            next = Bytes::copy_from_slice(&next);
        }
        if self.piece.is_empty() && self.place.take().is_some() {
            self.pace = None;
        }
        Poll::Ready(Some(Ok(Frame::data(next))))
    }
}

impl<R> Body for Answer<R>
where
    R: Body<Data = Bytes> + Send + Unpin + 'static,
{
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        let (rest, idle, told) = match &mut self.0 {
            Kind::Free(body) => return Pin::new(body).poll_frame(context),
            Kind::Held {
                rest, idle, told, ..
            } => (rest, *idle, told),
        };
        let mut rest = rest.lock();
        let Some(rest) = &mut *rest else {
            return Poll::Ready(match std::mem::replace(told, true) {
                true => None,
                false => Some(Ok(late(idle))),
            });
        };
        let polled = rest.poll(context);
        if let Some(pace) = &mut rest.pace {
            match &polled {
                Poll::Pending => pace.wanted(),
                Poll::Ready(Some(Ok(frame))) => pace.took(frame.data_ref().map_or(0, Bytes::len)),
                Poll::Ready(_) => rest.pace = None,
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Free(body) => body.is_end_stream(),
            Kind::Held { rest, .. } => {
                (rest.lock().as_ref()).is_some_and(|r| r.piece.is_empty() && r.body.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Free(body) => body.size_hint(),
            Kind::Held { .. } => SizeHint::default(),
        }
    }
}

impl<R: Default> Default for Answer<R> {
    fn default() -> Self {
        Answer(Kind::Free(R::default()))
    }
}

impl<R> Drop for Answer<R> {
    fn drop(&mut self) {
        if let Kind::Held { rest, watch, .. } = &self.0 {
            // The task is ended by the runtime, not at once.
            watch.abort();
            rest.lock().take();
        }
    }
}

/// What a client is told that took too long.
fn late(idle: Duration) -> Frame<Bytes> {
    let late = Status::deadline_exceeded(format!(
        "too little of the answer was taken for {} s or longer; ask again for what is missing",
        idle.as_secs_f32()
    ));
    let mut trailers = http::HeaderMap::new();
    // Without its text where that were no header.
    if late.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", (late.code() as i32).into());
    }
    Frame::trailers(trailers)
}

/// Lets go of an answer that is not taken.
async fn give_up<R>(shared: Shared<R>) {
    loop {
        let left = {
            let mut rest = shared.lock();
            let Some(pace) = rest.as_mut().and_then(|rest| rest.pace.as_mut()) else {
                return;
            };
            let Some(left) = pace.left() else {
                *rest = None;
                return;
            };
            left
        };
        tokio::time::sleep(left).await;
    }
}

#[cfg(test)]
mod tests;
