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
use super::value::Checked;
use crate::cas::{BlobSource, Cas, LocalStore};
use crate::config::units::{Amount, parse_amount, rough_size};
use crate::inputs::InputError;
use crate::inputs::fuse::TreeMount;
use crate::reapi::Digest;
use crate::tree::Tree;

/// Mount a directory tree of a CAS, read-only; files are fetched when they are read
///
/// Stays until Ctrl-C, SIGTERM or `fusermount3 -u DIR`.
#[derive(Debug, Args)]
#[command(after_help = "\
Needs fusermount3 (package fuse3) and /dev/fuse. What was read is kept below $TMPDIR until the end, as far as --cache-size \
allows; the longest unused goes first, and is fetched again. Where $TMPDIR is memory, so is the cache: set TMPDIR, or a size.

Example: boxwright mount --remote http://build.example:50051 e3b0c442.../184 /mnt/tree")]
pub(super) struct MountCommand {
    /// The root Directory (or a Tree message), as HASH/SIZE
    digest: Digest,
    /// Where to mount it: an empty directory
    dir: PathBuf,
    /// How much of what was read is kept: 2G, or 10% of the file system; no larger file can be read [default: half of what is
    /// free below $TMPDIR]
    #[arg(long, value_name = "SIZE", value_parser = Checked::new(cache_size))]
    cache_size: Option<Amount>,
    #[command(flatten)]
    cas: Where,
}

fn cache_size(text: &str) -> Result<Amount, String> {
    match parse_amount(text) {
        Ok(Amount::Bytes(0) | Amount::Percent(0)) => {
            Err("it leaves no room for any file".to_owned())
        }
        other => other.map_err(|e| e.to_string()),
    }
}

impl MountCommand {
    pub(super) fn run(self) -> Done {
        super::remote::runtime()?.block_on(async {
            let MountCommand {
                digest,
                dir,
                cache_size,
                cas,
            } = &self;
            cas.with(async |source| serve(source, *digest, dir, *cache_size).await)
                .await
        })
    }
}

async fn serve(
    source: Arc<dyn BlobSource>,
    digest: Digest,
    dir: &std::path::Path,
    cache_size: Option<Amount>,
) -> Done {
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
    let config = scratch.store(cache_size)?;
    warn_of_large_files(&tree, config.high_water);
    let store = LocalStore::open(config)?;
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

/// Reading them fails, and the reader sees no reason.
fn warn_of_large_files(tree: &Tree, most: u64) {
    let files = { tree.directories.values() }.flat_map(|directory| &directory.files);
    let sizes = files.map(|file| file.digest.size());
    let large: Vec<u64> = sizes.filter(|size| *size > most).collect();
    if let Some(largest) = large.iter().max() {
        eprintln!(
            "boxwright: warning: {} files are larger than the cache of {} and cannot be read; the largest has {}. Give it more \
             with --cache-size, or set TMPDIR to a directory with more room",
            large.len(),
            rough_size(most),
            rough_size(*largest)
        );
    }
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
