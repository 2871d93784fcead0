//! How many calls may hold whole messages in memory at a time. A call waits here before its request is read, so that a
//! flood of large batches costs the sender's patience, not this process's memory.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Semaphore;
use tonic::Status;
use tower::{Layer, Service};

/// Calls with large requests or answers that run at a time.
const CALLS: usize = 64;
/// How long one may take: a client that sends a batch more slowly than this is cut off.
const PATIENCE: Duration = Duration::from_secs(120);

/// The calls that are bounded: unary ones whose messages have some MiB. Streams have bounds of their own.
const HEAVY: [&str; 5] = [
    "/BatchUpdateBlobs",
    "/BatchReadBlobs",
    "/FindMissingBlobs",
    "/GetActionResult",
    "/UpdateActionResult",
];

/// Makes the gate.
#[derive(Clone)]
pub(super) struct GateLayer {
    calls: Arc<Semaphore>,
}

impl GateLayer {
    /// One for the whole server.
    pub(super) fn new() -> Self {
        GateLayer {
            calls: Arc::new(Semaphore::new(CALLS)),
        }
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate {
            inner,
            calls: self.calls.clone(),
        }
    }
}

/// The gate in front of the services.
#[derive(Clone)]
pub(super) struct Gate<S> {
    inner: S,
    calls: Arc<Semaphore>,
}

impl<S, B, R> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
    B: Send + 'static,
    R: Default + Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        if !HEAVY.iter().any(|heavy| path.ends_with(heavy)) {
            return Box::pin(self.inner.call(request));
        }
        // The service that was polled ready takes the call; its clone waits for the next one.
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        let calls = self.calls.clone();
        Box::pin(async move {
            let _call = calls.acquire_owned().await;
            tokio::time::timeout(PATIENCE, ready.call(request))
                .await
                .unwrap_or_else(|_| {
                    let late = Status::deadline_exceeded(format!(
                        "the call took longer than {} s",
                        PATIENCE.as_secs()
                    ));
                    Ok(late.into_http())
                })
        })
    }
}
