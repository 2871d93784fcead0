//! An action's input root: an overlay over the view of its tree, with shared parts mounted in it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::task::AbortOnDropHandle;

use super::layers::Layer;
use super::mounts;
use super::pinned::Pinned;
use super::record::Recorded;
use super::subtree::Subtree;
use super::views::{self, Kept};
use super::watch::Running;
use super::{Shared, plan, upper};
use crate::cas::{Behalf, Wanted};
use crate::config::Owner;
use crate::inputs::{Beneath, Hold, InputError, StageRequest, StagedRoot, Used, Waited, at_once};
use crate::reapi::status::MissingBlob;
use crate::tree::Tree;

/// Bytes that are fetched before a command asks for them: not more than a part of the store, where they are kept from eviction.
const AHEAD: u64 = 2 << 30;
const AHEAD_PART: u64 = 8;
/// Bytes, and contents, that are fetched ahead in one turn: what somebody waits for meanwhile waits for no more than that.
const TURN: u64 = 2 << 20;
const TURN_CONTENTS: usize = 512;

/// A root on show; its removal is part of its life, whoever drops it.
pub(super) struct Root {
    path: PathBuf,
    upper: PathBuf,
    tree: Arc<Tree>,
    watch: Running,
    shapes: Vec<u64>,
    /// What is fetched before it is asked for.
    ahead: Option<AbortOnDropHandle<()>>,
    shared: Arc<Shared>,
    shown: Option<Shown>,
}

/// What must be taken down.
struct Shown {
    shared: Arc<Shared>,
    layer: Layer,
    /// Stay while they are in use.
    views: Vec<Arc<Kept>>,
    /// What shows the tree instead, if it is to be known what is done with it.
    recorded: Option<Recorded>,
    /// Its inputs stay in the store.
    pinned: Arc<Pinned>,
    _hold: Hold,
}

impl Root {
    /// Shows the tree of action number `action`. Blocks.
    pub(super) fn show(
        shared: Arc<Shared>,
        request: &StageRequest,
        pinned: Arc<Pinned>,
        action: u64,
        behalf: Behalf,
    ) -> Result<Self, InputError> {
        let owner = request.owner.unwrap_or(shared.own);
        let subtree = pinned.subtree.clone();
        let ways = upper::ways(&subtree, &request.directories)?;
        // A tree that came before is shown as it was then, with all that the kernel knows of it; one that is watched, apart.
        let layer =
            shared
                .layers
                .take(&subtree, owner, subtree.since == action && !request.watched)?;
        let mut root = Root {
            path: layer.root.clone(),
            upper: layer.upper(),
            tree: request.tree.clone(),
            watch: shared.contents.watches.begin(subtree.clone(), behalf),
            shapes: request.shapes.clone(),
            ahead: None,
            shown: Some(Shown {
                shared: shared.clone(),
                layer,
                views: Vec::new(),
                recorded: None,
                pinned,
                _hold: request.hold.clone(),
            }),
            shared,
        };
        root.fetch_ahead(&subtree);
        match root.mount(request, &subtree, &ways, owner, action) {
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
        if request.watched {
            upper::prepare(&self.upper, &self.upper, subtree, ways, owner)?;
            let recorded = Recorded::show(&self.shared, subtree.clone(), owner)?;
            let recorded = shown.recorded.insert(recorded);
            shown.layer.mount(&recorded.at)?;
            // Nothing of it is known to anybody else; what may be changed is the same.
            let closed = match request.writable {
                true => Vec::new(),
                false => plan::closed(subtree, ways, &request.outputs),
            };
            for part in &closed {
                mounts::close(&self.path.join(&part.path))?;
            }
            return Ok(());
        }
        let plan::Plan { closed, parts } = match request.writable {
            true => plan::Plan::default(),
            false => plan::plan(subtree, ways, &request.outputs, action, 0),
        };
        let views = &self.shared.views;
        if let Some(view) = shown.layer.view() {
            upper::prepare(&self.upper, &self.path, subtree, ways, owner)?;
            let paths = parts.iter().map(|part| &part.path).chain(&closed);
            if paths.filter(|path| !path.contains('/')).count() > 1 {
                views::introduce(&view, subtree)?;
            }
        } else {
            upper::prepare(&self.upper, &self.upper, subtree, ways, owner)?;
            let whole = views.shared(subtree, owner, false);
            shown.views.push(whole.clone());
            shown.layer.mount(&whole.path)?;
        }
        // First, as parts may lie in them.
        for path in &closed {
            mounts::close(&self.path.join(path))?;
        }
        for part in parts {
            let view = views.shared(&part.subtree, owner, true);
            mounts::attach(views.part(&view)?, &self.path.join(&part.path))?;
            shown.views.push(view);
        }
        Ok(())
    }

    /// Begins to fetch what commands like this one have read.
    fn fetch_ahead(&mut self, subtree: &Subtree) {
        let cas = &self.shared.cas;
        if self.shapes.is_empty() || !cas.has_source() {
            return;
        }
        let most = AHEAD.min(cas.local().high_water() / AHEAD_PART);
        let mut wanted = self.shared.profiles.wanted(&self.shapes, subtree, most);
        let digests: Vec<_> = wanted.iter().map(|wanted| wanted.digest).collect();
        let lacking: HashSet<_> = cas.local().missing(&digests).into_iter().collect();
        wanted.retain(|wanted| lacking.contains(&wanted.digest));
        if wanted.is_empty() {
            return;
        }
        let cas = cas.clone();
        let behalf = self.watch.behalf.clone();
        let fetching = self.shared.runtime.spawn(behalf.pass_on(async move {
            for some in turns(&wanted) {
                if let Err(error) = cas.fetch(some).await {
                    // Whoever reads it is told.
                    tracing::debug!("cannot fetch inputs ahead: {error}");
                }
            }
        }));
        self.ahead = Some(AbortOnDropHandle::new(fetching));
    }

    /// Remembers what was fetched and read, in case that it is needed again.
    fn learn(&self) {
        let read = self.watch.take_read();
        if read.is_empty() || self.shapes.is_empty() {
            return;
        }
        self.shared.profiles.learn(&self.shapes, &self.tree, &read);
        if let Err(error) = self.shared.profiles.save_now_and_then() {
            tracing::warn!("cannot remember what commands read: {error}");
        }
    }

    pub(super) fn take_down(mut self) -> Result<(), InputError> {
        self.learn();
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
        if let Some(recorded) = self.recorded {
            recorded.take_down();
        }
        // Views keep large files for as long as these are pinned: first they are let go.
        drop(self.pinned);
        self.shared.views.shrink();
        given_back
    }
}

/// What is fetched together. A large content has a turn of its own, so that it takes one of the streams only.
fn turns(mut wanted: &[Wanted]) -> impl Iterator<Item = &[Wanted]> {
    std::iter::from_fn(move || {
        let mut left = TURN;
        let fits = |wanted: &&Wanted| {
            let taken = left.checked_sub(wanted.digest.size());
            left = taken.unwrap_or(0);
            taken.is_some()
        };
        let many = wanted.iter().take(TURN_CONTENTS).take_while(fits).count();
        let (turn, rest) = wanted.split_at(many.max(1).min(wanted.len()));
        wanted = rest;
        (!turn.is_empty()).then_some(turn)
    })
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
        let recorded = { self.shown.as_ref() }.and_then(|shown| shown.recorded.as_ref());
        if recorded.map_or(&self.shared.life, Recorded::life).is_over() {
            return Some(InputError::Ended);
        }
        let failed = self.watch.failed();
        if failed.is_empty() {
            return None;
        }
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

    fn waited(&self) -> Option<Waited> {
        let watch = self.watch.0.clone();
        Some(Arc::new(move || watch.waited()))
    }

    fn used(&self) -> Option<Used> {
        let recorded = self.shown.as_ref()?.recorded.as_ref()?;
        Some(recorded.recorder.so_far())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::{Digest, DigestFunction};

    #[test]
    fn turns_are_bounded_in_bytes_and_number_and_what_is_large_is_alone() {
        let of = |sizes: &[u64]| {
            let wanted: Vec<Wanted> = { sizes.iter() }
                .map(|size| Wanted {
                    digest: Digest::new(DigestFunction::Sha256, [7; 32], *size),
                    executable: false,
                })
                .collect();
            turns(&wanted).map(<[Wanted]>::len).collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), [0; 0]);
        assert_eq!(
            of(&[TURN + 1, 1, 1, TURN * 9, TURN / 2, TURN / 2, 1]),
            [1, 2, 1, 2, 1]
        );
        assert_eq!(of(&[1; 1030]), [TURN_CONTENTS, TURN_CONTENTS, 6]);
    }
}
