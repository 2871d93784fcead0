//! zstd, bounded: what comes out is never larger than what was promised, however small what went in.

use std::io;

use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use crate::cas::MAX_WINDOW_LOG;

/// Bytes that are unpacked at a time.
const STEP: usize = 128 << 10;
/// Links are fast and both ends are busy: the cheapest level.
const LEVEL: i32 = 1;

/// Unpacks a whole blob of exactly `size` bytes. The caller has bounded `size`.
pub(super) fn unpack(data: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut inflate = Inflate::new().map_err(|error| error.to_string())?;
    let mut whole = Vec::with_capacity(size);
    inflate
        .push(data, &mut |piece| {
            if whole.len() + piece.len() > size {
                return Err(io::Error::other(format!(
                    "it unpacks to more than the {size} bytes of its digest"
                )));
            }
            whole.extend_from_slice(piece);
            Ok(())
        })
        .map_err(|error| error.to_string())?;
    if !inflate.at_end() {
        return Err("the zstd data ends within a frame".to_owned());
    }
    Ok(whole)
}

/// Packs a blob, if that makes it smaller.
pub(super) fn pack(data: &[u8]) -> Option<Vec<u8>> {
    zstd::bulk::compress(data, LEVEL)
        .ok()
        .filter(|packed| packed.len() < data.len())
}

/// Unpacks a stream of frames.
pub(super) struct Inflate {
    decoder: Decoder<'static>,
    space: Vec<u8>,
    at_end: bool,
}

impl Inflate {
    pub(super) fn new() -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
        Ok(Inflate {
            decoder,
            space: vec![0; STEP],
            at_end: true,
        })
    }

    /// Unpacks `data` piece by piece into `sink`, which may refuse.
    pub(super) fn push<E: From<io::Error>>(
        &mut self,
        data: &[u8],
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut input = InBuffer::around(data);
        loop {
            let mut output = OutBuffer::around(self.space.as_mut_slice());
            if input.pos() == data.len() && self.at_end {
                return Ok(());
            }
            let hint = self.decoder.run(&mut input, &mut output)?;
            let produced = output.pos();
            self.at_end = hint == 0;
            if produced > 0 {
                sink(&self.space[..produced])?;
            }
            if input.pos() == data.len() && produced < STEP {
                return Ok(());
            }
        }
    }

    /// Whether all that was pushed makes whole frames.
    pub(super) fn at_end(&self) -> bool {
        self.at_end
    }
}

/// Packs a stream into one frame.
pub(super) struct Deflate {
    encoder: Encoder<'static>,
}

impl Deflate {
    /// For `size` bytes to come.
    pub(super) fn new(size: u64) -> io::Result<Self> {
        let mut encoder = Encoder::new(LEVEL)?;
        encoder.set_parameter(CParameter::ContentSizeFlag(true))?;
        encoder.set_pledged_src_size(Some(size))?;
        Ok(Deflate { encoder })
    }

    /// Packs `data` and appends what comes out to `out`.
    pub(super) fn push(&mut self, data: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let mut input = InBuffer::around(data);
        while input.pos() < data.len() {
            grow(out);
            let at = out.len();
            let mut output = OutBuffer::around_pos(out, at);
            self.encoder.run(&mut input, &mut output)?;
        }
        Ok(())
    }

    /// Ends the frame.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        loop {
            grow(out);
            let at = out.len();
            let mut output = OutBuffer::around_pos(out, at);
            if self.encoder.finish(&mut output, true)? == 0 {
                return Ok(());
            }
        }
    }
}

fn grow(out: &mut Vec<u8>) {
    if out.capacity() - out.len() < 4096 {
        out.reserve(64 << 10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_stops_at_its_promised_size() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        assert!(bomb.len() < 64 << 10);
        let error = unpack(&bomb, 1000).unwrap_err();
        assert!(error.contains("more than the 1000 bytes"), "{error}");
    }

    #[test]
    fn streams_go_there_and_back() {
        let data: Vec<u8> = (0..3_000_000u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect();
        let mut deflate = Deflate::new(data.len() as u64).unwrap();
        let mut packed = Vec::new();
        for piece in data.chunks(100_001) {
            deflate.push(piece, &mut packed).unwrap();
        }
        deflate.finish(&mut packed).unwrap();
        assert!(packed.len() < data.len());
        let mut inflate = Inflate::new().unwrap();
        let mut back = Vec::new();
        for piece in packed.chunks(777) {
            inflate
                .push::<io::Error>(piece, &mut |piece| {
                    back.extend_from_slice(piece);
                    Ok(())
                })
                .unwrap();
        }
        assert!(inflate.at_end());
        assert_eq!(back, data);
    }

    #[test]
    fn frames_may_follow_one_another_but_not_end_early() {
        let mut two = zstd::bulk::compress(b"one", 1).unwrap();
        two.extend(zstd::bulk::compress(b"two", 1).unwrap());
        assert_eq!(unpack(&two, 6).unwrap(), b"onetwo");
        assert!(unpack(&two[..two.len() - 2], 6).is_err());
        assert!(unpack(b"not zstd at all", 15).is_err());
        assert_eq!(unpack(b"", 0).unwrap(), b"");
    }
}
