//! Directories of an input root that stay read-only, and those below them that do not.
//!
//! A read-only directory is mounted over itself. So would be a writable one below it, but then nothing could be linked or renamed
//! from one such part to another, for the kernel does neither across mounts; and builds do both, between the directory that
//! they build in and the one that they install to. BuildStream's root is read-only but for these. A read-only root therefore
//! keeps one writable mount: what lies beside the ways to its writable parts is mounted over itself, and the directories on
//! these ways are left to Landlock. Where there is no Landlock each writable part is a mount of its own.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::sys;
use super::template::TAME;

/// Below an input root, without following a link.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);
/// So much beside the ways is mounted; what there is more of in one directory is left to Landlock too.
const MOST: usize = 1024;

/// What could not be kept as it should be.
#[derive(Debug)]
pub(super) struct NotKept {
    /// The directory, relative to the input root.
    pub(super) path: String,
    pub(super) source: io::Error,
}

fn failed<E: Into<io::Error>>(path: &str) -> impl FnOnce(E) -> NotKept {
    let path = path.to_owned();
    move |error| NotKept {
        path,
        source: error.into(),
    }
}

/// Mounts what is needed below `input`, which holds no other mounts yet. Returns the directories below which Landlock is to let
/// commands write. All paths are relative and clean; the empty one is the input root.
pub(super) fn keep(
    input: BorrowedFd<'_>,
    read_only: &[&str],
    writable: &[&str],
    landlock: bool,
) -> Result<Vec<OwnedFd>, NotKept> {
    let ways = match landlock && read_only.contains(&"") {
        true => ways(writable),
        false => BTreeSet::new(),
    };
    let one_mount = !ways.is_empty();
    // Taken before anything is read-only.
    let mut places = Vec::with_capacity(read_only.len() + writable.len());
    for path in writable {
        let below_another = || {
            read_only
                .iter()
                .any(|above| !above.is_empty() && below(path, above))
        };
        if !one_mount || below_another() {
            places.push((*path, copy(input, path).map_err(failed(path))?));
        }
    }
    for path in read_only {
        if !path.is_empty() {
            places.push((*path, closed(input, path).map_err(failed(path))?));
        }
    }
    for way in &ways {
        for beside in beside(input, way, &ways, writable).map_err(failed(way))? {
            let tree = closed(input, &beside).map_err(failed(&beside))?;
            put(input, &beside, tree).map_err(failed(&beside))?;
        }
    }
    if read_only.contains(&"") && !one_mount {
        let closed = TAME | libc::MOUNT_ATTR_RDONLY;
        sys::set_mount_attributes(input, closed).map_err(failed(""))?;
    }
    // What is nearest above a path counts, so that parents go first.
    places.sort_by_key(|(path, _)| path.split('/').count());
    for (path, tree) in places {
        put(input, path, tree).map_err(failed(path))?;
    }
    if !one_mount {
        return Ok(vec![at(input, "").map_err(failed(""))?]);
    }
    let open = |path: &&str| at(input, path).map_err(failed(path));
    writable.iter().map(open).collect()
}

fn below(path: &str, above: &str) -> bool {
    path.strip_prefix(above)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// The directories above these, the root among them.
fn ways(paths: &[&str]) -> BTreeSet<String> {
    let mut ways = BTreeSet::new();
    for path in paths {
        ways.insert(String::new());
        let cuts = path.match_indices('/');
        ways.extend(cuts.map(|(cut, _)| path[..cut].to_owned()));
    }
    ways
}

/// The files and directories in `way` that lead to no writable part.
fn beside(
    input: BorrowedFd<'_>,
    way: &str,
    ways: &BTreeSet<String>,
    writable: &[&str],
) -> rustix::io::Result<Vec<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = match way {
        "" => rustix::fs::openat(input, ".", flags, Mode::empty())?,
        way => rustix::fs::openat2(input, way, flags, Mode::empty(), BENEATH)?,
    };
    let mut found = Vec::new();
    for entry in Dir::read_from(&listed)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        if matches!(name, "." | "..") {
            continue;
        }
        let stat = rustix::fs::statat(&listed, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::Directory | FileType::RegularFile) {
            continue;
        }
        let path = match way {
            "" => name.to_owned(),
            way => format!("{way}/{name}"),
        };
        if !ways.contains(&path) && !writable.contains(&&*path) {
            found.push(path);
        }
        if found.len() == MOST {
            break;
        }
    }
    Ok(found)
}

fn at(input: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match path {
        "" => rustix::fs::openat(input, ".", flags | OFlags::DIRECTORY, Mode::empty()),
        path => rustix::fs::openat2(input, path, flags, Mode::empty(), BENEATH),
    }
}

/// A detached mount of a part of the input root.
fn copy(input: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(at(input, path)?, "", flags)
}

/// The same, read-only.
fn closed(input: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let tree = copy(input, path)?;
    sys::set_mount_attributes(tree.as_fd(), TAME | libc::MOUNT_ATTR_RDONLY)?;
    Ok(tree)
}

fn put(input: BorrowedFd<'_>, path: &str, tree: OwnedFd) -> Result<(), Errno> {
    let place = at(input, path)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", &place, "", flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: &str = "buildstream/lab/hello.bst";

    #[test]
    fn the_ways_lead_to_all_that_is_writable() {
        let found = ways(&["dev", BUILD, "buildstream-install"]);
        let expected = ["", "buildstream", "buildstream/lab"].map(String::from);
        assert_eq!(found, BTreeSet::from(expected));
        assert!(ways(&[]).is_empty());
    }

    #[test]
    fn what_lies_beside_the_ways_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            "bin",
            "dev",
            BUILD,
            "buildstream/other",
            "buildstream-install",
        ] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::fs::write(dir.path().join("init"), "").unwrap();
        std::os::unix::fs::symlink("bin", dir.path().join("sbin")).unwrap();
        let input = std::fs::File::open(dir.path()).unwrap();
        let writable = ["dev", BUILD, "buildstream-install"];
        let ways = ways(&writable);
        let look = |way: &str| {
            let mut found = beside(input.as_fd(), way, &ways, &writable).unwrap();
            found.sort();
            found
        };
        assert_eq!(look(""), ["bin", "init"]);
        assert_eq!(look("buildstream"), ["buildstream/other"]);
        assert!(look("buildstream/lab").is_empty());
    }

    #[test]
    fn below_is_not_beside() {
        assert!(below("a/b/c", "a/b") && !below("a/bc", "a/b") && !below("a/b", "a/b"));
    }
}
