//! The last phase: the streams of a command as part of its result, and every blob of the result
//! where the client will look for it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::CWD;

use crate::cas::{CasError, LocalStore, Pins};
use crate::reapi::{Digest, DigestFunction};
use crate::sandbox::Captured;
use crate::tree::{READ_BUFFER, digest_file};

/// One output stream, ready for an ActionResult: inside it, or a blob.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) raw: Bytes,
    pub(super) digest: Option<Digest>,
    /// Keeps the blob until it is published.
    pub(super) _pins: Option<Pins>,
}

/// Puts a stream into its place; blocks. `notice` is appended to it, on lines of its own: what the worker has to say to
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
                let apart = apart(bytes.last().copied());
                [&bytes, apart.as_bytes(), notice.as_bytes()]
                    .concat()
                    .into()
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
            let failed = |source| CasError::Disk {
                action: "read back",
                object: format!("output stream {}", path.display()),
                source,
            };
            let file = append(&path, notice).map_err(failed)?;
            // Whoever still writes to the stream must not do so in the store.
            let sealed = store.seal(file.as_fd(), false)?;
            let mut buffer = vec![0; READ_BUFFER];
            let digest = digest_file(&file, function, &mut buffer).map_err(failed)?;
            let pins = store.pin([digest]);
            let name = path.as_os_str();
            store.adopt_at(digest, CWD, name, file.as_fd(), false, &sealed)?;
            Ok(Stream {
                digest: Some(digest),
                _pins: Some(pins),
                ..Stream::default()
            })
        }
    }
}

/// Appends the notice and opens the stream for reading; it is not open for writing any more.
fn append(path: &Path, notice: &str) -> std::io::Result<File> {
    if !notice.is_empty() {
        let mut file = OpenOptions::new().read(true).append(true).open(path)?;
        let mut last = [0];
        let end = file.metadata()?.len();
        let read = file.read_at(&mut last, end.saturating_sub(1))?;
        let apart = apart((read > 0).then_some(last[0]));
        file.write_all(format!("{apart}{notice}").as_bytes())?;
    }
    File::open(path)
}

/// What a notice begins with, after a stream whose last byte this is.
fn apart(last: Option<u8>) -> &'static str {
    match last {
        None | Some(b'\n') => "",
        Some(_) => "\n",
    }
}

/// What is to be said of a command whose output was cut; `None` if all of it was kept.
pub(super) fn cut(stdout_dropped: u64, stderr_dropped: u64, kept: u64) -> Option<String> {
    let stream = match (stdout_dropped, stderr_dropped) {
        (0, 0) => return None,
        (_, 0) => "standard output",
        (0, _) => "standard error",
        _ => "standard output and standard error",
    };
    let dropped = stdout_dropped.saturating_add(stderr_dropped);
    Some(format!(
        "{dropped} bytes of {stream} were left out, for this worker keeps the beginning and the end of a stream, \
         {kept} bytes in all (--keep-output); write less, or to a file"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_stream_says_so() {
        assert_eq!(cut(0, 0, 10), None);
        let text = cut(5, 0, 10).unwrap();
        assert!(
            text.starts_with("5 bytes of standard output were"),
            "{text}"
        );
        assert!(
            text.contains(" 10 bytes") && text.contains("--keep-output"),
            "{text}"
        );
        assert!(
            cut(5, 1, 10)
                .unwrap()
                .starts_with("6 bytes of standard output and standard error")
        );
    }
}
