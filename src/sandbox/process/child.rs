//! The last steps before `execve`, and the killer: code that runs in a child which shares the launcher's memory
//! (`CLONE_VM`, on a stack of its own). A plain fork costs 0.2 ms more. While the one executes, the launcher is
//! suspended (`CLONE_VFORK`); for the other it waits with an eye on the clock.
//! Nothing here allocates, locks or panics; system calls that the C library wraps with side effects on other
//! threads (set*id) are made directly. What failed is written to memory that the launcher reads afterwards.
//!
//! What is the same for all commands (no new privileges, no groups, umask, default signals, no core dumps) the
//! launcher sets once for itself, and the child inherits it.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_long, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sandbox::slot::exec::{Fault, Program};
use crate::sandbox::slot::raw::Stack;
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
    fault: Option<Fault>,
}

/// Starts the command; returns when it has been executed or has failed. A child that failed is a zombie by then,
/// for the caller to reap, like a command that has ended.
pub(super) fn spawn(plan: &Plan<'_>, stack: &mut Stack) -> (Result<c_int, c_int>, Option<Fault>) {
    let mut context = Context {
        plan,
        // SAFETY: getpid has no preconditions.
        launcher: unsafe { libc::getpid() },
        fault: None,
    };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK;
    let context_ptr = (&raw mut context).cast();
    let pid = clone_onto(command_main, context_ptr, stack, flags, &mut -1);
    // SAFETY: the child has executed or exited by now; the volatile read keeps the compiler from
    // assuming that nobody wrote here.
    let fault = unsafe { ptr::read_volatile(&raw const context.fault) };
    (pid, fault)
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
    let flags = libc::CLONE_VM | libc::CLONE_PIDFD;
    let context_ptr = (&raw mut context).cast();
    let pid = clone_onto(killer_main, context_ptr, stack, flags, &mut pidfd)?;
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
        // It shares errno with us, and `held_up` may have changed that between its call and its look.
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
        let flags = flags | libc::SIGCHLD;
        libc::clone(main, top.cast(), flags, context, ptr::from_mut(pidfd))
    };
    if pid < 0 { Err(errno()) } else { Ok(pid) }
}

fn errno() -> c_int {
    // SAFETY: the location is valid for the thread's whole life.
    unsafe { *libc::__errno_location() }
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
        let mut result = 0;
        if uid == 0
            || killer == 0
            || libc::syscall(libc::SYS_setresuid, killer, uid, killer) != 0
            || drop_capabilities().is_err()
        {
            result = libc::EPERM;
        } else if libc::syscall(libc::SYS_kill, -1, libc::SIGKILL) != 0 {
            result = errno();
        }
        ptr::write_volatile(&raw mut (*context).result, result);
        libc::_exit(0)
    }
}

extern "C" fn command_main(context: *mut c_void) -> c_int {
    // SAFETY: the pointer is to the launcher's context, which outlives this child, and the launcher is suspended:
    // this is the only reference.
    let context = unsafe { &mut *context.cast::<Context<'_>>() };
    let fault = become_command(context);
    // SAFETY: as above; volatile for the reader in `spawn`. `_exit` runs no destructors of the launcher's.
    unsafe {
        ptr::write_volatile(&raw mut context.fault, Some(fault));
        libc::_exit(127)
    }
}

/// Fails with the errno of the last call unless it was successful.
fn check(step: Step, result: c_long) -> Result<c_int, Fault> {
    if result < 0 {
        return Err(Fault::at(step, errno()));
    }
    Ok(result as c_int)
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
    // SAFETY: plain system calls; all pointers are NUL-terminated strings and structures that live on.
    unsafe {
        check(Step::Session, libc::setsid().into())?;
        limit(libc::RLIMIT_NOFILE as c_int, plan.open_files)?;
        limit(libc::RLIMIT_FSIZE as c_int, plan.file_size)?;
        limit(libc::RLIMIT_NPROC as c_int, plan.processes)?;
        if plan.oom_victim {
            // Best effort: a kernel or container that forbids it changes nothing for the command.
            let path = c"/proc/self/oom_score_adj".as_ptr();
            let fd = libc::open(path, libc::O_WRONLY | libc::O_CLOEXEC);
            if fd >= 0 {
                libc::write(fd, c"500".as_ptr().cast(), 3);
                libc::close(fd);
            }
        }
        // The root is opened with the launcher's rights, as its parents may be the daemon's alone.
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let root = libc::open(plan.root.as_ptr(), flags);
        check(Step::Root, root.into())?;
        for (fd, target) in [(plan.stdin, 0), (plan.stdout, 1), (plan.stderr, 2)] {
            check(Step::Streams, libc::dup2(fd.as_raw_fd(), target).into())?;
        }
        if let Some((uid, gid)) = plan.user {
            check(
                Step::User,
                libc::syscall(libc::SYS_setresgid, gid, gid, gid),
            )?;
            check(
                Step::User,
                libc::syscall(libc::SYS_setresuid, uid, uid, uid),
            )?;
            drop_capabilities()?;
        }
        // The kernel forgets this at each change of ids, so it comes after the last.
        let signal = libc::SIGKILL as libc::c_ulong;
        check(
            Step::DeathSignal,
            libc::prctl(libc::PR_SET_PDEATHSIG, signal).into(),
        )?;
        if libc::getppid() != context.launcher {
            return Err(Fault::at(Step::DeathSignal, libc::ESRCH));
        }
        let mut dir = root;
        if !plan.cwd.to_bytes().is_empty() {
            // Links within the root are followed, links out of it are refused.
            let mut how: libc::open_how = std::mem::zeroed();
            how.flags = flags as u64;
            how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
            let opened = libc::syscall(
                libc::SYS_openat2,
                root,
                plan.cwd.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            );
            dir = check(Step::Cwd, opened)?;
        }
        let step = if dir == root { Step::Root } else { Step::Cwd };
        check(step, libc::fchdir(dir).into())?;
        check(
            Step::Streams,
            libc::syscall(libc::SYS_close_range, 3, c_long::from(u32::MAX), 0),
        )?;
        let none = 0u64;
        check(
            Step::Session,
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const none,
                ptr::null_mut::<u64>(),
                size_of::<u64>(),
            ),
        )?;
    }
    Ok(())
}

/// Sets both limits; one above what the daemon may give is lowered to that, as it is a bound and not a promise.
///
/// # Safety
/// `resource` must be one of the kernel's.
unsafe fn limit(resource: c_int, value: Option<u64>) -> Result<(), Fault> {
    let Some(value) = value else { return Ok(()) };
    let mut limit = libc::rlimit64 {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: the structures live on this stack; the child is a process of its own, so that only its limits change.
    unsafe {
        let set = |limit: &libc::rlimit64| {
            libc::syscall(
                libc::SYS_prlimit64,
                0,
                resource,
                ptr::from_ref(limit),
                ptr::null_mut::<libc::rlimit64>(),
            )
        };
        if set(&limit) == 0 {
            return Ok(());
        }
        let mut own = limit;
        let got = libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            ptr::null::<libc::rlimit64>(),
            &raw mut own,
        );
        check(Step::Limit, got)?;
        limit.rlim_cur = value.min(own.rlim_max);
        limit.rlim_max = limit.rlim_cur;
        check(Step::Limit, set(&limit))?;
    }
    Ok(())
}

/// Changing the user has cleared them, unless something above us had set securebits that keep them.
fn drop_capabilities() -> Result<(), Fault> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let none = [0u32; 6];
    // SAFETY: version 3 reads a header of two words and two sets of three words.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    check(Step::User, result).map(drop)
}
