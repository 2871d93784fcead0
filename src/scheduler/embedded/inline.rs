//! Output content inside the result, for clients that ask for it.

use std::collections::HashSet;
use std::sync::Arc;

use crate::cas::{CasError, LocalStore};
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

/// Bytes that are inlined into one result at most, so that it stays far below the 4 MiB that clients take by default.
const BUDGET: u64 = 1 << 20;

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
        let mut left = BUDGET.saturating_sub(
            (result.stdout_raw.len() + result.stderr_raw.len()) as u64
                + result
                    .output_files
                    .iter()
                    .map(|file| file.contents.len() as u64)
                    .sum::<u64>(),
        );
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
