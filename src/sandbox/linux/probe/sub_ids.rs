//! Subordinate ids: what `/etc/subuid` and `/etc/subgid` give the daemon's user, and the programs that put them into effect.

use std::ops::Range;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What there is for our user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubIds {
    /// User ids, range by range.
    pub uids: Vec<Range<u32>>,
    /// Group ids, range by range.
    pub gids: Vec<Range<u32>>,
    /// `newuidmap`, if it is there and may do what it is for.
    pub newuidmap: Option<PathBuf>,
    /// `newgidmap`, if it is there and may do what it is for.
    pub newgidmap: Option<PathBuf>,
}

impl SubIds {
    /// The first user and group, if both programs are there.
    pub fn first(&self) -> Option<(u32, u32)> {
        self.newuidmap.as_ref()?;
        self.newgidmap.as_ref()?;
        Some((self.uids.first()?.start, self.gids.first()?.start))
    }
}

/// Looks them up.
pub fn sub_ids() -> SubIds {
    let uid = nix::unistd::getuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten();
    let name = user.map(|user| user.name);
    let read = |path: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        ranges(&text, name.as_deref(), uid.as_raw())
    };
    SubIds {
        uids: read("/etc/subuid"),
        gids: read("/etc/subgid"),
        newuidmap: privileged("newuidmap"),
        newgidmap: privileged("newgidmap"),
    }
}

/// Lines are `USER:FIRST:COUNT`, where USER is a name or a number.
fn ranges(text: &str, name: Option<&str>, uid: u32) -> Vec<Range<u32>> {
    let line = |line: &str| {
        let mut fields = line.trim().split(':');
        let user = fields.next()?;
        if Some(user) != name && user.parse() != Ok(uid) {
            return None;
        }
        let first: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        let end = first.checked_add(count)?;
        (count > 0).then_some(first..end)
    };
    text.lines().filter_map(line).collect()
}

/// A program of root's that is set-uid or has a capability of its own.
fn privileged(name: &str) -> Option<PathBuf> {
    let path = super::fuse::which(name)?;
    let meta = path.metadata().ok()?;
    let set_uid = meta.uid() == 0 && meta.permissions().mode() & 0o4000 != 0;
    (set_uid || has_capabilities(&path)).then_some(path)
}

fn has_capabilities(path: &Path) -> bool {
    let mut value = [0; 64];
    rustix::fs::getxattr(path, "security.capability", &mut value).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_lines_count() {
        let text = "alice:100000:65536\nbob:165536:65536\n1000:300000:10\n\nalice:x:1\nalice:5:0\nalice:4294967295:2\n";
        assert_eq!(
            ranges(text, Some("alice"), 1000),
            [100_000..165_536, 300_000..300_010]
        );
        assert_eq!(ranges(text, None, 1001), []);
    }
}
