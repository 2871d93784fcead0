//! Input trees that are there at once: nothing is copied, linked or fetched before the action starts.
//!
//! One read-only file system per daemon shows all trees ([`nodes`], [`kernel`], [`server`]), out of Directory messages in
//! memory; contents come when they are read ([`content`]). An action sees an overlay over the view of its tree
//! ([`root`]): what it writes lands beside the local store, from where an output is renamed into it. The subtrees that it
//! shares with earlier actions are mounted in it from views that live on ([`plan`], [`views`]), so that what those have
//! touched the kernel still knows: this is what makes a warm action cost nothing.
//!
//! Needs `/dev/fuse` and the right to mount, as root or in a user namespace of the daemon's own; whether all of it works is tried out at
//! the start.

mod content;
mod descriptor;
mod dying;
mod eager;
mod entry;
mod kernel;
mod layers;
mod layout;
mod life;
mod living;
mod mounter;
pub(super) mod mounts;
mod nodes;
mod pinned;
mod places;
mod plan;
mod profiles;
mod record;
pub(super) mod recurring;
mod root;
mod server;
mod siblings;
mod subtree;
mod tree_mount;
mod upper;
mod views;
mod watch;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use tokio::runtime::Handle;

pub use mounter::{install as install_mounter, look_first_in, mounter_main};
pub use mounts::private_mounts;
pub use tree_mount::TreeMount;

use super::{InputError, InputRoots, StageRequest, StagedRoot, at_once, named};
use crate::cas::{Behalf, Cas};
use crate::config::Owner;
use crate::tree::{Directory, Tree};
use content::Contents;
use kernel::Kernel;
use layers::Layers;
use layout::Layout;
use life::Life;
use nodes::Nodes;
use pinned::Pinning;
use profiles::Profiles;
use root::Root;
use server::Server;
use subtree::Subtrees;
use views::Views;

/// Input roots on the file system.
pub struct FuseRoots {
    shared: Arc<Shared>,
    subtrees: Arc<Subtrees>,
    actions: AtomicU64,
    /// Goes last.
    server: Server,
}

/// What every root needs.
struct Shared {
    layout: Arc<Layout>,
    layers: Arc<Layers>,
    pinning: Arc<Pinning>,
    views: Views,
    contents: Arc<Contents>,
    profiles: Profiles,
    cas: Cas,
    runtime: Handle,
    /// Of the file system.
    life: Life,
    /// Who owns a root that belongs to nobody else.
    own: Owner,
}

impl FuseRoots {
    /// Mounts the file system below `dir`, which must be on the local store's file system and is emptied first,
    /// and tries it out. What commands read is remembered in the file `input-profiles` beside `dir`. Within a runtime; blocks. The error says what is lacking.
    pub fn new(cas: Cas, dir: &Path) -> Result<Self, InputError> {
        let own = own();
        let store = cas.local().clone();
        let root = store.scratch().parent().unwrap_or(store.scratch());
        let layout = Arc::new(Layout::make(dir, root)?);
        let nodes = Arc::new(Nodes::new(own));
        let contents = Arc::new(Contents::new(cas.clone(), Handle::current()));
        let kernel = Kernel::new(nodes.clone(), contents.clone());
        let tree = layout.tree();
        let server = Server::start(kernel, &tree).map_err(cannot_mount(&tree))?;
        layout.furnish()?;
        let pinning = Arc::new(Pinning::new(cas.clone()));
        let roots = FuseRoots {
            subtrees: Arc::new(Subtrees::new()),
            shared: Arc::new(Shared {
                layers: Arc::new(Layers::new(layout.clone(), nodes.clone(), own)),
                views: Views::new(layout.clone(), nodes, store, pinning.clone()),
                pinning,
                layout,
                contents,
                profiles: Profiles::open(Some(profiles::beside(dir))),
                runtime: Handle::current(),
                life: server.life().clone(),
                cas,
                own,
            }),
            actions: AtomicU64::new(0),
            server,
        };
        roots.try_out()?;
        Ok(roots)
    }

    /// Shows a small tree and takes it down again.
    fn try_out(&self) -> Result<(), InputError> {
        let root = crate::reapi::Digest::empty(crate::reapi::DigestFunction::Sha256);
        let tree = Arc::new(Tree {
            root,
            directories: HashMap::from([(root, Arc::new(Directory::default()))]),
            nodes: 1,
            bytes: 0,
        });
        let request = StageRequest {
            name: "trial".to_owned(),
            tree,
            directories: vec!["made".to_owned()],
            outputs: Vec::new(),
            owner: None,
            shapes: Vec::new(),
            writable: false,
            watched: false,
            hold: None,
        };
        let shown = self.show(&request)?;
        let made = shown.path().join("made");
        let found = rustix::fs::stat(&made).map_err(mounts::failed("find", made.display()));
        let written = rustix::fs::mkdir(made.join("more"), rustix::fs::Mode::RWXU)
            .map_err(mounts::failed("write to", made.display()));
        shown.take_down()?;
        found.and(written).map(|_| ())
    }

    fn show(&self, request: &StageRequest) -> Result<Root, InputError> {
        let behalf = Behalf::current();
        show(&self.shared, &self.subtrees, request, self.number(), behalf)
    }

    fn number(&self) -> u64 {
        self.actions.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// The daemon's own user.
fn own() -> Owner {
    Owner {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

fn cannot_mount(at: &Path) -> impl FnOnce(std::io::Error) -> InputError {
    let object = at.display().to_string();
    move |source| {
        let missing = source.to_string().contains("fusermount3 binary");
        let hint = match missing {
            true => "; install the package fuse3",
            false => "; see that /dev/fuse is there and may be opened, and what fusermount3 said",
        };
        InputError::Disk {
            action: "mount a FUSE file system at",
            object,
            source: std::io::Error::new(source.kind(), format!("{source}{hint}")),
        }
    }
}

fn show(
    shared: &Arc<Shared>,
    subtrees: &Subtrees,
    request: &StageRequest,
    action: u64,
    behalf: Behalf,
) -> Result<Root, InputError> {
    if shared.life.is_over() {
        return Err(InputError::Ended);
    }
    let subtree = subtrees.of(&request.tree, action).ok_or_else(|| {
        // The door promises a whole tree.
        mounts::failed("find a directory of", &request.name)(rustix::io::Errno::NOENT)
    })?;
    let pinned = shared.pinning.pin(&subtree);
    // Without a place that more could come from, what is not here is missing.
    if !shared.cas.has_source() {
        let lacking = shared.pinning.lacking(&pinned);
        if !lacking.is_empty() {
            return Err(InputError::Missing(named(&request.tree, lacking)));
        }
    }
    Root::show(shared.clone(), request, pinned, action, behalf)
}

#[async_trait]
impl InputRoots for FuseRoots {
    fn name(&self) -> &'static str {
        "fuse"
    }

    fn lazy(&self) -> bool {
        true
    }

    async fn stage(&self, request: StageRequest) -> Result<Box<dyn StagedRoot>, InputError> {
        let (shared, subtrees, action) =
            (self.shared.clone(), self.subtrees.clone(), self.number());
        let behalf = Behalf::current();
        let show = move || show(&shared, &subtrees, &request, action, behalf);
        Ok(Box::new(at_once("stage", show).await?))
    }

    async fn lost(&self) -> String {
        self.shared.life.over().await;
        InputError::Ended.to_string()
    }
}

impl Drop for FuseRoots {
    fn drop(&mut self) {
        if let Err(error) = self.shared.profiles.save() {
            tracing::warn!("cannot remember what commands read: {error}");
        }
        self.server.expect_end();
        if let Err(error) = self.shared.layout.strip() {
            tracing::warn!("mounts of input roots stay until the daemon ends: {error}");
        }
    }
}
