//! How many calls may hold whole messages in memory at a time. A call waits here before its request is read, so that a
//! flood of large batches costs the sender's patience, not this process's memory; it keeps its place until its answer is taken.
//! Those that wait for something else take a place later, before they make a large message: a stream keeps it itself, and
//! others hand it on with their answers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http_body::Body;
use tokio::sync::Semaphore;
use tonic::Status;
use tower::{Layer, Service};

use super::answer::Answer;
use super::places::{self, Place, Places};
use super::taken::Taken;

/// How long one may take: a client that sends a batch more slowly than this is cut off.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one waits for a place.
const WAIT: Duration = Duration::from_secs(240);

/// The calls that are bounded: unary ones whose messages have some MiB. Streams have bounds of their own.
const HEAVY: [&str; 7] = [
    "/BatchUpdateBlobs",
    "/BatchReadBlobs",
    "/FindMissingBlobs",
    "/GetActionResult",
    "/UpdateActionResult",
    "/GetOperation",
    "/ListOperations",
];

/// Those of them that take what may be some MiB.
const UPLOADS: [&str; 2] = ["/BatchUpdateBlobs", "/UpdateActionResult"];

/// The calls whose answers are streams that hold something until they end: files, walks over trees, what is told of an action.
const STREAMS: [&str; 4] = ["/Read", "/GetTree", "/Execute", "/WaitExecution"];

/// Makes the gate.
#[derive(Clone)]
pub(super) struct GateLayer {
    calls: Arc<Semaphore>,
    idle: Duration,
}

impl GateLayer {
    /// One for the whole server, whose clients may take nothing of an answer for as long as `idle`.
    pub(super) fn new(idle: Duration) -> Self {
        GateLayer {
            calls: places::all(),
            idle,
        }
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate {
            inner,
            calls: self.calls.clone(),
            idle: self.idle,
        }
    }
}

/// The gate in front of the services.
#[derive(Clone)]
pub(super) struct Gate<S> {
    inner: S,
    calls: Arc<Semaphore>,
    idle: Duration,
}

/// Waits for a place.
async fn turn(places: Places, is_upload: bool) -> Result<Place, Status> {
    if let Some(place) = places.clone().take().now_or_never() {
        return place;
    }
    let _waits = is_upload.then(|| places.upload()).transpose()?;
    let place = tokio::time::timeout(WAIT, places.take()).await;
    let busy = "as many calls with large messages run as may at a time; try again later";
    place.unwrap_or_else(|_| Err(Status::unavailable(busy)))
}

impl<S, B, R> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
    B: Send + 'static,
    R: Body<Data = Bytes> + Default + Send + Unpin + 'static,
{
    type Response = http::Response<Answer<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let is_one_of = |methods: &[&str]| {
            let path = request.uri().path();
            methods.iter().any(|method| path.ends_with(method))
        };
        let connection = request.extensions().get::<Taken>().cloned();
        let (connection, idle) = (connection.unwrap_or_default(), self.idle);
        let places = Places::new(self.calls.clone(), &connection);
        let (heavy, uploads) = (is_one_of(&HEAVY), is_one_of(&UPLOADS));
        if !heavy {
            let streams = is_one_of(&STREAMS);
            request.extensions_mut().insert(places);
            let answered = self.inner.call(request);
            return Box::pin(async move {
                let mut answer = answered.await?;
                let place = answer.extensions_mut().remove::<Place>();
                Ok(answer.map(|body| match place {
                    Some(place) => Answer::message(body, place, connection, idle),
                    None if streams => Answer::stream(body, connection, idle),
                    None => Answer::free(body),
                }))
            });
        }
        // The service that was polled ready takes the call; its clone waits for the next one.
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let place = match turn(places, uploads).await {
                Ok(place) => place,
                Err(refused) => return Ok(refused.into_http()),
            };
            match tokio::time::timeout(PATIENCE, ready.call(request)).await {
                Ok(answered) => {
                    Ok(answered?.map(|body| Answer::message(body, place, connection, idle)))
                }
                Err(_) => {
                    let late = Status::deadline_exceeded(format!(
                        "the call took longer than {} s",
                        PATIENCE.as_secs()
                    ));
                    Ok(late.into_http())
                }
            }
        })
    }
}
