//! Whether the blobs that an open finds may be trusted.
//!
//! Blobs are not flushed one by one, so a power loss may leave files of the right length with
//! wrong content. A kill cannot: the kernel keeps what was written. Hence the rule, by `state`:
//! `clean` is trusted (everything was flushed before that was written); `open` in this same boot
//! is trusted; `open` in another boot sends all blobs to `unverified/` by one rename per function.
//! A blob comes back from there, again by rename, when it has been hashed, so what is still
//! unverified stays known over any further kill, whatever the clocks say.
//!
//! Until the note that the store is open is on disk, no blob is written, but blobs may go or be moved: whole files, so
//! what is left is as right as before. That is how room is made for the note on a full disk.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::Dir;
use rustix::io::Errno;

use super::layout::{make_folder, overwrite, read_small, replace};
use super::room::is_full;
use super::{CasError, clear, disk};
use crate::reapi::DigestFunction;

/// The id of this boot; `None` where the kernel does not tell.
pub(super) fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let id = id.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

/// Sets aside what may not be trusted. Returns the id to write with the notes.
pub(super) fn set_aside(
    top: &OwnedFd,
    root: &Path,
    boot: Option<String>,
) -> Result<String, CasError> {
    let (state, wrote) = read_state(top);
    if state == State::Open && (boot.is_none() || wrote != boot) {
        let mut any = false;
        for function in DigestFunction::ALL {
            any |= distrust(top, function)
                .map_err(|e| disk("set aside", root.join(function.name()).display(), e))?;
        }
        if any {
            tracing::warn!(
                store = %root.display(),
                "the blob store was not closed before the machine went down: \
                 its blobs are hashed before their first use"
            );
        }
    }
    Ok(boot.unwrap_or_else(|| "unknown".to_owned()))
}

/// Notes that the store is open in this boot. To be on disk before any blob is written.
pub(super) fn write_open(top: &OwnedFd, boot: &str) -> io::Result<()> {
    write_state(top, "open", boot)
}

/// Notes that everything was flushed.
pub(super) fn write_clean(top: &OwnedFd, boot: &str) -> io::Result<()> {
    write_state(top, "clean", boot)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Clean,
    Open,
}

/// What cannot be read counts as open in an unknown boot: nothing is trusted then.
fn read_state(top: &OwnedFd) -> (State, Option<String>) {
    let text = read_small(top, "state").unwrap_or_default();
    match text.trim_end().split_once(' ') {
        Some(("clean", _)) => (State::Clean, None),
        Some(("open", boot)) => (State::Open, Some(boot.to_owned())),
        _ => (State::Open, None),
    }
}

fn write_state(top: &OwnedFd, state: &str, boot: &str) -> io::Result<()> {
    let text = format!("{state} {boot}\n");
    // Also where it says so already: whoever wrote that may have been killed before it was on disk.
    match replace(top, "state", &text) {
        // A power loss may mix this with what is there. `clean` is true then, for everything is on disk until `open` is, and
        // from before `clean` is written; any other mixture is no boot's, and means distrust.
        Err(full) if is_full(&full) => match overwrite(top, "state", &text) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(full),
            other => other,
        },
        other => other,
    }
}

/// Moves all blobs of a function to `unverified/`; `false` if it has none, the store being new.
fn distrust(top: &OwnedFd, function: DigestFunction) -> io::Result<bool> {
    let from = function.name();
    let to = format!("unverified/{from}");
    match rustix::fs::renameat(top, from, top, to.as_str()) {
        Ok(()) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        // Some are still there from an earlier power loss.
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let from = make_folder(top, from, 0o700)?;
    let to = make_folder(top, &to, 0o700)?;
    for shard in Dir::read_from(&from)? {
        let shard = shard?;
        let name = shard.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match rustix::fs::renameat(&from, name, &to, name) {
            Ok(()) => continue,
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            // Either of the two is no shard, and nobody's loss.
            Err(Errno::NOTDIR) => {
                clear::remove(&to, name)?;
                rustix::fs::renameat(&from, name, &to, name)?;
                continue;
            }
            Err(Errno::ISDIR) => {
                clear::remove(&from, name)?;
                continue;
            }
            Err(e) => return Err(e.into()),
        }
        let old = clear::open_folder(&from, name)?;
        let new = clear::open_folder(&to, name)?;
        for file in Dir::read_from(&old)? {
            let file = file?;
            let name = file.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if rustix::fs::renameat(&old, name, &new, name).is_err() {
                clear::remove(&old, name)?;
            }
        }
    }
    Ok(true)
}
