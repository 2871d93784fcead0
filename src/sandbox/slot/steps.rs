//! The system calls of a child on its way to its program, each with the step that it belongs to: see [`super::raw`]. Nothing here
//! allocates, locks, panics or calls the C library.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_long};

use super::exec::Fault;
use super::raw;
use super::wire::Step;

/// For a path that is relative to the working directory.
pub(in crate::sandbox) const AT_CWD: usize = libc::AT_FDCWD as isize as usize;

/// A system call with up to six arguments; its error is the fault of this step.
///
/// # Safety
/// As for the call.
pub(in crate::sandbox) unsafe fn call<const N: usize>(
    step: Step,
    number: c_long,
    arguments: [usize; N],
) -> Result<usize, Fault> {
    let mut six = [0; 6];
    for (to, from) in six.iter_mut().zip(arguments) {
        *to = from;
    }
    // SAFETY: the caller's.
    let result = unsafe { raw::syscall(number, six) };
    if result < 0 {
        return Err(Fault::at(step, -result as c_int));
    }
    Ok(result as usize)
}

/// Sets both limits; one above what we have is lowered to that, as it is a bound and not a promise.
///
/// # Safety
/// `resource` must be one of the kernel's.
pub(in crate::sandbox) unsafe fn limit(resource: usize, value: Option<u64>) -> Result<(), Fault> {
    let Some(value) = value else { return Ok(()) };
    let mut limit = [value, value];
    let at = (&raw mut limit) as usize;
    // SAFETY: the structures live on this stack; the child is a process of its own, so that only its limits change.
    unsafe {
        if call(Step::Limit, libc::SYS_prlimit64, [0, resource, at, 0]).is_ok() {
            return Ok(());
        }
        let mut own = [0u64; 2];
        let own_at = (&raw mut own) as usize;
        call(Step::Limit, libc::SYS_prlimit64, [0, resource, 0, own_at])?;
        limit = [value.min(own[1]); 2];
        call(
            Step::Limit,
            libc::SYS_prlimit64,
            [0, resource, (&raw const limit) as usize, 0],
        )?;
    }
    Ok(())
}

/// Becoming another user has cleared them, but not for one that is the namespace's 0 or stays the same, nor if something above
/// us had set securebits that keep them.
pub(in crate::sandbox) fn drop_capabilities() -> Result<(), Fault> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let none = [0u32; 6];
    let (header, none) = (header.as_ptr() as usize, none.as_ptr() as usize);
    // SAFETY: version 3 reads a header of two words and two sets of three words.
    unsafe { call(Step::User, libc::SYS_capset, [header, none]) }.map(drop)
}
