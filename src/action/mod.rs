//! The life of one action, from its lease to its result: resolve, stage, run, collect, publish.
//! An action goes through this line once, forwards; nothing calls back up.

mod command;
pub mod ending;
mod isolation;
mod live;
mod paths;
mod platform;
mod publish;
mod resolve;
mod runner;
mod settings;
mod usage;

use prost_types::Any;

pub use ending::Ending;
pub use live::LiveOutput;
pub use platform::{Strategies, Strategy};
pub use runner::{Progress, Runner, RunnerParts};
pub use settings::Settings;

use crate::reapi::proto::re;

/// An action that has ended, one way or another.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended: exactly one class.
    pub ending: Ending,
    /// The result as far as there is one: always for a command that ran to an end of its own, the
    /// partial one after a timeout, never for failures of ours.
    pub result: Option<re::ActionResult>,
    /// What a human should read beside the result; empty if there is nothing to say.
    pub message: String,
    /// Whether the result may be cached: a clean exit with code 0 of an action that allows it.
    pub cacheable: bool,
    /// Further statuses for clients that read them.
    pub details: Vec<Any>,
}

impl Finished {
    /// An action that ended without a result.
    pub fn without_result(ending: Ending) -> Self {
        Finished {
            ending,
            result: None,
            message: String::new(),
            cacheable: false,
            details: Vec::new(),
        }
    }
}
