//! The leases of a session as the server gave them last, and what became of them since.
//!
//! The list changes in two ways only. An action ends: its lease turns COMPLETED and is told so,
//! unchanged, until the server stops listing it. A reply arrives: its list replaces ours as a
//! whole. A reply that never arrives changes nothing, and the old version that goes with the old
//! list makes the server say it all again.

use std::collections::{HashMap, HashSet};

use prost_types::Any;
use tonic::Code;

use super::metadata::About;
use super::payload;
use super::status::Report;
use crate::reapi::proto::{re, rw};
use crate::scheduler::{Event, LeaseId};

/// All results of one update, in bytes. gRPC servers refuse messages over 4 MiB unless told otherwise; what does not fit goes
/// with the next update.
const RESULTS_LIMIT: usize = 2 << 20;

/// Whether new leases are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// As long as there are fewer than `held`, those included that have ended and are still listed; and at most `new` of them.
    UpTo { held: usize, new: usize },
    /// None; they go back with this explanation.
    Closed(String),
}

/// What the next update says of the leases.
#[derive(Debug, Default)]
pub(super) struct Echo {
    pub(super) leases: Vec<rw::Lease>,
    /// Those of them that are COMPLETED.
    pub(super) ends: HashSet<LeaseId>,
}

/// What a reply changed.
#[derive(Debug, Default)]
pub(super) struct Adopted {
    pub(super) events: Vec<Event>,
    /// Whether it told anything new.
    pub(super) news: bool,
    /// Whether it still lists a lease that the update had as COMPLETED: the server did not look.
    pub(super) ignored: bool,
}

#[derive(Debug)]
struct Held {
    id: LeaseId,
    payload: Option<Any>,
    metadata: re::ExecutedActionMetadata,
    state: State,
}

#[derive(Debug)]
enum State {
    Running,
    Ended { report: Report, told: bool },
}

#[derive(Debug, Default)]
pub(super) struct Leases {
    held: Vec<Held>,
    /// A result was too large in company: they go one by one.
    singly: bool,
}

impl Leases {
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn running(&self) -> usize {
        self.held
            .iter()
            .filter(|held| matches!(held.state, State::Running))
            .count()
    }

    /// Whether an end is waiting that no answered update has told.
    pub(super) fn has_news(&self) -> bool {
        self.held
            .iter()
            .any(|held| matches!(held.state, State::Ended { told: false, .. }))
    }

    /// Ends a running lease. One that is not held, or has ended already, is left as it is.
    pub(super) fn end(&mut self, id: &str, report: Report) -> bool {
        let running = self
            .held
            .iter_mut()
            .find(|held| held.id == id && matches!(held.state, State::Running));
        match running {
            Some(held) => {
                held.state = State::Ended {
                    report,
                    told: false,
                };
                true
            }
            None => false,
        }
    }

    /// Notes how far a running lease has come.
    pub(super) fn progress(&mut self, id: &str, metadata: re::ExecutedActionMetadata) {
        if let Some(held) = self.held.iter_mut().find(|held| held.id == id) {
            held.metadata = metadata;
        }
    }

    /// Running leases of which more is known than nothing.
    pub(super) fn in_progress(&self) -> impl Iterator<Item = (&str, &re::ExecutedActionMetadata)> {
        self.held
            .iter()
            .filter(|held| matches!(held.state, State::Running))
            .filter(|held| held.metadata != re::ExecutedActionMetadata::default())
            .map(|held| (held.id.as_str(), &held.metadata))
    }

    /// The list for the next update. The payload stays in every echo, as BuildBox's worker has it.
    pub(super) fn echo(&self) -> Echo {
        let mut echo = Echo::default();
        let mut size = 0;
        for held in &self.held {
            let mut lease = rw::Lease {
                id: held.id.clone(),
                payload: held.payload.clone(),
                state: rw::LeaseState::Active as i32,
                ..Default::default()
            };
            if let State::Ended { report, .. } = &held.state {
                size += report.size();
                if echo.ends.is_empty() || (size <= RESULTS_LIMIT && !self.singly) {
                    lease.state = rw::LeaseState::Completed as i32;
                    lease.status = Some(report.status.clone());
                    lease.result = report.result.clone();
                    echo.ends.insert(held.id.clone());
                }
            }
            echo.leases.push(lease);
        }
        echo
    }

    /// The server will not take an update with these ends because it is too large. Tries them one
    /// by one; one that is too large alone is failed, since it could never be told.
    pub(super) fn too_large(&mut self, ends: &HashSet<LeaseId>) {
        self.singly = true;
        if ends.len() > 1 {
            return;
        }
        for held in self.held.iter_mut().filter(|held| ends.contains(&held.id)) {
            if let State::Ended { report, .. } = &mut held.state {
                let message = format!(
                    "the action ended, but its result of {} bytes is larger than the scheduler takes; \
                     declare fewer outputs, or directories instead of single files",
                    report.size()
                );
                tracing::warn!(lease = %held.id, "{message}");
                *report = Report::failed(Code::FailedPrecondition, message);
            }
        }
    }

    /// Replaces the list by a reply's. `ends` are those that the answered update told, `moved` says
    /// whether the reply's version is another than the update's, `about` is what the trailers say,
    /// lease by lease.
    ///
    /// Completions move the version. If it moved, all ends are acknowledged, and an id that is
    /// still listed was leased to us once more: BuildGrid names a lease after its job, and gives one
    /// that ended with UNAVAILABLE to whoever has room. If it did not move, the server did not look.
    pub(super) fn adopt(
        &mut self,
        reply: Vec<rw::Lease>,
        about: Vec<About>,
        ends: &HashSet<LeaseId>,
        moved: bool,
        admission: &Admission,
    ) -> Adopted {
        let mut adopted = Adopted::default();
        let mut new = Vec::new();
        let mut before: HashMap<LeaseId, Held> = std::mem::take(&mut self.held)
            .into_iter()
            .map(|held| (held.id.clone(), held))
            .collect();
        if moved {
            before.retain(|id, _| !ends.contains(id));
            adopted.news |= !ends.is_empty();
        }
        let mut seen = HashSet::new();
        let kept = reply
            .iter()
            .filter(|lease| before.contains_key(&lease.id))
            .count();
        let mut room = match admission {
            Admission::UpTo { held, new } => Ok(held.saturating_sub(kept).min(*new)),
            Admission::Closed(why) => Err(why.as_str()),
        };
        let mut about = about.into_iter();
        for lease in reply {
            let about = about.next().unwrap_or_default();
            if !seen.insert(lease.id.clone()) {
                tracing::warn!(lease = %lease.id, "the scheduler lists a lease twice");
                continue;
            }
            match before.remove(&lease.id) {
                Some(held) => self.keep(held, &lease, ends, &mut adopted),
                None => self.take(lease, about, &mut room, &mut new, &mut adopted),
            }
        }
        for held in before.into_values() {
            adopted.news = true;
            match held.state {
                State::Running => adopted.events.push(Event::Revoked(held.id)),
                State::Ended { .. } if !ends.contains(&held.id) => {
                    tracing::debug!(lease = %held.id, "revoked before its end could be told");
                }
                State::Ended { .. } => {}
            }
        }
        self.singly &= self.has_news();
        adopted.events.extend(new);
        adopted
    }

    fn keep(
        &mut self,
        mut held: Held,
        lease: &rw::Lease,
        ends: &HashSet<LeaseId>,
        adopted: &mut Adopted,
    ) {
        match (&mut held.state, lease.state()) {
            (State::Ended { .. }, rw::LeaseState::Completed) => {
                adopted.news = true;
                return;
            }
            (State::Ended { told, .. }, _) => {
                if ends.contains(&held.id) {
                    *told = true;
                    adopted.ignored = true;
                }
            }
            (State::Running, rw::LeaseState::Completed) => {
                adopted.news = true;
                adopted.events.push(Event::Revoked(held.id));
                return;
            }
            (State::Running, rw::LeaseState::Cancelled) => {
                adopted.news = true;
                adopted.events.push(Event::Revoked(held.id.clone()));
                held.state = cancelled();
            }
            (State::Running, _) => {}
        }
        self.held.push(held);
    }

    fn take(
        &mut self,
        lease: rw::Lease,
        about: About,
        room: &mut Result<usize, &str>,
        new: &mut Vec<Event>,
        adopted: &mut Adopted,
    ) {
        adopted.news = true;
        let state = match (lease.state(), &mut *room) {
            (rw::LeaseState::Completed, _) => return,
            (rw::LeaseState::Cancelled, _) => cancelled(),
            (_, Err(why)) => given_back(why),
            (_, Ok(0)) => {
                tracing::warn!(lease = %lease.id, "the scheduler leases beyond our capacity");
                given_back("the worker has no free slot")
            }
            (_, Ok(room)) => match payload::read(&lease, about) {
                Ok(read) => {
                    *room -= 1;
                    new.push(Event::Lease(Box::new(read)));
                    State::Running
                }
                Err(report) => {
                    tracing::warn!(lease = %lease.id, "refused: {}", report.status.message);
                    State::Ended {
                        report,
                        told: false,
                    }
                }
            },
        };
        self.held.push(Held {
            id: lease.id,
            payload: lease.payload,
            metadata: re::ExecutedActionMetadata::default(),
            state,
        });
    }
}

/// The answer to CANCELLED, a state that only the server may use.
fn cancelled() -> State {
    State::Ended {
        report: Report::failed(Code::Cancelled, "the lease was cancelled"),
        told: false,
    }
}

/// UNAVAILABLE: the scheduler gives the lease to another worker.
fn given_back(why: &str) -> State {
    State::Ended {
        report: Report::failed(Code::Unavailable, why),
        told: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::any::pack;

    const UP_TO_FOUR: Admission = Admission::UpTo { held: 4, new: 4 };

    fn lease(id: &str) -> rw::Lease {
        rw::Lease {
            id: id.into(),
            payload: Some(pack(&re::Action::default())),
            state: rw::LeaseState::Active as i32,
            ..Default::default()
        }
    }

    fn adopt(leases: &mut Leases, ids: &[&str], ends: &HashSet<LeaseId>) -> Adopted {
        answered(leases, ids, ends, true)
    }

    fn answered(
        leases: &mut Leases,
        ids: &[&str],
        ends: &HashSet<LeaseId>,
        moved: bool,
    ) -> Adopted {
        let reply: Vec<_> = ids.iter().map(|id| lease(id)).collect();
        let about = vec![About::default(); reply.len()];
        leases.adopt(reply, about, ends, moved, &UP_TO_FOUR)
    }

    fn names(events: &[Event]) -> Vec<String> {
        events
            .iter()
            .map(|event| match event {
                Event::Lease(lease) => format!("+{}", lease.id),
                Event::Revoked(id) => format!("-{id}"),
                other => format!("{other:?}"),
            })
            .collect()
    }

    fn ok() -> Report {
        super::super::status::report(crate::action::Finished {
            ending: crate::action::Ending::Exited(0),
            result: Some(re::ActionResult::default()),
            message: String::new(),
            cacheable: true,
            details: Vec::new(),
            logs: Vec::new(),
            inputs: None,
        })
    }

    #[test]
    fn the_reply_s_list_replaces_ours() {
        let mut leases = Leases::default();
        let first = adopt(&mut leases, &["a", "b", "b"], &HashSet::new());
        assert_eq!(names(&first.events), ["+a", "+b"]);
        let second = adopt(&mut leases, &["b", "c"], &HashSet::new());
        assert_eq!(names(&second.events), ["-a", "+c"]);
        assert!(second.news);
        let third = adopt(&mut leases, &["b", "c"], &HashSet::new());
        assert!(!third.news && third.events.is_empty());
    }

    #[test]
    fn an_end_is_told_until_the_server_lists_it_no_more() {
        let mut leases = Leases::default();
        adopt(&mut leases, &["a", "b"], &HashSet::new());
        assert!(leases.end("a", ok()));
        assert!(!leases.end("a", Report::failed(Code::Internal, "again")));
        assert!(!leases.end("x", ok()));
        assert!(leases.has_news());
        let first = leases.echo();
        assert_eq!(first.leases[0].state(), rw::LeaseState::Completed);
        assert!(first.leases[0].payload.is_some() && first.leases[0].result.is_some());
        // The server did not look; the same goes again.
        let adopted = answered(&mut leases, &["a", "b"], &first.ends, false);
        assert!(adopted.ignored && !leases.has_news());
        assert_eq!(leases.echo().leases, first.leases);
        let adopted = adopt(&mut leases, &["b"], &first.ends);
        assert!(adopted.news && adopted.events.is_empty());
        assert_eq!(leases.len(), 1);
    }

    #[test]
    fn a_lease_that_was_given_back_may_come_again_at_once() {
        let mut leases = Leases::default();
        adopt(&mut leases, &["a"], &HashSet::new());
        leases.end("a", Report::failed(Code::Unavailable, "x"));
        let ends = leases.echo().ends;
        let adopted = answered(&mut leases, &["a"], &ends, true);
        assert_eq!(names(&adopted.events), ["+a"]);
        assert!(adopted.news && !adopted.ignored);
        assert_eq!((leases.running(), leases.len()), (1, 1));
    }

    #[test]
    fn a_lease_that_is_shown_as_cancelled_or_completed_is_over() {
        let mut leases = Leases::default();
        adopt(&mut leases, &["a", "b"], &HashSet::new());
        let states = |state: rw::LeaseState, id: &str| rw::Lease {
            state: state as i32,
            ..lease(id)
        };
        let reply = vec![
            states(rw::LeaseState::Cancelled, "a"),
            states(rw::LeaseState::Completed, "b"),
            states(rw::LeaseState::Cancelled, "c"),
            states(rw::LeaseState::Completed, "d"),
        ];
        let about = vec![About::default(); 4];
        let adopted = leases.adopt(reply, about, &HashSet::new(), true, &UP_TO_FOUR);
        assert_eq!(names(&adopted.events), ["-a", "-b"]);
        let echo = leases.echo();
        assert_eq!(echo.ends, HashSet::from(["a".to_owned(), "c".to_owned()]));
        for lease in &echo.leases {
            assert_eq!(lease.state(), rw::LeaseState::Completed);
            assert_eq!(lease.status.as_ref().unwrap().code, Code::Cancelled as i32);
        }
    }

    #[test]
    fn what_cannot_be_run_goes_back() {
        let mut leases = Leases::default();
        let ids = ["a", "b", "c", "d", "e"];
        let adopted = adopt(&mut leases, &ids, &HashSet::new());
        assert_eq!(names(&adopted.events).len(), 4);
        assert_eq!(leases.echo().leases[4].status.as_ref().unwrap().code, 14);
        let mut leases = Leases::default();
        let closed = Admission::Closed("worker is shutting down".into());
        let about = vec![About::default()];
        let adopted = leases.adopt(vec![lease("a")], about, &HashSet::new(), true, &closed);
        assert!(adopted.events.is_empty() && leases.has_news());
        let status = leases.echo().leases[0].status.clone().unwrap();
        assert_eq!(
            (status.code, status.message.as_str()),
            (14, "worker is shutting down")
        );
    }

    #[test]
    fn results_travel_in_portions_that_a_server_takes() {
        let mut leases = Leases::default();
        adopt(&mut leases, &["a", "b", "c"], &HashSet::new());
        for id in ["a", "b", "c"] {
            let mut report = ok();
            report.result.as_mut().unwrap().value = vec![0; RESULTS_LIMIT / 2 + 1];
            leases.end(id, report);
        }
        let echo = leases.echo();
        assert_eq!(echo.ends.len(), 1);
        assert_eq!(echo.leases[2].state(), rw::LeaseState::Active);
        // Even alone it is too large.
        leases.too_large(&echo.ends);
        let again = leases.echo();
        assert_eq!(again.ends, echo.ends);
        assert_eq!(again.leases[0].result, None);
        assert_eq!(again.leases[0].status.as_ref().unwrap().code, 9);
        adopt(&mut leases, &["b", "c"], &again.ends);
        assert!(leases.has_news(), "the others are still to be told");
    }
}
