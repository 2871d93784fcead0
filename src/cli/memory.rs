//! Holds the resident memory down: glibc keeps up to eight heaps per processor, each of which keeps
//! what its threads freed. Two are enough for a process whose threads mostly wait.
//!
//! These two may keep some megabytes: the buffer of a batch is 2 MiB, and giving it back to the kernel after each batch, to be filled
//! with zeros page by page for the next, was a twentieth of what small outputs cost.
#![allow(unsafe_code)]

/// Limits the allocator's heaps; to be called before any thread exists.
#[cfg(target_env = "gnu")]
pub(super) fn frugal() {
    // SAFETY: mallopt only sets a parameter of the allocator, and no other thread exists yet that
    // could be allocating. It fails by returning 0, and nothing depends on its success.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 8 << 20);
    }
}

/// Other allocators have no such habit.
#[cfg(not(target_env = "gnu"))]
pub(super) fn frugal() {}
