//! The tester's side: a world to run a level's probes in, and a parent that may be killed.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::null;

use crate::sys;
use crate::verdict::Verdict;

pub fn run(name: &str, arguments: &[String]) -> Option<Verdict> {
    match name {
        "world.enter" => Some(enter(&arguments[0], &arguments[1..])),
        "parent" => Some(parent(&arguments[0], &arguments[1..])),
        _ => None,
    }
}

/// Runs a command with a terminal of its own and, for root, with a network whose loopback interface has the addresses
/// that clouds serve metadata at, and with the files of the directory over those of `/etc`. Its status is the command's.
fn enter(directory: &str, command: &[String]) -> Verdict {
    if sys::geteuid() == Ok(0)
        && let Err(verdict) = private(directory)
    {
        return verdict;
    }
    let terminal = sys::posix_openpt(0o2 | 0o400).and_then(|fd| {
        sys::grantpt(fd as i32)?;
        sys::unlockpt(fd as i32).map(|_| fd)
    });
    let Ok(terminal) = terminal else {
        return Verdict::Error("no terminal".into());
    };
    let child = match sys::fork() {
        Ok(0) => {
            const TIOCGPTPEER: u64 = 0x5441;
            const TIOCSCTTY: u64 = 0x540e;
            const PR_SET_PDEATHSIG: i32 = 1;
            let _ = sys::prctl(PR_SET_PDEATHSIG, 9);
            let _ = sys::setsid();
            let Ok(mine) = sys::ioctl(terminal as i32, TIOCGPTPEER, 0o2 as *mut _) else {
                sys::leave(125)
            };
            let _ = sys::ioctl(mine as i32, TIOCSCTTY, std::ptr::null_mut());
            let _ = sys::dup2(mine as i32, 0);
            let _ = sys::close(mine as i32);
            let _ = sys::close(terminal as i32);
            let error = Command::new(&command[0]).args(&command[1..]).exec();
            eprintln!("{}: {error}", command[0]);
            sys::leave(126)
        }
        Ok(child) => child,
        Err(errno) => return Verdict::Error(errno.name()),
    };
    match sys::wait(child, 0) {
        Ok(sys::Ended::Exited(status)) => sys::leave(status),
        ended => Verdict::Error(format!("{ended:?}")),
    }
}

fn private(directory: &str) -> Result<(), Verdict> {
    const CLONE_NEWNS_NEWNET: i32 = 0x4002_0000;
    const MS_REC_PRIVATE: u64 = 0x4000 | (1 << 18);
    const MS_BIND: u64 = 4096;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |errno: sys::Errno| Verdict::Error(format!("{what}: {}", errno.name()))
    };
    sys::unshare(CLONE_NEWNS_NEWNET).map_err(failed("unshare"))?;
    sys::mount(
        null(),
        sys::text("/").as_ptr(),
        null(),
        MS_REC_PRIVATE,
        null(),
    )
    .map_err(failed("make mounts private"))?;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let place = format!("/etc/{}", entry.file_name().to_string_lossy());
        let _ = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&place);
        let from = sys::text(&entry.path().to_string_lossy());
        sys::mount(
            from.as_ptr(),
            sys::text(&place).as_ptr(),
            null(),
            MS_BIND,
            null(),
        )
        .map_err(failed(&place))?;
    }
    let socket = sys::socket(2, 2, 0).map_err(failed("socket"))? as i32;
    for (name, address) in [
        ("lo", [127, 0, 0, 1]),
        ("lo:1", [169, 254, 169, 254]),
        ("lo:2", [169, 254, 169, 253]),
    ] {
        interface(socket, name, address).map_err(failed(name))?;
    }
    let _ = sys::close(socket);
    // The listeners of a world without root have low ports too.
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    Ok(())
}

fn interface(socket: i32, name: &str, address: [u8; 4]) -> sys::Outcome {
    const SIOCSIFADDR: u64 = 0x8916;
    const SIOCSIFFLAGS: u64 = 0x8914;
    // struct ifreq: a name of 16 bytes and a union of 24.
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&2_u16.to_ne_bytes());
    request[20..24].copy_from_slice(&address);
    sys::ioctl(socket, SIOCSIFADDR, request.as_mut_ptr().cast())?;
    request[16..40].fill(0);
    const IFF_UP_RUNNING: u16 = 0x41;
    request[16..18].copy_from_slice(&IFF_UP_RUNNING.to_ne_bytes());
    sys::ioctl(socket, SIOCSIFFLAGS, request.as_mut_ptr().cast())
}

/// A parent of the probe's own user that has a secret, no protection and a file left open: what a worker is that takes no
/// care. The probe's output goes where this one's does.
fn parent(name: &str, arguments: &[String]) -> Verdict {
    let _left_open = sys::memfd_create(sys::text("left-open").as_ptr(), 0);
    match sys::fork() {
        Ok(0) => {
            let verdict = crate::run(name, arguments);
            let _ = verdict.print(&mut std::io::stdout());
            sys::leave(0)
        }
        Ok(child) => match sys::wait(child, 0) {
            Ok(sys::Ended::Exited(0)) => sys::leave(0),
            ended => Verdict::Error(format!("the probe: {ended:?}")),
        },
        Err(errno) => Verdict::Error(errno.name()),
    }
}
