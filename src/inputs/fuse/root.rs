//! An action's input root: an overlay over the view of its tree, with shared parts mounted in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::layers::Layer;
use super::mounts;
use super::subtree::Subtree;
use super::views::{self, Kept};
use super::{Shared, plan, upper};
use crate::config::Owner;
use crate::inputs::{Beneath, Hold, InputError, StageRequest, StagedRoot, at_once};
use crate::reapi::status::MissingBlob;
use crate::tree::Tree;

/// A root on show; its removal is part of its life, whoever drops it.
pub(super) struct Root {
    path: PathBuf,
    upper: PathBuf,
    tree: Arc<Tree>,
    since: Instant,
    /// How long readers had waited when it began.
    stalls: Duration,
    shared: Arc<Shared>,
    shown: Option<Shown>,
}

/// What must be taken down.
struct Shown {
    shared: Arc<Shared>,
    layer: Layer,
    /// Stay while they are in use.
    views: Vec<Arc<Kept>>,
    _subtree: Arc<Subtree>,
    _hold: Hold,
}

impl Root {
    /// Shows the tree of action number `action`. Blocks.
    pub(super) fn show(
        shared: Arc<Shared>,
        request: &StageRequest,
        subtree: Arc<Subtree>,
        action: u64,
    ) -> Result<Self, InputError> {
        let owner = request.owner.unwrap_or(shared.own);
        let ways = request
            .directories
            .iter()
            .map(|path| upper::way(&subtree, path));
        let ways = ways.collect::<Result<Vec<_>, _>>()?;
        // A tree that came before is shown as it was then, with all that the kernel knows of it.
        let layer = shared
            .layers
            .take(&subtree, owner, subtree.since == action)?;
        let mut root = Root {
            path: layer.root.clone(),
            upper: layer.upper(),
            tree: request.tree.clone(),
            since: Instant::now(),
            stalls: shared.contents.stalls.total(),
            shown: Some(Shown {
                shared: shared.clone(),
                layer,
                views: Vec::new(),
                _subtree: subtree.clone(),
                _hold: request.hold.clone(),
            }),
            shared,
        };
        let done = root.mount(request, &subtree, &ways, owner, action);
        match done {
            Ok(()) => Ok(root),
            Err(error) => {
                // The first error is the one to report; what cannot be removed goes with the next start.
                let _ = root.take_down();
                Err(error)
            }
        }
    }

    fn mount(
        &mut self,
        request: &StageRequest,
        subtree: &Arc<Subtree>,
        ways: &[upper::Way],
        owner: Owner,
        action: u64,
    ) -> Result<(), InputError> {
        let Some(shown) = &mut self.shown else {
            return Ok(());
        };
        let parts = match request.writable {
            true => Vec::new(),
            false => {
                let kept = ways.iter().map(|way| &*way.path);
                let kept = kept.chain(request.outputs.iter().map(|path| &**path));
                plan::parts(subtree, kept, action)
            }
        };
        let views = &self.shared.views;
        if let Some(view) = shown.layer.view() {
            upper::prepare(&self.upper, &self.path, subtree, ways, owner)?;
            let at_top = parts.iter().filter(|part| !part.path.contains('/'));
            if at_top.count() > 1 {
                views::introduce(&view, subtree)?;
            }
        } else {
            upper::prepare(&self.upper, &self.upper, subtree, ways, owner)?;
            let whole = views.shared(subtree, owner);
            shown.views.push(whole.clone());
            shown.layer.mount(&whole.path)?;
        }
        for part in parts {
            let view = views.shared(&part.subtree, owner);
            mounts::attach(views.part(&view)?, &self.path.join(&part.path))?;
            shown.views.push(view);
        }
        Ok(())
    }

    pub(super) fn take_down(mut self) -> Result<(), InputError> {
        match self.shown.take() {
            Some(shown) => shown.remove(),
            None => Ok(()),
        }
    }
}

impl Shown {
    fn remove(self) -> Result<(), InputError> {
        let given_back = self.shared.layers.give_back(self.layer);
        drop(self.views);
        self.shared.views.shrink();
        given_back
    }
}

#[async_trait]
impl StagedRoot for Root {
    fn path(&self) -> &Path {
        &self.path
    }

    fn beneath(&self) -> Option<Beneath> {
        Some(Beneath {
            upper: self.upper.clone(),
            tree: self.tree.clone(),
        })
    }

    fn trouble(&self) -> Option<InputError> {
        let failed = self.shared.contents.failed_since(self.since);
        if failed.is_empty() {
            return None;
        }
        // Another action may have met them.
        let digests: Vec<_> = failed.iter().map(|failed| failed.digest).collect();
        let paths = self.tree.paths_of(&digests);
        let mut missing = Vec::new();
        for failed in failed {
            let Some(path) = paths.get(&failed.digest) else {
                continue;
            };
            let what = format!("input file {}", crate::tree::quote::path(path));
            match failed.why {
                None => missing.push(MissingBlob {
                    digest: failed.digest,
                    what,
                }),
                Some(why) => {
                    return Some(InputError::Unreadable {
                        path: path.clone(),
                        why,
                    });
                }
            }
        }
        missing.sort_by_key(|missing| missing.digest);
        missing.dedup();
        (!missing.is_empty()).then_some(InputError::Missing(missing))
    }

    fn stalled(&self) -> Duration {
        self.shared
            .contents
            .stalls
            .total()
            .saturating_sub(self.stalls)
    }

    async fn remove(self: Box<Self>) -> Result<(), InputError> {
        at_once("remove", move || self.take_down()).await
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let Some(shown) = self.shown.take() else {
            return;
        };
        crate::inputs::in_background(move || shown.remove());
    }
}
