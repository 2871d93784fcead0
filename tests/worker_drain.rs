//! A worker from its first lease to its last word: slots, revocation, drain, health. The scheduler
//! is a server that behaves as BuildGrid does; the actions end when the test says so.

#[path = "common/bots_server.rs"]
mod bots_server;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bots_server::{Fault, Server, State};
use boxwright::action::{Ending, Finished};
use boxwright::config::Endpoint;
use boxwright::reapi::any::pack;
use boxwright::reapi::proto::{re, rw};
use boxwright::scheduler::Lease;
use boxwright::scheduler::rwapi::{Rwapi, RwapiConfig};
use boxwright::worker::{Progress, RunAction, Settings, Stop, Worker, WorkerEnd};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// Actions that end when they are told to.
#[derive(Default)]
struct Actions {
    state: Mutex<Running>,
    changed: Notify,
}

#[derive(Default)]
struct Running {
    ends: HashMap<String, oneshot::Sender<Ending>>,
    slots: HashMap<String, usize>,
    /// In the order of their starts.
    started: Vec<String>,
    killed: Vec<String>,
    /// How long a killed action takes to die.
    grace: Duration,
}

#[async_trait]
impl RunAction for Actions {
    async fn run(
        &self,
        lease: &Lease,
        slot: usize,
        cancel: &CancellationToken,
        progress: Progress<'_>,
    ) -> Finished {
        let (end, ended) = oneshot::channel();
        {
            let mut state = self.state.lock();
            assert!(
                !state.slots.values().any(|taken| *taken == slot),
                "slot {slot} is taken twice"
            );
            state.ends.insert(lease.id.clone(), end);
            state.slots.insert(lease.id.clone(), slot);
            state.started.push(lease.id.clone());
        }
        self.changed.notify_waiters();
        progress(re::ExecutedActionMetadata::default());
        let ending = tokio::select! {
            ending = ended => ending.unwrap(),
            () = cancel.cancelled() => {
                self.state.lock().killed.push(lease.id.clone());
                self.changed.notify_waiters();
                let grace = self.state.lock().grace;
                sleep(grace).await;
                Ending::Cancelled
            }
        };
        self.state.lock().slots.remove(&lease.id);
        self.changed.notify_waiters();
        assert_ne!(ending, Ending::Signalled(0), "the test wants a panic");
        Finished {
            result: matches!(ending, Ending::Exited(_)).then(re::ActionResult::default),
            ending,
            message: String::new(),
            cacheable: false,
            details: Vec::new(),
            logs: Vec::new(),
            inputs: None,
        }
    }
}

impl Actions {
    fn end(&self, id: &str, ending: Ending) {
        let end = self.state.lock().ends.remove(id).unwrap();
        end.send(ending).unwrap();
    }

    fn panic(&self, id: &str) {
        // The assertion above fails; the slot is given up first, as a dying process would.
        self.end(id, Ending::Signalled(0));
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Running) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if is_so(&self.state.lock()) {
                    return;
                }
                changed.await;
            }
        };
        if timeout(Duration::from_secs(900), wait).await.is_err() {
            panic!("never came: {what}");
        }
    }

    async fn running(&self, id: &str) {
        self.until("it runs", |s| s.slots.contains_key(id)).await;
    }

    async fn killed(&self, id: &str) {
        self.until("it is killed", |s| s.killed.iter().any(|k| k == id))
            .await;
    }
}

struct Farm {
    server: Server,
    actions: Arc<Actions>,
    stop: mpsc::Sender<Stop>,
    worker: JoinHandle<WorkerEnd>,
}

impl Farm {
    async fn start(settings: Settings) -> Self {
        let server = Server::start();
        let scheduler = Rwapi::over(
            server.channel(),
            RwapiConfig {
                capacity: settings.slots,
                stop_after: settings.stop_after,
                ..RwapiConfig::new(Endpoint::Http("bots:1".into()))
            },
        );
        let actions = Arc::new(Actions::default());
        let worker = Worker::new(scheduler, actions.clone(), settings);
        let (stop, stops) = mpsc::channel(3);
        let farm = Farm {
            worker: tokio::spawn(worker.run(stops)),
            server,
            actions,
            stop,
        };
        farm.heard(rw::BotStatus::Ok).await;
        farm
    }

    async fn slots(slots: usize) -> Self {
        Self::start(Settings {
            slots,
            ..Settings::default()
        })
        .await
    }

    async fn submit(&self) -> String {
        let id = self.server.submit();
        self.actions.running(&id).await;
        id
    }

    /// Submits an action that equals no other of another number.
    fn submit_number(&self, number: u8) -> String {
        let action = re::Action {
            salt: vec![number].into(),
            ..Default::default()
        };
        self.server
            .submit_with(Some(pack(&action)), Default::default())
    }

    async fn heard(&self, status: rw::BotStatus) {
        self.server
            .until(status.as_str_name(), |s| s.heard(status))
            .await;
    }

    /// The code and message that a lease was completed with.
    async fn code(&self, id: &str) -> (i32, String) {
        self.server
            .until("completed", |s| s.completion(id).is_some())
            .await;
        let lease = self.server.look(|s| s.completion(id).cloned()).unwrap();
        let status = lease.status.unwrap();
        (status.code, status.message)
    }

    async fn stop(&self) {
        self.stop.send(Stop::Terminate).await.unwrap();
    }

    async fn end(self) -> WorkerEnd {
        let end = timeout(Duration::from_secs(900), self.worker).await;
        end.expect("the worker does not end").unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn actions_run_on_slots_of_their_own_and_are_reported() {
    let farm = Farm::slots(3).await;
    let ids = [
        farm.submit().await,
        farm.submit().await,
        farm.submit().await,
    ];
    for (n, id) in ids.iter().enumerate() {
        farm.actions.end(id, Ending::Exited(n as i32));
        assert_eq!(farm.code(id).await.0, 0);
    }
    // The slot that was freed last is taken first.
    let warm = farm.submit().await;
    assert_eq!(farm.actions.state.lock().slots[&warm], 2);
}

#[tokio::test(start_paused = true)]
async fn a_first_stop_lets_what_runs_finish() {
    let farm = Farm::slots(2).await;
    let id = farm.submit().await;
    farm.stop().await;
    farm.heard(rw::BotStatus::BotTerminating).await;
    let late = farm.server.submit();
    sleep(Duration::from_secs(300)).await;
    assert!(!farm.worker.is_finished());
    farm.actions.end(&id, Ending::Exited(0));
    assert_eq!(farm.code(&id).await.0, 0);
    let (server, actions) = (farm.server.clone(), farm.actions.clone());
    assert_eq!(farm.end().await, WorkerEnd::Drained);
    assert!(server.look(|s| !s.holds(&late)));
    assert!(actions.state.lock().killed.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_second_stop_gives_back_what_runs() {
    let farm = Farm::slots(2).await;
    let ids = [farm.submit().await, farm.submit().await];
    farm.stop().await;
    farm.heard(rw::BotStatus::BotTerminating).await;
    farm.stop().await;
    for id in &ids {
        let (code, message) = farm.code(id).await;
        assert_eq!((code, message.as_str()), (14, "worker is shutting down"));
    }
    assert_eq!(farm.end().await, WorkerEnd::Drained);
}

#[tokio::test(start_paused = true)]
async fn a_third_stop_leaves_at_once() {
    let farm = Farm::slots(1).await;
    farm.actions.state.lock().grace = Duration::from_secs(100_000);
    farm.submit().await;
    for _ in 0..3 {
        farm.stop().await;
    }
    assert_eq!(farm.end().await, WorkerEnd::Aborted);
}

#[tokio::test(start_paused = true)]
async fn a_late_lease_goes_back_to_the_scheduler() {
    let farm = Farm::slots(2).await;
    farm.submit().await;
    farm.server.fault(Fault::Edit(|session| {
        let mut late = session.leases[0].clone();
        late.id = "/late".into();
        session.leases.push(late);
    }));
    farm.stop().await;
    farm.server
        .until("given back", |s| {
            s.updates.iter().any(|u| u.completes("/late"))
        })
        .await;
    let update = farm.server.look(|s| s.updates.last().cloned()).unwrap();
    let status = update.lease("/late").unwrap().status.clone().unwrap();
    assert_eq!(status.code, 14);
    assert_eq!(farm.actions.state.lock().started.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_so_many_leases_the_worker_drains_by_itself() {
    let farm = Farm::start(Settings {
        slots: 4,
        stop_after: Some(2),
        ..Settings::default()
    })
    .await;
    let ids: Vec<_> = (0..4).map(|_| farm.server.submit()).collect();
    farm.actions.running(&ids[1]).await;
    for id in &ids[..2] {
        farm.actions.end(id, Ending::Exited(0));
        assert_eq!(farm.code(id).await.0, 0);
    }
    let (server, actions) = (farm.server.clone(), farm.actions.clone());
    assert_eq!(farm.end().await, WorkerEnd::Drained);
    assert_eq!(actions.state.lock().started, ids[..2]);
    // To be leased and given back would have cost them an attempt.
    for id in &ids[2..] {
        assert_eq!(server.look(|s| s.attempts(id)), Some(0));
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_is_leased_than_may_still_be_started() {
    for together in [true, false] {
        let farm = Farm::start(Settings {
            slots: 3,
            stop_after: Some(4),
            ..Settings::default()
        })
        .await;
        let first: Vec<_> = (0..3).map(|_| farm.server.submit()).collect();
        farm.actions.running(&first[2]).await;
        // Two end while nothing else waits; after that one may still be taken, and there would be room for two.
        for id in &first[..2] {
            farm.actions.end(id, Ending::Exited(0));
            if !together {
                assert_eq!(farm.code(id).await.0, 0);
            }
        }
        for id in &first[..2] {
            assert_eq!(farm.code(id).await.0, 0);
        }
        let late = [farm.server.submit(), farm.server.submit()];
        sleep(Duration::from_secs(60)).await;
        farm.actions.end(&first[2], Ending::Exited(0));
        farm.actions.running(&late[0]).await;
        farm.actions.end(&late[0], Ending::Exited(0));
        for id in [&first[2], &late[0]] {
            assert_eq!(farm.code(id).await.0, 0);
        }
        let (server, actions) = (farm.server.clone(), farm.actions.clone());
        assert_eq!(farm.end().await, WorkerEnd::Drained);
        assert_eq!(actions.state.lock().started.len(), 4);
        assert!(actions.state.lock().killed.is_empty());
        assert_eq!(server.look(|s| s.attempts(&late[1])), Some(0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_lease_is_taken_though_another_ends_while_it_comes() {
    let farm = Farm::start(Settings {
        slots: 2,
        stop_after: Some(3),
        ..Settings::default()
    })
    .await;
    let jobs: Vec<_> = (0..4).map(|_| farm.server.submit()).collect();
    farm.actions.running(&jobs[1]).await;
    // The slot of the first is filled with the answer to its end; meanwhile the second ends.
    farm.server.fault(Fault::Delay(Duration::from_secs(1)));
    farm.actions.end(&jobs[0], Ending::Exited(0));
    farm.server
        .until("the first end is told", |s| {
            s.updates.iter().any(|update| update.completes(&jobs[0]))
        })
        .await;
    farm.actions.end(&jobs[1], Ending::Exited(0));
    farm.actions.running(&jobs[2]).await;
    farm.actions.end(&jobs[2], Ending::Exited(0));
    for id in &jobs[..3] {
        assert_eq!(farm.code(id).await.0, 0);
    }
    let server = farm.server.clone();
    assert_eq!(farm.end().await, WorkerEnd::Drained);
    assert_eq!(server.look(|s| s.creates.len()), 1);
    assert_eq!(server.look(|s| s.attempts(&jobs[3])), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_stop_after_the_last_lease_does_not_kill_it() {
    let farm = Farm::start(Settings {
        stop_after: Some(1),
        ..Settings::default()
    })
    .await;
    let id = farm.submit().await;
    farm.heard(rw::BotStatus::BotTerminating).await;
    farm.stop().await;
    sleep(Duration::from_secs(10)).await;
    assert!(farm.actions.state.lock().killed.is_empty());
    farm.actions.end(&id, Ending::Exited(0));
    assert_eq!(farm.code(&id).await.0, 0);
    assert_eq!(farm.end().await, WorkerEnd::Drained);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_action_keeps_its_slot_until_it_is_dead() {
    let farm = Farm::slots(1).await;
    farm.actions.state.lock().grace = Duration::from_secs(10);
    let id = farm.submit().await;
    farm.server.cancel(&id);
    let next = farm.server.submit();
    farm.actions.killed(&id).await;
    sleep(Duration::from_secs(9)).await;
    assert_eq!(farm.actions.state.lock().started.len(), 1);
    farm.actions.running(&next).await;
    farm.actions.end(&next, Ending::Exited(0));
    assert_eq!(farm.code(&next).await.0, 0);
    assert!(farm.server.look(|s| s.completion(&id).is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_kills_what_runs_and_reports_nothing() {
    let farm = Farm::slots(2).await;
    let id = farm.submit().await;
    let waits = farm.submit().await;
    farm.server.expire();
    farm.actions.killed(&id).await;
    farm.actions.killed(&waits).await;
    // Both come again with the next session, and run there.
    farm.actions
        .until("both again", |s| s.started.len() == 4 && s.slots.len() == 2)
        .await;
    assert!(farm.server.look(|s| s.completed.is_empty()));
    for id in [&id, &waits] {
        farm.actions.end(id, Ending::Exited(0));
        assert_eq!(farm.code(id).await.0, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_our_failure_and_costs_one_action() {
    let farm = Farm::slots(1).await;
    let id = farm.submit().await;
    farm.actions.panic(&id);
    let (code, message) = farm.code(&id).await;
    assert_eq!(code, 14);
    assert!(message.contains("the test wants a panic"), "{message}");
    // Queued again, as that code has it, and run in the same slot.
    farm.actions
        .until("it runs again", |s| s.started.len() == 2)
        .await;
}

#[tokio::test(start_paused = true)]
async fn failures_of_ours_in_a_row_make_the_worker_unwell_for_a_while() {
    let farm = Farm::start(Settings {
        failures: 2,
        recheck: Duration::from_secs(60),
        ..Settings::default()
    })
    .await;
    let broken = || Ending::Infrastructure("no disk".into());
    let begun = async |actions: usize| {
        let one_runs = |s: &Running| s.started.len() == actions && s.slots.len() == 1;
        farm.actions.until("one more runs", one_runs).await;
        farm.actions.state.lock().started[actions - 1].clone()
    };
    for number in [1, 2] {
        farm.submit_number(number);
    }
    for n in [1, 2] {
        farm.actions.end(&begun(n).await, broken());
    }
    farm.heard(rw::BotStatus::Unhealthy).await;
    sleep(Duration::from_secs(50)).await;
    assert_eq!(farm.actions.state.lock().started.len(), 2);
    // The recheck: it fails, and the worker is unwell again.
    farm.actions.end(&begun(3).await, broken());
    farm.heard(rw::BotStatus::Unhealthy).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(farm.actions.state.lock().started.len(), 3);
    for n in [4, 5] {
        farm.actions.end(&begun(n).await, Ending::Exited(0));
    }
    let next = farm.submit().await;
    farm.actions.end(&next, Ending::Exited(0));
    assert_eq!(farm.code(&next).await.0, 0);
}

#[tokio::test(start_paused = true)]
async fn one_action_that_fails_again_and_again_makes_no_worker_unwell() {
    let farm = Farm::start(Settings {
        failures: 2,
        ..Settings::default()
    })
    .await;
    let bad = farm.submit_number(1);
    for attempt in 1..=5 {
        farm.actions
            .until("it is tried", |s| {
                s.started.len() == attempt && s.slots.len() == 1
            })
            .await;
        let why = format!("no luck, number {attempt}");
        farm.actions.end(&bad, Ending::Infrastructure(why));
    }
    assert_eq!(farm.code(&bad).await.0, Code::Unavailable as i32);
    let next = farm.submit().await;
    farm.actions.end(&next, Ending::Exited(0));
    assert_eq!(farm.code(&next).await.0, 0);
    let unwell = |s: &State| {
        let mut told = s.updates.iter().map(|seen| seen.session.status());
        told.any(|status| status == rw::BotStatus::Unhealthy)
    };
    assert!(!farm.server.look(unwell));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_ends_the_worker() {
    let server = Server::start();
    server.refuse_create(Status::invalid_argument("Invalid instance name: [x]"));
    let scheduler = Rwapi::over(
        server.channel(),
        RwapiConfig::new(Endpoint::Http("bots:1".into())),
    );
    let worker = Worker::new(scheduler, Arc::<Actions>::default(), Settings::default());
    let (_stop, stops) = mpsc::channel(1);
    match worker.run(stops).await {
        WorkerEnd::Fatal(text) => assert!(text.contains("instance"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_scheduler_does_not_keep_the_worker_from_stopping_and_is_told_of() {
    let farm = Farm::slots(1).await;
    farm.submit().await;
    farm.server.kill();
    farm.stop().await;
    farm.stop().await;
    assert_eq!(farm.end().await, WorkerEnd::LeftUnheard { unreported: 1 });
}
