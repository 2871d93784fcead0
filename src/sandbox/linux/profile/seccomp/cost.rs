//! What it costs a process to install a filter: a measurement, not run by itself.
#![allow(unsafe_code)]

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::machine::Raw;

/// Nanoseconds that a process takes to install this program.
fn install(program: &[Raw]) -> u64 {
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const libc::sock_filter,
    }
    let instructions: Vec<libc::sock_filter> = program
        .iter()
        .map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k })
        .collect();
    let mut command = Command::new("/bin/true");
    command.stdout(Stdio::piped());
    let act = move || {
        let program = Program {
            length: instructions.len() as u16,
            instructions: instructions.as_ptr(),
        };
        let begin = Instant::now();
        // SAFETY: system calls only; the program lives as long as this closure.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::syscall(
                    libc::SYS_seccomp,
                    libc::SECCOMP_SET_MODE_FILTER,
                    0,
                    &program,
                ) != 0
        };
        let took = (begin.elapsed().as_nanos() as u64).to_ne_bytes();
        // SAFETY: eight bytes of this frame, to standard output.
        let written = unsafe { libc::write(1, took.as_ptr().cast(), 8) };
        if failed || written != 8 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure neither allocates nor locks.
    unsafe { command.pre_exec(act) };
    let mut child = command.spawn().expect("the filter is installed");
    let mut took = [0; 8];
    child.stdout.take().unwrap().read_exact(&mut took).unwrap();
    assert!(child.wait().unwrap().success());
    u64::from_ne_bytes(took)
}

#[test]
#[ignore = "a measurement: prints what installing the same rules costs as a search tree and as seccompiler's list"]
fn the_cost_of_installing_a_tree_and_a_list() {
    let machine = super::Arch::this().unwrap();
    for (name, policy) in super::tests::built_in() {
        let whole = super::tests::compiled(&policy, machine);
        let (policy, list) = super::against::both(&policy, machine);
        let programs = [super::tests::compiled(&policy, machine), list, whole];
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..101 {
            for (program, times) in programs.iter().zip(&mut times) {
                times.push(install(program));
            }
        }
        let [tree, list, whole] = times.map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2] as f64 / 1e3
        });
        let lengths: Vec<usize> = programs.iter().map(Vec::len).collect();
        println!(
            "{name}: tree {tree:.0} us, list {list:.0} us, ratio {:.2}; whole profile {whole:.0} us; lengths {lengths:?}",
            tree / list
        );
    }
}
