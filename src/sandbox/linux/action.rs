//! One command in a slot: what is mounted for it, its start, the wait for its end, and the slot's return to the state in which the
//! next command finds it.

use std::ffi::{CStr, CString, c_long};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering::SeqCst;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::process::{Signal, pidfd_send_signal};

use super::init::{self, Plan, Ruleset, Stacks, Started, Told};
use super::launcher::{LauncherError, call, send};
use super::network::Network;
use super::set_up::{BUILD, SetUpMessage};
use super::sys;
use super::template::{INPUT, QUEUES, TAME, Template};
use super::trash::{Trash, nothing_there};
use super::{read_only, rules};
use crate::sandbox::slot::exec::Program;
use crate::sandbox::slot::lookup::candidates;
use crate::sandbox::slot::order::{Order, order};
use crate::sandbox::slot::wire::{
    Ended, Failure, PATH_MAX, Report, RunHeader, Step, Strings, WireUsage, now,
};

/// A directory below an input root, opened without following a link.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// The first version lets nobody link or rename from one directory to another.
const LANDLOCK: c_long = 2;

/// Runs the commands of a launcher.
pub(super) struct Actions<'a> {
    told: &'a SetUpMessage,
    template: Template,
    network: Option<Network>,
    null: File,
    /// Commands have rules.
    landlock: bool,
    landlock_version: c_long,
    stacks: Stacks,
}

/// What was seen of a command until its end.
struct Watched {
    /// It was signalled before it was seen to end.
    stopped: bool,
    /// The daemon is still there.
    alive: bool,
    usage: WireUsage,
}

fn failure(step: Step, errno: i32) -> Failure {
    Failure {
        step,
        errno,
        path: Vec::new(),
    }
}

/// A failure to show something, with its name.
fn unshown(path: &str, errno: impl Into<std::io::Error>) -> Failure {
    Failure {
        step: Step::Mount,
        errno: errno.into().raw_os_error().unwrap_or(libc::EIO),
        path: path.as_bytes()[..path.len().min(PATH_MAX)].to_vec(),
    }
}

impl<'a> Actions<'a> {
    pub(super) fn new(
        told: &'a SetUpMessage,
        template: Template,
        network: Option<Network>,
    ) -> Result<Self, LauncherError> {
        let landlock_version = sys::landlock_version();
        Ok(Actions {
            told,
            template,
            network,
            null: File::open("/dev/null").map_err(call("open /dev/null"))?,
            landlock: told.landlock && landlock_version >= LANDLOCK,
            landlock_version,
            stacks: Stacks::default(),
        })
    }

    /// One command from its start to the end of its last process, and the report. False if the daemon has hung up. An error is
    /// the launcher's end: the slot is not as it should be, and the daemon starts another.
    pub(super) fn run(
        &mut self,
        socket: &OwnedFd,
        run: &RunHeader,
        inline: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<bool, LauncherError> {
        let mut ended = Ended {
            id: run.id,
            started: now(),
            ..Ended::default()
        };
        let told = Told::default();
        let mut alive = true;
        match self.execute(socket, run, inline, fds, &told) {
            Ok(watched) => {
                let watched = watched?;
                alive = watched.alive;
                ended.stopped = watched.stopped;
                ended.usage = watched.usage;
                match told.status() {
                    Some(status) => ended.status = status,
                    // It was killed with its init, by us.
                    None if watched.stopped => ended.status = libc::SIGKILL,
                    // By somebody else: how it would have ended nobody knows.
                    None => ended.failure = Some(failure(Step::Init, 0)),
                }
            }
            Err(failure) => ended.failure = Some(failure),
        }
        ended.finished = now();
        if alive {
            send(socket, &Report::Ended(ended))?;
        }
        // The command is over and told: what follows nobody waits for.
        self.clean(&told)?;
        Ok(alive)
    }

    /// Prepares and runs the command. The descriptors are closed on return.
    fn execute(
        &mut self,
        socket: &OwnedFd,
        run: &RunHeader,
        inline: &[u8],
        fds: Vec<OwnedFd>,
        told: &Told,
    ) -> Result<Result<Watched, LauncherError>, Failure> {
        let mut fds = fds.into_iter();
        let mut next = |wanted: bool| match wanted {
            true => fds
                .next()
                .map(Some)
                .ok_or(failure(Step::Request, libc::EBADF)),
            false => Ok(None),
        };
        let (stdout, stderr) = (next(true)?, next(true)?);
        let groups = (0..run.groups)
            .map(|_| next(true))
            .collect::<Result<Vec<_>, _>>()?;
        let root = next(run.root_fd)?;
        let memfd = next(run.in_memfd)?;
        let (Some(stdout), Some(stderr), None) = (stdout, stderr, fds.next()) else {
            return Err(failure(Step::Request, libc::EBADF));
        };
        let read = memfd.map(|memfd| read_strings(memfd, run)).transpose()?;
        let strings = Strings::decode(run, read.as_deref().unwrap_or(inline))
            .map_err(|_| failure(Step::Request, libc::EPROTO))?;

        let at = if self.told.input_root { INPUT } else { BUILD };
        self.show(root, strings.root, at)?;
        let input = beneath(at, "").map_err(|e| unshown(at, e))?;
        let (read_only, writable) = (texts(&strings.read_only)?, texts(&strings.writable)?);
        let open = read_only::keep(input.as_fd(), &read_only, &writable, self.landlock)
            .map_err(|e| unshown(&e.path, e.source))?;
        if self.told.input_root {
            self.furnish()?;
        }
        let ruleset = match self.landlock {
            true => self.template.rules.ruleset(input.as_fd(), &open),
            false => Ok(None),
        };
        let ruleset = ruleset.map_err(|_| failure(Step::Landlock, libc::EINVAL))?;

        let program = strings.argv.first().copied().unwrap_or_default();
        let candidates = candidates(program, &strings.env);
        let candidates: Vec<&CStr> = candidates.iter().map(|c| c.as_c_str()).collect();
        let cgroups: Vec<RawFd> = groups.iter().flatten().map(|fd| fd.as_raw_fd()).collect();
        let base = CString::new(BUILD).unwrap_or_default();
        let plan = Plan {
            program: Program::new(&candidates, &strings.argv, &strings.env),
            base: if self.told.input_root { c"/" } else { &base },
            cwd: strings.cwd,
            uid: self.told.uid,
            gid: self.told.gid,
            streams: [
                self.null.as_raw_fd(),
                stdout.as_raw_fd(),
                stderr.as_raw_fd(),
            ],
            cgroups: &cgroups,
            ruleset: ruleset.as_ref().map(|fd| Ruleset {
                fd: fd.as_raw_fd(),
                writing: rules::writing(self.landlock_version),
                queueing: rules::queueing(self.landlock_version),
            }),
            filter: &self.told.filter,
            open_files: run.open_files,
            file_size: run.file_size,
            processes: run.processes,
            proc_at: if self.told.input_root {
                c"/r/proc"
            } else {
                c"/proc"
            },
            queues_at: if self.told.input_root {
                c"/r/dev/mqueue"
            } else {
                c"/dev/mqueue"
            },
            pivot_to: self.told.input_root.then_some(c"/r"),
        };
        let trash = &mut self.template.trash;
        let watched = init::start(&plan, told, &mut self.stacks, |started| {
            watch(socket, run.id, &started, told, trash)
        })
        .map_err(|errno| failure(Step::Clone, errno))?;
        match told.fault() {
            None => Ok(watched),
            Some(fault) => {
                let path = candidates
                    .get(fault.candidate)
                    .filter(|_| fault.step >= Step::NotFound);
                let path = path.map_or(&[][..], |path| path.to_bytes());
                Err(Failure {
                    step: fault.step,
                    errno: fault.errno,
                    path: path[..path.len().min(PATH_MAX)].to_vec(),
                })
            }
        }
    }

    /// Shows the input root: a mount that the daemon made, or a directory of the hidden one.
    fn show(&self, root: Option<OwnedFd>, path: &CStr, at: &str) -> Result<(), Failure> {
        let entering = |e: rustix::io::Errno| failure(Step::Root, e.raw_os_error());
        let tree = match (root, &self.template.roots) {
            (Some(root), _) => root,
            (None, Some(roots)) => {
                let name = path
                    .to_bytes()
                    .strip_prefix(self.told.roots.as_bytes())
                    .and_then(|rest| rest.strip_prefix(b"/"))
                    .ok_or(failure(Step::Root, libc::EXDEV))?;
                let flags = OpenTreeFlags::OPEN_TREE_CLONE
                    | OpenTreeFlags::OPEN_TREE_CLOEXEC
                    | OpenTreeFlags::AT_RECURSIVE
                    | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
                let tree = open_tree(roots, name, flags).map_err(entering)?;
                sys::seal_mounts(tree.as_fd(), TAME)
                    .map_err(|e| failure(Step::Root, e.raw_os_error().unwrap_or(libc::EIO)))?;
                tree
            }
            (None, None) => return Err(failure(Step::Request, libc::EBADF)),
        };
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", CWD, at, flags).map_err(entering)
    }

    /// Puts into an input root what a root must have. The daemon has made the directories.
    fn furnish(&self) -> Result<(), Failure> {
        let places = self.told.tmpfs.iter().map(|tmpfs| tmpfs.path.as_str());
        // Those below /dev come with it.
        let places = places.filter(|path| !path.starts_with("/dev/"));
        for path in ["/dev"].into_iter().chain(places) {
            let copy = || -> rustix::io::Result<()> {
                let place = beneath(INPUT, path)?;
                let flags = OpenTreeFlags::OPEN_TREE_CLONE
                    | OpenTreeFlags::OPEN_TREE_CLOEXEC
                    | OpenTreeFlags::AT_RECURSIVE;
                let tree = open_tree(CWD, path, flags)?;
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
                    | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
                move_mount(&tree, "", &place, "", flags)
            };
            copy().map_err(|e| unshown(path, e))?;
        }
        // Mounted by the init, but what it is mounted on must not lead elsewhere.
        beneath(INPUT, "/proc").map_err(|e| unshown("/proc", e))?;
        Ok(())
    }

    /// Waits for a request, and uses the time if there is some.
    pub(super) fn idle(&mut self, socket: &OwnedFd) -> Result<(), LauncherError> {
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, self.template.trash.patience()) {
            Ok(0) => self.template.trash.empty().map_err(call("unmount")),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(call("wait")(errno)),
        }
    }

    /// Brings the slot back to the state in which the next command finds it.
    fn clean(&mut self, told: &Told) -> Result<(), LauncherError> {
        if told.proc_mounted.load(SeqCst) {
            let taken = self.template.trash.take("/proc");
            taken.map_err(call("take /proc away"))?;
        }
        if told.queues_mounted.load(SeqCst) {
            remove_queues().map_err(call("remove message queues"))?;
            let taken = self.template.trash.take(QUEUES);
            taken.map_err(call("take the message queues away"))?;
        }
        let at = if self.told.input_root { INPUT } else { BUILD };
        match self.template.trash.take(at) {
            // It was never shown.
            Err(errno) if nothing_there(errno) => {}
            taken => taken.map_err(call("take the input root away"))?,
        }
        self.template
            .clean()
            .map_err(|e| call("clean the memory file systems")(std::io::Error::other(e)))?;
        match &mut self.network {
            Some(network) => network.clean().map_err(call("clean the network")),
            None => Ok(()),
        }
    }
}

/// Removes the queues that a command has left. They would go with their namespace, but some time after its end, and be counted
/// among the next command's until then.
fn remove_queues() -> rustix::io::Result<()> {
    // The directory has a size for each queue.
    if rustix::fs::stat(QUEUES)?.st_size == 0 {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let queues = rustix::fs::openat(CWD, QUEUES, flags, Mode::empty())?;
    for queue in rustix::fs::Dir::read_from(&queues)? {
        let name = queue?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            rustix::fs::unlinkat(&queues, name.as_c_str(), rustix::fs::AtFlags::empty())?;
        }
    }
    Ok(())
}

/// The strings of a run that did not fit in the message.
fn read_strings(memfd: OwnedFd, run: &RunHeader) -> Result<Vec<u8>, Failure> {
    // Read, not mapped: nobody can change it between the check and the use.
    let mut strings = Vec::with_capacity(run.strings_len + 1);
    File::from(memfd)
        .take(run.strings_len as u64 + 1)
        .read_to_end(&mut strings)
        .map_err(|e| failure(Step::Request, e.raw_os_error().unwrap_or(libc::EIO)))?;
    Ok(strings)
}

/// A directory below an input root.
fn beneath(root: &str, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
    match path.trim_start_matches('/') {
        "" => Ok(root),
        path => rustix::fs::openat2(&root, path, flags, Mode::empty(), BENEATH),
    }
}

/// Paths of directories; REAPI has no others than UTF-8.
fn texts<'s>(paths: &[&'s CStr]) -> Result<Vec<&'s str>, Failure> {
    let text = |path: &&'s CStr| {
        path.to_str()
            .map_err(|_| unshown("a read-only directory", Errno::EILSEQ))
    };
    paths.iter().map(text).collect()
}

/// Waits for the init's end, and brings it about if the daemon wants that or is gone. The init is reaped when this returns,
/// whatever it returns.
fn watch(
    socket: &OwnedFd,
    id: u64,
    started: &Started,
    told: &Told,
    trash: &mut Trash,
) -> Result<Watched, LauncherError> {
    let pidfd = sys::pidfd_of(started.pidfd);
    let watched = match &pidfd {
        Some(pidfd) => wait_and_heed(socket, id, pidfd, told, trash),
        None => Err(LauncherError::Protocol("the kernel made no pidfd".into())),
    };
    if watched.as_ref().map_or(true, |(_, over)| !over) {
        match &pidfd {
            Some(pidfd) => drop(pidfd_send_signal(pidfd, Signal::KILL)),
            None => {
                let init = nix::unistd::Pid::from_raw(started.pid);
                let _ = nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
    let usage = sys::wait_for(started.pid).map_err(call("wait for an init"))?;
    let (mut watched, _) = watched?;
    watched.usage = usage;
    Ok(watched)
}

/// What was seen, and whether the init has ended by itself.
fn wait_and_heed(
    socket: &OwnedFd,
    id: u64,
    pidfd: &OwnedFd,
    told: &Told,
    trash: &mut Trash,
) -> Result<(Watched, bool), LauncherError> {
    let mut seen = Watched {
        stopped: false,
        alive: true,
        usage: WireUsage::default(),
    };
    loop {
        let mut fds = [
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, trash.patience()) {
            Err(Errno::EINTR) => continue,
            // The command takes its time.
            Ok(0) => {
                trash.empty().map_err(call("unmount"))?;
                continue;
            }
            result => result.map_err(call("wait"))?,
        };
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        // First of all, so that an end which came before the request counts as natural.
        if ready(&fds[0]) {
            return Ok((seen, true));
        }
        if !ready(&fds[1]) {
            continue;
        }
        match order(socket, id)? {
            Order::Nothing => {}
            Order::Terminate => {
                seen.stopped |= told.status().is_none();
                let _ = pidfd_send_signal(pidfd, Signal::TERM);
            }
            Order::Kill => {
                seen.stopped |= told.status().is_none();
                return Ok((seen, false));
            }
            Order::HungUp => {
                seen.alive = false;
                return Ok((seen, false));
            }
        }
    }
}
