//! Blobs for the client commands: moved between a directory or a file and a [`BlobSource`], which
//! is a remote CAS or, for `--state-dir`, a store on disk that no daemon holds open.

use std::collections::HashSet;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, TryStreamExt};

use super::exit::{Exit, Failure, of_disk};
use super::progress::Progress;
use crate::cas::{BlobSource, CasError, LocalStore};
use crate::reapi::Digest;

/// What an upload is made of.
pub(super) enum Content {
    /// Bytes in memory.
    Memory(Bytes),
    /// A file on disk.
    File(PathBuf),
}

/// How much was found to be there already, and how much was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Uploaded {
    pub(super) blobs: u64,
    pub(super) bytes: u64,
}

/// The bytes that travel in one call.
const BATCH: u64 = 2 << 20;
/// The blobs that travel in one call.
const BATCH_BLOBS: usize = 1000;
/// Calls at a time.
const CALLS: usize = 4;

/// Uploads what the source lacks of these. Each digest is sent once; a file that was changed since it was hashed is refused.
/// A source that lost some of them to the others is too small, which is a failure.
pub(super) async fn upload(
    source: &dyn BlobSource,
    blobs: Vec<(Digest, Content)>,
    progress: &Progress,
) -> Result<Uploaded, Failure> {
    let digests: Vec<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
    let mut missing: HashSet<Digest> = source.find_missing(&digests).await?.into_iter().collect();
    let mut done = Uploaded::default();
    let (mut batches, mut batch, mut size, mut large) = (Vec::new(), Vec::new(), 0, Vec::new());
    let limit = source.batch_limit().min(BATCH);
    for (digest, content) in blobs {
        if !missing.remove(&digest) {
            continue;
        }
        done.blobs += 1;
        done.bytes += digest.size();
        if digest.size() > limit {
            large.push((digest, content));
            continue;
        }
        if size + digest.size() > limit || batch.len() == BATCH_BLOBS {
            batches.push(std::mem::take(&mut batch));
            size = 0;
        }
        size += digest.size();
        batch.push((digest, content));
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    progress.bytes(format!("uploading {} blobs", done.blobs), done.bytes);
    stream::iter(batches.into_iter().map(Ok::<_, Failure>))
        .try_for_each_concurrent(CALLS, |batch| send_batch(source, batch, progress))
        .await?;
    stream::iter(large.into_iter().map(Ok::<_, Failure>))
        .try_for_each_concurrent(CALLS, |(digest, content)| async move {
            match content {
                Content::Memory(bytes) => source.write_stream(digest, spool(bytes).await?).await?,
                Content::File(path) => source.write_stream(digest, open(path).await?).await?,
            }
            progress.advance(digest.size());
            Ok(())
        })
        .await?;
    // What was sent first is the first to go where there is no room.
    if done.bytes > 0 {
        let lost: HashSet<Digest> = source.find_missing(&digests).await?.into_iter().collect();
        if !lost.is_empty() {
            let all: HashSet<Digest> = digests.into_iter().collect();
            return Err(too_small(&lost, &all));
        }
    }
    Ok(done)
}

fn too_small(lost: &HashSet<Digest>, all: &HashSet<Digest>) -> Failure {
    let bytes = |digests: &HashSet<Digest>| digests.iter().map(|digest| digest.size()).sum::<u64>();
    Failure::new(
        Exit::Unavailable,
        format!(
            "the CAS is too small for what was uploaded: while it was sent, {} of {} blobs were lost ({} of {} bytes); give the CAS \
             more room (--cas-quota-high of boxwright standalone), or upload less",
            lost.len(),
            all.len(),
            bytes(lost),
            bytes(all),
        ),
    )
}

async fn send_batch(
    source: &dyn BlobSource,
    batch: Vec<(Digest, Content)>,
    progress: &Progress,
) -> Result<(), Failure> {
    let size = batch.iter().map(|(digest, _)| digest.size()).sum();
    let read = blocking(move || {
        let read = |(digest, content)| match content {
            Content::Memory(bytes) => Ok((digest, bytes)),
            Content::File(path) => read_small(digest, path),
        };
        batch
            .into_iter()
            .map(read)
            .collect::<Result<Vec<_>, Failure>>()
    });
    source.write_batch(read.await?).await?;
    progress.advance(size);
    Ok(())
}

/// A message too large for a batch, as the file that a stream is sent from.
async fn spool(bytes: Bytes) -> Result<std::fs::File, Failure> {
    blocking(move || {
        let failed = |e: std::io::Error| {
            Failure::new(Exit::Io, format!("cannot write a temporary file: {e}"))
        };
        let memory = rustix::fs::memfd_create("boxwright", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|e| failed(e.into()))?;
        let mut file = std::fs::File::from(memory);
        std::io::Write::write_all(&mut file, &bytes).map_err(failed)?;
        std::io::Seek::rewind(&mut file).map_err(failed)?;
        Ok(file)
    })
    .await
}

async fn open(path: PathBuf) -> Result<std::fs::File, Failure> {
    blocking(move || std::fs::File::open(&path).map_err(|e| unreadable(&path, &e))).await
}

fn read_small(digest: Digest, path: PathBuf) -> Result<(Digest, Bytes), Failure> {
    let file = std::fs::File::open(&path).map_err(|e| unreadable(&path, &e))?;
    let mut data = Vec::with_capacity(digest.size() as usize);
    file.take(digest.size() + 1)
        .read_to_end(&mut data)
        .map_err(|e| unreadable(&path, &e))?;
    if digest.function().digest(&data) != digest {
        return Err(Failure::new(
            Exit::NoInput,
            format!(
                "{} changed while it was uploaded; try again when nothing writes to it",
                path.display()
            ),
        ));
    }
    Ok((digest, data.into()))
}

fn unreadable(path: &std::path::Path, error: &std::io::Error) -> Failure {
    Failure::new(
        Exit::NoInput,
        format!("cannot read {}: {error}", path.display()),
    )
}

/// Disk work, off the threads that calls are made on.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(Failure::new(
            Exit::Software,
            format!("a thread failed: {e}"),
        ))
    })
}

/// One blob in memory, verified; for messages and other small things.
pub(super) async fn read(
    source: &dyn BlobSource,
    digest: Digest,
    limit: u64,
    what: &'static str,
) -> Result<Bytes, Failure> {
    if digest.size() > limit {
        return Err(CasError::TooLarge {
            digest,
            limit,
            what,
        }
        .into());
    }
    if digest.is_empty() {
        return Ok(Bytes::new());
    }
    if digest.size() <= source.batch_limit() {
        let mut found = None;
        let missing = source
            .read_batch(&[digest], &mut |_, data| found = Some(data))
            .await?;
        return match (found, missing.is_empty()) {
            (Some(data), true) => Ok(data),
            _ => Err(CasError::Missing(vec![digest]).into()),
        };
    }
    let mut data = Vec::with_capacity(digest.size().min(limit) as usize);
    let mut sink = |piece: Bytes| {
        if (data.len() + piece.len()) as u64 > digest.size() {
            return Err(CasError::TooLarge {
                digest,
                limit: digest.size(),
                what,
            });
        }
        data.extend_from_slice(&piece);
        Ok(())
    };
    source.read_stream(digest, &mut sink).await?;
    let actual = digest.function().digest(&data);
    if actual != digest {
        return Err(CasError::Corrupt {
            expected: digest,
            actual,
        }
        .into());
    }
    Ok(data.into())
}

/// A store on disk as a source of blobs.
pub(super) struct StoreOnDisk(pub(super) Arc<LocalStore>);

/// What fits into one read of a store on disk.
const WHOLE: u64 = 4 << 20;

#[async_trait]
impl BlobSource for StoreOnDisk {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, CasError> {
        Ok(self.0.missing(digests))
    }

    async fn read_batch(
        &self,
        digests: &[Digest],
        sink: &mut (dyn FnMut(Digest, Bytes) + Send),
    ) -> Result<Vec<Digest>, CasError> {
        let mut missing = Vec::new();
        for &digest in digests {
            let store = self.0.clone();
            match disk(move || store.read(digest, WHOLE)).await? {
                Some(data) => sink(digest, data),
                None => missing.push(digest),
            }
        }
        Ok(missing)
    }

    async fn read_stream(
        &self,
        digest: Digest,
        sink: &mut (dyn FnMut(Bytes) -> Result<(), CasError> + Send),
    ) -> Result<(), CasError> {
        let store = self.0.clone();
        let file = disk(move || store.open_blob(digest)).await?;
        let mut file = file.ok_or_else(|| CasError::Missing(vec![digest]))?;
        loop {
            let (back, piece) = disk(move || {
                let mut piece = Vec::with_capacity(1 << 20);
                (&mut file)
                    .take(1 << 20)
                    .read_to_end(&mut piece)
                    .map_err(|source| reading(digest, source))?;
                Ok((file, piece))
            })
            .await?;
            if piece.is_empty() {
                return Ok(());
            }
            file = back;
            sink(piece.into())?;
        }
    }

    async fn write_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Result<(), CasError> {
        let store = self.0.clone();
        disk(move || {
            blobs
                .iter()
                .try_for_each(|(digest, data)| store.put(*digest, data, false))
        })
        .await
    }

    async fn write_stream(&self, digest: Digest, mut file: std::fs::File) -> Result<(), CasError> {
        let store = self.0.clone();
        disk(move || {
            let mut writer = store.writer(digest, false)?;
            let mut piece = vec![0; 1 << 20];
            loop {
                match file
                    .read(&mut piece)
                    .map_err(|source| reading(digest, source))?
                {
                    0 => return writer.commit(),
                    read => writer.write(&piece[..read])?,
                }
            }
        })
        .await
    }

    async fn get_tree(&self, _root: Digest) -> Result<Option<Vec<(Digest, Bytes)>>, CasError> {
        Ok(None)
    }

    fn batch_limit(&self) -> u64 {
        WHOLE
    }
}

fn reading(digest: Digest, source: std::io::Error) -> CasError {
    CasError::Disk {
        action: "read",
        object: digest.to_string(),
        source,
    }
}

async fn disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CasError> + Send + 'static,
) -> Result<T, CasError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(CasError::Disk {
            action: "wait for",
            object: "a thread".to_owned(),
            source: std::io::Error::other(e),
        })
    })
}

/// An output that cannot be written.
pub(super) fn unwritable(path: &std::path::Path, error: &std::io::Error) -> Failure {
    let exit = match of_disk(error) {
        Exit::Io => Exit::CannotCreate,
        other => other,
    };
    Failure::new(exit, format!("cannot write {}: {error}", path.display()))
}
