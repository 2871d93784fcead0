//! A launcher: the small single-threaded process of one slot that starts its commands, waits for them, and leaves nothing
//! of them behind. It takes one request at a time from the daemon and answers each run with one report, after the
//! last process of the command is dead.
//!
//! The daemon's death is the end of file of the socket: the launcher then kills what runs and exits. It therefore
//! blocks all signals, and its death signal only makes it look whether the daemon is still there: the kernel sends that when
//! the *thread* that started the launcher ends, too. Commands are killed by the kernel if the launcher dies.

use std::ffi::CStr;
use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use caps::CapSet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, dup2_stdin, geteuid, getppid, setgroups, setsid};

use super::child::{Plan, spawn};
use super::kill::{Reaper, sweep};
use super::score::OwnScore;
use crate::sandbox::slot::channel;
use crate::sandbox::slot::exec::{Fault, Program};
use crate::sandbox::slot::lookup::candidates;
use crate::sandbox::slot::order::{Misheard, Order, order};
use crate::sandbox::slot::raw::Stack;
use crate::sandbox::slot::sys;
use crate::sandbox::slot::wire::{
    Ended, Failure, INLINE_MAX, PATH_MAX, REQUEST_LEN, Report, Request, RunHeader, Step, Strings,
    now,
};

/// The hidden first argument.
const ARGUMENT: &str = "sandbox-launcher";
/// As the kernel's documentation has it, from -1000 (never) to 1000 (first).
const OOM_SCORE: i32 = 500;

/// The entry point of a launcher process, called first thing in `main` when `argv[1]` is `sandbox-launcher`; never
/// returns. Standard input is the socket to the daemon, `argv[2]` the slot, `argv[3]` the daemon's process id.
pub fn launcher_main() -> ! {
    let result = Launcher::set_up().and_then(|mut launcher| launcher.serve());
    if let Err(error) = result {
        eprintln!("boxwright {ARGUMENT}: {error}");
        std::process::exit(1);
    }
    std::process::exit(0)
}

/// Why a launcher cannot work.
#[derive(Debug, thiserror::Error)]
enum LauncherError {
    #[error("this command is for boxwright's own use (a worker starts it)")]
    NotForYou,
    #[error("cannot {0}: {1}")]
    Call(&'static str, Errno),
    #[error("the daemon broke the protocol: {0}")]
    Protocol(&'static str),
}

fn call(what: &'static str) -> impl Fn(Errno) -> LauncherError {
    move |errno| LauncherError::Call(what, errno)
}

fn rustix_call(what: &'static str) -> impl Fn(rustix::io::Errno) -> LauncherError {
    move |errno| LauncherError::Call(what, Errno::from_raw(errno.raw_os_error()))
}

impl From<Misheard> for LauncherError {
    fn from(misheard: Misheard) -> Self {
        match misheard {
            Misheard::Receive(errno) => rustix_call("receive a request")(errno),
            Misheard::Another => LauncherError::Protocol("a second run at a time"),
            Misheard::Malformed(malformed) => LauncherError::Protocol(malformed.0),
        }
    }
}

struct Launcher {
    socket: OwnedFd,
    null: Rc<File>,
    signals: SignalFd,
    /// The command's until it executes.
    stack: Option<Box<Stack>>,
    /// For what ends commands, which may have to happen meanwhile.
    killer: Box<Stack>,
    daemon: i32,
    /// Ours, if a command has to be made a likelier victim than we are.
    score: Option<OwnScore>,
}

/// What happened until the command executed its program, or did not.
struct Seen {
    reaper: Reaper,
    /// It was signalled.
    stopped: bool,
    /// Nothing of it is left, as the daemon wanted; whether that is still there.
    over: Option<bool>,
}

/// What stopped a wait.
#[derive(PartialEq)]
enum Woken {
    /// A child has ended.
    Child,
    /// The daemon has something to say, or has hung up.
    Socket,
    /// The daemon is gone.
    Orphaned,
}

impl Launcher {
    /// Becomes what all commands of the slot inherit: no privileges to gain, no groups, default signals, umask 022, no core
    /// dumps, no descriptors.
    fn set_up() -> Result<Launcher, LauncherError> {
        let mut args = std::env::args().skip(2);
        let (Some(slot), Some(daemon)) = (
            args.next().and_then(|a| a.parse::<usize>().ok()),
            args.next().and_then(|a| a.parse::<i32>().ok()),
        ) else {
            return Err(LauncherError::NotForYou);
        };
        if !geteuid().is_root() {
            // Those of a user namespace that the daemon may have for its mounts.
            for set in [
                CapSet::Ambient,
                CapSet::Inheritable,
                CapSet::Effective,
                CapSet::Permitted,
            ] {
                caps::clear(None, set)
                    .map_err(|_| LauncherError::Call("drop capabilities", Errno::EPERM))?;
            }
        }
        let stdin = std::io::stdin();
        if rustix::net::sockopt::socket_type(stdin.as_fd())
            != Ok(rustix::net::SocketType::SEQPACKET)
        {
            return Err(LauncherError::NotForYou);
        }
        sys::close_from(3).map_err(|e| {
            LauncherError::Call(
                "close descriptors",
                Errno::from_raw(e.raw_os_error().unwrap_or(0)),
            )
        })?;
        let socket = rustix::io::fcntl_dupfd_cloexec(stdin.as_fd(), 3)
            .map_err(rustix_call("keep the socket"))?;
        let null = File::open("/dev/null").map_err(|e| {
            LauncherError::Call(
                "open /dev/null",
                Errno::from_raw(e.raw_os_error().unwrap_or(0)),
            )
        })?;
        dup2_stdin(&null).map_err(call("replace standard input"))?;

        sys::default_signals();
        let all = SigSet::all();
        all.thread_block().map_err(call("block signals"))?;
        let mut heeded = SigSet::empty();
        heeded.add(Signal::SIGCHLD);
        heeded.add(Signal::SIGTERM);
        let signals = SignalFd::with_flags(&heeded, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(call("make a signalfd"))?;
        // A session of its own: what hits the daemon's process group must not hit those who clean up after it.
        setsid().map_err(call("start a session"))?;
        prctl::set_child_subreaper(true).map_err(call("adopt orphans"))?;
        prctl::set_no_new_privs().map_err(call("renounce new privileges"))?;
        let name = std::ffi::CString::new(format!("boxwright-slot-{slot}")).unwrap_or_default();
        prctl::set_name(&name).map_err(call("take a name"))?;
        umask(Mode::S_IWGRP | Mode::S_IWOTH);
        sys::default_personality();
        setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(call("forbid core dumps"))?;
        chdir("/").map_err(call("leave the directory"))?;
        if geteuid().is_root() {
            // No command may look into a process that could become root's.
            prctl::set_dumpable(false).map_err(call("become opaque"))?;
            setgroups(&[]).map_err(call("drop groups"))?;
        }
        prctl::set_pdeathsig(Signal::SIGTERM).map_err(call("ask for a death signal"))?;
        let launcher = Launcher {
            socket,
            null: Rc::new(null),
            signals,
            stack: None,
            killer: Stack::new(),
            daemon,
            score: OwnScore::below(OOM_SCORE),
        };
        if launcher.orphaned() {
            std::process::exit(0);
        }
        Ok(launcher)
    }

    /// Whether the daemon has died: its children have then got another parent.
    fn orphaned(&self) -> bool {
        getppid().as_raw() != self.daemon
    }

    /// Takes requests until the daemon hangs up.
    fn serve(&mut self) -> Result<(), LauncherError> {
        let mut buffer = vec![0; REQUEST_LEN + INLINE_MAX];
        loop {
            let got = channel::receive(&self.socket, &mut buffer, true);
            let got = match got {
                Ok(got) if got.len == 0 => return Ok(()),
                Err(rustix::io::Errno::CONNRESET) => return Ok(()),
                got => got.map_err(rustix_call("receive a request"))?,
            };
            let (request, tail) = Request::decode(&buffer[..got.len])
                .map_err(|malformed| LauncherError::Protocol(malformed.0))?;
            match request {
                Request::Run(run) => {
                    if !self.run(&run, tail, got.fds)? {
                        return Ok(());
                    }
                }
                Request::Sweep { id, user } => {
                    let errno = sweep(user, &mut self.killer).err().map_or(0, |e| e as i32);
                    self.report(&Report::Swept { id, errno })?;
                }
                Request::SetUp { .. } => {
                    return Err(LauncherError::Protocol("there is nothing to set up"));
                }
                // Sent while the report was on its way.
                Request::Terminate { .. } | Request::Kill { .. } => {}
            }
        }
    }

    /// One command from its start to the end of its last process. False if the daemon has hung up.
    fn run(
        &mut self,
        run: &RunHeader,
        inline: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<bool, LauncherError> {
        let mut ended = Ended {
            id: run.id,
            started: now(),
            ..Ended::default()
        };
        let alive = match self.start(run, inline, fds) {
            Ok((seen, None)) => {
                let Seen {
                    mut reaper,
                    stopped,
                    over,
                } = seen?;
                let watched = match over {
                    None => self.watch(run, &mut reaper, stopped),
                    Some(alive) => Ok((stopped, alive)),
                };
                if reaper.reap() {
                    reaper.kill_all(run.user, &self.signals, &mut self.killer);
                }
                let (stopped, alive) = watched?;
                ended.stopped = stopped;
                ended.status = reaper.status.unwrap_or_default();
                ended.usage = reaper.usage;
                alive
            }
            Ok((seen, Some(failure))) => {
                let Seen {
                    mut reaper, over, ..
                } = seen?;
                reaper.kill_all(run.user, &self.signals, &mut self.killer);
                ended.failure = Some(failure);
                over.unwrap_or(true)
            }
            Err(failure) => {
                ended.failure = Some(failure);
                true
            }
        };
        ended.finished = now();
        if alive {
            self.report(&Report::Ended(ended))?;
        }
        Ok(alive)
    }

    /// Starts the command. The descriptors are closed on return: the command alone has them then.
    fn start(
        &mut self,
        run: &RunHeader,
        inline: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<(Result<Seen, LauncherError>, Option<Failure>), Failure> {
        let refused = |errno: i32| Failure {
            step: Step::Request,
            errno,
            path: Vec::new(),
        };
        let mut fds = fds.into_iter();
        if run.root_fd {
            return Err(refused(libc::EBADF));
        }
        let (Some(stdout), Some(stderr), memfd, None) =
            (fds.next(), fds.next(), fds.next(), fds.next())
        else {
            return Err(refused(libc::EBADF));
        };
        if memfd.is_some() != run.in_memfd {
            return Err(refused(libc::EBADF));
        }
        let read;
        let bytes = match memfd {
            None => inline,
            Some(memfd) => {
                // Read, not mapped: nobody can change it between the check and the use.
                let mut strings = Vec::with_capacity(run.strings_len + 1);
                File::from(memfd)
                    .take(run.strings_len as u64 + 1)
                    .read_to_end(&mut strings)
                    .map_err(|e| refused(e.raw_os_error().unwrap_or(libc::EIO)))?;
                read = strings;
                &read
            }
        };
        let strings = Strings::decode(run, bytes).map_err(|_| refused(libc::EPROTO))?;
        if run.user.is_none() && geteuid().is_root() {
            return Err(refused(libc::EPERM));
        }
        let program = strings.argv.first().copied().unwrap_or_default();
        let candidates = candidates(program, &strings.env);
        let candidates: Vec<&CStr> = candidates.iter().map(|c| c.as_c_str()).collect();
        let null = self.null.clone();
        let plan = Plan {
            program: Program::new(&candidates, &strings.argv, &strings.env),
            root: strings.root,
            cwd: strings.cwd,
            stdin: null.as_fd(),
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
            user: run.user.map(|user| (user.uid, user.uid)),
            open_files: run.open_files,
            file_size: run.file_size,
            processes: run.processes,
            oom_victim: self.score.is_some(),
        };
        let mut stack = self.stack.take().unwrap_or_else(Stack::new);
        let spawned = spawn(&plan, &mut stack, |pid, over| self.attend(run, pid, over));
        self.stack = Some(stack);
        if let Some(score) = &self.score {
            score.restore();
        }
        let (seen, fault) = spawned.map_err(|errno| Failure {
            step: Step::Clone,
            errno,
            path: Vec::new(),
        })?;
        let failure = fault.map(
            |Fault {
                 step,
                 errno,
                 candidate,
             }| {
                let path = candidates.get(candidate).filter(|_| step >= Step::NotFound);
                let path = path.map_or(&[][..], |path| path.to_bytes());
                Failure {
                    step,
                    errno,
                    path: path[..path.len().min(PATH_MAX)].to_vec(),
                }
            },
        );
        Ok((seen, failure))
    }

    /// Waits until the command executes or has failed to, which `started` tells, and heeds the daemon meanwhile: the kernel may
    /// be waiting for the program's content. Whatever this returns, `started` has told it by then.
    fn attend(
        &mut self,
        run: &RunHeader,
        pid: i32,
        started: BorrowedFd<'_>,
    ) -> Result<Seen, LauncherError> {
        let mut reaper = Reaper::new(pid);
        let mut stopped = false;
        loop {
            let mut fds = [
                PollFd::new(started, PollFlags::POLLIN),
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            ];
            let polled = match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => polled.map_err(call("wait")),
            };
            if fds[0].revents().is_some_and(|events| !events.is_empty()) {
                return Ok(Seen {
                    reaper,
                    stopped,
                    over: None,
                });
            }
            let alive = match polled.and_then(|_| Ok(order(&self.socket, run.id)?)) {
                Ok(Order::Nothing) => continue,
                Ok(Order::Terminate) => {
                    stopped = true;
                    reaper.terminate();
                    continue;
                }
                Ok(Order::Kill) => Ok(true),
                Ok(Order::HungUp) => Ok(false),
                Err(error) => Err(error),
            };
            reaper.kill_all(run.user, &self.signals, &mut self.killer);
            return alive.map(|alive| Seen {
                reaper,
                stopped: true,
                over: Some(alive),
            });
        }
    }

    /// Waits for the command's end, or for a reason to end it. Returns whether we had signalled it before it
    /// ended, and whether the daemon is still there. What is left of it is for the caller to kill.
    fn watch(
        &mut self,
        run: &RunHeader,
        reaper: &mut Reaper,
        mut stopped: bool,
    ) -> Result<(bool, bool), LauncherError> {
        loop {
            let woken = self.wait()?;
            // First of all, so that an end which came before the request counts as natural.
            reaper.reap();
            if reaper.status.is_some() {
                return Ok((stopped, true));
            }
            match woken {
                Woken::Child => {}
                Woken::Orphaned => return Ok((true, false)),
                Woken::Socket => match order(&self.socket, run.id)? {
                    Order::Nothing => {}
                    Order::Terminate => {
                        stopped = true;
                        reaper.terminate();
                    }
                    Order::Kill => return Ok((true, true)),
                    Order::HungUp => return Ok((true, false)),
                },
            }
        }
    }

    /// Waits for a child's end or the daemon's word.
    fn wait(&self) -> Result<Woken, LauncherError> {
        let mut fds = [
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
        ];
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                result => result.map_err(call("wait"))?,
            };
            break;
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let (signalled, spoken) = (ready(&fds[0]), ready(&fds[1]));
        if signalled
            && let Ok(Some(signal)) = self.signals.read_signal()
            && signal.ssi_signo == Signal::SIGTERM as u32
            && self.orphaned()
        {
            return Ok(Woken::Orphaned);
        }
        Ok(if spoken { Woken::Socket } else { Woken::Child })
    }

    fn report(&self, report: &Report) -> Result<(), LauncherError> {
        match channel::send(&self.socket, &[IoSlice::new(&report.encode())], &[]) {
            // The next receive sees the end of file.
            Ok(()) | Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Ok(()),
            Err(errno) => Err(rustix_call("send a report")(errno)),
        }
    }
}
