//! A bot session with a server that behaves as BuildGrid does: what is said, when, and what follows
//! from the answers. Most of it runs in paused time. When things go wrong: `rwapi_faults.rs`.

#[path = "common/bot.rs"]
mod bot;
#[path = "common/bots_server.rs"]
mod bots_server;

use std::time::Duration;

use bot::{bot, config, done, event, lease, settled, updates};
use bots_server::{Fault, Server};
use boxwright::config::Endpoint;
use boxwright::reapi::any::{pack, unpack};
use boxwright::reapi::proto::{re, rw};
use boxwright::reapi::{DigestFunction, time};
use boxwright::scheduler::rwapi::{Rwapi, RwapiConfig};
use boxwright::scheduler::{Drain, Event, Scheduler};
use prost::Message;
use tokio::time::{Instant, sleep, timeout};

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
        labels: vec![("boxwright-sandbox".into(), "process".into())],
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
    // A label is told, but nothing that actions are matched against: `device` above is all of that.
    let told: Vec<_> = worker
        .properties
        .iter()
        .map(|p| (p.key.as_str(), p.value.as_str()))
        .collect();
    assert_eq!(told[..3], device);
    assert_eq!(told[3..], [("boxwright-sandbox", "process")]);
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

#[tokio::test]
async fn many_leases_come_with_their_trailers_over_a_real_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bots.sock");
    let server = Server::start();
    server.listen(&path);
    let bot = Rwapi::new(RwapiConfig {
        endpoint: Endpoint::Unix(path),
        capacity: 256,
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
