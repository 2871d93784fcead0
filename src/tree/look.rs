//! What a node looks like to an action, as far as its message says so.

use super::Properties;

/// The time of what has none of its own, 2011-11-11 11:11:11: the one that BuildBox shows, for tools write it into what they
/// make. It is later than the oldest time that a zip file can hold, and earlier than whatever an action makes.
const UNDATED: (i64, u32) = (1_321_009_871, 0);
/// Bits of a tree's `unix_mode` that are shown: never set-user-id or set-group-id, which would give whoever finds the file
/// the owner's rights.
const MODE_BITS: u32 = 0o1777;

/// The permission bits of a file whose node asks for none. Its owner may write: the CAS is out of reach behind the view.
pub(crate) fn file_mode(executable: bool) -> u32 {
    if executable { 0o755 } else { 0o644 }
}

/// The permission bits that a node's properties ask for.
pub(crate) fn shown_mode(properties: Option<&Properties>, otherwise: u32) -> u32 {
    properties
        .and_then(|p| p.unix_mode)
        .map_or(otherwise, |mode| mode & MODE_BITS)
}

/// The time that a node's properties ask for, as seconds since 1970 and nanoseconds.
pub(crate) fn shown_mtime(properties: Option<&Properties>) -> (i64, u32) {
    properties.and_then(|p| p.mtime).map_or(UNDATED, |time| {
        (time.seconds, u32::try_from(time.nanos).unwrap_or(0))
    })
}
