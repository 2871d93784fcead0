//! What a node looks like to an action, as far as its message says so.

use super::Properties;

/// The time of what has none of its own, 2000-01-01: later than the oldest time that a zip file can hold, earlier than
/// whatever an action makes.
const UNDATED: (i64, u32) = (946_684_800, 0);
/// Bits of a tree's `unix_mode` that are shown: never set-user-id or set-group-id, which would give whoever finds the file
/// the owner's rights.
const MODE_BITS: u32 = 0o1777;

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
