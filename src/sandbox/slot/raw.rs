//! System calls without the C library, for children that share the launcher's memory (`CLONE_VM`): such a child shares its
//! thread-local storage too, where the C library keeps `errno`, and the launcher may be using that at the same time. Nothing
//! here touches memory other than what the arguments point to.

#![allow(unsafe_code)]

use std::arch::asm;
use std::ffi::{c_int, c_long};

/// A system call; the result is negative for an error, as the kernel has it.
///
/// # Safety
/// As for the call itself.
pub(in crate::sandbox) unsafe fn syscall(number: c_long, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: the caller vouches for the call; the registers are those that the kernel's convention names.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack)
        );
    }
    result
}

/// What `clone3` takes, as far as it is used here (`CLONE_ARGS_SIZE_VER0`, 64 bytes).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::sandbox) struct CloneArgs {
    pub(in crate::sandbox) flags: u64,
    /// Where the kernel writes the descriptor of `CLONE_PIDFD`.
    pub(in crate::sandbox) pidfd: u64,
    pub(in crate::sandbox) child_tid: u64,
    pub(in crate::sandbox) parent_tid: u64,
    pub(in crate::sandbox) exit_signal: u64,
    /// The lowest byte of the child's stack; 0 for a copy of the parent's.
    pub(in crate::sandbox) stack: u64,
    pub(in crate::sandbox) stack_size: u64,
    pub(in crate::sandbox) tls: u64,
}

/// Makes a child that runs `main(context)` on the stack that `arguments` name. `main` must not return.
///
/// # Safety
/// With `CLONE_VM`, the stack must be the child's alone and both it and what `context` points to must outlive the child's use of
/// this memory; `main` must not allocate, lock, panic or use the C library.
pub(in crate::sandbox) unsafe fn clone_onto(
    arguments: &CloneArgs,
    main: extern "C" fn(usize) -> !,
    context: usize,
) -> Result<c_int, c_int> {
    let result: isize;
    // SAFETY: the parent goes on behind the call with all its registers; the child, whose stack pointer is at the aligned top of
    // its own stack, calls `main`, which does not return.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") std::ptr::from_ref(arguments), in("rsi") size_of::<CloneArgs>(),
            in("r12") context, in("r13") main,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x21",
            "blr x20",
            "brk 1",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") std::ptr::from_ref(arguments) => result,
            in("x1") size_of::<CloneArgs>(),
            in("x20") main, in("x21") context,
        );
    }
    if result < 0 {
        Err(-result as c_int)
    } else {
        Ok(result as c_int)
    }
}

/// Room for a child that shares the launcher's memory. One child at a time.
#[repr(C, align(16))]
pub(in crate::sandbox) struct Stack([u8; Stack::SIZE]);

impl Stack {
    /// Bytes.
    pub(in crate::sandbox) const SIZE: usize = 64 * 1024;

    pub(in crate::sandbox) fn new() -> Box<Self> {
        Box::new(Stack([0; Stack::SIZE]))
    }

    /// The lowest byte, for [`CloneArgs::stack`].
    pub(in crate::sandbox) fn address(&mut self) -> u64 {
        self.0.as_mut_ptr() as u64
    }
}

/// Ends the process without any of the launcher's destructors.
pub(in crate::sandbox) fn exit(code: c_int) -> ! {
    loop {
        // SAFETY: never returns; what the process shares with others is left as it is.
        unsafe { syscall(libc::SYS_exit_group, [code as usize, 0, 0, 0, 0, 0]) };
    }
}
