//! The file system as Linux's FUSE asks for it, through the crate `fuse3`.
//!
//! open, opendir, flush and extended attributes are answered ENOSYS, upon which the kernel asks no more and keeps the pages
//! that it has; what it was told once holds for ever, also that a name is not there. Only READ may take time. The one
//! change that is allowed is the removal of a view, by which the daemon makes the kernel forget it.
//!
//! Where it is recorded what is asked for, every open is told, and to be listed is not to have been found.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fuse3::raw::prelude::*;
use fuse3::{FileType, Inode, Result, Timestamp};
use futures::Stream;
use rustix::io::Errno;

use super::content::{Asked, Contents};
use super::eager::Requests;
use super::entry::{Attributes, Content, Kind};
use super::nodes::{Listing, NodeId, Nodes};
use super::plan::below;
use super::record::Recorder;
use crate::cas::Wanted;

/// As long as can be.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Requests that the kernel has under way in the background, as nearly all reads are. Those that wait for a CAS are among them: so
/// many that they do not keep others from what is local.
const BACKGROUND: u16 = 4096;
/// FOPEN_KEEP_CACHE of linux/fuse.h: to be opened changes no file.
const KEEP_PAGES: u32 = 1 << 1;

/// Answers the kernel.
#[derive(Clone)]
pub(super) struct Kernel {
    pub(super) nodes: Arc<Nodes>,
    pub(super) contents: Arc<Contents>,
    pub(super) requests: Arc<Requests>,
    /// Who is to be told what is asked for.
    pub(super) recorder: Option<Arc<Recorder>>,
}

impl Kernel {
    pub(super) fn new(nodes: Arc<Nodes>, contents: Arc<Contents>) -> Self {
        Kernel {
            nodes,
            contents,
            requests: Arc::default(),
            recorder: None,
        }
    }
}

impl Filesystem for Kernel {
    async fn init(&self, _request: Request) -> Result<ReplyInit> {
        // Nothing is written; this bounds what a read request's buffer must hold.
        let mut reply = ReplyInit::new(NonZeroU32::MIN.saturating_add(8191));
        reply.max_background = Some(BACKGROUND);
        reply.congestion_threshold = Some(BACKGROUND / 4 * 3);
        Ok(reply)
    }

    async fn destroy(&self, _request: Request) {}

    async fn lookup(&self, request: Request, parent: Inode, name: &OsStr) -> Result<ReplyEntry> {
        self.requests.came();
        let found = self.nodes.lookup(parent, name.as_bytes()).map_err(code)?;
        if let Some(recorder) = &self.recorder
            && !is_own(request.pid)
        {
            self.looked_up(recorder, parent, name, found.as_ref());
        }
        Ok(ReplyEntry {
            ttl: FOR_EVER,
            // The number 0 is the answer "there is nothing, and never will be".
            attr: found.map_or_else(nothing, attributes),
            generation: 0,
        })
    }

    async fn forget(&self, _request: Request, inode: Inode, nlookup: u64) {
        self.nodes.forget(inode, nlookup);
    }

    async fn batch_forget(&self, _request: Request, inodes: &[(Inode, u64)]) {
        for (inode, nlookup) in inodes {
            self.nodes.forget(*inode, *nlookup);
        }
    }

    async fn getattr(
        &self,
        _request: Request,
        inode: Inode,
        _fh: Option<u64>,
        _flags: u32,
    ) -> Result<ReplyAttr> {
        let found = self.nodes.attributes(inode).map_err(code)?;
        Ok(ReplyAttr {
            ttl: FOR_EVER,
            attr: attributes(found),
        })
    }

    async fn readlink(&self, _request: Request, inode: Inode) -> Result<ReplyData> {
        match self.nodes.content(inode).map_err(code)? {
            Content::Symlink(target) => {
                self.opened(inode);
                Ok(Bytes::copy_from_slice(target.as_bytes()).into())
            }
            Content::File(..) => Err(code(Errno::INVAL)),
        }
    }

    async fn open(&self, _request: Request, inode: Inode, _flags: u32) -> Result<ReplyOpen> {
        if self.recorder.is_none() {
            return Err(code(Errno::NOSYS));
        }
        self.opened(inode);
        Ok(ReplyOpen {
            fh: 0,
            flags: KEEP_PAGES,
        })
    }

    async fn read(
        &self,
        request: Request,
        inode: Inode,
        _fh: u64,
        offset: u64,
        size: u32,
    ) -> Result<ReplyData> {
        self.requests.came();
        let Content::File(digest, executable) = self.nodes.content(inode).map_err(code)? else {
            return Err(code(Errno::INVAL));
        };
        let wanted = Wanted { digest, executable };
        let asked = Asked {
            request: request.unique,
            thread: request.pid,
            home: &|| self.nodes.home(inode),
        };
        let read = self.contents.read(asked, wanted, offset, size as usize);
        Ok(read.await.map_err(code)?.into())
    }

    async fn interrupt(&self, _request: Request, unique: u64) -> Result<()> {
        self.contents.interrupt(unique);
        Ok(())
    }

    async fn rmdir(&self, _request: Request, parent: Inode, name: &OsStr) -> Result<()> {
        let name = name.to_str().ok_or(code(Errno::NOENT))?;
        self.nodes.hide(parent, name).map_err(code)
    }

    async fn statfs(&self, _request: Request, _inode: Inode) -> Result<ReplyStatFs> {
        Ok(ReplyStatFs {
            blocks: 0,
            bfree: 0,
            bavail: 0,
            files: self.nodes.count() as u64,
            ffree: 0,
            bsize: 4096,
            namelen: 255,
            frsize: 4096,
        })
    }

    async fn readdir<'a>(
        &'a self,
        _request: Request,
        parent: Inode,
        _fh: u64,
        offset: i64,
    ) -> Result<ReplyDirectory<impl Stream<Item = Result<DirectoryEntry>> + Send + 'a>> {
        // The kernel asks for entries without attributes when nobody wants them: it is not told of the nodes then.
        let plus = self.entries(parent, offset, false)?;
        let entries = futures::StreamExt::map(plus, |entry| {
            entry.map(|entry| DirectoryEntry {
                inode: entry.inode,
                kind: entry.kind,
                name: entry.name,
                offset: entry.offset,
            })
        });
        Ok(ReplyDirectory { entries })
    }

    async fn readdirplus<'a>(
        &'a self,
        _request: Request,
        parent: Inode,
        _fh: u64,
        offset: u64,
        _lock_owner: u64,
    ) -> Result<ReplyDirectoryPlus<impl Stream<Item = Result<DirectoryEntryPlus>> + Send + 'a>>
    {
        let offset = i64::try_from(offset).map_err(|_| code(Errno::INVAL))?;
        let entries = self.entries(parent, offset, true)?;
        Ok(ReplyDirectoryPlus { entries })
    }
}

impl Kernel {
    fn looked_up(
        &self,
        recorder: &Recorder,
        parent: NodeId,
        name: &OsStr,
        found: Option<&Attributes>,
    ) {
        let name = name.to_string_lossy();
        // The kernel's own way of finding a node again.
        let Some(above) = self
            .nodes
            .path(parent)
            .filter(|_| name != "." && name != "..")
        else {
            return;
        };
        let path = below(&above, &name);
        match found.map(|found| found.kind) {
            None => recorder.missed(path),
            Some(Kind::File | Kind::Symlink) => recorder.found(path),
            Some(Kind::Directory) => {}
        }
    }

    fn opened(&self, id: NodeId) {
        if let Some(recorder) = &self.recorder
            && let Some(path) = self.nodes.path(id)
        {
            recorder.opened(path);
        }
    }

    fn entries(&self, parent: NodeId, offset: i64, told: bool) -> Result<Entries<'_>> {
        let (listing, above) = self.nodes.listing(parent).map_err(code)?;
        Ok(Entries {
            nodes: &self.nodes,
            parent,
            above,
            listing,
            next: usize::try_from(offset).map_err(|_| code(Errno::INVAL))?,
            told,
            found: match self.recorder {
                None => FOR_EVER,
                Some(_) => Duration::ZERO,
            },
            last: None,
        })
    }
}

/// The entries of a directory from some place on. The place counts "." and ".." as the first two.
struct Entries<'n> {
    nodes: &'n Nodes,
    parent: NodeId,
    above: NodeId,
    listing: Listing,
    next: usize,
    /// The kernel will know of what it is given.
    told: bool,
    /// How long a name that was listed counts as looked up.
    found: Duration,
    /// Was given out; whether it reaches the kernel shows when the next is asked for.
    last: Option<NodeId>,
}

impl Entries<'_> {
    fn give(&mut self) -> Option<Result<DirectoryEntryPlus>> {
        let at = self.next;
        let (name, inode, attr) = match at {
            0 | 1 => {
                let inode = if at == 0 { self.parent } else { self.above };
                (OsString::from(&".."[..at + 1]), inode, nothing())
            }
            _ if at - 2 >= self.listing.len() => return None,
            _ => match self.nodes.entry(self.parent, &self.listing, at - 2) {
                Ok((name, found)) => {
                    self.last = Some(found.id);
                    (name.into(), found.id, attributes(found))
                }
                // A view that is gone by now.
                Err(Errno::NOENT) => return self.skip(),
                Err(error) => return Some(Err(code(error))),
            },
        };
        self.next += 1;
        Some(Ok(DirectoryEntryPlus {
            inode,
            generation: 0,
            kind: attr.kind,
            name,
            offset: i64::try_from(self.next).unwrap_or(i64::MAX),
            attr,
            entry_ttl: self.found,
            attr_ttl: FOR_EVER,
        }))
    }

    fn skip(&mut self) -> Option<Result<DirectoryEntryPlus>> {
        self.next += 1;
        self.give()
    }

    /// Settles whether the kernel was told of the last entry.
    fn settle(&mut self, sent: bool) {
        if let Some(last) = self.last.take()
            && !(sent && self.told)
        {
            self.nodes.forget(last, 1);
        }
    }
}

impl Stream for Entries<'_> {
    type Item = Result<DirectoryEntryPlus>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.settle(true);
        Poll::Ready(this.give())
    }
}

impl Drop for Entries<'_> {
    fn drop(&mut self) {
        // It was asked for, but did not fit any more.
        self.settle(false);
    }
}

/// Whether a thread of the daemon asks, which makes places in an input root before a command runs in it.
fn is_own(thread: u32) -> bool {
    std::fs::symlink_metadata(format!("/proc/self/task/{thread}")).is_ok()
}

fn attributes(found: Attributes) -> FileAttr {
    let (sec, nsec) = found.mtime;
    let time = Timestamp { sec, nsec };
    FileAttr {
        ino: found.id,
        size: found.size,
        blocks: found.size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        kind: match found.kind {
            Kind::File => FileType::RegularFile,
            Kind::Directory => FileType::Directory,
            Kind::Symlink => FileType::Symlink,
        },
        // Permission bits only: they fit.
        perm: found.mode as u16,
        nlink: found.links,
        uid: found.owner.uid,
        gid: found.owner.gid,
        rdev: 0,
        blksize: 4096,
    }
}

/// Attributes of no node.
fn nothing() -> FileAttr {
    attributes(Attributes {
        id: 0,
        kind: Kind::Directory,
        mode: 0,
        size: 0,
        links: 0,
        mtime: (0, 0),
        owner: crate::config::Owner { uid: 0, gid: 0 },
    })
}

fn code(error: Errno) -> fuse3::Errno {
    error.raw_os_error().into()
}
