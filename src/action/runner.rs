//! The line that every action goes through, its end in `finish`. Each phase is a method; what a phase learns is handed
//! to the next as data, and the first phase that fails ends the action with its class.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::failures::from_inputs;
use super::resolve::{self, Resolved};
use super::{Ending, Finished, LiveOutput, Settings};
use super::{space, usage};
use crate::cas::{self, Cas, Pins};
use crate::config::Owner;
use crate::inputs::{InputError, InputRoots, StageRequest, StagedRoot};
use crate::observe::{self, ActionRecord};
use crate::reapi::proto::re;
use crate::reapi::time;
use crate::sandbox::{CommandSpec, Exempt, Inputs, Outcome, Sandbox, Sandboxes, StreamSpec};
use crate::scheduler::Lease;
use crate::tree::TreeStore;

/// How many bytes of a stream are kept in memory before it goes to a file.
const STREAM_MEMORY: usize = 64 << 10;

/// What a runner is made of.
pub struct RunnerParts {
    /// Where blobs are.
    pub cas: Cas,
    /// Decoded directories, shared by all actions.
    pub trees: Arc<TreeStore>,
    /// How input roots are made visible.
    pub inputs: Arc<dyn InputRoots>,
    /// What runs commands, by level.
    pub sandboxes: Sandboxes,
    /// The operator's decisions.
    pub settings: Settings,
    /// The worker's name in results.
    pub worker_name: String,
    /// Who takes output while it is written.
    pub live: Option<Arc<dyn LiveOutput>>,
    /// How many slots there are.
    pub slots: usize,
}

/// Runs actions, one per slot at a time.
pub struct Runner {
    pub(super) parts: RunnerParts,
    /// Per slot: locked while an input root of it is on the disk, which is longer than its action runs.
    roots: Vec<Arc<Mutex<()>>>,
}

/// Tells the scheduler how far an action is.
pub type Progress<'a> = &'a (dyn Fn(re::ExecutedActionMetadata) + Send + Sync);

/// What is being found out about an action on its way.
pub(super) struct Journey<'a> {
    pub(super) lease: &'a Lease,
    slot: usize,
    pub(super) cancel: &'a CancellationToken,
    progress: Progress<'a>,
    pub(super) metadata: re::ExecutedActionMetadata,
    pub(super) record: ActionRecord,
    /// What another attempt needs, if it is not sure to be here then.
    inputs: Option<Pins>,
}

impl Runner {
    /// Joins the parts.
    pub fn new(parts: RunnerParts) -> Self {
        let roots = (0..parts.slots).map(|_| Arc::default()).collect();
        Runner { parts, roots }
    }

    /// Runs one leased action in a free slot. When this returns no process of the action is left.
    pub async fn run(
        &self,
        lease: &Lease,
        slot: usize,
        cancel: &CancellationToken,
        progress: Progress<'_>,
    ) -> Finished {
        let mut journey = Journey {
            lease,
            slot,
            cancel,
            progress,
            metadata: re::ExecutedActionMetadata {
                worker: self.parts.worker_name.clone(),
                worker_start_timestamp: Some(time::now()),
                ..lease.metadata.clone()
            },
            record: ActionRecord::of(lease, slot),
            inputs: None,
        };
        let begun = Instant::now();
        let whose = resolve::request_metadata(lease);
        let mut finished = match cas::on_behalf_of(whose, self.phases(&mut journey)).await {
            Ok(finished) => finished,
            Err(ending) => Finished::without_result(ending),
        };
        finished.inputs = journey.inputs.take().map(Arc::new);
        journey.record.total = begun.elapsed();
        journey.record.ending = finished.ending.clone();
        observe::action_line(&journey.record);
        finished
    }

    /// Waits until every input root is taken down. To be called once nothing runs any more.
    pub async fn settle(&self) {
        for root in &self.roots {
            drop(root.lock().await);
        }
    }

    async fn phases(&self, journey: &mut Journey<'_>) -> Result<Finished, Ending> {
        let cancel = journey.cancel;
        let resolved = or_cancelled(cancel, self.resolve(journey)).await?;
        let sandbox = self.pick(journey, &resolved)?;
        let owner = sandbox.owner(journey.slot);
        let staged = or_cancelled(cancel, self.stage(journey, &resolved, owner)).await?;
        let executed = self.execute(journey, &resolved, staged.as_ref(), sandbox.as_ref());
        let finished = match executed.await {
            Ok(outcome) => {
                self.publish(journey, &resolved, staged.as_ref(), outcome)
                    .await
            }
            Err(ending) => Err(self
                .not_executed(journey, &resolved, staged.as_ref(), ending)
                .await),
        };
        remove(staged);
        finished
    }

    async fn resolve(&self, journey: &mut Journey<'_>) -> Result<Resolved, Ending> {
        journey.metadata.input_fetch_start_timestamp = Some(time::now());
        let parts = &self.parts;
        let begun = Instant::now();
        let resolved = resolve::resolve(
            journey.lease,
            &parts.cas,
            &parts.trees,
            &parts.settings,
            &parts.sandboxes.levels(),
        )
        .await?;
        journey.record.digest = Some(resolved.digest);
        journey.record.resolve = begun.elapsed();
        Ok(resolved)
    }

    /// The best sandbox that the action may use.
    fn pick(
        &self,
        journey: &mut Journey<'_>,
        resolved: &Resolved,
    ) -> Result<Arc<dyn Sandbox>, Ending> {
        let sandbox = self.parts.sandboxes.pick(&resolved.demand.levels);
        let sandbox = sandbox.map_err(|e| Ending::Unsupported(e.to_string()))?;
        if let Some(limit) = sandbox.unenforced(&resolved.demand.limits_asked).first() {
            return Err(Ending::Unsupported(format!(
                "the action asks for a limit that this host cannot keep: {limit}"
            )));
        }
        journey.record.sandbox = Some(sandbox.level());
        Ok(sandbox.clone())
    }

    async fn stage(
        &self,
        journey: &mut Journey<'_>,
        resolved: &Resolved,
        owner: Option<Owner>,
    ) -> Result<Box<dyn StagedRoot>, Ending> {
        (journey.progress)(journey.metadata.clone());
        // The slot's user owned the last root too: it must be gone before this user comes back.
        let root = self.roots[journey.slot].clone();
        let hold = Some(Arc::new(root.lock_owned().await));
        let begun = Instant::now();
        space::make(self.parts.cas.local(), journey.cancel).await;
        let request = StageRequest {
            name: format!("{}-{}", journey.slot, uuid::Uuid::new_v4().simple()),
            tree: resolved.tree.clone(),
            directories: resolved.command.directories.clone(),
            outputs: (resolved.command.outputs.iter())
                .map(|output| output.within_root.clone())
                .collect(),
            shapes: resolved.command.shapes(),
            writable: resolved.demand.writable_inputs,
            watched: self.reports(resolved),
            owner,
            hold,
        };
        let staged = self
            .parts
            .inputs
            .stage(request)
            .await
            .map_err(|error| self.ending_of_inputs(error, resolved))?;
        journey.record.stage = begun.elapsed();
        journey.record.input_files = resolved.tree.nodes;
        journey.record.input_bytes = resolved.tree.bytes;
        journey.metadata.input_fetch_completed_timestamp = Some(time::now());
        Ok(staged)
    }

    async fn execute(
        &self,
        journey: &mut Journey<'_>,
        resolved: &Resolved,
        staged: &dyn StagedRoot,
        sandbox: &dyn Sandbox,
    ) -> Result<Outcome, Ending> {
        journey.metadata.execution_start_timestamp = Some(time::now());
        (journey.progress)(journey.metadata.clone());
        let settings = &self.parts.settings;
        let stream = |name: &str| StreamSpec {
            memory: STREAM_MEMORY,
            keep: settings.keep_output,
            spill_dir: settings.scratch.clone(),
            live: match &self.parts.live {
                Some(live) if !name.is_empty() => live.open(name),
                _ => None,
            },
        };
        let waited = staged.waited();
        // REAPI names no bound: a command may wait as long as it may run, and a stalled CAS keeps no slot for ever.
        let exempt = match (&waited, resolved.timeout) {
            (Some(waited), Some((most, _))) => {
                let waited = waited.clone();
                Exempt::new(move || waited().min(most))
            }
            _ => Exempt::default(),
        };
        let spec = CommandSpec {
            argv: resolved.command.argv.clone(),
            env: resolved.command.env.clone(),
            root: staged.path().to_owned(),
            inputs: Inputs {
                bytes: resolved.tree.bytes,
                nodes: resolved.tree.nodes,
            },
            cwd: (&resolved.command.working_directory).into(),
            timeout: resolved.timeout.map(|(length, _)| length),
            exempt,
            grace: settings.grace,
            limits: resolved.demand.limits.clone(),
            view: resolved.demand.view.clone(),
            stdout: stream(&journey.lease.stdout_stream),
            stderr: stream(&journey.lease.stderr_stream),
        };
        let run = sandbox.run(journey.slot, spec, journey.cancel.clone());
        let store = self.parts.cas.local();
        // A source would give them again.
        let inputs = Some(&resolved.tree).filter(|_| !self.parts.cas.has_source());
        let (outcome, disk) = space::kept(store, inputs, journey.cancel, run).await;
        let outcome = outcome.map_err(|e| Ending::Infrastructure(e.to_string()))?;
        let (told, kept) = space::tell(store, inputs, disk, &outcome).await;
        journey.inputs = kept;
        told?;
        let metadata = &mut journey.metadata;
        metadata.execution_start_timestamp = Some(time::timestamp(outcome.started));
        metadata.execution_completed_timestamp = Some(time::timestamp(outcome.finished));
        let ran = outcome
            .finished
            .duration_since(outcome.started)
            .unwrap_or_default();
        // REAPI, of this field: the server "MAY extend or reduce it to account for delays or speedups that occur during
        // execution itself (e.g., lazily loading data from the Content Addressable Storage".
        let stalled = waited.map(|waited| waited());
        let own = ran.saturating_sub(stalled.unwrap_or_default());
        metadata.virtual_execution_duration = Some(time::duration(own));
        journey.record.stalled = stalled;
        metadata
            .auxiliary_metadata
            .extend(usage::messages(&outcome.usage));
        journey.record.execute = ran;
        journey.record.usage = outcome.usage;
        (journey.progress)(metadata.clone());
        Ok(outcome)
    }

    pub(super) fn reports(&self, resolved: &Resolved) -> bool {
        let asked = resolved.demand.input_report;
        asked.unwrap_or(self.parts.settings.input_report)
    }

    pub(super) fn ending_of_inputs(&self, error: InputError, resolved: &Resolved) -> Ending {
        let whole = !self.parts.inputs.lazy();
        from_inputs(error, &resolved.tree, self.parts.cas.local(), whole)
    }
}

/// Takes an input root down after its action has ended; the slot's next root waits for it.
fn remove(staged: Box<dyn StagedRoot>) {
    tokio::spawn(async move {
        let path = staged.path().display().to_string();
        if let Err(error) = staged.remove().await {
            tracing::warn!(%path, %error, "an input root could not be removed; it goes at the next start");
        }
    });
}

/// A phase that may be dropped midway, dropped when the action is cancelled.
pub(super) async fn or_cancelled<T>(
    cancel: &CancellationToken,
    phase: impl Future<Output = Result<T, Ending>>,
) -> Result<T, Ending> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Ending::Cancelled),
        done = phase => done,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::super::Strategies;
    use super::*;
    use crate::sandbox::Level;

    pub(in crate::action) fn settings() -> Settings {
        Settings {
            tree_limits: Default::default(),
            output_limits: Default::default(),
            default_timeout: None,
            max_timeout: None,
            grace: Duration::from_secs(1),
            keep_output: 1 << 20,
            inline_output: 1024,
            strategies: Strategies::at(&[Level::Process]),
            platform: Vec::new(),
            ignored_properties: Vec::new(),
            input_report: false,
            scratch: std::env::temp_dir(),
        }
    }
}
