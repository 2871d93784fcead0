//! What blob files are called: `<function>/<2 hex>/<hash>-<size>` for a plain file,
//! `<function>/<2 hex>/<hash>-<size>.x` for an executable one. Hard links share their inode's mode,
//! so a blob that is wanted as both kinds is two files. The size is in the name so that a file cut
//! short by a kill is recognised by one `stat`, without reading it.

use std::ffi::CStr;

use rustix::fs::Mode;

use crate::reapi::{Digest, DigestFunction};

/// The two kinds of file that a blob may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Executable,
}

impl Kind {
    pub(super) const ALL: [Kind; 2] = [Kind::Plain, Kind::Executable];

    pub(super) fn of(executable: bool) -> Self {
        if executable {
            Kind::Executable
        } else {
            Kind::Plain
        }
    }

    pub(super) fn mode(self) -> Mode {
        Mode::from_raw_mode(match self {
            Kind::Plain => 0o444,
            Kind::Executable => 0o555,
        })
    }

    fn suffix(self) -> &'static [u8] {
        match self {
            Kind::Plain => b"",
            Kind::Executable => b".x",
        }
    }
}

/// `ab/<64 hex>-<20 digits>.x` and a NUL is 91 bytes.
const LONGEST: usize = 92;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// The name of a blob's file below its function's directory, made without allocating: a name is
/// needed for each system call on each blob.
pub(super) struct BlobName {
    bytes: [u8; LONGEST],
    length: usize,
}

impl BlobName {
    pub(super) fn new(digest: Digest, kind: Kind) -> Self {
        let mut name = BlobName {
            bytes: [0; LONGEST],
            length: 0,
        };
        let hash = digest.hash();
        name.push_hex(&hash[..1]);
        name.push(b"/");
        name.push_hex(&hash);
        name.push(b"-");
        let mut digits = [0; 20];
        let mut first = digits.len();
        let mut rest = digest.size();
        loop {
            first -= 1;
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        name.push(&digits[first..]);
        name.push(kind.suffix());
        name
    }

    fn push(&mut self, part: &[u8]) {
        self.bytes[self.length..self.length + part.len()].copy_from_slice(part);
        self.length += part.len();
    }

    fn push_hex(&mut self, part: &[u8]) {
        for byte in part {
            self.push(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }

    /// Relative to the function's directory.
    pub(super) fn path(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }

    /// Relative to the shard.
    pub(super) fn file(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes[3..]).unwrap_or_default()
    }

    /// The shard's name.
    pub(super) fn shard(&self) -> &str {
        std::str::from_utf8(&self.bytes[..2]).unwrap_or_default()
    }

    /// The same as [`BlobName::path`], as text.
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

/// Reads a name back; `None` for whatever [`BlobName::new`] does not write.
pub(super) fn parse(function: DigestFunction, shard: &str, file: &str) -> Option<(Digest, Kind)> {
    let (stem, kind) = match file.strip_suffix(".x") {
        Some(stem) => (stem, Kind::Executable),
        None => (file, Kind::Plain),
    };
    let (hash, size) = stem.split_once('-')?;
    let digest = Digest::parse(function, hash, size.parse().ok()?).ok()?;
    let name = BlobName::new(digest, kind);
    (name.shard() == shard && name.file().to_bytes() == file.as_bytes()).then_some((digest, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for function in DigestFunction::ALL {
            for size in [1, 7, 10, 4096, i64::MAX as u64] {
                for kind in Kind::ALL {
                    let digest = Digest::new(function, [0xa7; 32], size);
                    let name = BlobName::new(digest, kind);
                    let file = name.file().to_str().unwrap();
                    assert_eq!(name.text(), format!("a7/{file}"));
                    assert_eq!(parse(function, name.shard(), file), Some((digest, kind)));
                }
            }
        }
        let digest = Digest::new(DigestFunction::Sha256, [0xff; 32], u64::MAX);
        let name = BlobName::new(digest, Kind::Executable);
        assert!(name.text().ends_with("-18446744073709551615.x"));
    }

    #[test]
    fn other_names_are_nobodys() {
        let hash = "ab".repeat(32);
        for file in [
            "".to_owned(),
            "-".to_owned(),
            "..".to_owned(),
            hash.clone(),
            format!("{hash}-"),
            format!("{hash}-+5"),
            format!("{hash}-05"),
            format!("{hash}--5"),
            format!("{hash}-5.x.x"),
            format!("{hash}-5.y"),
            format!("{}-5", hash.to_uppercase()),
            format!("{hash}-99999999999999999999"),
        ] {
            assert_eq!(parse(DigestFunction::Sha256, "ab", &file), None, "{file}");
        }
        let right = format!("{hash}-5");
        assert!(parse(DigestFunction::Sha256, "ab", &right).is_some());
        assert!(parse(DigestFunction::Sha256, "ac", &right).is_none());
    }
}
