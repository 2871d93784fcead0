//! A connection to a service, together with the token that goes with each call.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::{Request, Response};
use tonic::body::Body;
use tonic::transport::Channel;
use tower::Service;

use super::credentials::Token;

/// What clients make their calls on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Line {
    channel: Channel,
    token: Option<Arc<Token>>,
}

impl Line {
    pub(super) fn new(channel: Channel, token: Option<Arc<Token>>) -> Self {
        Line { channel, token }
    }
}

/// Without a token.
impl From<Channel> for Line {
    fn from(channel: Channel) -> Self {
        Line::new(channel, None)
    }
}

impl Service<Request<Body>> for Line {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.header());
        }
        self.channel.call(request)
    }
}
