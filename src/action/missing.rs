//! Inputs that nobody has: the client is told of all of them at once, each with its path, so that it uploads them and
//! comes back once. To find out, the CAS is asked which it lacks; nothing is fetched.

use super::Ending;
use super::failures::from_upload;
use crate::cas::{Cas, CasError};
use crate::inputs::named;
use crate::reapi::Digest;
use crate::reapi::status::MissingBlob;
use crate::tree::Tree;

/// The input files of a tree that are neither here nor in the CAS.
pub(super) async fn files(cas: &Cas, tree: &Tree) -> Result<Vec<MissingBlob>, Ending> {
    let files = tree.blobs().iter().map(|wanted| wanted.digest).collect();
    let missing = cas.find_missing(files).await;
    let missing = missing.map_err(|error| Ending::Infrastructure(error.to_string()))?;
    Ok(named(tree, missing))
}

/// How an action ends that met some inputs which nobody has.
pub(super) async fn with_the_rest(cas: &Cas, tree: &Tree, met: Vec<MissingBlob>) -> Ending {
    let mut all = met;
    // If it cannot be asked, what was met is still to be told.
    if let Ok(files) = files(cas, tree).await {
        all.extend(files);
    }
    all.sort_by_key(|blob| blob.digest);
    all.dedup_by_key(|blob| blob.digest);
    Ending::MissingInputs(all)
}

/// How an action ends whose outputs could not be published: those that it left as they were in its inputs may be missing.
pub(super) async fn from_publish(cas: &Cas, tree: &Tree, error: CasError) -> Ending {
    match error {
        CasError::Missing(digests) => match inputs(tree, &digests) {
            Some(met) => with_the_rest(cas, tree, met).await,
            None => Ending::Infrastructure(CasError::Missing(digests).to_string()),
        },
        error => from_upload(error),
    }
}

/// These blobs with their paths, if all of them are inputs: what the command made itself is ours to have.
fn inputs(tree: &Tree, digests: &[Digest]) -> Option<Vec<MissingBlob>> {
    let known = tree.paths_of(digests);
    let all = digests.iter().all(|digest| known.contains_key(digest));
    all.then(|| named(tree, digests.to_vec()))
}
