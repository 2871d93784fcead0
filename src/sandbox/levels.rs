//! The sandboxes that a worker has, one for each level that this host can give and the operator allows.

use std::fmt;
use std::sync::Arc;

use super::{Level, Sandbox};

/// At most one sandbox of each level.
#[derive(Clone, Default)]
pub struct Sandboxes {
    /// Level `full`.
    pub full: Option<Arc<dyn Sandbox>>,
    /// Level `process`.
    pub process: Option<Arc<dyn Sandbox>>,
}

/// None of the levels that would do is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this worker gives {}, and {} is what would do", Named(.has), Named(.wanted))]
pub struct NoSandbox {
    /// What would have done, the best first.
    pub wanted: Vec<Level>,
    /// What there is, the strongest first.
    pub has: Vec<Level>,
}

impl Sandboxes {
    /// The sandbox of this level, if there is one.
    pub fn get(&self, level: Level) -> Option<&Arc<dyn Sandbox>> {
        match level {
            Level::Full => self.full.as_ref(),
            Level::Process => self.process.as_ref(),
        }
    }

    /// The levels that there are, the strongest first.
    pub fn levels(&self) -> Vec<Level> {
        Level::ALL
            .into_iter()
            .filter(|&level| self.get(level).is_some())
            .collect()
    }

    /// The first of these levels that there is; never one that is not among them.
    pub fn pick(&self, wanted: &[Level]) -> Result<&Arc<dyn Sandbox>, NoSandbox> {
        let found = wanted.iter().find_map(|&level| self.get(level));
        found.ok_or_else(|| NoSandbox {
            wanted: wanted.to_vec(),
            has: self.levels(),
        })
    }
}

impl fmt::Debug for Sandboxes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sandboxes").field(&self.levels()).finish()
    }
}

/// Levels for people: `level full`, `levels full and process`, `no level`.
pub struct Named<'a>(pub &'a [Level]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("no sandbox level"),
            [one] => write!(f, "sandbox level {}", one.name()),
            [first, rest @ ..] => {
                write!(f, "sandbox levels {}", first.name())?;
                rest.iter()
                    .try_for_each(|level| write!(f, " and {}", level.name()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::config::Owner;
    use crate::sandbox::{CommandSpec, Limits, Outcome, SandboxError};

    struct Of(Level);

    #[async_trait]
    impl Sandbox for Of {
        fn level(&self) -> Level {
            self.0
        }

        fn owner(&self, _: usize) -> Option<Owner> {
            None
        }

        fn unenforced(&self, _: &Limits) -> Vec<&'static str> {
            Vec::new()
        }

        async fn run(
            &self,
            slot: usize,
            _: CommandSpec,
            _: CancellationToken,
        ) -> Result<Outcome, SandboxError> {
            let problem = "runs nothing".to_owned();
            Err(SandboxError::Launcher { slot, problem })
        }
    }

    #[test]
    fn a_level_that_is_not_wanted_is_never_picked() {
        let full: Arc<dyn Sandbox> = Arc::new(Of(Level::Full));
        let process: Arc<dyn Sandbox> = Arc::new(Of(Level::Process));
        let both = Sandboxes {
            full: Some(full),
            process: Some(process.clone()),
        };
        let picked = |of: &Sandboxes, wanted: &[Level]| of.pick(wanted).map(|s| s.level());
        use Level::{Full, Process};
        assert_eq!(picked(&both, &[Full, Process]), Ok(Full));
        assert_eq!(picked(&both, &[Process, Full]), Ok(Process));
        let weak = Sandboxes {
            full: None,
            process: Some(process),
        };
        assert_eq!(picked(&weak, &[Full, Process]), Ok(Process));
        let error = picked(&weak, &[Full]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this worker gives sandbox level process, and sandbox level full is what would do"
        );
        assert!(picked(&weak, &[]).is_err());
    }
}
