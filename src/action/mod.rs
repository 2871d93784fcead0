//! The life of one action, from its lease to its result: resolve, stage, run, collect, publish.
//! An action goes through this line once, forwards; nothing calls back up.

pub(crate) mod bounds;
mod command;
mod conclude;
pub mod ending;
mod failures;
mod finish;
mod isolation;
mod live;
mod looks;
mod missing;
mod paths;
mod platform;
mod publish;
mod report;
mod resolve;
mod runner;
mod settings;
mod space;
mod usage;

use std::sync::Arc;

use prost_types::Any;

pub use ending::Ending;
pub use live::LiveOutput;
pub use platform::{INPUT_REPORT, Strategies, Strategy};
pub use report::NAME as INPUT_REPORT_LOG;
pub use runner::{Progress, Runner, RunnerParts};
pub use settings::Settings;

use crate::cas::Pins;
use crate::reapi::Digest;
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
    /// What the worker has to tell of it beyond the result.
    pub logs: Vec<ServerLog>,
    /// Keeps the inputs here that another attempt would not find else.
    pub inputs: Option<Arc<Pins>>,
}

/// A text about an action, for people: a `LogFile` in REAPI's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerLog {
    /// What it is.
    pub name: &'static str,
    /// Where it is.
    pub digest: Digest,
}

impl ServerLog {
    /// As REAPI tells it.
    pub fn file(&self) -> re::LogFile {
        re::LogFile {
            digest: Some(self.digest.to_proto()),
            human_readable: true,
        }
    }
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
            logs: Vec::new(),
            inputs: None,
        }
    }
}
