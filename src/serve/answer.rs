//! The answer of a call, which keeps what the call holds, such as its place among those that are bounded, until the client has
//! taken it. Large messages are handed on in small pieces, for the transport buffers what it is given until the client makes
//! room; and it does not ask for more before that, so that who takes (next to) nothing for a while is noticed here
//! alone, and loses the rest.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tonic::Status;

/// What the transport is given at a time, in bytes.
const PIECE: usize = 32 << 10;
/// What a client takes at least within the time that it may be idle, in bytes, if there is something to take.
const LEAST: u64 = 128 << 10;

/// The body of an answer.
pub(super) struct Answer<R>(Kind<R>);

enum Kind<R> {
    /// One that holds nothing worth a watch.
    Free(R),
    Held {
        held: Arc<Held<R>>,
        idle: Duration,
        watch: Option<JoinHandle<()>>,
        /// The client has been told that it took too long.
        told: bool,
    },
}

struct Held<R> {
    /// Until the client has taken too long.
    rest: Mutex<Option<Rest<R>>>,
    /// Bytes.
    taken: AtomicU64,
    /// The transport waits for more, and not for the client.
    wanted: AtomicBool,
}

/// What has not been handed on.
struct Rest<R> {
    body: R,
    piece: Bytes,
    /// Given back with the last of a message.
    place: Option<OwnedSemaphorePermit>,
    /// There may be many messages.
    stream: bool,
}

impl<R: Body> Answer<R> {
    /// An answer that holds nothing.
    pub(super) fn free(body: R) -> Self {
        Answer(Kind::Free(body))
    }

    /// One message of a call that keeps `place`. A client may take nothing of it for as long as `idle`.
    pub(super) fn message(body: R, place: OwnedSemaphorePermit, idle: Duration) -> Self {
        Answer::held(body, Some(place), idle)
    }

    /// A stream of messages that holds what it is made of, of which a client may take nothing for as long as `idle`.
    pub(super) fn stream(body: R, idle: Duration) -> Self {
        Answer::held(body, None, idle)
    }

    fn held(body: R, place: Option<OwnedSemaphorePermit>, idle: Duration) -> Self {
        if body.is_end_stream() {
            return Answer::free(body);
        }
        let rest = Rest {
            body,
            piece: Bytes::new(),
            stream: place.is_none(),
            place,
        };
        Answer(Kind::Held {
            held: Arc::new(Held {
                rest: Mutex::new(Some(rest)),
                taken: AtomicU64::new(0),
                wanted: AtomicBool::new(true),
            }),
            idle,
            watch: None,
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
                Ok(data) => self.piece = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let next = self.piece.split_to(self.piece.len().min(PIECE));
        if self.piece.is_empty() {
            self.place = None;
        }
        Poll::Ready(Some(Ok(Frame::data(next))))
    }

    /// Whether it is worth watching that the client takes it.
    fn holds(&self) -> bool {
        self.stream || !self.piece.is_empty()
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
        let (held, idle, watch, told) = match &mut self.0 {
            Kind::Free(body) => return Pin::new(body).poll_frame(context),
            Kind::Held {
                held,
                idle,
                watch,
                told,
            } => (held, *idle, watch, told),
        };
        let mut rest = held.rest.lock();
        let Some(rest) = &mut *rest else {
            return Poll::Ready(match std::mem::replace(told, true) {
                true => None,
                false => Some(Ok(late(idle))),
            });
        };
        let polled = rest.poll(context);
        held.wanted.store(polled.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            held.taken.fetch_add(data.len() as u64, Ordering::Relaxed);
            if watch.is_none() && rest.holds() {
                *watch = Some(tokio::spawn(give_up(held.clone(), idle)));
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Free(body) => body.is_end_stream(),
            Kind::Held { held, .. } => (held.rest.lock().as_ref())
                .is_some_and(|r| r.piece.is_empty() && r.body.is_end_stream()),
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
        if let Kind::Held {
            watch: Some(watch), ..
        } = &self.0
        {
            watch.abort();
        }
    }
}

/// What a client is told that took too long.
fn late(idle: Duration) -> Frame<Bytes> {
    let late = Status::deadline_exceeded(format!(
        "hardly anything of the answer was taken for {} s; ask again for what is missing",
        idle.as_secs_f32()
    ));
    let mut trailers = http::HeaderMap::new();
    // Without its text where that were no header.
    if late.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", (late.code() as i32).into());
    }
    Frame::trailers(trailers)
}

/// Lets go of an answer of which nothing is taken.
async fn give_up<R>(held: Arc<Held<R>>, idle: Duration) {
    let mut before = held.taken.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(idle).await;
        let now = held.taken.load(Ordering::Relaxed);
        if !held.wanted.load(Ordering::Relaxed) && now - before < LEAST {
            held.rest.lock().take();
            return;
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full, StreamBody};
    use tokio::sync::Semaphore;

    const IDLE: Duration = Duration::from_secs(60);

    fn answer(places: &Arc<Semaphore>, len: usize) -> Answer<Full<Bytes>> {
        let place = places.clone().try_acquire_owned().unwrap();
        Answer::message(Full::new(vec![7; len].into()), place, IDLE)
    }

    #[tokio::test(start_paused = true)]
    async fn the_place_is_kept_until_the_last_piece_is_taken() {
        let places = Arc::new(Semaphore::new(1));
        let mut answer = answer(&places, 3 * PIECE - 1);
        for left in [2, 1, 0] {
            assert_eq!(places.available_permits(), 0);
            tokio::time::sleep(IDLE / 4).await;
            let piece = answer.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(piece.len(), if left > 0 { PIECE } else { PIECE - 1 });
        }
        assert_eq!(places.available_permits(), 1);
        assert!(answer.frame().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_loses_the_rest() {
        let places = Arc::new(Semaphore::new(1));
        let mut answer = answer(&places, 2 * PIECE);
        answer.frame().await.unwrap().unwrap();
        tokio::time::sleep(IDLE * 3).await;
        assert_eq!(places.available_permits(), 1);
        let Kind::Held { held, .. } = &answer.0 else {
            unreachable!()
        };
        assert!(held.rest.lock().is_none());
        let told = answer.frame().await.unwrap().unwrap();
        let status = Status::from_header_map(told.trailers_ref().unwrap()).unwrap();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert!(
            status.message().contains("of the answer was taken"),
            "{status}"
        );
        assert!(answer.frame().await.is_none());
    }

    /// Messages of a byte, and what the stream holds.
    fn stream(
        count: usize,
    ) -> (
        Answer<impl Body<Data = Bytes, Error = Status> + Unpin>,
        Arc<()>,
    ) {
        let holds = Arc::new(());
        let held = holds.clone();
        let frames = std::iter::repeat_n(b"x", count).map(move |byte| {
            let _ = &held;
            Ok(Frame::data(Bytes::from_static(byte)))
        });
        let body = StreamBody::new(futures::stream::iter(frames));
        (Answer::stream(body, IDLE), holds)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_small_messages_holds_nothing_once_it_was_given_up() {
        let (mut answer, holds) = stream(2);
        answer.frame().await.unwrap().unwrap();
        assert_eq!(Arc::strong_count(&holds), 2);
        tokio::time::sleep(IDLE * 2).await;
        assert_eq!(Arc::strong_count(&holds), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_a_minute_is_too_little_where_there_is_more() {
        let (mut answer, holds) = stream(20);
        for _ in 0..4 {
            answer.frame().await;
            tokio::time::sleep(IDLE * 2 / 3).await;
        }
        assert_eq!(Arc::strong_count(&holds), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_for_more_may_wait_for_long() {
        let (send, receive) = futures::channel::mpsc::unbounded::<Result<Frame<Bytes>, Status>>();
        let mut answer = Answer::stream(StreamBody::new(receive), IDLE);
        for _ in 0..3 {
            send.unbounded_send(Ok(Frame::data(Bytes::from_static(b"x"))))
                .unwrap();
            assert!(answer.frame().await.unwrap().unwrap().is_data());
            assert!(
                tokio::time::timeout(IDLE * 3, answer.frame())
                    .await
                    .is_err()
            );
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_dropped_leaves_nothing() {
        let places = Arc::new(Semaphore::new(1));
        let mut answer = answer(&places, 2 * PIECE);
        answer.frame().await.unwrap().unwrap();
        drop(answer);
        // The task that watched is ended by the runtime, not at once.
        let place = tokio::time::timeout(IDLE / 2, places.acquire()).await;
        assert!(place.is_ok());
    }
}
