//! The calls of the full level that no crate offers in a safe form.

#![allow(unsafe_code)]

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::sandbox::slot::raw::CloneArgs;

/// Makes every mount of a tree private and sets `MOUNT_ATTR_*` on it, in one call.
pub(super) fn seal_mounts(tree: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    mount_setattr(tree, attributes, libc::MS_PRIVATE, libc::AT_RECURSIVE)
}

/// Sets `MOUNT_ATTR_*` on one mount.
pub(super) fn set_mount_attributes(mount: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    mount_setattr(mount, attributes, 0, 0)
}

/// The version of the kernel's Landlock; 0 if it has none, or does not use it.
pub(super) fn landlock_version() -> c_long {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the kernel reads nothing and makes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            VERSION,
        )
    };
    result.max(0)
}

fn mount_setattr(
    tree: BorrowedFd<'_>,
    attributes: u64,
    propagation: u64,
    flags: libc::c_int,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation,
        userns_fd: 0,
    };
    // SAFETY: an empty path means the descriptor itself; the structure is of the length that is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    outcome(result).map(drop)
}

/// The child's side of [`fork_into`] or the parent's.
pub(super) enum Forked {
    /// This is the child.
    Child,
    /// This is the parent, and the child has this process id.
    Parent(i32),
}

/// A copy of this process in new namespaces (`CLONE_NEW*`). Only for a process of one thread.
pub(super) fn fork_into(namespaces: u64) -> io::Result<Forked> {
    let arguments = CloneArgs {
        flags: namespaces,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: as `fork` in a process of one thread, whose memory is copied whole.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<CloneArgs>(),
        )
    };
    match outcome(result)? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid as i32)),
    }
}

/// Becomes this user and group with all three ids, by the system calls themselves: the C library would look for other threads.
pub(super) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: changes the credentials of this process of one thread.
    unsafe {
        outcome(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        outcome(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

/// Sets a resource limit of this process, or what of it we may: it is a bound and not a promise.
pub(super) fn limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    // SAFETY: the structures live on this stack, and a null pointer means that nothing is set or asked for.
    let call = |new: Option<&libc::rlimit64>, old: Option<&mut libc::rlimit64>| unsafe {
        let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
        let old = old.map_or(std::ptr::null_mut(), std::ptr::from_mut);
        outcome(libc::syscall(libc::SYS_prlimit64, 0, resource, new, old))
    };
    let mut own = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let wanted = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    if call(Some(&wanted), None).is_ok() {
        return Ok(());
    }
    call(None, Some(&mut own))?;
    let cut = libc::rlimit64 {
        rlim_cur: soft.min(own.rlim_max),
        rlim_max: hard.min(own.rlim_max),
    };
    call(Some(&cut), None).map(drop)
}

/// Nothing that is executed from now on can gain a capability from its file or from being uid 0.
pub(super) fn close_bounding_set() -> io::Result<()> {
    for capability in 0..=63 {
        // SAFETY: changes the credentials of this process only.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match outcome(result.into()) {
            // Beyond the last one that this kernel has.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 => break,
            result => drop(result?),
        }
    }
    Ok(())
}

/// A descriptor for a process of ours that has not been waited for.
pub(super) fn pidfd_of(raw: i32) -> Option<OwnedFd> {
    // SAFETY: the kernel has just made this descriptor for us, with CLONE_PIDFD.
    (raw >= 0).then(|| unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Brings the loopback interface of this network namespace up.
pub(super) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an ifreq is plain data for which zero is a value; the name is ended by a zero; both requests read and write one.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        let fd = socket.as_fd().as_raw_fd();
        outcome(libc::ioctl(fd, libc::SIOCGIFFLAGS as _, &raw mut request).into())?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16;
        outcome(libc::ioctl(fd, libc::SIOCSIFFLAGS as _, &raw const request).into())?;
    }
    Ok(())
}

/// Waits for one child and says what it used.
pub(super) fn wait_for(pid: i32) -> io::Result<crate::sandbox::slot::wire::WireUsage> {
    loop {
        let mut status = 0;
        // SAFETY: rusage is plain data, for which zero is a value, and the pointers are valid.
        let (result, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            let result = libc::wait4(pid, &raw mut status, libc::__WALL, &raw mut usage);
            (result, usage)
        };
        match outcome(result.into()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(|_| crate::sandbox::slot::sys::from_rusage(&usage)),
        }
    }
}

fn outcome(result: c_long) -> io::Result<c_long> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
