//! The task that owns the bot session: what it knows, what it wants said, and when it speaks.

use std::ops::ControlFlow;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::leases::{Admission, Leases};
use super::pace::Clock;
use super::{Epoch, Note, RwapiConfig};
use crate::config::Line;
use crate::reapi::proto::rw;
use crate::reapi::proto::rw::bots_client::BotsClient;
use crate::scheduler::{Drain, Event};

/// Larger replies are refused; a lease is an Action and some names, far below 100 KiB.
const REPLY_LIMIT: usize = 64 << 20;

/// A session that the server knows.
#[derive(Debug)]
pub(super) struct Known {
    /// The name that the server chose.
    pub(super) name: String,
    /// The version of the list in `Session::leases`. They are replaced together or not at all.
    pub(super) version: String,
    /// The status that the server heard last.
    pub(super) heard: rw::BotStatus,
}

/// Everything about the session.
pub(super) struct Session {
    pub(super) client: BotsClient<Line>,
    pub(super) config: RwapiConfig,
    pub(super) bot_id: String,
    /// How many leases at a time this session may have. The server knows it since it created the session; another number takes
    /// another session.
    pub(super) capacity: usize,
    /// Leases taken so far, in all sessions.
    taken: u64,
    pub(super) known: Option<Known>,
    pub(super) leases: Leases,
    /// Whether a server ever gave us a session.
    pub(super) admitted: bool,
    /// How many sessions were lost; notes from before the last loss are void.
    pub(super) epoch: Epoch,
    pub(super) clock: Clock,
    /// Since when the server does not answer.
    pub(super) out_of_reach: Option<Instant>,
    /// Whether a new session is refused by the scheduler that gave us the last one.
    pub(super) refused: bool,
    problem: Option<String>,
    drain: Option<Drain>,
    /// Since when a draining worker has nothing that runs.
    at_rest: Option<Instant>,
    notes: mpsc::UnboundedReceiver<Note>,
    events: mpsc::UnboundedSender<Event>,
}

impl Session {
    pub(super) fn new(
        line: Line,
        config: RwapiConfig,
        bot_id: String,
        notes: mpsc::UnboundedReceiver<Note>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        if config.platform.len() > 10 {
            tracing::warn!(
                properties = config.platform.len(),
                "BuildGrid keeps a row for every subset of a bot's properties; use fewer"
            );
        }
        Session {
            client: BotsClient::new(line).max_decoding_message_size(REPLY_LIMIT),
            clock: Clock::new(config.pacing.clone()),
            capacity: 0,
            taken: 0,
            admitted: false,
            config,
            bot_id,
            known: None,
            leases: Leases::default(),
            epoch: 0,
            out_of_reach: None,
            refused: false,
            problem: None,
            drain: None,
            at_rest: None,
            notes,
            events,
        }
    }

    /// Runs until the drain is complete, the server refuses for good, or nobody listens any more.
    pub(super) async fn run(mut self) {
        while self.step().await.is_continue() {}
    }

    async fn step(&mut self) -> ControlFlow<()> {
        while let Ok(note) = self.notes.try_recv() {
            self.take(note);
        }
        self.drained()?;
        self.outgrow();
        let due = self.due();
        if due > Instant::now() {
            let until = self.leaves_at().map_or(due, |leaves| leaves.min(due));
            return tokio::select! {
                note = self.notes.recv() => self.take_or_end(note),
                () = sleep_until(until) => ControlFlow::Continue(()),
            };
        }
        match self.known {
            None => self.create().await,
            Some(_) => self.update().await,
        }
    }

    /// The next note, if anybody is left to write one.
    pub(super) async fn note(&mut self) -> Option<Note> {
        self.notes.recv().await
    }

    pub(super) fn take_or_end(&mut self, note: Option<Note>) -> ControlFlow<()> {
        match note {
            Some(note) => {
                self.take(note);
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(()),
        }
    }

    fn take(&mut self, note: Note) {
        match note {
            Note::Ended(epoch, lease, report) => {
                if epoch != self.epoch || !self.leases.end(&lease, report) {
                    tracing::debug!(%lease, "ended, but is not ours any more");
                }
            }
            Note::Progress(epoch, lease, metadata) => {
                if epoch == self.epoch {
                    self.leases.progress(&lease, *metadata);
                }
            }
            Note::Health(problem) => self.problem = problem,
            Note::Drain(how) => {
                tracing::info!(running = self.leases.running(), ?how, "draining");
                self.drain = Some(how);
                // Whoever wants to leave must not sit out a long delay.
                self.clock.hurry(self.config.pacing.terminating_interval);
            }
        }
    }

    /// How many more leases may be taken.
    fn more(&self) -> usize {
        let more = |most: u64| usize::try_from(most.saturating_sub(self.taken));
        (self.config.stop_after.map(more))
            .and_then(Result::ok)
            .unwrap_or(usize::MAX)
    }

    /// How many leases at a time a session that begins now may have.
    pub(super) fn next_capacity(&self) -> usize {
        self.config.capacity.min(self.more())
    }

    /// Whether the server would give more than may be taken, once it has heard of all that ended.
    fn is_outgrown(&self) -> bool {
        self.capacity.saturating_sub(self.leases.running()) > self.more()
    }

    /// Leaves a session whose capacity is too large for the last leases, for one that fits. The new one closes it; as it holds no
    /// lease, nothing is lost.
    fn outgrow(&mut self) {
        let unasked = rw::BotStatus::Unspecified;
        let heard = self.known.as_ref().map(|known| known.heard);
        // Whatever it gave before it heard that is in its answer.
        if self.status() == unasked && heard == Some(unasked) && self.leases.len() == 0 {
            self.known = None;
            tracing::debug!(
                capacity = self.next_capacity(),
                "another session, for the last leases"
            );
        }
    }

    /// The status to tell.
    pub(super) fn status(&self) -> rw::BotStatus {
        match (&self.drain, &self.problem) {
            (Some(_), _) => rw::BotStatus::BotTerminating,
            (None, Some(_)) => rw::BotStatus::Unhealthy,
            // The server gives nothing then, and thinks no ill of us.
            (None, None) if self.is_outgrown() => rw::BotStatus::Unspecified,
            (None, None) => rw::BotStatus::Ok,
        }
    }

    /// Whether to take what a reply leases.
    pub(super) fn admission(&self) -> Admission {
        match (&self.drain, &self.problem) {
            (Some(_), _) => Admission::Closed("worker is shutting down".to_owned()),
            (None, Some(why)) => Admission::Closed(format!("the worker is unwell: {why}")),
            // What ended while the answer was on its way takes a place in the list, but none of those that may still be started.
            (None, None) => Admission::UpTo {
                held: self.capacity,
                new: self.more(),
            },
        }
    }

    /// Whether there is something to say at once.
    pub(super) fn has_news(&self) -> bool {
        let heard = self.known.as_ref().map(|known| known.heard);
        self.leases.has_news() || heard != Some(self.status())
    }

    /// Whether the server may take its time to answer an update, because nothing runs.
    pub(super) fn is_idle(&self) -> bool {
        self.status() == rw::BotStatus::Ok && self.leases.len() == 0 && self.capacity > 0
    }

    fn due(&self) -> Instant {
        let pacing = self.clock.pacing();
        if self.known.is_none() || self.has_news() {
            return self.clock.at_once();
        }
        match self.status() {
            rw::BotStatus::Ok if self.leases.len() < self.capacity => self.clock.next_poll(),
            rw::BotStatus::Ok => self.clock.after(pacing.full_interval),
            rw::BotStatus::BotTerminating => self.clock.after(pacing.terminating_interval),
            _ if self.leases.len() == 0 => self.clock.after(pacing.unwell_interval),
            _ => self.clock.after(pacing.full_interval),
        }
    }

    /// When a draining worker leaves, whether the server has heard of it or not.
    pub(super) fn leaves_at(&self) -> Option<Instant> {
        Some(self.at_rest? + self.config.pacing.drain_patience)
    }

    /// Ends the task if a drain is complete or has waited long enough.
    fn drained(&mut self) -> ControlFlow<()> {
        if self.drain.is_none() || self.leases.running() > 0 {
            self.at_rest = None;
            return ControlFlow::Continue(());
        }
        self.at_rest.get_or_insert_with(Instant::now);
        let told = match &self.known {
            None => true,
            Some(known) => known.heard == rw::BotStatus::BotTerminating && self.leases.len() == 0,
        };
        if !told
            && self
                .leaves_at()
                .is_none_or(|leaves| leaves > Instant::now())
        {
            return ControlFlow::Continue(());
        }
        if told {
            tracing::info!(bot = %self.bot_id, "drained");
            self.emit(Event::Drained);
        } else {
            let unreported = self.leases.len();
            tracing::warn!(
                bot = %self.bot_id,
                unreported,
                "leaving although {} does not answer; it gives our leases to others when the session expires",
                self.config.endpoint
            );
            self.emit(Event::LeftUnheard { unreported });
        }
        ControlFlow::Break(())
    }

    pub(super) fn emit(&mut self, event: Event) {
        self.taken += u64::from(matches!(event, Event::Lease(_)));
        // Nobody listens only while everything is being taken down.
        let _ = self.events.send(event);
    }
}
