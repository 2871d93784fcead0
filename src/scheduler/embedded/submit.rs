//! From an Execute request to a job in the queue: the Action is read, the cache is asked, equal actions are joined.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tokio::sync::oneshot;
use tonic::Code;
use uuid::Uuid;

use super::Embedded;
use super::operation::{End, Watch};
use super::queue::{JobId, Refused, Request};
use crate::action::bounds::{self, MAX_ACTION, MAX_COMMAND};
use crate::cas::CasError;
use crate::reapi::Digest;
use crate::reapi::proto::{re, rpc};
use crate::reapi::status::{MissingBlob, missing_blobs, ok, status};

/// What a client asks to be executed.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The Action.
    pub action: Digest,
    /// Run it even if its result is cached.
    pub skip_cache_lookup: bool,
    /// Lower values run first.
    pub priority: i32,
    /// Who asks.
    pub origin: Option<re::RequestMetadata>,
}

/// Why no operation was made.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The server is on its way out.
    #[error("the server is shutting down and takes no new actions")]
    Draining,
    /// Too much waits already.
    #[error(
        "{open} operations wait already, which is as many as this server takes; try again later"
    )]
    Full {
        /// Operations that have not ended.
        open: usize,
    },
    /// Nobody has the Action.
    #[error("action_digest: the Action {0} is not in the CAS")]
    MissingAction(Digest),
    /// The blob is no Action.
    #[error("action_digest: blob {digest} is not an Action: {why}")]
    BadAction {
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        why: String,
    },
    /// The Action could not be read.
    #[error("action_digest: the Action could not be read: {0}")]
    Cas(#[source] CasError),
}

impl SubmitError {
    /// As it ends the call.
    pub fn to_status(&self) -> rpc::Status {
        let code = match self {
            SubmitError::Draining => Code::Unavailable,
            SubmitError::Full { .. } => Code::ResourceExhausted,
            SubmitError::MissingAction(digest) => {
                let missing = MissingBlob {
                    digest: *digest,
                    what: "the Action".to_owned(),
                };
                return missing_blobs(self.to_string(), &[missing]);
            }
            SubmitError::BadAction { .. } => Code::InvalidArgument,
            SubmitError::Cas(_) => Code::Internal,
        };
        status(code, self.to_string())
    }
}

/// How operations end that were queued when the server began to shut down.
pub(super) fn shutting_down() -> re::ExecuteResponse {
    re::ExecuteResponse {
        status: Some(status(
            Code::Unavailable,
            "the server is shutting down; the action was not started",
        )),
        ..Default::default()
    }
}

impl Embedded {
    /// Takes on an execution. The operation exists when this returns; the cache is asked in the background.
    pub async fn submit(self: &Arc<Self>, submission: Submission) -> Result<Watch, SubmitError> {
        let name = format!("operations/{}", Uuid::new_v4());
        let skip = submission.skip_cache_lookup;
        let request = Request {
            digest: submission.action,
            priority: submission.priority,
            origin: submission.origin,
        };
        if let Some(watch) = self.join(&name, &request)? {
            return Ok(watch);
        }
        let (tell, told) = oneshot::channel();
        let me = self.clone();
        // One blocking task for both looks at the disk; the client is answered between them.
        self.runtime.spawn_blocking(move || {
            let digest = request.digest;
            match me.create(name, request) {
                Ok((watch, job)) => {
                    // A client that is gone already leaves its operation behind, as one that goes later does.
                    let _ = tell.send(Ok(watch));
                    if let Some((id, may_be_cached)) = job {
                        me.check(id, digest, may_be_cached && !skip);
                    }
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        });
        told.await.unwrap_or(Err(SubmitError::Draining))
    }

    fn join(self: &Arc<Self>, name: &str, request: &Request) -> Result<Option<Watch>, SubmitError> {
        let mut state = self.lock();
        if state.drain.is_some() {
            return Err(SubmitError::Draining);
        }
        let open = state.queue.open();
        let joined = state
            .queue
            .join(name, request)
            .map_err(|Refused::Full| SubmitError::Full { open })?;
        Ok(joined.map(|view| self.watch_of(name.to_owned(), view)))
    }

    fn watch_of(
        self: &Arc<Self>,
        name: String,
        view: tokio::sync::watch::Receiver<super::View>,
    ) -> Watch {
        Watch {
            name,
            view,
            scheduler: Arc::downgrade(self),
        }
    }

    /// Reads the Action and makes the operation; the job with it, unless an equal one came in between.
    #[allow(clippy::type_complexity)]
    fn create(
        self: &Arc<Self>,
        name: String,
        request: Request,
    ) -> Result<(Watch, Option<(JobId, bool)>), SubmitError> {
        let (bytes, action) = self.read_action(request.digest)?;
        if !action.do_not_cache
            && let Some(watch) = self.join(&name, &request)?
        {
            return Ok((watch, None));
        }
        // An attempt that fails for want of room is followed by one for which room was made.
        let command = Digest::from_proto(request.digest.function(), action.command_digest.as_ref());
        // One that is too large is refused by whoever reads it.
        let command = command.ok().filter(|command| command.size() <= MAX_COMMAND);
        let messages = [request.digest].into_iter().chain(command);
        let messages = self.keeping.messages(&self.store, messages);
        let mut state = self.lock();
        if state.drain.is_some() {
            return Err(SubmitError::Draining);
        }
        let open = state.queue.open();
        let (id, view) = state
            .queue
            .add(&name, request, bytes, action.do_not_cache, messages)
            .map_err(|Refused::Full| SubmitError::Full { open })?;
        drop(state);
        Ok((self.watch_of(name, view), Some((id, !action.do_not_cache))))
    }

    fn read_action(&self, digest: Digest) -> Result<(Bytes, re::Action), SubmitError> {
        let bad = |why: String| SubmitError::BadAction { digest, why };
        if digest.size() > MAX_ACTION {
            return Err(bad(format!(
                "it has {} bytes, and an Action has at most {MAX_ACTION}",
                digest.size()
            )));
        }
        let bytes = self
            .store
            .read(digest, MAX_ACTION)
            .map_err(SubmitError::Cas)?
            .ok_or(SubmitError::MissingAction(digest))?;
        bounds::action(&bytes).map_err(bad)?;
        let action = re::Action::decode(bytes.clone()).map_err(|error| bad(error.to_string()))?;
        for (field, value) in [
            ("command_digest", &action.command_digest),
            ("input_root_digest", &action.input_root_digest),
        ] {
            Digest::from_proto(digest.function(), value.as_ref())
                .map_err(|error| bad(format!("{field}: {error}")))?;
        }
        Ok((bytes, action))
    }

    /// Ends the job with a cached result, or queues it.
    fn check(self: &Arc<Self>, id: JobId, digest: Digest, look: bool) {
        let found = if look {
            self.cache.get(digest).unwrap_or_else(|error| {
                tracing::warn!(action = %digest, %error, "the action cache could not be asked");
                None
            })
        } else {
            None
        };
        let mut state = self.lock();
        match found {
            _ if !state.queue.wanted(id) => {}
            Some(result) => state.queue.finish(
                id,
                End::Response(Arc::new(re::ExecuteResponse {
                    result: Some(result),
                    cached_result: true,
                    status: Some(ok()),
                    ..Default::default()
                })),
            ),
            None => state.queue.enqueue(id),
        }
        drop(state);
        self.news.notify_one();
    }
}
