//! FindMissingBlobs, in calls of a bounded size, with an answer that is checked.

use std::collections::HashSet;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tonic::Status;

use super::{CONCURRENT_CALLS, Load, RemoteCas, cas_client};
use crate::cas::CasError;
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

const CALL: &str = "FindMissingBlobs";

/// Digests of one call; some 75 bytes each, so that a call stays below a megabyte.
const DIGESTS_PER_CALL: usize = 10_000;

/// Those of `digests` that the remote lacks, each once, in the order given.
pub(super) async fn find_missing(
    cas: &RemoteCas,
    digests: &[Digest],
) -> Result<Vec<Digest>, CasError> {
    if digests.is_empty() {
        return Ok(Vec::new());
    }
    let limits = cas.limits().await?;
    cas.check_functions(CALL, &limits, digests.iter().copied())?;
    let mut calls = DigestFunction::ALL
        .into_iter()
        .flat_map(|function| {
            let mut seen = HashSet::new();
            let asked: Vec<Digest> = digests
                .iter()
                .copied()
                .filter(|d| d.function() == function && seen.insert(*d))
                .collect();
            asked
                .chunks(DIGESTS_PER_CALL)
                .map(<[Digest]>::to_vec)
                .collect::<Vec<_>>()
        })
        .map(|asked| one_call(cas, asked));
    let mut under_way: FuturesUnordered<_> = calls.by_ref().take(CONCURRENT_CALLS).collect();
    let mut missing = HashSet::new();
    while let Some(answer) = under_way.next().await {
        missing.extend(answer?);
        under_way.extend(calls.next());
    }
    // Taken out as they are found, so that a digest that was given twice is returned once.
    Ok(digests
        .iter()
        .copied()
        .filter(|digest| missing.remove(digest))
        .collect())
}

async fn one_call(cas: &RemoteCas, asked: Vec<Digest>) -> Result<Vec<Digest>, CasError> {
    let function = asked
        .first()
        .map_or_else(DigestFunction::default, |d| d.function());
    let message = re::FindMissingBlobsRequest {
        instance_name: cas.inner.config.instance.clone(),
        blob_digests: asked.iter().map(|d| d.to_proto()).collect(),
        digest_function: function.to_proto() as i32,
    };
    let answer = cas
        .unary(CALL, Load::Light, |line| {
            let request = cas.unary_request(message.clone());
            async move { cas_client(line).find_missing_blobs(request).await }
        })
        .await?;
    let asked: HashSet<Digest> = asked.into_iter().collect();
    answer
        .missing_blob_digests
        .iter()
        .map(|digest| {
            let digest = Digest::from_proto(function, Some(digest)).map_err(|e| {
                cas.error(CALL, Status::data_loss(format!("malformed answer: {e}")))
            })?;
            if !asked.contains(&digest) {
                let why = format!("the answer names blob {digest}, which was not asked for");
                return Err(cas.error(CALL, Status::data_loss(why)));
            }
            Ok(digest)
        })
        .collect()
}
