//! The system calls that the standard library does not have.
//!
//! They are safe functions although a raw system call is not: a probe is an expendable process whose arguments are
//! its own live buffers, or addresses that are wrong on purpose and that the kernel alone looks at.

use std::ffi::{CString, c_char, c_int, c_long, c_uint, c_ulong, c_void};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident $number:literal)*) => {
        $(#[allow(dead_code)] pub const $name: Errno = Errno($number);)*
        impl Errno {
            pub fn name(self) -> String {
                match self.0 {
                    $($number => stringify!($name).into(),)*
                    other => format!("E{other}"),
                }
            }
        }
    };
}

errnos! {
    EPERM 1 ENOENT 2 ESRCH 3 EINTR 4 EIO 5 ENXIO 6 E2BIG 7 ENOEXEC 8 EBADF 9 ECHILD 10 EAGAIN 11 ENOMEM 12 EACCES 13
    EFAULT 14 EBUSY 16 EEXIST 17 EXDEV 18 ENODEV 19 ENOTDIR 20 EISDIR 21 EINVAL 22 ENFILE 23 EMFILE 24 ENOTTY 25
    ETXTBSY 26 EFBIG 27 ENOSPC 28 ESPIPE 29 EROFS 30 EMLINK 31 EPIPE 32 ENAMETOOLONG 36 ENOSYS 38 ELOOP 40 EPROTONOSUPPORT 93
    ESOCKTNOSUPPORT 94 EOPNOTSUPP 95 EAFNOSUPPORT 97 EADDRINUSE 98 EADDRNOTAVAIL 99 ENETDOWN 100 ENETUNREACH 101
    ECONNRESET 104 ETIMEDOUT 110 ECONNREFUSED 111 EHOSTUNREACH 113 EDQUOT 122 ENOKEY 126 EKEYEXPIRED 127
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(match error.kind() {
            std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => ETIMEDOUT.0,
            _ => EIO.0,
        }))
    }
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn _exit(status: c_int) -> !;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
}

pub fn last() -> Errno {
    std::io::Error::last_os_error().into()
}

pub type Outcome = Result<i64, Errno>;

/// Any system call by number.
pub fn call(number: i64, arguments: &[usize]) -> Outcome {
    let mut a = [0_usize; 6];
    a[..arguments.len()].copy_from_slice(arguments);
    // SAFETY: see the head of the file.
    let result = unsafe { syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
    check(result)
}

pub fn check(result: c_long) -> Outcome {
    match result {
        -1 => Err(last()),
        value => Ok(value),
    }
}

macro_rules! functions {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),*) = $symbol:ident;)*) => {
        mod raw {
            use super::*;
            unsafe extern "C" { $(pub fn $symbol($($argument: $type),*) -> c_int;)* }
        }
        $($(#[$doc])* pub fn $name($($argument: $type),*) -> Outcome {
            // SAFETY: see the head of the file.
            check(unsafe { raw::$symbol($($argument),*) }.into())
        })*
    };
}

functions! {
    fn fork() = fork;
    fn setsid() = setsid;
    fn kill(pid: c_int, signal: c_int) = kill;
    fn signal_number(signal: c_int) = raise;
    fn mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) = mount;
    fn umount2(target: *const c_char, flags: c_int) = umount2;
    fn chroot(path: *const c_char) = chroot;
    fn unshare(flags: c_int) = unshare;
    fn setns(fd: c_int, kind: c_int) = setns;
    fn mknod(path: *const c_char, mode: c_uint, device: c_ulong) = mknod;
    fn socket(family: c_int, kind: c_int, protocol: c_int) = socket;
    fn bind(fd: c_int, address: *const c_void, length: c_uint) = bind;
    fn close(fd: c_int) = close;
    fn dup2(from: c_int, to: c_int) = dup2;
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) = ioctl;
    fn setuid(uid: c_uint) = setuid;
    fn setgid(gid: c_uint) = setgid;
    fn setgroups(count: usize, groups: *const c_uint) = setgroups;
    fn setpriority(which: c_int, who: c_uint, value: c_int) = setpriority;
    fn sched_setscheduler(pid: c_int, policy: c_int, parameter: *const c_int) = sched_setscheduler;
    fn setrlimit(which: c_int, limit: *const [u64; 2]) = setrlimit;
    fn getrlimit(which: c_int, limit: *mut [u64; 2]) = getrlimit;
    fn shmget(key: c_int, size: usize, flags: c_int) = shmget;
    fn semget(key: c_int, count: c_int, flags: c_int) = semget;
    fn msgget(key: c_int, flags: c_int) = msgget;
    fn shmctl(id: c_int, command: c_int, argument: *mut c_void) = shmctl;
    fn semctl(id: c_int, which: c_int, command: c_int) = semctl;
    fn msgctl(id: c_int, command: c_int, argument: *mut c_void) = msgctl;
    fn mq_open(name: *const c_char, flags: c_int, mode: c_uint, attributes: *const c_void) = mq_open;
    fn mq_unlink(name: *const c_char) = mq_unlink;
    fn memfd_create(name: *const c_char, flags: c_uint) = memfd_create;
    fn clock_gettime(clock: c_int, time: *mut [i64; 2]) = clock_gettime;
    fn adjtimex(timex: *mut [u64; 32]) = adjtimex;
    fn fchdir(fd: c_int) = fchdir;
    fn posix_openpt(flags: c_int) = posix_openpt;
    fn grantpt(fd: c_int) = grantpt;
    fn unlockpt(fd: c_int) = unlockpt;
    fn getppid() = getppid;
    fn getuid() = getuid;
    fn getgid() = getgid;
    fn geteuid() = geteuid;
    fn prctl(option: c_int, argument: c_ulong) = prctl;
}

pub fn text(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

pub fn leave(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { _exit(status) }
}

/// How a child ended.
#[derive(PartialEq, Eq, Debug)]
pub enum Ended {
    Exited(i32),
    Signalled(i32),
    Stopped,
}

pub fn wait(pid: i64, options: c_int) -> Result<Ended, Errno> {
    let mut status = 0;
    loop {
        // SAFETY: the status is a live variable.
        match check(unsafe { waitpid(pid as c_int, &raw mut status, options) }.into()) {
            Err(EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) if status & 0xff == 0x7f => return Ok(Ended::Stopped),
            Ok(_) if status & 0x7f == 0 => return Ok(Ended::Exited(status >> 8 & 0xff)),
            Ok(_) => return Ok(Ended::Signalled(status & 0x7f)),
        }
    }
}

/// Does it in a child, so that a signal or a changed world stays there. 0 is success, else an errno.
pub fn in_child(attempt: impl FnOnce() -> Outcome) -> Result<Result<(), Errno>, Ended> {
    let pid = match fork() {
        Ok(0) => leave(match attempt() {
            Ok(_) => 0,
            Err(Errno(number)) => number & 0xff,
        }),
        Ok(pid) => pid,
        Err(errno) => return Ok(Err(errno)),
    };
    match wait(pid, 0) {
        Ok(Ended::Exited(0)) => Ok(Ok(())),
        Ok(Ended::Exited(number)) => Ok(Err(Errno(number))),
        Ok(ended) => Err(ended),
        Err(errno) => Ok(Err(errno)),
    }
}

/// The processes that `/proc` shows.
pub fn pids() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect()
}
