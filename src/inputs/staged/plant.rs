//! A whole tree, put on disk: an explicit stack of open directories, every name created relative
//! to the directory that it is in, so that no path is resolved and nothing can redirect it.

use std::collections::HashSet;
use std::os::fd::OwnedFd;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::outputs::Outputs;
use super::place::{Placer, join};
use super::{DIRECTORY, InputError, Place, StageRequest, directories, failed};
use crate::reapi::Digest;
use crate::tree::{Directory, Properties, Tree};

/// Directories that are kept open on the way down. Deeper trees close the upper ones and climb back by `..`.
const OPEN: usize = 48;

struct Level<'t> {
    /// `None` while it is closed.
    fd: Option<OwnedFd>,
    /// Device and inode, known once it was closed.
    id: (u64, u64),
    directory: &'t Directory,
    next: usize,
    /// How much of the path leads here.
    path: usize,
    /// The action may write all that is in it.
    output: bool,
}

/// Fills `root` with a directory of the tree that holds no output and all below it, and gives it the looks of that directory. Returns the
/// bytes of disk that files take which are not the store's.
pub(super) fn whole(
    place: &Place,
    root: &OwnedFd,
    request: &StageRequest,
    top: Digest,
) -> Result<u64, InputError> {
    let (absent, outputs) = (HashSet::new(), Outputs::default());
    let planted = plant(place, root, request, top, &absent, &outputs)?;
    adorn(root, request, &planted.properties)?;
    Ok(planted.copied)
}

/// Sets the properties of directories: children before parents, and after everything that was made in them. The root is the last.
pub(super) fn adorn(
    root: &OwnedFd,
    request: &StageRequest,
    properties: &[(String, &Properties)],
) -> Result<(), InputError> {
    for (path, properties) in properties.iter().rev() {
        if path.is_empty() {
            continue;
        }
        let directory = directories::open(root, path)?;
        directories::adorn(&directory, path, properties)?;
    }
    directories::give(root, request.owner, "")?;
    match properties.first() {
        Some((path, properties)) if path.is_empty() => directories::adorn(root, path, properties),
        _ => Ok(()),
    }
}

/// What was put on disk.
pub(super) struct Planted<'t> {
    /// The directories whose properties are still to be set, parents first.
    pub(super) properties: Vec<(String, &'t Properties)>,
    /// Bytes of disk of the files that are not the store's.
    copied: u64,
}

/// Fills `root` with the directory `top` of the tree and all below it, but leaves the directories at `absent` empty.
pub(super) fn plant<'t>(
    place: &Place,
    root: &OwnedFd,
    request: &'t StageRequest,
    top: Digest,
    absent: &HashSet<&str>,
    outputs: &Outputs,
) -> Result<Planted<'t>, InputError> {
    let mut plant = Plant {
        tree: &request.tree,
        outputs,
        placer: Placer::new(place, request.owner),
        path: String::new(),
        properties: Vec::new(),
    };
    let fd = root.try_clone().map_err(|source| InputError::Disk {
        action: "open",
        object: request.name.clone(),
        source,
    })?;
    let mut stack = vec![plant.enter(fd, top, false)?];
    while let Some(level) = stack.last_mut() {
        let Some(child) = level.directory.directories.get(level.next) else {
            let done = stack.pop();
            if let (Some(done), Some(above)) = (done, stack.last_mut()) {
                plant.path.truncate(above.path);
                above.reopen(done.fd, &plant.path)?;
            }
            continue;
        };
        level.next += 1;
        let output = level.output;
        let Some(fd) = &level.fd else {
            return Err(failed("return to", &plant.path)(Errno::BADF));
        };
        plant.path.truncate(level.path);
        plant.push(&child.name);
        let path = &plant.path;
        rustix::fs::mkdirat(fd, &*child.name, Mode::RWXU)
            .map_err(failed("create directory", path))?;
        let fd = rustix::fs::openat(fd, &*child.name, DIRECTORY, Mode::empty())
            .map_err(failed("open directory", path))?;
        directories::give(&fd, request.owner, path)?;
        if absent.contains(path.as_str()) {
            continue;
        }
        let below = plant.enter(fd, child.digest, output)?;
        stack.push(below);
        if let Some(far) = stack.len().checked_sub(OPEN) {
            stack[far].close()?;
        }
    }
    Ok(Planted {
        copied: plant.placer.finish()?,
        properties: plant.properties,
    })
}

struct Plant<'t, 'p> {
    tree: &'t Tree,
    outputs: &'p Outputs,
    placer: Placer<'p>,
    path: String,
    properties: Vec<(String, &'t Properties)>,
}

impl<'t> Plant<'t, '_> {
    /// Puts the files and links of a directory in place, which may be in an output; its subdirectories are the stack's.
    fn enter(
        &mut self,
        fd: OwnedFd,
        digest: Digest,
        output: bool,
    ) -> Result<Level<'t>, InputError> {
        let directory = self.tree.directories.get(&digest).ok_or_else(|| {
            // The door promises a whole tree.
            failed("find the message of directory", &self.path)(Errno::NOENT)
        })?;
        if let Some(properties) = &directory.properties {
            self.properties.push((self.path.clone(), properties));
        }
        let output = output || self.outputs.has(&self.path);
        let any = !output && self.outputs.any_in(&self.path);
        for file in &directory.files {
            let written = output || any && self.outputs.has(&join(&self.path, &file.name));
            self.placer.file(&fd, &self.path, file, written)?;
        }
        for symlink in &directory.symlinks {
            self.placer.symlink(&fd, &self.path, symlink)?;
        }
        Ok(Level {
            fd: Some(fd),
            id: (0, 0),
            directory,
            next: 0,
            path: self.path.len(),
            output,
        })
    }

    fn push(&mut self, name: &str) {
        if !self.path.is_empty() {
            self.path.push('/');
        }
        self.path.push_str(name);
    }
}

impl Level<'_> {
    fn close(&mut self) -> Result<(), InputError> {
        if let Some(fd) = self.fd.take() {
            self.id = id(&fd).map_err(failed("look at", "a directory"))?;
        }
        Ok(())
    }

    /// Climbs back out of `below`, and checks that this is where it was entered from.
    fn reopen(&mut self, below: Option<OwnedFd>, path: &str) -> Result<(), InputError> {
        if self.fd.is_some() {
            return Ok(());
        }
        let back = below
            .ok_or(Errno::BADF)
            .and_then(|below| rustix::fs::openat(below, "..", DIRECTORY, Mode::empty()))
            .and_then(|back| match id(&back)? == self.id {
                true => Ok(back),
                false => Err(Errno::STALE),
            });
        self.fd = Some(back.map_err(failed("return to directory", path))?);
        Ok(())
    }
}

fn id(fd: &OwnedFd) -> rustix::io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}
