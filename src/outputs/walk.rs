//! Files and directories, found by name below the root: directories are listed from a queue,
//! one open at a time, and files handed on to be hashed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::counted::Counted;
use super::look::{split, target, unreachable, what};
use super::open::{self, id};
use super::properties::{Reported, Wanted};
use super::source::Source;
use super::take::{Pending, Take, Taken};
use super::{CollectRequest, OutputError, beyond, failed, join, overlay, refused};
use crate::beneath::{self, Links};
use crate::cas::{Held, LocalStore};
use crate::reapi::Digest;
use crate::tree::{self, Directory, Tree, quote};

/// What has a name. Files and directories are numbers in [`Found`].
#[derive(Clone, Debug)]
pub(super) enum Node {
    File(usize),
    Directory(usize),
    Symlink(Link),
}

/// A symbolic link.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) target: Box<str>,
    pub(super) properties: Reported,
}

/// All that was found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) files: Vec<FoundFile>,
    pub(super) directories: Vec<FoundDirectory>,
    /// What cannot be in a directory's message, each with what it is.
    pub(super) left_out: Vec<String>,
}

pub(super) struct FoundFile {
    /// Filled in when the file was hashed.
    pub(super) digest: Digest,
    pub(super) executable: bool,
    pub(super) properties: Reported,
}

#[derive(Default)]
pub(super) struct FoundDirectory {
    /// Sorted by name.
    pub(super) entries: Vec<(Box<str>, Node)>,
    pub(super) properties: Reported,
}

/// A directory that is still to be listed.
struct Unlisted {
    number: usize,
    path: String,
    depth: u32,
    inode: Option<(u64, u64)>,
    /// It is on disk: always, but for one of the tree beneath.
    upper: bool,
    /// What shows through it.
    lower: Option<Digest>,
}

pub(super) struct Walk<'r> {
    request: &'r CollectRequest,
    root: OwnedFd,
    found: Found,
    /// Declared directories by path; the others are found in their listings.
    listed: BTreeMap<String, usize>,
    /// Files with several names.
    linked: HashMap<(u64, u64), usize>,
    take: Take<'r>,
    counted: Counted,
    wanted: Wanted,
    /// Permissions do not bind us.
    privileged: bool,
    /// The directory of the last single file.
    parent: Option<(String, Rc<Source>)>,
}

impl<'r> Walk<'r> {
    pub(super) fn new(
        store: &'r Arc<LocalStore>,
        request: &'r CollectRequest,
        held: &'r mut Held,
    ) -> Result<Self, OutputError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, &request.root, flags, Mode::empty())
            .map_err(failed("open the input root of", "."))?;
        let copies = request.beneath.is_some() && !overlay_is_closed(request);
        Ok(Walk {
            request,
            root,
            found: Found::default(),
            listed: BTreeMap::new(),
            linked: HashMap::new(),
            take: Take::new(
                store,
                request.function,
                request.cancel.clone(),
                held,
                copies,
            ),
            counted: Counted::within(request.limits),
            wanted: Wanted::of(&request.node_properties),
            privileged: rustix::process::geteuid().is_root(),
            parent: None,
        })
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// What the root lies over.
    pub(super) fn tree(&self) -> Option<&'r Arc<Tree>> {
        self.request.beneath.as_ref()
    }

    /// Hashes and stores what is still pending.
    pub(super) fn finish(mut self) -> Result<(Found, Taken), OutputError> {
        self.take.flush(&mut self.found)?;
        Ok((self.found, self.take.finish()))
    }

    /// The directory at `path` and all below it.
    pub(super) fn directory(&mut self, path: &str) -> Result<Node, OutputError> {
        if let Some(node) = self.known(path) {
            return Ok(node);
        }
        self.counted.node(path)?;
        let depth = path.split('/').filter(|name| !name.is_empty()).count();
        let (upper, lower) = match self.tree() {
            None => (true, None),
            Some(tree) => {
                let place = overlay::locate(&self.root, tree, path)
                    .map_err(|error| unreachable(error, path))?;
                (place.upper.is_some(), place.lower)
            }
        };
        let number = self.number();
        self.listed.insert(path.to_owned(), number);
        let mut queue = vec![Unlisted {
            number,
            path: path.to_owned(),
            depth: u32::try_from(depth).unwrap_or(u32::MAX),
            inode: None,
            upper,
            lower,
        }];
        while let Some(next) = queue.pop() {
            self.list(next, &mut queue)?;
        }
        Ok(Node::Directory(number))
    }

    /// The file at `path`, as it was when it was looked at.
    pub(super) fn file(&mut self, path: &str, stat: Option<&Stat>) -> Result<Node, OutputError> {
        if let Some(node) = self.known(path) {
            return Ok(node);
        }
        self.counted.node(path)?;
        let (above, name) = split(path);
        let directory = match &self.parent {
            Some((at, source)) if at == above => source.clone(),
            _ => {
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                let fd = beneath::open(&self.root, above, flags, Links::Refused)
                    .map_err(|error| unreachable(error, path))?;
                if !self.privileged {
                    let stat = rustix::fs::fstat(&fd).map_err(failed("look at", above))?;
                    open::up(&fd, &stat);
                }
                let source = Rc::new(Source::new(fd));
                self.parent = Some((above.to_owned(), source.clone()));
                source
            }
        };
        self.take_file(&directory, name, path, stat)
    }

    /// The file at `path`, which is the tree's.
    pub(super) fn untouched(&mut self, path: &str) -> Result<Node, OutputError> {
        if let Some(node) = self.known(path) {
            return Ok(node);
        }
        match self.tree().and_then(|tree| tree.lookup(path)) {
            Some(tree::Node::File(file)) => self.given_file(path, file),
            // It was found in the tree when it was looked for.
            _ => Err(unreachable(Errno::NOENT, path)),
        }
    }

    /// What a listing says of `path`, if one covers it.
    fn known(&self, path: &str) -> Option<Node> {
        if self.listed.is_empty() {
            return None;
        }
        let cuts = [0, path.len()]
            .into_iter()
            .chain(path.match_indices('/').map(|(at, _)| at));
        let (top, number) = cuts
            .filter_map(|cut| Some((cut, *self.listed.get(&path[..cut])?)))
            .next()?;
        let mut node = Node::Directory(number);
        for name in path[top..].split('/').filter(|name| !name.is_empty()) {
            let Node::Directory(number) = node else {
                return None;
            };
            let entries = &self.found.directories[number].entries;
            let at = entries.binary_search_by(|(n, _)| (**n).cmp(name)).ok()?;
            node = entries[at].1.clone();
        }
        Some(node)
    }

    fn list(&mut self, this: Unlisted, queue: &mut Vec<Unlisted>) -> Result<(), OutputError> {
        if !this.upper {
            return self.list_lower(&this, queue);
        }
        let source = Rc::new(Source::new(open::directory(&self.root, &this.path)?));
        let fd = source.fd();
        let stat = rustix::fs::fstat(fd).map_err(failed("look at", &this.path))?;
        if this.inode.is_some_and(|inode| inode != id(&stat)) {
            return Err(refused(&this.path, "changed while it was collected"));
        }
        if !self.privileged {
            open::up(fd, &stat);
        }
        let lower = match this.lower {
            // What replaced a directory of the tree is not merged with it.
            Some(lower) if !overlay::is_opaque(fd).map_err(failed("look at", &this.path))? => {
                self.tree().and_then(|tree| tree.directories.get(&lower))
            }
            _ => None,
        };
        let mut entries = Vec::new();
        let mut removed = HashSet::new();
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut listing = RawDir::new(fd, buffer.spare_capacity_mut());
        while let Some(entry) = listing.next() {
            let entry = entry.map_err(failed("list", &this.path))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match self.entry(&source, &this, lower, name, queue)? {
                (name, Some(node)) => entries.push((name, node)),
                (name, None) => {
                    removed.insert(name);
                }
            }
        }
        if let Some(lower) = lower {
            let seen: HashSet<Box<str>> = entries.iter().map(|(name, _)| name.clone()).collect();
            let hidden = |name: &str| seen.contains(name) || removed.contains(name);
            self.given(&this, lower, hidden, &mut entries, queue)?;
        }
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        self.found.directories[this.number] = FoundDirectory {
            entries,
            properties: self.wanted.found(&stat),
        };
        Ok(())
    }

    fn entry(
        &mut self,
        directory: &Rc<Source>,
        above: &Unlisted,
        lower: Option<&Arc<Directory>>,
        name: &CStr,
        queue: &mut Vec<Unlisted>,
    ) -> Result<(Box<str>, Option<Node>), OutputError> {
        let Ok(name) = name.to_str() else {
            let shown = quote::bytes(name.to_bytes());
            let problem = format!("has an entry {shown}, whose name is not UTF-8");
            return Err(refused(&above.path, problem));
        };
        let path = join(&above.path, name);
        let stat = rustix::fs::statat(directory.fd(), name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("look at", &path))?;
        if self.tree().is_some() && overlay::is_whiteout(&stat) {
            return Ok((name.into(), None));
        }
        self.counted.node(&path)?;
        let node = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.take_file(directory, name, &path, Some(&stat))?,
            FileType::Symlink => Node::Symlink(self.link(directory.fd(), name, &path, &stat)?),
            FileType::Directory => {
                let merged = lower.and_then(|lower| lower.subdirectory(name));
                self.descend(above, path, Some(id(&stat)), merged, queue)?
            }
            // REAPI has no node for it. Builds leave such things in their directories, and mean nothing by it.
            _ => {
                let left_out = format!("{} ({})", quote::path(&path), what(&stat));
                self.found.left_out.push(left_out);
                return Ok((name.into(), None));
            }
        };
        Ok((name.into(), Some(node)))
    }

    /// Queues a directory to be listed: one on disk has an inode.
    fn descend(
        &mut self,
        above: &Unlisted,
        path: String,
        inode: Option<(u64, u64)>,
        lower: Option<Digest>,
        queue: &mut Vec<Unlisted>,
    ) -> Result<Node, OutputError> {
        let depth = above.depth.saturating_add(1);
        if depth > self.request.limits.depth {
            let limit = self.request.limits.depth;
            let problem = format!("lies deeper than {limit} directories");
            return Err(beyond(&path, problem));
        }
        let number = self.number();
        queue.push(Unlisted {
            number,
            path,
            depth,
            inode,
            upper: inode.is_some(),
            lower,
        });
        Ok(Node::Directory(number))
    }

    /// A directory of the tree that the command left as it was.
    fn list_lower(
        &mut self,
        this: &Unlisted,
        queue: &mut Vec<Unlisted>,
    ) -> Result<(), OutputError> {
        let lower = this.lower.zip(self.tree());
        let lower = lower.and_then(|(digest, tree)| tree.directories.get(&digest));
        let lower = lower.ok_or_else(|| failed("find", &this.path)(Errno::NOENT))?;
        let mut entries = Vec::with_capacity(lower.entries());
        self.given(this, lower, |_| false, &mut entries, queue)?;
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        self.found.directories[this.number] = FoundDirectory {
            entries,
            properties: self.wanted.given(lower.properties.as_deref(), 0o755),
        };
        Ok(())
    }

    /// Adds the entries of a directory of the tree that are not hidden.
    fn given(
        &mut self,
        this: &Unlisted,
        lower: &'r Directory,
        hidden: impl Fn(&str) -> bool,
        entries: &mut Vec<(Box<str>, Node)>,
        queue: &mut Vec<Unlisted>,
    ) -> Result<(), OutputError> {
        for file in lower.files.iter().filter(|file| !hidden(&file.name)) {
            let node = self.given_file(&join(&this.path, &file.name), file)?;
            entries.push((file.name.clone(), node));
        }
        for link in lower.symlinks.iter().filter(|link| !hidden(&link.name)) {
            self.counted.node(&join(&this.path, &link.name))?;
            entries.push((link.name.clone(), Node::Symlink(self.given_link(link))));
        }
        for child in lower.directories.iter().filter(|d| !hidden(&d.name)) {
            let path = join(&this.path, &child.name);
            self.counted.node(&path)?;
            let node = self.descend(this, path, None, Some(child.digest), queue)?;
            entries.push((child.name.clone(), node));
        }
        Ok(())
    }

    /// A link that was looked at.
    pub(super) fn link(
        &self,
        directory: &OwnedFd,
        name: &str,
        path: &str,
        stat: &Stat,
    ) -> Result<Link, OutputError> {
        Ok(Link {
            target: target(directory, name, path)?.into(),
            properties: self.wanted.found_link(stat),
        })
    }

    /// A link of the tree that the command left as it was.
    pub(super) fn given_link(&self, link: &tree::Symlink) -> Link {
        Link {
            target: link.target.clone(),
            properties: self.wanted.given_link(link.properties.as_deref()),
        }
    }

    /// A file of the tree that the command left as it was: its digest is known.
    fn given_file(&mut self, path: &str, file: &tree::File) -> Result<Node, OutputError> {
        self.counted.node(path)?;
        self.counted.bytes(path, file.digest.size())?;
        let number = self.found.files.len();
        let mode = tree::file_mode(file.executable);
        self.found.files.push(FoundFile {
            digest: file.digest,
            executable: file.executable,
            properties: self.wanted.given(file.properties.as_deref(), mode),
        });
        self.take.given(file.digest);
        Ok(Node::File(number))
    }

    fn number(&mut self) -> usize {
        self.found.directories.push(FoundDirectory::default());
        self.found.directories.len() - 1
    }

    fn take_file(
        &mut self,
        directory: &Rc<Source>,
        name: &str,
        path: &str,
        looked_at: Option<&Stat>,
    ) -> Result<Node, OutputError> {
        if let Some(node) = looked_at.and_then(|stat| self.by_other_name(stat)) {
            return Ok(node);
        }
        // Who still has an overlay over the root open gets by what is closed here, once: the overlay asks its own inodes, which it
        // brings up to date afterwards, and changes these with the rights of who mounted it.
        let fixed = self.tree().is_none() && directory.is_closed();
        let opened = open::file(directory.fd(), name, path, looked_at)?;
        let stat = opened.left.as_ref().unwrap_or(&opened.stat);
        if let Some(node) = self.by_other_name(stat) {
            return Ok(node);
        }
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        self.counted.bytes(path, size)?;
        // Before it is hashed, which takes as long as it is large.
        let most = self.take.largest();
        if size > most {
            let problem = format!(
                "has {size} bytes, which is more than the {most} that fit into the CAS of this worker (cas-quota-high)"
            );
            return Err(beyond(path, problem));
        }
        let number = self.found.files.len();
        if stat.st_nlink > 1 {
            self.linked.insert(id(stat), number);
        }
        self.found.files.push(FoundFile {
            digest: Digest::empty(self.request.function),
            executable: stat.st_mode & 0o100 != 0,
            properties: self.wanted.found(stat),
        });
        let pending = Pending {
            number,
            file: opened.file,
            stat: opened.stat,
            directory: directory.clone(),
            fixed,
            name: name.into(),
            path: path.into(),
            size,
        };
        self.take.push(pending, &mut self.found)?;
        Ok(Node::File(number))
    }

    /// What was already taken under another name.
    fn by_other_name(&self, stat: &Stat) -> Option<Node> {
        // It may be the last one by now: the first was moved away.
        if self.linked.is_empty() {
            return None;
        }
        self.linked.get(&id(stat)).copied().map(Node::File)
    }
}

/// Whether nobody can write to files below the root any more. One that could, though all processes of the action are gone, was given a
/// file or directory by one of them: the overlay asks its own inodes, which know nothing of what is done to the files below it, and
/// writes these with the rights of who mounted it.
fn overlay_is_closed(request: &CollectRequest) -> bool {
    let closed = { request.overlay.as_deref() }.map_or(Err(Errno::NOENT), overlay::close);
    if let Err(error) = closed {
        tracing::info!("outputs are copied, as an input root cannot be closed: {error}");
    }
    closed.is_ok()
}
