//! The system calls of the probes that no safe wrapper has.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The version of the kernel's Landlock.
pub fn landlock_abi() -> Option<u32> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call reads no memory and only returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    u32::try_from(version).ok().filter(|&version| version > 0)
}

/// Whether the kernel knows a system call, which is made with arguments that it cannot accept.
pub(super) fn is_known(number: libc::c_long) -> bool {
    // SAFETY: descriptor -1 is never open and the pointers are null with length 0, so that the kernel can only refuse.
    let done = unsafe { libc::syscall(number, -1_isize, 0_usize, 0_usize, 0_usize, 0_usize) };
    done >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// Whether the kernel knows `clone3`: a structure of size 0 is refused before anything is cloned.
pub(super) fn knows_clone3() -> bool {
    // SAFETY: size 0 is smaller than the smallest structure, which the kernel refuses with EINVAL.
    let done =
        unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<libc::c_void>(), 0_usize) };
    done >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// Brings the loopback interface of this network namespace up.
pub(super) fn loopback_up() -> io::Result<()> {
    // SAFETY: no memory is passed; the result is checked before it becomes a descriptor of ours.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is a valid `ifreq` for as long as the call runs.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Installs a filter of system calls that lets everything pass.
pub(super) fn install_a_filter() -> io::Result<()> {
    const ALLOW: [libc::sock_filter; 1] = [libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    }];
    let mut program = ALLOW;
    let filter = libc::sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the call takes plain numbers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `filter` and the program that it points to live until the call returns; the kernel copies both.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0_usize,
            &filter,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
