//! The attempt, seen from inside: one process with one thread, which leaves everything that it makes to die with it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::steps::{Line, Step};
use super::sys;

/// What `boxwright sandbox-probe [DIR]` does. Never returns.
pub fn child_main() -> ! {
    let argument = std::env::args_os().nth(2).map(PathBuf::from);
    if argument.as_deref() == Some(Path::new(INNER)) {
        std::process::exit(inner());
    }
    let _ = outer(argument.as_deref());
    std::process::exit(0);
}

/// The argument of the process in the PID namespace; no directory is called so, for directories are absolute.
const INNER: &str = "inner";
/// The code with which it ends where it is not the first process.
const NOT_FIRST: i32 = 254;

/// Says how a step went; an error ends the attempt.
fn tell(step: Step, went: io::Result<()>) -> io::Result<()> {
    let number = match &went {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", Line(step, number))?;
    out.flush()?;
    went
}

fn outer(dir: Option<&Path>) -> io::Result<()> {
    let alone = |flags| unshare(flags).map_err(io::Error::from);
    tell(Step::User, alone(CloneFlags::CLONE_NEWUSER))?;
    io::stdin().read_exact(&mut [0])?;
    tell(Step::Ids, become_root())?;
    tell(
        Step::Mounts,
        alone(CloneFlags::CLONE_NEWNS).and_then(|()| keep_mounts()),
    )?;
    // From here on each step stands alone.
    let network = tell(Step::Network, alone(CloneFlags::CLONE_NEWNET));
    if network.is_ok() {
        let _ = tell(Step::Loopback, loopback());
    }
    let _ = tell(Step::Ipc, alone(CloneFlags::CLONE_NEWIPC));
    let _ = tell(Step::Uts, alone(CloneFlags::CLONE_NEWUTS));
    if let Some(dir) = dir {
        let _ = tell(Step::OverlayOnState, overlay(dir));
    }
    let space = Path::new("/tmp");
    if tell(Step::Tmpfs, plain_mount("tmpfs", space)).is_ok() {
        let _ = tell(Step::Overlay, overlay(space));
        let _ = tell(Step::Fuse, fuse(&space.join("fuse")));
    }
    let _ = tell(Step::Seccomp, sys::install_a_filter());
    tell(Step::Pid, alone(CloneFlags::CLONE_NEWPID))?;
    let _ = tell(Step::Proc, proc(&space.join("proc")));
    Ok(())
}

fn become_root() -> io::Result<()> {
    nix::unistd::setresgid(0.into(), 0.into(), 0.into())?;
    nix::unistd::setresuid(0.into(), 0.into(), 0.into())?;
    Ok(())
}

/// Mounts made from here on stay here.
fn keep_mounts() -> io::Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?;
    Ok(())
}

fn plain_mount(kind: &str, at: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(kind), at, Some(kind), flags, None::<&str>)?;
    Ok(())
}

fn loopback() -> io::Result<()> {
    sys::loopback_up()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    TcpStream::connect(listener.local_addr()?)?;
    listener.accept()?;
    Ok(())
}

/// Mounts an overlay and changes a file of its lower layer in it.
fn overlay(dir: &Path) -> io::Result<()> {
    let place = |name: &str| dir.join(name);
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(place(name))?;
    }
    std::fs::write(place("lower/file"), b"a")?;
    let shown = |name: &str| place(name).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},userxattr",
        shown("lower"),
        shown("upper"),
        shown("work")
    );
    let merged = place("merged");
    let options = Some(options.as_str());
    mount(
        Some("overlay"),
        &merged,
        Some("overlay"),
        MsFlags::empty(),
        options,
    )?;
    let used = std::fs::write(merged.join("file"), b"b")
        .and_then(|()| std::fs::read(place("upper/file")))
        .and_then(|content| match content == b"b" {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::EIO)),
        });
    nix::mount::umount(&merged)?;
    // Overlayfs leaves a directory of mode 0 there, which whoever removes the rest may not open.
    std::fs::remove_dir(place("work/work"))?;
    used
}

/// A FUSE file system that nobody serves: mounted, never looked at.
fn fuse(at: &Path) -> io::Result<()> {
    std::fs::create_dir(at)?;
    let device = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        device.as_raw_fd()
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("boxwright"),
        at,
        Some("fuse"),
        flags,
        Some(options.as_str()),
    )?;
    Ok(())
}

/// Mounts a /proc, which takes a process in the PID namespace.
fn proc(at: &Path) -> io::Result<()> {
    std::fs::create_dir_all(at)?;
    let status = Command::new("/proc/self/exe")
        .args(["sandbox-probe", INNER])
        .current_dir(at)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    match status.code() {
        Some(0) => Ok(()),
        Some(NOT_FIRST) | None => Err(io::Error::from_raw_os_error(libc::ECHILD)),
        Some(number) => Err(io::Error::from_raw_os_error(number)),
    }
}

/// The first process of the PID namespace. Its exit code is the error's number, all of which are below 254.
fn inner() -> i32 {
    if std::process::id() != 1 {
        return NOT_FIRST;
    }
    let number = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    let mounted = std::env::current_dir().and_then(|here| {
        plain_mount("proc", &here)?;
        // Our own, not the one that shows the host.
        match std::fs::read_link(here.join("self"))? == Path::new("1") {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    });
    mounted.map_or_else(number, |()| 0)
}
