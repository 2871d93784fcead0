//! Real files in a directory per action: hard links, clones or copies of blobs.

use std::path::PathBuf;

use async_trait::async_trait;

use super::{InputError, InputRoots, StageRequest, StagedRoot};
use crate::cas::Cas;

/// The plainest input roots.
pub struct Staged {}

impl Staged {
    /// Stages below `dir`, which should be on the local store's file system and is emptied first.
    pub fn new(_cas: Cas, _dir: PathBuf) -> Result<Self, InputError> {
        todo!()
    }
}

#[async_trait]
impl InputRoots for Staged {
    fn name(&self) -> &'static str {
        "staged"
    }
    async fn stage(&self, _request: StageRequest) -> Result<Box<dyn StagedRoot>, InputError> {
        todo!()
    }
}
