//! What the answers of one connection share: what it has taken, who waits for it to take more, the places that its calls may
//! have, and its end. A connection of which nobody reads what becomes of its answers is closed, for what the transport has of them
//! is let go of with it alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Context;

use futures::task::AtomicWaker;
use tokio::sync::Semaphore;
use tonic::Status;

use super::places;

/// Answers that were given up, and are not read, of one connection: the transport may have a piece of each.
const UNREAD: u64 = 32;
/// Uploads of one connection that may wait for their turn: what they have sent is in the way of the others'. It leaves those
/// whose turn it is a quarter of what the connection may have on its way.
const UPLOADS: u64 = 96;

/// One connection, as its answers know it.
#[derive(Clone, Default)]
pub(super) struct Taken(Arc<Shared>);

struct Shared {
    bytes: AtomicU64,
    waiting: AtomicU64,
    unread: AtomicU64,
    uploads: AtomicU64,
    places: Arc<Semaphore>,
    closed: AtomicBool,
    /// What must know of that.
    task: AtomicWaker,
}

impl Default for Shared {
    fn default() -> Self {
        Shared {
            bytes: AtomicU64::default(),
            waiting: AtomicU64::default(),
            unread: AtomicU64::default(),
            uploads: AtomicU64::default(),
            places: places::of_one(),
            closed: AtomicBool::default(),
            task: AtomicWaker::new(),
        }
    }
}

impl Taken {
    /// So much went out, in bytes.
    pub(super) fn add(&self, bytes: usize) {
        self.0.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What went out since it was opened, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// How many answers wait.
    pub(super) fn waits(&self) -> u64 {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// One more answer waits, until this is dropped.
    pub(super) fn waiting(&self) -> Counted {
        Counted::new(self, |shared| &shared.waiting).0
    }

    /// One more answer was given up, and the client has not been told of it until this is dropped. Closes the connection if
    /// those are too many.
    pub(super) fn unread(&self) -> Counted {
        let (unread, count) = Counted::new(self, |shared| &shared.unread);
        if count > UNREAD {
            self.close();
        }
        unread
    }

    /// One more upload waits for its turn, until this is dropped; refused if those are too many.
    pub(super) fn upload(&self) -> Result<Counted, Status> {
        let (upload, count) = Counted::new(self, |shared| &shared.uploads);
        if count > UPLOADS {
            let many = format!(
                "{UPLOADS} uploads of this connection wait for their turn already; try again later"
            );
            return Err(Status::unavailable(many));
        }
        Ok(upload)
    }

    /// The places that its calls may have.
    pub(super) fn places(&self) -> Arc<Semaphore> {
        self.0.places.clone()
    }

    /// Ends the connection, with all that is on its way.
    fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.task.wake();
    }

    /// Whether it is to end; if not, the task is woken when it is.
    pub(super) fn is_closed(&self, context: &Context<'_>) -> bool {
        self.0.task.register(context.waker());
        self.0.closed.load(Ordering::Acquire)
    }
}

/// What an answer or an upload is at the moment, counted as long as it is that.
pub(super) struct Counted {
    of: Taken,
    count: fn(&Shared) -> &AtomicU64,
}

impl Counted {
    /// One more, and how many these are.
    fn new(of: &Taken, count: fn(&Shared) -> &AtomicU64) -> (Self, u64) {
        let before = count(&of.0).fetch_add(1, Ordering::Relaxed);
        (
            Counted {
                of: of.clone(),
                count,
            },
            before + 1,
        )
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.count)(&self.of.0).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Poll;

    #[tokio::test]
    async fn a_connection_of_too_many_answers_that_are_not_read_is_closed_at_once() {
        let connection = Taken::default();
        let closed = {
            let connection = connection.clone();
            tokio::spawn(poll_fn(move |context| {
                match connection.is_closed(context) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            }))
        };
        for _ in 0..2 * UNREAD {
            drop(connection.unread());
        }
        let unread: Vec<_> = (0..UNREAD).map(|_| connection.unread()).collect();
        tokio::task::yield_now().await;
        assert!(!closed.is_finished());
        let _one_more = connection.unread();
        closed.await.unwrap();
        drop(unread);
    }
}
