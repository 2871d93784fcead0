//! What a command is given without asking: devices, file systems of the kernel, descriptors, environment, terminal, clock,
//! interpreters.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::sys::{self, Errno};
use crate::verdict::Verdict;

pub fn run(name: &str, arguments: &[String]) -> Option<Verdict> {
    Some(match name {
        "dev.list" => {
            let mut found = Vec::new();
            devices(Path::new("/dev"), &mut found);
            found.sort();
            found.truncate(12);
            Verdict::found(&found)
        }
        "dev.mknod" => mknod(),
        "sys.absent" => match fs::read_dir("/sys").map(Iterator::count) {
            Ok(0) => Verdict::Absent("/sys is empty".into()),
            Ok(_) => Verdict::Allowed("/sys".into()),
            Err(error) => Verdict::denied(error.into(), "/sys"),
        },
        "sys.cgroup" => {
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
            let kinds = mounts
                .lines()
                .filter_map(|line| Some((line.split(' ').nth(1)?, line.split(' ').nth(2)?)));
            let found = kinds.filter(|(_, kind)| {
                matches!(
                    *kind,
                    "cgroup" | "cgroup2" | "sysfs" | "debugfs" | "securityfs"
                )
            });
            Verdict::found(&found.map(|(at, _)| at.to_owned()).collect::<Vec<_>>())
        }
        "fd.leak" => descriptors(),
        "fd.stdin" => match fs::read_link("/proc/self/fd/0") {
            Ok(path) if path == Path::new("/dev/null") => {
                Verdict::Denied("NOTHING".into(), "to read".into())
            }
            path => Verdict::io(
                path.as_ref().map(|_| ()).map_err(|e| e.kind().into()),
                format!("{path:?}"),
            ),
        },
        // All that is there but is not listed.
        "env.exact" => {
            let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
            Verdict::found(
                &names
                    .filter(|name| !arguments.contains(name))
                    .collect::<Vec<_>>(),
            )
        }
        "tty.tiocsti" => tiocsti(),
        "time.set" => time(),
        "exec.interp" => {
            let ran = std::process::Command::new(&arguments[0]).output();
            Verdict::io(ran, &*arguments[0])
        }
        "exec.ran" => Verdict::Allowed("ran".into()),
        _ => return None,
    })
}

/// Device nodes but for those that every program may have.
fn devices(directory: &Path, found: &mut Vec<String>) {
    let harmless = ["null", "zero", "full", "random", "urandom", "tty", "ptmx"];
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let name = entry.file_name().to_string_lossy().into_owned();
        if kind.is_dir() {
            devices(&entry.path(), found);
        } else if (kind.is_char_device() || kind.is_block_device())
            && !harmless.contains(&&*name)
            && !directory.ends_with("pts")
        {
            found.push(name);
        }
    }
}

fn mknod() -> Verdict {
    const S_IFCHR: u32 = 0o020_000;
    let path = sys::text("node");
    // The device of /dev/null, and whether it can be used once it is made.
    let made = sys::mknod(path.as_ptr(), S_IFCHR | 0o666, 0x103);
    let verdict = match made {
        Ok(_) => Verdict::io(fs::File::open("node"), "char 1:3"),
        Err(errno) => Verdict::denied(errno, "char 1:3"),
    };
    let _ = fs::remove_file("node");
    verdict
}

fn descriptors() -> Verdict {
    let mut found = Vec::new();
    for fd in 3..1024 {
        if let Ok(target) = fs::read_link(format!("/proc/self/fd/{fd}")) {
            found.push(format!("{fd}={}", target.display()));
        }
    }
    Verdict::found(&found)
}

/// A character into the terminal's input, by whatever descriptor leads there.
fn tiocsti() -> Verdict {
    const TIOCSTI: u64 = 0x5412;
    let mut character = b' ';
    let mut push = |fd: i32| sys::ioctl(fd, TIOCSTI, (&raw mut character).cast());
    let mut attempts = Vec::new();
    match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty")
    {
        Ok(terminal) => attempts.push(Verdict::of(push(terminal.as_raw_fd()), "/dev/tty")),
        Err(error) => attempts.push(Verdict::denied(Errno::from(error), "open /dev/tty")),
    }
    for fd in 0..=2 {
        attempts.push(Verdict::of(push(fd), format!("descriptor {fd}")));
    }
    Verdict::any(attempts)
}

/// The clock's own status, written back: the privilege is that of setting the time.
fn time() -> Verdict {
    const ADJ_STATUS: u64 = 0x10;
    let mut timex = [0_u64; 32];
    if let Err(errno) = sys::adjtimex(&raw mut timex) {
        return Verdict::denied(errno, "adjtimex");
    }
    timex[0] = timex[0] & !0xffff_ffff | ADJ_STATUS;
    Verdict::of(sys::adjtimex(&raw mut timex), "adjtimex")
}
