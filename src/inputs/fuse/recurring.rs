//! Which subtrees of an action's tree are worth being shown as what an earlier action had: for who keeps them as real files.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::pinned::{Pinned, Pinning};
use super::subtree::{Subtree, Subtrees};
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
    subtree: Arc<Subtree>,
    /// The files of the tree stay as long as this lives.
    _pinned: Arc<Pinned>,
}

impl Part {
    pub(in crate::inputs) fn digest(&self) -> Digest {
        self.subtree.digest
    }

    /// Paths below it and itself.
    pub(in crate::inputs) fn nodes(&self) -> u64 {
        self.subtree.nodes
    }

    /// The contents of all files below it.
    pub(in crate::inputs) fn contents(&self) -> HashSet<Digest> {
        self.subtree.contents()
    }
}

impl Recurring {
    pub(in crate::inputs) fn new(cas: Cas) -> Self {
        Recurring {
            subtrees: Subtrees::new(),
            pinning: Pinning::new(cas),
            actions: AtomicU64::new(0),
        }
    }

    /// Whether the files of this directory are kept from eviction, be it for an action that runs or for the next.
    pub(in crate::inputs) fn is_pinned(&self, digest: Digest) -> bool {
        self.pinning.is_pinned(digest)
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
            subtree: part.subtree,
            _pinned: pinned.clone(),
        });
        Plan {
            closed,
            parts: parts.collect(),
        }
    }
}
