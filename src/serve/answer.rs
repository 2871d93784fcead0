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
use tokio::task::JoinHandle;
use tonic::Status;

use super::pace::Pace;
use super::places::Place;
use super::taken::{Counted, Taken};

/// What the transport is given at a time, in bytes. A copy: it may keep it for as long as there is the connection, and with a part
/// it would keep the whole, or what an earlier message was made in.
const PIECE: usize = 32 << 10;

/// The body of an answer.
pub(super) struct Answer<R>(Kind<R>);

enum Kind<R> {
    /// One that holds nothing worth a watch.
    Free(R),
    Held {
        rest: Shared<R>,
        idle: Duration,
        watch: JoinHandle<()>,
    },
}

/// What decides on when an answer is given up is looked at and changed while this is locked: nothing is taken from a transport that
/// waits for it, and would never be woken.
type Shared<R> = Arc<Mutex<State<R>>>;

enum State<R> {
    Taken(Rest<R>),
    /// The client took too long, and is to be told so.
    GivenUp {
        _unread: Counted,
    },
    Over,
}

/// What has not been handed on.
struct Rest<R> {
    body: R,
    piece: Bytes,
    /// Of one message: given back with the last of it.
    place: Option<Place>,
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
    pub(super) fn message(body: R, place: Place, connection: Taken, idle: Duration) -> Self {
        Answer::held(body, Some(place), connection, idle)
    }

    /// A stream of messages that holds what it is made of, on a connection of which a client may take nothing for as long as
    /// `idle`.
    pub(super) fn stream(body: R, connection: Taken, idle: Duration) -> Self {
        Answer::held(body, None, connection, idle)
    }

    fn held(body: R, place: Option<Place>, connection: Taken, idle: Duration) -> Self {
        if body.is_end_stream() {
            return Answer::free(body);
        }
        let rest = Arc::new(Mutex::new(State::Taken(Rest {
            body,
            piece: Bytes::new(),
            pace: Some(Pace::new(connection, idle)),
            place,
        })));
        Answer(Kind::Held {
            // At once: a transport without room need not ask for anything.
            watch: tokio::spawn(give_up(rest.clone())),
            rest,
            idle,
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
                Ok(data) => {
                    if let Some(pace) = &mut self.pace {
                        pace.message(data.len() > PIECE);
                    }
                    self.piece = data;
                }
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let next = self.piece.split_to(self.piece.len().min(PIECE));
        let next = Bytes::copy_from_slice(&next);
        if self.piece.is_empty() {
            if let Some(pace) = &mut self.pace {
                pace.message(false);
            }
            if self.place.take().is_some() {
                self.pace = None;
            }
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
        let (rest, idle) = match &mut self.0 {
            Kind::Free(body) => return Pin::new(body).poll_frame(context),
            Kind::Held { rest, idle, .. } => (rest, *idle),
        };
        let mut state = rest.lock();
        let rest = match &mut *state {
            State::Taken(rest) => rest,
            State::GivenUp { .. } => {
                *state = State::Over;
                return Poll::Ready(Some(Ok(late(idle))));
            }
            State::Over => return Poll::Ready(None),
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
            Kind::Held { rest, .. } => match &*rest.lock() {
                State::Taken(rest) => rest.piece.is_empty() && rest.body.is_end_stream(),
                State::GivenUp { .. } | State::Over => false,
            },
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
            *rest.lock() = State::Over;
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
            let mut state = shared.lock();
            let pace = match &mut *state {
                State::Taken(rest) => rest.pace.as_mut(),
                State::GivenUp { .. } | State::Over => None,
            };
            let Some(pace) = pace else {
                return;
            };
            match pace.left() {
                Some(left) => left,
                None => {
                    let _unread = pace.give_up();
                    *state = State::GivenUp { _unread };
                    return;
                }
            }
        };
        tokio::time::sleep(left).await;
    }
}

#[cfg(test)]
mod tests;
