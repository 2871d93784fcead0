//! An input root that is an overlay, seen without mounting it: what the command made or changed is in the upper layer
//! (whiteouts for what it removed, opaque directories for what it replaced), everything else in the tree beneath.
//!
//! The layout is that of overlayfs with `redirect_dir` and `metacopy` off
//! (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick};

use crate::beneath;
use crate::reapi::Digest;
use crate::tree::{self, Directory, Tree};

/// The attribute of opaque directories: another one where the overlay was not mounted by root (`userxattr`).
fn opaque() -> &'static str {
    match rustix::process::geteuid().is_root() {
        true => "trusted.overlay.opaque",
        false => "user.overlay.opaque",
    }
}

/// What `statfs` says of an overlay (OVERLAYFS_SUPER_MAGIC).
const OVERLAY: u64 = 0x794c_7630;

/// Lets nobody change anything any more through the overlay that is mounted at `at`, wherever else it is mounted and whoever has a
/// file of it open. The kernel refuses as long as anybody may write through it.
pub(super) fn close(at: &Path) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, at, flags, Mode::empty())?;
    // Any other file system has more on it than this action's files.
    if u64::try_from(rustix::fs::fstatfs(&root)?.f_type) != Ok(OVERLAY) {
        return Err(Errno::INVAL);
    }
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let overlay = fspick(&root, "", flags)?;
    fsconfig_set_flag(&overlay, "ro")?;
    fsconfig_reconfigure(&overlay)
}

/// Where a directory is: in one of the layers, or in both, merged.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) upper: Option<OwnedFd>,
    pub(super) lower: Option<Digest>,
}

/// Finds the directory at `path`. A symbolic link on the way is `ELOOP`, a file `ENOTDIR`.
pub(super) fn locate(root: &OwnedFd, tree: &Tree, path: &str) -> Result<Place, Errno> {
    let mut at = Place {
        upper: Some(rustix::io::fcntl_dupfd_cloexec(root, 0)?),
        lower: Some(tree.root),
    };
    for name in path.split('/').filter(|name| !name.is_empty()) {
        at = at.enter(tree, name)?;
    }
    Ok(at)
}

impl Place {
    fn enter(&self, tree: &Tree, name: &str) -> Result<Place, Errno> {
        let upper = match &self.upper {
            Some(upper) => in_upper(upper, name)?,
            None => Upper::Silent,
        };
        let lower = match upper {
            Upper::Hides | Upper::Opaque(_) => None,
            Upper::Silent | Upper::Merged(_) => self.lower.and_then(|d| below(tree, d, name)),
        };
        let upper = match upper {
            Upper::Opaque(fd) | Upper::Merged(fd) => Some(fd),
            Upper::Hides | Upper::Silent => None,
        };
        match (upper, lower) {
            (None, None) => Err(Errno::NOENT),
            (None, Some(tree::Node::File(_))) => Err(Errno::NOTDIR),
            (None, Some(tree::Node::Symlink(_))) => Err(Errno::LOOP),
            (upper, Some(tree::Node::Directory(digest, _))) => Ok(Place {
                upper,
                lower: Some(digest),
            }),
            (upper, _) => Ok(Place { upper, lower: None }),
        }
    }
}

enum Upper {
    /// It has nothing to say.
    Silent,
    Hides,
    Opaque(OwnedFd),
    Merged(OwnedFd),
}

fn in_upper(directory: &OwnedFd, name: &str) -> Result<Upper, Errno> {
    let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Upper::Silent),
        Err(error) => return Err(error),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let fd = beneath::entry(directory, name, flags)?;
            Ok(if is_opaque(&fd)? {
                Upper::Opaque(fd)
            } else {
                Upper::Merged(fd)
            })
        }
        FileType::Symlink => Err(Errno::LOOP),
        _ if is_whiteout(&stat) => Ok(Upper::Hides),
        _ => Err(Errno::NOTDIR),
    }
}

/// Whether this says that what the tree has under the name was removed.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether the tree's entries do not show through a directory. It is open for reading.
pub(super) fn is_opaque(directory: impl AsFd) -> Result<bool, Errno> {
    let mut value = [0_u8; 8];
    match rustix::fs::fgetxattr(directory, opaque(), &mut value) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(Errno::RANGE) => Ok(false),
        Err(error) => Err(error),
    }
}

/// An entry of a directory of the tree.
pub(super) fn below<'t>(tree: &'t Tree, directory: Digest, name: &str) -> Option<tree::Node<'t>> {
    child(tree, tree.directories.get(&directory)?, name)
}

fn child<'t>(tree: &'t Tree, directory: &'t Directory, name: &str) -> Option<tree::Node<'t>> {
    if let Ok(n) = directory
        .directories
        .binary_search_by(|d| (*d.name).cmp(name))
    {
        let (digest, found) = tree
            .directories
            .get_key_value(&directory.directories[n].digest)?;
        return Some(tree::Node::Directory(*digest, found));
    }
    if let Ok(n) = directory.files.binary_search_by(|f| (*f.name).cmp(name)) {
        return Some(tree::Node::File(&directory.files[n]));
    }
    let n = directory
        .symlinks
        .binary_search_by(|s| (*s.name).cmp(name))
        .ok()?;
    Some(tree::Node::Symlink(&directory.symlinks[n]))
}
