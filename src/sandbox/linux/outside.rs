//! Who a daemon's commands are to the host.

use std::fs;
use std::path::Path;

use rustix::process::{getegid, geteuid};

use super::kind::Outside;
use super::namespace::OwnNamespace;
use crate::config::Owner;
use crate::sandbox::SandboxError;
use crate::sandbox::slot::uids::UidRange;

/// The ids of a daemon's commands and launchers.
#[derive(Debug)]
pub(super) struct Ids {
    pub(super) outside: Outside,
    /// Keeps other daemons from using them.
    _range: Option<UidRange>,
}

impl Ids {
    /// For root two ids that nobody else uses; for anybody else its own, and one of its subordinate ids if it has any.
    ///
    /// The ids are the same for all slots: what keeps slots apart is their namespaces, and a shared input tree can report
    /// one owner only.
    pub(super) fn find(
        first_uid: u32,
        namespace: Option<OwnNamespace>,
    ) -> Result<Ids, SandboxError> {
        if geteuid().is_root() {
            let range = UidRange::claim(first_uid, 1)?;
            let both = |id| Owner { uid: id, gid: id };
            let user = range.user(0).ok_or_else(|| SandboxError::Isolate {
                problem: "there is no id to run commands as".into(),
            })?;
            return Ok(Ids {
                outside: Outside {
                    command: both(user.uid),
                    launcher: Some(both(user.killer)),
                    map_tools: false,
                },
                _range: Some(range),
            });
        }
        let own = Owner {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
        };
        let launcher = match namespace {
            Some(namespace) => namespace.launcher,
            None => subordinates(own.uid),
        };
        Ok(Ids {
            outside: Outside {
                command: own,
                launcher,
                // In a namespace of its own, the keeper has the right itself, and the tools none.
                map_tools: launcher.is_some() && namespace.is_none(),
            },
            _range: None,
        })
    }
}

/// The first subordinate uid and gid of a user, if it has both and the tools to map them are there.
pub(super) fn subordinates(uid: u32) -> Option<Owner> {
    let tool = |name: &str| {
        let dirs = ["/usr/bin", "/bin", "/usr/local/bin"];
        dirs.iter().any(|dir| Path::new(dir).join(name).exists())
    };
    if !tool("newuidmap") || !tool("newgidmap") {
        return None;
    }
    let name = name_of(uid);
    let first = |path: &str| first_of(&fs::read_to_string(path).ok()?, uid, name.as_deref());
    Some(Owner {
        uid: first("/etc/subuid")?,
        gid: first("/etc/subgid")?,
    })
}

fn name_of(uid: u32) -> Option<String> {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid));
    Some(user.ok()??.name)
}

/// The first id of the first range of a user, who stands there by name or by number: `NAME:FIRST:COUNT`.
fn first_of(ranges: &str, uid: u32, name: Option<&str>) -> Option<u32> {
    let number = uid.to_string();
    ranges.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        let first: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        ((Some(who) == name || who == number) && count > 0 && first > 0).then_some(first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_number() {
        let ranges = "# none\nadm:100000:65536\n5000:300000:65536\nempty:7:0\n";
        assert_eq!(first_of(ranges, 5000, None), Some(300000));
        assert_eq!(first_of(ranges, 4, Some("adm")), Some(100000));
        assert_eq!(first_of(ranges, 4, Some("empty")), None);
        assert_eq!(first_of(ranges, 6, Some("nobody")), None);
    }
}
