//! What is at the declared paths, before anything is touched.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;

use super::names::Names;
use super::overlay::{self, Place};
use super::walk::{Link, Walk};
use super::{OutputError, OutputKind, OutputPath, failed, refused};
use crate::beneath::{self, Links};
use crate::tree::{self, check_name, quote};

/// What kind of output is at a path.
#[derive(Debug)]
pub(super) enum Thing {
    /// As it was when it was looked at; nothing if only a listing told of it.
    File(Option<Box<Stat>>),
    /// A file of the tree that the command left alone.
    Given,
    Directory,
    Symlink(Link),
}

/// The directory that an output is in, and what a listing says of it.
struct Parent<'o> {
    place: Place,
    names: Option<Names<'o>>,
}

/// Looks at every declared path once; those where nothing is are left out. An outer path comes before those below it.
pub(super) fn look<'o>(
    walk: &Walk<'_>,
    outputs: &'o [OutputPath],
) -> Result<BTreeMap<&'o str, Thing>, OutputError> {
    let mut sorted: Vec<&OutputPath> = outputs.iter().collect();
    sorted.sort_by_key(|output| &*output.within_root);
    let mut there: BTreeMap<&str, Thing> = BTreeMap::new();
    // Outputs of one directory are neighbours now: it is opened once for all of them.
    let mut parent: Option<(&str, Option<Parent<'o>>)> = None;
    for (at, output) in sorted.iter().enumerate() {
        let path = &*output.within_root;
        if !there.contains_key(path) {
            let (above, name) = split(path);
            for part in path.split('/').filter(|_| !path.is_empty()) {
                check_name(part)
                    .map_err(|why| refused(path, format!("has a bad path: {part:?} {why}")))?;
            }
            if parent.as_ref().is_none_or(|(at, _)| *at != above) {
                let entered = enter(walk, above, path)?.map(|place| {
                    let siblings = { sorted[at..].iter() }
                        .map(|next| split(&next.within_root))
                        .take_while(|(directory, _)| *directory == above)
                        .map(|(_, name)| name);
                    let names = { place.upper.as_ref() }.and_then(|fd| Names::of(fd, siblings));
                    Parent { place, names }
                });
                parent = Some((above, entered));
            }
            let Some((_, Some(parent))) = &parent else {
                continue;
            };
            let thing = if path.is_empty() {
                Some(Thing::Directory)
            } else if { parent.names.as_ref() }.is_some_and(|names| names.is_file(name)) {
                Some(Thing::File(None))
            } else {
                examine_layers(walk, &parent.place, name, path)?
            };
            match thing {
                Some(thing) => there.insert(path, thing),
                None => continue,
            };
        }
        if let Some(thing) = there.get(path) {
            matches_declaration(output, thing)?;
        }
    }
    Ok(there)
}

/// The path of the directory that something is in, and its name there.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// The directory that an output is in; `None` if there is no such directory.
fn enter(walk: &Walk<'_>, directory: &str, output: &str) -> Result<Option<Place>, OutputError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let found = match walk.tree() {
        Some(tree) => overlay::locate(walk.root(), tree, directory),
        None => beneath::open(walk.root(), directory, flags, Links::Refused).map(|fd| Place {
            upper: Some(fd),
            lower: None,
        }),
    };
    match found {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
        Err(error) => Err(unreachable(error, output)),
    }
}

/// Why a path could not be opened without leaving the root.
pub(super) fn unreachable(error: Errno, path: &str) -> OutputError {
    refused(
        path,
        match error {
            Errno::LOOP => {
                "is only reached through a symbolic link, which is never followed: \
                 declare the path where it really is"
            }
            Errno::XDEV => "is on another mount than the input root",
            Errno::ACCESS => "cannot be reached: the command took away the permission",
            error => return failed("open", path)(error),
        },
    )
}

/// What is under a name: the upper layer says so if it says anything.
fn examine_layers(
    walk: &Walk<'_>,
    place: &Place,
    name: &str,
    path: &str,
) -> Result<Option<Thing>, OutputError> {
    if let Some(upper) = &place.upper {
        match rustix::fs::statat(upper, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if walk.tree().is_some() && overlay::is_whiteout(&stat) => return Ok(None),
            Ok(stat) => return thing(walk, upper, name, path, stat).map(Some),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => {}
            Err(error) => return Err(unreachable(error, path)),
        }
    }
    let lower = walk.tree().zip(place.lower);
    Ok(lower
        .and_then(|(tree, directory)| overlay::below(tree, directory, name))
        .map(|node| match node {
            tree::Node::File(_) => Thing::Given,
            tree::Node::Directory(..) => Thing::Directory,
            tree::Node::Symlink(link) => Thing::Symlink(walk.given_link(link)),
        }))
}

fn thing(
    walk: &Walk<'_>,
    directory: &OwnedFd,
    name: &str,
    path: &str,
    stat: Stat,
) -> Result<Thing, OutputError> {
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Thing::File(Some(Box::new(stat))),
        FileType::Directory => Thing::Directory,
        FileType::Symlink => Thing::Symlink(walk.link(directory, name, path, &stat)?),
        _ => return Err(refused(path, special(&stat))),
    })
}

/// A symbolic link's target, as it is.
pub(super) fn target(directory: &OwnedFd, name: &str, path: &str) -> Result<String, OutputError> {
    let target = rustix::fs::readlinkat(directory, name, Vec::new())
        .map_err(failed("read symbolic link", path))?;
    String::from_utf8(target.into_bytes()).map_err(|error| {
        let shown = quote::bytes(error.as_bytes());
        refused(
            path,
            format!("is a symbolic link to {shown}, which is not UTF-8"),
        )
    })
}

/// Says what a thing is that cannot be an output.
pub(super) fn special(stat: &Stat) -> String {
    let what = what(stat);
    format!("is {what}: only files, directories and symbolic links can be outputs")
}

/// What a thing is that REAPI has no node for.
pub(super) fn what(stat: &Stat) -> &'static str {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        _ => "neither",
    }
}

/// REAPI, ActionResult.output_files: "If an output listed in `output_files` was found, but was a directory rather than a regular
/// file, the server will return a FAILED_PRECONDITION", and the same the other way round. It says so too of links by what they
/// point to; those are never followed here, and are what they are.
fn matches_declaration(output: &OutputPath, thing: &Thing) -> Result<(), OutputError> {
    let problem = match (output.kind, thing) {
        (OutputKind::File, Thing::Directory) => {
            "is a directory, but it is declared as a file (output_files)"
        }
        (OutputKind::Directory, Thing::File(_) | Thing::Given) => {
            "is a file, but it is declared as a directory (output_directories)"
        }
        _ => return Ok(()),
    };
    Err(refused(&output.declared, problem))
}
