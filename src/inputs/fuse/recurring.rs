//! Which subtrees of an action's tree are worth being shown as what an earlier action had: for who keeps them as real files.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::pinned::{Pinned, Pinning};
use super::subtree::Subtrees;
use super::{plan, upper};
use crate::cas::Cas;
use crate::inputs::StageRequest;
use crate::reapi::Digest;

/// The subtrees of all actions so far.
pub(in crate::inputs) struct Recurring {
    subtrees: Subtrees,
    pinning: Pinning,
    actions: AtomicU64,
}

/// How a tree is shown.
#[derive(Default)]
pub(in crate::inputs) struct Plan {
    /// Directories that the action may not change, and is to have for itself.
    pub(in crate::inputs) closed: Vec<String>,
    pub(in crate::inputs) parts: Vec<Part>,
}

/// A subtree that recurs, at a path of the tree.
pub(in crate::inputs) struct Part {
    pub(in crate::inputs) path: String,
    pub(in crate::inputs) digest: Digest,
    /// Paths below it and itself.
    pub(in crate::inputs) nodes: u64,
    /// The files of the tree stay as long as this lives.
    _pinned: Arc<Pinned>,
}

impl Recurring {
    pub(in crate::inputs) fn new(cas: Cas) -> Self {
        let idle_bytes = cas.local().high_water() / 4;
        Recurring {
            subtrees: Subtrees::new(),
            pinning: Pinning::new(cas, idle_bytes),
            actions: AtomicU64::new(0),
        }
    }

    /// The parts of at least `least` nodes that hold no output and no directory that is made for the action, and what may be changed
    /// no more than those.
    pub(in crate::inputs) fn plan(&self, request: &StageRequest, least: u64) -> Plan {
        let action = self.actions.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(root) = self.subtrees.of(&request.tree, action) else {
            return Plan::default();
        };
        let pinned = self.pinning.pin(&root);
        // What is wrong with one is for the caller to say.
        let Ok(ways) = upper::ways(&root, &request.directories) else {
            return Plan::default();
        };
        let plan::Plan { closed, parts } =
            plan::plan(&root, &ways, &request.outputs, action, least);
        let parts = parts.into_iter().map(|part| Part {
            path: part.path,
            digest: part.subtree.digest,
            nodes: part.subtree.nodes,
            _pinned: pinned.clone(),
        });
        Plan {
            closed,
            parts: parts.collect(),
        }
    }
}
