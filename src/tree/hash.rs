//! The digest of an open file, read in pieces.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use crate::reapi::{Digest, DigestFunction};

/// A good size for the buffer that [`digest_file`] reads into, in bytes.
pub const READ_BUFFER: usize = 256 << 10;

/// Reads the file from where it stands to its end. The buffer's content does not matter; it is
/// the caller's so that it can be used for many files.
pub fn digest_file(file: &File, function: DigestFunction, buffer: &mut [u8]) -> io::Result<Digest> {
    digest_file_unless(file, function, buffer, || false)
}

/// Reads a file that should have `size` bytes from its beginning to its end, with one system call if that is so; returns what it
/// has, of which more than `size` bytes are not all there. `buffer` is enlarged as needed.
pub fn read_small<'b>(mut file: &File, size: u64, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
    let size = size as usize;
    if buffer.len() <= size {
        buffer.resize(size + 1, 0);
    }
    let mut got = 0;
    loop {
        // One byte more than there should be: that it does not come is the end.
        match file.read(&mut buffer[got..=size]) {
            Ok(0) => break,
            Ok(read) => got += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if got >= size {
            break;
        }
    }
    Ok(&buffer[..got])
}

/// Like [`digest_file`], but asks before each read whether to stop, which is then an error of kind
/// [`io::ErrorKind::Other`]: a sparse file of some hundred gigabytes takes minutes.
pub fn digest_file_unless(
    mut file: &File,
    function: DigestFunction,
    buffer: &mut [u8],
    stop: impl Fn() -> bool,
) -> io::Result<Digest> {
    let mut hasher = function.hasher();
    loop {
        if stop() {
            return Err(io::Error::other("nobody wants it any more"));
        }
        let read = match file.read(buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if hasher.size() == 0 && read == buffer.len() {
            // A hint for the files that need more than one read; nothing is lost without it.
            let advice = rustix::fs::Advice::Sequential;
            let _ = rustix::fs::fadvise(file.as_fd(), 0, None, advice);
        }
        hasher.update(&buffer[..read]);
    }
}
