//! What becomes of the inputs of each action that runs: how long it waited for contents that were not local, which it
//! read after that, and which it could not read.
//!
//! The kernel reads ahead, and for several actions at once: it is not known for whom. A content concerns every running
//! action whose tree holds it. To know that, an action's contents are listed when one is fetched for the first time while it
//! runs; an action whose inputs are all local is never looked at.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::subtree::Subtree;
use crate::cas::{Behalf, CasError};
use crate::reapi::Digest;

/// Contents that are remembered to have been read by one action.
const READ: usize = 32_768;

/// The actions that run.
#[derive(Default)]
pub(super) struct Watches {
    running: Mutex<Vec<Weak<Watch>>>,
    /// Those whose contents are listed: whether it is worth telling of a read.
    listed: Arc<AtomicUsize>,
}

/// One of them.
pub(super) struct Watch {
    root: Arc<Subtree>,
    /// Whom its downloads are made for.
    pub(super) behalf: Behalf,
    contents: OnceLock<HashSet<Digest>>,
    seen: Mutex<Seen>,
    listed: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Seen {
    waiting: usize,
    since: Option<Instant>,
    waited: Duration,
    read: Vec<Digest>,
    known: HashSet<Digest>,
    failed: Vec<Failed>,
}

/// A content that could not be had.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub(super) digest: Digest,
    /// `None` if nobody has it.
    pub(super) why: Option<Arc<CasError>>,
}

impl Watches {
    /// Watches an action with this tree as long as the result lives.
    pub(super) fn begin(&self, root: Arc<Subtree>, behalf: Behalf) -> Arc<Watch> {
        let watch = Arc::new(Watch {
            root,
            behalf,
            contents: OnceLock::new(),
            seen: Mutex::default(),
            listed: self.listed.clone(),
        });
        let mut running = self.running.lock();
        running.retain(|watch| watch.strong_count() > 0);
        running.push(Arc::downgrade(&watch));
        watch
    }

    /// The actions whose readers wait for a content until the result is dropped.
    pub(super) fn wait(&self, digest: Digest) -> Wait {
        let running = self.running.lock().clone();
        let mut concerned: Vec<_> = running.iter().filter_map(Weak::upgrade).collect();
        concerned.retain(|watch| watch.holds(digest));
        concerned.iter().for_each(|watch| watch.begin_to_wait());
        Wait { digest, concerned }
    }

    /// A content was read.
    pub(super) fn read(&self, digest: Digest) {
        if self.listed.load(Ordering::Relaxed) == 0 {
            return;
        }
        for watch in self.running.lock().iter().filter_map(Weak::upgrade) {
            if watch
                .contents
                .get()
                .is_some_and(|all| all.contains(&digest))
            {
                watch.seen.lock().note(digest);
            }
        }
    }
}

impl Watch {
    /// How long its readers have waited.
    pub(super) fn waited(&self) -> Duration {
        let seen = self.seen.lock();
        seen.waited + seen.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// What could not be had.
    pub(super) fn failed(&self) -> Vec<Failed> {
        self.seen.lock().failed.clone()
    }

    /// What was fetched, and what was read after the first of that, in its order.
    pub(super) fn take_read(&self) -> Vec<Digest> {
        std::mem::take(&mut self.seen.lock().read)
    }

    fn holds(&self, digest: Digest) -> bool {
        let contents = self.contents.get_or_init(|| {
            self.listed.fetch_add(1, Ordering::Relaxed);
            self.root.contents()
        });
        contents.contains(&digest)
    }

    fn begin_to_wait(&self) {
        let mut seen = self.seen.lock();
        seen.waiting += 1;
        if seen.waiting == 1 {
            seen.since = Some(Instant::now());
        }
    }

    fn end_to_wait(&self) {
        let mut seen = self.seen.lock();
        seen.waiting -= 1;
        if seen.waiting == 0
            && let Some(since) = seen.since.take()
        {
            seen.waited += since.elapsed();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.contents.get().is_some() {
            self.listed.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Seen {
    fn note(&mut self, digest: Digest) {
        if self.read.len() < READ && self.known.insert(digest) {
            self.read.push(digest);
        }
    }
}

/// A content that is waited for.
pub(super) struct Wait {
    digest: Digest,
    concerned: Vec<Arc<Watch>>,
}

impl Wait {
    /// Whom it is fetched for: of several whose tree holds it, the one that runs for the longest time.
    pub(super) fn behalf(&self) -> Option<Behalf> {
        self.concerned.first().map(|watch| watch.behalf.clone())
    }

    /// It came.
    pub(super) fn over(self) {
        for watch in &self.concerned {
            watch.seen.lock().note(self.digest);
        }
    }

    /// It will not come.
    pub(super) fn failed(self, why: Option<CasError>) {
        let why = why.map(Arc::new);
        for watch in &self.concerned {
            let mut seen = watch.seen.lock();
            let digest = self.digest;
            if !seen.failed.iter().any(|failed| failed.digest == digest) {
                let why = why.clone();
                seen.failed.push(Failed { digest, why });
            }
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.concerned.iter().for_each(|watch| watch.end_to_wait());
    }
}
