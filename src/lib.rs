//! boxwright: a sandboxed remote worker daemon.
//!
//! An action goes through the house once, forwards: a [`scheduler`] leases it to the [`worker`],
//! which gives it a slot and runs it ([`action`]): resolve, stage, run, collect, publish. `resolve`
//! reads and validates messages ([`tree`], [`cas`]), `stage` makes the input root visible
//! ([`inputs`]), `run` executes the command ([`sandbox`]), `collect` turns what it left behind into
//! digests ([`outputs`]), `publish` uploads what the remote CAS lacks and builds the result.
//!
//! Who may use whom: `cli -> worker -> {scheduler, action} -> {inputs, sandbox, outputs} ->
//! {cas, tree} -> reapi`. [`config`] and [`observe`] may be used by all. `sandbox` knows nothing of
//! REAPI, `inputs` nothing of sandboxes, `scheduler` nothing of either. Traits stand at four doors
//! only: [`scheduler::Scheduler`], [`inputs::InputRoots`], [`sandbox::Sandbox`] and
//! [`cas::BlobSource`].

/// The life of one action: failure taxonomy, platform properties, the five phases.
pub mod action;
/// Opening what lies below a directory without ever leaving it.
mod beneath;
/// Blobs: the local store on disk, the client of a remote CAS, and the cache that joins them.
pub mod cas;
/// The command line, one file per subcommand.
pub mod cli;
/// What an operator may set: TOML and flags, validated, with the origin of every value.
pub mod config;
/// Input roots made visible to a command.
pub mod inputs;
/// The kernel's table of mounts.
mod mountinfo;
/// Logs, and the one line that every action gets.
pub mod observe;
/// Collecting what a command left behind.
pub mod outputs;
/// The wire: generated types, digests, resource names, statuses.
pub mod reapi;
/// One command, isolated.
pub mod sandbox;
/// Where leases come from: one folder per protocol.
pub mod scheduler;
/// The REAPI services over a local store, for standalone use.
pub mod serve;
/// Merkle trees: decode and validate, fetch, look up, build.
pub mod tree;
/// Slots, dispatch, drain.
pub mod worker;

#[cfg(test)]
#[path = "../tests/common/skipped.rs"]
mod skipped;
