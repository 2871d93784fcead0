//! What becomes of the inputs of each action that runs: how long it waited for contents that were not local, which it
//! read after that, and which it could not read.
//!
//! The kernel reads ahead, and for several actions at once: it is not known for whom. A content concerns every running
//! action whose tree holds it. To know that, an action's contents are listed when one is fetched for the first time while it
//! runs; an action whose inputs are all local is never looked at.
//!
//! What nobody is left to wait for is not waited for: the kernel tells of readers that go away only if they asked for themselves,
//! and most of what it asks for is ahead of them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::siblings::Siblings;
use super::subtree::Subtree;
use crate::cas::{Behalf, CasError, Wanted};
use crate::reapi::Digest;

/// Contents that are remembered to have been read by one action.
const READ: usize = 32_768;

/// The actions that run.
pub(super) struct Watches {
    /// What readers beside them have read, of whom nothing else is known; `None` if there are none.
    others: Option<Mutex<Siblings>>,
    /// Bytes that an action may have fetched along with what it reads.
    room: u64,
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
    over: CancellationToken,
}

/// One of them as long as it runs: dropped, it runs no longer.
pub(super) struct Running(pub(super) Arc<Watch>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.over.cancel();
    }
}

impl std::ops::Deref for Running {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.0
    }
}

struct Seen {
    siblings: Siblings,
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
    /// Of actions that may each have so many bytes fetched along with what they read.
    pub(super) fn new(room: u64) -> Self {
        Watches {
            others: None,
            room,
            running: Mutex::default(),
            listed: Arc::default(),
        }
    }

    /// For contents that others read as well, who may have as much fetched together.
    pub(super) fn with_others(room: u64) -> Self {
        Watches {
            others: Some(Mutex::new(Siblings::new(room))),
            ..Watches::new(room)
        }
    }

    /// Watches an action with this tree as long as the result lives.
    pub(super) fn begin(&self, root: Arc<Subtree>, behalf: Behalf) -> Running {
        let watch = Arc::new(Watch {
            root,
            behalf,
            contents: OnceLock::new(),
            seen: Mutex::new(Seen::new(self.room)),
            listed: self.listed.clone(),
            over: CancellationToken::new(),
        });
        let mut running = self.running.lock();
        running.retain(|watch| watch.strong_count() > 0);
        running.push(Arc::downgrade(&watch));
        Running(watch)
    }

    /// The actions whose readers wait for a content until the result is dropped.
    pub(super) fn wait(&self, digest: Digest) -> Wait {
        let concerned = self.concerned(digest);
        concerned.iter().for_each(|watch| watch.begin_to_wait());
        Wait { digest, concerned }
    }

    fn concerned(&self, digest: Digest) -> Vec<Arc<Watch>> {
        let running = self.running.lock().clone();
        let mut concerned: Vec<_> = running.iter().filter_map(Weak::upgrade).collect();
        concerned.retain(|watch| !watch.over.is_cancelled() && watch.holds(digest));
        concerned
    }

    /// Of what those who wait have read: of several, the one that it is fetched for.
    pub(super) fn siblings(
        &self,
        wait: &Wait,
        plan: impl FnOnce(&mut Siblings) -> Vec<Wanted>,
    ) -> Vec<Wanted> {
        match (wait.concerned.first(), &self.others) {
            (Some(watch), _) => plan(&mut watch.seen.lock().siblings),
            (None, Some(others)) => plan(&mut others.lock()),
            (None, None) => Vec::new(),
        }
    }

    /// A content was read.
    pub(super) fn read(&self, digest: Digest) {
        if let Some(others) = &self.others {
            others.lock().read(digest);
        }
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
    fn new(room: u64) -> Self {
        Seen {
            siblings: Siblings::new(room),
            waiting: 0,
            since: None,
            waited: Duration::ZERO,
            read: Vec::new(),
            known: HashSet::new(),
            failed: Vec::new(),
        }
    }

    fn note(&mut self, digest: Digest) {
        self.siblings.read(digest);
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

    /// Waits until nobody runs any more who may be waiting for it. Whoever began since may be: what was asked for before is not asked
    /// for again.
    pub(super) async fn deserted(&mut self, watches: &Watches) {
        if watches.others.is_some() {
            return std::future::pending().await;
        }
        loop {
            for watch in &self.concerned {
                watch.over.cancelled().await;
            }
            let concerned = watches.concerned(self.digest);
            if concerned.is_empty() {
                return;
            }
            concerned.iter().for_each(|watch| watch.begin_to_wait());
            let before = std::mem::replace(&mut self.concerned, concerned);
            before.iter().for_each(|watch| watch.end_to_wait());
        }
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

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::super::subtree::tests::{directory, file};
    use super::*;

    #[tokio::test]
    async fn a_content_is_waited_for_as_long_as_somebody_runs_who_may_want_it() {
        let tree = directory(&[file("a", b"a")], &[]);
        let digest = tree.directory.files[0].digest;
        let watches = Watches::new(0);
        let first = watches.begin(tree.clone(), Behalf::current());
        let stranger = watches.begin(directory(&[], &[]), Behalf::current());
        let mut wait = watches.wait(digest);
        {
            let mut deserted = std::pin::pin!(wait.deserted(&watches));
            assert!(poll!(&mut deserted).is_pending());
            // Its reader finds the kernel waiting already.
            let second = watches.begin(tree.clone(), Behalf::current());
            drop(first);
            assert!(poll!(&mut deserted).is_pending());
            assert!(second.waited() > Duration::ZERO);
            drop(second);
            assert!(poll!(&mut deserted).is_ready());
        }
        assert_eq!(stranger.waited(), Duration::ZERO);
        // Nobody is known at all: where only actions read, nobody is there.
        let mut late = watches.wait(digest);
        assert!(poll!(std::pin::pin!(late.deserted(&watches))).is_ready());
        let people = Watches::with_others(0);
        let mut theirs = people.wait(digest);
        assert!(poll!(std::pin::pin!(theirs.deserted(&people))).is_pending());
    }
}
