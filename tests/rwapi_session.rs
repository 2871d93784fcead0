//! A bot session with a server that behaves as BuildGrid does: what is said, when, and what follows
//! from the answers. Most of it runs in paused time.

#[path = "common/bots_server.rs"]
mod bots_server;

use std::sync::Arc;
use std::time::Duration;

use bots_server::{Fault, Seen, Server};
use boxwright::action::{Ending, Finished};
use boxwright::config::Endpoint;
use boxwright::reapi::any::{pack, unpack};
use boxwright::reapi::proto::{re, rpc, rw};
use boxwright::reapi::{DigestFunction, status, time};
use boxwright::scheduler::rwapi::{Pacing, Rwapi, RwapiConfig};
use boxwright::scheduler::{Drain, Event, Lease, Scheduler};
use prost::Message;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

fn config() -> RwapiConfig {
    RwapiConfig::new(Endpoint::Http("bots:1".into()))
}

fn bot(server: &Server, capacity: usize) -> Arc<Rwapi> {
    let config = RwapiConfig {
        capacity,
        ..config()
    };
    Rwapi::over(server.channel(), config)
}

fn done() -> Finished {
    Finished {
        ending: Ending::Exited(3),
        result: Some(re::ActionResult::default()),
        message: String::new(),
        cacheable: false,
        details: Vec::new(),
    }
}

async fn event(bot: &Rwapi) -> Event {
    let next = timeout(Duration::from_secs(900), bot.next()).await;
    next.expect("no event came")
}

async fn lease(bot: &Rwapi) -> Lease {
    match event(bot).await {
        Event::Lease(lease) => *lease,
        other => panic!("{other:?} instead of a lease"),
    }
}

async fn settled(server: &Server) {
    server
        .until("the bot is ready", |s| s.heard(rw::BotStatus::Ok))
        .await;
}

fn updates(server: &Server) -> Vec<Seen> {
    server.look(|state| state.updates.clone())
}

#[tokio::test(start_paused = true)]
async fn a_session_is_created_without_status_and_says_who_we_are() {
    let server = Server::start();
    let config = RwapiConfig {
        instance: "main".into(),
        bot_name: Some("host".into()),
        platform: vec![
            ("OSFamily".into(), "linux".into()),
            ("ISA".into(), "x86-64".into()),
            ("ISA".into(), "x86-32".into()),
        ],
        capacity: 3,
        priority: 7,
        ..config()
    };
    let bot = Rwapi::over(server.channel(), config);
    settled(&server).await;
    let create = server.look(|s| s.creates[0].clone());
    assert_eq!(create.parent, "main");
    assert_eq!(create.session.status(), rw::BotStatus::Unspecified);
    assert_eq!(create.session.bot_id, bot.bot_id());
    assert!(bot.bot_id().starts_with("host-"));
    let worker = create.session.worker.unwrap();
    let device: Vec<_> = worker.devices[0]
        .properties
        .iter()
        .map(|p| (p.key.as_str(), p.value.as_str()))
        .collect();
    assert_eq!(
        device,
        [("OSFamily", "linux"), ("ISA", "x86-64"), ("ISA", "x86-32")]
    );
    assert_eq!(worker.properties.len(), 3);
    assert_eq!(worker.devices.len(), 1);
    assert_eq!(worker.devices[0].handle, bot.bot_id());
    let configs: Vec<_> = worker
        .configs
        .iter()
        .map(|c| (c.key.as_str(), c.value.as_str()))
        .collect();
    assert_eq!(configs, [("capacity", "3"), ("priority", "7")]);
    let first = updates(&server).remove(0);
    assert_eq!(first.session.status(), rw::BotStatus::Ok);
    assert_eq!(first.session.worker.unwrap().configs[0].value, "3");
}

#[tokio::test(start_paused = true)]
async fn every_start_has_an_id_of_its_own() {
    let server = Server::start();
    let (one, two) = (bot(&server, 1), bot(&server, 1));
    server.until("two sessions", |s| s.creates.len() == 2).await;
    assert_ne!(one.bot_id(), two.bot_id());
}

#[tokio::test(start_paused = true)]
async fn both_the_empty_and_a_named_instance_work() {
    for instance in ["", "main", "a/b"] {
        let server = Server::start();
        let config = RwapiConfig {
            instance: instance.into(),
            ..config()
        };
        let bot = Rwapi::over(server.channel(), config);
        settled(&server).await;
        let id = server.submit();
        assert!(id.starts_with(&format!("{instance}/")));
        assert_eq!(lease(&bot).await.id, id);
        bot.complete(&id, done());
        server
            .until("completed", |s| s.completion(&id).is_some())
            .await;
        let name = updates(&server)[0].session.name.clone();
        assert!(name.starts_with(&format!("{instance}/")), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn polls_are_long_while_idle_and_short_while_something_runs() {
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    sleep(Duration::from_secs(100)).await;
    let idle = updates(&server);
    assert!(idle.len() <= 4, "{} updates while idle", idle.len());
    assert!(
        idle.iter()
            .all(|u| u.deadline.unwrap() > Duration::from_secs(290))
    );
    server.submit();
    lease(&bot).await;
    let before = updates(&server).len();
    sleep(Duration::from_secs(60)).await;
    let busy = updates(&server).split_off(before);
    assert!((12..=20).contains(&busy.len()), "{} updates", busy.len());
    for update in busy {
        let deadline = update.deadline.unwrap();
        assert!(deadline >= Duration::from_millis(3750), "{deadline:?}");
        assert!(deadline <= Duration::from_secs(5), "{deadline:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_bot_keeps_its_own_pace() {
    let server = Server::start();
    let bot = bot(&server, 1);
    settled(&server).await;
    server.submit();
    let id = lease(&bot).await.id;
    let before = updates(&server).len();
    sleep(Duration::from_secs(30)).await;
    let count = updates(&server).len() - before;
    assert!((15..=30).contains(&count), "{count} updates in 30 s");
    let at = Instant::now();
    bot.complete(&id, done());
    server
        .until("completed", |s| s.completion(&id).is_some())
        .await;
    assert!(at.elapsed() < Duration::from_millis(100), "told at once");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_wait_is_not_asked_in_a_loop() {
    let server = Server::start();
    server.keepalive(Duration::from_secs(3));
    let _bot = bot(&server, 1);
    settled(&server).await;
    sleep(Duration::from_secs(30)).await;
    let count = updates(&server).len();
    assert!((10..=31).contains(&count), "{count} updates in 30 s");
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_is_seen_within_five_seconds() {
    for capacity in [1, 3] {
        let server = Server::start();
        let bot = bot(&server, capacity);
        settled(&server).await;
        let id = server.submit();
        lease(&bot).await;
        for pause in [100, 3700, 5000] {
            sleep(Duration::from_millis(pause)).await;
        }
        server.cancel(&id);
        let at = Instant::now();
        assert!(matches!(event(&bot).await, Event::Revoked(revoked) if revoked == id));
        assert!(at.elapsed() <= Duration::from_secs(5), "{:?}", at.elapsed());
        // A report that comes all the same is not sent.
        bot.complete(&id, done());
        let next = server.submit();
        assert_eq!(lease(&bot).await.id, next);
        assert!(updates(&server).iter().all(|u| !u.completes(&id)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_completion_interrupts_the_poll_and_is_told_at_once() {
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    let id = server.submit();
    lease(&bot).await;
    sleep(Duration::from_millis(500)).await;
    let at = Instant::now();
    bot.complete(&id, done());
    server
        .until("completed", |s| s.completion(&id).is_some())
        .await;
    assert!(at.elapsed() < Duration::from_millis(100));
    let updates = updates(&server);
    let at = updates.iter().position(|u| u.completes(&id)).unwrap();
    assert!(updates[at - 1].dropped, "the poll was given up");
    let told = server.look(|s| s.completion(&id).cloned()).unwrap();
    assert!(told.payload.is_some(), "the payload stays in");
    assert_eq!(told.status.unwrap().code, 0);
    let result: re::ActionResult = unpack(&told.result.unwrap()).unwrap().unwrap();
    assert_eq!(result.exit_code, 3);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_tells_of_an_end_is_never_given_up() {
    let server = Server::start();
    let bot = bot(&server, 3);
    settled(&server).await;
    let (first, second) = (server.submit(), server.submit());
    lease(&bot).await;
    lease(&bot).await;
    sleep(Duration::from_millis(200)).await;
    server.fault(Fault::Delay(Duration::from_secs(2)));
    bot.complete(&first, done());
    sleep(Duration::from_millis(200)).await;
    bot.complete(&second, done());
    bot.health(Some("unwell".into()));
    server.until("both", |s| s.completed.len() == 2).await;
    let carrying: Vec<_> = updates(&server)
        .into_iter()
        .filter(|u| u.completes(&first) || u.completes(&second))
        .collect();
    assert_eq!(carrying.len(), 2);
    assert!(carrying.iter().all(|u| !u.dropped));
}

#[tokio::test(start_paused = true)]
async fn a_completion_is_repeated_unchanged_until_it_is_acknowledged() {
    let server = Server::start();
    let bot = bot(&server, 1);
    settled(&server).await;
    let id = server.submit();
    lease(&bot).await;
    sleep(Duration::from_secs(2)).await;
    server.fault(Fault::Refuse(Status::unavailable("busy")));
    server.fault(Fault::Refuse(Status::internal("worse")));
    server.fault(Fault::Delay(Duration::from_secs(60))); // runs into the deadline
    server.fault(Fault::Lose);
    let before = updates(&server).len();
    bot.complete(&id, done());
    let next = server.submit();
    assert_eq!(lease(&bot).await.id, next);
    let told: Vec<_> = updates(&server)
        .split_off(before)
        .into_iter()
        .filter(|u| u.completes(&id))
        .collect();
    assert_eq!(told.len(), 5);
    for update in &told {
        assert_eq!(update.lease(&id), told[0].lease(&id));
        assert_eq!(update.session.version, told[0].session.version);
    }
    assert!(
        told[3].deadline > told[2].deadline,
        "a slow server gets more time"
    );
    assert_eq!(server.look(|s| s.completed.len()), 1);
    let after = updates(&server).split_off(before + told.len());
    assert!(after.iter().all(|u| u.lease(&id).is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_overlooks_a_completion_is_made_to_look() {
    let server = Server::start();
    let bot = bot(&server, 1);
    settled(&server).await;
    let id = server.submit();
    lease(&bot).await;
    server.fault(Fault::Edit(|session| {
        session.leases.push(rw::Lease {
            id: "/overlooked".into(),
            state: rw::LeaseState::Active as i32,
            ..Default::default()
        });
    }));
    bot.complete(&id, done());
    server
        .until("the stranger is refused", |s| {
            s.updates.iter().any(|u| u.completes("/overlooked"))
        })
        .await;
    server.fault(Fault::Edit(|session| {
        session.leases.push(rw::Lease {
            id: "/overlooked".into(),
            state: rw::LeaseState::Active as i32,
            ..Default::default()
        });
    }));
    let before = updates(&server).len();
    server
        .until("it lets go", |s| {
            s.updates[before..]
                .iter()
                .any(|u| u.session.leases.is_empty())
        })
        .await;
    let again = updates(&server)
        .into_iter()
        .filter(|u| u.completes("/overlooked"))
        .nth(1)
        .unwrap();
    assert_eq!(again.session.version, "");
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_reply_the_old_version_is_sent_again() {
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    sleep(Duration::from_secs(1)).await;
    // The open poll is answered; the next one delivers a lease that never arrives.
    let first = server.submit();
    assert_eq!(lease(&bot).await.id, first);
    server.fault(Fault::Lose);
    bot.complete(&first, done());
    let second = server.submit();
    assert_eq!(lease(&bot).await.id, second);
    let told: Vec<_> = updates(&server)
        .into_iter()
        .filter(|u| u.completes(&first))
        .collect();
    assert_eq!(told.len(), 2);
    assert_eq!(told[0].session.version, told[1].session.version);
    assert_eq!(told[0].session.leases, told[1].session.leases);
    assert!(server.look(|s| s.holds(&second)));
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_announced_and_created_again() {
    let losses = [
        Status::data_loss("illegal lease state"),
        Status::invalid_argument("Mismatch between client supplied bot_id and session"),
        Status::not_found("gone"),
        Status::aborted("duplicate"),
    ];
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    let id = server.submit();
    for (sessions, loss) in losses.into_iter().enumerate() {
        assert_eq!(lease(&bot).await.id, id);
        server.fault(Fault::Refuse(loss));
        server
            .until("the job goes to the next session", |s| {
                s.creates.len() == sessions + 2 && s.heard(rw::BotStatus::Ok) && s.holds(&id)
            })
            .await;
        // The run from before the loss ends before the loss is known: nobody may be told of it.
        bot.complete(&id, done());
        assert!(matches!(event(&bot).await, Event::SessionLost));
    }
    assert_eq!(lease(&bot).await.id, id);
    assert!(server.look(|s| s.completed.is_empty()));
    bot.complete(&id, done());
    server
        .until("completed", |s| s.completion(&id).is_some())
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_session_s_lease_comes_again_with_the_next() {
    let server = Server::start();
    let bot = bot(&server, 1);
    settled(&server).await;
    let id = server.submit();
    lease(&bot).await;
    server.expire();
    assert!(matches!(event(&bot).await, Event::SessionLost));
    assert_eq!(lease(&bot).await.id, id);
    assert_eq!(server.look(|s| s.creates.len()), 2);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_loses_every_session_is_not_asked_in_a_loop() {
    let server = Server::start();
    let bot = bot(&server, 1);
    for _ in 0..200 {
        server.fault(Fault::Refuse(Status::invalid_argument(
            "Bot does not exist",
        )));
    }
    sleep(Duration::from_secs(60)).await;
    let creates = server.look(|s| s.creates.len());
    assert!((4..=14).contains(&creates), "{creates} sessions in 60 s");
    assert!(matches!(event(&bot).await, Event::SessionLost));
}

#[tokio::test(start_paused = true)]
async fn the_trailer_names_the_action_its_streams_and_its_times() {
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    let digest = DigestFunction::Blake3.digest(b"an action");
    let queued = time::now();
    let about = |stdout: &str| re::ExecuteOperationMetadata {
        action_digest: Some(digest.to_proto()),
        digest_function: digest.function().to_proto() as i32,
        stdout_stream_name: stdout.into(),
        stderr_stream_name: "err".into(),
        partial_execution_metadata: Some(re::ExecutedActionMetadata {
            queued_timestamp: Some(queued),
            ..Default::default()
        }),
        ..Default::default()
    };
    let action = re::Action {
        do_not_cache: true,
        ..Default::default()
    };
    for stdout in ["one", "two"] {
        server.submit_with(Some(pack(&action)), about(stdout));
        let lease = lease(&bot).await;
        assert_eq!(lease.action_digest, Some(digest));
        assert_eq!(lease.function, DigestFunction::Blake3);
        assert_eq!(lease.stdout_stream, stdout);
        assert_eq!(lease.stderr_stream, "err");
        assert_eq!(lease.metadata.queued_timestamp, Some(queued));
        assert_eq!(re::Action::decode(lease.action.unwrap()).unwrap(), action);
    }
}

#[tokio::test(start_paused = true)]
async fn an_action_may_come_by_digest_alone() {
    let server = Server::start();
    let bot = bot(&server, 1);
    settled(&server).await;
    let digest = DigestFunction::Sha256.digest(b"an action");
    server.submit_with(Some(pack(&digest.to_proto())), Default::default());
    let lease = lease(&bot).await;
    assert_eq!(lease.action, None);
    assert_eq!(lease.action_digest, Some(digest));
}

#[tokio::test(start_paused = true)]
async fn a_malformed_lease_is_refused_and_the_others_run() {
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    let broken = prost_types::Any {
        value: vec![0xff],
        ..pack(&re::Action::default())
    };
    let bad = server.submit_with(Some(broken), Default::default());
    let good = server.submit();
    assert_eq!(lease(&bot).await.id, good);
    server
        .until("refused", |s| s.completion(&bad).is_some())
        .await;
    let refused = server.look(|s| s.completion(&bad).cloned()).unwrap();
    let status = refused.status.unwrap();
    assert_eq!(status.code, 3);
    assert!(
        status.message.contains("not an Action"),
        "{}",
        status.message
    );
    assert!(server.look(|s| s.holds(&good)));
}

#[tokio::test(start_paused = true)]
async fn headers_say_who_asks_and_how_far_each_action_is() {
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    let id = server.submit();
    lease(&bot).await;
    let started = time::now();
    bot.progress(
        &id,
        re::ExecutedActionMetadata {
            execution_start_timestamp: Some(started),
            ..Default::default()
        },
    );
    let job = id.rsplit('/').next().unwrap();
    let key = format!("partial-execution-metadata-{job}-bin");
    server
        .until("progress", |s| {
            s.updates.last().unwrap().headers.get_bin(&*key).is_some()
        })
        .await;
    let headers = updates(&server).pop().unwrap().headers;
    let value = headers.get_bin(&*key).unwrap().to_bytes().unwrap();
    let metadata = re::ExecutedActionMetadata::decode(value).unwrap();
    assert_eq!(metadata.execution_start_timestamp, Some(started));
    let identity = headers
        .get_bin("build.bazel.remote.execution.v2.requestmetadata-bin")
        .unwrap();
    let identity = re::RequestMetadata::decode(identity.to_bytes().unwrap()).unwrap();
    assert_eq!(identity.tool_details.unwrap().tool_name, "boxwright");
    assert_eq!(identity.correlated_invocations_id, bot.bot_id());
}

#[tokio::test(start_paused = true)]
async fn leases_beyond_the_capacity_go_back_and_double_ones_count_once() {
    let server = Server::start();
    let bot = bot(&server, 1);
    settled(&server).await;
    server.expire(); // and the next poll's answer:
    server
        .until("a new session", |s| s.creates.len() == 2)
        .await;
    assert!(matches!(event(&bot).await, Event::SessionLost));
    server
        .until("a poll", |s| {
            s.updates.last().unwrap().at >= s.creates[1].at
        })
        .await;
    server.fault(Fault::Edit(|session| {
        let mut extra = session.leases[0].clone();
        session.leases.push(extra.clone());
        extra.id = "/extra".into();
        session.leases.push(extra);
    }));
    let id = server.submit();
    assert_eq!(lease(&bot).await.id, id);
    server
        .until("given back", |s| {
            s.updates.iter().any(|u| u.completes("/extra"))
        })
        .await;
    let update = updates(&server).pop().unwrap();
    assert_eq!(
        update
            .lease("/extra")
            .unwrap()
            .status
            .as_ref()
            .unwrap()
            .code,
        14
    );
    assert_eq!(
        update.session.leases.iter().filter(|l| l.id == id).count(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_runs_and_gives_late_leases_back() {
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    let running = server.submit();
    lease(&bot).await;
    sleep(Duration::from_secs(1)).await;
    // A lease that is assigned while the good-bye is on its way.
    server.fault(Fault::Edit(|session| {
        let mut late = session.leases[0].clone();
        late.id = "/late".into();
        session.leases.push(late);
    }));
    let before = updates(&server).len();
    bot.drain(Drain::Finish);
    server
        .until("the late lease is given back", |s| {
            s.updates.iter().any(|u| u.completes("/late"))
        })
        .await;
    sleep(Duration::from_secs(20)).await;
    let told = updates(&server).split_off(before);
    assert!((10..=30).contains(&told.len()), "{} updates", told.len());
    assert!(
        told.iter()
            .all(|u| u.session.status() == rw::BotStatus::BotTerminating)
    );
    let late = told.iter().find_map(|u| u.lease("/late")).unwrap();
    assert_eq!(late.status.as_ref().unwrap().code, 14);
    assert!(told.iter().all(|u| !u.completes(&running)));
    assert!(
        timeout(Duration::from_secs(5), bot.next()).await.is_err(),
        "not drained yet"
    );
    bot.complete(&running, done());
    assert!(matches!(event(&bot).await, Event::Drained));
    assert_eq!(
        server
            .look(|s| s.completion(&running).cloned())
            .unwrap()
            .status
            .unwrap()
            .code,
        0
    );
}

#[tokio::test(start_paused = true)]
async fn an_idle_bot_says_good_bye_at_once() {
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    let at = Instant::now();
    bot.drain(Drain::Finish);
    assert!(matches!(event(&bot).await, Event::Drained));
    assert!(at.elapsed() < Duration::from_millis(100));
    assert!(server.look(|s| s.heard(rw::BotStatus::BotTerminating)));
    // Nothing is said after that.
    let count = updates(&server).len();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(updates(&server).len(), count);
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_ever_for_a_dead_server() {
    let server = Server::start();
    let bot = bot(&server, 1);
    settled(&server).await;
    let id = server.submit();
    lease(&bot).await;
    server.kill();
    bot.drain(Drain::Finish);
    sleep(Duration::from_secs(100)).await;
    let at = Instant::now();
    bot.complete(&id, done());
    assert!(matches!(event(&bot).await, Event::Drained));
    let waited = at.elapsed().as_secs();
    assert!((25..=35).contains(&waited), "{waited} s");
}

#[tokio::test(start_paused = true)]
async fn an_unwell_bot_goes_on_with_what_runs_and_takes_nothing_new() {
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    let id = server.submit();
    lease(&bot).await;
    bot.health(Some("the disk is full".into()));
    server
        .until("unhealthy", |s| s.heard(rw::BotStatus::Unhealthy))
        .await;
    let waiting = server.submit();
    let before = updates(&server).len();
    sleep(Duration::from_secs(30)).await;
    let count = updates(&server).len() - before;
    assert!((5..=30).contains(&count), "{count} updates in 30 s");
    bot.complete(&id, done());
    server
        .until("completed", |s| s.completion(&id).is_some())
        .await;
    bot.health(None);
    assert_eq!(lease(&bot).await.id, waiting);
}

#[tokio::test(start_paused = true)]
async fn a_killed_server_is_found_again_and_keeps_its_leases() {
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    let (first, second) = (server.submit(), server.submit());
    lease(&bot).await;
    lease(&bot).await;
    server.kill();
    bot.complete(&first, done());
    sleep(Duration::from_secs(120)).await;
    let knocks = server.look(|s| s.knocks);
    assert!((20..=80).contains(&knocks), "{knocks} attempts in 120 s");
    server.revive();
    let at = Instant::now();
    server
        .until("completed", |s| s.completion(&first).is_some())
        .await;
    assert!(at.elapsed() <= Duration::from_secs(5));
    bot.complete(&second, done());
    server
        .until("completed", |s| s.completion(&second).is_some())
        .await;
    assert_eq!(server.look(|s| s.creates.len()), 1, "the session survived");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_comes_up_late_is_waited_for() {
    let server = Server::start();
    server.kill();
    let bot = bot(&server, 1);
    sleep(Duration::from_secs(600)).await;
    let knocks = server.look(|s| s.knocks);
    assert!((20..=60).contains(&knocks), "{knocks} attempts in 600 s");
    server.revive();
    settled(&server).await;
    let id = server.submit();
    assert_eq!(lease(&bot).await.id, id);
}

#[tokio::test(start_paused = true)]
async fn the_server_s_own_delay_is_kept() {
    let server = Server::start();
    let bot = bot(&server, 1);
    settled(&server).await;
    let id = server.submit();
    lease(&bot).await;
    sleep(Duration::from_secs(1)).await;
    let busy = rpc::Status {
        code: tonic::Code::Unavailable as i32,
        message: "database trouble".into(),
        details: vec![pack(&rpc::RetryInfo {
            retry_delay: Some(time::duration(Duration::from_secs(30))),
        })],
    };
    server.fault(Fault::Refuse(status::to_call_status(&busy)));
    let before = updates(&server).len();
    bot.complete(&id, done());
    server
        .until("completed", |s| s.completion(&id).is_some())
        .await;
    let told: Vec<_> = updates(&server)
        .split_off(before)
        .into_iter()
        .filter(|u| u.completes(&id))
        .collect();
    assert_eq!(told.len(), 2);
    assert!(told[1].at - told[0].at >= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn what_waiting_cannot_mend_is_fatal() {
    let refusals = [
        (
            Status::invalid_argument("Invalid instance name: [main]"),
            "instance",
        ),
        (Status::unimplemented("no such service"), "Bots"),
    ];
    for (refusal, part) in refusals {
        let server = Server::start();
        server.refuse_create(refusal);
        let bot = bot(&server, 1);
        match event(&bot).await {
            Event::Fatal(text) => assert!(text.contains(part), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_not_let_in_tries_again_now_and_then() {
    let server = Server::start();
    for _ in 0..3 {
        server.refuse_create(Status::unauthenticated("token expired"));
    }
    let _bot = bot(&server, 1);
    let at = Instant::now();
    settled(&server).await;
    assert_eq!(server.look(|s| s.creates.len()), 4);
    assert!(at.elapsed() >= Duration::from_secs(90));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_the_server_will_not_take_does_not_block_the_rest() {
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    let (large, small) = (server.submit(), server.submit());
    lease(&bot).await;
    lease(&bot).await;
    sleep(Duration::from_secs(1)).await;
    let mut finished = done();
    finished.result.as_mut().unwrap().stdout_raw = vec![b'x'; 5 << 20].into();
    bot.complete(&large, finished);
    bot.complete(&small, done());
    server.until("both", |s| s.completed.len() == 2).await;
    let told = server.look(|s| s.completion(&large).cloned()).unwrap();
    assert_eq!(told.status.as_ref().unwrap().code, 9);
    assert!(
        told.status
            .unwrap()
            .message
            .contains("larger than the scheduler takes")
    );
    let told = server.look(|s| s.completion(&small).cloned()).unwrap();
    assert_eq!(told.status.unwrap().code, 0);
}

#[tokio::test]
async fn many_leases_come_with_their_trailers_over_a_real_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bots.sock");
    let server = Server::start();
    server.listen(&path);
    let bot = Rwapi::new(RwapiConfig {
        endpoint: Endpoint::Unix(path),
        capacity: 256,
        pacing: Pacing::default(),
        ..config()
    });
    settled(&server).await;
    let digest = DigestFunction::Sha256.digest(b"an action");
    let about = re::ExecuteOperationMetadata {
        action_digest: Some(digest.to_proto()),
        stdout_stream_name: "o".repeat(100),
        stderr_stream_name: "e".repeat(100),
        ..Default::default()
    };
    for _ in 0..256 {
        server.submit_with(Some(pack(&re::Action::default())), about.clone());
    }
    for _ in 0..256 {
        assert_eq!(lease(&bot).await.action_digest, Some(digest));
    }
    bot.drain(Drain::GiveBack);
}
