//! Moves one header of a reply into its trailers, which is where bots look for it: tonic gives
//! the metadata of a successful reply to the headers only.

use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};

pub(super) const TRAILER: &str = "executeoperationmetadata-bin";

/// A service whose replies are changed so.
#[derive(Clone)]
pub(super) struct Trailing<S>(pub(super) S);

impl<S: tonic::server::NamedService> tonic::server::NamedService for Trailing<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Trailing<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let (mut parts, body) = answer.await?.into_parts();
            let mut moved = http::HeaderMap::new();
            for value in parts.headers.get_all(TRAILER) {
                moved.append(TRAILER, value.clone());
            }
            parts.headers.remove(TRAILER);
            let moved = Some(moved);
            Ok(http::Response::from_parts(
                parts,
                Body::new(WithTrailers { body, moved }),
            ))
        })
    }
}

struct WithTrailers {
    body: Body,
    moved: Option<http::HeaderMap>,
}

impl http_body::Body for WithTrailers {
    type Data = <Body as http_body::Body>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let Poll::Ready(Some(Ok(frame))) = polled else {
            return polled;
        };
        Poll::Ready(Some(Ok(match frame.into_trailers() {
            Ok(mut trailers) => {
                trailers.extend(self.moved.take().unwrap_or_default());
                http_body::Frame::trailers(trailers)
            }
            Err(data) => data,
        })))
    }
}
