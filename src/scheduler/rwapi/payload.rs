//! From a lease on the wire to an action to run. What a lease carries comes from outside: it is
//! read here or refused with the status that its completion will carry.

use bytes::Bytes;
use prost::Message;
use tonic::Code;

use super::metadata::About;
use super::status::Report;
use crate::action::bounds;
use crate::reapi::any::Named;
use crate::reapi::proto::{re, rw};
use crate::reapi::{Digest, DigestFunction};
use crate::scheduler::Lease;

/// An id longer than this is refused: it is echoed in every update, and logged.
const ID_LIMIT: usize = 1024;

/// Reads a lease. `about` is what the reply's trailer says of it.
///
/// Its payload is an Action, or the Digest of one if the scheduler has forgotten the bytes.
pub(super) fn read(lease: &rw::Lease, about: About) -> Result<Lease, Report> {
    let invalid = |what: String| Report::failed(Code::InvalidArgument, what);
    if lease.id.is_empty() || lease.id.len() > ID_LIMIT {
        return Err(invalid(format!(
            "the lease's id has {} bytes; 1 to {ID_LIMIT} are taken",
            lease.id.len()
        )));
    }
    let function = DigestFunction::from_proto(about.digest_function).map_err(|error| {
        Report::failed(
            Code::FailedPrecondition,
            format!("the lease's digest function: {error}"),
        )
    })?;
    let payload = lease
        .payload
        .as_ref()
        .ok_or_else(|| invalid("the lease has no payload".to_owned()))?;
    let name = payload.type_url.rsplit('/').next().unwrap_or_default();
    let (action, payload_digest) = if name == re::Action::NAME {
        // A reply may be large, and a decoded Action many times so.
        bounds::action(&payload.value).map_err(|why| {
            invalid(format!(
                "the lease's payload is not an Action that is taken: it {why}"
            ))
        })?;
        re::Action::decode(payload.value.as_slice())
            .map_err(|error| invalid(format!("the lease's payload is not an Action: {error}")))?;
        (Some(Bytes::copy_from_slice(&payload.value)), None)
    } else if name == re::Digest::NAME {
        let digest = re::Digest::decode(payload.value.as_slice())
            .map_err(|error| invalid(format!("the lease's payload is not a Digest: {error}")))?;
        let digest = Digest::from_proto(function, Some(&digest))
            .map_err(|error| invalid(format!("the lease's action digest: {error}")))?;
        (None, Some(digest))
    } else {
        let name: String = name.chars().take(200).collect();
        return Err(invalid(format!(
            "the lease's payload is a {name:?}, neither an Action nor a Digest"
        )));
    };
    let told = match &about.action_digest {
        None => None,
        Some(digest) => match Digest::from_proto(function, Some(digest)) {
            Ok(digest) => Some(digest),
            Err(error) => {
                tracing::warn!(lease = %lease.id, %error, "the scheduler names the action badly");
                None
            }
        },
    };
    Ok(Lease {
        id: lease.id.clone(),
        action,
        action_digest: payload_digest.or(told),
        function,
        stdout_stream: about.stdout_stream,
        stderr_stream: about.stderr_stream,
        origin: None,
        metadata: about.metadata,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::any::pack;
    use prost_types::Any;

    fn lease(payload: Option<Any>) -> rw::Lease {
        rw::Lease {
            id: "main/1".into(),
            payload,
            ..Default::default()
        }
    }

    fn refusal(lease: &rw::Lease, about: About) -> (i32, String) {
        let report = read(lease, about).unwrap_err();
        (report.status.code, report.status.message)
    }

    #[test]
    fn an_action_comes_inline_or_by_digest() {
        let digest = DigestFunction::Sha256.digest(b"action");
        let about = About {
            action_digest: Some(digest.to_proto()),
            ..About::default()
        };
        let inline = read(&lease(Some(pack(&re::Action::default()))), about.clone()).unwrap();
        assert_eq!(inline.action_digest, Some(digest));
        assert!(inline.action.is_some());
        let named = read(&lease(Some(pack(&digest.to_proto()))), About::default()).unwrap();
        assert_eq!(named.action_digest, Some(digest));
        assert_eq!(named.action, None);
    }

    #[test]
    fn a_refusal_names_the_part() {
        let invalid = Code::InvalidArgument as i32;
        let cases = [
            (lease(None), "no payload"),
            (
                lease(Some(Any {
                    type_url: "type.googleapis.com/x.Y".into(),
                    value: vec![],
                })),
                "\"x.Y\"",
            ),
            (
                lease(Some(Any {
                    value: vec![0xff],
                    ..pack(&re::Action::default())
                })),
                "not an Action",
            ),
            (
                lease(Some(pack(&re::Action {
                    platform: Some(re::Platform {
                        properties: vec![re::platform::Property::default(); 1 << 17],
                    }),
                    ..Default::default()
                }))),
                "131072 platform properties",
            ),
            (
                lease(Some(pack(&re::Digest {
                    hash: "zz".into(),
                    size_bytes: -1,
                }))),
                "action digest",
            ),
            (rw::Lease::default(), "id"),
        ];
        for (lease, part) in cases {
            let (code, message) = refusal(&lease, About::default());
            assert_eq!(code, invalid, "{message}");
            assert!(message.contains(part), "{message}");
        }
        let sha384 = About {
            digest_function: re::digest_function::Value::Sha384 as i32,
            ..About::default()
        };
        let (code, _) = refusal(&lease(Some(pack(&re::Action::default()))), sha384);
        assert_eq!(code, Code::FailedPrecondition as i32);
    }

    #[test]
    fn a_bad_trailer_does_not_cost_the_action() {
        let about = About {
            action_digest: Some(re::Digest {
                hash: "no hash".into(),
                size_bytes: 1,
            }),
            ..About::default()
        };
        let lease = read(&lease(Some(pack(&re::Action::default()))), about).unwrap();
        assert_eq!(lease.action_digest, None);
    }
}
