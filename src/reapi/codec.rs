//! How messages of calls are read and written: as prost does it, but a message is looked at before it is decoded. An empty entry
//! of a list is two bytes on the wire and up to some 180 once decoded, so that 16 MiB of them would take a gigabyte
//! before anybody checks anything.

use std::any::TypeId;
use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use super::proto::re;
use super::wire::{self, Field};

/// Entries of the lists of one message: more digests than 16 MiB can hold, which is the largest message that is taken.
const ENTRIES: usize = 1 << 19;

/// How the status begins of a message that cannot be decoded, or holds too much.
pub const MALFORMED: &str = "cannot read the message: ";

/// Reads and writes the messages of one method: writes `T`, reads `U`.
#[derive(Debug)]
pub struct Checked<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Checked<T, U> {
    fn default() -> Self {
        Checked(PhantomData)
    }
}

impl<T, U> Codec for Checked<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Reads<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Reads<U> {
        Reads(PhantomData)
    }
}

/// Reads messages of one type.
#[derive(Debug)]
pub struct Reads<U>(PhantomData<U>);

impl<U: Message + Default + 'static> Decoder for Reads<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let malformed = |why: String| Status::internal(format!("{MALFORMED}{why}"));
        // Not copied: the buffer gives its own bytes away.
        let bytes = source.copy_to_bytes(source.remaining());
        bounded(&bytes, inner::<U>()).map_err(malformed)?;
        let message = U::decode(bytes).map_err(|error| malformed(error.to_string()))?;
        Ok(Some(message))
    }
}

/// The field whose own lists are the long ones, where it is not the message itself that has them.
fn inner<U: 'static>() -> Option<u64> {
    (TypeId::of::<U>() == TypeId::of::<re::UpdateActionResultRequest>()).then_some(3)
}

/// Refuses a message with too many entries. What is no message is for the decoder to refuse, in its words.
fn bounded(mut message: &[u8], inner: Option<u64>) -> Result<(), String> {
    let mut entries = 0_usize;
    while let Ok(Some(Field { number, bytes })) = wire::next(&mut message) {
        let Some(bytes) = bytes else { continue };
        entries += 1;
        let mut nested = bytes;
        while inner == Some(number)
            && let Ok(Some(_)) = wire::next(&mut nested)
        {
            entries += 1;
        }
        if entries > ENTRIES {
            return Err(format!("it has more than {ENTRIES} entries"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_too_many_entries_is_refused_before_it_is_decoded() {
        let entries = |count| [0x12, 0].repeat(count);
        assert_eq!(bounded(&entries(ENTRIES), None), Ok(()));
        let refusal = bounded(&entries(ENTRIES + 1), None).unwrap_err();
        assert!(refusal.contains("524288 entries"), "{refusal}");
    }

    #[test]
    fn entries_of_a_result_to_be_stored_count_too() {
        let inner = inner::<re::UpdateActionResultRequest>();
        let message = |field: u8, count| {
            let entries = [0x12, 0].repeat(count);
            let mut message = vec![field << 3 | 2];
            wire::put_varint(&mut message, entries.len() as u64);
            message.extend(entries);
            message
        };
        assert!(bounded(&message(3, ENTRIES), inner).is_err());
        assert!(bounded(&message(3, ENTRIES - 1), inner).is_ok());
        // The content of a blob may look like anything.
        assert!(bounded(&message(2, ENTRIES), inner).is_ok());
        assert!(
            bounded(
                &message(3, ENTRIES),
                super::inner::<re::BatchReadBlobsRequest>()
            )
            .is_ok()
        );
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
