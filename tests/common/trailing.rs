//! Metadata behind the message, where BuildGrid sends it.

use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;

pub(crate) const TRAILER: &str = "executeoperationmetadata-bin";

/// Moves what tonic would send as headers to where BuildGrid sends it: behind the message.
#[derive(Clone)]
pub(crate) struct Trailing<S>(pub(crate) S);

impl<S: tonic::server::NamedService> tonic::server::NamedService for Trailing<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tower::Service<http::Request<Body>> for Trailing<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(async move {
            let (mut head, body) = response.await?.into_parts();
            let mut trailers = http::HeaderMap::new();
            for value in head.headers.get_all(TRAILER) {
                trailers.append(TRAILER, value.clone());
            }
            head.headers.remove(TRAILER);
            let body = Body::new(WithTrailers { body, trailers });
            Ok(http::Response::from_parts(head, body))
        })
    }
}

struct WithTrailers {
    body: Body,
    trailers: http::HeaderMap,
}

impl tonic::codegen::Body for WithTrailers {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
        let this = &mut *self;
        Pin::new(&mut this.body)
            .poll_frame(context)
            .map_ok(|frame| match frame.into_trailers() {
                Ok(mut trailers) => {
                    trailers.extend(this.trailers.drain());
                    http_body::Frame::trailers(trailers)
                }
                Err(frame) => frame,
            })
    }
}
