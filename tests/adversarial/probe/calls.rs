//! System calls that a build has no use for, each with arguments that the kernel refuses without harm, and system
//! calls that a build needs.
//!
//! A filter that denies one answers EPERM or ENOSYS; the kernel itself, asked by one who has all privileges, answers
//! something else. The matrix' findings are `name errno`, one a line.

use crate::sys::{self, EINVAL, ENOSYS, EPERM, Ended, Errno};
use crate::verdict::Verdict;

/// A pointer to nowhere.
const BAD: usize = 1;
/// A descriptor that is not open; a command or a flag that is not known.
const NO: usize = usize::MAX;

struct Call(&'static str, i64, &'static [usize]);

/// The number on each processor; -1 where there is no such call.
macro_rules! number {
    ($x86:literal $arm:literal) => {
        if cfg!(target_arch = "x86_64") {
            $x86
        } else {
            $arm
        }
    };
}

macro_rules! calls {
    ($($name:ident $x86:literal $arm:literal ($($argument:expr),*))*) => {
        &[$(Call(stringify!($name), number!($x86 $arm), &[$($argument),*])),*]
    };
}

const REFUSED: &[Call] = calls! {
    // The machine's administration.
    reboot 169 142 (0, 0, 0, 0)
    kexec_load 246 104 (0, 0, 0, NO)
    kexec_file_load 320 294 (NO, NO, 0, 0, NO)
    init_module 175 105 (BAD, 0, BAD)
    finit_module 313 273 (NO, BAD, 0)
    delete_module 176 106 (BAD, 0)
    swapon 167 224 (BAD, 0)
    swapoff 168 225 (BAD)
    acct 163 89 (BAD)
    syslog 103 116 (NO, 0, 0)
    quotactl 179 60 (NO, BAD, 0, BAD)
    sethostname 170 161 (BAD, NO)
    setdomainname 171 162 (BAD, NO)
    iopl 172 -1 (3)
    ioperm 173 -1 (0, 1, 1)
    vhangup 153 58 ()
    settimeofday 164 170 (BAD, 0)
    clock_settime 227 112 (0, BAD)
    // Mounts and roots.
    mount 165 40 (BAD, BAD, BAD, 0, BAD)
    umount2 166 39 (BAD, 0)
    pivot_root 155 41 (BAD, BAD)
    chroot 161 51 (BAD)
    open_tree 428 428 (NO, BAD, 0)
    move_mount 429 429 (NO, BAD, NO, BAD, 0)
    fsopen 430 430 (BAD, 0)
    fsconfig 431 431 (NO, NO, 0, 0, 0)
    fsmount 432 432 (NO, 0, 0)
    fspick 433 433 (NO, BAD, 0)
    mount_setattr 442 442 (NO, BAD, 0, BAD, 32)
    // Namespaces.
    unshare 272 97 (0x0400_0000)
    setns 308 268 (NO, 0)
    clone3 435 435 (0, 0)
    // Keys.
    add_key 248 217 (BAD, BAD, 0, 0, 0)
    request_key 249 218 (BAD, BAD, 0, 0)
    keyctl 250 219 (NO)
    // Looking into others.
    ptrace 101 117 (0xffff, NO)
    process_vm_readv 310 270 (0, 0, 0, 0, 0, 1)
    process_vm_writev 311 271 (0, 0, 0, 0, 0, 1)
    perf_event_open 298 241 (0, 0, 0, NO, 0)
    bpf 321 280 (NO, 0, 0)
    kcmp 312 272 (0, 0, 99, 0, 0)
    pidfd_getfd 438 438 (NO, 0, 0)
    userfaultfd 323 282 (NO)
    fanotify_init 300 262 (NO, NO)
    // Ways around path checks, and large surfaces.
    name_to_handle_at 303 264 (NO, BAD, BAD, BAD, NO)
    open_by_handle_at 304 265 (NO, BAD, 0)
    io_uring_setup 425 425 (0, 0)
    io_uring_enter 426 426 (NO, 0, 0, 0, 0, 0)
    io_uring_register 427 427 (NO, NO, 0, 0)
    modify_ldt 154 -1 (0, 0, 0)
    move_pages 279 239 (0, 0, 0, 0, 0, NO)
    migrate_pages 256 238 (0, 1, BAD, BAD)
};

const ORDINARY: &[Call] = calls! {
    read 0 63 (NO, BAD, 1)
    openat 257 56 (NO, BAD, 0)
    openat2 437 437 (NO, BAD, BAD, 24)
    statx 332 291 (NO, BAD, 0, 0, BAD)
    faccessat2 439 439 (NO, BAD, 0, 0)
    renameat2 316 276 (NO, BAD, NO, BAD, 0)
    linkat 265 37 (NO, BAD, NO, BAD, 0)
    symlinkat 266 36 (BAD, NO, BAD)
    utimensat 280 88 (NO, BAD, BAD, 0)
    setxattr 188 5 (BAD, BAD, BAD, 0, 0)
    copy_file_range 326 285 (NO, 0, NO, 0, 0, 0)
    sendfile 40 71 (NO, NO, 0, 0)
    splice 275 76 (NO, 0, NO, 0, 1, 0)
    tee 276 77 (NO, NO, 1, 0)
    vmsplice 278 75 (NO, 0, 0, 0)
    fallocate 285 47 (NO, 0, 0, 1)
    flock 73 32 (NO, 0)
    fsync 74 82 (NO)
    sync_file_range 277 84 (NO, 0, 0, 0)
    inotify_init1 294 26 (0)
    epoll_create1 291 20 (0)
    eventfd2 290 19 (0, 0)
    timerfd_create 283 85 (1, 0)
    signalfd4 289 74 (NO, BAD, 8, 0)
    memfd_create 319 279 (BAD, 0)
    getrandom 318 278 (0, 0, 0)
    mbind 237 235 (0, 0, 0, 0, 0, 0)
    set_mempolicy 238 237 (0, 0, 0)
    get_mempolicy 239 236 (0, 0, 0, 0, 0)
    membarrier 324 283 (0, 0)
    madvise 28 233 (0, 0, 0)
    mincore 27 232 (0, 0, BAD)
    mlock 149 228 (0, 0)
    futex 202 98 (BAD, 1, 0)
    personality 135 92 (0x0004_0000)
    sched_getaffinity 204 123 (0, 0, 0)
    sched_setaffinity 203 122 (0, 0, BAD)
    sched_yield 24 124 ()
    setpriority 141 140 (0, 0, 19)
    ioprio_get 252 31 (1, 0)
    prlimit64 302 261 (0, 7, 0, 0)
    rseq 334 293 (BAD, 0, 0, 0)
    close_range 436 436 (1_000_000, 1_000_000, 0)
    pidfd_open 434 434 (0, 0)
    pidfd_send_signal 424 424 (NO, 0, 0, 0)
    waitid 247 95 (9, 0, 0, 0, 0)
    socketpair 53 199 (1, 1, 0, BAD)
    shmget 29 194 (0x7eed_beef, 0, 0)
    semget 64 190 (0x7eed_beef, 0, 0)
    msgget 68 186 (0x7eed_beef, 0)
    seccomp 317 277 (NO, 0, 0)
    landlock_create_ruleset 444 444 (0, 0, 1)
    capget 125 90 (BAD, BAD)
    execveat 322 281 (NO, BAD, 0, 0, 0)
};

pub fn run(name: &str, _: &[String]) -> Option<Verdict> {
    Some(match name {
        "sc.matrix" => matrix(REFUSED),
        "sc.ordinary" => matrix(ORDINARY),
        "sc.int80" => int80(),
        "sc.x32" => x32(),
        _ => return None,
    })
}

/// Says which are denied, and how many are not.
fn matrix(calls: &[Call]) -> Verdict {
    let mut reached = Vec::new();
    for Call(name, number, arguments) in calls.iter().filter(|call| call.1 >= 0) {
        // In a session of its own: one of them would hang up the terminal.
        let result = sys::in_child(|| {
            let _ = sys::setsid();
            sys::call(*number, arguments)
        });
        match result {
            Ok(Err(errno @ (EPERM | ENOSYS))) => println!("{name} {}", errno.name()),
            Err(Ended::Signalled(31)) => println!("{name} SIGSYS"),
            Ok(_) => reached.push((*name).to_owned()),
            Err(ended) => return Verdict::Error(format!("{name}: {ended:?}")),
        }
    }
    Verdict::found(&reached)
}

fn reached(what: &str, result: Result<Result<(), Errno>, Ended>) -> Verdict {
    match result {
        Ok(Ok(())) => Verdict::Allowed(what.into()),
        Ok(Err(errno)) => Verdict::denied(errno, what),
        Err(Ended::Signalled(31)) => Verdict::Denied("SIGSYS".into(), what.into()),
        Err(Ended::Signalled(11)) => {
            Verdict::Absent(format!("{what}: this kernel has no such entry"))
        }
        Err(ended) => Verdict::Error(format!("{what}: {ended:?}")),
    }
}

/// The 32-bit table, where a filter by 64-bit numbers sees others: 20 is `getpid` there.
#[cfg(target_arch = "x86_64")]
fn int80() -> Verdict {
    reached(
        "int 0x80",
        sys::in_child(|| {
            let result: i64;
            // SAFETY: `getpid` takes no arguments and touches no memory.
            unsafe {
                std::arch::asm!("int 0x80", inlateout("rax") 20_i64 => result,
                lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _);
            }
            let result = i64::from(result as i32);
            if result > 0 {
                Ok(result)
            } else {
                Err(Errno(-result as i32))
            }
        }),
    )
}

#[cfg(not(target_arch = "x86_64"))]
fn int80() -> Verdict {
    Verdict::Absent("this processor has no int 0x80".into())
}

/// `getpid` by its x32 number. Kernels without x32 refuse the number themselves, so there is nothing to get around.
fn x32() -> Verdict {
    if cfg!(not(target_arch = "x86_64")) {
        return Verdict::Absent("this processor has no x32".into());
    }
    match sys::in_child(|| sys::call(0x4000_0000 + 39, &[])) {
        Ok(Err(ENOSYS)) => Verdict::denied(ENOSYS, "x32"),
        Ok(Err(EINVAL)) => Verdict::Error("x32: EINVAL".into()),
        result => reached("x32", result),
    }
}
