//! Other processes: see, signal, trace and read them; write the kernel's settings; stay when one should go.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::time::Duration;

use crate::sys;
use crate::verdict::Verdict;

pub fn run(name: &str, arguments: &[String]) -> Option<Verdict> {
    Some(match name {
        "proc.scan" => scan(),
        "proc.kill_host" => match arguments[0].parse() {
            Ok(pid) => Verdict::of(sys::kill(pid, 0), &*arguments[0]),
            Err(_) => Verdict::Error(format!("{:?} is no process id", arguments[0])),
        },
        "proc.ptrace_init" => ptrace(parent()),
        "proc.init_environ" => environ(&arguments[0]),
        "proc.init_memory" => {
            let path = format!("/proc/{}/mem", parent());
            Verdict::io(OpenOptions::new().read(true).write(true).open(&path), path)
        }
        "proc.kill_init" => kill_parent(),
        "proc.sysctl_write" => sysctl(),
        "proc.oom_score" => oom_score(),
        "proc.sigstop" => {
            let _ = sys::kill(parent(), SIGSTOP);
            let _ = sys::signal_number(SIGSTOP);
            Verdict::Allowed("went on".into())
        }
        "proc.linger_daemon" => linger(|| {
            let _ = sys::setsid();
            if let Ok(0) = sys::fork() {
                Stay::Here
            } else {
                Stay::Gone
            }
        }),
        "proc.linger_setsid" => linger(|| {
            let _ = sys::setsid();
            Stay::Here
        }),
        // The middle process hangs in the kernel until the last has gone.
        "proc.linger_vfork" => linger(|| {
            const CLONE_VFORK: usize = 0x4000;
            match sys::call(CLONE, &[CLONE_VFORK | SIGCHLD as usize]) {
                Ok(0) => Stay::Here,
                _ => Stay::Gone,
            }
        }),
        "proc.linger_stopped" => linger(|| Stay::Stopped),
        _ => return None,
    })
}

#[cfg(target_arch = "x86_64")]
const CLONE: i64 = 56;
#[cfg(target_arch = "x86_64")]
const PTRACE: i64 = 101;
#[cfg(target_arch = "aarch64")]
const CLONE: i64 = 220;
#[cfg(target_arch = "aarch64")]
const PTRACE: i64 = 117;
const SIGKILL: i32 = 9;
const SIGCHLD: i32 = 17;
const SIGSTOP: i32 = 19;

fn parent() -> i32 {
    sys::getppid().map_or(0, |pid| pid as i32)
}

/// An init, this process and a launcher's shadow are nobody else's.
fn scan() -> Verdict {
    match sys::pids().len() {
        0 => Verdict::Error("no /proc".into()),
        count @ 1..=3 => Verdict::Denied("NOTHING".into(), format!("{count} processes")),
        count => Verdict::Allowed(format!("{count} processes")),
    }
}

fn ptrace(pid: i32) -> Verdict {
    const PTRACE_SEIZE: usize = 0x4206;
    const PTRACE_DETACH: usize = 17;
    let seized = sys::call(PTRACE, &[PTRACE_SEIZE, pid as usize]);
    if seized.is_ok() {
        let _ = sys::call(PTRACE, &[PTRACE_DETACH, pid as usize]);
    }
    Verdict::of(seized, format!("pid {pid}"))
}

/// A variable that the worker has and this command was not given.
fn environ(variable: &str) -> Verdict {
    let own = std::process::id() as i32;
    let others = sys::pids().into_iter().filter(|pid| *pid != own);
    let mut last = Verdict::Denied("NOTHING".into(), format!("says {variable}"));
    for pid in others {
        match fs::read(format!("/proc/{pid}/environ")) {
            Ok(bytes)
                if bytes
                    .windows(variable.len())
                    .any(|part| part == variable.as_bytes()) =>
            {
                return Verdict::Allowed(format!("{variable} of pid {pid}"));
            }
            Ok(_) => {}
            Err(error) => last = Verdict::denied(error.into(), format!("pid {pid}")),
        }
    }
    last
}

/// Whether the parent dies of SIGKILL. Never the machine's own init.
fn kill_parent() -> Verdict {
    let pid = parent();
    if pid == 1
        && fs::read_link("/proc/1/root").is_ok_and(|_| sys::geteuid() == Ok(0))
        && sys::pids().len() > 5
    {
        return Verdict::Error("the parent is the machine's init".into());
    }
    if let Err(errno) = sys::kill(pid, SIGKILL) {
        return Verdict::denied(errno, format!("pid {pid}"));
    }
    // An orphan gets another parent as soon as the old one is dead.
    for _ in 0..50 {
        if parent() != pid {
            return Verdict::Allowed(format!("pid {pid}"));
        }
        std::thread::sleep(Duration::from_millis(4));
    }
    Verdict::Denied("NOTHING".into(), format!("came of killing pid {pid}"))
}

/// Settings whose change is code execution on the host, each written back as it is; the trigger is only opened.
fn sysctl() -> Verdict {
    let settings = [
        "kernel/core_pattern",
        "kernel/modprobe",
        "kernel/hostname",
        "vm/overcommit_memory",
        "fs/file-max",
    ];
    let written = settings.iter().map(|setting| {
        let path = format!("/proc/sys/{setting}");
        let value = fs::read(&path).unwrap_or_default();
        let written = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| {
                if value.is_empty() {
                    Ok(())
                } else {
                    file.write_all(&value)
                }
            });
        Verdict::io(written, *setting)
    });
    let trigger = "/proc/sysrq-trigger";
    let opened = Verdict::io(OpenOptions::new().write(true).open(trigger), trigger);
    Verdict::any(std::iter::once(opened).chain(written))
}

/// Below what one was started with: to be the last that is killed for want of memory.
fn oom_score() -> Verdict {
    const PATH: &str = "/proc/self/oom_score_adj";
    Verdict::io(fs::write(PATH, "-1000"), PATH)
}

enum Stay {
    Here,
    Stopped,
    Gone,
}

/// Leaves a process that has no standard streams, ignores what it can, and would stay for a minute.
fn linger(become_it: impl FnOnce() -> Stay) -> Verdict {
    let (mut ready, said) = match std::io::pipe() {
        Ok(ends) => ends,
        Err(error) => return Verdict::Error(error.to_string()),
    };
    let child = match sys::fork() {
        Ok(0) => {
            drop(ready);
            lose_streams();
            ignore_signals();
            let stay = become_it();
            if let Stay::Gone = stay {
                sys::leave(0);
            }
            let _ = (&said).write_all(b"x");
            drop(said);
            if let Stay::Stopped = stay {
                let _ = sys::signal_number(SIGSTOP);
            }
            std::thread::sleep(Duration::from_secs(60));
            sys::leave(0)
        }
        Ok(child) => child,
        Err(errno) => return Verdict::denied(errno, "fork"),
    };
    drop(said);
    match ready.read_exact(&mut [0]) {
        Ok(()) => Verdict::Allowed(format!("started {child}")),
        Err(error) => Verdict::Error(format!("it did not start: {error}")),
    }
}

pub fn lose_streams() {
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        for fd in 0..=2 {
            let _ = sys::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), fd);
        }
    }
}

/// SIGHUP, SIGINT, SIGQUIT and SIGTERM.
pub fn ignore_signals() {
    unsafe extern "C" {
        fn signal(signal: i32, handler: usize) -> usize;
    }
    const SIG_IGN: usize = 1;
    for number in [1, 2, 3, 15] {
        // SAFETY: ignoring a signal runs no handler.
        unsafe { signal(number, SIG_IGN) };
    }
}
