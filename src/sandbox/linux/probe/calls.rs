//! System calls that the worker cannot do without.

use super::sys;

/// A system call, and the kernel that brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// The first release that has it.
    pub since: &'static str,
    number: libc::c_long,
}

/// Those that the worker uses.
pub const CALLS: [Call; 7] = [
    call("pidfd_open", "5.3", libc::SYS_pidfd_open),
    call("clone3", "5.3", libc::SYS_clone3),
    call("openat2", "5.6", libc::SYS_openat2),
    call("open_tree", "5.2", libc::SYS_open_tree),
    call("move_mount", "5.2", libc::SYS_move_mount),
    call("close_range", "5.9", libc::SYS_close_range),
    call("mount_setattr", "5.12", libc::SYS_mount_setattr),
];

const fn call(name: &'static str, since: &'static str, number: libc::c_long) -> Call {
    Call {
        name,
        since,
        number,
    }
}

/// Those that the kernel, or a filter that stands before it, does not know.
pub fn missing_calls() -> Vec<Call> {
    let known = |call: &Call| match call.number {
        libc::SYS_clone3 => sys::knows_clone3(),
        number => sys::is_known(number),
    };
    CALLS.into_iter().filter(|call| !known(call)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_does_no_harm() {
        let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
        missing_calls();
        assert_eq!(std::fs::read_dir("/proc/self/fd").unwrap().count(), before);
        assert!(!sys::is_known(100_000));
    }
}
