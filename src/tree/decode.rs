//! One Directory message, from bytes to a validated [`Directory`].

use super::{Directory, TreeError};
use crate::reapi::Digest;

/// Decodes and validates one message. `digest` is its own name (its function is that of all digests inside).
pub fn decode(_digest: Digest, _message: &[u8]) -> Result<Directory, TreeError> {
    todo!()
}
