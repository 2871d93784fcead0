//! What travels beside the messages: a reply's trailers tell what the server knows of each lease,
//! a request's headers tell who asks and how far each running action has come.

use prost::Message;
use tonic::metadata::{Binary, BinaryMetadataValue, MetadataKey, MetadataMap};

use crate::reapi::proto::re;

const TRAILER: &str = "executeoperationmetadata-bin";
const REQUEST_METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";
/// All progress headers of one update, in bytes as HTTP/2 counts them. gRPC's C core refuses some
/// of the requests whose headers are over 8 KiB, and all over 16 KiB.
const PROGRESS_LIMIT: usize = 4096;
/// A worker's name longer than this is left out of progress.
const NAME_LIMIT: usize = 256;

/// What a trailer says of a lease.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct About {
    pub(super) action_digest: Option<re::Digest>,
    pub(super) digest_function: i32,
    pub(super) stdout_stream: String,
    pub(super) stderr_stream: String,
    pub(super) metadata: re::ExecutedActionMetadata,
}

/// The trailers of a reply with `leases` leases, one for each.
///
/// A trailer holds no lease id: they match by position alone. If there is not exactly one for each
/// lease (CreateBotSession sends none), nobody knows which is whose, and nothing is told of any.
pub(super) fn about(metadata: &MetadataMap, leases: usize) -> Vec<About> {
    let trailers: Vec<_> = metadata.get_all_bin(TRAILER).iter().collect();
    if trailers.len() != leases {
        if !trailers.is_empty() {
            tracing::warn!(
                leases,
                trailers = trailers.len(),
                "the scheduler's trailers do not match its leases; they are not used"
            );
        }
        return vec![About::default(); leases];
    }
    trailers.into_iter().map(one).collect()
}

fn one(trailer: &BinaryMetadataValue) -> About {
    let decoded = trailer
        .to_bytes()
        .map_err(|error| error.to_string())
        .and_then(|bytes| {
            re::ExecuteOperationMetadata::decode(bytes).map_err(|error| error.to_string())
        });
    match decoded {
        Ok(metadata) => About {
            action_digest: metadata.action_digest,
            digest_function: metadata.digest_function,
            stdout_stream: metadata.stdout_stream_name,
            stderr_stream: metadata.stderr_stream_name,
            metadata: metadata.partial_execution_metadata.unwrap_or_default(),
        },
        Err(error) => {
            tracing::warn!(%error, "a trailer of the scheduler's cannot be read");
            About::default()
        }
    }
}

/// Says who asks.
pub(super) fn add_identity(headers: &mut MetadataMap, bot_id: &str) {
    let metadata = re::RequestMetadata {
        tool_details: Some(re::ToolDetails {
            tool_name: "boxwright".to_owned(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        }),
        correlated_invocations_id: bot_id.to_owned(),
        ..Default::default()
    };
    headers.insert_bin(
        REQUEST_METADATA,
        BinaryMetadataValue::from_bytes(&metadata.encode_to_vec()),
    );
}

/// Says how far these leases have come, in this order, as long as the headers stay small.
pub(super) fn add_progress<'a>(
    headers: &mut MetadataMap,
    leases: impl Iterator<Item = (&'a str, &'a re::ExecutedActionMetadata)>,
) {
    let mut size = 0;
    for (id, metadata) in leases {
        let Some(key) = progress_key(id) else {
            continue;
        };
        let mut metadata = re::ExecutedActionMetadata {
            // Of unknown size, and of no use to someone who waits.
            auxiliary_metadata: Vec::new(),
            ..metadata.clone()
        };
        if metadata.worker.len() > NAME_LIMIT {
            metadata.worker.clear();
        }
        let value = metadata.encode_to_vec();
        size += key.as_str().len() + value.len().div_ceil(3) * 4 + 32;
        if size > PROGRESS_LIMIT {
            return;
        }
        headers.insert_bin(key, BinaryMetadataValue::from_bytes(&value));
    }
}

/// The header for a lease: only what follows the last slash of its id counts. `None` if that cannot
/// be part of a header's name.
fn progress_key(id: &str) -> Option<MetadataKey<Binary>> {
    let job = id
        .rsplit('/')
        .next()
        .filter(|job| (1..=128).contains(&job.len()))?;
    MetadataKey::from_bytes(format!("partial-execution-metadata-{job}-bin").as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trailer(stdout: &str) -> BinaryMetadataValue {
        let metadata = re::ExecuteOperationMetadata {
            stdout_stream_name: stdout.into(),
            ..Default::default()
        };
        BinaryMetadataValue::from_bytes(&metadata.encode_to_vec())
    }

    #[test]
    fn trailers_match_by_position_or_not_at_all() {
        let mut map = MetadataMap::new();
        map.append_bin(TRAILER, trailer("one"));
        map.append_bin(TRAILER, trailer("two"));
        let names: Vec<_> = about(&map, 2)
            .into_iter()
            .map(|a| a.stdout_stream)
            .collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(about(&map, 3), vec![About::default(); 3]);
        map.append_bin(TRAILER, BinaryMetadataValue::from_bytes(&[0xff]));
        assert_eq!(about(&map, 3)[2], About::default());
    }

    #[test]
    fn progress_goes_under_the_job_s_name() {
        let mut map = MetadataMap::new();
        let metadata = re::ExecutedActionMetadata {
            worker: "w".into(),
            auxiliary_metadata: vec![prost_types::Any::default(); 1000],
            ..Default::default()
        };
        let ids = ["a/b/job-1", "/job-2", "job-3", "x/", "x/ä y"];
        add_progress(&mut map, ids.iter().map(|id| (*id, &metadata)));
        assert_eq!(map.len(), 3);
        for job in ["job-1", "job-2", "job-3"] {
            let value = map.get_bin(format!("partial-execution-metadata-{job}-bin"));
            let value = value.unwrap().to_bytes().unwrap();
            assert_eq!(
                re::ExecutedActionMetadata::decode(value).unwrap().worker,
                "w"
            );
        }
    }

    #[test]
    fn headers_stay_small_with_many_leases() {
        let mut map = MetadataMap::new();
        let ids: Vec<_> = (0..1000).map(|n| format!("main/{n:036}")).collect();
        let metadata = re::ExecutedActionMetadata::default();
        add_progress(&mut map, ids.iter().map(|id| (id.as_str(), &metadata)));
        assert!((10..50).contains(&map.len()), "{}", map.len());
    }
}
