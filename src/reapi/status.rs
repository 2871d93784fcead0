//! Statuses: `google.rpc.Status` inside messages, `tonic::Status` as the end of a call, and the
//! details that both may carry.

use std::time::Duration;

use prost::Message;
use tonic::Code;

use super::Digest;
use super::any::{pack, unpack};
use super::proto::rpc;
use super::time;

/// A status without details.
pub fn status(code: Code, message: impl Into<String>) -> rpc::Status {
    rpc::Status {
        code: code as i32,
        message: message.into(),
        details: Vec::new(),
    }
}

/// The status of success.
pub fn ok() -> rpc::Status {
    status(Code::Ok, "")
}

/// One blob that an action needs and that nobody has, and where it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingBlob {
    /// The blob.
    pub digest: Digest,
    /// What it is, in words: `input file src/main.c`, `the Command`.
    pub what: String,
}

/// REAPI, Execute: "In the case of a missing input or command, the server SHOULD additionally send
/// a `PreconditionFailure` error detail where, for each requested blob not present in the CAS,
/// there is a `Violation` with a `type` of `MISSING` and a `subject` of
/// `"blobs/{digest_function/}{hash}/{size}"` indicating the digest of the missing blob."
pub fn missing_blobs(message: impl Into<String>, missing: &[MissingBlob]) -> rpc::Status {
    let violations = missing
        .iter()
        .map(|blob| rpc::precondition_failure::Violation {
            r#type: "MISSING".to_owned(),
            subject: match blob.digest.function() {
                super::DigestFunction::Sha256 => format!("blobs/{}", blob.digest),
                other => format!("blobs/{}/{}", other.name(), blob.digest),
            },
            description: blob.what.clone(),
        })
        .collect();
    rpc::Status {
        code: Code::FailedPrecondition as i32,
        message: message.into(),
        details: vec![pack(&rpc::PreconditionFailure { violations })],
    }
}

/// Ends a call with a status that was made for the inside of a message; its details go along in
/// `grpc-status-details-bin`.
pub fn to_call_status(status: &rpc::Status) -> tonic::Status {
    tonic::Status::with_details(
        Code::from_i32(status.code),
        status.message.clone(),
        status.encode_to_vec().into(),
    )
}

/// The details of a failed call, if it carried any.
pub fn from_call_status(status: &tonic::Status) -> rpc::Status {
    rpc::Status::decode(status.details())
        .ok()
        .filter(|inner| inner.code == status.code() as i32)
        .unwrap_or_else(|| self::status(status.code(), status.message()))
}

/// How long the server asks the client to wait before it tries again.
pub fn retry_delay(status: &tonic::Status) -> Option<Duration> {
    from_call_status(status)
        .details
        .iter()
        .find_map(|any| unpack::<rpc::RetryInfo>(any)?.ok())
        .and_then(|info| time::from_duration(info.retry_delay.as_ref()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction;

    #[test]
    fn every_missing_blob_is_a_violation() {
        let blobs: Vec<_> = [&b"a"[..], b"b"]
            .into_iter()
            .map(|data| MissingBlob {
                digest: DigestFunction::Sha256.digest(data),
                what: "input file x".into(),
            })
            .collect();
        let call = to_call_status(&missing_blobs("2 blobs are missing", &blobs));
        assert_eq!(call.code(), Code::FailedPrecondition);
        let back = from_call_status(&call);
        let failure = unpack::<rpc::PreconditionFailure>(&back.details[0])
            .unwrap()
            .unwrap();
        assert_eq!(failure.violations.len(), 2);
        assert_eq!(
            failure.violations[1].subject,
            format!("blobs/{}", blobs[1].digest)
        );
    }

    #[test]
    fn the_server_s_delay_is_read() {
        let status = rpc::Status {
            code: Code::Unavailable as i32,
            message: "busy".into(),
            details: vec![pack(&rpc::RetryInfo {
                retry_delay: Some(time::duration(Duration::from_secs(30))),
            })],
        };
        assert_eq!(
            retry_delay(&to_call_status(&status)),
            Some(Duration::from_secs(30))
        );
        assert_eq!(retry_delay(&tonic::Status::unavailable("x")), None);
    }
}
