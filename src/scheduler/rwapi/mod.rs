//! The Remote Workers API (`google.devtools.remoteworkers.v1test2`), as BuildGrid speaks it.
//!
//! [`Rwapi`] keeps one bot session with a Bots service alive: it creates the session and creates it
//! again when it is lost, hands out what is leased, tells how it ended until that is acknowledged,
//! and says good-bye. One task owns the session ([`session`]) and makes one call at a time
//! ([`exchange`]); the methods of [`Scheduler`] only pass it notes. Nothing here gives up while the
//! server can come back.

mod exchange;
mod identity;
mod leases;
mod logstream;
mod metadata;
mod pace;
mod payload;
mod refusal;
mod session;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use tokio::sync::{Mutex, mpsc};

pub use logstream::LogStreams;
pub use pace::Pacing;

use super::{Drain, Event, LeaseId, Scheduler};
use crate::action::Finished;
use crate::config::{Credentials, Endpoint, EndpointError, Line};
use crate::reapi::proto::re;
use status::Report;

/// Where the scheduler is, and who we are to it.
#[derive(Clone, Debug)]
pub struct RwapiConfig {
    /// The Bots service.
    pub endpoint: Endpoint,
    /// What it is shown.
    pub credentials: Credentials,
    /// Its instance, the parent of the session; `""` is a name like any other.
    pub instance: String,
    /// The readable part of the bot's id, which gets a random part for every start; the host's name if `None`.
    pub bot_name: Option<String>,
    /// The platform properties that actions are matched against; a key may occur more than once.
    pub platform: Vec<(String, String)>,
    /// What else is told of the worker, such as its isolation level. Actions are not matched against it.
    pub labels: Vec<(String, String)>,
    /// How many leases at a time: the number of slots.
    pub capacity: usize,
    /// How many leases are taken in all. More are not asked for, as every one that goes back costs its job an attempt; to drain
    /// then is the worker's part.
    pub stop_after: Option<u64>,
    /// Among workers that fit, the one with the smallest number is preferred (by servers that look at it).
    pub priority: i32,
    /// How often the scheduler hears from us.
    pub pacing: Pacing,
}

impl RwapiConfig {
    /// A worker without properties, with one slot and the default pace.
    pub fn new(endpoint: Endpoint) -> Self {
        RwapiConfig {
            endpoint,
            credentials: Credentials::default(),
            instance: String::new(),
            bot_name: None,
            platform: Vec::new(),
            labels: Vec::new(),
            capacity: 1,
            stop_after: None,
            priority: 0,
            pacing: Pacing::default(),
        }
    }
}

/// How many sessions were lost before. A scheduler may lease the same job again under the same id, so
/// an id alone does not say which of its runs has ended.
type Epoch = u64;

/// A note for the task that owns the session.
#[derive(Debug)]
enum Note {
    Ended(Epoch, LeaseId, Report),
    Progress(Epoch, LeaseId, Box<re::ExecutedActionMetadata>),
    Health(Option<String>),
    Drain(Drain),
}

/// A session with a Bots service. When it is dropped the session is left without a word; see
/// [`Scheduler::drain`].
pub struct Rwapi {
    bot_id: String,
    notes: mpsc::UnboundedSender<Note>,
    events: Mutex<mpsc::UnboundedReceiver<Event>>,
    /// The losses that `next` has told of.
    epoch: AtomicU64,
}

impl Rwapi {
    /// Connects, and keeps trying to. Must be called within a tokio runtime.
    pub fn new(config: RwapiConfig) -> Result<Arc<Self>, EndpointError> {
        let line = config.endpoint.line(&config.credentials)?;
        Ok(Self::over(line, config))
    }

    /// The same over a connection that exists already; `config.endpoint` only names it in logs.
    pub fn over(line: impl Into<Line>, config: RwapiConfig) -> Arc<Self> {
        let (notes, inbox) = mpsc::unbounded_channel();
        let (outbox, events) = mpsc::unbounded_channel();
        let bot_id = identity::bot_id(config.bot_name.as_deref());
        tokio::spawn(
            session::Session::new(line.into(), config, bot_id.clone(), inbox, outbox).run(),
        );
        Arc::new(Rwapi {
            bot_id,
            notes,
            events: Mutex::new(events),
            epoch: AtomicU64::new(0),
        })
    }

    /// The bot's id: unique, and another one after every start.
    pub fn bot_id(&self) -> &str {
        &self.bot_id
    }

    fn epoch(&self) -> Epoch {
        self.epoch.load(Ordering::Acquire)
    }

    fn note(&self, note: Note) {
        // The task ends with Drained, LeftUnheard or Fatal; after that nobody is left to be told.
        let _ = self.notes.send(note);
    }
}

#[async_trait]
impl Scheduler for Rwapi {
    async fn next(&self) -> Event {
        match self.events.lock().await.recv().await {
            Some(event) => {
                if matches!(event, Event::SessionLost) {
                    self.epoch.fetch_add(1, Ordering::AcqRel);
                }
                event
            }
            None => std::future::pending().await,
        }
    }

    fn progress(&self, lease: &LeaseId, metadata: re::ExecutedActionMetadata) {
        self.note(Note::Progress(
            self.epoch(),
            lease.clone(),
            Box::new(metadata),
        ));
    }

    fn complete(&self, lease: &LeaseId, finished: Finished) {
        self.note(Note::Ended(
            self.epoch(),
            lease.clone(),
            status::report(finished),
        ));
    }

    fn health(&self, problem: Option<String>) {
        self.note(Note::Health(problem));
    }

    fn drain(&self, how: Drain) {
        self.note(Note::Drain(how));
    }
}
