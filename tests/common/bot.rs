//! A bot in a test, and what one may ask of it.
#![allow(dead_code)] // each test file uses its own part

use std::sync::Arc;
use std::time::Duration;

use boxwright::action::{Ending, Finished};
use boxwright::config::Endpoint;
use boxwright::reapi::proto::{re, rw};
use boxwright::scheduler::rwapi::{Rwapi, RwapiConfig};
use boxwright::scheduler::{Event, Lease, Scheduler};
use tokio::time::timeout;

use super::bots_server::{Seen, Server};

pub(crate) fn config() -> RwapiConfig {
    RwapiConfig::new(Endpoint::Http("bots:1".into()))
}

pub(crate) fn bot(server: &Server, capacity: usize) -> Arc<Rwapi> {
    let config = RwapiConfig {
        capacity,
        ..config()
    };
    Rwapi::over(server.channel(), config)
}

pub(crate) fn done() -> Finished {
    Finished {
        ending: Ending::Exited(3),
        result: Some(re::ActionResult::default()),
        message: String::new(),
        cacheable: false,
        details: Vec::new(),
        logs: Vec::new(),
        inputs: None,
    }
}

pub(crate) async fn event(bot: &Rwapi) -> Event {
    let next = timeout(Duration::from_secs(900), bot.next()).await;
    next.expect("no event came")
}

pub(crate) async fn lease(bot: &Rwapi) -> Lease {
    match event(bot).await {
        Event::Lease(lease) => *lease,
        other => panic!("{other:?} instead of a lease"),
    }
}

pub(crate) async fn settled(server: &Server) {
    server
        .until("the bot is ready", |s| s.heard(rw::BotStatus::Ok))
        .await;
}

pub(crate) fn updates(server: &Server) -> Vec<Seen> {
    server.look(|state| state.updates.clone())
}
