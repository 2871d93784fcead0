//! New namespaces, the host's, and mounts.

use std::fs;
use std::os::fd::AsRawFd;
use std::ptr::null;

use crate::sys::{self, Ended, Errno};
use crate::verdict::Verdict;

const CLONE_NEWNS: usize = 0x0002_0000;
const CLONE_NEWUSER: usize = 0x1000_0000;
const CLONE_NEWNET: usize = 0x4000_0000;
const SIGCHLD: usize = 17;
#[cfg(target_arch = "x86_64")]
const CLONE: i64 = 56;
#[cfg(target_arch = "aarch64")]
const CLONE: i64 = 220;
const CLONE3: i64 = 435;

pub fn run(name: &str, arguments: &[String]) -> Option<Verdict> {
    Some(match name {
        // A user namespace is worth having for what can be made in it.
        "ns.nested" => Verdict::any([
            child("unshare user+net", || {
                sys::unshare((CLONE_NEWUSER | CLONE_NEWNET) as i32)
            }),
            child("unshare user", || sys::unshare(CLONE_NEWUSER as i32)),
            child("clone user", || {
                cloned(sys::call(CLONE, &[CLONE_NEWUSER | SIGCHLD]))
            }),
        ]),
        "ns.mount" => child("unshare mount", || sys::unshare(CLONE_NEWNS as i32)),
        "ns.clone3" => child("clone3 user", || {
            // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls
            let arguments = [CLONE_NEWUSER as u64, 0, 0, 0, SIGCHLD as u64, 0, 0, 0];
            cloned(sys::call(CLONE3, &[arguments.as_ptr() as usize, 64]))
        }),
        "ns.setns" => enter(),
        // `mnt=mnt:[4026531841]`: the worker's own namespaces.
        "ns.shared" => {
            let shared = arguments.iter().filter_map(|argument| {
                let (kind, theirs) = argument.split_once('=')?;
                let own = fs::read_link(format!("/proc/self/ns/{kind}")).ok()?;
                (own.to_str() == Some(theirs)).then(|| kind.to_owned())
            });
            Verdict::found(&shared.collect::<Vec<_>>())
        }
        "mnt.remount" => in_own_mounts("remount /", || {
            const MS_REMOUNT_BIND: u64 = 32 | 4096 | (1 << 21);
            sys::mount(
                null(),
                sys::text("/").as_ptr(),
                null(),
                MS_REMOUNT_BIND,
                null(),
            )
        }),
        "mnt.tmpfs" => in_own_mounts("tmpfs over .", || {
            let (kind, here) = (sys::text("tmpfs"), sys::text("."));
            sys::mount(kind.as_ptr(), here.as_ptr(), kind.as_ptr(), 0, null())
        }),
        "mnt.umount" => in_own_mounts("umount /proc", || {
            sys::umount2(sys::text("/proc").as_ptr(), 2)
        }),
        "mnt.chroot" => child("chroot", || sys::chroot(sys::text(".").as_ptr())),
        _ => return None,
    })
}

fn child(what: &str, attempt: impl FnOnce() -> sys::Outcome) -> Verdict {
    match sys::in_child(attempt) {
        Ok(result) => Verdict::of(result, what),
        Err(Ended::Signalled(31)) => Verdict::Denied("SIGSYS".into(), what.into()),
        Err(ended) => Verdict::Error(format!("{what}: {ended:?}")),
    }
}

/// The clone's child has nothing to do.
fn cloned(result: sys::Outcome) -> sys::Outcome {
    match result? {
        0 => sys::leave(0),
        pid => {
            let _ = sys::wait(pid, 0);
            Ok(pid)
        }
    }
}

/// Where mounts of one's own can be had the host's are spared; the attempt counts all the same.
fn in_own_mounts(what: &str, attempt: impl FnOnce() -> sys::Outcome) -> Verdict {
    child(what, || {
        if sys::unshare(CLONE_NEWNS as i32).is_ok() {
            const MS_REC_PRIVATE: u64 = 0x4000 | (1 << 18);
            sys::mount(
                null(),
                sys::text("/").as_ptr(),
                null(),
                MS_REC_PRIVATE,
                null(),
            )?;
        }
        attempt()
    })
}

/// Into any namespace of any process that is not one's own already.
fn enter() -> Verdict {
    let mut attempts = Vec::new();
    for pid in sys::pids() {
        for kind in ["user", "mnt", "pid", "net"] {
            let path = format!("/proc/{pid}/ns/{kind}");
            attempts.push(match fs::File::open(&path) {
                Ok(file) => child(&path, || sys::setns(file.as_raw_fd(), 0)),
                Err(error) => Verdict::denied(Errno::from(error), &*path),
            });
            if let Some(Verdict::Allowed(_)) = attempts.last() {
                return Verdict::Allowed(path);
            }
        }
    }
    Verdict::any(attempts)
}
