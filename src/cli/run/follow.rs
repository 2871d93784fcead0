//! One execution, from Execute to its response, over as many connections as it takes.
//!
//! REAPI, Execute: "Server SHOULD NOT close the stream before the operation is complete"; connections
//! break all the same, and WaitExecution takes the operation up again. A server that has forgotten the
//! operation is asked anew.

use std::time::{Duration, Instant};

use tonic::{Code, Status, Streaming};

use super::super::exit::{Exit, Failure};
use super::report;
use crate::config::Line;
use crate::reapi::any::unpack;
use crate::reapi::proto::longrunning::operations_client::OperationsClient;
use crate::reapi::proto::longrunning::{CancelOperationRequest, Operation, operation};
use crate::reapi::proto::re;
use crate::reapi::proto::re::execution_client::ExecutionClient;

/// Connections that may break one after the other before we give up; with the pauses between, about two minutes.
const BREAKS: u32 = 30;
/// A connection that held so long proves that the server is alive.
const PROOF: Duration = Duration::from_secs(30);
/// The longest pause.
const PAUSE: Duration = Duration::from_secs(5);

/// Follows one execution.
pub(super) struct Follower {
    line: Line,
    remote: String,
    operation: Option<String>,
    breaks: u32,
    asked: u32,
}

/// How a connection ended.
enum Turn {
    Done(Box<re::ExecuteResponse>),
    Broken(Status),
}

impl Follower {
    pub(super) fn new(line: Line, remote: String) -> Self {
        Follower {
            line,
            remote,
            operation: None,
            breaks: 0,
            asked: 0,
        }
    }

    /// Executes; `observe` hears what becomes of it.
    pub(super) async fn execute(
        &mut self,
        request: re::ExecuteRequest,
        mut observe: impl FnMut(&re::ExecuteOperationMetadata),
    ) -> Result<re::ExecuteResponse, Failure> {
        loop {
            let begun = Instant::now();
            let status = match self.connect(&request).await {
                Ok(stream) => match self.listen(stream, &mut observe).await? {
                    Turn::Done(response) => return Ok(*response),
                    Turn::Broken(status) => status,
                },
                Err(status) => status,
            };
            if begun.elapsed() > PROOF {
                self.breaks = 0;
            }
            self.weigh(status)?;
            let pause = Duration::from_millis(200) * 2u32.saturating_pow(self.breaks.min(10));
            tokio::time::sleep(pause.min(PAUSE)).await;
        }
    }

    /// Asks the server to kill the command; waits for its answer for a moment. Says whether it will.
    pub(super) async fn cancel(&self) -> bool {
        // The server may have begun, and has not said how it calls that.
        let Some(name) = self.operation.clone() else {
            return false;
        };
        let mut client = OperationsClient::new(self.line.clone());
        let asked = client.cancel_operation(CancelOperationRequest { name });
        match tokio::time::timeout(Duration::from_secs(5), asked).await {
            Ok(Ok(_)) => return true,
            Ok(Err(status)) => eprintln!(
                "boxwright: the command could not be cancelled: {}",
                report::told(&status)
            ),
            Err(_) => eprintln!(
                "boxwright: the command could not be cancelled: {} does not answer",
                self.remote
            ),
        }
        false
    }

    async fn connect(
        &mut self,
        request: &re::ExecuteRequest,
    ) -> Result<Streaming<Operation>, Status> {
        let mut client =
            ExecutionClient::new(self.line.clone()).max_decoding_message_size(16 << 20);
        let reply = match &self.operation {
            Some(name) => {
                client
                    .wait_execution(re::WaitExecutionRequest { name: name.clone() })
                    .await
            }
            None => {
                self.asked += 1;
                client.execute(request.clone()).await
            }
        };
        reply.map(tonic::Response::into_inner)
    }

    async fn listen(
        &mut self,
        mut stream: Streaming<Operation>,
        observe: &mut impl FnMut(&re::ExecuteOperationMetadata),
    ) -> Result<Turn, Failure> {
        loop {
            let operation = match stream.message().await {
                Ok(Some(operation)) => operation,
                Ok(None) => {
                    let text = "the server ended the stream before the operation was complete";
                    return Ok(Turn::Broken(Status::unavailable(text)));
                }
                Err(status) => return Ok(Turn::Broken(status)),
            };
            if !operation.name.is_empty() {
                self.operation = Some(operation.name.clone());
            }
            let metadata = operation
                .metadata
                .as_ref()
                .and_then(unpack::<re::ExecuteOperationMetadata>);
            if let Some(Ok(metadata)) = metadata {
                observe(&metadata);
            }
            if operation.done {
                return self
                    .response(operation)
                    .map(|response| Turn::Done(Box::new(response)));
            }
        }
    }

    fn response(&self, operation: Operation) -> Result<re::ExecuteResponse, Failure> {
        let nonsense = |what: &str| Failure::new(Exit::Protocol, format!("{} {what}", self.remote));
        match operation.result {
            Some(operation::Result::Response(any)) => match unpack(&any) {
                Some(Ok(response)) => Ok(response),
                _ => Err(nonsense(
                    "answered with something that is no ExecuteResponse",
                )),
            },
            Some(operation::Result::Error(status)) => Err(report::operation(&status)
                .unwrap_or_else(|| nonsense("reported an error that is none"))),
            None => Err(nonsense("completed the operation without a response")),
        }
    }

    /// Whether to go on after a connection that ended like this.
    fn weigh(&mut self, status: Status) -> Result<(), Failure> {
        self.breaks += 1;
        let transient = matches!(
            status.code(),
            Code::Unavailable
                | Code::Unknown
                | Code::Internal
                | Code::Aborted
                | Code::Cancelled
                | Code::DeadlineExceeded
        );
        // A server that restarted may not know the operation any more.
        let forgotten = self.operation.is_some()
            && matches!(status.code(), Code::NotFound | Code::InvalidArgument);
        if forgotten && self.asked < 5 {
            self.operation = None;
            return Ok(());
        }
        // Before there is an operation, only what certainly did not reach the server is worth another try.
        let early = self.operation.is_none() && status.code() != Code::Unavailable;
        if transient && !early && self.breaks <= BREAKS {
            return Ok(());
        }
        let during = match &self.operation {
            Some(name) => format!(", while following operation {name}"),
            None => String::new(),
        };
        Err(report::call(&status, &self.remote, &during))
    }
}
