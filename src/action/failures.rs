//! The class of a failure in another room: whose fault it is, and whether trying again can help. What cannot come out
//! differently another time must not be told as a failure of the worker: a scheduler would give the action to one worker after
//! the other, and each would take itself for broken.

use std::collections::HashSet;

use tonic::Code;

use super::Ending;
use crate::cas::{CasError, LocalStore, disk_size};
use crate::config::units::rough_size;
use crate::inputs::InputError;
use crate::outputs::OutputError;
use crate::reapi::Digest;
use crate::reapi::status::MissingBlob;
use crate::tree::{Tree, TreeError};

/// Of the CAS; `what` names a missing blob.
pub(super) fn from_cas(error: CasError, what: impl Fn(Digest) -> String) -> Ending {
    match error {
        CasError::Missing(digests) => Ending::MissingInputs(
            digests
                .into_iter()
                .map(|digest| MissingBlob {
                    digest,
                    what: what(digest),
                })
                .collect(),
        ),
        CasError::TooLarge { .. } => Ending::BadRequest(error.to_string()),
        error => Ending::Infrastructure(error.to_string()),
    }
}

/// Of an upload. Missing blobs are somebody else's business.
pub(super) fn from_upload(error: CasError) -> Ending {
    match &error {
        CasError::Remote { call, status, .. } if is_final(call, status.code()) => Ending::Refused(
            format!("the remote CAS does not take the action's outputs: {error}"),
        ),
        _ => Ending::Infrastructure(error.to_string()),
    }
}

/// Whether the remote means the blob by this, and not the worker (as with credentials that it does not accept), its own
/// state, or a connection.
fn is_final(call: &str, code: Code) -> bool {
    matches!(call, "BatchUpdateBlobs" | "ByteStream.Write")
        && matches!(
            code,
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange
        )
}

/// Of reading a tree.
pub(super) fn from_tree(error: TreeError) -> Ending {
    match error {
        TreeError::Invalid { .. } | TreeError::TooLarge { .. } => {
            Ending::BadRequest(error.to_string())
        }
        TreeError::Missing(missing) => Ending::MissingInputs(missing),
        TreeError::Cas(error) => from_cas(error, |_| "an input directory".to_owned()),
    }
}

/// Of showing `tree`, or of reading what is in it, in this store; `whole` if all of it must be here at once.
pub(super) fn from_inputs(
    error: InputError,
    tree: &Tree,
    store: &LocalStore,
    whole: bool,
) -> Ending {
    let most = store.largest_blob();
    if let Some(asked) = no_room_for(&error)
        && let Some(needed) = tree.bytes_beyond(most)
        && (whole || asked > most || fills(tree, store, asked, most))
    {
        return Ending::Refused(format!(
            "the inputs of the action have {}, more than the {} that fit into the CAS of this worker \
             (cas-quota-high); max-input-bytes tells so before anything is fetched, if it is not above that",
            rough_size(needed),
            rough_size(most)
        ));
    }
    match error {
        InputError::Missing(missing) => Ending::MissingInputs(missing),
        InputError::Directory { .. } => Ending::BadRequest(error.to_string()),
        InputError::Disk { .. } | InputError::Unreadable { .. } | InputError::Ended => {
            Ending::Infrastructure(error.to_string())
        }
        InputError::Cas(error) => from_cas(error, |_| "an input file".to_owned()),
    }
}

/// Whether there is no room for what this tree has here already and for so many bytes more. Else it is others who fill the store, and
/// another time there may be room.
fn fills(tree: &Tree, store: &LocalStore, asked: u64, most: u64) -> bool {
    let digests: HashSet<Digest> = { tree.blobs() }.into_iter().map(|w| w.digest).collect();
    let digests: Vec<Digest> = digests.into_iter().collect();
    let missing: HashSet<Digest> = store.missing(&digests).into_iter().collect();
    let here = { digests.iter() }.filter(|digest| !missing.contains(digest));
    let bytes = here.map(|digest| disk_size(digest.size()));
    bytes.fold(disk_size(asked), u64::saturating_add) > most
}

/// The bytes that did not fit, if it is that.
fn no_room_for(error: &InputError) -> Option<u64> {
    let why = match error {
        InputError::Unreadable { why, .. } => why,
        InputError::Cas(why) => why,
        _ => return None,
    };
    match why {
        CasError::Full { needed, .. } => Some(*needed),
        _ => None,
    }
}

/// Of collecting outputs.
pub(super) fn from_outputs(error: OutputError) -> Ending {
    match error {
        OutputError::Refused { .. } => Ending::BadOutput(error.to_string()),
        OutputError::Limit { .. } => Ending::LimitExceeded(error.to_string()),
        OutputError::Cancelled => Ending::Cancelled,
        OutputError::Disk { .. } | OutputError::Cas(_) => Ending::Infrastructure(error.to_string()),
    }
}
