//! ByteStream.Read: one blob of any size, in order, chunk by chunk, resumed where it broke.
//!
//! A try that moved the blob on by a good piece gives all tries back, so that a 4 GiB blob survives
//! many broken connections, while a server that breaks every stream at once is given up on. The offset counts
//! bytes of the blob, also where zstd travels.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tonic::{Code, Status};

use super::retry::is_transient;
use super::zstd::{UnpackError, Unpacker};
use super::{Load, RemoteCas, stream_client};
use crate::cas::CasError;
use crate::reapi::Digest;
use crate::reapi::proto::bytestream::ReadRequest;
use crate::reapi::resource::{BlobName, Compressor};

const CALL: &str = "ByteStream.Read";

/// A try that gets this far counts as progress.
const PROGRESS: u64 = 64 << 10;

type Sink<'a> = &'a mut (dyn FnMut(Bytes) -> Result<(), CasError> + Send);

/// How a try failed.
enum Failure {
    /// As the status says.
    Call(Status),
    /// The stream ended well but early, or its zstd data is damaged: worth another try.
    Damaged(Status),
    /// No other try can help.
    Final(CasError),
}

/// See [`crate::cas::BlobSource::read_stream`].
pub(super) async fn read_stream(
    cas: &RemoteCas,
    digest: Digest,
    sink: Sink<'_>,
) -> Result<(), CasError> {
    if digest == Digest::empty(digest.function()) {
        return Ok(());
    }
    let limits = cas.limits().await?;
    cas.check_functions(CALL, &limits, std::iter::once(digest))?;
    let mut compressor = match limits.zstd && cas.inner.compress {
        true => Compressor::Zstd,
        false => Compressor::Identity,
    };
    let mut offset = 0;
    let mut retry = cas.retry();
    loop {
        let before = offset;
        let failure = match one_try(cas, digest, compressor, &mut offset, sink).await {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        if offset - before >= PROGRESS {
            retry.progressed();
        }
        let plain = compressor == Compressor::Identity;
        let (status, again) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Call(status) if plain && status.code() == Code::NotFound => {
                return Err(CasError::Missing(vec![digest]));
            }
            Failure::Call(status) => {
                cas.note(&status);
                let again = is_transient(&status);
                (status, again)
            }
            Failure::Damaged(status) => {
                // Whoever packs it badly may still have it as it is.
                compressor = Compressor::Identity;
                (status, true)
            }
        };
        let pause = if again {
            retry.next(&status)
        } else if compressor == Compressor::Zstd {
            // Not every server that announces zstd has it for every blob or at every offset.
            compressor = Compressor::Identity;
            Some(Duration::ZERO)
        } else {
            None
        };
        let Some(pause) = pause else {
            let message = format!("blob {digest}, after {offset} bytes: {}", status.message());
            return Err(cas.error(CALL, Status::new(status.code(), message)));
        };
        tracing::debug!(%digest, offset, remote = %cas.inner.name, %status, ?pause, "resuming");
        tokio::time::sleep(pause).await;
    }
}

/// Reads from `offset` to the end; `offset` says how much reached the sink.
async fn one_try(
    cas: &RemoteCas,
    digest: Digest,
    compressor: Compressor,
    offset: &mut u64,
    sink: Sink<'_>,
) -> Result<(), Failure> {
    let message = ReadRequest {
        resource_name: BlobName {
            instance: cas.inner.config.instance.clone(),
            digest,
            compressor,
            upload: None,
        }
        .render(),
        read_offset: i64::try_from(*offset).unwrap_or(i64::MAX),
        read_limit: 0,
    };
    let size = digest.size();
    let mut unpacker = match compressor {
        Compressor::Identity => None,
        Compressor::Zstd => Some(
            Unpacker::new(size - *offset)
                .map_err(|e| Failure::Damaged(Status::data_loss(e.to_string())))?,
        ),
    };
    let loan = cas.inner.channels.borrow(Load::Down);
    let mut client = stream_client(loan.line.clone());
    let mut stream = cas
        .in_time("no answer", client.read(cas.request(message)))
        .await
        .map_err(Failure::Call)?
        .into_inner();
    let too_many = || {
        let why = format!("more than the {size} bytes of blob {digest} came");
        Failure::Final(cas.error(CALL, Status::data_loss(why)))
    };
    loop {
        // Empty messages are no progress: the deadline runs from the last byte.
        let next = cas
            .in_time("no data came", async {
                loop {
                    match stream.message().await {
                        Ok(Some(chunk)) if chunk.data.is_empty() => {}
                        other => return other,
                    }
                }
            })
            .await;
        let data = match next {
            Ok(Some(chunk)) => chunk.data,
            // With all bytes here, how the stream ended is of no interest.
            Ok(None) | Err(_) if *offset == size => return Ok(()),
            Ok(None) => {
                let why = format!("the stream ended {} bytes early", size - *offset);
                return Err(Failure::Damaged(Status::data_loss(why)));
            }
            Err(status) => return Err(Failure::Call(status)),
        };
        let left = size - *offset;
        let mut pass = |bytes: Bytes| {
            *offset += bytes.len() as u64;
            sink(bytes).map_err(Failure::Final)
        };
        match &mut unpacker {
            None if data.len() as u64 > left => return Err(too_many()),
            None => pass(data)?,
            Some(unpacker) => match unpacker.feed::<Packed>(&data, |b| Ok(pass(b)?)) {
                Ok(()) => {}
                Err(Packed::Unpack(UnpackError::TooMany(_))) => return Err(too_many()),
                Err(Packed::Unpack(error)) => {
                    return Err(Failure::Damaged(Status::data_loss(error.to_string())));
                }
                Err(Packed::Sink(failure)) => return Err(failure),
            },
        }
    }
}

enum Packed {
    Unpack(UnpackError),
    Sink(Failure),
}

impl From<UnpackError> for Packed {
    fn from(error: UnpackError) -> Self {
        Packed::Unpack(error)
    }
}

impl From<Failure> for Packed {
    fn from(failure: Failure) -> Self {
        Packed::Sink(failure)
    }
}

/// A blob that fits in memory, whole and verified; tried once more if its bytes are wrong.
pub(super) async fn read_whole(cas: &RemoteCas, digest: Digest) -> Result<Bytes, CasError> {
    let mut second_chance = true;
    loop {
        let mut whole = BytesMut::new();
        read_stream(cas, digest, &mut |chunk| {
            whole.extend_from_slice(&chunk);
            Ok(())
        })
        .await?;
        let actual = digest.function().digest(&whole);
        if actual == digest {
            return Ok(whole.freeze());
        }
        if !std::mem::take(&mut second_chance) {
            return Err(CasError::Corrupt {
                expected: digest,
                actual,
            });
        }
    }
}
