//! A file on its way into the store, under a name that means nothing: of a blob that comes in
//! pieces, or of one that is copied. It is removed if it does not become a blob.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::fs::AtFlags;

use super::claim::Claim;
use super::names::{BlobName, Kind};
use super::{CasError, LocalStore, put};
use crate::reapi::Digest;

/// Open for writing.
pub(super) struct TempFile<S: Deref<Target = LocalStore>> {
    store: S,
    pub(super) file: File,
    name: String,
    kind: Kind,
    published: bool,
}

impl<S: Deref<Target = LocalStore>> TempFile<S> {
    pub(super) fn new(store: S, digest: Digest, kind: Kind) -> Result<Self, CasError> {
        let number = store.temps.fetch_add(1, Ordering::Relaxed);
        let name = number.to_string();
        let file = store.with_space(0, "create a file for blob", digest, || {
            Ok(put::create(&store.layout.tmp, name.as_str(), kind.mode())?)
        })?;
        Ok(TempFile {
            store,
            file,
            name,
            kind,
            published: false,
        })
    }

    /// Gives it its final name. All its bytes must be written and verified.
    pub(super) fn publish(mut self, claim: &mut Claim<'_>) -> Result<(), CasError> {
        let name = BlobName::new(claim.digest, self.kind);
        let tmp = self.store.layout.tmp.as_fd();
        let from = (tmp, self.name.as_str());
        self.store
            .move_in("rename into place blob", claim.digest, from, &name)?;
        self.published = true;
        claim.add(self.kind);
        Ok(())
    }
}

impl<S: Deref<Target = LocalStore>> Drop for TempFile<S> {
    fn drop(&mut self) {
        if !self.published {
            let tmp = &self.store.layout.tmp;
            let _ = rustix::fs::unlinkat(tmp, self.name.as_str(), AtFlags::empty());
        }
    }
}
