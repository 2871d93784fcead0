//! The messages between the daemon and a launcher: fixed layouts, little-endian, each checked in full
//! before anything in it is used. Decoding never panics and never allocates more than the message itself
//! is long. File descriptors travel beside the message and are counted by the receiver.
//!
//! A request is a header of [`REQUEST_LEN`] bytes; a run's strings (root, cwd, arguments, environment,
//! each ended by a NUL) follow it, or lie in a memfd if they are too long for a datagram. A report
//! is a header of [`REPORT_LEN`] bytes and, for a command that did not start, the path that failed.

mod report;
mod request;

pub(in crate::sandbox) use report::{
    Ended, Failure, PATH_MAX, REPORT_LEN, Report, Step, WireUsage, now,
};
pub(in crate::sandbox) use request::{
    INLINE_MAX, REQUEST_LEN, Request, RunHeader, STRINGS_MAX, Strings,
};

const MAGIC: u32 = 0x3158_5742;

/// A message that breaks the rules; the text says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub(in crate::sandbox) struct Malformed(pub(in crate::sandbox) &'static str);
struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(Malformed("too short"))?;
        self.0 = tail;
        Ok(*head)
    }
    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.take()?))
    }
    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.take()?))
    }
}
