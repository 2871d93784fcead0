//! Pid 1 and pid 2 of an action, from their making to `execve`: code that runs in children which share the launcher's memory
//! (see `slot::raw`). Nothing here allocates, locks, panics or calls the C library; what happened is written to atomics that
//! the launcher reads.
//!
//! The init lives in PID and IPC namespaces of the action's own. It mounts /proc and the message queues, starts the command, reaps, and when the
//! command has ended kills what is left. Its own end, however it comes, is the end of everything in its namespace:
//! that is the kernel's promise on which the sandbox rests.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::SeqCst};

use crate::sandbox::slot::exec::{Fault, Program};
use crate::sandbox::slot::raw::{CloneArgs, Stack, clone_onto, exit};
use crate::sandbox::slot::steps::{AT_CWD, call, drop_capabilities, limit};
use crate::sandbox::slot::wire::Step;

/// Everything about one command, prepared by the launcher.
pub(super) struct Plan<'a> {
    pub(super) program: Program<'a>,
    /// Where the input root is, as the command sees it.
    pub(super) base: &'a CStr,
    /// Beneath it; empty for itself.
    pub(super) cwd: &'a CStr,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Standard input, output, error.
    pub(super) streams: [RawFd; 3],
    /// Where a process writes 0 to enter a cgroup.
    pub(super) cgroups: &'a [RawFd],
    pub(super) ruleset: Option<Ruleset>,
    /// Instructions of the filter of system calls.
    pub(super) filter: &'a [u8],
    pub(super) open_files: Option<u64>,
    pub(super) file_size: Option<u64>,
    pub(super) processes: Option<u64>,
    /// Where /proc belongs before the root changes.
    pub(super) proc_at: &'a CStr,
    /// Where the file system of message queues belongs before the root changes.
    pub(super) queues_at: &'a CStr,
    /// The directory that becomes the root, in a mount namespace of the action's own.
    pub(super) pivot_to: Option<&'a CStr>,
}

/// The command's Landlock rules. They lack what only the action has, which is not there yet.
#[derive(Clone, Copy)]
pub(super) struct Ruleset {
    pub(super) fd: RawFd,
    /// The rights to write to files that are there.
    pub(super) writing: u64,
    /// The rights to use message queues.
    pub(super) queueing: u64,
}

/// What the children tell the launcher.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// /proc is mounted in the launcher's mount namespace.
    pub(super) proc_mounted: AtomicBool,
    /// So is the file system of message queues.
    pub(super) queues_mounted: AtomicBool,
    /// The step at which the start failed; 0 if it did not.
    step: AtomicU32,
    errno: AtomicI32,
    candidate: AtomicU32,
    /// The command's wait status is in `status`.
    ended: AtomicBool,
    status: AtomicI32,
}

impl Told {
    /// Where the start failed.
    pub(super) fn fault(&self) -> Option<Fault> {
        Some(Fault {
            step: Step::from_u32(self.step.load(SeqCst))?,
            errno: self.errno.load(SeqCst),
            candidate: self.candidate.load(SeqCst) as usize,
        })
    }

    /// The command's wait status, once it has ended.
    pub(super) fn status(&self) -> Option<i32> {
        self.ended.load(SeqCst).then(|| self.status.load(SeqCst))
    }

    fn fail(&self, fault: Fault) {
        self.errno.store(fault.errno, SeqCst);
        self.candidate.store(fault.candidate as u32, SeqCst);
        self.step.store(fault.step as u32, SeqCst);
    }
}

struct Context<'a> {
    plan: &'a Plan<'a>,
    told: &'a Told,
    /// The command's stack until it executes.
    stack: u64,
}

/// The stacks of the init and of the command.
#[derive(Default)]
pub(super) struct Stacks(Option<(Box<Stack>, Box<Stack>)>);

/// An init that was started. It uses the plan, what it tells and the stacks until it has ended: [`Started::wait`].
pub(super) struct Started {
    pub(super) pid: c_int,
    pub(super) pidfd: c_int,
}

/// Starts the init, hands it to `watch`, and returns what that returns, once the init has been waited for by it.
///
/// `watch` must not return before the init is dead and reaped, since the init uses what is borrowed here.
pub(super) fn start<T>(
    plan: &Plan<'_>,
    told: &Told,
    stacks: &mut Stacks,
    watch: impl FnOnce(Started) -> T,
) -> Result<T, c_int> {
    let (init, command) = stacks.0.get_or_insert_with(|| (Stack::new(), Stack::new()));
    let context = Context {
        plan,
        told,
        stack: command.address(),
    };
    let mut pidfd: c_int = -1;
    let mut flags = libc::CLONE_VM | libc::CLONE_PIDFD | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
    if plan.pivot_to.is_some() {
        flags |= libc::CLONE_NEWNS;
    }
    let arguments = CloneArgs {
        flags: flags as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: init.address(),
        stack_size: Stack::SIZE as u64,
        ..CloneArgs::default()
    };
    // SAFETY: the context, the plan and the stacks are borrowed until `watch` has returned, which is after the init's end; the
    // init keeps the rules of this file. A panic of `watch` must not unwind past them.
    let pid = unsafe { clone_onto(&arguments, init_main, (&raw const context) as usize) }?;
    let watched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        watch(Started { pid, pidfd })
    }));
    match watched {
        Ok(watched) => Ok(watched),
        // The init may still use our memory: nothing of this process may go on.
        Err(_) => std::process::abort(),
    }
}

extern "C" fn init_main(context: usize) -> ! {
    // SAFETY: the launcher keeps the context until this process is dead.
    let context = unsafe { &*(context as *const Context<'_>) };
    if let Err(fault) = init(context) {
        context.told.fail(fault);
    }
    exit(0)
}

fn init(context: &Context<'_>) -> Result<(), Fault> {
    let plan = context.plan;
    // SAFETY: plain system calls; all pointers are NUL-terminated strings and structures that live on.
    unsafe {
        call(Step::Session, libc::SYS_setsid, [])?;
        let own = plan.pivot_to.is_some();
        mount(Step::Proc, c"proc", plan.proc_at)?;
        context.told.proc_mounted.store(!own, SeqCst);
        // A kernel may have no queues. They work without it too, but not behind Landlock, which goes by files.
        let queues = mount(Step::Mount, c"mqueue", plan.queues_at).is_ok();
        context.told.queues_mounted.store(queues && !own, SeqCst);
        if let Some(ruleset) = plan.ruleset {
            // A thread's name, for instance. The kernel says which of them are its own.
            allow_below(ruleset, ruleset.writing, plan.proc_at)?;
            if queues {
                allow_below(ruleset, ruleset.queueing, plan.queues_at)?;
            }
        }
        match plan.pivot_to {
            None => {}
            Some(root) => {
                let here = c".".as_ptr() as usize;
                call(Step::Pivot, libc::SYS_chdir, [root.as_ptr() as usize])?;
                call(Step::Pivot, libc::SYS_pivot_root, [here, here])?;
                let detach = libc::MNT_DETACH as usize;
                call(Step::Pivot, libc::SYS_umount2, [here, detach])?;
                call(Step::Pivot, libc::SYS_chdir, [c"/".as_ptr() as usize])?;
            }
        }
        let arguments = CloneArgs {
            flags: (libc::CLONE_VM | libc::CLONE_VFORK) as u64,
            exit_signal: libc::SIGCHLD as u64,
            stack: context.stack,
            stack_size: Stack::SIZE as u64,
            ..CloneArgs::default()
        };
        let context_at = ptr::from_ref(context) as usize;
        // Suspended until the command executes or fails.
        let command = clone_onto(&arguments, command_main, context_at)
            .map_err(|errno| Fault::at(Step::Clone, errno))?;
        if context.told.step.load(SeqCst) != 0 {
            return Ok(());
        }
        reap(context, command)
    }
}

/// Mounts a file system of the action's own namespaces.
///
/// # Safety
/// Only in the init.
unsafe fn mount(step: Step, kind: &CStr, at: &CStr) -> Result<(), Fault> {
    let flags = (libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC) as usize;
    let (kind, at) = (kind.as_ptr() as usize, at.as_ptr() as usize);
    // SAFETY: a plain system call, whose pointers are to strings that live on.
    unsafe { call(step, libc::SYS_mount, [kind, at, kind, flags, 0]) }.map(drop)
}

/// Gives the command rights below `path`.
///
/// # Safety
/// Only in the init; `ruleset` must be one.
unsafe fn allow_below(ruleset: Ruleset, rights: u64, path: &CStr) -> Result<(), Fault> {
    const PATH_BENEATH: usize = 1;
    let flags = (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) as usize;
    // SAFETY: plain system calls, whose pointers are to strings that live on and to this stack.
    unsafe {
        let path = path.as_ptr() as usize;
        let place = call(Step::Landlock, libc::SYS_openat, [AT_CWD, path, flags, 0])?;
        let mut rule = [0; 12];
        // The kernel's structure has no padding: what is allowed, then the descriptor.
        for (to, from) in rule.iter_mut().zip(rights.to_ne_bytes()) {
            *to = from;
        }
        for (to, from) in rule.iter_mut().skip(8).zip((place as u32).to_ne_bytes()) {
            *to = from;
        }
        let (fd, rule) = (ruleset.fd as usize, rule.as_ptr() as usize);
        let added = [fd, PATH_BENEATH, rule, 0];
        call(Step::Landlock, libc::SYS_landlock_add_rule, added)?;
        call(Step::Landlock, libc::SYS_close, [place])?;
    }
    Ok(())
}

/// Waits for the command and for all that becomes the init's by its parent's death.
///
/// # Safety
/// Only in the init.
unsafe fn reap(context: &Context<'_>, command: c_int) -> Result<(), Fault> {
    let heeded: u64 = 1 << (libc::SIGCHLD - 1) | 1 << (libc::SIGTERM - 1);
    let everybody = -1isize as usize;
    // SAFETY: plain system calls, whose pointers are to this stack.
    unsafe {
        loop {
            loop {
                let mut status: c_int = 0;
                let options = (libc::WNOHANG | libc::__WALL) as usize;
                let at = (&raw mut status) as usize;
                let pid =
                    call(Step::Session, libc::SYS_wait4, [everybody, at, options, 0]).unwrap_or(0);
                if pid == command as usize {
                    context.told.status.store(status, SeqCst);
                    context.told.ended.store(true, SeqCst);
                    // All that is left, at once: no fork can outrun it. What this process leaves behind, the kernel ends.
                    let _ = call(
                        Step::Session,
                        libc::SYS_kill,
                        [everybody, libc::SIGKILL as usize],
                    );
                    return Ok(());
                }
                if pid == 0 {
                    break;
                }
            }
            // All signals are blocked: what came since the look above is still there. SIGTERM is the launcher's word, or
            // mischief of the command's own, which it hurts alone.
            let size = size_of::<u64>();
            let heeded = (&raw const heeded) as usize;
            let signal = call(
                Step::Session,
                libc::SYS_rt_sigtimedwait,
                [heeded, 0, 0, size],
            );
            if signal.ok() == Some(libc::SIGTERM as usize) {
                for signal in [libc::SIGTERM, libc::SIGCONT] {
                    let _ = call(Step::Session, libc::SYS_kill, [everybody, signal as usize]);
                }
            }
        }
    }
}

extern "C" fn command_main(context: usize) -> ! {
    // SAFETY: as in `init_main`; the init is suspended meanwhile.
    let context = unsafe { &*(context as *const Context<'_>) };
    let fault = match become_command(context.plan) {
        Ok(()) => context.plan.program.execute(),
        Err(fault) => fault,
    };
    context.told.fail(fault);
    exit(127)
}

fn become_command(plan: &Plan<'_>) -> Result<(), Fault> {
    let directory = (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) as usize;
    // SAFETY: plain system calls; all pointers are NUL-terminated strings and structures that live on.
    unsafe {
        call(Step::Session, libc::SYS_setsid, [])?;
        limit(libc::RLIMIT_NOFILE as usize, plan.open_files)?;
        limit(libc::RLIMIT_FSIZE as usize, plan.file_size)?;
        limit(libc::RLIMIT_NPROC as usize, plan.processes)?;
        for group in plan.cgroups {
            let zero = c"0".as_ptr() as usize;
            call(Step::Cgroup, libc::SYS_write, [*group as usize, zero, 1])?;
        }
        for (fd, target) in plan.streams.into_iter().zip(0..) {
            call(Step::Streams, libc::SYS_dup3, [fd as usize, target, 0])?;
        }
        // Opened with the launcher's rights, as its mode is the action's.
        let base = plan.base.as_ptr() as usize;
        let base = call(Step::Root, libc::SYS_openat, [AT_CWD, base, directory, 0])?;
        let (uid, gid) = (plan.uid as usize, plan.gid as usize);
        call(Step::User, libc::SYS_setresgid, [gid, gid, gid])?;
        call(Step::User, libc::SYS_setresuid, [uid, uid, uid])?;
        drop_capabilities()?;
        let mut dir = base;
        let mut step = Step::Root;
        if !plan.cwd.to_bytes().is_empty() {
            // Links within the root are followed, links out of it are refused.
            let mut how: libc::open_how = std::mem::zeroed();
            how.flags = directory as u64;
            how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
            let at = (&raw const how) as usize;
            let size = size_of::<libc::open_how>();
            let cwd = plan.cwd.as_ptr() as usize;
            dir = call(Step::Cwd, libc::SYS_openat2, [base, cwd, at, size])?;
            step = Step::Cwd;
        }
        call(step, libc::SYS_fchdir, [dir])?;
        if let Some(ruleset) = plan.ruleset {
            let ruleset = ruleset.fd as usize;
            call(
                Step::Landlock,
                libc::SYS_landlock_restrict_self,
                [ruleset, 0],
            )?;
        }
        let last = u32::MAX as usize;
        call(Step::Streams, libc::SYS_close_range, [3, last, 0])?;
        let none = 0u64;
        let (set, none) = (libc::SIG_SETMASK as usize, (&raw const none) as usize);
        call(
            Step::Session,
            libc::SYS_rt_sigprocmask,
            [set, none, 0, size_of::<u64>()],
        )?;
        // The last, as it may forbid what was done so far.
        let program = libc::sock_fprog {
            // At most 4096 instructions.
            len: (plan.filter.len() / size_of::<libc::sock_filter>()) as u16,
            filter: plan.filter.as_ptr().cast_mut().cast(),
        };
        let mode = libc::SECCOMP_SET_MODE_FILTER as usize;
        call(
            Step::Filter,
            libc::SYS_seccomp,
            [mode, 0, (&raw const program) as usize],
        )?;
    }
    Ok(())
}
