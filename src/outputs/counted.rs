//! How much was found so far, held against the limits: whoever exceeds one is named.

use super::{OutputError, OutputLimits, beyond};

/// What was counted.
pub(super) struct Counted {
    limits: OutputLimits,
    nodes: u64,
    bytes: u64,
}

impl Counted {
    pub(super) fn within(limits: OutputLimits) -> Self {
        Counted {
            limits,
            nodes: 0,
            bytes: 0,
        }
    }

    /// Counts the file, directory or link at `path`.
    pub(super) fn node(&mut self, path: &str) -> Result<(), OutputError> {
        self.nodes += 1;
        let limit = self.limits.nodes;
        if self.nodes > limit {
            let problem =
                format!("is one too many: more than {limit} files, directories and links");
            return Err(beyond(path, problem));
        }
        Ok(())
    }

    /// Counts the bytes of the file at `path`.
    pub(super) fn bytes(&mut self, path: &str, size: u64) -> Result<(), OutputError> {
        self.bytes = self.bytes.saturating_add(size);
        let limit = self.limits.bytes;
        if self.bytes > limit {
            let problem =
                format!("brings the outputs to more than {limit} bytes; it has {size} itself");
            return Err(beyond(path, problem));
        }
        Ok(())
    }
}
