//! One call to the server, and what its answer means.
//!
//! There is never more than one call. A call that tells of no end may be dropped when there is
//! something to say: a server that was about to answer it sees the old version again and says its
//! list again. A call that tells of an end is waited for, and repeated as it was if it failed.

use std::error::Error;
use std::ops::ControlFlow;

use tokio::time::{Instant, sleep_until};
use tonic::{Code, Request, Response, Status};

use super::identity;
use super::leases::Echo;
use super::metadata;
use super::refusal::{self, Verdict};
use super::session::{Known, Session};
use crate::reapi::proto::rw;
use crate::scheduler::Event;

impl Session {
    /// Creates the session. Its status is left unset: with OK the server would wait for work right
    /// here, and hand it out without the trailers.
    pub(super) async fn create(&mut self) -> ControlFlow<()> {
        self.capacity = self.next_capacity();
        let session = self.message(rw::BotStatus::Unspecified, Echo::default().leases);
        let mut request = Request::new(rw::CreateBotSessionRequest {
            parent: self.config.instance.clone(),
            bot_session: Some(session),
        });
        request.set_timeout(self.clock.deadline());
        metadata::add_identity(request.metadata_mut(), &self.bot_id);
        self.clock.asks();
        let mut client = self.client.clone();
        let call = client.create_bot_session(request);
        tokio::pin!(call);
        let answer = loop {
            tokio::select! {
                answer = &mut call => break answer,
                note = self.note() => self.take_or_end(note)?,
            }
            if self.status() == rw::BotStatus::BotTerminating {
                return ControlFlow::Continue(());
            }
        };
        match answer {
            Ok(response) => self.created(response),
            Err(status) => {
                let verdict = refusal::of_create(&status, &self.config, !self.admitted);
                self.judge(&status, verdict)
            }
        }
    }

    fn created(&mut self, response: Response<rw::BotSession>) -> ControlFlow<()> {
        self.in_reach();
        let (trailers, reply, _) = response.into_parts();
        if reply.name.is_empty() {
            let status = Status::internal("the server gave the session no name");
            return self.judge(&status, Verdict::Again(None));
        }
        tracing::info!(
            session = %reply.name,
            bot = %self.bot_id,
            scheduler = %self.config.endpoint,
            capacity = self.capacity,
            "bot session created"
        );
        self.refused = false;
        self.admitted = true;
        self.known = Some(Known {
            name: reply.name,
            version: reply.version,
            heard: rw::BotStatus::Unspecified,
        });
        let about = metadata::about(&trailers, reply.leases.len());
        let admission = self.admission();
        let adopted = self
            .leases
            .adopt(reply.leases, about, &Default::default(), true, &admission);
        adopted
            .events
            .into_iter()
            .for_each(|event| self.emit(event));
        ControlFlow::Continue(())
    }

    /// Says what there is to say, and listens.
    pub(super) async fn update(&mut self) -> ControlFlow<()> {
        let Echo { leases, ends } = self.leases.echo();
        let status = self.status();
        let session = self.message(status, leases);
        let mut request = Request::new(rw::UpdateBotSessionRequest {
            name: session.name.clone(),
            bot_session: Some(session),
            update_mask: None,
        });
        request.set_timeout(if self.is_idle() {
            self.clock.idle_deadline()
        } else if ends.is_empty() && self.leases.len() > 0 {
            self.clock.busy_deadline()
        } else {
            self.clock.deadline()
        });
        metadata::add_identity(request.metadata_mut(), &self.bot_id);
        metadata::add_progress(request.metadata_mut(), self.leases.in_progress());
        self.clock.asks();
        let mut client = self.client.clone();
        let call = client.update_bot_session(request);
        tokio::pin!(call);
        let answer = loop {
            let leaves = self.leaves_at();
            tokio::select! {
                answer = &mut call => break answer,
                note = self.note() => self.take_or_end(note)?,
                () = sleep_until(leaves.unwrap_or_else(Instant::now)), if leaves.is_some() => {
                    return ControlFlow::Continue(());
                }
            }
            // `status` is on its way: only what differs from it is news.
            if ends.is_empty() && (self.leases.has_news() || self.status() != status) {
                return ControlFlow::Continue(());
            }
        };
        match answer {
            Ok(response) => {
                self.updated(response, status, &ends);
                ControlFlow::Continue(())
            }
            Err(status) => {
                let verdict = refusal::of_update(&status);
                if verdict == Verdict::TooLarge {
                    self.leases.too_large(&ends);
                }
                self.judge(&status, verdict)
            }
        }
    }

    fn updated(
        &mut self,
        response: Response<rw::BotSession>,
        status: rw::BotStatus,
        ends: &std::collections::HashSet<String>,
    ) {
        self.in_reach();
        let (trailers, reply, _) = response.into_parts();
        let about = metadata::about(&trailers, reply.leases.len());
        let admission = self.admission();
        let moved = self.known.as_ref().map(|known| &known.version) != Some(&reply.version);
        let adopted = self
            .leases
            .adopt(reply.leases, about, ends, moved, &admission);
        if let Some(known) = &mut self.known {
            known.heard = status;
            // BuildGrid looks at a list only if its version is not the current one. If it overlooked
            // an end, the version of no list makes it look.
            known.version = match adopted.ignored {
                true => String::new(),
                false => reply.version,
            };
        }
        self.clock.answered(adopted.news);
        adopted
            .events
            .into_iter()
            .for_each(|event| self.emit(event));
    }

    fn message(&self, status: rw::BotStatus, leases: Vec<rw::Lease>) -> rw::BotSession {
        let (name, version) = match &self.known {
            Some(known) => (known.name.clone(), known.version.clone()),
            None => Default::default(),
        };
        rw::BotSession {
            name,
            bot_id: self.bot_id.clone(),
            status: status as i32,
            worker: Some(identity::worker(&self.bot_id, &self.config, self.capacity)),
            leases,
            expire_time: None,
            version,
        }
    }

    /// Does what a failed call asks for.
    fn judge(&mut self, status: &Status, verdict: Verdict) -> ControlFlow<()> {
        let busy = self.leases.len() > 0;
        match verdict {
            Verdict::Again(delay) => self.retry(status, busy, false, delay),
            Verdict::Refused(text) => {
                if !std::mem::replace(&mut self.refused, true) {
                    tracing::error!(
                        "{text}. It took this worker before, so it is asked again until it does"
                    );
                }
                self.retry(status, busy, false, None);
            }
            Verdict::Slow => self.retry(status, busy, true, None),
            Verdict::TooLarge => self.retry(status, busy, false, None),
            Verdict::NotAdmitted => {
                let delay = self.config.pacing.not_admitted;
                self.retry(status, busy, false, Some(delay));
            }
            Verdict::Lost => {
                tracing::warn!(
                    session = self.known.as_ref().map_or("", |known| &known.name),
                    running = self.leases.running(),
                    "the scheduler has dropped the bot session ({}); creating a new one",
                    describe(status)
                );
                self.known = None;
                self.leases = Default::default();
                self.epoch += 1;
                self.in_reach();
                self.clock.lost();
                self.emit(Event::SessionLost);
            }
            Verdict::Fatal(text) => {
                tracing::error!("{text}");
                self.emit(Event::Fatal(text));
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// Waits before the next call. Only the first failure of a row is a change of state, and logged as such.
    fn retry(
        &mut self,
        status: &Status,
        busy: bool,
        slow: bool,
        asked_for: Option<std::time::Duration>,
    ) {
        let delay = self.clock.failed(busy, slow, asked_for);
        if self.status() == rw::BotStatus::BotTerminating {
            self.clock.hurry(self.config.pacing.terminating_interval);
        }
        let what = describe(status);
        // One late answer is not worth a word.
        let once = slow && self.clock.failures() == 1;
        if once || self.out_of_reach.is_some() {
            tracing::debug!(?delay, "no answer from the scheduler: {what}");
            return;
        }
        self.out_of_reach = Some(Instant::now());
        let endpoint = &self.config.endpoint;
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => tracing::error!(
                "the scheduler at {endpoint} does not let this worker in ({what}); \
                 check its credentials. Trying again every {delay:?}"
            ),
            _ if slow || refusal::is_silence(status) => {
                tracing::warn!("the scheduler at {endpoint} does not answer ({what}); trying again")
            }
            _ => {
                tracing::warn!(
                    "the scheduler at {endpoint} refuses our calls ({what}); trying again"
                )
            }
        }
    }

    fn in_reach(&mut self) {
        if let Some(since) = self.out_of_reach.take() {
            let seconds = since.elapsed().as_secs_f32();
            tracing::info!(
                "the scheduler at {} answers again after {seconds:.1} s",
                self.config.endpoint
            );
        }
    }
}

/// A status in one line, with what lies beneath it.
fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = status.source();
    while let Some(error) = source {
        let error_text = error.to_string();
        if !text.contains(&error_text) {
            text.push_str(": ");
            text.push_str(&error_text);
        }
        source = error.source();
    }
    text.chars().take(1000).collect()
}
