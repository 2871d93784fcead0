//! GetTree answered with whatever bytes a test wants: the generated types could not even express most of it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use boxwright::reapi::proto::re;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// A GetTreeResponse of any bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Page {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub directories: Vec<Bytes>,
    #[prost(string, tag = "2")]
    pub next_page_token: String,
}

/// The pages of one call, made as they are taken; there may be no end of them.
pub type Pages = Arc<dyn Fn(usize) -> Option<Result<Page, Status>> + Send + Sync>;

/// The CAS service in front of which GetTree is answered, if there are pages for it.
#[derive(Clone)]
pub struct WithPages<S> {
    pub inner: S,
    pub pages: Arc<Mutex<Option<Pages>>>,
}

impl<S: NamedService> NamedService for WithPages<S> {
    const NAME: &'static str = S::NAME;
}

struct Answer(Pages);

impl ServerStreamingService<re::GetTreeRequest> for Answer {
    type Response = Page;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Page, Status>> + Send>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<re::GetTreeRequest>) -> Self::Future {
        let pages = self.0.clone();
        let pages = (0..).map_while(move |n| pages(n));
        ready(Ok(Response::new(Box::pin(tokio_stream::iter(pages)))))
    }
}

impl<S> tower::Service<http::Request<Body>> for WithPages<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let pages = self.pages.lock().clone();
        match pages.filter(|_| request.uri().path().ends_with("/GetTree")) {
            Some(pages) => Box::pin(async move {
                let codec = ProstCodec::<Page, re::GetTreeRequest>::default();
                let mut grpc = Grpc::new(codec);
                Ok(grpc.server_streaming(Answer(pages), request).await)
            }),
            None => Box::pin(self.inner.call(request)),
        }
    }
}
