//! What clients see of an execution: a `google.longrunning.Operation` and its changes.

use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::Embedded;
use crate::reapi::Digest;
use crate::reapi::any::pack;
use crate::reapi::proto::longrunning::{Operation, operation};
use crate::reapi::proto::{re, rpc};

pub use re::execution_stage::Value as Stage;

/// The state of an operation at one moment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct View {
    /// How far it is.
    pub stage: Stage,
    /// The action.
    pub digest: Digest,
    /// The running lease, which names the live streams; empty if none ran yet.
    pub lease: Arc<str>,
    /// Timestamps so far.
    pub metadata: Arc<re::ExecutedActionMetadata>,
    /// How it ended.
    pub end: Option<End>,
}

/// How an operation ended.
#[derive(Clone, Debug)]
pub enum End {
    /// With a response, which may tell of a failure.
    Response(Arc<re::ExecuteResponse>),
    /// Taken back by the client. longrunning: "it becomes an operation with an [Operation.error] value with a
    /// [google.rpc.Status.code] of 1, corresponding to `Code.CANCELLED`".
    Error(rpc::Status),
}

/// The name that the standard output of a lease is read by.
pub(super) fn stdout_stream(lease: &str) -> String {
    format!("logStreams/{lease}/stdout")
}

/// The name that the standard error of a lease is read by.
pub(super) fn stderr_stream(lease: &str) -> String {
    format!("logStreams/{lease}/stderr")
}

impl View {
    /// As it is told to clients.
    pub fn render(&self, name: &str) -> Operation {
        let named = |stream: fn(&str) -> String| match &*self.lease {
            "" => String::new(),
            lease => stream(lease),
        };
        let metadata = re::ExecuteOperationMetadata {
            stage: self.stage as i32,
            action_digest: Some(self.digest.to_proto()),
            stdout_stream_name: named(stdout_stream),
            stderr_stream_name: named(stderr_stream),
            partial_execution_metadata: Some((*self.metadata).clone()),
            digest_function: self.digest.function().to_proto() as i32,
        };
        Operation {
            name: name.to_owned(),
            metadata: Some(pack(&metadata)),
            done: self.end.is_some(),
            result: self.end.as_ref().map(|end| match end {
                End::Response(response) => operation::Result::Response(pack(&**response)),
                End::Error(status) => operation::Result::Error(status.clone()),
            }),
        }
    }
}

/// A client that waits for an operation. Dropping it tells the scheduler that this client no longer waits.
pub struct Watch {
    pub(super) name: String,
    pub(super) view: watch::Receiver<View>,
    pub(super) scheduler: Weak<Embedded>,
}

impl Watch {
    /// The operation's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The state now.
    pub fn now(&mut self) -> View {
        self.view.borrow_and_update().clone()
    }

    /// Waits until the state is another than the last that [`Watch::now`] gave; false if it never will be.
    pub async fn changed(&mut self) -> bool {
        self.view.changed().await.is_ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(scheduler) = self.scheduler.upgrade() {
            scheduler.left(&self.name);
        }
    }
}
