//! The Bots service: long polls and what a reply is made of.

use std::time::{Duration, SystemTime};

use boxwright::reapi::proto::{re, rw};
use boxwright::reapi::time;
use prost::Message;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::{Request, Response, Status};

use super::Server;
use super::sessions::{Next, Reply};
use super::trailers::TRAILER;

const ACTION: &str = "type.googleapis.com/build.bazel.remote.execution.v2.Action";

/// The deadline that a bot gave its call.
fn deadline(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at(text.len().checked_sub(1)?);
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

/// Takes a poll out of the session when its bot hangs up.
struct Poll<'a> {
    server: &'a Server,
    name: &'a str,
    id: u64,
}

impl Drop for Poll<'_> {
    fn drop(&mut self) {
        self.server.0.sessions.poll_over(self.name, self.id);
    }
}

impl Server {
    /// How long a poll may last; none: it is not waited at all.
    fn patience(&self, metadata: &MetadataMap) -> Option<Duration> {
        let longest = deadline(metadata).unwrap_or(Duration::from_secs(300));
        let patience = longest.min(self.0.sessions.keepalive).mul_f64(0.8);
        (patience >= Duration::from_secs(3)).then_some(patience)
    }

    async fn answer(
        &self,
        name: &str,
        next: Next,
        patience: Option<Duration>,
    ) -> Result<Reply, Status> {
        match next {
            Next::Now(reply) => Ok(reply),
            Next::Wait(id, woken) => {
                self.0.counts.add("long polls");
                let poll = Poll {
                    server: self,
                    name,
                    id,
                };
                let _ = tokio::time::timeout(patience.unwrap_or_default(), woken.notified()).await;
                let reply = self.0.sessions.poll_over(name, id);
                drop(poll);
                reply.ok_or_else(|| Status::invalid_argument("Bot does not exist any more"))
            }
        }
    }

    fn session(&self, mut session: rw::BotSession, reply: &Reply) -> rw::BotSession {
        let expiry = time::timestamp(SystemTime::now() + self.0.sessions.keepalive);
        session.name.clone_from(&reply.name);
        session.version = reply.version.to_string();
        session.expire_time = Some(expiry);
        session.leases = reply
            .leases
            .iter()
            .map(|job| rw::Lease {
                id: job.lease_id.clone(),
                state: rw::LeaseState::Active as i32,
                payload: Some(prost_types::Any {
                    type_url: ACTION.to_owned(),
                    value: job.action.to_vec(),
                }),
                expire_time: Some(expiry),
                ..Default::default()
            })
            .collect();
        session
    }
}

#[tonic::async_trait]
impl rw::bots_server::Bots for Server {
    async fn create_bot_session(
        &self,
        request: Request<rw::CreateBotSessionRequest>,
    ) -> Result<Response<rw::BotSession>, Status> {
        self.0.counts.add("CreateBotSession");
        let patience = self.patience(request.metadata());
        let request = request.into_inner();
        let session = request
            .bot_session
            .ok_or_else(|| Status::invalid_argument("no bot_session"))?;
        let patient = patience.is_some() && session.status == rw::BotStatus::Ok as i32;
        let (name, next) = self.0.sessions.create(&request.parent, &session, patient)?;
        let reply = self.answer(&name, next, patience).await?;
        Ok(Response::new(self.session(session, &reply)))
    }

    async fn update_bot_session(
        &self,
        request: Request<rw::UpdateBotSessionRequest>,
    ) -> Result<Response<rw::BotSession>, Status> {
        self.0.counts.add("UpdateBotSession");
        let patience = self.patience(request.metadata());
        let request = request.into_inner();
        let mut session = request
            .bot_session
            .ok_or_else(|| Status::invalid_argument("no bot_session"))?;
        if session.name != request.name {
            return Err(Status::invalid_argument("two different session names"));
        }
        let told = rw::BotSession {
            leases: std::mem::take(&mut session.leases),
            bot_id: session.bot_id.clone(),
            version: session.version.clone(),
            status: session.status,
            ..Default::default()
        };
        let patient = patience.is_some() && session.status == rw::BotStatus::Ok as i32;
        let next = self.0.sessions.update(&request.name, told, patient)?;
        let reply = self.answer(&request.name, next, patience).await?;
        let mut response = Response::new(self.session(session, &reply));
        for job in &reply.leases {
            let metadata = re::ExecuteOperationMetadata {
                stage: re::execution_stage::Value::Executing as i32,
                action_digest: Some(job.digest.to_proto()),
                ..Default::default()
            };
            let value = BinaryMetadataValue::from_bytes(&metadata.encode_to_vec());
            response.metadata_mut().append_bin(TRAILER, value);
        }
        Ok(response)
    }

    async fn post_bot_event_temp(
        &self,
        _: Request<rw::PostBotEventTempRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("PostBotEventTemp"))
    }
}
