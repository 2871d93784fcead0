//! Answers that clients take, take slowly, or do not take.

use super::*;
use crate::serve::places::Places;
use futures::FutureExt;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::sync::Semaphore;

const IDLE: Duration = Duration::from_secs(60);

fn answer(places: &Arc<Semaphore>, len: usize) -> Answer<Full<Bytes>> {
    answer_on(&Taken::default(), places, len)
}

fn answer_on(connection: &Taken, places: &Arc<Semaphore>, len: usize) -> Answer<Full<Bytes>> {
    let place = Places::new(places.clone(), connection).take();
    let place = place.now_or_never().unwrap().ok().unwrap();
    let body = Full::new(vec![7; len].into());
    Answer::message(body, place, connection.clone(), IDLE)
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

/// Whether the connection is to end.
fn closed(connection: &Taken) -> bool {
    connection.is_closed(&Context::from_waker(std::task::Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn who_takes_other_things_alone_loses_the_rest() {
    let (connection, places) = (Taken::default(), Arc::new(Semaphore::new(1)));
    let mut answer = answer_on(&connection, &places, 2 * PIECE);
    answer.frame().await.unwrap().unwrap();
    while places.available_permits() == 0 {
        connection.add(1 << 20);
        tokio::time::sleep(IDLE).await;
    }
    assert!(!closed(&connection));
    let told = answer.frame().await.unwrap().unwrap();
    let status = Status::from_header_map(told.trailers_ref().unwrap()).unwrap();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    assert!(
        status.message().contains("of the answer was taken"),
        "{status}"
    );
    assert!(answer.frame().await.is_none());
}

/// It may be about to upload, or wait for an action.
#[tokio::test(start_paused = true)]
async fn who_takes_nothing_at_all_keeps_the_connection() {
    let (connection, places) = (Taken::default(), Arc::new(Semaphore::new(1)));
    let mut answer = answer_on(&connection, &places, 2 * PIECE);
    answer.frame().await.unwrap().unwrap();
    tokio::time::sleep(IDLE / 2).await;
    assert_eq!(places.available_permits(), 0);
    tokio::time::sleep(IDLE).await;
    assert_eq!(places.available_permits(), 1);
    assert!(!closed(&connection));
}

/// A little at a time, but not for as long as it likes: such as the last message of a stream, which holds a place.
#[tokio::test(start_paused = true)]
async fn a_message_of_a_stream_comes_to_its_end() {
    let messages = futures::stream::once(async {
        let message = vec![7; PIECE * 1000];
        Ok::<_, Status>(Frame::data(Bytes::from(message)))
    });
    let body = StreamBody::new(Box::pin(messages));
    let connection = Taken::default();
    let mut answer = Answer::stream(body, connection.clone(), IDLE);
    let begun = tokio::time::Instant::now();
    while answer.frame().await.unwrap().unwrap().is_data() {
        connection.add(PIECE);
        tokio::time::sleep(IDLE / 2).await;
    }
    let took = begun.elapsed();
    assert!(took > IDLE * 30 && took < IDLE * 40, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_even_learn_what_was_lost_loses_the_connection() {
    let (connection, places) = (Taken::default(), Arc::new(Semaphore::new(1)));
    let give_up = async || {
        let answer = answer_on(&connection, &places, 2 * PIECE);
        while places.available_permits() == 0 {
            connection.add(1 << 20);
            tokio::time::sleep(IDLE).await;
        }
        answer
    };
    for _ in 0..100 {
        let mut read = give_up().await;
        assert!(read.frame().await.unwrap().unwrap().is_trailers());
    }
    let mut unread = Vec::new();
    while !closed(&connection) {
        unread.push(give_up().await);
    }
    assert_eq!(unread.len(), 33);
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
    (Answer::stream(body, Taken::default(), IDLE), holds)
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
    let mut answer = Answer::stream(StreamBody::new(receive), Taken::default(), IDLE);
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

#[tokio::test(start_paused = true)]
async fn who_was_just_given_something_is_not_late() {
    let (send, receive) = futures::channel::mpsc::unbounded::<Result<Frame<Bytes>, Status>>();
    let mut answer = Answer::stream(StreamBody::new(receive), Taken::default(), IDLE);
    let x = || Ok(Frame::data(Bytes::from_static(b"x")));
    send.unbounded_send(x()).unwrap();
    answer.frame().await.unwrap().unwrap();
    let moment = Duration::from_millis(100);
    let more = tokio::time::timeout(IDLE - moment, answer.frame()).await;
    assert!(more.is_err());
    send.unbounded_send(x()).unwrap();
    answer.frame().await.unwrap().unwrap();
    tokio::time::sleep(moment * 2).await;
    send.unbounded_send(x()).unwrap();
    assert!(answer.frame().await.unwrap().unwrap().is_data());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_transport_never_asks_for_keeps_no_place() {
    let places = Arc::new(Semaphore::new(1));
    let _answer = answer(&places, 1);
    tokio::time::sleep(IDLE * 2).await;
    assert_eq!(places.available_permits(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_was_handed_on_whole_is_not_told_to_be_late() {
    let places = Arc::new(Semaphore::new(1));
    let mut answer = answer(&places, 1);
    answer.frame().await.unwrap().unwrap();
    tokio::time::sleep(IDLE * 3).await;
    assert!(answer.frame().await.is_none());
}

/// One message, and a body that is slow to find that there is nothing more yet.
struct Slow(Option<Bytes>);

impl Body for Slow {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.0.take() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None => {
                std::thread::sleep(Duration::from_millis(600));
                Poll::Pending
            }
        }
    }
}

/// Nobody would wake it any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_taken_from_a_transport_that_begins_to_wait() {
    let body = Slow(Some(Bytes::from_static(b"x")));
    let mut answer = Answer::stream(body, Taken::default(), Duration::from_millis(300));
    answer.frame().await.unwrap().unwrap();
    let more = async { tokio::time::timeout(IDLE / 60, answer.frame()).await };
    assert!(more.await.is_err());
    let Kind::Held { rest, .. } = &answer.0 else {
        unreachable!()
    };
    assert!(matches!(&*rest.lock(), State::Taken(_)));
}

#[tokio::test(start_paused = true)]
async fn a_piece_keeps_no_message_in_memory() {
    struct Message(Vec<u8>, #[allow(dead_code)] Arc<()>);
    impl AsRef<[u8]> for Message {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    // The last is a small one, made in the room of a large one before it.
    for part in [0..PIECE + 1, 0..PIECE * 8, 0..1] {
        let kept = Arc::new(());
        let message = Message(vec![7; PIECE * 8], kept.clone());
        let message = Bytes::from_owner(message).slice(part);
        let mut answer = Answer::stream(Full::new(message), Taken::default(), IDLE);
        let piece = answer.frame().await.unwrap().unwrap().into_data().unwrap();
        tokio::time::sleep(IDLE * 2).await;
        assert_eq!(Arc::strong_count(&kept), 1);
        assert!(piece.iter().all(|byte| *byte == 7));
    }
}

#[tokio::test]
async fn an_answer_that_is_dropped_leaves_nothing() {
    let places = Arc::new(Semaphore::new(1));
    let mut answer = answer(&places, 2 * PIECE);
    answer.frame().await.unwrap().unwrap();
    drop(answer);
    assert_eq!(places.available_permits(), 1);
}
