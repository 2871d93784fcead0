//! Uploads: one question on what the remote lacks, then small blobs in groups of at most 2 MiB and
//! large ones in streams, a few of each at the same time.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::{Held, Shared, blocking};
use crate::cas::pack::{GROUP_BYTES, pack};
use crate::cas::{BlobSource, CasError};
use crate::reapi::Digest;

/// Uploads those of `digests` that the source lacks, and what is held because nobody else has it. They are pinned, except
/// `not_here`, which are not local and only have to be remote.
pub(super) async fn publish(
    shared: &Arc<Shared>,
    source: &Arc<dyn BlobSource>,
    digests: Vec<Digest>,
    not_here: Vec<Digest>,
    held: &Held,
) -> Result<(), CasError> {
    let mut lacking = source.find_missing(&digests).await?;
    let not_here: HashSet<Digest> = not_here.into_iter().collect();
    let nowhere: Vec<Digest> = lacking
        .iter()
        .copied()
        .filter(|d| not_here.contains(d))
        .collect();
    if !nowhere.is_empty() {
        return Err(CasError::Missing(nowhere));
    }
    lacking.extend(held.fresh());
    let (small, large): (Vec<_>, Vec<_>) = lacking
        .into_iter()
        .partition(|d| d.size() <= source.batch_limit());
    let groups: FuturesUnordered<_> = pack(small, GROUP_BYTES, |d| *d)
        .into_iter()
        .map(|group| upload_group(shared, source, group, held))
        .collect();
    let streams: FuturesUnordered<_> = large
        .into_iter()
        .map(|digest| upload_stream(shared, source, digest))
        .collect();
    tokio::try_join!(all(groups), all(streams))?;
    Ok(())
}

/// Waits for all; ends, and with it the others, at the first failure.
async fn all<F: Future<Output = Result<(), CasError>>>(
    mut uploads: FuturesUnordered<F>,
) -> Result<(), CasError> {
    while let Some(uploaded) = uploads.next().await {
        uploaded?;
    }
    Ok(())
}

async fn upload_group(
    shared: &Arc<Shared>,
    source: &Arc<dyn BlobSource>,
    group: Vec<Digest>,
    held: &Held,
) -> Result<(), CasError> {
    // The semaphores are never closed.
    let _permit = shared.groups_up.acquire().await;
    let mut blobs = Vec::with_capacity(group.len());
    let mut on_disk = Vec::new();
    for digest in group {
        match held.get(digest) {
            Some(bytes) => blobs.push((digest, bytes)),
            None => on_disk.push(digest),
        }
    }
    if !on_disk.is_empty() {
        let local = shared.local.clone();
        blobs = blocking("read", move || {
            let mut gone = Vec::new();
            for digest in on_disk {
                match local.read(digest, digest.size())? {
                    Some(bytes) => blobs.push((digest, bytes)),
                    None => gone.push(digest),
                }
            }
            match gone.is_empty() {
                true => Ok(blobs),
                false => Err(CasError::Missing(gone)),
            }
        })
        .await?;
    }
    source.write_batch(blobs).await
}

async fn upload_stream(
    shared: &Arc<Shared>,
    source: &Arc<dyn BlobSource>,
    digest: Digest,
) -> Result<(), CasError> {
    let _permit = shared.streams_up.acquire().await;
    let local = shared.local.clone();
    let file = blocking("open", move || local.open_blob(digest)).await?;
    match file {
        Some(file) => source.write_stream(digest, file).await,
        None => Err(CasError::Missing(vec![digest])),
    }
}
