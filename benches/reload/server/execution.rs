//! Execution, Operations and Capabilities of the benchmark scheduler.

use std::sync::Arc;

use boxwright::reapi::any::pack;
use boxwright::reapi::proto::{longrunning as lr, re, semver};
use tonic::{Request, Response, Status};

use super::Server;
use super::cas::Answers;
use super::jobs::Job;

fn operation(job: &Job, end: Option<re::ExecuteResponse>) -> lr::Operation {
    let stage = match end {
        Some(_) => re::execution_stage::Value::Completed,
        None => re::execution_stage::Value::Queued,
    };
    lr::Operation {
        name: job.id.clone(),
        metadata: Some(pack(&re::ExecuteOperationMetadata {
            stage: stage as i32,
            action_digest: Some(job.digest.to_proto()),
            ..Default::default()
        })),
        done: end.is_some(),
        result: end.map(|response| lr::operation::Result::Response(pack(&response))),
    }
}

impl Server {
    fn follow(&self, job: Arc<Job>) -> Answers<lr::Operation> {
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        let server = self.clone();
        tokio::spawn(async move {
            // A client that is gone is noticed at the next send.
            let _ = sender.send(Ok(operation(&job, None))).await;
            tokio::select! {
                response = job.wait() => {
                    server.keep(&job, &response);
                    let _ = sender.send(Ok(operation(&job, Some(response)))).await;
                }
                () = sender.closed() => {}
            }
        });
        Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))
    }

    /// The scheduler writes the action cache, as BuildGrid does.
    fn keep(&self, job: &Job, response: &re::ExecuteResponse) {
        if let (None, Some(result)) = (&response.status, &response.result)
            && result.exit_code == 0
        {
            let mut results = self.0.results.lock().expect("results");
            results.insert(job.digest, result.clone());
        }
    }

    fn job(&self, name: &str) -> Result<Arc<Job>, Status> {
        let job = self.0.sessions.job(name);
        job.ok_or_else(|| Status::not_found(format!("no operation {name}")))
    }
}

#[tonic::async_trait]
impl re::execution_server::Execution for Server {
    type ExecuteStream = Answers<lr::Operation>;
    type WaitExecutionStream = Answers<lr::Operation>;

    async fn execute(
        &self,
        request: Request<re::ExecuteRequest>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        self.0.counts.add("Execute");
        let request = request.into_inner();
        let digest = self.digest(request.action_digest.as_ref())?;
        if !request.skip_cache_lookup {
            return Err(Status::unimplemented("Execute without skip_cache_lookup"));
        }
        let action = self.get(digest)?;
        let job = self
            .0
            .sessions
            .submit(&request.instance_name, digest, action);
        Ok(Response::new(self.follow(job)))
    }

    async fn wait_execution(
        &self,
        request: Request<re::WaitExecutionRequest>,
    ) -> Result<Response<Self::WaitExecutionStream>, Status> {
        let job = self.job(&request.get_ref().name)?;
        Ok(Response::new(self.follow(job)))
    }
}

#[tonic::async_trait]
impl lr::operations_server::Operations for Server {
    async fn list_operations(
        &self,
        _: Request<lr::ListOperationsRequest>,
    ) -> Result<Response<lr::ListOperationsResponse>, Status> {
        Err(Status::unimplemented("ListOperations"))
    }

    async fn get_operation(
        &self,
        request: Request<lr::GetOperationRequest>,
    ) -> Result<Response<lr::Operation>, Status> {
        let job = self.job(&request.get_ref().name)?;
        Ok(Response::new(operation(&job, job.ended())))
    }

    async fn delete_operation(
        &self,
        _: Request<lr::DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("DeleteOperation"))
    }

    async fn cancel_operation(
        &self,
        request: Request<lr::CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        if self.0.sessions.cancel(&name) {
            Ok(Response::new(()))
        } else {
            Err(Status::not_found(format!("no operation {name}")))
        }
    }

    async fn wait_operation(
        &self,
        _: Request<lr::WaitOperationRequest>,
    ) -> Result<Response<lr::Operation>, Status> {
        Err(Status::unimplemented("WaitOperation"))
    }
}

#[tonic::async_trait]
impl re::capabilities_server::Capabilities for Server {
    async fn get_capabilities(
        &self,
        _: Request<re::GetCapabilitiesRequest>,
    ) -> Result<Response<re::ServerCapabilities>, Status> {
        let version = |minor| {
            Some(semver::SemVer {
                major: 2,
                minor,
                ..Default::default()
            })
        };
        let sha256 = re::digest_function::Value::Sha256 as i32;
        Ok(Response::new(re::ServerCapabilities {
            cache_capabilities: Some(re::CacheCapabilities {
                digest_functions: vec![sha256],
                max_batch_total_size_bytes: 4_193_280,
                symlink_absolute_path_strategy:
                    re::symlink_absolute_path_strategy::Value::Disallowed as i32,
                ..Default::default()
            }),
            execution_capabilities: Some(re::ExecutionCapabilities {
                digest_function: sha256,
                exec_enabled: true,
                digest_functions: vec![sha256],
                ..Default::default()
            }),
            low_api_version: version(0),
            high_api_version: version(2),
            ..Default::default()
        }))
    }
}
