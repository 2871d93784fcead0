//! The result of an action that failed in spite of its command: what there is of it, for people to read.

use crate::reapi::proto::re;

/// What a shell reports for a command that SIGKILL ended.
pub(super) const KILLED: i32 = 128 + 9;

/// A result that must not be read as success, by whoever looks at the exit code alone.
pub(super) fn partial(mut result: re::ActionResult) -> re::ActionResult {
    if result.exit_code == 0 {
        result.exit_code = KILLED;
    }
    result
}
