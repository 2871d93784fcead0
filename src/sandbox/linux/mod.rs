//! The full level: every command in namespaces of its own, below a root that shows it what it needs and nothing else, behind a
//! filter of system calls and Landlock, in a cgroup where the host has them.
//!
//! A slot's *launcher* ([`launcher`]) is made ready once for a kind of commands ([`kind`]); a command then costs a PID and an
//! IPC namespace, a /proc, and the mount of its input root ([`action`], [`init`]). A command of another kind, and any command
//! after something suspicious (a timeout, a cancel, want of memory), gets a new launcher: all namespaces fresh.

mod action;
pub mod cgroup;
pub mod disk;
mod identity;
mod init;
mod kind;
mod launcher;
mod namespace;
mod network;
mod outside;
mod places;
pub mod probe;
pub mod profile;
mod read_only;
mod rules;
mod sandbox;
mod set_up;
mod sys;
mod template;
mod trash;

pub(super) use launcher::launcher_main;
pub use namespace::{NamespaceError, OwnNamespace};
pub use sandbox::{FullConfig, FullSandbox};
pub use set_up::BUILD;
