//! The scheduler inside `boxwright standalone`: a queue in memory between the Execution service and one worker.
//!
//! * Lower `ExecutionPolicy.priority` values run first, equal ones in the order of their arrival.
//! * Equal actions in flight run once. Every client has an operation of its own; cancelling the last one kills the action.
//! * A client that goes away does not cancel its action: it may come back with WaitExecution. An action that is still queued
//!   when its turn comes, and that nobody has waited for in [`EmbeddedConfig::abandoned_after`], is given up instead of run.
//! * A failure of the worker is tried again on it, at most [`EmbeddedConfig::retries`] times.
//! * Only what the worker declares cacheable is cached, and never an action with `do_not_cache`.
//! * Finished operations can be asked for during [`EmbeddedConfig::kept_for`], a bounded number of them.
//! * Nothing survives a restart: clients ask again, and find what was cached.

mod inline;
mod keep;
mod operation;
mod queue;
mod references;
mod results;
mod status;
mod streams;
mod submit;

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{Drain, Event, Lease, LeaseId, Scheduler};
use crate::action::{Ending, Finished};
use crate::cas::LocalStore;
use crate::reapi::proto::re;
use crate::reapi::time;

pub use inline::Inline;
pub use operation::{End, Stage, View, Watch};
pub use results::{ActionCache, MAX_RESULT};
pub use streams::{Follower, LiveStreams, StreamError, StreamSink, WINDOW};
pub use submit::{Submission, SubmitError};

use keep::Keeping;
use operation::{stderr_stream, stdout_stream};
use queue::{Bounds, JobId, Queue, complete_metadata};

/// How much the scheduler takes on, and for how long it remembers.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// Leases that may be out at a time: the worker's slots.
    pub slots: usize,
    /// Operations that have not ended; more are refused with RESOURCE_EXHAUSTED.
    pub max_open: usize,
    /// Bytes of Action messages and request metadata that are held for them.
    pub max_open_bytes: usize,
    /// How often a failure of the worker is tried again.
    pub retries: u32,
    /// How long a queued action that nobody waits for stays in the queue.
    pub abandoned_after: Duration,
    /// How long a finished operation can be asked for.
    pub kept_for: Duration,
    /// How many finished operations can be asked for, and how many bytes their responses may take.
    pub kept: usize,
    /// See `kept`.
    pub kept_bytes: usize,
}

impl EmbeddedConfig {
    /// The defaults for a worker of this many slots.
    pub fn with_slots(slots: usize) -> Self {
        EmbeddedConfig {
            slots,
            max_open: 100_000,
            max_open_bytes: 128 << 20,
            retries: 2,
            abandoned_after: Duration::from_secs(60),
            kept_for: Duration::from_secs(300),
            kept: 2_000,
            kept_bytes: 4 << 20,
        }
    }
}

/// The scheduler. Shared by the services (through the methods here) and the worker (through [`Scheduler`]).
pub struct Embedded {
    config: EmbeddedConfig,
    store: Arc<LocalStore>,
    cache: Arc<ActionCache>,
    keeping: Keeping,
    streams: LiveStreams,
    state: Mutex<State>,
    /// Something changed that `next` may be waiting for.
    news: Notify,
    runtime: Handle,
    me: Weak<Embedded>,
}

struct State {
    queue: Queue,
    unwell: Option<String>,
    drain: Option<Drain>,
    drained: bool,
}

impl Embedded {
    /// Makes the scheduler; must be called within a tokio runtime.
    pub fn new(
        config: EmbeddedConfig,
        store: Arc<LocalStore>,
        cache: Arc<ActionCache>,
    ) -> Arc<Self> {
        let bounds = Bounds {
            open: config.max_open,
            open_bytes: config.max_open_bytes,
            kept: config.kept,
            kept_bytes: config.kept_bytes,
            kept_for: config.kept_for,
            abandoned_after: config.abandoned_after,
        };
        Arc::new_cyclic(|me| Embedded {
            me: me.clone(),
            config,
            keeping: Keeping::of(&store),
            store,
            cache,
            streams: LiveStreams::default(),
            state: Mutex::new(State {
                queue: Queue::new(bounds),
                unwell: None,
                drain: None,
                drained: false,
            }),
            news: Notify::new(),
            runtime: Handle::current(),
        })
    }

    /// Where live output of a lease goes: give it `Lease::stdout_stream` or `Lease::stderr_stream`.
    /// `None` if the lease is gone. Dropping the sink ends the stream.
    pub fn stream_sink(&self, name: &str) -> Option<StreamSink> {
        self.streams.sink(name)
    }

    /// The live output of all leases, for readers.
    pub fn streams(&self) -> &LiveStreams {
        &self.streams
    }

    /// The results of earlier actions.
    pub fn cache(&self) -> &Arc<ActionCache> {
        &self.cache
    }

    /// Waits for an operation that exists; `None` if there is none of this name.
    pub fn watch(self: &Arc<Self>, name: &str) -> Option<Watch> {
        let view = self.lock().queue.watch(name)?;
        Some(Watch {
            name: name.to_owned(),
            view,
            scheduler: Arc::downgrade(self),
        })
    }

    /// Takes an operation back; `false` if there is none of this name. One that has ended stays as it is.
    pub fn cancel(&self, name: &str) -> bool {
        let cancelled = self
            .lock()
            .queue
            .cancel(name, "the operation was cancelled by its client");
        if let Some(Some(lease)) = &cancelled {
            self.end_streams(lease);
        }
        self.news.notify_one();
        cancelled.is_some()
    }

    /// Forgets a finished operation: `None` if there is none of this name, `Some(false)` if it has not finished.
    pub fn delete(&self, name: &str) -> Option<bool> {
        self.lock().queue.delete(name)
    }

    /// At most `limit` operations in the order of their names, after the name `after`, and whether there are more.
    pub fn list(&self, after: &str, limit: usize) -> (Vec<(String, View)>, bool) {
        self.lock().queue.list(after, limit)
    }

    /// Operations that have not ended.
    pub fn open(&self) -> usize {
        self.lock().queue.open()
    }

    /// How many clients wait for an operation.
    pub fn watchers(&self, name: &str) -> Option<usize> {
        self.lock().queue.watchers(name)
    }

    fn left(&self, name: &str) {
        self.lock().queue.left(name);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn end_streams(&self, lease: &str) {
        self.streams.finish(&stdout_stream(lease));
        self.streams.finish(&stderr_stream(lease));
    }

    /// The next event, if there is one now.
    fn poll_event(&self) -> Option<Event> {
        let mut state = self.lock();
        let State {
            queue,
            unwell,
            drain,
            drained,
        } = &mut *state;
        if *drained {
            return None;
        }
        if let Some(lease) = queue.next_revoked() {
            return Some(Event::Revoked(lease));
        }
        if drain.is_some() {
            if queue.idle() {
                *drained = true;
                return Some(Event::Drained);
            }
            return None;
        }
        if unwell.is_some() || !queue.waits() || queue.running() >= self.config.slots {
            return None;
        }
        let id = Uuid::new_v4().to_string();
        // The names are told to clients with the lease, so the streams must exist by then.
        let (stdout, stderr) = (stdout_stream(&id), stderr_stream(&id));
        self.streams.open(&stdout);
        self.streams.open(&stderr);
        let Some(job) = queue.lease(&id) else {
            self.streams.discard(&stdout);
            self.streams.discard(&stderr);
            return None;
        };
        Some(Event::Lease(Box::new(Lease {
            id,
            action: Some(job.action.clone()),
            action_digest: Some(job.digest),
            function: job.digest.function(),
            stdout_stream: stdout,
            stderr_stream: stderr,
            origin: job.origin.clone(),
            metadata: re::ExecutedActionMetadata {
                queued_timestamp: job.metadata.queued_timestamp,
                ..Default::default()
            },
        })))
    }

    /// Caches a result if it may be, and then tells the clients.
    fn publish(&self, id: JobId, cacheable: bool, response: re::ExecuteResponse) {
        let tell = move |me: &Embedded, response| {
            me.lock()
                .queue
                .finish(id, End::Response(Arc::new(response)));
            me.news.notify_one();
        };
        let digest = self.lock().queue.digest(id).filter(|_| cacheable);
        let (Some(digest), Some(me)) = (digest, self.me.upgrade()) else {
            return tell(self, response);
        };
        self.runtime.spawn_blocking(move || {
            if let Some(result) = &response.result
                && let Err(error) = me.cache.put(digest, result)
            {
                tracing::warn!(action = %digest, %error, "the result was not cached");
            }
            tell(&me, response);
        });
    }
}

#[async_trait]
impl Scheduler for Embedded {
    async fn next(&self) -> Event {
        loop {
            if let Some(event) = self.poll_event() {
                return event;
            }
            // A permit is kept if news came since.
            self.news.notified().await;
        }
    }

    fn progress(&self, lease: &LeaseId, metadata: re::ExecutedActionMetadata) {
        self.lock().queue.progress(lease, metadata);
    }

    fn complete(&self, lease: &LeaseId, mut finished: Finished) {
        let mut state = self.lock();
        let draining = state.drain.is_some();
        let Some((id, job)) = state.queue.end_lease(lease) else {
            return;
        };
        self.end_streams(lease);
        if let Ending::Infrastructure(why) = &finished.ending
            && !draining
            && job.attempts <= self.config.retries
        {
            tracing::warn!(action = %job.digest, attempt = job.attempts, why, "the worker failed; trying again");
            // One that did not come so far says nothing of them.
            if let Some(inputs) = finished.inputs.take() {
                // Those of the attempt before do not take their room.
                job.inputs = None;
                job.inputs = self.keeping.keep(inputs);
            }
            state.queue.enqueue(id);
            drop(state);
            self.news.notify_one();
            return;
        }
        if let Some(result) = &mut finished.result {
            let mut metadata = complete_metadata(
                result.execution_metadata.take().unwrap_or_default(),
                &job.metadata,
            );
            if metadata.worker_completed_timestamp.is_none() {
                metadata.worker_completed_timestamp = Some(time::now());
            }
            result.execution_metadata = Some(metadata);
        }
        let cacheable =
            finished.cacheable && !job.do_not_cache && finished.ending == Ending::Exited(0);
        let action = job.digest;
        drop(state);
        let response = status::response(finished);
        let (cacheable, response) = match status::too_large(&response) {
            Some(told) => {
                tracing::warn!(%action, size = response.encoded_len(), "the result is too large to be told");
                (false, told)
            }
            None => (cacheable, response),
        };
        self.publish(id, cacheable, response);
        self.news.notify_one();
    }

    fn health(&self, problem: Option<String>) {
        self.lock().unwell = problem;
        self.news.notify_one();
    }

    fn drain(&self, how: Drain) {
        let mut state = self.lock();
        if state.drain != Some(Drain::GiveBack) {
            state.drain = Some(how);
        }
        for id in state.queue.unstarted() {
            state
                .queue
                .finish(id, End::Response(Arc::new(submit::shutting_down())));
        }
        drop(state);
        self.news.notify_one();
    }
}
