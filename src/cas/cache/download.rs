//! Downloads: small blobs in groups of at most 2 MiB, large ones in streams, to the disk or to
//! memory. How many are under way at once is bounded over all actions, and with it the memory.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::flights::{Landing, Plan};
use super::{Shared, Wanted, blocking};
use crate::cas::Behalf;
use crate::cas::pack::{GROUP_BYTES, pack};
use crate::cas::{BlobSource, CasError};
use crate::reapi::Digest;

type Source = Arc<dyn BlobSource>;

/// Brings all of `wanted` into the local store. They are pinned already.
pub(super) async fn to_disk(
    shared: &Arc<Shared>,
    source: &Source,
    wanted: Vec<Wanted>,
) -> Result<(), CasError> {
    let executable: HashMap<Digest, bool> =
        wanted.iter().map(|w| (w.digest, w.executable)).collect();
    let plan = |digests: Vec<Digest>| {
        let wanted = digests.into_iter().map(|digest| Wanted {
            digest,
            executable: executable.get(&digest).copied().unwrap_or_default(),
        });
        let (small, large): (Vec<_>, Vec<_>) =
            wanted.partition(|w| w.digest.size() <= source.batch_limit());
        let groups = pack(small, GROUP_BYTES, |w| w.digest)
            .into_iter()
            .map(|group| Plan {
                digests: group.iter().map(|w| w.digest).collect(),
                work: Box::pin(group_to_disk(shared.clone(), source.clone(), group)),
            });
        let streams = large.into_iter().map(|wanted| Plan {
            digests: vec![wanted.digest],
            work: Box::pin(stream_to_disk(shared.clone(), source.clone(), wanted)),
        });
        groups.chain(streams).collect()
    };
    let needed = wanted.iter().map(|w| w.digest).collect();
    match shared.to_disk.bring(needed, plan).await? {
        (_, missing) if missing.is_empty() => Ok(()),
        (_, missing) => Err(CasError::Missing(missing)),
    }
}

/// Brings blobs into memory; verified.
pub(super) async fn to_memory(
    shared: &Arc<Shared>,
    source: &Source,
    digests: Vec<Digest>,
) -> Result<Vec<(Digest, Bytes)>, CasError> {
    let plan = |digests: Vec<Digest>| {
        let (small, large): (Vec<_>, Vec<_>) = digests
            .into_iter()
            .partition(|d| d.size() <= source.batch_limit());
        let groups = pack(small, GROUP_BYTES, |d| *d)
            .into_iter()
            .map(|digests| Plan {
                work: Box::pin(group_to_memory(
                    shared.clone(),
                    source.clone(),
                    digests.clone(),
                )),
                digests,
            });
        let streams = large.into_iter().map(|digest| Plan {
            digests: vec![digest],
            work: Box::pin(stream_to_memory(shared.clone(), source.clone(), digest)),
        });
        groups.chain(streams).collect()
    };
    match shared.to_memory.bring(digests, plan).await? {
        (blobs, missing) if missing.is_empty() => Ok(blobs),
        (_, missing) => Err(CasError::Missing(missing)),
    }
}

/// Blobs that came through another flight between the caller's look and this one's start are not
/// asked for again.
async fn still_lacking(shared: &Shared, group: Vec<Wanted>) -> Result<Vec<Wanted>, CasError> {
    let digests: Vec<Digest> = group.iter().map(|w| w.digest).collect();
    let lacking = if shared.looks_up_in_place(digests.len()) {
        shared.local.missing(&digests)
    } else {
        let local = shared.local.clone();
        blocking("look up", move || Ok(local.missing(&digests))).await?
    };
    let lacking: std::collections::HashSet<Digest> = lacking.into_iter().collect();
    Ok(group
        .into_iter()
        .filter(|w| lacking.contains(&w.digest))
        .collect())
}

async fn group_to_disk(shared: Arc<Shared>, source: Source, group: Vec<Wanted>) -> Landing {
    // The semaphores are never closed.
    let _permit = shared.groups_down.clone().acquire_owned().await;
    let group = match still_lacking(&shared, group).await {
        Ok(group) => group,
        Err(error) => return error.into(),
    };
    let executable: HashMap<Digest, bool> =
        group.iter().map(|w| (w.digest, w.executable)).collect();
    let digests: Vec<Digest> = group.iter().map(|w| w.digest).collect();
    let mut came = Vec::with_capacity(digests.len());
    let missing = source
        .read_batch(&digests, &mut |digest, bytes| came.push((digest, bytes)))
        .await;
    let missing = match missing {
        Ok(missing) => missing,
        Err(error) => return error.into(),
    };
    let local = shared.local.clone();
    let kept = blocking("keep", move || {
        for (digest, bytes) in came {
            let executable = executable.get(&digest).copied().unwrap_or_default();
            local.put_verified(digest, &bytes, executable)?;
        }
        Ok(())
    })
    .await;
    Landing {
        missing,
        failed: kept.err(),
        ..Landing::default()
    }
}

async fn group_to_memory(shared: Arc<Shared>, source: Source, digests: Vec<Digest>) -> Landing {
    let _permit = shared.groups_down.clone().acquire_owned().await;
    let mut blobs = HashMap::with_capacity(digests.len());
    let missing = source
        .read_batch(&digests, &mut |digest, bytes| {
            blobs.insert(digest, bytes);
        })
        .await;
    match missing {
        Ok(missing) => Landing {
            missing,
            blobs,
            failed: None,
        },
        Err(error) => error.into(),
    }
}

async fn stream_to_memory(shared: Arc<Shared>, source: Source, digest: Digest) -> Landing {
    let _permit = shared.streams_down.clone().acquire_owned().await;
    let mut whole = BytesMut::new();
    let read = source
        .read_stream(digest, &mut |chunk| {
            whole.extend_from_slice(&chunk);
            Ok(())
        })
        .await;
    let verified = match read {
        Ok(()) => {
            blocking("verify", move || {
                let actual = digest.function().digest(&whole);
                match actual == digest {
                    true => Ok(whole.freeze()),
                    false => Err(CasError::Corrupt {
                        expected: digest,
                        actual,
                    }),
                }
            })
            .await
        }
        Err(error) => Err(error),
    };
    match verified {
        Ok(bytes) => Landing {
            blobs: HashMap::from([(digest, bytes)]),
            ..Landing::default()
        },
        Err(CasError::Missing(missing)) => Landing {
            missing,
            ..Landing::default()
        },
        Err(error) => error.into(),
    }
}

async fn stream_to_disk(shared: Arc<Shared>, source: Source, wanted: Wanted) -> Landing {
    let _permit = shared.streams_down.clone().acquire_owned().await;
    match still_lacking(&shared, vec![wanted]).await {
        Ok(lacking) if lacking.is_empty() => return Landing::default(),
        Ok(_) => {}
        Err(error) => return error.into(),
    }
    // A blob that came wrong gets one more chance: a resumed stream may have been
    // put together from two replicas of which one is damaged.
    let mut second_chance = true;
    loop {
        return match stream_once(&shared, &source, wanted).await {
            Ok(()) => Landing::default(),
            Err(CasError::Missing(missing)) => Landing {
                missing,
                ..Landing::default()
            },
            Err(CasError::Corrupt { .. }) if std::mem::take(&mut second_chance) => continue,
            Err(error) => error.into(),
        };
    }
}

/// The stream is driven from a blocking thread, which hashes and writes each chunk as it comes: the disk
/// holds back the network, and no chunk waits in a queue.
async fn stream_once(
    shared: &Arc<Shared>,
    source: &Source,
    wanted: Wanted,
) -> Result<(), CasError> {
    let abandoned = CancellationToken::new();
    // Dropped with this future: the thread notices and ends.
    let _guard = abandoned.clone().drop_guard();
    let (local, source) = (shared.local.clone(), source.clone());
    let (runtime, behalf) = (Handle::current(), Behalf::current());
    blocking("fetch", move || {
        let mut writer = local.writer(wanted.digest, wanted.executable)?;
        let mut sink = |chunk: Bytes| writer.write(&chunk);
        runtime.block_on(async {
            tokio::select! {
                result = behalf.pass_on(source.read_stream(wanted.digest, &mut sink)) => result,
                () = abandoned.cancelled() => Err(CasError::Disk {
                    action: "fetch",
                    object: format!("blob {}", wanted.digest),
                    source: std::io::ErrorKind::Interrupted.into(),
                }),
            }
        })?;
        writer.commit()
    })
    .await
}
