//! What a launcher is told before its first command: who the commands believe to be, what they see, what they may call. It is
//! the same for all commands of one kind, so that most commands cost no more than a process.
//!
//! The daemon makes it, checked, from a profile; the launcher checks again what would be dangerous if it were wrong.

use prost::Message;

/// Where the input root is, if the root shows the host's tools.
pub const BUILD: &str = "/build";

/// See the module.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SetUpMessage {
    /// The user that commands believe to be.
    #[prost(uint32, tag = "1")]
    pub(super) uid: u32,
    /// The group that commands believe to be in.
    #[prost(uint32, tag = "2")]
    pub(super) gid: u32,
    /// Ids inside and outside; commands run as the first.
    #[prost(message, repeated, tag = "3")]
    pub(super) uids: Vec<IdPair>,
    /// As `uids`, for groups.
    #[prost(message, repeated, tag = "4")]
    pub(super) gids: Vec<IdPair>,
    /// The launcher's own user and group inside.
    #[prost(uint32, tag = "5")]
    pub(super) own_id: u32,
    /// The maps are written by newuidmap and newgidmap.
    #[prost(bool, tag = "6")]
    pub(super) map_tools: bool,
    /// Commands have the host's network.
    #[prost(bool, tag = "7")]
    pub(super) network: bool,
    /// The input root is the root.
    #[prost(bool, tag = "8")]
    pub(super) input_root: bool,
    /// What is shown of the host, read-only; absolute paths, parents before what they hold.
    #[prost(string, repeated, tag = "9")]
    pub(super) host_paths: Vec<String>,
    /// Small files beside them.
    #[prost(message, repeated, tag = "10")]
    pub(super) files: Vec<SmallFile>,
    /// Memory file systems.
    #[prost(message, repeated, tag = "11")]
    pub(super) tmpfs: Vec<Tmpfs>,
    /// Pseudo-terminals can be made.
    #[prost(bool, tag = "12")]
    pub(super) pts: bool,
    /// The filter of system calls, as the kernel takes it: eight bytes an instruction.
    #[prost(bytes = "vec", tag = "13")]
    pub(super) filter: Vec<u8>,
    /// Landlock is the second layer.
    #[prost(bool, tag = "14")]
    pub(super) landlock: bool,
    /// Landlock also keeps the command from abstract sockets of others.
    #[prost(bool, tag = "15")]
    pub(super) scope: bool,
    /// Input roots lie below this directory of the host, and come by name; empty if they come as mounts.
    #[prost(string, tag = "16")]
    pub(super) roots: String,
    /// Of each process.
    #[prost(message, repeated, tag = "17")]
    pub(super) limits: Vec<ResourceLimit>,
}

/// A resource limit; the greatest number is none.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ResourceLimit {
    #[prost(uint32, tag = "1")]
    pub(super) resource: u32,
    #[prost(uint64, tag = "2")]
    pub(super) soft: u64,
    #[prost(uint64, tag = "3")]
    pub(super) hard: u64,
}

/// One id, inside and outside.
#[derive(Clone, PartialEq, Message)]
pub(super) struct IdPair {
    #[prost(uint32, tag = "1")]
    pub(super) inside: u32,
    #[prost(uint32, tag = "2")]
    pub(super) outside: u32,
}

/// A file with its content.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SmallFile {
    #[prost(string, tag = "1")]
    pub(super) path: String,
    #[prost(string, tag = "2")]
    pub(super) content: String,
}

/// A memory file system, mode 1777.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Tmpfs {
    #[prost(string, tag = "1")]
    pub(super) path: String,
    #[prost(uint64, tag = "2")]
    pub(super) bytes: u64,
    #[prost(uint64, tag = "3")]
    pub(super) inodes: u64,
}

impl SetUpMessage {
    /// Reads and checks.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let message = SetUpMessage::decode(bytes).map_err(|e| e.to_string())?;
        message.check()?;
        Ok(message)
    }

    /// What must hold whoever made it.
    fn check(&self) -> Result<(), String> {
        let root_outside = |pairs: &[IdPair]| pairs.iter().any(|pair| pair.outside == 0);
        if root_outside(&self.uids) || root_outside(&self.gids) {
            return Err("no command may be the host's root: a map leads to id 0".into());
        }
        for (pairs, id) in [(&self.uids, self.uid), (&self.gids, self.gid)] {
            if pairs.first().is_none_or(|pair| pair.inside != id) {
                return Err(format!("the maps do not begin with id {id}"));
            }
            if !pairs.iter().any(|pair| pair.inside == self.own_id) && !self.alone() {
                return Err(format!("the maps lack the launcher's id {}", self.own_id));
            }
        }
        if self.filter.is_empty()
            || !self.filter.len().is_multiple_of(8)
            || self.filter.len() > 4096 * 8
        {
            return Err("the filter of system calls is not 1 to 4096 instructions".into());
        }
        let paths = self.host_paths.iter();
        let paths = paths.chain(self.files.iter().map(|file| &file.path));
        for path in paths.chain(self.tmpfs.iter().map(|tmpfs| &tmpfs.path)) {
            let clean = path.starts_with('/')
                && path.len() > 1
                && path[1..].split('/').all(|s| !matches!(s, "" | "." | ".."));
            if !clean || path.contains('\0') {
                return Err(format!("{path:?} is not a clean absolute path"));
            }
        }
        Ok(())
    }

    /// There is one id only, which the launcher shares with the commands.
    pub(super) fn alone(&self) -> bool {
        self.uids.len() == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> SetUpMessage {
        let pair = |inside, outside| IdPair { inside, outside };
        SetUpMessage {
            uid: 1000,
            gid: 1000,
            uids: vec![pair(1000, 5000), pair(0, 5001)],
            gids: vec![pair(1000, 5000), pair(0, 5001)],
            filter: vec![0; 8],
            ..Default::default()
        }
    }

    #[test]
    fn no_map_leads_to_the_hosts_root() {
        good().check().unwrap();
        let mut bad = good();
        bad.gids[1].outside = 0;
        assert!(bad.check().unwrap_err().contains("host's root"));
    }

    #[test]
    fn what_is_not_clean_is_refused() {
        type Break = fn(&mut SetUpMessage);
        let breaks: [Break; 6] = [
            |m| m.uids.swap(0, 1),
            |m| m.own_id = 7,
            |m| m.filter.clear(),
            |m| m.filter.push(0),
            |m| m.host_paths.push("/usr/../etc".into()),
            |m| {
                m.tmpfs.push(Tmpfs {
                    path: "tmp".into(),
                    ..Default::default()
                })
            },
        ];
        for break_it in breaks {
            let mut message = good();
            break_it(&mut message);
            assert!(
                SetUpMessage::read(&message.encode_to_vec()).is_err(),
                "{message:?}"
            );
        }
    }
}
