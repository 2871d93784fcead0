//! One Execute call's work, from the queue to its end.

use std::sync::{Mutex, OnceLock};

use boxwright::reapi::proto::{re, rpc};
use boxwright::reapi::{Digest, any, time};
use bytes::Bytes;
use prost_types::Timestamp;
use tokio::sync::Notify;

/// An action on its way.
pub(super) struct Job {
    pub(super) id: String,
    /// Instance and id, as a lease is called.
    pub(super) lease_id: String,
    pub(super) digest: Digest,
    pub(super) action: Bytes,
    queued: Timestamp,
    run: Mutex<Run>,
    end: OnceLock<re::ExecuteResponse>,
    ended: Notify,
}

#[derive(Default)]
struct Run {
    attempts: u32,
    started: Option<Timestamp>,
}

impl Job {
    pub(super) fn new(instance: &str, digest: Digest, action: Bytes) -> Job {
        let id = uuid::Uuid::new_v4().to_string();
        Job {
            lease_id: format!("{instance}/{id}"),
            id,
            digest,
            action,
            queued: time::now(),
            run: Mutex::default(),
            end: OnceLock::new(),
            ended: Notify::new(),
        }
    }

    /// A bot has it now.
    pub(super) fn assigned(&self) {
        let mut run = self.run.lock().expect("run");
        run.attempts += 1;
        run.started = Some(time::now());
    }

    /// BuildGrid 0.9.1 makes five attempts, whatever its configuration says.
    pub(super) fn has_attempts_left(&self) -> bool {
        self.run.lock().expect("run").attempts < 5
    }

    /// Ends it as a lease's status and result say.
    pub(super) fn complete(&self, status: rpc::Status, result: Option<prost_types::Any>) {
        let mut result: Option<re::ActionResult> = result.and_then(|any| any::unpack(&any)?.ok());
        // A completion without a result is a success to BuildGrid.
        if status.code == 0 && result.is_none() {
            result = Some(re::ActionResult::default());
        }
        if let Some(result) = &mut result {
            let metadata = result.execution_metadata.get_or_insert_default();
            metadata.queued_timestamp = Some(self.queued);
            metadata.worker_start_timestamp = self.run.lock().expect("run").started;
            metadata.worker_completed_timestamp = Some(time::now());
        }
        self.end_with(re::ExecuteResponse {
            result,
            status: (status.code != 0).then_some(status),
            ..Default::default()
        });
    }

    /// Ends it without a result.
    pub(super) fn fail(&self, code: tonic::Code, message: &str) {
        self.end_with(re::ExecuteResponse {
            status: Some(boxwright::reapi::status::status(code, message)),
            ..Default::default()
        });
    }

    fn end_with(&self, response: re::ExecuteResponse) {
        if self.end.set(response).is_ok() {
            self.ended.notify_waiters();
        }
    }

    pub(super) fn ended(&self) -> Option<re::ExecuteResponse> {
        self.end.get().cloned()
    }

    pub(super) async fn wait(&self) -> re::ExecuteResponse {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if let Some(response) = self.ended() {
                return response;
            }
            ended.await;
        }
    }
}
