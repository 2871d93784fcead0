//! `boxwright mount`.

mod dead;
mod scratch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::Done;
use super::cas::{Where, tree_of};
use super::exit::{Exit, Failure};
use crate::cas::{BlobSource, Cas, LocalStore, StoreConfig};
use crate::inputs::InputError;
use crate::inputs::fuse::TreeMount;
use crate::reapi::Digest;
use crate::tree::Tree;

/// Mount a directory tree of a CAS, read-only; files are fetched when they are read
///
/// Stays until Ctrl-C, SIGTERM or `fusermount3 -u DIR`.
#[derive(Debug, Args)]
#[command(after_help = "\
Needs fusermount3 (package fuse3) and /dev/fuse. What was read is kept below $TMPDIR until the end.

Example: boxwright mount --remote http://build.example:50051 e3b0c442.../184 /mnt/tree")]
pub(super) struct MountCommand {
    /// The root Directory (or a Tree message), as HASH/SIZE
    digest: Digest,
    /// Where to mount it: an empty directory
    dir: PathBuf,
    #[command(flatten)]
    cas: Where,
}

impl MountCommand {
    pub(super) fn run(self) -> Done {
        super::remote::runtime()?.block_on(async {
            let MountCommand { digest, dir, cas } = &self;
            cas.with(async |source| serve(source, *digest, dir).await)
                .await
        })
    }
}

async fn serve(source: Arc<dyn BlobSource>, digest: Digest, dir: &std::path::Path) -> Done {
    let dir = std::path::absolute(dir)
        .map_err(|e| Failure::new(Exit::Usage, format!("{}: {e}", dir.display())))?;
    dead::remove(&dir)?;
    let mut stop = crate::worker::stops()
        .map_err(|e| Failure::new(Exit::Software, format!("cannot listen to signals: {e}")))?;
    let (root, directories) = tree_of(&*source, digest).await?;
    let tree = Tree {
        root,
        directories,
        nodes: 0,
        bytes: 0,
    };
    let scratch = scratch::Scratch::new(&std::env::temp_dir())?;
    let store = LocalStore::open(StoreConfig {
        root: scratch.path().to_owned(),
        high_water: u64::MAX,
        low_water: u64::MAX,
        free_floor: 0,
    })?;
    let mount = TreeMount::new(Cas::new(store, Some(source)), &tree, &dir)
        .map_err(|error| Failure::new(exit(&error), error))?;
    eprintln!(
        "{digest} is mounted at {}; Ctrl-C unmounts it",
        dir.display()
    );
    tokio::select! {
        _ = stop.recv() => {}
        () = mount.ended() => {}
    }
    // The mount waits for its thread, and that for the kernel.
    super::blobs::blocking(move || {
        drop(mount);
        Ok(())
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

fn exit(error: &InputError) -> Exit {
    match error {
        InputError::Disk { source, .. } => match source.kind() {
            std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotFound => Exit::CannotCreate,
            std::io::ErrorKind::PermissionDenied => Exit::NoPermission,
            _ => Exit::Software,
        },
        _ => Exit::Software,
    }
}
