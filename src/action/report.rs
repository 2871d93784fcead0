//! The server log that tells what a command did with its inputs.

use std::sync::Arc;

use bytes::Bytes;

use super::Ending;
use super::publish::{self, Stream};
use crate::cas::LocalStore;
use crate::inputs::{StagedRoot, report};
use crate::reapi::{Digest, DigestFunction};
use crate::sandbox::Captured;
use crate::tree::Tree;

/// Its name among the logs of an action.
pub const NAME: &str = "input-report";

/// Writes it, after the command's end, as a blob of the store. `strategy` is how its inputs were shown.
pub(super) async fn keep(
    store: &Arc<LocalStore>,
    function: DigestFunction,
    action: Digest,
    tree: &Arc<Tree>,
    staged: &dyn StagedRoot,
    strategy: &'static str,
) -> Result<Stream, Ending> {
    let used = staged.used();
    let upper = staged.beneath().map(|beneath| beneath.upper);
    let (store, tree) = (store.clone(), tree.clone());
    let work = move || {
        let text = match (used, upper) {
            (Some(mut used), Some(upper)) => {
                used.leave_out_made(&upper)
                    .map_err(|e| Ending::Infrastructure(e.to_string()))?;
                report::text(action, &tree, &used)
            }
            _ => report::none(action, strategy),
        };
        let text = Captured::Memory(Bytes::from(text));
        // A log is always a blob, however small.
        publish::keep_stream(&store, function, text, "", 0)
            .map_err(|e| Ending::Infrastructure(e.to_string()))
    };
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Ending::Infrastructure(format!("reporting inputs: {e}"))))
}
