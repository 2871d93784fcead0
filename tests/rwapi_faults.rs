//! A bot session when things go wrong: answers that get lost, sessions that expire, servers that are
//! killed, refuse, or send what cannot be run. All of it runs in paused time.

#[path = "common/bot.rs"]
mod bot;
#[path = "common/bots_server.rs"]
mod bots_server;

use std::time::Duration;

use bot::{bot, done, event, lease, settled, updates};
use bots_server::{Fault, Server};
use boxwright::reapi::any::pack;
use boxwright::reapi::proto::{re, rpc, rw};
use boxwright::reapi::{status, time};
use boxwright::scheduler::{Drain, Event, Scheduler};
use tokio::time::{Instant, sleep};
use tonic::Status;

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
    // It leases what cannot be run, and lists that again although it was told so.
    for _ in 0..2 {
        server.fault(Fault::Edit(|session| {
            session.leases.push(rw::Lease {
                id: "/overlooked".into(),
                state: rw::LeaseState::Active as i32,
                ..Default::default()
            });
        }));
    }
    let before = updates(&server).len();
    bot.complete(&id, done());
    server
        .until("it lets go", |s| {
            s.updates[before..]
                .iter()
                .any(|u| u.session.leases.is_empty())
        })
        .await;
    let told: Vec<_> = updates(&server)
        .into_iter()
        .filter(|u| u.completes("/overlooked"))
        .collect();
    assert_eq!(told.len(), 2);
    assert_ne!(told[0].session.version, "");
    assert_eq!(told[1].session.version, "");
    assert_eq!(told[0].session.leases, told[1].session.leases);
    assert!(told[1].at - told[0].at >= Duration::from_secs(1));
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
    assert!((6..=20).contains(&creates), "{creates} sessions in 60 s");
    assert!(matches!(event(&bot).await, Event::SessionLost));
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
    let left = event(&bot).await;
    assert!(
        matches!(left, Event::LeftUnheard { unreported: 1 }),
        "{left:?}"
    );
    let waited = at.elapsed().as_secs();
    assert!((25..=35).contains(&waited), "{waited} s");
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
    assert!((60..=130).contains(&knocks), "{knocks} attempts in 600 s");
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
        (Status::failed_precondition("no set fits"), "no set fits"),
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

/// A scheduler that is being replaced by a wrong one, and then by a right one again, keeps its workers.
#[tokio::test(start_paused = true)]
async fn who_was_admitted_once_is_not_sent_away_by_wrong_answers() {
    let server = Server::start();
    let bot = bot(&server, 1);
    settled(&server).await;
    let wrong = [
        Status::invalid_argument("Invalid instance name: [main]"),
        Status::invalid_argument("bot_id"),
        Status::failed_precondition("no set fits"),
        Status::unimplemented("no such service"),
    ];
    for status in wrong.iter().cycle().take(40) {
        server.refuse_create(status.clone());
    }
    server.expire();
    assert!(matches!(event(&bot).await, Event::SessionLost));
    let at = Instant::now();
    let id = server.submit();
    assert_eq!(lease(&bot).await.id, id);
    let waited = at.elapsed().as_secs();
    assert!((150..=420).contains(&waited), "40 refusals in {waited} s");
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_is_seen_soon_after_slow_answers() {
    let server = Server::start();
    let bot = bot(&server, 3);
    settled(&server).await;
    let id = server.submit();
    lease(&bot).await;
    sleep(Duration::from_secs(5)).await;
    let before = updates(&server).len();
    for _ in 0..2 {
        server.fault(Fault::Delay(Duration::from_secs(60)));
    }
    // Two run into their deadline, the third is answered.
    server
        .until("a third update", |s| s.updates.len() >= before + 3)
        .await;
    sleep(Duration::from_secs(1)).await;
    server.cancel(&id);
    let at = Instant::now();
    assert!(matches!(event(&bot).await, Event::Revoked(revoked) if revoked == id));
    assert!(at.elapsed() <= Duration::from_secs(5), "{:?}", at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_lost_its_server_does_not_cost_the_session() {
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    let id = server.submit();
    lease(&bot).await;
    server.fault(Fault::Refuse(Status::unimplemented("404")));
    bot.complete(&id, done());
    server
        .until("completed", |s| s.completion(&id).is_some())
        .await;
    assert_eq!(server.look(|s| s.creates.len()), 1);
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

#[tokio::test(start_paused = true)]
async fn a_result_that_no_message_holds_fails_its_action_alone() {
    let server = Server::start();
    let bot = bot(&server, 2);
    settled(&server).await;
    let (large, small) = (server.submit(), server.submit());
    lease(&bot).await;
    lease(&bot).await;
    let mut vast = done();
    let file = re::OutputFile {
        path: "out/with/a/name/that/is/as/long/as/names/of/outputs/are/now/and/then".into(),
        ..Default::default()
    };
    vast.result.as_mut().unwrap().output_files = vec![file; 80_000];
    bot.complete(&large, vast);
    bot.complete(&small, done());
    server
        .until("both ends are told", |s| {
            s.completion(&large).is_some() && s.completion(&small).is_some()
        })
        .await;
    let (told, beside) = server.look(|s| {
        let of = |id| s.completion(id).cloned().unwrap();
        (of(&large), of(&small))
    });
    let status = told.status.unwrap();
    assert_eq!(status.code, tonic::Code::FailedPrecondition as i32);
    assert!(
        status.message.contains("declare fewer outputs"),
        "{}",
        status.message
    );
    assert!(told.result.is_none());
    assert!(beside.result.is_some() && beside.status.unwrap().code == 0);
    // The session is well, and takes more.
    let next = server.submit();
    assert_eq!(lease(&bot).await.id, next);
}
