//! The launcher of a slot at the full level. It is two processes. The *keeper*, which the daemon starts, has the daemon's rights:
//! it makes the other one in new namespaces, writes its maps of ids, and then only waits for it. The *launcher* proper is pid
//! 1 of the slot's PID namespace and nobody outside: it builds the root ([`super::template`]) and runs one command
//! at a time ([`super::action`]).
//!
//! The end of either, or of the daemon, is the end of all: the launcher dies with its keeper (death signal) or when the daemon's
//! socket is closed, and with it the kernel kills everything in its namespace.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, dup2_stdin, getppid, setgroups, sethostname, setsid};

use super::action::Actions;
use super::identity;
use super::network::Network;
use super::set_up::SetUpMessage;
use super::sys::{self, Forked};
use super::template::Template;
use crate::sandbox::slot::channel;
use crate::sandbox::slot::order::Misheard;
use crate::sandbox::slot::sys as slot_sys;
use crate::sandbox::slot::wire::{INLINE_MAX, REQUEST_LEN, Report, Request};

/// As the kernel's documentation has it, from -1000 (never) to 1000 (first): a command is a likelier victim than the daemon.
const OOM_SCORE: &str = "500";
/// The largest message of a set-up, in bytes.
const SET_UP_MAX: u64 = 4 << 20;

/// The entry point of a launcher process; never returns. Standard input is the socket to the daemon, `argv[2]` the slot,
/// `argv[3]` the daemon's process id.
pub(in crate::sandbox) fn launcher_main() -> ! {
    let code = match keep() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("boxwright sandbox-slot: {error}");
            1
        }
    };
    std::process::exit(code)
}

/// Why a launcher cannot work.
#[derive(Debug, thiserror::Error)]
pub(super) enum LauncherError {
    #[error("this command is for boxwright's own use (a worker starts it)")]
    NotForYou,
    #[error("cannot {what}: {source}")]
    Call {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the daemon broke the protocol: {0}")]
    Protocol(String),
}

impl From<Misheard> for LauncherError {
    fn from(misheard: Misheard) -> Self {
        match misheard {
            Misheard::Receive(errno) => call("receive a request")(errno),
            Misheard::Another => LauncherError::Protocol("a second request at a time".into()),
            Misheard::Malformed(malformed) => LauncherError::Protocol(malformed.to_string()),
        }
    }
}

pub(super) fn call<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> LauncherError {
    move |error| LauncherError::Call {
        what,
        source: error.into(),
    }
}

/// The keeper, from its start to its end.
fn keep() -> Result<(), LauncherError> {
    let mut args = std::env::args().skip(2);
    let (Some(slot), Some(daemon)) = (
        args.next().and_then(|a| a.parse::<usize>().ok()),
        args.next().and_then(|a| a.parse::<i32>().ok()),
    ) else {
        return Err(LauncherError::NotForYou);
    };
    let socket = take_socket()?;
    prepare(slot)?;
    // The signal only makes the keeper look: the kernel sends it when the thread that started it ends, too.
    if getppid().as_raw() != daemon {
        return Ok(());
    }
    let mut buffer = vec![0; REQUEST_LEN + INLINE_MAX];
    let Some((id, message)) = first_request(&socket, &mut buffer)? else {
        return Ok(());
    };
    let told = SetUpMessage::read(&message).map_err(LauncherError::Protocol)?;
    let refuse = |problem: String| {
        let report = Report::SetUp {
            id,
            failure: problem,
        };
        send(&socket, &report)
    };

    let mut namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    if !told.network {
        namespaces |= CloneFlags::CLONE_NEWNET;
    }
    let queues = lift_queues().map_err(call("ask for the limit of message queues"))?;
    let (mapped, write_mapped) = std::io::pipe().map_err(call("make a pipe"))?;
    match sys::fork_into(namespaces.bits() as u64) {
        Err(error) => refuse(identity::no_namespaces(&error)),
        Ok(Forked::Child) => {
            drop(write_mapped);
            let code = match launch(id, &told, &socket, mapped, buffer, queues) {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("boxwright sandbox-slot {slot}: {error}");
                    1
                }
            };
            std::process::exit(code)
        }
        Ok(Forked::Parent(pid)) => {
            drop(mapped);
            match identity::write_maps(pid, &told) {
                Ok(()) => drop(std::io::Write::write_all(&mut &write_mapped, b"m")),
                Err(problem) => refuse(problem)?,
            }
            renounce()?;
            // From here on the launcher alone holds the socket.
            drop((write_mapped, socket));
            sys::wait_for(pid).map_err(call("wait for the launcher"))?;
            Ok(())
        }
    }
}

/// Nothing that is executed from now on gains a privilege. Not before the maps are written: newuidmap needs its own.
fn renounce() -> Result<(), LauncherError> {
    prctl::set_no_new_privs().map_err(call("renounce new privileges"))
}

/// Keeps the socket to the daemon, and nothing else that was open.
fn take_socket() -> Result<OwnedFd, LauncherError> {
    let stdin = std::io::stdin();
    if rustix::net::sockopt::socket_type(stdin.as_fd()) != Ok(rustix::net::SocketType::SEQPACKET) {
        return Err(LauncherError::NotForYou);
    }
    slot_sys::close_from(3).map_err(call("close descriptors"))?;
    let socket =
        rustix::io::fcntl_dupfd_cloexec(stdin.as_fd(), 3).map_err(call("keep the socket"))?;
    let null = File::open("/dev/null").map_err(call("open /dev/null"))?;
    dup2_stdin(&null).map_err(call("replace standard input"))?;
    Ok(socket)
}

/// What launcher and commands inherit.
fn prepare(slot: usize) -> Result<(), LauncherError> {
    slot_sys::default_signals();
    // All signals stay blocked: the socket tells what there is to do, and death signals that kill cannot be blocked.
    SigSet::all()
        .thread_block()
        .map_err(call("block signals"))?;
    setsid().map_err(call("start a session"))?;
    let name = std::ffi::CString::new(format!("boxwright-slot-{slot}")).unwrap_or_default();
    prctl::set_name(&name).map_err(call("take a name"))?;
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    slot_sys::default_personality();
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(call("forbid core dumps"))?;
    chdir("/").map_err(call("leave the directory"))?;
    // A container may forbid it, which changes nothing for the command.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    Ok(())
}

/// Message queues are counted twice: in a launcher's user namespace, where the limit of its commands counts, and for the daemon's
/// user, against the limit that the maker of the namespace has. There one slot must not take what another needs. Returns what it was;
/// without the right, all slots share that.
fn lift_queues() -> nix::Result<(rlim_t, rlim_t)> {
    let own = getrlimit(Resource::RLIMIT_MSGQUEUE)?;
    let _ = setrlimit(Resource::RLIMIT_MSGQUEUE, RLIM_INFINITY, RLIM_INFINITY);
    Ok(own)
}

/// What the commands of this launcher see. `None` if the daemon has hung up.
fn first_request(
    socket: &OwnedFd,
    buffer: &mut [u8],
) -> Result<Option<(u64, Vec<u8>)>, LauncherError> {
    let got = match channel::receive(socket, buffer, true) {
        Ok(got) if got.len == 0 => return Ok(None),
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        got => got.map_err(call("receive a request"))?,
    };
    let request = Request::decode(&buffer[..got.len]);
    let mut fds = got.fds.into_iter();
    let (Ok((Request::SetUp { id }, _)), Some(memfd)) = (request, fds.next()) else {
        return Err(LauncherError::Protocol(
            "the first request sets nothing up".into(),
        ));
    };
    // The daemon tells the next launcher with the same descriptor.
    rustix::fs::seek(&memfd, rustix::fs::SeekFrom::Start(0)).map_err(call("read a request"))?;
    let mut message = Vec::new();
    File::from(memfd)
        .take(SET_UP_MAX)
        .read_to_end(&mut message)
        .map_err(call("read a request"))?;
    Ok(Some((id, message)))
}

pub(super) fn send(socket: &OwnedFd, report: &Report) -> Result<(), LauncherError> {
    match channel::send(socket, &[IoSlice::new(&report.encode())], &[]) {
        // The next receive sees the end of file.
        Ok(()) | Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Ok(()),
        Err(errno) => Err(call("send a report")(errno)),
    }
}

/// The launcher proper: in its namespaces, not yet mapped to anybody.
fn launch(
    id: u64,
    told: &SetUpMessage,
    socket: &OwnedFd,
    mut mapped: std::io::PipeReader,
    mut buffer: Vec<u8>,
    queues: (rlim_t, rlim_t),
) -> Result<(), LauncherError> {
    // The end of the keeper without a word is a refusal, which the keeper has reported.
    if mapped.read_exact(&mut [0]).is_err() {
        return Ok(());
    }
    drop(mapped);
    renounce()?;
    setrlimit(Resource::RLIMIT_MSGQUEUE, queues.0, queues.1)
        .map_err(call("limit message queues"))?;
    let (template, network) = match settle(told) {
        Ok(settled) => settled,
        Err(failure) => return send(socket, &Report::SetUp { id, failure }),
    };
    let ready = Report::SetUp {
        id,
        failure: String::new(),
    };
    send(socket, &ready)?;
    let mut actions = Actions::new(told, template, network)?;
    loop {
        actions.idle(socket)?;
        let got = match channel::receive(socket, &mut buffer, true) {
            Ok(got) if got.len == 0 => return Ok(()),
            Err(rustix::io::Errno::CONNRESET) => return Ok(()),
            got => got.map_err(call("receive a request"))?,
        };
        let (request, tail) = Request::decode(&buffer[..got.len])
            .map_err(|malformed| LauncherError::Protocol(malformed.to_string()))?;
        match request {
            Request::Run(run) => {
                if !actions.run(socket, &run, tail, got.fds)? {
                    return Ok(());
                }
            }
            // Sent while the report was on its way.
            Request::Terminate { .. } | Request::Kill { .. } => {}
            Request::SetUp { .. } | Request::Sweep { .. } => {
                return Err(LauncherError::Protocol(
                    "a request that does not belong here".into(),
                ));
            }
        }
    }
}

/// Becomes what the commands of the slot inherit.
fn settle(told: &SetUpMessage) -> Result<(Template, Option<Network>), String> {
    let words = |what: &'static str| move |errno: Errno| format!("cannot {what}: {errno}");
    // Ids of ours that are not mapped could own nothing in here.
    let (uid, gid) = match told.alone() {
        true => (told.uid, told.gid),
        false => (told.own_id, told.own_id),
    };
    sys::become_user(uid, gid).map_err(|e| format!("cannot become user {uid}: {e}"))?;
    // Without extra ids the kernel does not let groups be changed; there are none but our own then.
    if !told.alone() {
        setgroups(&[]).map_err(words("drop groups"))?;
    }
    // The kernel forgets it at each change of ids. The keeper may have died before.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(words("ask for a death signal"))?;
    sethostname("localhost").map_err(words("set the host's name"))?;
    nix::mount::mount::<str, str, str, str>(
        None,
        "/",
        None,
        nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE,
        None,
    )
    .map_err(words("make the mounts private"))?;
    let network = match told.network {
        true => None,
        false => {
            sys::loopback_up().map_err(|e| identity::no_network(&e))?;
            Some(())
        }
    };
    let template = Template::build(told).map_err(|e| e.to_string())?;
    let network = match network {
        Some(()) => Some(Network::begin(told.uid == 0).map_err(|e| identity::no_network(&e))?),
        None => None,
    };
    for limit in &told.limits {
        sys::limit(limit.resource, limit.soft, limit.hard)
            .map_err(|e| format!("cannot set resource limit {}: {e}", limit.resource))?;
    }
    // Nobody in here can make another user namespace, in which to have all capabilities.
    std::fs::write("/proc/sys/user/max_user_namespaces", "0")
        .map_err(|e| format!("cannot forbid further user namespaces: {e}"))?;
    // What is counted for whoever made this namespace, which is root: one action must not take what root and the others need.
    for (what, most) in [("instances", "32"), ("watches", "65536")] {
        // Not in every kernel.
        let _ = std::fs::write(format!("/proc/sys/user/max_inotify_{what}"), most);
    }
    sys::close_bounding_set().map_err(|e| format!("cannot give capabilities up for good: {e}"))?;
    // No command may look into a process that has capabilities.
    prctl::set_dumpable(false).map_err(words("become opaque"))?;
    Ok((template, network))
}
