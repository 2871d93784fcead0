//! The Execution and Operations services in front of the embedded scheduler.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::places::{Place, Places};
use super::request::{blocking, digest, failed, function, instance};
use crate::cas::LocalStore;
use crate::reapi::proto::longrunning as lro;
use crate::reapi::proto::longrunning::operations_server::Operations;
use crate::reapi::proto::re;
use crate::reapi::proto::re::execution_server::Execution;
use crate::reapi::status::to_call_status;
use crate::reapi::time::from_duration;
use crate::scheduler::embedded::{Embedded, End, Inline, Submission, View, Watch};

/// The header that says who asks.
const REQUEST_METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";
/// The most operations on one page of a list.
const MAX_PAGE: usize = 1000;

/// The Execution and Operations services.
#[derive(Clone)]
pub(super) struct ExecutionService {
    pub(super) store: Arc<LocalStore>,
    pub(super) scheduler: Arc<Embedded>,
    /// How long a stream stays silent before the last state is told again, so that no proxy cuts it.
    pub(super) keep_alive: Duration,
}

type Operations_ = Pin<Box<dyn Stream<Item = Result<lro::Operation, Status>> + Send>>;

struct Telling {
    watch: Watch,
    inline: Inline,
    store: Arc<LocalStore>,
    keep_alive: Duration,
    /// What was told last.
    told: Option<View>,
    end: Ending,
}

/// How near the end is: it may be large, and is made only with a place.
enum Ending {
    Open(Places),
    Waits(Pin<Box<dyn Future<Output = Result<Place, Status>> + Send>>),
    /// Nothing is told after this: the end is on its way, with its place until the next message is asked for, or there is none.
    Told {
        _place: Option<Place>,
    },
}

impl ExecutionService {
    fn tell(&self, watch: Watch, inline: Inline, places: Places) -> Operations_ {
        let telling = Telling {
            watch,
            inline,
            store: self.store.clone(),
            keep_alive: self.keep_alive,
            told: None,
            end: Ending::Open(places),
        };
        Box::pin(unfold(telling, |mut telling| async move {
            if let Ending::Told { .. } = telling.end {
                return None;
            }
            let told = telling.next().await;
            if told.is_err() {
                telling.end = Ending::Told { _place: None };
            }
            Some((told, telling))
        }))
    }

    fn known(&self, name: &str) -> Result<Watch, Status> {
        self.scheduler
            .watch(&operation_name(name))
            .ok_or_else(|| unknown(name))
    }
}

impl Telling {
    async fn next(&mut self) -> Result<lro::Operation, Status> {
        if let (Some(_), Ending::Open(_)) = (&self.told, &self.end) {
            // Silence and a lost sender alike lead to telling the last state once more.
            let changed = tokio::time::timeout(self.keep_alive, self.watch.changed()).await;
            if changed == Ok(false) && self.watch.now().end.is_none() {
                let lost = "the operation is gone; execute the action again";
                return Err(Status::unavailable(lost));
            }
        }
        let mut view = self.watch.now();
        if view.end.is_some() {
            match self.place().await? {
                place @ Some(_) => self.end = Ending::Told { _place: place },
                None => view = self.told.clone().unwrap_or(view),
            }
        }
        inlined(&self.store, &self.inline, &mut view).await?;
        let operation = view.render(self.watch.name());
        if view.end.is_none() {
            self.told = Some(view);
        }
        Ok(operation)
    }

    /// A place for the end; `None` if it is time to tell once more what was told.
    async fn place(&mut self) -> Result<Option<Place>, Status> {
        if let Ending::Open(places) = &self.end {
            self.end = Ending::Waits(Box::pin(places.clone().take()));
        }
        // Kept until it is ready: who comes back to a queue stands at its end.
        let Ending::Waits(place) = &mut self.end else {
            return Ok(None);
        };
        if self.told.is_none() {
            return place.await.map(Some);
        }
        match tokio::time::timeout(self.keep_alive, place).await {
            Ok(place) => place.map(Some),
            Err(_) => Ok(None),
        }
    }
}

/// Operations are named `operations/UUID`; clients and proxies may put an instance name before it.
fn operation_name(name: &str) -> String {
    match name.rsplit('/').next() {
        Some(id) => format!("operations/{id}"),
        None => name.to_owned(),
    }
}

fn unknown(name: &str) -> Status {
    let name: String = name.chars().take(200).collect();
    Status::not_found(format!(
        "name: there is no operation {name:?}; finished ones are kept for some minutes only"
    ))
}

/// Puts what the client wants inlined into a finished view.
async fn inlined(store: &Arc<LocalStore>, inline: &Inline, view: &mut View) -> Result<(), Status> {
    let Some(End::Response(response)) = &view.end else {
        return Ok(());
    };
    if !response
        .result
        .as_ref()
        .is_some_and(|result| inline.wants(result))
    {
        return Ok(());
    }
    let (store, inline, function) = (store.clone(), inline.clone(), view.digest.function());
    let mut response = (**response).clone();
    let response = blocking(move || {
        if let Some(result) = &mut response.result {
            inline.fill(&store, function, result).map_err(failed)?;
        }
        Ok(response)
    })
    .await?;
    view.end = Some(End::Response(Arc::new(response)));
    Ok(())
}

/// Who asks, as far as the header can be read: it serves logs only, so a malformed one is no error.
fn origin(metadata: &MetadataMap) -> Option<re::RequestMetadata> {
    let bytes = metadata.get_bin(REQUEST_METADATA)?.to_bytes().ok()?;
    re::RequestMetadata::decode(bytes).ok()
}

#[tonic::async_trait]
impl Execution for ExecutionService {
    type ExecuteStream = Operations_;
    type WaitExecutionStream = Operations_;

    async fn execute(
        &self,
        request: Request<re::ExecuteRequest>,
    ) -> Result<Response<Operations_>, Status> {
        let origin = origin(request.metadata());
        let places = Places::of(request.extensions())?;
        let request = request.into_inner();
        instance(&request.instance_name)?;
        let function = function(request.digest_function)?;
        let action = digest("action_digest", function, request.action_digest.as_ref())?;
        let watch = self
            .scheduler
            .submit(Submission {
                action,
                skip_cache_lookup: request.skip_cache_lookup,
                priority: request.execution_policy.map_or(0, |policy| policy.priority),
                origin,
            })
            .await
            .map_err(|error| to_call_status(&error.to_status()))?;
        let inline = Inline {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            files: request.inline_output_files,
        };
        Ok(Response::new(self.tell(watch, inline, places)))
    }

    async fn wait_execution(
        &self,
        request: Request<re::WaitExecutionRequest>,
    ) -> Result<Response<Operations_>, Status> {
        let watch = self.known(&request.get_ref().name)?;
        let places = Places::of(request.extensions())?;
        Ok(Response::new(self.tell(watch, Inline::default(), places)))
    }
}

#[tonic::async_trait]
impl Operations for ExecutionService {
    async fn list_operations(
        &self,
        request: Request<lro::ListOperationsRequest>,
    ) -> Result<Response<lro::ListOperationsResponse>, Status> {
        let request = request.into_inner();
        if !request.filter.is_empty() {
            return Err(Status::invalid_argument(
                "filter: filters are not supported; leave it empty",
            ));
        }
        let limit = match usize::try_from(request.page_size) {
            Err(_) => return Err(Status::invalid_argument("page_size: it is negative")),
            Ok(0) => MAX_PAGE,
            Ok(size) => size.min(MAX_PAGE),
        };
        let (page, more) = self.scheduler.list(&request.page_token, limit);
        let next_page_token = match page.last() {
            Some((name, _)) if more => name.clone(),
            _ => String::new(),
        };
        // A list tells how operations stand; their results are had one by one.
        let operations = page
            .into_iter()
            .map(|(name, view)| lro::Operation {
                result: None,
                ..view.render(&name)
            })
            .collect();
        Ok(Response::new(lro::ListOperationsResponse {
            operations,
            next_page_token,
        }))
    }

    async fn get_operation(
        &self,
        request: Request<lro::GetOperationRequest>,
    ) -> Result<Response<lro::Operation>, Status> {
        let mut watch = self.known(&request.get_ref().name)?;
        let view = watch.now();
        Ok(Response::new(view.render(watch.name())))
    }

    async fn delete_operation(
        &self,
        request: Request<lro::DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let name = &request.get_ref().name;
        match self.scheduler.delete(&operation_name(name)) {
            Some(true) => Ok(Response::new(())),
            Some(false) => Err(Status::failed_precondition(
                "name: the operation has not finished; cancel it first",
            )),
            None => Err(unknown(name)),
        }
    }

    async fn cancel_operation(
        &self,
        request: Request<lro::CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let name = &request.get_ref().name;
        if self.scheduler.cancel(&operation_name(name)) {
            Ok(Response::new(()))
        } else {
            Err(unknown(name))
        }
    }

    async fn wait_operation(
        &self,
        request: Request<lro::WaitOperationRequest>,
    ) -> Result<Response<lro::Operation>, Status> {
        let places = Places::of(request.extensions())?;
        let request = request.into_inner();
        let timeout =
            match &request.timeout {
                None => None,
                Some(timeout) => Some(from_duration(timeout).ok_or_else(|| {
                    Status::invalid_argument("timeout: it is negative or malformed")
                })?),
            };
        let mut watch = self.known(&request.name)?;
        let ended = async { while watch.now().end.is_none() && watch.changed().await {} };
        match timeout {
            // Running into the timeout is no failure: the latest state is the answer.
            Some(timeout) => {
                let _ = tokio::time::timeout(timeout, ended).await;
            }
            None => ended.await,
        }
        let place = places.take().await?;
        let mut answer = Response::new(watch.now().render(watch.name()));
        answer.extensions_mut().insert(place);
        Ok(answer)
    }
}
