//! The last phase: the streams of a command as part of its result, and every blob of the result
//! where the client will look for it.

use std::fs::OpenOptions;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::cas::{CasError, LocalStore, Pins};
use crate::reapi::{Digest, DigestFunction};
use crate::sandbox::Captured;

/// One output stream, ready for an ActionResult: inside it, or a blob.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) raw: Bytes,
    pub(super) digest: Option<Digest>,
    /// Keeps the blob until it is published.
    pub(super) _pins: Option<Pins>,
}

/// Puts a stream into its place; blocks. `notice` is appended to it: what the worker has to say to
/// its reader.
pub(super) fn keep_stream(
    store: &Arc<LocalStore>,
    function: DigestFunction,
    captured: Captured,
    notice: &str,
    inline: usize,
) -> Result<Stream, CasError> {
    match captured {
        Captured::Memory(bytes) => {
            let bytes = if notice.is_empty() {
                bytes
            } else {
                [&bytes, notice.as_bytes()].concat().into()
            };
            if bytes.len() <= inline {
                return Ok(Stream {
                    raw: bytes,
                    ..Stream::default()
                });
            }
            let digest = function.digest(&bytes);
            let pins = store.pin([digest]);
            store.put_verified(digest, &bytes, false)?;
            Ok(Stream {
                digest: Some(digest),
                _pins: Some(pins),
                ..Stream::default()
            })
        }
        Captured::File { path, .. } => {
            let digest = append_and_hash(&path, notice, function)?;
            let pins = store.pin([digest]);
            store.adopt(digest, &path, false)?;
            Ok(Stream {
                digest: Some(digest),
                _pins: Some(pins),
                ..Stream::default()
            })
        }
    }
}

fn append_and_hash(
    path: &Path,
    notice: &str,
    function: DigestFunction,
) -> Result<Digest, CasError> {
    let run = || -> std::io::Result<Digest> {
        let mut file = OpenOptions::new().read(true).append(true).open(path)?;
        file.write_all(notice.as_bytes())?;
        file.rewind()?;
        let mut hasher = function.hasher();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hasher.finish()),
                n => hasher.update(&buffer[..n]),
            }
        }
    };
    run().map_err(|source| CasError::Disk {
        action: "read back",
        object: format!("output stream {}", path.display()),
        source,
    })
}

/// What stands at the end of a stream that was cut.
pub(super) fn cut_notice(dropped: u64, kept: u64) -> String {
    if dropped == 0 {
        return String::new();
    }
    format!("\n[boxwright: {dropped} more bytes were dropped; a stream may have {kept} bytes]\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_stream_says_so() {
        assert_eq!(cut_notice(0, 10), "");
        let text = cut_notice(5, 10);
        assert!(text.contains(" 5 ") && text.contains(" 10 "), "{text}");
    }
}
