//! A Bots service for tests, in this process, that behaves as BuildGrid 0.9.1 was observed to:
//! versions that move with every assignment, completion and cancellation, lists that are checked
//! only if the version differs, long polls of 0.8 times the deadline that only an assignment wakes.
//! It writes down every call, and misbehaves where a test tells it to.
//!
//! Its connections are pipes within the process, so that a test may run in paused time.
#![allow(dead_code)] // each test file uses its own part

#[path = "trailing.rs"]
mod trailing;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use boxwright::reapi::any::pack;
use boxwright::reapi::proto::rw::bots_server::{Bots, BotsServer};
use boxwright::reapi::proto::{re, rw};
use parking_lot::Mutex;
use prost::Message;
use prost_types::Any;
use tokio::io::DuplexStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::transport::{Channel, Uri};
use tonic::{Request, Response, Status};
use trailing::{TRAILER, Trailing};

/// How often a job is tried.
const ATTEMPTS: u32 = 5;

/// How the server misbehaves, once.
pub(crate) enum Fault {
    /// The next update fails, and changes nothing.
    Refuse(Status),
    /// The next update is carried out, but its answer gets lost.
    Lose,
    /// The next update waits this long before it is looked at.
    Delay(Duration),
    /// The next answer is tampered with.
    Edit(fn(&mut rw::BotSession)),
}

/// A call as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) deadline: Option<Duration>,
    pub(crate) session: rw::BotSession,
    pub(crate) parent: String,
    pub(crate) headers: MetadataMap,
    /// Whether the bot hung up before the answer.
    pub(crate) dropped: bool,
}

impl Seen {
    pub(crate) fn lease(&self, id: &str) -> Option<&rw::Lease> {
        self.session.leases.iter().find(|lease| lease.id == id)
    }

    pub(crate) fn completes(&self, id: &str) -> bool {
        self.lease(id)
            .is_some_and(|lease| lease.state() == rw::LeaseState::Completed)
    }
}

#[derive(Clone, Debug)]
struct Job {
    id: String,
    payload: Option<Any>,
    about: re::ExecuteOperationMetadata,
    attempts: u32,
}

#[derive(Debug)]
struct Bot {
    bot_id: String,
    capacity: usize,
    status: rw::BotStatus,
    version: u64,
    leases: Vec<Job>,
    wake: Arc<Notify>,
}

/// What the server knows.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) creates: Vec<Seen>,
    pub(crate) updates: Vec<Seen>,
    /// Leases that ended, each as it was first accepted.
    pub(crate) completed: Vec<rw::Lease>,
    /// Connections that were asked for while the server was down.
    pub(crate) knocks: u32,
    bots: HashMap<String, Bot>,
    queue: VecDeque<Job>,
    faults: VecDeque<Fault>,
    create_faults: VecDeque<Status>,
    keepalive: Duration,
    numbers: u64,
    down: bool,
    wires: Vec<tokio::task::JoinHandle<()>>,
}

impl State {
    /// The completion of a lease that was accepted.
    pub(crate) fn completion(&self, id: &str) -> Option<&rw::Lease> {
        self.completed.iter().find(|lease| lease.id == id)
    }

    /// Whether the bot's last word was this.
    pub(crate) fn heard(&self, status: rw::BotStatus) -> bool {
        self.updates
            .last()
            .is_some_and(|seen| seen.session.status() == status)
    }

    /// Whether some bot holds this lease.
    pub(crate) fn holds(&self, id: &str) -> bool {
        self.bots
            .values()
            .any(|bot| bot.leases.iter().any(|job| job.id == id))
    }

    /// How often a job was leased, as long as it is not over.
    pub(crate) fn attempts(&self, id: &str) -> Option<u32> {
        let leased = self.bots.values().flat_map(|bot| &bot.leases);
        let mut jobs = self.queue.iter().chain(leased);
        Some(jobs.find(|job| job.id == id)?.attempts)
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Gives queued jobs to bots with room, as the real one's assigner does, whether they poll or not.
    fn assign(&mut self) {
        for bot in self.bots.values_mut() {
            while bot.status == rw::BotStatus::Ok && bot.leases.len() < bot.capacity {
                let Some(mut job) = self.queue.pop_front() else {
                    return;
                };
                job.attempts += 1;
                bot.leases.push(job);
                bot.version += 1;
                bot.wake.notify_one();
            }
        }
    }
}

/// The server, and the way to it.
#[derive(Clone)]
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    accept: mpsc::UnboundedSender<DuplexStream>,
}

impl Server {
    /// Starts one whose sessions last for 60 s. Must be called within a tokio runtime.
    pub(crate) fn start() -> Self {
        let (accept, incoming) = mpsc::unbounded_channel();
        let server = Server {
            state: Arc::new(Mutex::new(State {
                keepalive: Duration::from_secs(60),
                ..State::default()
            })),
            changed: Arc::default(),
            accept,
        };
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(Trailing(BotsServer::new(server.clone())))
                .serve_with_incoming(
                    UnboundedReceiverStream::new(incoming).map(Ok::<_, io::Error>),
                ),
        );
        server
    }

    /// Also serves on a socket, for tests of the real transport.
    pub(crate) fn listen(&self, path: &std::path::Path) {
        let listener = tokio::net::UnixListener::bind(path).unwrap();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(Trailing(BotsServer::new(self.clone())))
                .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener)),
        );
    }

    /// A channel to it, which connects again whenever it has to.
    pub(crate) fn channel(&self) -> Channel {
        let server = self.clone();
        tonic::transport::Endpoint::from_static("http://bots").connect_with_connector_lazy(
            tower::service_fn(move |_: Uri| {
                let server = server.clone();
                async move { server.connect().map(hyper_util::rt::TokioIo::new) }
            }),
        )
    }

    fn connect(&self) -> io::Result<DuplexStream> {
        let mut state = self.state.lock();
        if state.down {
            state.knocks += 1;
            self.changed.notify_waiters();
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (client, mut near) = tokio::io::duplex(1 << 16);
        let (mut far, server) = tokio::io::duplex(1 << 16);
        self.accept
            .send(server)
            .map_err(|_| io::ErrorKind::ConnectionRefused)?;
        state.wires.push(tokio::spawn(async move {
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        }));
        Ok(client)
    }

    /// Cuts every connection and takes no more, as a killed server would. What it knows is in a database.
    pub(crate) fn kill(&self) {
        let mut state = self.state.lock();
        state.down = true;
        state.wires.drain(..).for_each(|wire| wire.abort());
    }

    /// Takes connections again.
    pub(crate) fn revive(&self) {
        self.state.lock().down = false;
    }

    pub(crate) fn keepalive(&self, keepalive: Duration) {
        self.state.lock().keepalive = keepalive;
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.state.lock().faults.push_back(fault);
    }

    pub(crate) fn refuse_create(&self, status: Status) {
        self.state.lock().create_faults.push_back(status);
    }

    /// Queues an empty Action; returns its lease's id.
    pub(crate) fn submit(&self) -> String {
        self.submit_with(Some(pack(&re::Action::default())), Default::default())
    }

    /// Queues whatever is given, and says this of it.
    pub(crate) fn submit_with(
        &self,
        payload: Option<Any>,
        about: re::ExecuteOperationMetadata,
    ) -> String {
        let mut state = self.state.lock();
        let parent = state
            .creates
            .last()
            .map(|seen| seen.parent.clone())
            .unwrap_or_default();
        let id = format!("{parent}/6ba7b810-9dad-11d1-80b4-{:012}", state.number());
        state.queue.push_back(Job {
            id: id.clone(),
            payload,
            about,
            attempts: 0,
        });
        state.assign();
        drop(state);
        self.changed.notify_waiters();
        id
    }

    /// A client takes its action back. This wakes nobody.
    pub(crate) fn cancel(&self, id: &str) {
        let mut state = self.state.lock();
        state.queue.retain(|job| job.id != id);
        for bot in state.bots.values_mut() {
            let before = bot.leases.len();
            bot.leases.retain(|job| job.id != id);
            bot.version += (before - bot.leases.len()) as u64;
        }
    }

    /// Every session expires; their leases are queued again.
    pub(crate) fn expire(&self) {
        let mut state = self.state.lock();
        let bots: Vec<_> = state.bots.drain().collect();
        for (_, bot) in bots {
            state.queue.extend(bot.leases);
            bot.wake.notify_one();
        }
    }

    /// Looks at what the server knows.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&State) -> T) -> T {
        at(&self.state.lock())
    }

    /// Waits until this is so. Panics if nothing makes it so for a quarter of an hour.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&State) -> bool) {
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
        if tokio::time::timeout(Duration::from_secs(900), wait)
            .await
            .is_err()
        {
            panic!("never came: {what}");
        }
    }

    fn write_down(&self, session: &rw::BotSession, parent: &str, headers: &MetadataMap) -> Seen {
        Seen {
            at: Instant::now(),
            deadline: deadline(headers),
            session: session.clone(),
            parent: parent.to_owned(),
            headers: headers.clone(),
            dropped: false,
        }
    }

    /// Takes an update in; says whether its answer must wait for work, and on what.
    fn process(&self, session: &rw::BotSession) -> Result<Option<Arc<Notify>>, Status> {
        let mut state = self.state.lock();
        let Some(bot) = state.bots.get_mut(&session.name) else {
            return Err(Status::invalid_argument(
                "Bot does not exist while validating leases",
            ));
        };
        assert_eq!(bot.bot_id, session.bot_id);
        bot.status = session.status();
        let moved = session.version.parse().unwrap_or(0) != bot.version;
        if moved {
            let illegal = session.leases.iter().any(|lease| {
                bot.leases.iter().any(|job| job.id == lease.id)
                    && !matches!(
                        lease.state(),
                        rw::LeaseState::Active | rw::LeaseState::Completed
                    )
            });
            if illegal {
                state.bots.remove(&session.name);
                return Err(Status::data_loss("illegal lease state"));
            }
        }
        let mut completed = Vec::new();
        for lease in &session.leases {
            if lease.state() != rw::LeaseState::Completed {
                continue;
            }
            if let Some(at) = bot.leases.iter().position(|job| job.id == lease.id) {
                bot.version += 1;
                completed.push((bot.leases.remove(at), lease.clone()));
            }
        }
        let quiet = completed.is_empty() && !moved;
        for (job, lease) in completed {
            let code = lease.status.as_ref().map_or(0, |status| status.code);
            state.completed.push(lease);
            if matches!(code, 13 | 14) && job.attempts < ATTEMPTS {
                state.queue.push_back(job);
            }
        }
        let before = state.bots[&session.name].version;
        state.assign();
        let bot = &state.bots[&session.name];
        let waits = quiet
            && bot.version == before
            && bot.status == rw::BotStatus::Ok
            && bot.leases.len() < bot.capacity;
        Ok(waits.then(|| bot.wake.clone()))
    }

    fn reply(
        &self,
        mut session: rw::BotSession,
    ) -> Result<(rw::BotSession, Vec<re::ExecuteOperationMetadata>), Status> {
        let state = self.state.lock();
        let Some(bot) = state.bots.get(&session.name) else {
            return Err(Status::invalid_argument(
                "Bot does not exist while validating leases",
            ));
        };
        session.version = bot.version.to_string();
        session.leases = bot
            .leases
            .iter()
            .map(|job| rw::Lease {
                id: job.id.clone(),
                payload: job.payload.clone(),
                state: rw::LeaseState::Active as i32,
                ..Default::default()
            })
            .collect();
        let about = bot.leases.iter().map(|job| job.about.clone()).collect();
        Ok((session, about))
    }

    async fn wait(&self, deadline: Option<Duration>, wake: &Notify) {
        let keepalive = self.state.lock().keepalive;
        let wait = deadline
            .unwrap_or(Duration::from_secs(300))
            .min(keepalive)
            .mul_f64(0.8);
        if wait >= Duration::from_secs(3) {
            let _ = tokio::time::timeout(wait, wake.notified()).await;
        }
    }

    async fn answer(
        &self,
        session: rw::BotSession,
        deadline: Option<Duration>,
    ) -> Result<Response<rw::BotSession>, Status> {
        let fault = self.state.lock().faults.pop_front();
        match &fault {
            Some(Fault::Refuse(status)) => return Err(status.clone()),
            Some(Fault::Delay(delay)) => tokio::time::sleep(*delay).await,
            _ => {}
        }
        let wake = self.process(&session)?;
        self.changed.notify_waiters();
        if let Some(wake) = wake {
            self.wait(deadline, &wake).await;
        }
        let (mut session, about) = self.reply(session)?;
        match fault {
            Some(Fault::Lose) => return Err(Status::unavailable("the answer got lost")),
            Some(Fault::Edit(edit)) => edit(&mut session),
            _ => {}
        }
        let mut response = Response::new(session);
        for about in about {
            let value = BinaryMetadataValue::from_bytes(&about.encode_to_vec());
            response.metadata_mut().append_bin(TRAILER, value);
        }
        Ok(response)
    }
}

/// Notes in the log that the bot hung up, if it is dropped before it is disarmed.
struct HungUp<'a>(&'a Server, Option<usize>);

impl Drop for HungUp<'_> {
    fn drop(&mut self) {
        if let Some(index) = self.1 {
            self.0.state.lock().updates[index].dropped = true;
            self.0.changed.notify_waiters();
        }
    }
}

#[tonic::async_trait]
impl Bots for Server {
    async fn create_bot_session(
        &self,
        request: Request<rw::CreateBotSessionRequest>,
    ) -> Result<Response<rw::BotSession>, Status> {
        let (headers, _, request) = request.into_parts();
        let mut session = request.bot_session.unwrap_or_default();
        let seen = self.write_down(&session, &request.parent, &headers);
        {
            let mut state = self.state.lock();
            state.creates.push(seen);
            if let Some(status) = state.create_faults.pop_front() {
                drop(state);
                self.changed.notify_waiters();
                return Err(status);
            }
            let capacity = session
                .worker
                .iter()
                .flat_map(|worker| &worker.configs)
                .find(|config| config.key == "capacity")
                .map_or(1, |config| config.value.parse().unwrap());
            // A second session under the same id closes the first.
            let old: Vec<_> = state
                .bots
                .extract_if(|_, bot| bot.bot_id == session.bot_id)
                .collect();
            for (_, bot) in old {
                state.queue.extend(bot.leases);
            }
            session.name = format!("{}/{}", request.parent, state.number());
            state.bots.insert(
                session.name.clone(),
                Bot {
                    bot_id: session.bot_id.clone(),
                    capacity,
                    status: session.status(),
                    version: 1,
                    leases: Vec::new(),
                    wake: Arc::default(),
                },
            );
            state.assign();
        }
        self.changed.notify_waiters();
        Ok(Response::new(self.reply(session)?.0))
    }

    async fn update_bot_session(
        &self,
        request: Request<rw::UpdateBotSessionRequest>,
    ) -> Result<Response<rw::BotSession>, Status> {
        let (headers, _, request) = request.into_parts();
        let session = request.bot_session.unwrap_or_default();
        if session.name != request.name {
            return Err(Status::invalid_argument("names differ"));
        }
        let seen = self.write_down(&session, "", &headers);
        let deadline = seen.deadline;
        let index = {
            let mut state = self.state.lock();
            state.updates.push(seen);
            state.updates.len() - 1
        };
        self.changed.notify_waiters();
        let mut hung_up = HungUp(self, Some(index));
        let answer = self.answer(session, deadline).await;
        hung_up.1 = None;
        self.changed.notify_waiters();
        answer
    }

    async fn post_bot_event_temp(
        &self,
        _: Request<rw::PostBotEventTempRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("PostBotEventTemp"))
    }
}

fn deadline(headers: &MetadataMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at(text.len() - 1);
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        _ => Duration::from_nanos(number),
    })
}
