//! The last steps before `execve`, and the killer: code that runs in a child which shares the launcher's memory
//! (`CLONE_VM`, on a stack of its own). A plain fork costs 0.2 ms more. For the one the launcher waits with an ear for the
//! daemon (`CLONE_VFORK` would suspend it, and the program may come from far away), for the other with an eye on the clock.
//! What the children do allocates nothing, takes no lock, does not panic and does not call the C library, whose memory (errno) they
//! share with the launcher. What failed is written to memory that the launcher reads afterwards.
//!
//! What is the same for all commands (no new privileges, no groups, umask, default signals, no core dumps) the
//! launcher sets once for itself, and the child inherits it.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sandbox::slot::exec::{Fault, Program};
use crate::sandbox::slot::raw::{Stack, exit};
use crate::sandbox::slot::steps::{AT_CWD, call, drop_capabilities, limit};
use crate::sandbox::slot::uids::SlotUser;
use crate::sandbox::slot::wire::Step;

/// A killer is done in microseconds; one that is not, something holds up.
const KILLER_PATIENCE: Duration = Duration::from_secs(2);

/// Everything that a command's process needs, prepared by the launcher.
pub(super) struct Plan<'a> {
    pub(super) program: Program<'a>,
    pub(super) root: &'a CStr,
    /// Beneath the root; empty for the root itself.
    pub(super) cwd: &'a CStr,
    pub(super) stdin: BorrowedFd<'a>,
    pub(super) stdout: BorrowedFd<'a>,
    pub(super) stderr: BorrowedFd<'a>,
    pub(super) user: Option<(u32, u32)>,
    pub(super) open_files: Option<u64>,
    pub(super) file_size: Option<u64>,
    pub(super) processes: Option<u64>,
    /// Make the command a likelier victim of the out-of-memory killer than the daemon.
    pub(super) oom_victim: bool,
}

/// What the child gets through the one pointer that clone passes on.
struct Context<'a> {
    plan: &'a Plan<'a>,
    launcher: c_int,
    /// The end of a pipe that is closed when the child has executed or exited, and not before.
    held: usize,
    fault: Option<Fault>,
}

/// Starts the command; returns when it has been executed or has failed. A child that failed is a zombie by then,
/// for the caller to reap, like a command that has ended.
///
/// The program may have to come from far away first. `attend` gets the child and what has something to read once it does
/// not use our memory any more, and must not return before.
pub(super) fn spawn<T>(
    plan: &Plan<'_>,
    stack: &mut Stack,
    attend: impl FnOnce(c_int, BorrowedFd<'_>) -> T,
) -> Result<(T, Option<Fault>), c_int> {
    let (over, held) = std::io::pipe().map_err(|e| e.raw_os_error().unwrap_or(libc::EMFILE))?;
    let mut context = Context {
        plan,
        // SAFETY: getpid has no preconditions.
        launcher: unsafe { libc::getpid() },
        held: held.as_raw_fd() as usize,
        fault: None,
    };
    let context_ptr = (&raw mut context).cast();
    let pid = clone_onto(command_main, context_ptr, stack, 0, &mut -1)?;
    drop(held);
    let attended =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attend(pid, over.as_fd())));
    // The child may still use our memory: nothing of this process may go on.
    let Ok(attended) = attended else {
        std::process::abort()
    };
    // SAFETY: the child has executed or exited by now; the volatile read keeps the compiler from
    // assuming that nobody wrote here.
    let fault = unsafe { ptr::read_volatile(&raw const context.fault) };
    Ok((attended, fault))
}

/// Kills every process of the user, in one sweep that no fork can outrun: `kill(-1)` holds the lock that fork needs, and a
/// process that forks after it dies before its fork returns. Returns whether there was any, zombies included;
/// `Err(0)` if the killer was held up.
///
/// None of the user's processes may signal the killer: that takes the target's real or saved id, and these are the
/// slot's second id, as which nothing else runs. The killer may signal them through its effective id. They may still lower its
/// priority, so that the wait for it has a bound: `held_up` is then called to end them in another way.
pub(super) fn kill_user(
    user: SlotUser,
    stack: &mut Stack,
    held_up: impl Fn(),
) -> Result<bool, c_int> {
    let mut context = Killer { user, result: -1 };
    let mut pidfd = -1;
    let context_ptr = (&raw mut context).cast();
    let pid = clone_onto(
        killer_main,
        context_ptr,
        stack,
        libc::CLONE_PIDFD,
        &mut pidfd,
    )?;
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let mut on_time = true;
    while !exits_within(&pidfd, KILLER_PATIENCE) {
        on_time = false;
        // SAFETY: pid is our own unreaped child, so that nobody else can have the number.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        held_up();
    }
    // SAFETY: as above; a null status is allowed.
    unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
    if !on_time {
        // It may have been killed before it had done anything.
        return Err(0);
    }
    // SAFETY: the child has exited; see `spawn` for why the read is volatile.
    match unsafe { ptr::read_volatile(&raw const context.result) } {
        0 => Ok(true),
        libc::ESRCH => Ok(false),
        -1 => Err(0),
        errno => Err(errno),
    }
}

/// Whether the process ends before the time is over.
fn exits_within(pidfd: &OwnedFd, patience: Duration) -> bool {
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => {}
            // Without a clock it is waited for all the same.
            ready => return ready != Ok(0),
        }
    }
}

/// By `clone` and not by `clone3`, which containers are often refused: their filters cannot look into its arguments.
fn clone_onto(
    main: extern "C" fn(*mut c_void) -> c_int,
    context: *mut c_void,
    stack: &mut Stack,
    flags: c_int,
    pidfd: &mut c_int,
) -> Result<c_int, c_int> {
    // SAFETY: the stack is aligned, exclusively the child's while it lives in our memory (the callers return when it has
    // left that), and its top is one past its last byte. All signals are blocked, so no handler runs in the child.
    let pid = unsafe {
        let top = (stack.address() as *mut u8).add(Stack::SIZE);
        let flags = libc::CLONE_VM | flags | libc::SIGCHLD;
        libc::clone(main, top.cast(), flags, context, ptr::from_mut(pidfd))
    };
    if pid < 0 {
        return Err(Errno::last_raw());
    }
    Ok(pid)
}

struct Killer {
    user: SlotUser,
    /// -1 until `kill` has returned.
    result: c_int,
}

extern "C" fn killer_main(context: *mut c_void) -> c_int {
    let context = context.cast::<Killer>();
    // SAFETY: the pointer is to the launcher's context, which outlives this child; plain system calls. Nothing is
    // signalled unless all three ids have become the slot's, which are never 0, and no capability is left.
    unsafe {
        let SlotUser { uid, killer } = (*context).user;
        let result = match kill_as(uid as usize, killer as usize) {
            Ok(_) => 0,
            Err(fault) => fault.errno,
        };
        ptr::write_volatile(&raw mut (*context).result, result);
    }
    exit(0)
}

/// Kills all that this user has, as one who is nobody else.
fn kill_as(uid: usize, killer: usize) -> Result<(), Fault> {
    let refused = |_| Fault::at(Step::User, libc::EPERM);
    if uid == 0 || killer == 0 {
        return Err(Fault::at(Step::User, libc::EPERM));
    }
    let everybody = -1isize as usize;
    // SAFETY: plain system calls.
    unsafe {
        call(Step::User, libc::SYS_setresuid, [killer, uid, killer]).map_err(refused)?;
        drop_capabilities().map_err(refused)?;
        call(
            Step::User,
            libc::SYS_kill,
            [everybody, libc::SIGKILL as usize],
        )
        .map(drop)
    }
}

extern "C" fn command_main(context: *mut c_void) -> c_int {
    let context = context.cast::<Context<'_>>();
    // SAFETY: the pointer is to the launcher's context, which outlives this child's use of it; the launcher looks at it no
    // earlier than the end of that. Volatile for the reader in `spawn`.
    unsafe {
        let fault = become_command(&*context);
        ptr::write_volatile(&raw mut (*context).fault, Some(fault));
    }
    exit(127)
}

/// Returns only if it fails.
fn become_command(context: &Context<'_>) -> Fault {
    match prepare(context) {
        Ok(()) => context.plan.program.execute(),
        Err(fault) => fault,
    }
}

fn prepare(context: &Context<'_>) -> Result<(), Fault> {
    let plan = context.plan;
    let directory = (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) as usize;
    // SAFETY: plain system calls; all pointers are NUL-terminated strings and structures that live on.
    unsafe {
        call(Step::Session, libc::SYS_setsid, [])?;
        limit(libc::RLIMIT_NOFILE as usize, plan.open_files)?;
        limit(libc::RLIMIT_FSIZE as usize, plan.file_size)?;
        limit(libc::RLIMIT_NPROC as usize, plan.processes)?;
        if plan.oom_victim {
            // Best effort: a kernel or container that forbids it changes nothing for the command.
            let path = c"/proc/self/oom_score_adj".as_ptr() as usize;
            let flags = (libc::O_WRONLY | libc::O_CLOEXEC) as usize;
            if let Ok(fd) = call(Step::Limit, libc::SYS_openat, [AT_CWD, path, flags, 0]) {
                let score = c"500".as_ptr() as usize;
                let _ = call(Step::Limit, libc::SYS_write, [fd, score, 3]);
                let _ = call(Step::Limit, libc::SYS_close, [fd]);
            }
        }
        // The root is opened with the launcher's rights, as its parents may be the daemon's alone.
        let root = plan.root.as_ptr() as usize;
        let root = call(Step::Root, libc::SYS_openat, [AT_CWD, root, directory, 0])?;
        for (fd, target) in [(plan.stdin, 0), (plan.stdout, 1), (plan.stderr, 2)] {
            let fd = fd.as_raw_fd() as usize;
            call(Step::Streams, libc::SYS_dup3, [fd, target, 0])?;
        }
        if let Some((uid, gid)) = plan.user {
            let (uid, gid) = (uid as usize, gid as usize);
            call(Step::User, libc::SYS_setresgid, [gid, gid, gid])?;
            call(Step::User, libc::SYS_setresuid, [uid, uid, uid])?;
            drop_capabilities()?;
        }
        // The kernel forgets this at each change of ids, so it comes after the last.
        let death = [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize];
        call(Step::DeathSignal, libc::SYS_prctl, death)?;
        if call(Step::DeathSignal, libc::SYS_getppid, [])? != context.launcher as usize {
            return Err(Fault::at(Step::DeathSignal, libc::ESRCH));
        }
        let (mut dir, mut step) = (root, Step::Root);
        if !plan.cwd.to_bytes().is_empty() {
            // Links within the root are followed, links out of it are refused.
            let mut how: libc::open_how = std::mem::zeroed();
            how.flags = directory as u64;
            how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
            let at = (&raw const how) as usize;
            let size = size_of::<libc::open_how>();
            let cwd = plan.cwd.as_ptr() as usize;
            dir = call(Step::Cwd, libc::SYS_openat2, [root, cwd, at, size])?;
            step = Step::Cwd;
        }
        call(step, libc::SYS_fchdir, [dir])?;
        // Nothing else is needed any more; this closes when the program is executed.
        const HELD: usize = 3;
        if context.held != HELD {
            let flags = libc::O_CLOEXEC as usize;
            call(Step::Streams, libc::SYS_dup3, [context.held, HELD, flags])?;
        }
        let last = u32::MAX as usize;
        call(Step::Streams, libc::SYS_close_range, [HELD + 1, last, 0])?;
        let none = 0u64;
        let (set, none) = (libc::SIG_SETMASK as usize, (&raw const none) as usize);
        call(
            Step::Session,
            libc::SYS_rt_sigprocmask,
            [set, none, 0, size_of::<u64>()],
        )?;
    }
    Ok(())
}
