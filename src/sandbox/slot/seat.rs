//! The daemon's side of a slot: its launcher, whether that is in the middle of something, and how it is replaced.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;

use super::channel;
use super::launchers::{LauncherKind, LauncherProcess};
use super::orphans;
use super::sys;
use super::uids::SlotUser;
use super::wire::{PATH_MAX, REPORT_LEN, Report, Request};
use crate::sandbox::SandboxError;

/// A launcher that was told to kill has this long to report: its command's processes may have to finish what they do in the
/// kernel.
pub(in crate::sandbox) const KILL_PATIENCE: Duration = Duration::from_secs(60);

/// One slot.
#[derive(Debug)]
pub(in crate::sandbox) struct Seat {
    slot: usize,
    kind: LauncherKind,
    /// Whom commands run as.
    pub(in crate::sandbox) user: Option<SlotUser>,
    /// `None` after it was lost, until it is replaced.
    link: Option<Link>,
    /// What the launcher was asked last and has not answered.
    busy: Option<u64>,
    last_id: u64,
    /// Nothing runs as the user, but for what we started since.
    swept: bool,
    /// What a launcher is told before its first command.
    set_up: Option<Arc<SetUp>>,
    /// This launcher was told.
    is_set_up: bool,
    /// The next command gets another launcher.
    retired: bool,
}

/// What a launcher is told once.
#[derive(Debug)]
pub(in crate::sandbox) struct SetUp {
    /// What its commands see, in a sealed memfd.
    pub(in crate::sandbox) message: OwnedFd,
}

#[derive(Debug)]
struct Link {
    // First, as the launcher ends when this is closed.
    socket: AsyncFd<OwnedFd>,
    process: LauncherProcess,
}

impl Link {
    fn new(mut process: LauncherProcess) -> Result<Link, SandboxError> {
        let socket = match process.socket.take() {
            Some(socket) => sys::watch(socket),
            None => Err(std::io::ErrorKind::NotConnected.into()),
        };
        Ok(Link {
            socket: socket.map_err(|source| SandboxError::Setup {
                action: "watch a launcher's socket".into(),
                source,
            })?,
            process,
        })
    }
}

impl Seat {
    /// Takes the launcher into the current runtime.
    pub(in crate::sandbox) fn new(
        slot: usize,
        kind: LauncherKind,
        user: Option<SlotUser>,
        process: LauncherProcess,
    ) -> Result<Seat, SandboxError> {
        Ok(Seat {
            slot,
            kind,
            user,
            link: Some(Link::new(process)?),
            busy: None,
            last_id: 0,
            swept: false,
            set_up: None,
            is_set_up: false,
            retired: false,
        })
    }

    /// What launchers are told from now on. One that was told something else is replaced before the next command.
    pub(in crate::sandbox) fn set_up(&mut self, set_up: Arc<SetUp>) {
        self.retired |= self.is_set_up;
        self.set_up = Some(set_up);
    }

    /// The next command gets another launcher, as something about this one is suspicious.
    pub(in crate::sandbox) fn retire(&mut self) {
        self.retired = true;
    }

    pub(in crate::sandbox) fn slot(&self) -> usize {
        self.slot
    }

    /// The process id of the launcher, if there is one.
    pub(in crate::sandbox) fn launcher(&self) -> Option<u32> {
        self.link.as_ref().map(|link| link.process.pid())
    }

    pub(in crate::sandbox) fn error(&self, problem: impl Into<String>) -> SandboxError {
        SandboxError::Launcher {
            slot: self.slot,
            problem: problem.into(),
        }
    }

    /// Makes the launcher ready for a command: waits for the end of one whose `run` was dropped, replaces a launcher
    /// that is lost.
    pub(in crate::sandbox) async fn ready(&mut self) -> Result<(), SandboxError> {
        if self.busy.is_some() && self.report(Some(KILL_PATIENCE)).await.is_err() || self.retired {
            return self.lose().await;
        }
        let told = self.set_up.is_none() || self.is_set_up;
        match &self.link {
            None => self.restore().await,
            Some(_) if told && (self.user.is_none() || self.swept) => Ok(()),
            // It may have died since it was started.
            Some(_) => match self.restore().await {
                Ok(()) => Ok(()),
                Err(_) => self.lose().await,
            },
        }
    }

    /// Sends a request by `send`, which gets the socket and the number to give it. Only a launcher that has died since
    /// its last command can refuse; it is replaced once.
    pub(in crate::sandbox) async fn ask(
        &mut self,
        send: impl Fn(&OwnedFd, u64) -> Result<(), rustix::io::Errno>,
    ) -> Result<u64, SandboxError> {
        match self.try_ask(&send) {
            Ok(id) => return Ok(id),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {}
            Err(errno) => return Err(self.error(format!("takes no request: {errno}"))),
        }
        self.lose().await?;
        self.try_ask(&send)
            .map_err(|errno| self.error(format!("takes no request: {errno}")))
    }

    fn try_ask(
        &mut self,
        send: impl Fn(&OwnedFd, u64) -> Result<(), rustix::io::Errno>,
    ) -> Result<u64, rustix::io::Errno> {
        let link = self.link.as_ref().ok_or(rustix::io::Errno::PIPE)?;
        let id = self.last_id + 1;
        send(link.socket.get_ref(), id)?;
        self.last_id = id;
        self.busy = Some(id);
        Ok(id)
    }

    /// SIGTERM to what runs. If it cannot be sent, the launcher is dead, and the wait for its report says so.
    pub(in crate::sandbox) fn terminate(&self) {
        self.order(|id| Request::Terminate { id });
    }

    /// SIGKILL to what runs.
    pub(in crate::sandbox) fn kill(&self) {
        self.order(|id| Request::Kill { id });
    }

    fn order(&self, request: impl Fn(u64) -> Request) {
        if let (Some(link), Some(id)) = (&self.link, self.busy) {
            let message = request(id).encode();
            let _ = channel::send(link.socket.get_ref(), &[IoSlice::new(&message)], &[]);
        }
    }

    /// The answer to the last request. An error is the end of this launcher: see [`Seat::lose`].
    pub(in crate::sandbox) async fn report(
        &mut self,
        patience: Option<Duration>,
    ) -> Result<Report, SandboxError> {
        let answer = self.answer();
        let report = match patience {
            None => answer.await,
            Some(patience) => match tokio::time::timeout(patience, answer).await {
                Ok(report) => report,
                Err(_) => Err(self.error(format!("gave no answer within {patience:?}"))),
            },
        }?;
        self.busy = None;
        Ok(report)
    }

    async fn answer(&self) -> Result<Report, SandboxError> {
        let Some(link) = &self.link else {
            return Err(self.error("is gone"));
        };
        loop {
            let ready = link.socket.readable().await;
            let mut ready = ready.map_err(|e| self.error(format!("cannot be waited for: {e}")))?;
            let Ok(received) = ready.try_io(|socket| receive(socket.get_ref())) else {
                continue;
            };
            let report = received.map_err(|e| self.error(format!("failed: {e}")))?;
            let report = report.ok_or_else(|| self.error("died"))?;
            let (Report::Ended(super::wire::Ended { id, .. })
            | Report::Swept { id, .. }
            | Report::SetUp { id, .. }) = &report;
            if Some(*id) == self.busy {
                return Ok(report);
            }
            return Err(self.error("answered what it was not asked"));
        }
    }

    /// Gives the launcher up: kills it and what it leaves behind, and starts another.
    pub(in crate::sandbox) async fn lose(&mut self) -> Result<(), SandboxError> {
        self.busy = None;
        self.swept = false;
        self.is_set_up = false;
        self.retired = false;
        if let Some(mut link) = self.link.take() {
            link.process.kill();
            // Waiting for a process that has just been killed.
            let _ = spawn_blocking(move || drop(link)).await;
        }
        self.restore().await
    }

    /// Starts a launcher if there is none, and makes sure that nothing runs in the slot.
    async fn restore(&mut self) -> Result<(), SandboxError> {
        if self.link.is_none() {
            let (kind, slot) = (self.kind.clone(), self.slot);
            let process = spawn_blocking(move || LauncherProcess::start(&kind, slot)).await;
            let process = process.map_err(|e| self.error(format!("cannot be started: {e}")))??;
            self.link = Some(Link::new(process)?);
        }
        if let Some(user) = self.user {
            let message = |id| Request::Sweep { id, user }.encode();
            self.try_ask(|socket, id| channel::send(socket, &[IoSlice::new(&message(id))], &[]))
                .map_err(|errno| self.error(format!("takes no request: {errno}")))?;
            let swept = self.report(Some(KILL_PATIENCE)).await;
            match swept {
                Ok(Report::Swept { errno: 0, .. }) => {}
                Ok(Report::Swept { errno, .. }) => {
                    return Err(SandboxError::Setup {
                        action: format!("end the processes of uid {}", user.uid),
                        source: std::io::Error::from_raw_os_error(errno),
                    });
                }
                Ok(_) => return Err(self.error("answered what it was not asked")),
                Err(error) => return Err(error),
            }
        }
        self.tell().await?;
        if !self.swept {
            let uid = self.user.map(|user| user.uid);
            let ended = spawn_blocking(move || orphans::end(uid)).await;
            ended
                .map_err(std::io::Error::other)
                .and_then(|ended| Ok(ended?))
                .map_err(|source| SandboxError::Setup {
                    action: format!("end what the launcher of slot {} left behind", self.slot),
                    source,
                })?;
            self.swept = true;
        }
        Ok(())
    }
}

impl Seat {
    /// Tells the launcher what its commands see.
    async fn tell(&mut self) -> Result<(), SandboxError> {
        let Some(set_up) = self.set_up.clone().filter(|_| !self.is_set_up) else {
            return Ok(());
        };
        let fds = [set_up.message.as_fd()];
        let message = |id| Request::SetUp { id }.encode();
        self.try_ask(|socket, id| channel::send(socket, &[IoSlice::new(&message(id))], &fds))
            .map_err(|errno| self.error(format!("takes no request: {errno}")))?;
        match self.report(Some(KILL_PATIENCE)).await? {
            Report::SetUp { failure, .. } if failure.is_empty() => {
                self.is_set_up = true;
                Ok(())
            }
            Report::SetUp { failure, .. } => Err(SandboxError::Isolate { problem: failure }),
            _ => Err(self.error("answered what it was not asked")),
        }
    }
}

/// One report; `None` at the end of file.
fn receive(socket: &OwnedFd) -> std::io::Result<Option<Report>> {
    let mut buffer = [0; REPORT_LEN + PATH_MAX];
    let got = match channel::receive(socket, &mut buffer, false) {
        Ok(got) if got.len == 0 => return Ok(None),
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        got => got?,
    };
    Report::decode(&buffer[..got.len])
        .map(Some)
        .map_err(std::io::Error::other)
}
