//! What every call checks before it does anything, and how failures of the store are told.

use tonic::{Code, Status};

use crate::cas::CasError;
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction, codec};

/// REAPI: an instance name has none of these words as a segment.
const RESERVED: [&str; 7] = [
    "blobs",
    "uploads",
    "actions",
    "actionResults",
    "operations",
    "capabilities",
    "compressed-blobs",
];
const MAX_INSTANCE: usize = 1024;

/// Every well-formed instance name means the one store that there is.
pub(super) fn instance(name: &str) -> Result<(), Status> {
    let problem = if name.len() > MAX_INSTANCE {
        "is too long".to_owned()
    } else if name.chars().any(char::is_control) {
        "has control characters".to_owned()
    } else if let Some(word) = name.split('/').find(|segment| RESERVED.contains(segment)) {
        format!("has the reserved segment {word:?}")
    } else {
        return Ok(());
    };
    Err(Status::invalid_argument(format!(
        "instance_name: the name {problem}"
    )))
}

/// The function that a request's digests are of.
pub(super) fn function(value: i32) -> Result<DigestFunction, Status> {
    DigestFunction::from_proto(value)
        .map_err(|error| Status::invalid_argument(format!("digest_function: {error}")))
}

/// A digest of a request; `field` names it in the error.
pub(super) fn digest(
    field: &str,
    function: DigestFunction,
    digest: Option<&re::Digest>,
) -> Result<Digest, Status> {
    Digest::from_proto(function, digest)
        .map_err(|error| Status::invalid_argument(format!("{field}: {error}")))
}

/// All digests of a repeated field.
pub(super) fn digests(
    field: &str,
    function: DigestFunction,
    digests: &[re::Digest],
) -> Result<Vec<Digest>, Status> {
    digests
        .iter()
        .enumerate()
        .map(|(i, one)| {
            Digest::from_proto(function, Some(one))
                .map_err(|error| Status::invalid_argument(format!("{field}[{i}]: {error}")))
        })
        .collect()
}

/// The code of a failure of the store.
pub(super) fn code(error: &CasError) -> Code {
    match error {
        CasError::Missing(_) => Code::NotFound,
        CasError::Corrupt { .. } | CasError::TooLarge { .. } => Code::InvalidArgument,
        CasError::Full { .. } => Code::ResourceExhausted,
        CasError::Disk { .. } => Code::Internal,
        CasError::Remote { status, .. } => status.code(),
    }
}

/// A failure of the store as the end of a call.
pub(super) fn failed(error: CasError) -> Status {
    Status::new(code(&error), error.to_string())
}

/// An answer that says that the request could not be read says whose fault it is: the codec, which reads the answers of others too,
/// calls it internal.
pub(super) fn malformed<R>(mut answer: http::Response<R>) -> http::Response<R> {
    let is = |status: Status| {
        status.code() == Code::Internal && status.message().starts_with(codec::MALFORMED)
    };
    if Status::from_header_map(answer.headers()).is_some_and(is) {
        let code = (Code::InvalidArgument as i32).into();
        answer.headers_mut().insert("grpc-status", code);
    }
    answer
}

/// Runs disk work on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Status::internal(format!("disk work did not end: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_but_a_misleading_one_is_an_instance() {
        for name in ["", "main", "remote-execution", "a/b/c"] {
            assert!(instance(name).is_ok(), "{name}");
        }
        for name in ["blobs", "a/uploads/b", "x\0", &"x".repeat(2000)] {
            let error = instance(name).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.message().starts_with("instance_name"), "{error}");
        }
    }

    #[test]
    fn errors_name_the_field() {
        let bad = re::Digest {
            hash: "zz".into(),
            size_bytes: 1,
        };
        let error = digests("blob_digests", DigestFunction::Sha256, &[bad]).unwrap_err();
        assert!(error.message().starts_with("blob_digests[0]"), "{error}");
        let error = digest("root_digest", DigestFunction::Sha256, None).unwrap_err();
        assert!(error.message().starts_with("root_digest"), "{error}");
        assert!(function(4).unwrap_err().message().contains("VSO"));
    }
}
