//! The state directory: whether it can be used, by whom, and what its file system can do.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::passage::closed_to;

/// What is known of it.
#[derive(Debug)]
pub struct StateDir {
    /// The directory, or the nearest one above that exists.
    pub nearest: PathBuf,
    /// Whether it exists itself.
    pub exists: bool,
    /// Whether files can be made there, and why not.
    pub writable: Result<(), io::Error>,
    /// The name of the file system's type, or its number.
    pub kind: String,
    /// Bytes that are free.
    pub free: u64,
    /// Whether files can be cloned instead of copied.
    pub reflinks: bool,
    /// A directory on the way that the users of a root daemon's actions cannot pass, if there is one.
    pub closed_above: Option<PathBuf>,
    /// Whether its file system is mounted such that no program on it can be executed (noexec).
    pub noexec: bool,
}

impl StateDir {
    /// Whether probes can make files there.
    pub fn usable(&self) -> bool {
        self.exists && self.writable.is_ok()
    }
}

/// Whether the file system of `path` is mounted such that no program on it can be executed (noexec). Files that are shown by
/// another file system are not concerned.
pub fn forbids_programs(path: &Path) -> io::Result<bool> {
    let flags = rustix::fs::statvfs(path)?.f_flag;
    Ok(flags.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
}

/// Looks, and makes and removes two files; `id` is the user of actions.
pub fn state_dir(dir: &Path, id: u32) -> StateDir {
    let nearest = dir
        .ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"));
    let exists = nearest == dir;
    let (writable, reflinks) = match exists {
        true => try_out(nearest),
        false => {
            let access = rustix::fs::access(nearest, rustix::fs::Access::WRITE_OK);
            (access.map_err(io::Error::from), false)
        }
    };
    let disk = rustix::fs::statfs(nearest);
    let space = rustix::fs::statvfs(nearest);
    StateDir {
        exists,
        writable,
        reflinks,
        kind: disk.map_or_else(|_| "unknown".to_owned(), |disk| kind(disk.f_type as u64)),
        free: space.map_or(0, |space| space.f_bavail.saturating_mul(space.f_frsize)),
        closed_above: closed_to(nearest, id).unwrap_or_else(|_| {
            // Whoever is not the owner passes by the last digit.
            let closed = |path: &&Path| {
                fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o001 == 0)
            };
            nearest.ancestors().find(closed).map(Path::to_owned)
        }),
        noexec: forbids_programs(nearest).unwrap_or(false),
        nearest: nearest.to_owned(),
    }
}

fn try_out(dir: &Path) -> (Result<(), io::Error>, bool) {
    let path = |end: &str| dir.join(format!(".boxwright-doctor-{}-{end}", std::process::id()));
    let (from, to) = (path("a"), path("b"));
    let made = fs::write(&from, b"x");
    let cloned = || -> io::Result<()> {
        let (source, copy) = (fs::File::open(&from)?, fs::File::create(&to)?);
        Ok(rustix::fs::ioctl_ficlone(&copy, &source)?)
    };
    let reflinks = made.is_ok() && cloned().is_ok();
    for path in [&from, &to] {
        let _ = fs::remove_file(path);
    }
    (made, reflinks)
}

fn kind(magic: u64) -> String {
    let name = match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        other => return format!("a file system of type {other:#x}"),
    };
    name.to_owned()
}
