//! Who waits for what: jobs, the operations that clients hold on them, and the order in which they are leased. All of it
//! in memory, behind one lock, and bounded.
//!
//! A *job* is one action that runs at most once at a time; an *operation* is one client's interest in it. Equal actions
//! that are in flight share a job (unless `do_not_cache`), so cancelling one operation kills the job only when no other
//! operation is left.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;

use super::keep::Kept;
use super::operation::{End, Stage, View};
use crate::reapi::proto::re;
use crate::reapi::{Digest, time};

pub(super) type JobId = u64;

/// Bounds of the queue.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) open: usize,
    pub(super) open_bytes: usize,
    pub(super) kept: usize,
    pub(super) kept_bytes: usize,
    pub(super) kept_for: Duration,
    pub(super) abandoned_after: Duration,
}

/// Why an operation was not taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
}

pub(super) struct Job {
    pub(super) digest: Digest,
    pub(super) action: Bytes,
    pub(super) do_not_cache: bool,
    pub(super) origin: Option<re::RequestMetadata>,
    pub(super) metadata: re::ExecutedActionMetadata,
    pub(super) attempts: u32,
    pub(super) phase: Phase,
    priority: i32,
    operations: Vec<String>,
    bytes: usize,
    /// What each attempt begins with.
    _messages: Option<Kept>,
    /// What the next attempt needs of what the last one had.
    pub(super) inputs: Option<Kept>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its result is looked up in the cache.
    Checking,
    /// Waits for a slot.
    Queued,
    /// Leased.
    Running(String),
    /// Ended; its result is being cached.
    Publishing,
}

struct Operation {
    job: Option<JobId>,
    view: watch::Sender<View>,
    /// Since when no client waits for it.
    unwatched: Option<Instant>,
}

pub(super) struct Queue {
    bounds: Bounds,
    jobs: HashMap<JobId, Job>,
    next_job: JobId,
    operations: BTreeMap<String, Operation>,
    in_flight: HashMap<Digest, JobId>,
    /// Lowest priority value first, then oldest.
    waiting: BTreeSet<(i32, JobId)>,
    running: HashMap<String, JobId>,
    revoked: VecDeque<String>,
    open: usize,
    open_bytes: usize,
    kept: VecDeque<(Instant, String, usize)>,
    kept_bytes: usize,
}

/// What a client asked for.
pub(super) struct Request {
    pub(super) digest: Digest,
    pub(super) priority: i32,
    pub(super) origin: Option<re::RequestMetadata>,
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        Queue {
            bounds,
            jobs: HashMap::new(),
            next_job: 0,
            operations: BTreeMap::new(),
            in_flight: HashMap::new(),
            waiting: BTreeSet::new(),
            running: HashMap::new(),
            revoked: VecDeque::new(),
            open: 0,
            open_bytes: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
        }
    }

    /// Joins an equal action that is in flight. `None`: there is none that may be shared.
    pub(super) fn join(
        &mut self,
        name: &str,
        request: &Request,
    ) -> Result<Option<watch::Receiver<View>>, Refused> {
        let Some(&id) = self.in_flight.get(&request.digest) else {
            return Ok(None);
        };
        let Some(job) = self.jobs.get_mut(&id) else {
            return Ok(None);
        };
        if self.open >= self.bounds.open {
            return Err(Refused::Full);
        }
        let Some(view) = job
            .operations
            .first()
            .and_then(|first| self.operations.get(first))
            .map(|operation| operation.view.borrow().clone())
        else {
            return Ok(None);
        };
        if request.priority < job.priority {
            if self.waiting.remove(&(job.priority, id)) {
                self.waiting.insert((request.priority, id));
            }
            job.priority = request.priority;
        }
        job.operations.push(name.to_owned());
        Ok(Some(self.add_operation(name, id, view)))
    }

    /// Takes on an action of its own.
    pub(super) fn add(
        &mut self,
        name: &str,
        request: Request,
        action: Bytes,
        do_not_cache: bool,
        messages: Option<Kept>,
    ) -> Result<(JobId, watch::Receiver<View>), Refused> {
        let bytes = action.len()
            + request.origin.as_ref().map_or(0, Message::encoded_len)
            + std::mem::size_of::<Job>();
        if self.open >= self.bounds.open || self.open_bytes + bytes > self.bounds.open_bytes {
            return Err(Refused::Full);
        }
        let id = self.next_job;
        self.next_job += 1;
        let metadata = re::ExecutedActionMetadata {
            queued_timestamp: Some(time::now()),
            ..Default::default()
        };
        let view = View {
            stage: Stage::CacheCheck,
            digest: request.digest,
            lease: "".into(),
            metadata: Arc::new(metadata.clone()),
            end: None,
        };
        if !do_not_cache {
            self.in_flight.insert(request.digest, id);
        }
        self.jobs.insert(
            id,
            Job {
                digest: request.digest,
                action,
                do_not_cache,
                origin: request.origin,
                metadata,
                attempts: 0,
                phase: Phase::Checking,
                priority: request.priority,
                operations: vec![name.to_owned()],
                bytes,
                _messages: messages,
                inputs: None,
            },
        );
        self.open_bytes += bytes;
        Ok((id, self.add_operation(name, id, view)))
    }

    fn add_operation(&mut self, name: &str, job: JobId, view: View) -> watch::Receiver<View> {
        let (view, receiver) = watch::channel(view);
        self.open += 1;
        self.operations.insert(
            name.to_owned(),
            Operation {
                job: Some(job),
                view,
                unwatched: None,
            },
        );
        receiver
    }

    /// Puts a job into the line: after its cache check, or again after its worker failed.
    pub(super) fn enqueue(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.phase = Phase::Queued;
            self.waiting.insert((job.priority, id));
            self.show(id, |view| view.stage = Stage::Queued);
        }
    }

    /// The next job to run, now leased under `lease`. Jobs that nobody has waited for in a while are given up.
    pub(super) fn lease(&mut self, lease: &str) -> Option<&Job> {
        loop {
            let (_, id) = self.waiting.pop_first()?;
            if self.abandoned(id) {
                let names = self.jobs.get(&id).map(|job| job.operations.clone());
                for name in names.unwrap_or_default() {
                    self.cancel(&name, "nobody waited for the action while it was queued");
                }
                continue;
            }
            let Some(job) = self.jobs.get_mut(&id) else {
                continue;
            };
            job.phase = Phase::Running(lease.to_owned());
            job.attempts += 1;
            job.metadata.worker_start_timestamp = Some(time::now());
            self.running.insert(lease.to_owned(), id);
            let metadata = Arc::new(job.metadata.clone());
            let shown: Arc<str> = lease.into();
            self.show(id, |view| {
                view.stage = Stage::Executing;
                view.lease = shown.clone();
                view.metadata = metadata.clone();
            });
            return self.jobs.get(&id);
        }
    }

    fn abandoned(&self, id: JobId) -> bool {
        let Some(job) = self.jobs.get(&id) else {
            return true;
        };
        job.operations.iter().all(|name| {
            self.operations.get(name).is_none_or(|operation| {
                operation
                    .unwatched
                    .is_some_and(|since| since.elapsed() >= self.bounds.abandoned_after)
            })
        })
    }

    /// News of a running lease.
    pub(super) fn progress(&mut self, lease: &str, metadata: re::ExecutedActionMetadata) {
        let Some(&id) = self.running.get(lease) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.metadata = complete_metadata(metadata, &job.metadata);
        let metadata = Arc::new(job.metadata.clone());
        self.show(id, |view| view.metadata = metadata.clone());
    }

    /// Takes the lease back from the worker that reports its end; `None` if it was revoked before.
    pub(super) fn end_lease(&mut self, lease: &str) -> Option<(JobId, &mut Job)> {
        let id = self.running.remove(lease)?;
        let job = self.jobs.get_mut(&id)?;
        job.phase = Phase::Publishing;
        Some((id, job))
    }

    /// Tells every client that holds an operation on the job how it ended, and forgets the job.
    pub(super) fn finish(&mut self, id: JobId, end: End) {
        let Some(job) = self.remove_job(id) else {
            return;
        };
        for name in job.operations {
            self.close(&name, end.clone());
        }
    }

    /// The job's action.
    pub(super) fn digest(&self, id: JobId) -> Option<Digest> {
        Some(self.jobs.get(&id)?.digest)
    }

    /// Whether the job is still wanted.
    pub(super) fn wanted(&self, id: JobId) -> bool {
        self.jobs.contains_key(&id)
    }

    /// Ends one operation; the job goes on if another operation wants it. `None` if there is no such operation; inside
    /// is the lease that is killed by it, if one is.
    pub(super) fn cancel(&mut self, name: &str, why: &str) -> Option<Option<String>> {
        let operation = self.operations.get(name)?;
        let Some(id) = operation.job else {
            return Some(None);
        };
        let status = crate::reapi::status::status(tonic::Code::Cancelled, why);
        self.close(name, End::Error(status));
        let Some(job) = self.jobs.get_mut(&id) else {
            return Some(None);
        };
        job.operations.retain(|held| held != name);
        if !job.operations.is_empty() {
            return Some(None);
        }
        let lease = match self.remove_job(id)?.phase {
            Phase::Running(lease) => {
                self.running.remove(&lease);
                self.revoked.push_back(lease.clone());
                Some(lease)
            }
            _ => None,
        };
        Some(lease)
    }

    fn remove_job(&mut self, id: JobId) -> Option<Job> {
        let job = self.jobs.remove(&id)?;
        self.waiting.remove(&(job.priority, id));
        if self.in_flight.get(&job.digest) == Some(&id) {
            self.in_flight.remove(&job.digest);
        }
        self.open_bytes -= job.bytes;
        Some(job)
    }

    /// Shows the end of an operation and keeps it for clients that ask later, within bounds.
    fn close(&mut self, name: &str, end: End) {
        let Some(operation) = self.operations.get_mut(name) else {
            return;
        };
        operation.job = None;
        let mut bytes = 1024;
        if let End::Response(response) = &end {
            bytes += response.encoded_len();
        }
        operation.view.send_modify(|view| {
            view.stage = Stage::Completed;
            if let End::Response(response) = &end
                && let Some(result) = &response.result
                && let Some(metadata) = &result.execution_metadata
            {
                view.metadata = Arc::new(metadata.clone());
            }
            view.end = Some(end);
        });
        self.open -= 1;
        self.kept
            .push_back((Instant::now(), name.to_owned(), bytes));
        self.kept_bytes += bytes;
        self.forget();
    }

    /// Forgets finished operations that are too old, too many or too large.
    pub(super) fn forget(&mut self) {
        while let Some((since, name, bytes)) = self.kept.front() {
            if since.elapsed() < self.bounds.kept_for
                && self.kept.len() <= self.bounds.kept
                && self.kept_bytes <= self.bounds.kept_bytes
            {
                break;
            }
            self.operations.remove(name);
            self.kept_bytes -= bytes;
            self.kept.pop_front();
        }
    }

    fn show(&mut self, id: JobId, change: impl Fn(&mut View)) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        for name in &job.operations {
            if let Some(operation) = self.operations.get(name) {
                operation.view.send_modify(&change);
            }
        }
    }

    /// The next lease that the worker must be told to kill.
    pub(super) fn next_revoked(&mut self) -> Option<String> {
        self.revoked.pop_front()
    }

    /// Whether a job waits for a slot.
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Leases that are out.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether nothing is queued, runs or waits to be published.
    pub(super) fn idle(&self) -> bool {
        self.jobs.is_empty() && self.revoked.is_empty()
    }

    /// The jobs that no worker has yet.
    pub(super) fn unstarted(&self) -> Vec<JobId> {
        self.jobs
            .iter()
            .filter(|(_, job)| matches!(job.phase, Phase::Checking | Phase::Queued))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Waits on an operation, or notes that somebody looked at it.
    pub(super) fn watch(&mut self, name: &str) -> Option<watch::Receiver<View>> {
        self.forget();
        let operation = self.operations.get_mut(name)?;
        operation.unwatched = None;
        Some(operation.view.subscribe())
    }

    /// How many clients wait for an operation.
    pub(super) fn watchers(&self, name: &str) -> Option<usize> {
        Some(self.operations.get(name)?.view.receiver_count())
    }

    /// One client less waits for the operation; it is the caller's receiver that goes next.
    pub(super) fn left(&mut self, name: &str) {
        if let Some(operation) = self.operations.get_mut(name)
            && operation.view.receiver_count() <= 1
        {
            operation.unwatched = Some(Instant::now());
        }
    }

    /// Up to `limit` operations in the order of their names, after `after`; and whether there are more.
    pub(super) fn list(&mut self, after: &str, limit: usize) -> (Vec<(String, View)>, bool) {
        self.forget();
        let range = (
            std::ops::Bound::Excluded(after.to_owned()),
            std::ops::Bound::Unbounded,
        );
        let mut entries = self.operations.range(range);
        let page: Vec<_> = entries
            .by_ref()
            .take(limit)
            .map(|(name, operation)| (name.clone(), operation.view.borrow().clone()))
            .collect();
        (page, entries.next().is_some())
    }

    /// Forgets a finished operation: `Some(false)` if it has not finished.
    pub(super) fn delete(&mut self, name: &str) -> Option<bool> {
        let operation = self.operations.get(name)?;
        if operation.job.is_some() {
            return Some(false);
        }
        self.operations.remove(name);
        Some(true)
    }

    /// Operations that have not ended.
    pub(super) fn open(&self) -> usize {
        self.open
    }
}

/// What a worker reports, completed by what the scheduler knows itself.
pub(super) fn complete_metadata(
    mut reported: re::ExecutedActionMetadata,
    known: &re::ExecutedActionMetadata,
) -> re::ExecutedActionMetadata {
    if reported.queued_timestamp.is_none() {
        reported.queued_timestamp = known.queued_timestamp;
    }
    if reported.worker_start_timestamp.is_none() {
        reported.worker_start_timestamp = known.worker_start_timestamp;
    }
    reported
}
