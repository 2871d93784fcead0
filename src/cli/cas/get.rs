//! `boxwright cas get`.

use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;

use super::super::Done;
use super::super::exit::{Exit, Failure};
use super::super::materialise::Plan;
use super::super::progress::Progress;
use super::{Where, well};
use crate::cas::{BlobSource, CasError};
use crate::reapi::Digest;

/// Download a blob, or with --tree a directory
#[derive(Debug, Args)]
pub(super) struct Get {
    /// The blob, as HASH/SIZE
    digest: Digest,
    /// Where to write it: a file, `-` for standard output, or with --tree a directory
    #[arg(value_name = "DEST")]
    destination: PathBuf,
    /// The digest is that of a Directory (or Tree) message: write what it describes
    #[arg(long)]
    tree: bool,
    /// Make the file executable
    #[arg(long, conflicts_with = "tree")]
    executable: bool,
    /// Draw no progress
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    cas: Where,
}

impl Get {
    pub(super) async fn run(self) -> Done {
        let progress = Progress::new(self.quiet || self.destination == Path::new("-"));
        self.cas
            .with(async |cas| {
                let done = self.get(&*cas, &progress).await;
                progress.clear();
                done?;
                well()
            })
            .await
    }

    async fn get(&self, cas: &dyn BlobSource, progress: &Progress) -> Result<(), Failure> {
        if self.tree {
            let mut plan = Plan::default();
            let (root, directories) = super::list::directories(cas, self.digest).await?;
            plan.tree("", root, &directories)?;
            return plan.write(cas, &self.destination, progress).await;
        }
        if self.destination == Path::new("-") {
            return to_stdout(cas, self.digest).await;
        }
        let failed = |why: &str| {
            let text = format!("cannot write {}: {why}", self.destination.display());
            Failure::new(Exit::CannotCreate, text)
        };
        let parent = match self.destination.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let name = self.destination.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| failed("it has no file name in UTF-8"))?;
        let mut plan = Plan::default();
        plan.file(name, self.digest, self.executable)?;
        plan.write(cas, parent, progress).await
    }
}

/// Verified only when it is out: what a pipe has taken cannot be taken back, but the exit code says it.
async fn to_stdout(cas: &dyn BlobSource, digest: Digest) -> Result<(), Failure> {
    if digest.is_empty() {
        return Ok(());
    }
    let mut hasher = digest.function().hasher();
    let mut broken = None;
    let mut sink = |piece: Bytes| {
        hasher.update(&piece);
        std::io::stdout().write_all(&piece).map_err(|e| {
            broken = Some(Failure::new(
                Exit::Io,
                format!("cannot write to standard output: {e}"),
            ));
            CasError::Missing(vec![digest])
        })
    };
    let streamed = cas.read_stream(digest, &mut sink).await;
    if let Some(failure) = broken {
        return Err(failure);
    }
    streamed?;
    let actual = hasher.finish();
    if actual != digest {
        return Err(CasError::Corrupt {
            expected: digest,
            actual,
        }
        .into());
    }
    std::io::stdout()
        .flush()
        .map_err(|e| Failure::new(Exit::Io, format!("cannot write to standard output: {e}")))
}
