//! Digests: the name of a blob, with the function that computed it.
//!
//! REAPI: "A content digest. A digest for a given blob consists of the size of the blob and its
//! hash. The hash algorithm to use is defined by the server." Everything in this crate passes
//! [`Digest`] by value; the function travels in it, so that a SHA-256 blob and a BLAKE3 blob can
//! never be taken for one another. A digest that came from outside is checked once, in
//! [`Digest::from_proto`], and is well formed from then on.

use std::fmt;
use std::hash::Hash;
use std::str::FromStr;

use sha2::Digest as _;

use super::proto::re;

/// A hash function that blobs may be named by. Both have 32-byte hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DigestFunction {
    /// SHA-256, which every client and server speaks.
    #[default]
    Sha256,
    /// BLAKE3.
    Blake3,
}

impl DigestFunction {
    /// Every function that this build computes, the default first.
    pub const ALL: [DigestFunction; 2] = [DigestFunction::Sha256, DigestFunction::Blake3];

    /// The number of the function on the wire.
    pub fn to_proto(self) -> re::digest_function::Value {
        match self {
            DigestFunction::Sha256 => re::digest_function::Value::Sha256,
            DigestFunction::Blake3 => re::digest_function::Value::Blake3,
        }
    }

    /// Reads a request's `digest_function`. UNKNOWN means SHA-256 here: REAPI lets a server infer
    /// the function from the length of the hash, and both of ours have 64 digits, of which
    /// SHA-256 is the one that clients omit.
    pub fn from_proto(value: i32) -> Result<Self, DigestError> {
        match re::digest_function::Value::try_from(value) {
            Ok(re::digest_function::Value::Unknown | re::digest_function::Value::Sha256) => {
                Ok(DigestFunction::Sha256)
            }
            Ok(re::digest_function::Value::Blake3) => Ok(DigestFunction::Blake3),
            Ok(other) => Err(DigestError::UnsupportedFunction(
                other.as_str_name().to_owned(),
            )),
            Err(_) => Err(DigestError::UnsupportedFunction(format!("number {value}"))),
        }
    }

    /// The lowercase name, as resource names and paths have it.
    pub fn name(self) -> &'static str {
        match self {
            DigestFunction::Sha256 => "sha256",
            DigestFunction::Blake3 => "blake3",
        }
    }

    /// The function with this lowercase name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }

    /// The hash of no bytes at all.
    fn empty_hash(self) -> [u8; 32] {
        match self {
            DigestFunction::Sha256 => SHA256_OF_NOTHING,
            DigestFunction::Blake3 => BLAKE3_OF_NOTHING,
        }
    }

    /// A running hash of this function.
    pub fn hasher(self) -> Hasher {
        Hasher {
            size: 0,
            state: match self {
                DigestFunction::Sha256 => State::Sha256(sha2::Sha256::new()),
                DigestFunction::Blake3 => State::Blake3(Box::new(blake3::Hasher::new())),
            },
        }
    }

    /// The digest of a whole blob in memory.
    pub fn digest(self, data: &[u8]) -> Digest {
        let mut hasher = self.hasher();
        hasher.update(data);
        hasher.finish()
    }
}

const SHA256_OF_NOTHING: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];
const BLAKE3_OF_NOTHING: [u8; 32] = [
    0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6, 0xa0, 0x40, 0x4d, 0xea, 0x36, 0xdc, 0xc9, 0x49,
    0x9b, 0xcb, 0x25, 0xc9, 0xad, 0xc1, 0x12, 0xb7, 0xcc, 0x9a, 0x93, 0xca, 0xe4, 0x1f, 0x32, 0x62,
];

/// A hash in progress.
#[derive(Clone)]
pub struct Hasher {
    size: u64,
    state: State,
}

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// Takes the next bytes of the blob.
    pub fn update(&mut self, data: &[u8]) {
        self.size += data.len() as u64;
        match &mut self.state {
            State::Sha256(h) => h.update(data),
            State::Blake3(h) => {
                h.update(data);
            }
        }
    }

    /// How many bytes were taken so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest of all that was taken.
    pub fn finish(self) -> Digest {
        let (function, hash) = match self.state {
            State::Sha256(h) => (DigestFunction::Sha256, h.finalize().into()),
            State::Blake3(h) => (DigestFunction::Blake3, *h.finalize().as_bytes()),
        };
        Digest {
            hash,
            size: self.size,
            function,
        }
    }
}

/// The name of a blob.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest {
    hash: [u8; 32],
    size: u64,
    function: DigestFunction,
}

/// Why a digest from outside was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The field is absent.
    #[error("no digest given")]
    Absent,
    /// The hash is not 64 lowercase hexadecimal digits.
    #[error(
        "hash {0:?} is not {n} lowercase hexadecimal digits, as a {1} hash is",
        n = 64
    )]
    Hash(String, &'static str),
    /// The size is negative or absurd.
    #[error("size {0} of blob {1} is not a size")]
    Size(i64, String),
    /// The size is 0, and the hash is not the one of the empty blob.
    #[error("size 0 of blob {0} is wrong: that is not the {1} hash of the empty blob")]
    NotEmpty(String, &'static str),
    /// `hash/size` was expected.
    #[error("{0:?} is not a digest; it is written HASH/SIZE")]
    Text(String),
    /// A digest function that this build does not compute.
    #[error("digest function {0} is not supported; SHA256 and BLAKE3 are")]
    UnsupportedFunction(String),
}

/// Long names are shortened in messages: input from outside may be of any length.
fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 {
        text.to_owned()
    } else {
        let head: String = text.chars().take(77).collect();
        format!("{head}...")
    }
}

impl Digest {
    /// From a hash that was computed or checked here.
    pub fn new(function: DigestFunction, hash: [u8; 32], size: u64) -> Self {
        Digest {
            hash,
            size,
            function,
        }
    }

    /// From its parts as text; `hash` must be 64 lowercase hexadecimal digits, and of size 0 there is
    /// the empty blob only.
    pub fn parse(function: DigestFunction, hash: &str, size: i64) -> Result<Self, DigestError> {
        let bad = || DigestError::Hash(shorten(hash), function.name());
        if hash.len() != 64 {
            return Err(bad());
        }
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hash.as_bytes().chunks_exact(2)) {
            let (high, low) = digit(pair[0]).zip(digit(pair[1])).ok_or_else(bad)?;
            *byte = high << 4 | low;
        }
        let size = u64::try_from(size).map_err(|_| DigestError::Size(size, shorten(hash)))?;
        if size == 0 && bytes != function.empty_hash() {
            return Err(DigestError::NotEmpty(hash.to_owned(), function.name()));
        }
        Ok(Digest::new(function, bytes, size))
    }

    /// From the wire. An absent message is an error, as REAPI gives it no meaning.
    pub fn from_proto(
        function: DigestFunction,
        digest: Option<&re::Digest>,
    ) -> Result<Self, DigestError> {
        let digest = digest.ok_or(DigestError::Absent)?;
        Self::parse(function, &digest.hash, digest.size_bytes)
    }

    /// To the wire.
    pub fn to_proto(self) -> re::Digest {
        re::Digest {
            hash: self.hash_hex(),
            size_bytes: self.size as i64,
        }
    }

    /// The digest of the empty blob, which everybody has.
    pub fn empty(function: DigestFunction) -> Self {
        Digest::new(function, function.empty_hash(), 0)
    }

    /// Whether this names the empty blob.
    pub fn is_empty(self) -> bool {
        self.size == 0 && self.hash == self.function.empty_hash()
    }

    /// The size of the blob in bytes.
    pub fn size(self) -> u64 {
        self.size
    }

    /// The function that computed the hash.
    pub fn function(self) -> DigestFunction {
        self.function
    }

    /// The raw hash.
    pub fn hash(self) -> [u8; 32] {
        self.hash
    }

    /// The hash in lowercase hexadecimal digits.
    pub fn hash_hex(self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(64);
        for byte in self.hash {
            text.push(DIGITS[usize::from(byte >> 4)].into());
            text.push(DIGITS[usize::from(byte & 15)].into());
        }
        text
    }
}

/// In one piece: tables of digests are asked several times for each blob. All of it, for digests that nobody computed come
/// from outside, and could else be chosen to be alike.
impl Hash for Digest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let mut all = [0; 40];
        let (hash, size) = all.split_at_mut(32);
        hash.copy_from_slice(&self.hash);
        size.copy_from_slice(&self.size.to_le_bytes());
        state.write(&all);
    }
}

/// `HASH/SIZE`, as logs, resource names and the command line have it.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.hash_hex(), self.size)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.function.name())
    }
}

/// Reads `HASH/SIZE` or `FUNCTION:HASH/SIZE`; without a function it is SHA-256.
impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let bad = || DigestError::Text(shorten(text));
        let (function, rest) = match text.split_once(':') {
            Some((name, rest)) => (
                DigestFunction::from_name(name)
                    .ok_or_else(|| DigestError::UnsupportedFunction(shorten(name)))?,
                rest,
            ),
            None => (DigestFunction::Sha256, text),
        };
        let (hash, size) = rest.split_once('/').ok_or_else(bad)?;
        if !size.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        Self::parse(function, hash, size.parse().map_err(|_| bad())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn known_answers() {
        assert_eq!(
            DigestFunction::Sha256.digest(b"abc").to_string(),
            format!("{ABC}/3")
        );
        assert_eq!(
            DigestFunction::Blake3.digest(b"abc").hash_hex(),
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
        );
    }

    #[test]
    fn text_goes_there_and_back() {
        for function in DigestFunction::ALL {
            let digest = function.digest(b"some blob");
            assert_eq!(format!("{digest:?}").parse::<Digest>().unwrap(), digest);
        }
        assert_eq!(
            format!("{ABC}/3").parse::<Digest>().unwrap(),
            DigestFunction::Sha256.digest(b"abc")
        );
    }

    #[test]
    fn bad_digests_are_named() {
        let upper = ABC.to_uppercase();
        for (hash, size) in [
            (upper.as_str(), 3),
            ("", 0),
            ("abc", 3),
            (ABC, -1),
            ("../../etc/passwd", 1),
        ] {
            let error = Digest::parse(DigestFunction::Sha256, hash, size).unwrap_err();
            let subject = if hash == ABC { "-1" } else { hash };
            assert!(error.to_string().contains(subject), "{error}");
        }
        assert!(format!("{ABC}/+3").parse::<Digest>().is_err());
        assert!(
            format!("{ABC}/99999999999999999999")
                .parse::<Digest>()
                .is_err()
        );
        assert!(DigestFunction::from_proto(2).is_err());
        assert!(DigestFunction::from_proto(4711).is_err());
    }

    #[test]
    fn of_size_0_there_is_the_empty_blob_only() {
        for function in DigestFunction::ALL {
            let empty = function.digest(b"");
            assert_eq!(Digest::empty(function), empty);
            assert!(empty.is_empty());
            assert_eq!(Digest::parse(function, &empty.hash_hex(), 0), Ok(empty));
            let error = Digest::parse(function, ABC, 0).unwrap_err().to_string();
            assert!(error.contains(ABC) && error.contains("size 0"), "{error}");
            assert!(!Digest::new(function, [1; 32], 0).is_empty());
        }
        // The empty blob of one function is nothing to the other.
        let other = Digest::empty(DigestFunction::Blake3).hash_hex();
        assert!(Digest::parse(DigestFunction::Sha256, &other, 0).is_err());
    }

    #[test]
    fn messages_stay_short() {
        let error = Digest::parse(DigestFunction::Sha256, &"z".repeat(1 << 20), 1).unwrap_err();
        assert!(error.to_string().len() < 300);
    }
}
