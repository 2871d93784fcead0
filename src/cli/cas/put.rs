//! `boxwright cas put`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::super::Done;
use super::super::blobs::{self, Content, blocking};
use super::super::exit::{Exit, Failure};
use super::super::progress::Progress;
use super::{Where, well};
use crate::cas::BlobSource;
use crate::reapi::{Digest, DigestFunction};
use crate::tree::{self, DiskError};

/// Upload a file or a directory and print its digest
///
/// A file becomes a blob; a directory a tree, whose digest is that of its root Directory.
#[derive(Debug, Args)]
pub(super) struct Put {
    /// The file or directory
    path: PathBuf,
    /// The function that names blobs: sha256 or blake3
    #[arg(long, value_name = "FUNCTION", default_value = "sha256", value_parser = function)]
    digest_function: DigestFunction,
    /// Draw no progress
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    cas: Where,
}

/// A function's name on the command line.
pub(in crate::cli) fn function(name: &str) -> Result<DigestFunction, String> {
    DigestFunction::from_name(name).ok_or_else(|| "it is not sha256 or blake3".to_owned())
}

impl Put {
    pub(super) async fn run(self) -> Done {
        let progress = Progress::new(self.quiet);
        self.cas
            .with(async |cas| {
                let digest = put(&*cas, &self.path, self.digest_function, &progress).await;
                progress.clear();
                match digest? {
                    digest if digest.function() == DigestFunction::Sha256 => println!("{digest}"),
                    digest => println!("{digest:?}"),
                }
                well()
            })
            .await
    }
}

async fn put(
    cas: &dyn BlobSource,
    path: &Path,
    function: DigestFunction,
    progress: &Progress,
) -> Result<Digest, Failure> {
    progress.phase("hashing");
    let (digest, contents) = prepare(path.to_owned(), function).await?;
    blobs::upload(cas, contents, progress).await?;
    Ok(digest)
}

/// What to upload for a file or a directory, and its digest.
pub(in crate::cli) async fn prepare(
    path: PathBuf,
    function: DigestFunction,
) -> Result<(Digest, Vec<(Digest, Content)>), Failure> {
    blocking(move || {
        let unreadable = |e: std::io::Error| {
            Failure::new(
                Exit::NoInput,
                format!("cannot read {}: {e}", path.display()),
            )
        };
        let kind = std::fs::metadata(&path).map_err(unreadable)?;
        if kind.is_dir() {
            let found = tree::from_disk(&path, function)
                .map_err(|e: DiskError| Failure::new(Exit::NoInput, e))?;
            let messages = found
                .directories
                .into_iter()
                .map(|(digest, data)| (digest, Content::Memory(data)));
            let files = found
                .files
                .into_iter()
                .map(|(digest, path)| (digest, Content::File(path)));
            return Ok((found.root, messages.chain(files).collect()));
        }
        if !kind.is_file() {
            let text = format!(
                "cannot upload {}: it is neither a file nor a directory",
                path.display()
            );
            return Err(Failure::new(Exit::NoInput, text));
        }
        let mut file = std::fs::File::open(&path).map_err(unreadable)?;
        let mut hasher = function.hasher();
        let mut piece = vec![0; 1 << 20];
        loop {
            match std::io::Read::read(&mut file, &mut piece).map_err(unreadable)? {
                0 => break,
                read => hasher.update(&piece[..read]),
            }
        }
        let digest = hasher.finish();
        Ok((digest, vec![(digest, Content::File(path))]))
    })
    .await
}
