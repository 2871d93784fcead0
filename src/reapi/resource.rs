//! ByteStream resource names of blobs.
//!
//! REAPI: reads are `{instance_name}/blobs/{digest_function/}{hash}/{size}` or
//! `{instance_name}/compressed-blobs/{compressor}/{uncompressed_digest_function/}{hash}/{size}`; writes have
//! `uploads/{uuid}/` before `blobs` or `compressed-blobs`, and may be followed by `/{optional_metadata}`. The instance name may be empty
//! (then its slash goes too) and may hold slashes, but none of the words `blobs`, `uploads`,
//! `actions`, `actionResults`, `operations`, `capabilities` and `compressed-blobs` as a segment.
//! "If the digest function is one of MD5, MURMUR3, SHA1, SHA256, SHA384, SHA512, or VSO, this
//! component MUST be omitted".

use super::digest::{Digest, DigestError, DigestFunction};

/// How a blob's bytes are packed on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compressor {
    /// As they are.
    Identity,
    /// One or more zstd frames.
    Zstd,
}

/// A parsed resource name of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobName {
    /// The instance, "" for the default one.
    pub instance: String,
    /// The blob (uncompressed, whatever the compressor).
    pub digest: Digest,
    /// How the bytes on the wire are packed.
    pub compressor: Compressor,
    /// The upload's id; only in names that are written to.
    pub upload: Option<String>,
}

/// Why a resource name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// No `blobs` or `compressed-blobs` where one belongs, or too few segments after it.
    #[error(
        "resource name {0:?} is not INSTANCE/blobs/HASH/SIZE or INSTANCE/uploads/UUID/blobs/HASH/SIZE"
    )]
    Shape(String),
    /// A compressor that was not announced.
    #[error("compressor {0:?} is not supported; zstd is")]
    Compressor(String),
    /// The digest in the name is malformed.
    #[error("resource name {0:?}: {1}")]
    Digest(String, #[source] DigestError),
}

/// A resource name is never longer than this; longer ones are refused unread.
pub const MAX_RESOURCE_NAME: usize = 4096;

impl BlobName {
    /// Parses a name to read from.
    pub fn parse_read(name: &str) -> Result<Self, ResourceError> {
        let (instance, rest) = split_instance(name, false)?;
        let (digest, compressor, used) = parse_blob(name, &rest)?;
        if used != rest.len() {
            return Err(ResourceError::Shape(shorten(name)));
        }
        Ok(BlobName {
            instance,
            digest,
            compressor,
            upload: None,
        })
    }

    /// Parses a name to write to. What follows the size is the client's own and is ignored.
    pub fn parse_write(name: &str) -> Result<Self, ResourceError> {
        let (instance, rest) = split_instance(name, true)?;
        let [_, uuid, blob @ ..] = rest.as_slice() else {
            return Err(ResourceError::Shape(shorten(name)));
        };
        if uuid.is_empty() || uuid.len() > 128 {
            return Err(ResourceError::Shape(shorten(name)));
        }
        let (digest, compressor, _) = parse_blob(name, blob)?;
        Ok(BlobName {
            instance,
            digest,
            compressor,
            upload: Some((*uuid).to_owned()),
        })
    }

    /// The name as text.
    pub fn render(&self) -> String {
        let mut name = String::new();
        if !self.instance.is_empty() {
            name.push_str(&self.instance);
            name.push('/');
        }
        if let Some(uuid) = &self.upload {
            name.push_str("uploads/");
            name.push_str(uuid);
            name.push('/');
        }
        name.push_str(match self.compressor {
            Compressor::Identity => "blobs/",
            Compressor::Zstd => "compressed-blobs/zstd/",
        });
        if self.digest.function() != DigestFunction::Sha256 {
            name.push_str(self.digest.function().name());
            name.push('/');
        }
        name.push_str(&self.digest.to_string());
        name
    }
}

fn shorten(name: &str) -> String {
    name.chars().take(200).collect()
}

/// Splits at the first segment that may not be part of an instance name.
fn split_instance(name: &str, write: bool) -> Result<(String, Vec<&str>), ResourceError> {
    let bad = || ResourceError::Shape(shorten(name));
    if name.len() > MAX_RESOURCE_NAME || name.contains('\0') {
        return Err(bad());
    }
    let segments: Vec<&str> = name.split('/').collect();
    let at = segments
        .iter()
        .position(|s| matches!(*s, "blobs" | "compressed-blobs" | "uploads"))
        .ok_or_else(bad)?;
    if (segments[at] == "uploads") != write || segments[..at].contains(&"") && at != 0 {
        return Err(bad());
    }
    Ok((segments[..at].join("/"), segments[at..].to_vec()))
}

/// Reads `blobs/...` or `compressed-blobs/...`; returns how many segments it took.
fn parse_blob(name: &str, segments: &[&str]) -> Result<(Digest, Compressor, usize), ResourceError> {
    let bad = || ResourceError::Shape(shorten(name));
    let (compressor, mut at) = match segments {
        ["blobs", ..] => (Compressor::Identity, 1),
        ["compressed-blobs", "zstd", ..] => (Compressor::Zstd, 2),
        ["compressed-blobs", "identity", ..] => (Compressor::Identity, 2),
        ["compressed-blobs", other, ..] => return Err(ResourceError::Compressor(shorten(other))),
        _ => return Err(bad()),
    };
    let mut function = DigestFunction::Sha256;
    if let Some(named) = segments.get(at).and_then(|s| DigestFunction::from_name(s)) {
        function = named;
        at += 1;
    }
    let [hash, size, ..] = &segments[at..] else {
        return Err(bad());
    };
    if size.is_empty() || !size.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let size = size.parse().map_err(|_| bad())?;
    let digest =
        Digest::parse(function, hash, size).map_err(|e| ResourceError::Digest(shorten(name), e))?;
    Ok((digest, compressor, at + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const H: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn names_go_there_and_back() {
        for name in [
            format!("blobs/{H}/3"),
            format!("main/blobs/{H}/3"),
            format!("a/b/c/compressed-blobs/zstd/{H}/3"),
            format!("main/blobs/blake3/{H}/3"),
        ] {
            assert_eq!(BlobName::parse_read(&name).unwrap().render(), name);
        }
        for name in [
            format!("uploads/u-1/blobs/{H}/3"),
            format!("main/uploads/u-1/compressed-blobs/zstd/blake3/{H}/3"),
        ] {
            assert_eq!(BlobName::parse_write(&name).unwrap().render(), name);
        }
        let named = BlobName::parse_write(&format!("uploads/u/blobs/{H}/3/src/main.c")).unwrap();
        assert_eq!(named.digest.size(), 3);
    }

    #[test]
    fn malformed_names_are_refused() {
        for name in [
            "",
            "/",
            "blobs",
            "blobs/",
            "blobs//3",
            "main",
            "main//blobs",
            &format!("blobs/{H}"),
            &format!("blobs/{H}/-1"),
            &format!("blobs/{H}/3/x"),
            &format!("blobs/{}/3", &H[1..]),
            &format!("uploads/u/blobs/{H}/3"),
            &format!("main//blobs/{H}/3"),
            &format!("compressed-blobs/brotli/{H}/3"),
            &format!("blobs/{H}/99999999999999999999"),
        ] {
            assert!(BlobName::parse_read(name).is_err(), "{name}");
        }
        for name in [
            "uploads",
            "uploads/u",
            &format!("uploads//blobs/{H}/3"),
            &format!("blobs/{H}/3"),
        ] {
            assert!(BlobName::parse_write(name).is_err(), "{name}");
        }
        assert!(BlobName::parse_read(&format!("{}/blobs/{H}/3", "x".repeat(1 << 20))).is_err());
    }
}
