//! The few other calls that no crate offers in a safe form.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::wire::WireUsage;

/// Watches a descriptor for something to read.
pub(in crate::sandbox) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open, and the same, until it is dropped with the `AsyncFd`;
    // nobody takes it out by a mutable reference.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Gives every signal its default effect. What is ignored stays ignored across `execve`: the Rust runtime ignores SIGPIPE,
/// and whoever started the daemon may have ignored more.
pub(in crate::sandbox) fn default_signals() {
    // The kernel's sigaction, all zero, is SIG_DFL; the C library refuses to touch its own two signals.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads 32 bytes, and no handler is installed. It refuses SIGKILL and SIGSTOP.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
    }
}

/// Closes every descriptor from `first` on. Only for a process that has not yet opened any of its own there.
pub(in crate::sandbox) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: called once, first thing in a launcher, when nothing in this process owns a descriptor from `first` on.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// No ADDR_NO_RANDOMIZE and the like from whoever started the daemon.
pub(in crate::sandbox) fn default_personality() {
    // SAFETY: changes flags of this process only; its own memory is laid out already.
    unsafe { libc::personality(0) };
}

/// What `wait4` found.
#[derive(Debug)]
pub(in crate::sandbox) enum Reaped {
    /// This child has ended.
    Child {
        pid: c_int,
        status: c_int,
        usage: WireUsage,
    },
    /// There are children, and none has ended.
    NoneYet,
    /// There are no children, and as orphans become our children, nothing is left.
    NoChildren,
}

/// Takes one ended child off the list; does not wait.
pub(in crate::sandbox) fn reap() -> Reaped {
    loop {
        let mut status = 0;
        // SAFETY: rusage is plain data, for which zero is a value, and the pointers are valid.
        let (pid, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            let options = libc::WNOHANG | libc::__WALL;
            let pid = libc::wait4(-1, &raw mut status, options, &raw mut usage);
            (pid, usage)
        };
        return match pid {
            0 => Reaped::NoneYet,
            pid if pid > 0 => Reaped::Child {
                pid,
                status,
                usage: from_rusage(&usage),
            },
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => continue,
            _ => Reaped::NoChildren,
        };
    }
}

pub(in crate::sandbox) fn from_rusage(usage: &libc::rusage) -> WireUsage {
    // All of these count up from zero.
    let micros = |time: libc::timeval| (time.tv_sec as u64) * 1_000_000 + time.tv_usec as u64;
    WireUsage {
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        max_rss_kib: usage.ru_maxrss as u64,
        minor_faults: usage.ru_minflt as u64,
        major_faults: usage.ru_majflt as u64,
        blocks_in: usage.ru_inblock as u64,
        blocks_out: usage.ru_oublock as u64,
        voluntary_switches: usage.ru_nvcsw as u64,
        involuntary_switches: usage.ru_nivcsw as u64,
    }
}
