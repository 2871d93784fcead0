//! System-call filters: a [`Policy`] is what profiles say, [`compile`] turns it into the program that the kernel runs.
//!
//! The program is a binary search over call numbers, because the kernel runs it once for every number when it is installed:
//! a filter costs each action less the shorter its paths are (docs/RATIONALE.md).

#[cfg(test)]
mod against;
mod bpf;
pub mod constants;
#[cfg(test)]
mod cost;
#[cfg(test)]
mod machine;
pub mod policy;
pub mod syscalls;
#[cfg(test)]
mod tests;
mod tree;

pub use bpf::Instruction;
pub use policy::{Action, Check, Policy, Rule, Test, Width};
pub use syscalls::Arch;
pub use tree::{CompileError, MAX_INSTRUCTIONS, compile};

/// The program as the kernel takes it: an array of `struct sock_filter`, 8 bytes each.
pub fn bytes(program: &[Instruction]) -> Vec<u8> {
    program.iter().flat_map(Instruction::bytes).collect()
}
