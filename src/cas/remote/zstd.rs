//! zstd, with an output that is never larger than the digest promises: a few bytes that claim to be
//! terabytes are refused after as many bytes as were asked for.

use bytes::Bytes;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::cas::MAX_WINDOW_LOG;

/// Fast and still effective on sources and objects; builds are short of CPU before bandwidth.
pub(super) const LEVEL: i32 = 1;

/// Blobs below this size are sent as they are: the frame's own cost eats the gain.
pub(super) const WORTH_FROM: u64 = 8 << 10;

/// Why packed bytes were refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UnpackError {
    /// Not zstd, or damaged.
    #[error("zstd data is malformed: {0}")]
    Malformed(String),
    /// More bytes than the digest has.
    #[error("zstd data unpacks to more than the {0} bytes of the blob")]
    TooMany(u64),
}

/// Unpacks a whole blob of `size` bytes; the result may be shorter, never longer.
pub(super) fn unpack(packed: &[u8], size: u64) -> Result<Bytes, UnpackError> {
    let mut unpacker = Unpacker::new(size)?;
    let mut whole = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(4 << 20));
    unpacker.feed::<UnpackError>(packed, |chunk| {
        whole.extend_from_slice(&chunk);
        Ok(())
    })?;
    Ok(whole.into())
}

/// Packs a whole blob; `None` if that saves less than an eighth.
pub(super) fn pack(data: &[u8]) -> Option<Bytes> {
    let packed = zstd::bulk::compress(data, LEVEL).ok()?;
    (packed.len() <= data.len() / 8 * 7).then(|| packed.into())
}

/// Unpacks a blob that comes in pieces; frames may follow one another.
pub(super) struct Unpacker {
    decoder: Decoder<'static>,
    left: u64,
    size: u64,
}

impl Unpacker {
    /// Expects at most `size` bytes to come out.
    pub(super) fn new(size: u64) -> Result<Self, UnpackError> {
        let malformed = |e: std::io::Error| UnpackError::Malformed(e.to_string());
        let mut decoder = Decoder::new().map_err(malformed)?;
        decoder
            .set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))
            .map_err(malformed)?;
        Ok(Unpacker {
            decoder,
            left: size,
            size,
        })
    }

    /// Takes the next packed bytes; `sink` gets what comes out, in chunks of at most 128 KiB.
    pub(super) fn feed<E: From<UnpackError>>(
        &mut self,
        packed: &[u8],
        mut sink: impl FnMut(Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut input = InBuffer::around(packed);
        loop {
            let mut chunk = Vec::with_capacity(self.left.clamp(1024, 128 << 10) as usize);
            let room = chunk.capacity();
            let before = input.pos();
            let produced = {
                let mut output = OutBuffer::around(&mut chunk);
                self.decoder
                    .run(&mut input, &mut output)
                    .map_err(|e| UnpackError::Malformed(e.to_string()))?;
                output.pos()
            };
            if produced as u64 > self.left {
                return Err(UnpackError::TooMany(self.size).into());
            }
            self.left -= produced as u64;
            if produced > 0 {
                sink(chunk.into())?;
            }
            // A full output may hide more of it inside the decoder.
            if input.pos() == packed.len() && produced < room {
                return Ok(());
            }
            if produced == 0 && input.pos() == before {
                return Err(UnpackError::Malformed("it does not go on".to_owned()).into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_unpack_to_the_whole(
            length in 0usize..300_000,
            period in 1usize..100_000,
            piece in 1usize..5000,
        ) {
            let data: Vec<u8> = (0..length).map(|n| ((n % period) ^ (n >> 7)) as u8 & 0x1f).collect();
            let packed = zstd::bulk::compress(&data, LEVEL).unwrap();
            prop_assert_eq!(&unpack(&packed, data.len() as u64).unwrap()[..], &data[..]);
            let mut unpacker = Unpacker::new(data.len() as u64).unwrap();
            let mut whole = Vec::new();
            for piece in packed.chunks(piece) {
                unpacker.feed::<UnpackError>(piece, |c| { whole.extend_from_slice(&c); Ok(()) }).unwrap();
            }
            prop_assert_eq!(whole, data);
        }

        #[test]
        fn rubbish_never_panics(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
            if let Ok(bytes) = unpack(&data, 100) {
                prop_assert!(bytes.len() <= 100);
            }
        }
    }

    #[test]
    fn a_frame_that_asks_for_a_huge_window_is_refused() {
        let data = vec![7; 1 << 20];
        let packed = |window| {
            let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL).unwrap();
            encoder.long_distance_matching(true).unwrap();
            encoder.window_log(window).unwrap();
            std::io::Write::write_all(&mut encoder, &data).unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(unpack(&packed(MAX_WINDOW_LOG), 1 << 20).unwrap(), data);
        let error = unpack(&packed(MAX_WINDOW_LOG + 3), 1 << 20).unwrap_err();
        assert!(matches!(error, UnpackError::Malformed(_)), "{error:?}");
    }

    #[test]
    fn frames_may_follow_one_another() {
        let mut packed = zstd::bulk::compress(b"one ", LEVEL).unwrap();
        packed.extend(zstd::bulk::compress(b"two", LEVEL).unwrap());
        assert_eq!(&unpack(&packed, 7).unwrap()[..], b"one two");
    }

    #[test]
    fn a_bomb_is_refused_early() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], LEVEL).unwrap();
        assert!(bomb.len() < 16 << 10);
        let mut seen = 0;
        let error = Unpacker::new(1000)
            .unwrap()
            .feed::<UnpackError>(&bomb, |c| {
                seen += c.len();
                Ok(())
            })
            .unwrap_err();
        assert_eq!(error, UnpackError::TooMany(1000));
        assert!(seen <= 1000);
    }

    #[test]
    fn what_does_not_shrink_is_not_packed() {
        assert!(pack(&[0; 10_000]).is_some());
        let noise: Vec<u8> = (0..10_000u32)
            .flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..4].to_vec())
            .collect();
        assert!(pack(&noise).is_none());
    }
}
