//! Output content inside the result, for clients that ask for it.

use std::collections::HashSet;
use std::sync::Arc;

use prost::Message;

use crate::cas::{CasError, LocalStore};
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

/// What clients take by default in one message.
const MESSAGE: usize = 4 << 20;
/// Left for what is around a result in its message: the operation and its metadata, tags and lengths.
const AROUND: usize = 64 << 10;
/// Bytes that are inlined into one result at most.
const BUDGET: usize = 1 << 20;
/// The largest response that is told; what is larger would be lost on the way.
pub(super) const LARGEST: usize = MESSAGE - 2 * AROUND;

/// Bytes that may be inlined into a result of `size` bytes.
fn budget(size: usize) -> u64 {
    BUDGET.min((MESSAGE - AROUND).saturating_sub(size)) as u64
}

/// What a client wants inlined.
#[derive(Clone, Debug, Default)]
pub struct Inline {
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Output files, by their paths in the result.
    pub files: Vec<String>,
}

impl Inline {
    /// Whether the result lacks something that was asked for.
    pub fn wants(&self, result: &re::ActionResult) -> bool {
        self.stdout && result.stdout_raw.is_empty() && result.stdout_digest.is_some()
            || self.stderr && result.stderr_raw.is_empty() && result.stderr_digest.is_some()
            || !self.files.is_empty() && !result.output_files.is_empty()
    }

    /// Fills in what was asked for, as far as it fits and is there. Blocks.
    ///
    /// REAPI: "The server MAY omit inlining, even if requested, and MUST do so if inlining would cause message size
    /// limits to be exceeded."
    pub fn fill(
        &self,
        store: &Arc<LocalStore>,
        function: DigestFunction,
        result: &mut re::ActionResult,
    ) -> Result<(), CasError> {
        let mut left = budget(result.encoded_len());
        let mut take = |digest: Option<&re::Digest>| -> Result<bytes::Bytes, CasError> {
            let Ok(digest) = Digest::from_proto(function, digest) else {
                return Ok(bytes::Bytes::new());
            };
            if digest.is_empty() || digest.size() > left {
                return Ok(bytes::Bytes::new());
            }
            let data = store.read(digest, left)?.unwrap_or_default();
            left -= data.len() as u64;
            Ok(data)
        };
        if self.stdout && result.stdout_raw.is_empty() {
            result.stdout_raw = take(result.stdout_digest.as_ref())?;
        }
        if self.stderr && result.stderr_raw.is_empty() {
            result.stderr_raw = take(result.stderr_digest.as_ref())?;
        }
        let wanted: HashSet<&str> = self.files.iter().map(String::as_str).collect();
        for file in &mut result.output_files {
            if file.contents.is_empty() && wanted.contains(file.path.as_str()) {
                file.contents = take(file.digest.as_ref())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inlining_keeps_within_what_clients_take() {
        assert_eq!(budget(0), 1 << 20);
        assert_eq!(budget(2 << 20), 1 << 20);
        assert_eq!(budget((7 << 20) / 2), (1 << 19) - (64 << 10));
        assert_eq!(budget(4 << 20), 0);
        assert_eq!(budget(usize::MAX), 0);
    }
}
