//! The line's end, from the death of a command's last process to its result: outputs are collected, blobs published, and what
//! is known of the action put together.

use std::time::Instant;

use super::conclude::{conclude, with_outputs};
use super::isolation::isolation;
use super::publish::{self, Stream};
use super::report;
use super::resolve::Resolved;
use super::runner::{Journey, Runner, or_cancelled};
use super::usage;
use super::{Ending, Finished, ServerLog, missing};
use crate::cas::Held;
use crate::inputs::{Beneath, InputError, StagedRoot};
use crate::outputs::{self, CollectRequest, Collected};
use crate::reapi::any::pack;
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction, time};
use crate::sandbox::{End, Outcome};

impl Runner {
    /// Collects and uploads. A command that was cut short by its timeout has a partial result; one that was
    /// cancelled has none.
    pub(super) async fn publish(
        &self,
        journey: &mut Journey<'_>,
        resolved: &Resolved,
        staged: &dyn StagedRoot,
        outcome: Outcome,
    ) -> Result<Finished, Ending> {
        if outcome.end == End::Cancelled {
            return Err(Ending::Cancelled);
        }
        if let Some(trouble) = staged.trouble() {
            return Err(self.troubled(journey, trouble, resolved).await);
        }
        let begun = Instant::now();
        journey.metadata.output_upload_start_timestamp = Some(time::now());
        let report = match self.reports(resolved) {
            true => {
                let parts = &self.parts;
                let strategy = parts.inputs.name();
                let (store, function) = (parts.cas.local(), journey.lease.function);
                let tree = &resolved.tree;
                Some(report::keep(store, function, resolved.digest, tree, staged, strategy).await?)
            }
            false => None,
        };
        let function = journey.lease.function;
        let keep = self.parts.settings.keep_output;
        let (ending, exit_code, notice) = conclude(&outcome, resolved, keep);
        let shown = staged.path().to_owned();
        let (root, beneath, overlay) = match staged.beneath() {
            None => (shown, None, None),
            Some(Beneath { upper, tree }) => (upper, Some(tree), Some(shown)),
        };
        let request = CollectRequest {
            root,
            beneath,
            overlay,
            outputs: resolved.command.outputs.clone(),
            format: resolved.command.format,
            node_properties: resolved.command.node_properties.clone(),
            function,
            limits: self.parts.settings.output_limits,
            cancel: journey.cancel.clone(),
        };
        // Waited for even if the action is cancelled, which makes it short: the root must not be taken down under it.
        let gathered = self.gather(request, function, outcome, ending, notice);
        let Gathered {
            mut collected,
            ending,
            beside,
            mut held,
            stdout,
            stderr,
        } = gathered.await?;
        let streams = [stdout.digest, stderr.digest];
        let blobs: Vec<Digest> = collected
            .blobs
            .iter()
            .copied()
            .chain(streams.into_iter().flatten())
            .chain(report.as_ref().and_then(|report| report.digest))
            .collect();
        if self.parts.cas.has_source() {
            // Its reader is the scheduler, who shares that CAS.
            let (digest, content, named) = usage::blob(&journey.record.usage, function);
            held.bring(digest, content);
            journey.metadata.auxiliary_metadata.push(named);
        }
        or_cancelled(journey.cancel, async {
            let cas = &self.parts.cas;
            match cas.publish_held(&blobs, &held).await {
                Ok(()) => Ok(()),
                Err(error) => Err(missing::from_publish(cas, &resolved.tree, error).await),
            }
        })
        .await?;
        journey.record.publish = begun.elapsed();
        journey.record.output_blobs = blobs.len() as u64;
        journey.record.output_bytes = blobs.iter().map(|b| b.size()).sum();
        journey.record.beside.clone_from(&beside);

        let mut metadata = journey.metadata.clone();
        let now = Some(time::now());
        metadata.output_upload_completed_timestamp = now;
        metadata.worker_completed_timestamp = now;
        let isolation = isolation(journey.record.sandbox, &resolved.demand.view);
        metadata.auxiliary_metadata.push(isolation);
        let logs: Vec<ServerLog> = { report.and_then(|report| report.digest).into_iter() }
            .map(|digest| ServerLog {
                name: report::NAME,
                digest,
            })
            .collect();
        // Not every scheduler has a place for logs, and a cache has none.
        let told = logs.iter().map(|log| pack(&log.file()));
        metadata.auxiliary_metadata.extend(told);
        let result = re::ActionResult {
            exit_code,
            stdout_raw: stdout.raw,
            stdout_digest: stdout.digest.map(Digest::to_proto),
            stderr_raw: stderr.raw,
            stderr_digest: stderr.digest.map(Digest::to_proto),
            execution_metadata: Some(metadata),
            ..std::mem::take(&mut collected.result)
        };
        Ok(Finished {
            cacheable: ending == Ending::Exited(0) && !resolved.do_not_cache,
            message: beside,
            details: Vec::new(),
            logs,
            inputs: None,
            result: Some(result),
            ending,
        })
    }

    /// How an action ends whose command the sandbox could not run. A program, its interpreter and its loader are inputs
    /// too, which the kernel reads: all that it says of one that cannot be had is an I/O error.
    pub(super) async fn not_executed(
        &self,
        journey: &Journey<'_>,
        resolved: &Resolved,
        staged: &dyn StagedRoot,
        ending: Ending,
    ) -> Ending {
        match staged.trouble() {
            Some(trouble) if ending != Ending::Cancelled => {
                self.troubled(journey, trouble, resolved).await
            }
            _ => ending,
        }
    }

    /// How an action ends whose command could not read an input.
    async fn troubled(
        &self,
        journey: &Journey<'_>,
        trouble: InputError,
        resolved: &Resolved,
    ) -> Ending {
        let met = match self.ending_of_inputs(trouble, resolved) {
            Ending::MissingInputs(met) => met,
            ending => return ending,
        };
        let all = missing::with_the_rest(&self.parts.cas, &resolved.tree, met);
        let asked = or_cancelled(journey.cancel, async { Ok(all.await) }).await;
        asked.unwrap_or_else(|cancelled| cancelled)
    }

    /// The disk work of collecting, on a blocking thread.
    async fn gather(
        &self,
        request: CollectRequest,
        function: DigestFunction,
        outcome: Outcome,
        ending: Ending,
        mut notice: String,
    ) -> Result<Gathered, Ending> {
        let store = self.parts.cas.local().clone();
        let mut held = self.parts.cas.hold();
        let inline = self.parts.settings.inline_output;
        let work = move || {
            let stream = |captured, notice: &str| {
                publish::keep_stream(&store, function, captured, notice, inline)
                    .map_err(|e| Ending::Infrastructure(e.to_string()))
            };
            let collected = outputs::collect_and_hold(&store, &request, &mut held);
            let (collected, ending, beside) = with_outputs(ending, collected)?;
            // Not every scheduler has another place for it, and no cache has.
            if !beside.is_empty() {
                notice.push_str(&format!("boxwright: {beside}\n"));
            }
            Ok(Gathered {
                stdout: stream(outcome.stdout, "")?,
                stderr: stream(outcome.stderr, &notice)?,
                collected,
                ending,
                beside,
                held,
            })
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|e| Err(Ending::Infrastructure(format!("collecting outputs: {e}"))))
    }
}

struct Gathered {
    collected: Collected,
    ending: Ending,
    /// What is to be said beside the end.
    beside: String,
    held: Held,
    stdout: Stream,
    stderr: Stream,
}
