//! `boxwright run`: one command, executed elsewhere.
//!
//! hash -> upload -> execute -> outputs, then the command's own exit code. Whatever else ends it is told on
//! standard error with its reason and has a code of its own ([`super::exit`]).

mod action;
mod follow;
mod interrupt;
mod live;
mod logs;
mod outputs;
mod own;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::Done;
use super::blobs::{self, Content};
use super::cas::{function, prepare};
use super::exit::{Exit, Failure};
use super::progress::Progress;
use super::{remote, value};
use crate::cas::RemoteCas;
use crate::config::value::Kind;
use crate::config::{Endpoint, units};
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

use action::Wish;
use follow::Follower;
use interrupt::Interrupts;
use live::Live;

/// How long files that are being written, or a pipe that nobody reads, may hold up the end.
const LEFTOVERS: Duration = Duration::from_secs(2);

/// Where `run` was when it did not come to its end.
enum Left {
    Failed(Failure),
    Before,
    Executing(Follower),
    After,
}

impl From<Failure> for Left {
    fn from(failure: Failure) -> Self {
        Left::Failed(failure)
    }
}

/// Run one command on a remote execution service, or in a standalone of its own
///
/// Uploads DIR as the input root, executes COMMAND there, shows its output while it is written where the
/// server streams it, writes the outputs back, and ends with the command's exit code.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: boxwright run --input src --output hello -- gcc -o hello hello.c

Exit codes: the command's own. If it was not the command that failed, boxwright says so on standard error, and the code is \
65 the server refused the action, 66 an input cannot be read, 69 the remote is not available, 70 infrastructure failed, \
73 an output cannot be written, 74 output was lost on the way, 75 try again, 76 the server cannot do it, \
77 permission denied, 124 the command exceeded its timeout, 130 interrupted, 143 terminated.")]
pub(super) struct RunCommand {
    /// The execution service and its CAS; without it a standalone is started for this one command, whose CAS stays under
    /// $XDG_CACHE_HOME/boxwright (root: /var/cache/boxwright)
    #[arg(long, value_name = "URL", value_parser = value::endpoint())]
    remote: Option<Endpoint>,
    /// The instance name at the remote
    #[arg(long, value_name = "NAME", default_value = "")]
    instance: String,
    /// Where the server's log streams are read, if that is not the remote
    #[arg(long, value_name = "URL", value_parser = value::endpoint(), requires = "remote")]
    logstream_remote: Option<Endpoint>,
    #[command(flatten)]
    access: remote::Access,
    /// The directory that the command finds itself in; without it an empty one
    #[arg(long, value_name = "DIR")]
    input: Option<PathBuf>,
    /// A file or directory that the command makes, relative to its working directory; repeat it for more
    #[arg(long = "output", value_name = "PATH")]
    outputs: Vec<String>,
    /// Where outputs are written, each under its PATH; links in there are not followed
    #[arg(long, value_name = "DIR", default_value = ".")]
    output_dir: PathBuf,
    /// A property that the worker must have; repeat it for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    platform: Vec<(String, String)>,
    /// A variable of the command's environment, which holds nothing else but PATH=/usr/local/bin:/usr/bin:/bin unless
    /// PATH is given; repeat it for more
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// How long the command may run: 30s, 5m, 2h [default: the server's]
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    timeout: Option<Duration>,
    /// The working directory, relative to the input root
    #[arg(long, value_name = "DIR", default_value = "")]
    cwd: String,
    /// Execute even if the result is known
    #[arg(long)]
    skip_cache: bool,
    /// Neither use nor keep a cached result
    #[arg(long)]
    no_cache: bool,
    /// Write to FILE which inputs the command read, never read and looked up in vain. The worker is asked for it with the property
    /// boxwright-input-report=true, and executes even if the result is known
    #[arg(long, value_name = "FILE")]
    input_report: Option<PathBuf>,
    /// Show output only when the command has ended. Live output of a command that writes faster than the server streams
    /// may have gaps, which are reported; output shown at the end never has
    #[arg(long)]
    no_live: bool,
    /// The function that names blobs: sha256 or blake3
    #[arg(long, value_name = "FUNCTION", default_value = "sha256", value_parser = function)]
    digest_function: DigestFunction,
    /// Draw no progress, and say nothing but errors
    #[arg(long, short)]
    quiet: bool,
    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match Kind::Pairs.parse(text)? {
        crate::config::value::Value::Pairs(mut pairs) if pairs.len() == 1 => Ok(pairs.remove(0)),
        _ => Err(Kind::Pairs.allowed()),
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it is not NAME=VALUE".to_owned()),
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text) {
        Ok(length) if length > Duration::ZERO => Ok(length),
        Ok(_) => Err("it is no time at all".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl RunCommand {
    pub(super) fn run(mut self) -> Done {
        self.outputs.sort();
        self.outputs.dedup();
        for path in self.outputs.iter().filter(|path| *path != ".") {
            action::check_path("--output", path)?;
        }
        if !self.cwd.is_empty() {
            action::check_path("--cwd", &self.cwd)?;
        }
        let command = Arc::new(self);
        let Some(remote) = command.remote.clone() else {
            let quiet = command.quiet;
            return own::with(quiet, async |endpoint, interrupts| {
                command.at(endpoint, interrupts).await
            });
        };
        let runtime = remote::runtime()?;
        let done = runtime.block_on(async {
            let mut interrupts = Interrupts::listen()?;
            command.at(remote, &mut interrupts).await
        });
        runtime.shutdown_timeout(LEFTOVERS);
        done
    }

    /// All phases, in a task of their own: a pipe that nobody reads holds up the task, and not who listens to signals.
    async fn at(self: Arc<Self>, endpoint: Endpoint, interrupts: &mut Interrupts) -> Done {
        let progress = Progress::new(self.quiet);
        let stop = CancellationToken::new();
        let mut phases = tokio::spawn({
            let (progress, stop) = (progress.clone(), stop.clone());
            async move { self.phases(&endpoint, &progress, &stop).await }
        });
        let joined = |ended: Result<Result<ExitCode, Left>, tokio::task::JoinError>| {
            ended.unwrap_or_else(|error| Err(Failure::new(Exit::Software, error).into()))
        };
        let (ended, signal) = tokio::select! {
            ended = &mut phases => (Some(joined(ended)), None),
            signal = interrupts.next() => {
                stop.cancel();
                let ended = tokio::time::timeout(LEFTOVERS, &mut phases).await;
                phases.abort();
                (ended.ok().map(joined), Some(signal))
            }
        };
        let found = match ended {
            Some(Ok(code)) => Ok(Ok(code)),
            Some(Err(Left::Failed(failure))) => Ok(Err(failure)),
            Some(Err(Left::Before)) => Err("nothing was executed"),
            Some(Err(Left::Executing(follower))) => {
                progress.phase("cancelling");
                let cancelled = tokio::select! {
                    cancelled = follower.cancel() => cancelled,
                    _ = interrupts.next() => false,
                };
                match cancelled {
                    true => Err("the command was cancelled"),
                    false => Err("the command may still run"),
                }
            }
            Some(Err(Left::After)) | None => {
                Err("the command had ended, but not all that it made was fetched")
            }
        };
        progress.clear();
        match (found, signal) {
            (Err(found), Some(signal)) => Err(signal.failure(found)),
            (Err(found), None) => Err(Failure::new(Exit::Software, found)),
            (Ok(done), _) => done,
        }
    }

    /// One phase after the other, until `stop`.
    async fn phases(
        &self,
        endpoint: &Endpoint,
        progress: &Progress,
        stop: &CancellationToken,
    ) -> Result<ExitCode, Left> {
        let credentials = self.access.credentials();
        let cas = remote::connect(endpoint, credentials.clone(), &self.instance)?;
        let prepared = stop.run_until_cancelled(self.prepare(&cas, progress)).await;
        let request = prepared.ok_or(Left::Before)??;
        let line = |endpoint: &Endpoint| endpoint.line(&credentials).map_err(Failure::from);
        let here = line(endpoint)?;
        let readable = match &self.logstream_remote {
            Some(elsewhere) => line(elsewhere)?,
            None => here.clone(),
        };
        let live = Live::new((!self.no_live).then_some(readable), progress.clone());
        let mut follower = Follower::new(here, endpoint.to_string());
        progress.phase("waiting for the server");
        let observe =
            |metadata: &re::ExecuteOperationMetadata| self.observe(metadata, &live, progress);
        let executed = stop
            .run_until_cancelled(follower.execute(request, observe))
            .await;
        let response = executed.ok_or(Left::Executing(follower))??;
        progress.clear();
        let concluded = self.conclude(&cas, response, live, progress);
        let concluded = stop.run_until_cancelled(concluded).await;
        Ok(concluded.ok_or(Left::After)??)
    }

    /// Hashes and uploads; what is left is to ask.
    async fn prepare(
        &self,
        cas: &RemoteCas,
        progress: &Progress,
    ) -> Result<re::ExecuteRequest, Failure> {
        progress.phase("hashing");
        let function = self.digest_function;
        let (root, mut contents) = match &self.input {
            Some(input) if input.is_dir() => prepare(input.clone(), function).await?,
            Some(input) => {
                let text = format!(
                    "--input {}: it is not a directory that can be read",
                    input.display()
                );
                return Err(Failure::new(Exit::NoInput, text));
            }
            None => (Digest::empty(function), Vec::new()),
        };
        let mut platform = self.platform.clone();
        if self.input_report.is_some() {
            platform.push((crate::action::INPUT_REPORT.to_owned(), "true".to_owned()));
        }
        let (action, messages) = action::build(
            function,
            root,
            &Wish {
                arguments: &self.command,
                environment: &self.env,
                platform: &platform,
                outputs: &self.outputs,
                working_directory: &self.cwd,
                timeout: self.timeout,
                do_not_cache: self.no_cache,
            },
        );
        contents.extend(
            messages
                .into_iter()
                .map(|(digest, data)| (digest, Content::Memory(data))),
        );
        blobs::upload(cas, contents, progress).await?;
        Ok(re::ExecuteRequest {
            instance_name: self.instance.clone(),
            skip_cache_lookup: self.skip_cache || self.no_cache || self.input_report.is_some(),
            action_digest: Some(action.to_proto()),
            digest_function: function.to_proto() as i32,
            inline_stdout: true,
            inline_stderr: true,
            ..Default::default()
        })
    }

    fn observe(&self, metadata: &re::ExecuteOperationMetadata, live: &Live, progress: &Progress) {
        use re::execution_stage::Value as Stage;
        let partial = metadata.partial_execution_metadata.as_ref();
        let at = partial.map_or(String::new(), |partial| match partial.worker.as_str() {
            "" => String::new(),
            worker => format!(" on {}", super::exit::printable(worker)),
        });
        match Stage::try_from(metadata.stage) {
            Ok(Stage::CacheCheck) => progress.phase("looking for a cached result"),
            Ok(Stage::Queued) => progress.phase("queued"),
            Ok(Stage::Executing) => progress.phase(format!("executing{at}")),
            _ => {}
        }
        live.follow(&metadata.stdout_stream_name, &metadata.stderr_stream_name);
    }

    async fn conclude(
        &self,
        cas: &RemoteCas,
        response: re::ExecuteResponse,
        live: Live,
        progress: &Progress,
    ) -> Done {
        let function = self.digest_function;
        let failure = report::response(&response);
        let result = response.result.clone().unwrap_or_default();
        let shown = live.finish(cas, function, &result).await;
        if !self.quiet {
            logs::tell(&response, self.input_report.as_deref());
        }
        let reported = match &self.input_report {
            Some(place) => logs::write(cas, function, &response, place).await,
            None => Ok(()),
        };
        if let Some(failure) = failure {
            return Err(failure);
        }
        let plan = outputs::plan(cas, function, &result, &self.outputs).await?;
        let lacking = outputs::lacking(&result, &self.outputs);
        plan.write(cas, &self.output_dir, progress).await?;
        progress.clear();
        if !lacking.is_empty() && !self.quiet {
            eprintln!("boxwright: the command did not make {}", lacking.join(", "));
        }
        // Neither costs the outputs.
        reported?;
        shown?;
        Ok(exit_code(result.exit_code))
    }
}

/// A process ends with a byte: what does not fit stays a failure.
fn exit_code(code: i32) -> ExitCode {
    match u8::try_from(code) {
        Ok(code) => ExitCode::from(code),
        Err(_) => ExitCode::from(match (code & 0xff) as u8 {
            0 => 1,
            low => low,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_never_turn_into_success() {
        for (code, exit) in [
            (0, 0),
            (7, 7),
            (255, 255),
            (256, 1),
            (-1, 255),
            (512, 1),
            (300, 44),
        ] {
            assert_eq!(
                format!("{:?}", exit_code(code)),
                format!("{:?}", ExitCode::from(exit))
            );
        }
    }

    #[test]
    fn flags_are_checked_as_settings_are() {
        assert!(pair("OSFamily=linux").is_ok() && pair("OSFamily").is_err());
        assert!(variable("A=").is_ok() && variable("=a").is_err());
        assert!(timeout("30s").is_ok() && timeout("30").is_err() && timeout("0").is_err());
    }
}
