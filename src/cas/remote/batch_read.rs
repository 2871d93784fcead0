//! BatchReadBlobs: small blobs, many in a call, each verified before anybody sees it.
//!
//! A blob that fails alone is asked for again alone. One whose bytes are wrong, or that the answer
//! leaves out, gets one more chance (another replica behind the same name may have it right).

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tonic::{Code, Status};

use super::retry::{Retry, is_transient};
use super::{CONCURRENT_CALLS, Load, RemoteCas, cas_client, stream_read, zstd};
use crate::cas::CasError;
use crate::cas::pack::pack;
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

const CALL: &str = "BatchReadBlobs";

/// Answers above this size are verified on a blocking thread: hashing them holds a core for longer
/// than handing them over costs.
const VERIFIED_IN_PLACE: u64 = 64 << 10;

/// Blobs that are asked for in one call, and how often they were before.
struct Batch {
    digests: Vec<Digest>,
    retry: Retry,
    /// Some of them came wrong or not at all: not a third time.
    second_chance: bool,
    pause: std::time::Duration,
}

/// What became of the blobs of one call.
#[derive(Default)]
struct Outcome {
    got: Vec<(Digest, Bytes)>,
    missing: Vec<Digest>,
    /// Failed in a way that may pass, with the last failure.
    transient: Vec<(Digest, Status)>,
    /// Came with the wrong bytes, or not at all.
    wrong: Vec<(Digest, Wrong)>,
}

enum Wrong {
    Corrupt(Digest),
    Unreadable(Status),
}

/// See [`crate::cas::BlobSource::read_batch`].
pub(super) async fn read_batch(
    cas: &RemoteCas,
    digests: &[Digest],
    sink: &mut (dyn FnMut(Digest, Bytes) + Send),
) -> Result<Vec<Digest>, CasError> {
    let mut seen = HashSet::with_capacity(digests.len());
    let mut small = Vec::with_capacity(digests.len());
    let mut large = Vec::new();
    let mut missing = Vec::new();
    if digests.is_empty() {
        return Ok(missing);
    }
    let limits = cas.limits().await?;
    cas.check_functions(CALL, &limits, digests.iter().copied())?;
    for digest in digests.iter().copied().filter(|d| seen.insert(*d)) {
        if digest == Digest::empty(digest.function()) {
            sink(digest, Bytes::new());
        } else if digest.size() > limits.largest_in_batch() {
            large.push(digest);
        } else {
            small.push(digest);
        }
    }
    let mut waiting: VecDeque<Batch> = pack(small, limits.batch, |d| *d)
        .into_iter()
        .map(|digests| Batch {
            digests,
            retry: cas.retry(),
            second_chance: false,
            pause: std::time::Duration::ZERO,
        })
        .collect();
    let zstd = limits.zstd && cas.inner.compress;
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() < CONCURRENT_CALLS
            && let Some(batch) = waiting.pop_front()
        {
            under_way.push(one_call(cas, batch, zstd));
        }
        let Some(answer) = under_way.next().await else {
            break;
        };
        let (batch, outcome) = answer?;
        for (digest, bytes) in outcome.got {
            sink(digest, bytes);
        }
        missing.extend(outcome.missing);
        if let Some((digest, status)) = outcome.transient.first() {
            let mut retry = batch.retry.clone();
            let Some(pause) = retry.next(status) else {
                return Err(cas.error(CALL, naming(*digest, status)));
            };
            waiting.push_back(Batch {
                digests: outcome.transient.iter().map(|(d, _)| *d).collect(),
                retry,
                second_chance: batch.second_chance,
                pause,
            });
        }
        match outcome.wrong.first() {
            None => {}
            Some(_) if !batch.second_chance => waiting.push_back(Batch {
                digests: outcome.wrong.iter().map(|(d, _)| *d).collect(),
                retry: batch.retry,
                second_chance: true,
                pause: std::time::Duration::ZERO,
            }),
            Some((expected, Wrong::Corrupt(actual))) => {
                return Err(CasError::Corrupt {
                    expected: *expected,
                    actual: *actual,
                });
            }
            Some((digest, Wrong::Unreadable(status))) => {
                return Err(cas.error(CALL, naming(*digest, status)));
            }
        }
    }
    // The caller's idea of what is small may be older than the server's.
    for digest in large {
        match stream_read::read_whole(cas, digest).await {
            Ok(bytes) => sink(digest, bytes),
            Err(CasError::Missing(_)) => missing.push(digest),
            Err(error) => return Err(error),
        }
    }
    Ok(missing)
}

fn naming(digest: Digest, status: &Status) -> Status {
    Status::new(
        status.code(),
        format!("blob {digest}: {}", status.message()),
    )
}

async fn one_call(cas: &RemoteCas, batch: Batch, zstd: bool) -> Result<(Batch, Outcome), CasError> {
    if !batch.pause.is_zero() {
        tokio::time::sleep(batch.pause).await;
    }
    let function = batch
        .digests
        .first()
        .map_or_else(DigestFunction::default, |d| d.function());
    let message = re::BatchReadBlobsRequest {
        instance_name: cas.inner.config.instance.clone(),
        digests: batch.digests.iter().map(|d| d.to_proto()).collect(),
        // Unpacked bytes are always acceptable and need no mention.
        acceptable_compressors: match zstd {
            true => vec![re::compressor::Value::Zstd as i32],
            false => Vec::new(),
        },
        digest_function: function.to_proto() as i32,
    };
    let size: u64 = batch.digests.iter().map(|d| d.size()).sum();
    let load = match size {
        0..=VERIFIED_IN_PLACE => Load::Light,
        _ => Load::Down,
    };
    let answer = cas
        .unary(CALL, load, |line| {
            let request = cas.unary_request(message.clone());
            async move { cas_client(line).batch_read_blobs(request).await }
        })
        .await?;
    let asked = batch.digests.clone();
    let sorted = if size <= VERIFIED_IN_PLACE {
        sort(function, &asked, answer, zstd)
    } else {
        tokio::task::spawn_blocking(move || sort(function, &asked, answer, zstd))
            .await
            .unwrap_or_else(|e| Err(Status::internal(format!("verifying the answer: {e}"))))
    };
    let outcome = sorted.map_err(|status| cas.error(CALL, status))?;
    Ok((batch, outcome))
}

/// Verifies an answer and says what became of each blob that was asked for. Fails if the answer as a whole makes no sense.
fn sort(
    function: DigestFunction,
    asked: &[Digest],
    answer: re::BatchReadBlobsResponse,
    zstd: bool,
) -> Result<Outcome, Status> {
    let mut open: HashSet<Digest> = asked.iter().copied().collect();
    let mut outcome = Outcome {
        got: Vec::with_capacity(asked.len()),
        ..Outcome::default()
    };
    for response in answer.responses {
        let digest = Digest::from_proto(function, response.digest.as_ref())
            .map_err(|e| Status::data_loss(format!("malformed answer: {e}")))?;
        if !open.remove(&digest) {
            return Err(Status::data_loss(format!(
                "the answer holds blob {digest}, which was not asked for, or twice"
            )));
        }
        let status = response.status.unwrap_or_default();
        match Code::from_i32(status.code) {
            Code::Ok => match unpack(digest, response.data, response.compressor, zstd) {
                Ok(bytes) => outcome.got.push((digest, bytes)),
                Err(wrong) => outcome.wrong.push((digest, wrong)),
            },
            Code::NotFound => outcome.missing.push(digest),
            code => {
                let status = Status::new(code, status.message);
                if !is_transient(&status) {
                    return Err(naming(digest, &status));
                }
                outcome.transient.push((digest, status));
            }
        }
    }
    for digest in asked.iter().filter(|d| open.contains(d)) {
        let why = Status::data_loss("the answer leaves it out");
        outcome.wrong.push((*digest, Wrong::Unreadable(why)));
    }
    Ok(outcome)
}

fn unpack(digest: Digest, data: Bytes, compressor: i32, zstd: bool) -> Result<Bytes, Wrong> {
    let data = match re::compressor::Value::try_from(compressor) {
        Ok(re::compressor::Value::Identity) => data,
        Ok(re::compressor::Value::Zstd) if zstd => zstd::unpack(&data, digest.size())
            .map_err(|e| Wrong::Unreadable(Status::data_loss(e.to_string())))?,
        _ => {
            let why = format!("it came with compressor {compressor}, which was not offered");
            return Err(Wrong::Unreadable(Status::data_loss(why)));
        }
    };
    let actual = digest.function().digest(&data);
    match actual == digest {
        true => Ok(data),
        false => Err(Wrong::Corrupt(actual)),
    }
}
