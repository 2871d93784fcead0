//! `google.protobuf.Any`: packing a message under its type name and getting it out again.

use prost::Message;
use prost_types::Any;

use super::lists;

/// A message that travels inside an `Any`, with its full type name.
pub trait Named: Message + Default {
    /// Package and message name, such as `build.bazel.remote.execution.v2.Action`.
    const NAME: &'static str;
}

macro_rules! named {
    ($($type:ty = $name:literal),* $(,)?) => {
        $(impl Named for $type { const NAME: &'static str = $name; })*
    };
}

named! {
    super::proto::boxwright::CommandUsage = "boxwright.CommandUsage",
    super::proto::re::Action = "build.bazel.remote.execution.v2.Action",
    super::proto::re::ActionResult = "build.bazel.remote.execution.v2.ActionResult",
    super::proto::re::Digest = "build.bazel.remote.execution.v2.Digest",
    super::proto::re::ExecuteOperationMetadata = "build.bazel.remote.execution.v2.ExecuteOperationMetadata",
    super::proto::re::ExecuteResponse = "build.bazel.remote.execution.v2.ExecuteResponse",
    super::proto::re::LogFile = "build.bazel.remote.execution.v2.LogFile",
    super::proto::buildbox::ExecutionStatistics = "build.buildbox.ExecutionStatistics",
    super::proto::rpc::PreconditionFailure = "google.rpc.PreconditionFailure",
    super::proto::rpc::RetryInfo = "google.rpc.RetryInfo",
    prost_types::Struct = "google.protobuf.Struct",
}

/// Packs `message` under `type.googleapis.com/NAME`.
pub fn pack<M: Named>(message: &M) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{}", M::NAME),
        value: message.encode_to_vec(),
    }
}

/// Unpacks `any` if it holds an `M`: `None` if it holds something else, an error if its bytes are
/// not an `M`, or hold too much. Only what follows the last slash of the type URL counts.
pub fn unpack<M: Named>(any: &Any) -> Option<Result<M, String>> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    (name == M::NAME).then(|| lists::decode(M::NAME, any.value.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::proto::re;

    #[test]
    fn only_the_right_type_comes_out() {
        let any = pack(&re::Digest {
            hash: "x".into(),
            size_bytes: 1,
        });
        assert_eq!(
            any.type_url,
            "type.googleapis.com/build.bazel.remote.execution.v2.Digest"
        );
        assert!(unpack::<re::Action>(&any).is_none());
        assert_eq!(unpack::<re::Digest>(&any).unwrap().unwrap().hash, "x");
        let broken = Any {
            value: vec![0xff; 3],
            ..any
        };
        assert!(unpack::<re::Digest>(&broken).unwrap().is_err());
    }

    #[test]
    fn what_holds_too_much_is_not_decoded() {
        let result = |count| re::ActionResult {
            output_files: vec![re::OutputFile::default(); count],
            ..Default::default()
        };
        let unpacked = |count| unpack::<re::ActionResult>(&pack(&result(count))).unwrap();
        assert_eq!(unpacked(1000), Ok(result(1000)));
        let refusal = unpacked(600_000).unwrap_err();
        assert!(refusal.contains("entries"), "{refusal}");
    }
}
