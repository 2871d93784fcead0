//! The worker's loop: leases to slots, ends to the scheduler, signals to a drain.

use std::any::Any;
use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::health::{Change, Health};
use super::slots::{Fate, Running, Slots};
use super::{RunAction, Settings, Stop, Worker, WorkerEnd};
use crate::action::{Ending, Finished};
use crate::scheduler::{Drain, Event, Lease, Scheduler};

pub(super) async fn run(worker: Worker, mut stop: mpsc::Receiver<Stop>) -> WorkerEnd {
    let Worker {
        scheduler,
        runner,
        settings,
    } = worker;
    let mut dispatch = Dispatch {
        slots: Slots::new(settings.slots),
        health: Health::new(settings.failures, settings.recheck),
        runs: JoinSet::new(),
        scheduler: scheduler.clone(),
        runner,
        settings,
        taken: 0,
        stops: 0,
        giving_back: false,
        over: None,
    };
    let mut stoppable = true;
    // Kept from one round to the next: the door does not promise that `next` may be dropped.
    let mut next = scheduler.next();
    loop {
        if let Some(end) = &dispatch.over
            && dispatch.runs.is_empty()
        {
            return end.clone();
        }
        let recheck = dispatch.health.recheck_at();
        tokio::select! {
            event = &mut next, if dispatch.over.is_none() => {
                dispatch.event(event);
                next = scheduler.next();
            }
            Some(ended) = dispatch.runs.join_next_with_id() => dispatch.ended(ended),
            wish = stop.recv(), if stoppable => match wish {
                Some(wish) => if dispatch.stop(wish).is_break() {
                    return WorkerEnd::Aborted;
                },
                None => stoppable = false,
            },
            () = sleep_until(recheck.unwrap_or_else(Instant::now)), if recheck.is_some() => {
                dispatch.recheck();
            }
        }
    }
}

struct Dispatch {
    scheduler: Arc<dyn Scheduler>,
    runner: Arc<dyn RunAction>,
    settings: Settings,
    slots: Slots,
    health: Health,
    runs: JoinSet<Finished>,
    /// Leases taken so far.
    taken: u64,
    /// Wishes to stop so far.
    stops: u32,
    giving_back: bool,
    /// How it ends, once the last run has returned.
    over: Option<WorkerEnd>,
}

impl Dispatch {
    fn event(&mut self, event: Event) {
        match event {
            Event::Lease(lease) => self.lease(lease),
            Event::Revoked(lease) => {
                tracing::info!(%lease, "revoked by the scheduler");
                self.slots.forget(&lease);
            }
            Event::SessionLost => {
                let running = self.slots.forget_all();
                tracing::warn!(running, "session lost: what runs is killed");
            }
            Event::Drained => self.over = Some(WorkerEnd::Drained),
            Event::LeftUnheard { unreported } => {
                self.over = Some(WorkerEnd::LeftUnheard { unreported });
            }
            Event::Fatal(text) => {
                self.slots.forget_all();
                self.over = Some(WorkerEnd::Fatal(text));
            }
        }
    }

    fn lease(&mut self, lease: Box<Lease>) {
        let enough = self
            .settings
            .stop_after
            .is_some_and(|most| self.taken >= most);
        if enough || self.giving_back {
            self.scheduler.complete(&lease.id, preempted());
            return;
        }
        // The scheduler counts alike: every lease that comes.
        self.taken += 1;
        match self.slots.has(&lease.id) {
            true => tracing::warn!(lease = %lease.id, "leased twice; the second is ignored"),
            false => self.slots.wait(lease),
        }
        self.fill();
        if Some(self.taken) == self.settings.stop_after {
            tracing::info!(
                leases = self.taken,
                "taken as many leases as was asked for; draining"
            );
            self.scheduler.drain(Drain::Finish);
        }
    }

    /// Starts what waits, as far as there are slots.
    fn fill(&mut self) {
        while let Some((lease, slot)) = self.slots.next() {
            let cancel = CancellationToken::new();
            let running = Running {
                lease: lease.id.clone(),
                action: lease.digest(),
                slot,
                fate: Fate::Report,
                cancel: cancel.clone(),
            };
            tracing::debug!(lease = %lease.id, slot, "taken");
            let runner = self.runner.clone();
            let scheduler = self.scheduler.clone();
            let task = self.runs.spawn(async move {
                let progress = |metadata| scheduler.progress(&lease.id, metadata);
                runner.run(&lease, slot, &cancel, &progress).await
            });
            self.slots.started(task.id(), running);
        }
    }

    fn ended(&mut self, ended: Result<(Id, Finished), JoinError>) {
        let (task, finished) = match ended {
            Ok((task, finished)) => (task, finished),
            Err(error) => (error.id(), panicked(error)),
        };
        let Some(run) = self.slots.ended(task) else {
            return;
        };
        tracing::debug!(lease = %run.lease, slot = run.slot, ending = finished.ending.class(), "slot free");
        match run.fate {
            Fate::Forget => {}
            Fate::GiveBack => self.report(&run, given_back(finished)),
            Fate::Report => self.report(&run, finished),
        }
        self.fill();
    }

    fn report(&mut self, run: &Running, finished: Finished) {
        match self.health.ended(run.action, &finished.ending) {
            Change::None => {}
            Change::Unwell(why) => {
                tracing::error!("taking no more actions for now: {why}");
                self.scheduler.health(Some(why));
            }
            Change::Well => {
                tracing::info!("an action ran: taking actions again");
                self.scheduler.health(None);
            }
        }
        self.scheduler.complete(&run.lease, finished);
    }

    fn recheck(&mut self) {
        tracing::info!("taking actions again, to see whether they fail");
        self.health.recheck();
        self.scheduler.health(None);
    }

    fn stop(&mut self, wish: Stop) -> ControlFlow<()> {
        self.stops += 1;
        match self.stops {
            1 => {
                tracing::info!(
                    ?wish,
                    "stopping once what runs has finished; stop again to give it back"
                );
                self.scheduler.drain(Drain::Finish);
            }
            2 => {
                tracing::info!(?wish, "giving back what runs; stop again to leave at once");
                self.giving_back = true;
                for lease in self.slots.give_back() {
                    self.scheduler.complete(&lease, preempted());
                }
                self.scheduler.drain(Drain::GiveBack);
            }
            _ => {
                tracing::warn!(?wish, "leaving at once");
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }
}

/// What is told of a lease that another worker should run.
fn preempted() -> Finished {
    ended_by_us(Ending::Preempted)
}

fn ended_by_us(ending: Ending) -> Finished {
    Finished::without_result(ending)
}

/// An action that was killed to be given back. If it ended by itself just before, that stands.
fn given_back(finished: Finished) -> Finished {
    match finished.ending {
        Ending::Cancelled | Ending::Infrastructure(_) => preempted(),
        _ => finished,
    }
}

fn panicked(error: JoinError) -> Finished {
    let what = match error.try_into_panic() {
        Ok(payload) => text_of(&*payload),
        Err(error) => error.to_string(),
    };
    tracing::error!("a fault of boxwright's own: running an action panicked: {what}");
    ended_by_us(Ending::Infrastructure(format!(
        "running the action panicked: {what}"
    )))
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}
