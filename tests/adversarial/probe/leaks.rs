//! What one action leaves for the next: `leak.plant` puts a mark into every place that it can write, `leak.scan` looks
//! for it, `leak.clean` takes it away.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::FromRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::ptr::null_mut;
use std::time::Duration;

use crate::processes::{ignore_signals, lose_streams};
use crate::sys::{self, Outcome};
use crate::verdict::Verdict;

const PLACES: [&str; 14] = [
    "/",
    "/build",
    "/dev",
    "/dev/mqueue",
    "/dev/shm",
    "/etc",
    "/home",
    "/mnt",
    "/opt",
    "/run",
    "/run/lock",
    "/srv",
    "/tmp",
    "/var/tmp",
];
const CREATE: i32 = 0o1000 | 0o666;
const IPC_RMID: i32 = 0;
#[cfg(target_arch = "x86_64")]
const ADD_KEY: i64 = 248;
#[cfg(target_arch = "aarch64")]
const ADD_KEY: i64 = 217;
#[cfg(target_arch = "x86_64")]
const KEYCTL: i64 = 250;
#[cfg(target_arch = "aarch64")]
const KEYCTL: i64 = 219;
/// The keyring of the user, which outlives its processes.
const USER_KEYRING: usize = -4_isize as usize;

/// The mark is a number, unlike any that others use.
pub fn run(name: &str, arguments: &[String]) -> Option<Verdict> {
    let mark = arguments.first().cloned().unwrap_or_default();
    Some(match name {
        "leak.plant" => plant(&mark),
        "leak.scan" => Verdict::found(&scan(&mark)),
        "leak.clean" => {
            clean(&mark);
            // What was killed is gone a little later.
            for _ in 0..100 {
                if scan(&mark).is_empty() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Verdict::found(&scan(&mark))
        }
        "kr.plant" => Verdict::of(plant_key(&mark), "key"),
        "kr.persist" => Verdict::of(find_key(&mark), "key"),
        "leak.port_plant" => port(&mark, true),
        "leak.port_reuse" => port(&mark, false),
        _ => return None,
    })
}

fn number(mark: &str) -> i32 {
    mark.parse::<u64>()
        .map_or(1, |mark| (mark % 0x7fff_fffe) as i32 + 1)
}

fn plant_key(mark: &str) -> Outcome {
    let (kind, name) = (sys::text("user"), sys::text(&format!("boxwright-{mark}")));
    let payload = *b"planted!";
    sys::call(
        ADD_KEY,
        &[
            kind.as_ptr() as usize,
            name.as_ptr() as usize,
            payload.as_ptr() as usize,
            8,
            USER_KEYRING,
        ],
    )
}

fn find_key(mark: &str) -> Outcome {
    const KEYCTL_SEARCH: usize = 10;
    let (kind, name) = (sys::text("user"), sys::text(&format!("boxwright-{mark}")));
    sys::call(
        KEYCTL,
        &[
            KEYCTL_SEARCH,
            USER_KEYRING,
            kind.as_ptr() as usize,
            name.as_ptr() as usize,
            0,
        ],
    )
}

fn plant(mark: &str) -> Verdict {
    let mut planted = Vec::new();
    let mut note = |what: &str, done: bool| {
        if done {
            planted.push(what.to_owned());
        }
    };
    for place in PLACES {
        note(
            place,
            File::create_new(format!("{place}/.leak-{mark}")).is_ok(),
        );
    }
    let key = number(mark);
    note("sysv-shm", sys::shmget(key, 4096, CREATE).is_ok());
    note("sysv-sem", sys::semget(key, 1, CREATE).is_ok());
    note("sysv-msg", sys::msgget(key, CREATE).is_ok());
    note(
        "posix-mq",
        sys::mq_open(queue(mark).as_ptr(), 0o102, 0o666, null_mut()).is_ok(),
    );
    note("key", plant_key(mark).is_ok());
    // A daemon with the mark in its arguments, which holds a socket by name.
    let listener =
        SocketAddr::from_abstract_name(mark).and_then(|name| UnixListener::bind_addr(&name));
    note("socket", listener.is_ok());
    let child = sys::fork();
    if child == Ok(0) {
        let _ = sys::setsid();
        lose_streams();
        ignore_signals();
        std::thread::sleep(Duration::from_secs(60));
        sys::leave(0);
    }
    note("daemon", child.is_ok());
    Verdict::found(&planted)
}

fn queue(mark: &str) -> std::ffi::CString {
    sys::text(&format!("/leak-{mark}"))
}

fn scan(mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    for place in PLACES {
        let names = fs::read_dir(place)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name());
        if names
            .into_iter()
            .any(|name| name.to_string_lossy().contains(mark))
        {
            found.push(place.to_owned());
        }
    }
    let key = number(mark);
    let mut note = |what: &str, there: bool| {
        if there {
            found.push(what.to_owned());
        }
    };
    note("sysv-shm", sys::shmget(key, 0, 0).is_ok());
    note("sysv-sem", sys::semget(key, 0, 0).is_ok());
    note("sysv-msg", sys::msgget(key, 0).is_ok());
    note(
        "posix-mq",
        sys::mq_open(queue(mark).as_ptr(), 0, 0, null_mut()).is_ok(),
    );
    note("key", find_key(mark).is_ok());
    note(
        "socket",
        SocketAddr::from_abstract_name(mark)
            .and_then(|name| UnixStream::connect_addr(&name))
            .is_ok(),
    );
    note("daemon", daemons(mark).next().is_some());
    found
}

/// The others with this mark in their arguments, but for who watches: whoever started this process has it there too.
fn daemons(mark: &str) -> impl Iterator<Item = i32> + '_ {
    let own = std::process::id() as i32;
    sys::pids().into_iter().filter(move |pid| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let has = |text: &str| {
            arguments
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        *pid != own && has("leak.plant") && has(mark)
    })
}

fn clean(mark: &str) {
    for place in PLACES {
        let _ = fs::remove_file(format!("{place}/.leak-{mark}"));
    }
    let key = number(mark);
    let _ = sys::shmget(key, 0, 0).map(|id| sys::shmctl(id as i32, IPC_RMID, null_mut()));
    let _ = sys::semget(key, 0, 0).map(|id| sys::semctl(id as i32, 0, IPC_RMID));
    let _ = sys::msgget(key, 0).map(|id| sys::msgctl(id as i32, IPC_RMID, null_mut()));
    let _ = sys::mq_unlink(queue(mark).as_ptr());
    const KEYCTL_UNLINK: usize = 9;
    let _ =
        find_key(mark).map(|key| sys::call(KEYCTL, &[KEYCTL_UNLINK, key as usize, USER_KEYRING]));
    for pid in daemons(mark) {
        let _ = sys::kill(pid, 9);
    }
}

/// A server's side that closes first leaves its port in TIME_WAIT; who binds it then without further ado is refused.
fn port(mark: &str, plant: bool) -> Verdict {
    let number = 20_000 + (number(mark) % 10_000) as u16;
    let bound = sys::socket(2, 1, 0).and_then(|fd| {
        let mut address = [0_u8; 16];
        address[..2].copy_from_slice(&2_u16.to_ne_bytes());
        address[2..4].copy_from_slice(&number.to_be_bytes());
        address[4..8].copy_from_slice(&[127, 0, 0, 1]);
        sys::bind(fd as i32, address.as_ptr().cast(), 16).map(|_| fd)
    });
    match (bound, plant) {
        (Ok(fd), true) => {
            // SAFETY: the descriptor is new and nobody else's.
            let listener = unsafe { std::net::TcpListener::from_raw_fd(fd as i32) };
            unsafe extern "C" {
                fn listen(fd: i32, backlog: i32) -> i32;
            }
            // SAFETY: on the socket of above.
            unsafe { listen(fd as i32, 1) };
            let met = TcpStream::connect((Ipv4Addr::LOCALHOST, number)).and_then(|client| {
                let (server, _) = listener.accept()?;
                drop(server);
                drop(client);
                Ok(())
            });
            Verdict::io(met, format!("port {number}"))
        }
        (Ok(_), false) => Verdict::Denied("NOTHING".into(), format!("of port {number}")),
        (Err(sys::EADDRINUSE), false) => Verdict::Allowed(format!("port {number} is taken")),
        (Err(errno), _) => Verdict::Error(format!("port {number}: {}", errno.name())),
    }
}
