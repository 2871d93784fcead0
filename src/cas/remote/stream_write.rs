//! ByteStream.Write: one blob of any size, out of a file or memory, resumed where it broke.
//!
//! A blocking thread reads (and packs) chunk after chunk, a few ahead of the wire. After a broken stream
//! QueryWriteStatus says how much arrived; if the server does not know, the upload starts over under a new
//! name. REAPI: the first `write_offset` of a packed upload "refers to the offset in the uncompressed form of the blob". So it is
//! resumed with a new frame of the bytes that the server does not have. With a server that counts otherwise the blob does not come
//! out right there; it refuses, and the blob is sent plain.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::retry::is_transient;
use super::{Load, RemoteCas, stream_client, zstd};
use crate::cas::CasError;
use crate::reapi::Digest;
use crate::reapi::proto::bytestream::{QueryWriteStatusRequest, WriteRequest};
use crate::reapi::resource::{BlobName, Compressor};

const CALL: &str = "ByteStream.Write";

/// Bytes of one message.
const CHUNK: usize = 256 << 10;
/// Messages that wait for the wire.
const AHEAD: usize = 2;
/// A try that gets this far counts as progress.
const PROGRESS: u64 = 64 << 10;

/// Where the bytes come from.
#[derive(Clone)]
pub(super) enum Origin {
    /// A file, read from its first byte whatever its cursor says.
    File(Arc<std::fs::File>),
    /// Memory.
    Memory(Bytes),
}

impl Origin {
    /// Exactly `length` bytes from `offset` on.
    fn read(&self, digest: Digest, offset: u64, length: usize) -> Result<Bytes, CasError> {
        match self {
            Origin::Memory(bytes) => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                Ok(bytes.slice(start..bytes.len().min(start.saturating_add(length))))
            }
            Origin::File(file) => {
                let mut chunk = vec![0; length];
                file.read_exact_at(&mut chunk, offset)
                    .map_err(|source| CasError::Disk {
                        action: "read",
                        object: format!("blob {digest} for its upload"),
                        source,
                    })?;
                Ok(chunk.into())
            }
        }
    }
}

/// One upload: what the tries have in common.
struct Upload<'a> {
    cas: &'a RemoteCas,
    digest: Digest,
    origin: Origin,
    compressor: Compressor,
    name: String,
}

/// What the server knows of an upload.
enum Known {
    All,
    UpTo(u64),
    Nothing,
}

/// See [`crate::cas::BlobSource::write_stream`].
pub(super) async fn write_stream(
    cas: &RemoteCas,
    digest: Digest,
    origin: Origin,
) -> Result<(), CasError> {
    let limits = cas.limits().await?;
    limits
        .check_write(digest)
        .map_err(|status| cas.error(CALL, status))?;
    let compressor = match limits.zstd && cas.inner.compress {
        true => worth_packing(digest, origin.clone()).await?,
        false => Compressor::Identity,
    };
    let mut upload = Upload {
        cas,
        digest,
        origin,
        compressor,
        name: String::new(),
    };
    upload.rename();
    let mut from = 0;
    let mut best = 0;
    let mut retry = cas.retry();
    loop {
        let (status, known) = match upload.one_try(from).await? {
            Ok(committed) => match upload.judge(committed) {
                Known::All => return Ok(()),
                Known::UpTo(offset) => {
                    let why = format!("the server took {offset} bytes only");
                    (Status::data_loss(why), Known::UpTo(offset))
                }
                Known::Nothing => {
                    let why = format!("the server says that it took {committed} bytes");
                    return Err(upload.error(Status::data_loss(why)));
                }
            },
            // Somebody else was faster.
            Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
            Err(status) => {
                cas.note(&status);
                if !is_transient(&status) {
                    if upload.compressor == Compressor::Identity {
                        return Err(upload.error(status));
                    }
                    // Not every server that announces zstd takes it here.
                    upload.compressor = Compressor::Identity;
                    upload.rename();
                    from = 0;
                    continue;
                }
                (status, Known::Nothing)
            }
        };
        let Some(pause) = retry.next(&status) else {
            return Err(upload.error(status));
        };
        tracing::debug!(%digest, from, remote = %cas.inner.name, %status, ?pause, "resuming");
        tokio::time::sleep(pause).await;
        let known = match known {
            Known::Nothing => upload.query().await,
            known => known,
        };
        from = match known {
            Known::All => return Ok(()),
            Known::UpTo(offset) => offset,
            Known::Nothing => {
                upload.rename();
                0
            }
        };
        if from >= best + PROGRESS {
            best = from;
            retry.progressed();
        }
    }
}

/// Packs the first piece to see whether the blob shrinks: most large blobs of a build are either
/// object code, which does, or archives, which do not.
async fn worth_packing(digest: Digest, origin: Origin) -> Result<Compressor, CasError> {
    if digest.size() < zstd::WORTH_FROM {
        return Ok(Compressor::Identity);
    }
    blocking(move || {
        let sample = digest.size().min(CHUNK as u64) as usize;
        let sample = origin.read(digest, 0, sample)?;
        Ok(match zstd::pack(&sample) {
            Some(_) => Compressor::Zstd,
            None => Compressor::Identity,
        })
    })
    .await
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, CasError> + Send + 'static,
) -> Result<T, CasError> {
    tokio::task::spawn_blocking(job).await.unwrap_or_else(|e| {
        Err(CasError::Disk {
            action: "read",
            object: "a blob for its upload".to_owned(),
            source: std::io::Error::other(e),
        })
    })
}

impl Upload<'_> {
    /// Starts over as far as the server can tell.
    fn rename(&mut self) {
        self.name = BlobName {
            instance: self.cas.inner.config.instance.clone(),
            digest: self.digest,
            compressor: self.compressor,
            upload: Some(uuid::Uuid::new_v4().to_string()),
        }
        .render();
    }

    fn error(&self, status: Status) -> CasError {
        let message = format!("blob {}: {}", self.digest, status.message());
        self.cas.error(CALL, Status::new(status.code(), message))
    }

    /// What a committed size at the end of a call means. `Nothing` is an impossible size.
    fn judge(&self, committed: i64) -> Known {
        let size = self.digest.size();
        match (self.compressor, u64::try_from(committed)) {
            (_, Ok(committed)) if committed == size => Known::All,
            // -1 is the answer to a packed upload of a blob that is there already. Other positive sizes count packed bytes, which only the
            // server's own verification can judge: it answers OK for whole blobs only.
            (Compressor::Zstd, Err(_)) if committed == -1 => Known::All,
            (Compressor::Zstd, Ok(1..)) => Known::All,
            (_, Ok(committed)) if committed < size => Known::UpTo(committed),
            _ => Known::Nothing,
        }
    }

    /// Asks how much arrived. A server that cannot say is told everything again.
    async fn query(&self) -> Known {
        let message = QueryWriteStatusRequest {
            resource_name: self.name.clone(),
        };
        let loan = self.cas.inner.channels.borrow(Load::Light);
        let mut client = stream_client(loan.line.clone());
        let request = self.cas.unary_request(message);
        let answer = self
            .cas
            .in_time("no answer", client.query_write_status(request))
            .await;
        let Ok(answer) = answer else {
            return Known::Nothing;
        };
        let answer = answer.into_inner();
        if answer.complete {
            return Known::All;
        }
        match u64::try_from(answer.committed_size) {
            Ok(offset @ 1..) if offset <= self.digest.size() => Known::UpTo(offset),
            _ => Known::Nothing,
        }
    }

    /// Sends everything from byte `from` of the blob on; the committed size, or how the call failed. The outer
    /// error is a local one.
    async fn one_try(&self, from: u64) -> Result<Result<i64, Status>, CasError> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let producer = tokio::task::spawn_blocking({
            let (origin, digest, name) = (self.origin.clone(), self.digest, self.name.clone());
            let compressor = self.compressor;
            move || {
                let mut wire = Wire {
                    sender,
                    name,
                    offset: from,
                };
                match compressor {
                    Compressor::Identity => send_plain(&origin, digest, from, &mut wire),
                    Compressor::Zstd => send_packed(&origin, digest, from, &mut wire),
                }
            }
        });
        // Shared, to be closed from here: a call that is given up may keep its body for as long as its
        // connection lives, and the producer would wait for room in it.
        let receiver = Arc::new(Mutex::new(receiver));
        let moved = Arc::new(AtomicU64::new(0));
        let chunks = futures::stream::poll_fn({
            let (receiver, moved) = (receiver.clone(), moved.clone());
            move |context| {
                moved.fetch_add(1, Ordering::Relaxed);
                receiver.lock().poll_recv(context)
            }
        });
        let result = {
            let loan = self.cas.inner.channels.borrow(Load::Up);
            let mut client = stream_client(loan.line.clone());
            let call = client.write(self.cas.request(chunks));
            tokio::pin!(call);
            let patience = self.cas.inner.config.call_timeout;
            let mut seen = 0;
            loop {
                tokio::select! {
                    answer = &mut call => break answer.map(|a| a.into_inner().committed_size),
                    () = tokio::time::sleep(patience) => {
                        let now = moved.load(Ordering::Relaxed);
                        if std::mem::replace(&mut seen, now) == now {
                            break Err(Status::deadline_exceeded(format!(
                                "the stream did not move within {} ms",
                                patience.as_millis()
                            )));
                        }
                    }
                }
            }
        };
        receiver.lock().close();
        let local = producer.await.unwrap_or_else(|panicked| {
            Err(CasError::Disk {
                action: "read",
                object: format!("blob {} for its upload", self.digest),
                source: std::io::Error::other(panicked),
            })
        });
        match (&result, local) {
            (Ok(committed), _) if matches!(self.judge(*committed), Known::All) => {}
            (_, Err(local)) => return Err(local),
            (_, Ok(())) => {}
        }
        Ok(result)
    }
}

/// The sending end of a stream.
struct Wire {
    sender: mpsc::Sender<WriteRequest>,
    name: String,
    offset: u64,
}

impl Wire {
    /// Sends one message; `false` once nobody listens any more.
    fn send(&mut self, data: Bytes, finish_write: bool) -> bool {
        let length = data.len() as u64;
        let message = WriteRequest {
            // ByteStream wants it in the first message only.
            resource_name: std::mem::take(&mut self.name),
            write_offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
            finish_write,
            data,
        };
        self.offset += length;
        self.sender.blocking_send(message).is_ok()
    }
}

fn send_plain(origin: &Origin, digest: Digest, from: u64, wire: &mut Wire) -> Result<(), CasError> {
    let mut offset = from;
    loop {
        let length = (digest.size() - offset).min(CHUNK as u64) as usize;
        let chunk = origin.read(digest, offset, length)?;
        offset += length as u64;
        let last = offset == digest.size();
        if !wire.send(chunk, last) || last {
            return Ok(());
        }
    }
}

fn send_packed(
    origin: &Origin,
    digest: Digest,
    from: u64,
    wire: &mut Wire,
) -> Result<(), CasError> {
    use std::io::Write;
    let failed = |source| CasError::Disk {
        action: "compress",
        object: format!("blob {digest}"),
        source,
    };
    let mut encoder =
        ::zstd::stream::write::Encoder::new(Vec::new(), zstd::LEVEL).map_err(failed)?;
    let mut offset = from;
    while offset < digest.size() {
        let length = (digest.size() - offset).min(CHUNK as u64) as usize;
        let chunk = origin.read(digest, offset, length)?;
        offset += length as u64;
        encoder.write_all(&chunk).map_err(failed)?;
        if encoder.get_ref().len() >= CHUNK / 2 {
            let ready = std::mem::take(encoder.get_mut());
            if !wire.send(ready.into(), false) {
                return Ok(());
            }
        }
    }
    let rest = encoder.finish().map_err(failed)?;
    wire.send(rest.into(), true);
    Ok(())
}
