//! One run, as the daemon sees it: the request goes out, the streams are read, time and cancellation are watched, and the
//! launcher's report ends it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::pin::{Pin, pin};
use std::process::ExitStatus;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::lookup::judge;
use super::request::{Ends, Refusal, RunRequest};
use super::seat::{KILL_PATIENCE, Seat};
use super::streams::{Stream, capture};
use super::wire::{Ended, Report, WireUsage};
use crate::config::Owner;
use crate::sandbox::{
    Captured, CommandSpec, End, Exempt, Outcome, SandboxError, StreamSpec, Usage,
};

/// How far a command that must end has been brought.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// It may run.
    Running,
    /// It got SIGTERM.
    Terminated,
    /// It got SIGKILL.
    Killed,
}

/// A seat with a command in it. Dropped before the report is in, it kills the command; whoever takes the
/// seat next waits for the report.
struct Occupied<'a> {
    seat: &'a mut Seat,
    over: bool,
}

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.seat.kill();
        }
    }
}

/// What a level adds to a run.
pub(in crate::sandbox) struct Run<'a> {
    /// The command.
    pub(in crate::sandbox) spec: CommandSpec,
    /// Ends it when somebody wants that.
    pub(in crate::sandbox) cancel: CancellationToken,
    /// A detached mount of the input root.
    pub(in crate::sandbox) root: Option<OwnedFd>,
    /// By which the command enters its cgroups.
    pub(in crate::sandbox) groups: &'a [OwnedFd],
    /// Whom the command runs as, for what is said of it.
    pub(in crate::sandbox) uid: Option<u32>,
    /// Who that is outside, if it is not the daemon's own user.
    pub(in crate::sandbox) owner: Option<Owner>,
    /// Completes when the command has gone beyond a bound, with its name.
    pub(in crate::sandbox) exceeded: Exceeded,
}

/// Completes when a bound is exceeded, with words for it.
pub(in crate::sandbox) type Exceeded = Pin<Box<dyn Future<Output = String> + Send>>;

/// A finished run.
pub(in crate::sandbox) struct Ran {
    /// How it ended.
    pub(in crate::sandbox) outcome: Outcome,
    /// The command had to be ended.
    pub(in crate::sandbox) forced: bool,
}

/// Runs a command in a seat that is ready for it.
pub(in crate::sandbox) async fn run(seat: &mut Seat, run: Run<'_>) -> Result<Ran, SandboxError> {
    let Run {
        mut spec,
        cancel,
        root,
        groups,
        uid,
        owner,
        exceeded,
    } = run;
    let at_once = |end| Ran {
        outcome: without_start(end),
        forced: false,
    };
    if cancel.is_cancelled() {
        return Ok(at_once(End::Cancelled));
    }
    let request = match RunRequest::new(&spec, seat.user, root) {
        Ok(request) => request,
        Err(Refusal::Command(end)) => return Ok(at_once(end)),
        Err(Refusal::Sandbox(error)) => return Err(error),
    };

    let (stdout, stdout_write) = pipe(owner)?;
    let (stderr, stderr_write) = pipe(owner)?;
    let ends = Ends {
        stdout: stdout_write.as_fd(),
        stderr: stderr_write.as_fd(),
        groups,
    };
    seat.ask(|socket, id| request.send(socket, id, ends))
        .await?;
    // The command alone holds them now, so that their end is its end.
    drop((stdout_write, stderr_write, request));
    let occupied = Occupied { seat, over: false };

    let over = CancellationToken::new();
    let out_spec = take(&mut spec.stdout);
    let err_spec = take(&mut spec.stderr);
    let mut streams = pin!(async {
        tokio::try_join!(
            named("output", &spec.stdout, capture(stdout, out_spec, &over)),
            named("error", &spec.stderr, capture(stderr, err_spec, &over)),
        )
    });
    let wishes = Wishes {
        timeout: spec.timeout,
        exempt: std::mem::take(&mut spec.exempt),
        grace: spec.grace,
        cancel,
        exceeded,
    };
    let (ended, why, early) = supervise(occupied, wishes, streams.as_mut()).await?;
    over.cancel();
    let (stdout, stderr) = match early {
        Some(streams) => streams?,
        None => streams.await?,
    };
    let end = match &ended.failure {
        Some(failure) => judge(failure, &spec, uid, seat.slot())?,
        None => end_of(&ended, why),
    };
    let outcome = Outcome {
        end,
        usage: usage(&ended.usage),
        started: time(ended.started),
        finished: time(ended.finished),
        stdout: stdout.captured,
        stdout_dropped: stdout.dropped,
        stderr: stderr.captured,
        stderr_dropped: stderr.dropped,
    };
    Ok(Ran {
        outcome,
        forced: ended.stopped,
    })
}

/// What may end a command before it ends by itself.
struct Wishes {
    timeout: Option<Duration>,
    exempt: Exempt,
    grace: Duration,
    cancel: CancellationToken,
    exceeded: Exceeded,
}

type Streams = Result<(Stream, Stream), SandboxError>;

/// Waits for the report, and brings the command to its end if it has to. Returns the report, why the command had to end, and
/// the streams if they ended before.
async fn supervise(
    mut occupied: Occupied<'_>,
    mut wishes: Wishes,
    mut streams: Pin<&mut impl Future<Output = Streams>>,
) -> Result<(Ended, End, Option<Streams>), SandboxError> {
    let grace = wishes.grace;
    let mut timer = pin!(sleep(wishes.timeout.unwrap_or_default()));
    let mut timed = wishes.timeout.is_some();
    // How much time beyond the timeout it was given.
    let mut granted = Duration::ZERO;
    let mut phase = Phase::Running;
    let mut why = End::Cancelled;
    let mut early = None;
    let report = loop {
        tokio::select! {
            biased;
            report = occupied.seat.report(None) => break report,
            ended = &mut streams, if early.is_none() => {
                // Without its output the command is of no use.
                if ended.is_err() && phase != Phase::Killed {
                    phase = Phase::Killed;
                    occupied.seat.kill();
                    timer.as_mut().reset(soon(KILL_PATIENCE));
                    timed = true;
                }
                early = Some(ended);
            }
            () = wishes.cancel.cancelled(), if phase == Phase::Running => {
                why = End::Cancelled;
                phase = stop(occupied.seat, grace);
                timer.as_mut().reset(soon(patience(phase, grace)));
                timed = true;
            }
            bound = &mut wishes.exceeded, if phase == Phase::Running => {
                why = End::LimitExceeded(bound);
                phase = stop(occupied.seat, Duration::ZERO);
                timer.as_mut().reset(soon(KILL_PATIENCE));
                timed = true;
            }
            () = &mut timer, if timed => match phase {
                Phase::Running if wishes.exempt.so_far() > granted => {
                    let now = wishes.exempt.so_far();
                    timer.as_mut().reset(soon(now.saturating_sub(granted)));
                    granted = now;
                }
                Phase::Running => {
                    why = End::TimedOut;
                    phase = stop(occupied.seat, grace);
                    timer.as_mut().reset(soon(patience(phase, grace)));
                }
                Phase::Terminated => {
                    occupied.seat.kill();
                    phase = Phase::Killed;
                    timer.as_mut().reset(soon(KILL_PATIENCE));
                }
                Phase::Killed => {
                    let problem = format!("did not end its command within {KILL_PATIENCE:?}");
                    break Err(occupied.seat.error(problem));
                }
            },
        }
    };
    occupied.over = true;
    let error = match report {
        Ok(Report::Ended(ended)) => return Ok((ended, why, early)),
        Ok(_) => occupied.seat.error("answered what it was not asked"),
        Err(error) => error,
    };
    // Nothing of the command may be left, whatever became of its launcher.
    match occupied.seat.lose().await {
        Ok(()) => Err(error),
        Err(worse) => Err(occupied.seat.error(format!(
            "was lost ({error}) and cannot be replaced: {worse}"
        ))),
    }
}

/// The first blow, and what comes of it.
fn stop(seat: &Seat, grace: Duration) -> Phase {
    if grace.is_zero() {
        seat.kill();
        return Phase::Killed;
    }
    seat.terminate();
    Phase::Terminated
}

fn patience(phase: Phase, grace: Duration) -> Duration {
    match phase {
        Phase::Killed => KILL_PATIENCE,
        _ => grace,
    }
}

fn soon(after: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + after.min(YEAR)
}

fn end_of(ended: &Ended, why: End) -> End {
    if ended.stopped {
        return why;
    }
    let status = ExitStatus::from_raw(ended.status);
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code),
        (None, signal) => End::Signalled(signal.unwrap_or_default()),
    }
}

async fn named(
    name: &str,
    spec: &StreamSpec,
    capture: impl Future<Output = std::io::Result<Stream>>,
) -> Result<Stream, SandboxError> {
    capture.await.map_err(|source| SandboxError::Setup {
        action: format!(
            "keep the command's standard {name} ({})",
            spec.spill_dir.display()
        ),
        source,
    })
}

/// The stream's reader owns its sender, so that the receiver sees the end when the stream has ended.
fn take(spec: &mut StreamSpec) -> StreamSpec {
    StreamSpec {
        memory: spec.memory,
        keep: spec.keep,
        spill_dir: spec.spill_dir.clone(),
        live: spec.live.take(),
    }
}

/// A pipe that belongs to the command's user, who opens it again as /dev/stdout or /dev/stderr.
fn pipe(owner: Option<Owner>) -> Result<(OwnedFd, OwnedFd), SandboxError> {
    let make = || {
        let (read, write) = std::io::pipe()?;
        if let Some(Owner { uid, gid }) = owner {
            std::os::unix::fs::fchown(&write, Some(uid), Some(gid))?;
        }
        Ok((read.into(), write.into()))
    };
    make().map_err(|source| SandboxError::Setup {
        action: "make a pipe for a command's output".into(),
        source,
    })
}

fn without_start(end: End) -> Outcome {
    let now = SystemTime::now();
    Outcome {
        end,
        usage: Usage::default(),
        started: now,
        finished: now,
        stdout: Captured::Memory(Bytes::new()),
        stdout_dropped: 0,
        stderr: Captured::Memory(Bytes::new()),
        stderr_dropped: 0,
    }
}

fn time(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}

fn usage(usage: &WireUsage) -> Usage {
    Usage {
        user: Duration::from_micros(usage.user_us),
        system: Duration::from_micros(usage.system_us),
        max_rss: usage.max_rss_kib.saturating_mul(1024),
        minor_faults: usage.minor_faults,
        major_faults: usage.major_faults,
        blocks_in: usage.blocks_in,
        blocks_out: usage.blocks_out,
        voluntary_switches: usage.voluntary_switches,
        involuntary_switches: usage.involuntary_switches,
        ..Usage::default()
    }
}
