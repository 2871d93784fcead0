//! The layer that an action writes to, before it runs: empty but for the directories that must exist.
//!
//! They are made in the layer itself and not through the overlay, which would look every name up. Where the tree has a
//! directory, the layer's stands for it and gets its owner, mode and time. A symbolic link on the way is followed as long as
//! it stays below the root, in memory.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};

use super::entry::{self, Entry};
use super::mounts::failed;
use super::plan::below;
use super::subtree::Subtree;
use crate::beneath::{self, Links, modified};
use crate::config::Owner;
use crate::inputs::InputError;
use crate::tree::{Directory, Properties, check_name, quote, shown_mode, shown_mtime};

/// Symbolic links that are followed on one way, as many as the kernel does.
const LINKS: usize = 40;

/// Where a directory that must exist really is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Its path, through no link.
    pub(super) path: String,
    /// How much of it the tree has.
    there: usize,
}

/// Where all of an action's directories really are.
pub(super) fn ways(root: &Subtree, paths: &[String]) -> Result<Vec<Way>, InputError> {
    paths.iter().map(|path| way(root, path)).collect()
}

/// Finds the directory that `path` leads to in the tree, or would if what is lacking were made.
pub(super) fn way(root: &Subtree, path: &str) -> Result<Way, InputError> {
    let refused = |why: String| InputError::Directory {
        path: quote::path(path),
        why,
    };
    for name in path.split('/').filter(|_| !path.is_empty()) {
        check_name(name).map_err(|why| refused(format!("{} {why}", quote::name(name))))?;
    }
    // What is still to be gone, the next name last; with whether it came out of a link.
    let mut ahead: Vec<(String, bool)> = Vec::new();
    let push = |ahead: &mut Vec<(String, bool)>, path: &str, linked| {
        let names = path
            .split('/')
            .rev()
            .filter(|name| !matches!(*name, "" | "."));
        ahead.extend(names.map(|name| (name.to_owned(), linked)));
    };
    push(&mut ahead, path, false);
    let mut at: Vec<(&str, &Subtree)> = Vec::new();
    let mut links = 0;
    let shown = |at: &[(&str, &Subtree)], name: &str| {
        let names = at.iter().map(|(name, _)| *name).chain([name]);
        quote::path(&names.collect::<Vec<_>>().join("/"))
    };
    while let Some((name, linked)) = ahead.pop() {
        let here = at.last().map_or(root, |(_, subtree)| subtree);
        if name == ".." {
            if at.pop().is_none() {
                return Err(refused(
                    "it leads out of the input root by a symbolic link".into(),
                ));
            }
            continue;
        }
        let found = entry::find(&here.directory, &name);
        match found.and_then(|index| entry::at(&here.directory, index)) {
            Some(Entry::Directory(index)) => {
                let directory = here.directory.directories.get(index);
                if let (Some(directory), Some(child)) = (directory, here.children.get(index)) {
                    at.push((&directory.name, child));
                }
            }
            Some(Entry::File(_)) => {
                let shown = shown(&at, &name);
                return Err(refused(format!(
                    "{shown} is not a directory in the input tree"
                )));
            }
            Some(Entry::Symlink(index)) => {
                let target = &here.directory.symlinks[index].target;
                links += 1;
                let shown = shown(&at, &name);
                if target.starts_with('/') {
                    return Err(refused(format!(
                        "{shown} is a symbolic link that leads out of the input root"
                    )));
                }
                if links > LINKS {
                    return Err(refused(format!(
                        "{shown} is a symbolic link that leads to itself"
                    )));
                }
                push(&mut ahead, target, true);
            }
            None if linked => {
                return Err(refused(format!(
                    "{} is reached by a symbolic link that leads nowhere",
                    shown(&at, &name)
                )));
            }
            None => {
                // Nothing is there yet, so that nothing below it can be a link.
                let there = join(&at);
                let mut path = below(&there, &name);
                while let Some((name, _)) = ahead.pop() {
                    path = below(&path, &name);
                }
                return Ok(Way {
                    path,
                    there: there.len(),
                });
            }
        }
    }
    let path = join(&at);
    Ok(Way {
        there: path.len(),
        path,
    })
}

fn join(at: &[(&str, &Subtree)]) -> String {
    let names: Vec<&str> = at.iter().map(|(name, _)| *name).collect();
    names.join("/")
}

/// Makes the layer at `upper`, an empty directory, with the directories at the end of `ways`. `shown` is where the root is seen
/// already: the overlay, if there is one, must be told of its new looks itself.
pub(super) fn prepare(
    upper: &Path,
    shown: &Path,
    root: &Subtree,
    ways: &[Way],
    owner: Owner,
) -> Result<(), InputError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |at: &OwnedFd, path: &str| {
        beneath::open(at, path, flags, Links::Refused).map_err(failed("open", path))
    };
    let top = rustix::fs::openat(CWD, upper, flags, Mode::empty())
        .map_err(failed("open", upper.display()))?;
    let mut made: HashSet<&str> = HashSet::new();
    // Those that the tree has, outer ones first: they get their looks when nothing is made in them any more.
    let mut standing: Vec<(OwnedFd, &Directory)> = Vec::new();
    for way in ways.iter().filter(|way| way.there < way.path.len()) {
        let mut here = Some(root);
        let ends = way.path.match_indices('/').map(|(at, _)| at);
        for end in ends.chain([way.path.len()]) {
            let path = &way.path[..end];
            let name = path.rsplit('/').next().unwrap_or(path);
            here = here.and_then(|here| here.child(name));
            if !made.insert(path) {
                continue;
            }
            let above = open(&top, path.rsplit_once('/').map_or("", |(above, _)| above))?;
            rustix::fs::mkdirat(&above, name, Mode::RWXU)
                .map_err(failed("create directory", path))?;
            let directory = open(&top, path)?;
            match here {
                Some(here) => standing.push((directory, &here.directory)),
                None => give(&directory, path, owner, 0o755)?,
            }
        }
    }
    for (fd, directory) in standing.iter().rev() {
        let properties = directory.properties.as_deref();
        give(fd, "a directory", owner, shown_mode(properties, 0o755))?;
        time(fd, properties)?;
    }
    let top = rustix::fs::openat(CWD, shown, flags, Mode::empty())
        .map_err(failed("open", shown.display()))?;
    let properties = root.directory.properties.as_deref();
    give(&top, "the input root", owner, shown_mode(properties, 0o755))?;
    time(&top, properties)
}

fn give(fd: &OwnedFd, path: &str, owner: Owner, mode: u32) -> Result<(), InputError> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(failed("change the owner of", path))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)).map_err(failed("set the mode of", path))
}

fn time(fd: &OwnedFd, properties: Option<&Properties>) -> Result<(), InputError> {
    let (seconds, nanos) = shown_mtime(properties);
    rustix::fs::futimens(fd, &modified(seconds, nanos.into()))
        .map_err(failed("set the time of", "a directory"))
}
