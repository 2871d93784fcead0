//! Uploads that have begun: what is committed of each, so that a client that was cut off can go on.
//!
//! One client writes to an upload at a time. A client that comes back before the server has noticed that its old
//! connection is dead takes the upload over: the old call ends with ABORTED. Uploads of the same blob under other ids are
//! independent of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, watch};

use crate::cas::local::BlobWriter;

/// How many interrupted uploads are kept; each is a file on the disk.
const MAX_INTERRUPTED: usize = 1024;

/// All uploads, by their resource names.
pub(super) struct Uploads {
    uploads: Mutex<HashMap<String, Arc<Upload>>>,
    kept: Duration,
}

/// One upload.
pub(super) struct Upload {
    state: Arc<tokio::sync::Mutex<Partial>>,
    /// Counts the calls that wanted to write to it; the latest may.
    turns: watch::Sender<u64>,
    committed: AtomicU64,
    /// Since when nobody writes.
    idle: Mutex<Option<Instant>>,
}

/// What has come of a blob.
#[derive(Default)]
pub(super) struct Partial {
    /// The file, once there is something in it.
    pub(super) writer: Option<BlobWriter>,
}

/// The right to write to an upload, until another call takes it over.
pub(super) struct Turn {
    pub(super) upload: Arc<Upload>,
    turn: u64,
    turns: watch::Receiver<u64>,
}

impl Uploads {
    pub(super) fn new(kept: Duration) -> Self {
        Uploads {
            uploads: Mutex::default(),
            kept,
        }
    }

    /// How much of an upload is safe.
    pub(super) fn committed(&self, name: &str) -> u64 {
        self.uploads
            .lock()
            .get(name)
            .filter(|upload| !upload.expired(self.kept))
            .map_or(0, |upload| upload.committed())
    }

    /// Begins or goes on; whoever wrote before is told to stop.
    pub(super) fn take(&self, name: &str) -> Turn {
        let mut uploads = self.uploads.lock();
        if uploads
            .get(name)
            .is_some_and(|upload| upload.expired(self.kept))
        {
            uploads.remove(name);
        }
        let upload = uploads
            .entry(name.to_owned())
            .or_insert_with(|| {
                Arc::new(Upload {
                    state: Arc::default(),
                    turns: watch::Sender::new(0),
                    committed: AtomicU64::new(0),
                    idle: Mutex::new(None),
                })
            })
            .clone();
        *upload.idle.lock() = None;
        let mut turn = 0;
        upload.turns.send_modify(|latest| {
            *latest += 1;
            turn = *latest;
        });
        Turn {
            turns: upload.turns.subscribe(),
            turn,
            upload,
        }
    }

    /// The call is over but the upload is not: the client may go on later.
    pub(super) fn interrupt(&self, turn: &Turn) {
        if turn.is_latest() {
            *turn.upload.idle.lock() = Some(Instant::now());
        }
        if self.uploads.lock().len() > MAX_INTERRUPTED {
            self.expire();
        }
    }

    /// The upload is over, well or badly.
    pub(super) fn remove(&self, name: &str, upload: &Arc<Upload>) {
        let mut uploads = self.uploads.lock();
        if uploads
            .get(name)
            .is_some_and(|held| Arc::ptr_eq(held, upload))
        {
            uploads.remove(name);
        }
    }

    /// Forgets what nobody went on with, and the oldest if there is too much of it.
    pub(super) fn expire(&self) {
        let mut uploads = self.uploads.lock();
        let mut idle: Vec<(Instant, String)> = uploads
            .iter()
            .filter_map(|(name, upload)| Some(((*upload.idle.lock())?, name.clone())))
            .collect();
        idle.sort();
        let too_many = idle.len().saturating_sub(MAX_INTERRUPTED);
        for (i, (since, name)) in idle.into_iter().enumerate() {
            if i < too_many || since.elapsed() >= self.kept {
                uploads.remove(&name);
            }
        }
    }
}

impl Turn {
    fn is_latest(&self) -> bool {
        *self.turns.borrow() == self.turn
    }

    /// Waits until another call takes the upload over.
    pub(super) async fn taken_over(&mut self) {
        let turn = self.turn;
        if self.turns.wait_for(|latest| *latest != turn).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the call before has stored what it had.
    pub(super) async fn state(&self) -> OwnedMutexGuard<Partial> {
        self.upload.state.clone().lock_owned().await
    }
}

impl Upload {
    fn expired(&self, kept: Duration) -> bool {
        self.idle
            .lock()
            .is_some_and(|since| since.elapsed() >= kept)
    }

    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub(super) fn commit(&self, size: u64) {
        self.committed.store(size, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_later_call_takes_over() {
        let uploads = Uploads::new(Duration::from_secs(60));
        let mut first = uploads.take("a");
        let held = first.state().await;
        let second = uploads.take("a");
        first.taken_over().await;
        drop(held);
        let _ = second.state().await;
        assert!(second.is_latest());
    }

    #[test]
    fn interrupted_uploads_expire_and_are_bounded() {
        let uploads = Uploads::new(Duration::from_secs(60));
        for i in 0..MAX_INTERRUPTED + 10 {
            let turn = uploads.take(&i.to_string());
            turn.upload.commit(7);
            uploads.interrupt(&turn);
        }
        assert_eq!(uploads.committed("0"), 0);
        assert_eq!(uploads.committed("500"), 7);
        assert_eq!(uploads.uploads.lock().len(), MAX_INTERRUPTED);
        let uploads = Uploads::new(Duration::ZERO);
        let turn = uploads.take("a");
        turn.upload.commit(7);
        assert_eq!(uploads.committed("a"), 7);
        uploads.interrupt(&turn);
        assert_eq!(uploads.committed("a"), 0);
    }
}
