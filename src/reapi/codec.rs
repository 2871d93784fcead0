//! How messages of calls are read and written: as prost does it, but a message is [counted](super::lists) before it is decoded.

use std::marker::PhantomData;

use bytes::Buf;
use prost::{Message, Name};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use super::lists;

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
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Reads<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Reads<U> {
        Reads::default()
    }
}

/// Reads messages of one type.
#[derive(Debug)]
pub struct Reads<U>(PhantomData<U>);

impl<U> Default for Reads<U> {
    fn default() -> Self {
        Reads(PhantomData)
    }
}

impl<U: Message + Name + Default> Decoder for Reads<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // Not copied: the buffer gives its own bytes away.
        let bytes = source.copy_to_bytes(source.remaining());
        let message = lists::decode(&U::full_name(), bytes);
        { message.map(Some) }.map_err(|why| Status::internal(format!("{MALFORMED}{why}")))
    }
}
