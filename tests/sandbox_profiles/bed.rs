//! Processes below a profile's filter.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

use boxwright::sandbox::linux::profile::Profiles;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The call succeeded, and the process went on to run a program.
    Done,
    /// The call failed.
    Errno(i32),
    /// The process was killed.
    Signal(i32),
}

/// Below no filter.
pub(crate) const NONE: &str = "";

/// The exit code of a child that could not install its filter.
const NOT_INSTALLED: i32 = 113;

#[repr(C)]
struct Program {
    length: u16,
    instructions: *const u8,
}

/// A command that installs the profile's filter, does `then`, and runs `program`.
pub(crate) fn filtered<F>(profile: &str, program: &str, then: F) -> Command
where
    F: Fn() -> io::Result<()> + Send + Sync + 'static,
{
    let profiles = Profiles::load(None).expect("the built-in profiles");
    let filter = match profile {
        NONE => Vec::new(),
        name => profiles
            .get(name)
            .expect("a built-in profile")
            .filter
            .clone(),
    };
    let act = move || {
        let program = Program {
            length: (filter.len() / 8) as u16,
            instructions: filter.as_ptr(),
        };
        // SAFETY: system calls only; the program lives as long as this closure.
        unsafe {
            if !filter.is_empty()
                && (libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                    || libc::syscall(
                        libc::SYS_seccomp,
                        libc::SECCOMP_SET_MODE_FILTER,
                        0,
                        &program,
                    ) != 0)
            {
                libc::_exit(NOT_INSTALLED);
            }
        }
        then()
    };
    let mut command = Command::new(program);
    // SAFETY: the closure neither allocates nor locks.
    unsafe { command.pre_exec(act) };
    command
}

/// What becomes of one thing that a process does below the profile's filter before it runs `/bin/true`.
pub(crate) fn attempt<F>(profile: &str, what: F) -> Ended
where
    F: Fn() -> io::Result<()> + Send + Sync + 'static,
{
    let mut child = match filtered(profile, "/bin/true", what).spawn() {
        Ok(child) => child,
        Err(error) => return Ended::Errno(error.raw_os_error().expect("an error of the system")),
    };
    let status = child.wait().expect("the child's end");
    match status.signal() {
        Some(signal) => Ended::Signal(signal),
        None => {
            assert_eq!(
                status.code(),
                Some(0),
                "113 is: the kernel did not take the filter"
            );
            Ended::Done
        }
    }
}

/// What becomes of one system call.
pub(crate) fn call(profile: &str, number: i64, arguments: [u64; 6]) -> Ended {
    attempt(profile, move || {
        let [a, b, c, d, e, f] = arguments;
        // SAFETY: every pointer that the tests pass is null.
        match unsafe { libc::syscall(number as libc::c_long, a, b, c, d, e, f) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    })
}

/// `getpid` the 32-bit way, as any 64-bit program may call it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn call_32_bit(profile: &str) -> Ended {
    attempt(profile, || {
        let result: i64;
        // SAFETY: getpid takes nothing and changes no memory; what the kernel clears is declared.
        unsafe {
            std::arch::asm!(
                "int 0x80", inlateout("rax") 20_i64 => result,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        match result {
            1.. => Ok(()),
            other => Err(io::Error::from_raw_os_error(-other as i32)),
        }
    })
}

/// Lets the parent trace this process.
pub(crate) fn be_traced() -> io::Result<()> {
    // SAFETY: PTRACE_TRACEME reads no other argument.
    match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
