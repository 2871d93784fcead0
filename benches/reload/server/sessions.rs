//! Jobs, bot sessions and leases, by BuildGrid 0.9.1's rules; nothing here waits.
//!
//! A job goes to a bot that has a free slot and a poll open, or that opens one. It is in the
//! session from that moment, so a lost reply is made good by the version: a bot that comes with
//! an older one is sent the whole list again, and one that leaves a lease out under the current
//! version has dropped it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use boxwright::reapi::Digest;
use boxwright::reapi::proto::rw;
use bytes::Bytes;
use tokio::sync::Notify;
use tonic::{Code, Status};

use super::jobs::Job;

struct Held {
    job: Arc<Job>,
    dropped: bool,
}

struct Bot {
    id: String,
    capacity: usize,
    status: i32,
    version: u64,
    leases: Vec<Held>,
    polls: Vec<(u64, Arc<Notify>)>,
    seen: Instant,
}

impl Bot {
    fn free(&self) -> usize {
        if self.status == rw::BotStatus::Ok as i32 {
            self.capacity.saturating_sub(self.leases.len())
        } else {
            0
        }
    }

    /// Takes jobs into free slots; whether it took any.
    fn fill(&mut self, queue: &mut VecDeque<Arc<Job>>) -> bool {
        let mut any = false;
        while self.free() > 0
            && let Some(job) = queue.pop_front()
        {
            job.assigned();
            self.leases.push(Held {
                job,
                dropped: false,
            });
            any = true;
        }
        self.version += u64::from(any);
        any
    }

    fn reply(&self, name: &str) -> Reply {
        let kept = self.leases.iter().filter(|held| !held.dropped);
        Reply {
            name: name.to_owned(),
            version: self.version,
            leases: kept.map(|held| held.job.clone()).collect(),
        }
    }
}

#[derive(Default)]
struct State {
    queue: VecDeque<Arc<Job>>,
    jobs: HashMap<String, Arc<Job>>,
    /// Jobs that were over at the last sweep.
    over: Vec<String>,
    bots: HashMap<String, Bot>,
    names: HashMap<String, String>,
    /// Sessions with an open poll, the longest waiting first.
    idle: VecDeque<String>,
    polls: u64,
}

/// What a bot is told.
pub(super) struct Reply {
    pub(super) name: String,
    pub(super) version: u64,
    pub(super) leases: Vec<Arc<Job>>,
}

/// Whether a bot is answered at once.
pub(super) enum Next {
    Now(Reply),
    /// After the notification, or when the caller's patience ends.
    Wait(u64, Arc<Notify>),
}

pub(super) struct Sessions {
    state: Mutex<State>,
    pub(super) keepalive: Duration,
}

impl Sessions {
    pub(super) fn new(keepalive: Duration) -> Sessions {
        Sessions {
            state: Mutex::default(),
            keepalive,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("sessions")
    }

    /// Queues an action; it goes to a waiting bot at once if there is one.
    pub(super) fn submit(&self, instance: &str, digest: Digest, action: Bytes) -> Arc<Job> {
        let job = Arc::new(Job::new(instance, digest, action));
        let mut state = self.state();
        state.jobs.insert(job.id.clone(), job.clone());
        state.queue.push_back(job.clone());
        hand_out(&mut state);
        job
    }

    pub(super) fn job(&self, id: &str) -> Option<Arc<Job>> {
        self.state().jobs.get(id).cloned()
    }

    /// Opens a session, closing the one that the same bot had.
    pub(super) fn create(
        &self,
        parent: &str,
        session: &rw::BotSession,
        patient: bool,
    ) -> Result<(String, Next), Status> {
        if session.bot_id.is_empty() {
            return Err(Status::invalid_argument("bot_id is empty"));
        }
        let configs = session.worker.iter().flat_map(|worker| &worker.configs);
        let capacity = match configs.into_iter().find(|config| config.key == "capacity") {
            None => 1,
            Some(config) => config
                .value
                .parse()
                .map_err(|_| Status::internal("capacity is not a number"))?,
        };
        let name = format!("{parent}/{}", uuid::Uuid::new_v4());
        let mut state = self.state();
        if let Some(old) = state.names.insert(session.bot_id.clone(), name.clone()) {
            close(&mut state, &old, "it was created again");
        }
        let bot = Bot {
            id: session.bot_id.clone(),
            capacity,
            status: session.status,
            version: 0,
            leases: Vec::new(),
            polls: Vec::new(),
            seen: Instant::now(),
        };
        state.bots.insert(name.clone(), bot);
        let next = next(&mut state, &name, patient, false);
        Ok((name, next))
    }

    /// Takes what a bot tells of its leases.
    pub(super) fn update(
        &self,
        name: &str,
        session: rw::BotSession,
        patient: bool,
    ) -> Result<Next, Status> {
        let theirs: u64 = match session.version.as_str() {
            "" => 0,
            text => text
                .parse()
                .map_err(|_| Status::internal("version is not a number"))?,
        };
        let mut state = self.state();
        let Some(bot) = state.bots.get_mut(name) else {
            return Err(Status::invalid_argument(
                "Bot does not exist while validating leases",
            ));
        };
        if bot.id != session.bot_id {
            return Err(Status::invalid_argument("Mismatch of bot_id and name"));
        }
        bot.seen = Instant::now();
        bot.status = session.status;
        let current = theirs == bot.version;
        let legal = [rw::LeaseState::Active, rw::LeaseState::Completed];
        let ours = |id: &str| bot.leases.iter().any(|held| held.job.lease_id == id);
        let mut illegal = session.leases.iter();
        let illegal = illegal.find(|lease| !legal.contains(&lease.state()) && ours(&lease.id));
        if let Some(lease) = illegal
            && !current
        {
            let why = format!("lease {} came back as {:?}", lease.id, lease.state());
            close(&mut state, name, &why);
            return Err(Status::data_loss(why));
        }
        for held in &mut bot.leases {
            let told = session
                .leases
                .iter()
                .any(|lease| lease.id == held.job.lease_id);
            if current && !told && !held.dropped {
                eprintln!("bot {} dropped lease {}", bot.id, held.job.lease_id);
            }
            held.dropped = current && (held.dropped || !told);
        }
        let mut moved = !current;
        let mut again = Vec::new();
        for lease in session.leases {
            let place = bot
                .leases
                .iter()
                .position(|held| held.job.lease_id == lease.id);
            let (rw::LeaseState::Completed, Some(place)) = (lease.state(), place) else {
                continue;
            };
            let job = bot.leases.remove(place).job;
            bot.version += 1;
            moved = true;
            let status = lease.status.unwrap_or_default();
            let retried = [Code::Internal as i32, Code::Unavailable as i32];
            if retried.contains(&status.code) && job.has_attempts_left() {
                eprintln!("lease {}: {}; queued again", job.lease_id, status.message);
                again.push(job);
            } else {
                job.complete(status, lease.result);
            }
        }
        let requeued = !again.is_empty();
        for job in again.into_iter().rev() {
            state.queue.push_front(job);
        }
        let next = next(&mut state, name, patient, moved);
        if requeued {
            hand_out(&mut state);
        }
        Ok(next)
    }

    /// A poll is over: woken, out of time, or the bot hung up. None if the session is closed.
    pub(super) fn poll_over(&self, name: &str, poll: u64) -> Option<Reply> {
        let mut state = self.state();
        let State { bots, idle, .. } = &mut *state;
        let bot = bots.get_mut(name)?;
        bot.polls.retain(|(id, _)| *id != poll);
        bot.seen = Instant::now();
        if bot.polls.is_empty() {
            idle.retain(|other| other != name);
        }
        Some(bot.reply(name))
    }

    /// Takes a job out of the queue, or out of its bot's next reply; false if there is none.
    pub(super) fn cancel(&self, id: &str) -> bool {
        let mut state = self.state();
        let Some(job) = state.jobs.get(id).cloned() else {
            return false;
        };
        state.queue.retain(|other| !Arc::ptr_eq(other, &job));
        for bot in state.bots.values_mut() {
            let before = bot.leases.len();
            bot.leases.retain(|held| !Arc::ptr_eq(&held.job, &job));
            bot.version += u64::from(bot.leases.len() != before);
        }
        job.fail(Code::Cancelled, "cancelled");
        true
    }

    /// Closes silent sessions, and forgets the jobs that were over at the last sweep already.
    pub(super) fn sweep(&self) {
        let mut state = self.state();
        let silent: Vec<String> = state
            .bots
            .iter()
            .filter(|(_, bot)| bot.polls.is_empty() && bot.seen.elapsed() > self.keepalive)
            .map(|(name, _)| name.clone())
            .collect();
        for name in silent {
            close(&mut state, &name, "no update in time");
        }
        for id in std::mem::take(&mut state.over) {
            state.jobs.remove(&id);
        }
        let over = state.jobs.values().filter(|job| job.ended().is_some());
        state.over = over.map(|job| job.id.clone()).collect();
    }
}

/// Gives queued jobs to bots that wait.
fn hand_out(state: &mut State) {
    let State {
        queue, bots, idle, ..
    } = state;
    while !queue.is_empty()
        && let Some(name) = idle.pop_front()
    {
        if let Some(bot) = bots.get_mut(&name)
            && !bot.polls.is_empty()
            && bot.fill(queue)
        {
            for (_, poll) in bot.polls.drain(..) {
                poll.notify_one();
            }
        }
    }
}

fn next(state: &mut State, name: &str, patient: bool, moved: bool) -> Next {
    let State {
        queue,
        bots,
        idle,
        polls,
        ..
    } = state;
    let bot = bots.get_mut(name).expect("a session that was just found");
    let got = bot.fill(queue);
    if got || moved || !patient || bot.free() == 0 {
        return Next::Now(bot.reply(name));
    }
    *polls += 1;
    let woken = Arc::new(Notify::new());
    bot.polls.push((*polls, woken.clone()));
    idle.push_back(name.to_owned());
    Next::Wait(*polls, woken)
}

/// Ends a session; its leases run elsewhere.
fn close(state: &mut State, name: &str, why: &str) {
    let Some(bot) = state.bots.remove(name) else {
        return;
    };
    eprintln!("session {name} of bot {} closed: {why}", bot.id);
    if state
        .names
        .get(&bot.id)
        .is_some_and(|current| current == name)
    {
        state.names.remove(&bot.id);
    }
    for (_, poll) in bot.polls {
        poll.notify_one();
    }
    for held in bot.leases.into_iter().rev() {
        if held.job.has_attempts_left() {
            state.queue.push_front(held.job);
        } else {
            held.job.fail(Code::Unavailable, why);
        }
    }
    hand_out(state);
}
