//! Messages of others are counted before they are decoded. An empty entry of a list is two bytes on the wire and up to some 180
//! once decoded, so that 16 MiB of them would take a gigabyte before anybody checks anything.
//!
//! Which fields are lists, or messages with lists inside, is known from the interfaces themselves: `proto/build.rs` writes
//! it down. Nothing else is looked into, such as the content of blobs, which may look like anything.

use bytes::Buf;
use prost::Message;

use super::wire::{self, Field};

/// Entries of the lists of one message: more digests than 16 MiB can hold, which is the largest message that is taken.
pub(super) const ENTRIES: usize = 1 << 19;

/// A field that is a list, or a message with lists inside, or both.
struct Part {
    number: u64,
    list: bool,
    /// The row of what is inside.
    inside: Option<usize>,
}

/// Of each message with lists somewhere, by its full name, the fields where they are. No message is in itself.
static MESSAGES: &[(&str, &[Part])] = include!(concat!(env!("OUT_DIR"), "/lists.rs"));

/// Decodes a message of this full name, unless it holds too much.
pub(super) fn decode<M: Message + Default>(
    name: &str,
    message: impl Buf + AsRef<[u8]>,
) -> Result<M, String> {
    bounded(name, message.as_ref())?;
    M::decode(message).map_err(|error| error.to_string())
}

/// Refuses a message with too many entries, and what is no message.
fn bounded(name: &str, message: &[u8]) -> Result<(), String> {
    match MESSAGES.iter().find(|(known, _)| *known == name) {
        Some((_, parts)) => count(parts, message, &mut 0),
        None => Ok(()),
    }
}

fn count(parts: &[Part], mut message: &[u8], entries: &mut usize) -> Result<(), String> {
    // A group is no part of a message here: the decoder would pass over one, and take in what comes behind it.
    while let Some(Field { number, bytes }) =
        wire::next(&mut message).map_err(|why| format!("it {why}"))?
    {
        let part = parts.iter().find(|part| part.number == number);
        let (Some(part), Some(bytes)) = (part, bytes) else {
            continue;
        };
        *entries += usize::from(part.list);
        if *entries > ENTRIES {
            return Err(format!("it has more than {ENTRIES} entries"));
        }
        if let Some(inside) = part.inside {
            count(MESSAGES[inside].1, bytes, entries)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Name;
    use prost_types::Any;

    use super::*;
    use crate::reapi::proto::longrunning::ListOperationsResponse;
    use crate::reapi::proto::{re, rw};

    fn counted<M: Message + Name>(message: &M) -> usize {
        let (_, parts) = MESSAGES
            .iter()
            .find(|(known, _)| *known == M::full_name())
            .unwrap();
        let mut entries = 0;
        count(parts, &message.encode_to_vec(), &mut entries).unwrap();
        entries
    }

    /// Field 2 of `M` with so many empty entries, and whether that is taken.
    fn taken<M: Name>(count: usize) -> Result<(), String> {
        bounded(&M::full_name(), &[0x12, 0].repeat(count))
    }

    fn update(result: re::ActionResult) -> re::UpdateActionResultRequest {
        re::UpdateActionResultRequest {
            action_result: Some(result),
            ..Default::default()
        }
    }

    fn properties(count: usize) -> Option<re::NodeProperties> {
        Some(re::NodeProperties {
            properties: vec![re::NodeProperty::default(); count],
            ..Default::default()
        })
    }

    #[test]
    fn a_message_of_too_many_entries_is_refused() {
        assert_eq!(taken::<re::FindMissingBlobsRequest>(ENTRIES), Ok(()));
        let refusal = taken::<re::FindMissingBlobsRequest>(ENTRIES + 1).unwrap_err();
        assert!(refusal.contains("524288 entries"), "{refusal}");
        // This one's field 2 is a message, which is the same one each time.
        assert_eq!(taken::<re::GetTreeRequest>(ENTRIES + 1), Ok(()));
    }

    #[test]
    fn entries_count_however_deep_they_are() {
        let metadata = re::ExecutedActionMetadata {
            auxiliary_metadata: vec![Any::default(); 5],
            ..Default::default()
        };
        let file = re::OutputFile {
            node_properties: properties(7),
            ..Default::default()
        };
        let result = re::ActionResult {
            execution_metadata: Some(metadata),
            output_files: vec![file; 3],
            output_symlinks: vec![re::OutputSymlink::default()],
            ..Default::default()
        };
        let entries = 5 + 3 * (1 + 7) + 1;
        assert_eq!(counted(&update(result.clone())), entries);
        let response = re::ExecuteResponse {
            result: Some(result),
            server_logs: [("a".to_owned(), re::LogFile::default())].into(),
            ..Default::default()
        };
        assert_eq!(counted(&response), entries + 1);

        let directory = re::Directory {
            files: vec![re::FileNode::default(); 2],
            node_properties: properties(3),
            ..Default::default()
        };
        let page = re::GetTreeResponse {
            directories: vec![directory; 10],
            ..Default::default()
        };
        assert_eq!(counted(&page), 10 * (1 + 2 + 3));

        let worker = rw::Worker {
            devices: vec![rw::Device::default(); 4],
            ..Default::default()
        };
        let session = rw::BotSession {
            leases: vec![rw::Lease::default(); 2],
            worker: Some(worker),
            ..Default::default()
        };
        assert_eq!(counted(&session), 2 + 4);
        assert_eq!(
            counted(&rw::UpdateBotSessionRequest {
                bot_session: Some(session),
                ..Default::default()
            }),
            2 + 4
        );

        let operations = ListOperationsResponse {
            operations: vec![Default::default(); 6],
            ..Default::default()
        };
        assert_eq!(counted(&operations), 6);
    }

    #[test]
    fn what_is_content_is_not_looked_into() {
        let content = bytes::Bytes::from([0x12, 0].repeat(ENTRIES + 1));
        let result = re::ActionResult {
            stdout_raw: content.clone(),
            ..Default::default()
        };
        assert_eq!(counted(&update(result)), 0);
        let blob = re::batch_update_blobs_request::Request {
            data: content.clone(),
            ..Default::default()
        };
        let blobs = re::BatchUpdateBlobsRequest {
            requests: vec![blob],
            ..Default::default()
        };
        assert_eq!(counted(&blobs), 1);
        let read = re::batch_read_blobs_response::Response {
            data: content,
            ..Default::default()
        };
        let blobs = re::BatchReadBlobsResponse {
            responses: vec![read],
        };
        assert_eq!(counted(&blobs), 1);
    }

    /// The decoder passes over one of an unknown number.
    #[test]
    fn a_group_hides_nothing() {
        let hidden = [&[0x7b, 0x7c][..], &[0x12, 0].repeat(ENTRIES + 1)].concat();
        assert!(re::FindMissingBlobsRequest::decode(&hidden[..4]).is_ok());
        let name = re::FindMissingBlobsRequest::full_name();
        assert!(bounded(&name, &hidden).is_err());
    }

    #[test]
    fn more_digests_than_a_message_can_hold_are_no_hindrance() {
        let digest = re::Digest {
            hash: "0".repeat(32),
            size_bytes: 0,
        };
        let one = re::FindMissingBlobsRequest {
            blob_digests: vec![digest],
            ..Default::default()
        };
        assert!((16 << 20) / one.encoded_len() < ENTRIES);
    }
}
