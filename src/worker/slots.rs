//! Which slot runs what, and which leases wait for one.

use std::collections::{HashMap, VecDeque};

use tokio::task::Id;
use tokio_util::sync::CancellationToken;

use crate::reapi::Digest;
use crate::scheduler::{Lease, LeaseId};

/// What becomes of a run when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its end is reported.
    Report,
    /// It was killed so that another worker can run it; that is reported.
    GiveBack,
    /// Its lease was revoked; nothing is reported.
    Forget,
}

/// A run on its slot.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) lease: LeaseId,
    /// What it is a lease of.
    pub(super) action: Option<Digest>,
    pub(super) slot: usize,
    pub(super) fate: Fate,
    pub(super) cancel: CancellationToken,
}

/// The slots. The one that was freed last is taken first: what it prepared is still warm.
#[derive(Debug)]
pub(super) struct Slots {
    free: Vec<usize>,
    running: HashMap<Id, Running>,
    waiting: VecDeque<Box<Lease>>,
}

impl Slots {
    pub(super) fn new(slots: usize) -> Self {
        Slots {
            free: (0..slots.max(1)).rev().collect(),
            running: HashMap::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Whether this lease waits or runs, and is not being forgotten.
    pub(super) fn has(&self, lease: &str) -> bool {
        self.waiting.iter().any(|waiting| waiting.id == lease)
            || self
                .running
                .values()
                .any(|run| run.lease == lease && run.fate != Fate::Forget)
    }

    pub(super) fn wait(&mut self, lease: Box<Lease>) {
        self.waiting.push_back(lease);
    }

    /// The lease that waits longest, and a free slot for it.
    pub(super) fn next(&mut self) -> Option<(Box<Lease>, usize)> {
        let slot = *self.free.last()?;
        let lease = self.waiting.pop_front()?;
        self.free.pop();
        Some((lease, slot))
    }

    pub(super) fn started(&mut self, task: Id, run: Running) {
        self.running.insert(task, run);
    }

    /// The run has returned; its slot is free.
    pub(super) fn ended(&mut self, task: Id) -> Option<Running> {
        let run = self.running.remove(&task)?;
        self.free.push(run.slot);
        Some(run)
    }

    /// Kills and forgets one lease.
    pub(super) fn forget(&mut self, lease: &str) {
        self.waiting.retain(|waiting| waiting.id != lease);
        for run in self.running.values_mut().filter(|run| run.lease == lease) {
            run.fate = Fate::Forget;
            run.cancel.cancel();
        }
    }

    /// Kills and forgets all of them; returns how many ran.
    pub(super) fn forget_all(&mut self) -> usize {
        self.waiting.clear();
        for run in self.running.values_mut() {
            run.fate = Fate::Forget;
            run.cancel.cancel();
        }
        self.running.len()
    }

    /// Kills all that runs, to be given back; returns the leases that were only waiting.
    pub(super) fn give_back(&mut self) -> Vec<LeaseId> {
        for run in self.running.values_mut() {
            if run.fate == Fate::Report {
                run.fate = Fate::GiveBack;
            }
            run.cancel.cancel();
        }
        self.waiting.drain(..).map(|lease| lease.id).collect()
    }
}
