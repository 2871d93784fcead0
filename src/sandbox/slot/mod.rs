//! The daemon's side of a slot, whatever stands between its commands and the host: starting launchers and replacing lost
//! ones, the messages to and from them, one run from its request to its report, the command's output meanwhile.
//!
//! The launchers' own side is each level's: [`super::process`] and [`super::linux`].

pub(super) mod channel;
pub(super) mod exec;
pub(super) mod launchers;
pub(super) mod lookup;
pub(super) mod order;
pub(super) mod orphans;
pub(super) mod processes;
pub(super) mod raw;
pub(super) mod request;
pub(super) mod run;
pub(super) mod seat;
pub(super) mod spill;
pub(super) mod steps;
pub(super) mod streams;
pub(super) mod sys;
pub(super) mod uids;
pub(super) mod wire;

pub use launchers::Launchers;
pub use uids::UidRange;
