//! Executing a command's program, in a child that shares the launcher's memory: see [`super::raw`]. The candidates are tried
//! with the command's own rights, from its own directory: what the kernel says about them is the truth, which a look-up
//! beforehand could only guess. The rules are those of `execvp`.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use super::raw::syscall;
use super::wire::Step;

/// Where the child stopped.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct Fault {
    pub(in crate::sandbox) step: Step,
    pub(in crate::sandbox) errno: c_int,
    /// Which of the candidates it is about.
    pub(in crate::sandbox) candidate: usize,
}

impl Fault {
    /// One that is about no candidate.
    pub(in crate::sandbox) fn at(step: Step, errno: c_int) -> Fault {
        Fault {
            step,
            errno,
            candidate: 0,
        }
    }
}

/// The program, its arguments and its environment, in the form that the kernel takes.
#[derive(Debug)]
pub(in crate::sandbox) struct Program<'a> {
    /// The paths to execute, tried in turn.
    pub(in crate::sandbox) candidates: &'a [&'a CStr],
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
}

impl<'a> Program<'a> {
    /// Prepared by the launcher, as the child may not allocate.
    pub(in crate::sandbox) fn new(
        candidates: &'a [&'a CStr],
        argv: &[&'a CStr],
        env: &[&'a CStr],
    ) -> Self {
        let pointers = |strings: &[&CStr]| {
            let strings = strings.iter().map(|s| s.as_ptr());
            strings.chain([ptr::null()]).collect()
        };
        Program {
            candidates,
            argv: pointers(argv),
            env: pointers(env),
        }
    }

    /// Returns only if no candidate can be executed.
    pub(in crate::sandbox) fn execute(&self) -> Fault {
        let mut worst = Fault::at(Step::NotFound, libc::ENOENT);
        for (candidate, path) in self.candidates.iter().enumerate() {
            let fault = |step, errno| Fault {
                step,
                errno,
                candidate,
            };
            match self.try_execute(path) {
                errno @ (libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG) => {
                    if worst.step == Step::NotFound && exists(path) {
                        worst = fault(Step::Interpreter, errno);
                    }
                }
                libc::EACCES if matches!(worst.step, Step::NotFound | Step::Interpreter) => {
                    let step = if is_directory(path) {
                        Step::Directory
                    } else {
                        Step::Exec
                    };
                    worst = fault(step, libc::EACCES);
                }
                libc::EACCES => {}
                errno => return fault(Step::Exec, errno),
            }
        }
        worst
    }

    fn try_execute(&self, path: &CStr) -> c_int {
        let mut errno = 0;
        // A file whose writer has just closed it may still be open in a process that is about to execute
        // something: that is over in milliseconds.
        for _ in 0..40 {
            // SAFETY: path and the pointer lists are NUL- and null-terminated and live on.
            let result = unsafe {
                let arguments = [
                    path.as_ptr() as usize,
                    self.argv.as_ptr() as usize,
                    self.env.as_ptr() as usize,
                    0,
                    0,
                    0,
                ];
                syscall(libc::SYS_execve, arguments)
            };
            errno = -result as c_int;
            if errno != libc::ETXTBSY {
                break;
            }
            let pause = libc::timespec {
                tv_sec: 0,
                tv_nsec: 5_000_000,
            };
            // SAFETY: the time lives on this stack; a null for the rest is allowed.
            unsafe {
                let pause = ptr::from_ref(&pause) as usize;
                syscall(libc::SYS_nanosleep, [pause, 0, 0, 0, 0, 0])
            };
        }
        errno
    }
}

fn exists(path: &CStr) -> bool {
    opens(path, libc::O_PATH)
}

fn is_directory(path: &CStr) -> bool {
    opens(path, libc::O_PATH | libc::O_DIRECTORY)
}

fn opens(path: &CStr, flags: c_int) -> bool {
    let flags = (flags | libc::O_CLOEXEC) as usize;
    // SAFETY: a NUL-terminated string; the descriptor is this child's own and closed at once.
    unsafe {
        let at = libc::AT_FDCWD as isize as usize;
        let fd = syscall(
            libc::SYS_openat,
            [at, path.as_ptr() as usize, flags, 0, 0, 0],
        );
        if fd >= 0 {
            syscall(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]);
        }
        fd >= 0
    }
}
