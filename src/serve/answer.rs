//! The answer of a bounded call, which keeps the call's place until the client has taken it. Large messages are handed on in small
//! pieces, for the transport buffers what it is given until the client makes room; who makes none for a while loses the
//! rest, so that unread answers fill neither memory nor places.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// The body of an answer.
pub(super) struct Answer<R>(Kind<R>);

enum Kind<R> {
    /// Of a call that is not bounded, or that has no place any more.
    Free(R),
    Held {
        held: Arc<Held<R>>,
        idle: Duration,
        /// From the first large message on.
        watch: Option<JoinHandle<()>>,
        /// The client has been told that it took too long.
        told: bool,
    },
}

struct Held<R> {
    /// Until the client has taken too long.
    rest: Mutex<Option<Rest<R>>>,
    /// Pieces that were taken.
    taken: AtomicUsize,
}

/// What has not been handed on.
struct Rest<R> {
    body: R,
    piece: Bytes,
    /// Given back with the last of a message.
    place: Option<OwnedSemaphorePermit>,
}

impl<R: Body> Answer<R> {
    /// The answer of a call that has no place to keep.
    pub(super) fn free(body: R) -> Self {
        Answer(Kind::Free(body))
    }

    /// An answer that keeps `place`. A client may take nothing of it for as long as `idle`.
    pub(super) fn held(body: R, place: OwnedSemaphorePermit, idle: Duration) -> Self {
        if body.is_end_stream() {
            return Answer::free(body);
        }
        let rest = Rest {
            body,
            piece: Bytes::new(),
            place: Some(place),
        };
        Answer(Kind::Held {
            held: Arc::new(Held {
                rest: Mutex::new(Some(rest)),
                taken: AtomicUsize::new(0),
            }),
            idle,
            watch: None,
            told: false,
        })
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
        let Some(Rest { body, piece, place }) = &mut *rest else {
            if std::mem::replace(told, true) {
                return Poll::Ready(None);
            }
            return Poll::Ready(Some(Ok(late(idle))));
        };
        if piece.is_empty() {
            let frame = match ready!(Pin::new(body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) => *piece = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let next = piece.split_to(piece.len().min(PIECE));
        held.taken.fetch_add(1, Ordering::Relaxed);
        if piece.is_empty() {
            *place = None;
        } else if watch.is_none() {
            *watch = Some(tokio::spawn(give_up(held.clone(), idle)));
        }
        Poll::Ready(Some(Ok(Frame::data(next))))
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
        "nothing of the answer was taken for {} s",
        idle.as_secs_f32()
    ));
    let mut trailers = http::HeaderMap::new();
    // Without its text where that were no header.
    if late.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", (late.code() as i32).into());
    }
    Frame::trailers(trailers)
}

/// Lets go of an answer of which nothing is taken: the transport does not ask for more before the client takes something, so
/// nobody else would see it.
async fn give_up<R>(held: Arc<Held<R>>, idle: Duration) {
    let mut before = held.taken.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(idle).await;
        let now = held.taken.load(Ordering::Relaxed);
        if now == before {
            held.rest.lock().take();
            return;
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full};
    use tokio::sync::Semaphore;

    const IDLE: Duration = Duration::from_secs(60);

    fn answer(places: &Arc<Semaphore>, len: usize) -> Answer<Full<Bytes>> {
        let place = places.clone().try_acquire_owned().unwrap();
        Answer::held(Full::new(vec![7; len].into()), place, IDLE)
    }

    #[tokio::test(start_paused = true)]
    async fn the_place_is_kept_until_the_last_piece_is_taken() {
        let places = Arc::new(Semaphore::new(1));
        let mut answer = answer(&places, 3 * PIECE - 1);
        for left in [2, 1, 0] {
            assert_eq!(places.available_permits(), 0);
            // Slow, but not idle.
            tokio::time::sleep(IDLE * 2 / 3).await;
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
        assert!(status.message().contains("nothing of the answer was taken"));
        assert!(answer.frame().await.is_none());
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
