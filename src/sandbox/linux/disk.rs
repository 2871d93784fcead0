//! What an action writes below its root, bounded.
//!
//! No file system that we may find has quotas that we may use, so somebody has to look. Asking how full the file system is
//! costs a microsecond, and as long as it has not filled up by what the action may still write, the action has not written that. Only
//! then, and now and then because others may have freed what it took, is the tree walked: by descriptors, without following
//! links or leaving the file system, one tree at a time, and for at most a tenth of the time. An action can overshoot by what it writes
//! between two looks. Files that were deleted but are held open are in no tree: they are looked for in its processes.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, OFlags, StatxFlags, fstatvfs, statfs, statx};
use rustix::io::Errno;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::beneath;
use crate::config::units::rough_size;
use crate::sandbox::Limits;

/// How often the file system is asked.
const LOOK: Duration = Duration::from_millis(200);
/// A tree is walked at least so often, for others may free what the action takes.
const WALK: Duration = Duration::from_secs(10);
/// A walk may take one part in so many of the time.
const SHARE: u32 = 10;
/// Directories within one another; each that is being walked is an open descriptor.
const DEPTH: usize = 256;
/// One walk at a time: a hundred slots must not keep the disk busy with looking.
static WALKS: Semaphore = Semaphore::const_new(1);

/// What is in a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Bytes that its files and directories take on the disk; holes in files take none.
    pub bytes: u64,
    /// Its files, directories, links and other nodes, itself not among them.
    pub nodes: u64,
}

/// The limits of one action, and what was in its root before.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// What belongs to its inputs.
    pub before: Content,
    /// Bytes on top of that.
    pub bytes: Option<u64>,
    /// Nodes on top of that.
    pub nodes: Option<u64>,
}

impl Bounds {
    /// The part of an action's limits that is about the disk; `None` if there is none.
    pub fn new(limits: &Limits, before: Content) -> Option<Bounds> {
        let (bytes, nodes) = (limits.disk_bytes, limits.disk_nodes);
        (bytes.is_some() || nodes.is_some()).then_some(Bounds {
            before,
            bytes,
            nodes,
        })
    }

    /// What to say if this is too much.
    fn exceeded(&self, content: Content) -> Option<String> {
        let written = content.bytes.saturating_sub(self.before.bytes);
        if let Some(limit) = self.bytes.filter(|limit| written > *limit) {
            return Some(format!(
                "the command wrote more than the {} of disk that it was given (disk_bytes); write less, or ask the worker's operator for more",
                rough_size(limit)
            ));
        }
        let made = content.nodes.saturating_sub(self.before.nodes);
        self.nodes.filter(|limit| made > *limit).map(|limit| {
            format!(
                "the command made more than the {limit} files and directories that it was given (disk_nodes); \
                 make fewer, or ask the worker's operator for more"
            )
        })
    }

    /// What is still free to be written.
    fn left(&self, content: Content) -> Content {
        let left = |limit: Option<u64>, before: u64, now: u64| {
            limit.map_or(u64::MAX, |limit| {
                limit.saturating_sub(now.saturating_sub(before))
            })
        };
        Content {
            bytes: left(self.bytes, self.before.bytes, content.bytes),
            nodes: left(self.nodes, self.before.nodes, content.nodes),
        }
    }
}

/// Counts what is in a tree; blocks. Files with several names count once.
pub fn count(dir: impl AsFd) -> io::Result<Content> {
    let mut walk = Walk::default();
    walk.tree(dir.as_fd(), &|_| true)?;
    Ok(walk.content)
}

/// Watches the tree below `dir` until it holds too much, and says what was exceeded, or until `cancel`. `processes` names those of
/// the action: a deleted file that one of them holds open counts too.
pub async fn watch(
    dir: OwnedFd,
    bounds: Bounds,
    processes: impl Fn() -> Vec<i32> + Send + Sync + 'static,
    cancel: CancellationToken,
) -> Option<String> {
    let dir = Arc::new(dir);
    let processes = Arc::new(processes);
    let mut counted = bounds.before;
    let mut full = fullness(&dir)?;
    let mut walked = Instant::now();
    let mut took = Duration::ZERO;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return None,
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = fullness(&dir)?;
        let left = bounds.left(counted);
        let grown = now.bytes.saturating_sub(full.bytes) > left.bytes
            || now.nodes.saturating_sub(full.nodes) > left.nodes;
        let since = walked.elapsed();
        if since < took * SHARE || !(grown || since >= WALK) {
            continue;
        }
        let turn = tokio::select! {
            () = cancel.cancelled() => return None,
            turn = WALKS.acquire() => turn.ok()?,
        };
        let begun = Instant::now();
        full = now;
        let work = {
            let (dir, processes, cancel) = (dir.clone(), processes.clone(), cancel.clone());
            move || look(&dir, bounds, &*processes, &cancel)
        };
        let looked = tokio::task::spawn_blocking(work).await;
        drop(turn);
        walked = Instant::now();
        took = walked - begun;
        match looked {
            Ok(Ok(Looked::Content(content))) => counted = content,
            Ok(Ok(Looked::Exceeded(what))) => return Some(what),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the disk that an action uses cannot be measured");
            }
            Err(error) => {
                tracing::warn!(%error, "the disk that an action uses was not measured");
            }
        }
    }
}

/// How much of the file system is in use; `None` if it does not say, when nothing can be bounded.
fn fullness(dir: &OwnedFd) -> Option<Content> {
    match fstatvfs(dir) {
        Ok(full) => Some(Content {
            bytes: full
                .f_blocks
                .saturating_sub(full.f_bfree)
                .saturating_mul(full.f_frsize),
            nodes: full.f_files.saturating_sub(full.f_ffree),
        }),
        Err(error) => {
            tracing::warn!(%error, "the file system of an action does not say how full it is: its limits of disk do not hold");
            None
        }
    }
}

enum Looked {
    Content(Content),
    Exceeded(String),
}

/// One walk, and if need be a look at open files.
fn look(
    dir: &OwnedFd,
    bounds: Bounds,
    processes: &dyn Fn() -> Vec<i32>,
    cancel: &CancellationToken,
) -> io::Result<Looked> {
    let mut walk = Walk::default();
    let enough = |content: Content| !cancel.is_cancelled() && bounds.exceeded(content).is_none();
    let end = walk.tree(dir.as_fd(), &enough)?;
    if end == Walked::TooDeep {
        return Ok(Looked::Exceeded(format!(
            "the command made directories more than {DEPTH} deep below its root, where their size cannot be watched; \
             nest them less"
        )));
    }
    if end == Walked::All && bounds.bytes.is_some() {
        walk.deleted(&processes(), &enough)?;
    }
    Ok(match bounds.exceeded(walk.content) {
        Some(what) => Looked::Exceeded(what),
        None => Looked::Content(walk.content),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walked {
    All,
    Enough,
    TooDeep,
}

#[derive(Debug, Default)]
struct Walk {
    content: Content,
    /// Inodes with several names, which count once.
    seen: HashSet<u64>,
}

impl Walk {
    /// Walks what is below `dir`, as long as `go_on` says so.
    fn tree(
        &mut self,
        dir: std::os::fd::BorrowedFd<'_>,
        go_on: &dyn Fn(Content) -> bool,
    ) -> io::Result<Walked> {
        let mut open = vec![Dir::read_from(dir)?];
        while let Some(at) = open.last_mut() {
            let entry = match at.next() {
                None => {
                    open.pop();
                    continue;
                }
                Some(Ok(entry)) => entry,
                // Removed while it is read.
                Some(Err(Errno::NOENT)) => continue,
                Some(Err(error)) => return Err(error.into()),
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let wanted =
                StatxFlags::TYPE | StatxFlags::BLOCKS | StatxFlags::INO | StatxFlags::NLINK;
            let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
            // It may go while we look.
            let Ok(node) = statx(at.fd()?, name, flags, wanted) else {
                continue;
            };
            let is_dir = FileType::from_raw_mode(node.stx_mode.into()) == FileType::Directory;
            self.content.nodes += 1;
            if is_dir || node.stx_nlink < 2 || self.seen.insert(node.stx_ino) {
                self.content.bytes += node.stx_blocks * 512;
            }
            if !go_on(self.content) {
                return Ok(Walked::Enough);
            }
            if !is_dir {
                continue;
            }
            let read = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            match beneath::entry(at.fd()?, name, read) {
                Ok(_) if open.len() >= DEPTH => return Ok(Walked::TooDeep),
                Ok(below) => open.push(Dir::new(below)?),
                Err(Errno::MFILE | Errno::NFILE) => return Err(Errno::MFILE.into()),
                // Gone, a mount, or closed to us.
                Err(_) => {}
            }
        }
        Ok(Walked::All)
    }

    /// Adds the files that have no name any more and that a process holds open. By their device it could not be told which are meant:
    /// an overlay's files have another one than its directories. But nothing else on a disk can be written to, or removed.
    fn deleted(&mut self, processes: &[i32], go_on: &dyn Fn(Content) -> bool) -> io::Result<()> {
        let mut counted = HashSet::new();
        for pid in processes.iter().filter(|pid| **pid > 0) {
            let fds = std::fs::read_dir(format!("/proc/{pid}/fd"));
            for fd in fds.into_iter().flatten().flatten() {
                // Its status, whatever it is: nothing is opened.
                let Ok(file) = rustix::fs::stat(fd.path()) else {
                    continue;
                };
                if file.st_nlink == 0
                    && FileType::from_raw_mode(file.st_mode) == FileType::RegularFile
                    && on_disk(&fd.path())
                    && counted.insert((file.st_dev, file.st_ino))
                {
                    self.content.bytes += file.st_blocks as u64 * 512;
                }
                if !go_on(self.content) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Whether a file takes room on a disk, and not in memory.
fn on_disk(file: &std::path::Path) -> bool {
    statfs(file).is_ok_and(|fs| fs.f_type != libc::TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    fn bounds(bytes: Option<u64>, nodes: Option<u64>) -> Bounds {
        Bounds {
            before: Content {
                bytes: 10_000,
                nodes: 5,
            },
            bytes,
            nodes,
        }
    }

    #[test]
    fn inputs_are_not_counted_and_the_bound_is_named() {
        let content = |bytes, nodes| Content { bytes, nodes };
        let both = bounds(Some(1 << 20), Some(10));
        assert_eq!(both.exceeded(content(10_000 + (1 << 20), 15)), None);
        let bytes = both.exceeded(content(10_001 + (1 << 20), 0)).unwrap();
        assert!(bytes.contains("more than the 1.0MiB of disk"), "{bytes}");
        let nodes = both.exceeded(content(0, 16)).unwrap();
        assert!(nodes.contains("more than the 10 files"), "{nodes}");
        assert_eq!(
            bounds(None, None).exceeded(content(u64::MAX, u64::MAX)),
            None
        );
        assert_eq!(both.left(content(10_000, 5)), content(1 << 20, 10));
        assert_eq!(both.left(content(u64::MAX, u64::MAX)), content(0, 0));
        assert!(Bounds::new(&Limits::default(), Content::default()).is_none());
    }

    #[test]
    fn links_count_once_and_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("big"), vec![1; 1 << 20]).unwrap();
        fs::create_dir(path.join("sub")).unwrap();
        fs::write(path.join("sub/file"), vec![1; 100_000]).unwrap();
        let before = count(open(path)).unwrap();
        assert_eq!(before.nodes, 2);
        assert!(before.bytes >= 100_000, "{before:?}");
        fs::hard_link(path.join("sub/file"), path.join("again")).unwrap();
        symlink(outside.path(), path.join("out")).unwrap();
        symlink(outside.path().join("big"), path.join("big")).unwrap();
        let hole = fs::File::create(path.join("hole")).unwrap();
        hole.set_len(1 << 30).unwrap();
        let after = count(open(path)).unwrap();
        assert_eq!(after.nodes, 6);
        assert!(after.bytes < before.bytes + 50_000, "{after:?}");
    }

    #[test]
    fn a_walk_ends_when_it_is_too_much_or_too_deep() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        for file in 0..100 {
            fs::write(path.join(format!("{file}")), "x").unwrap();
        }
        let mut walk = Walk::default();
        let end = walk.tree(open(path).as_fd(), &|content| content.nodes < 10);
        assert_eq!((end.unwrap(), walk.content.nodes), (Walked::Enough, 10));
        let deep = ["d"; DEPTH].join("/");
        fs::create_dir_all(path.join(&deep)).unwrap();
        let looked = look(
            &open(path),
            bounds(Some(u64::MAX), None),
            &Vec::new,
            &CancellationToken::new(),
        );
        match looked.unwrap() {
            Looked::Exceeded(what) => assert!(what.contains("256 deep"), "{what}"),
            Looked::Content(content) => panic!("{content:?}"),
        }
    }

    #[test]
    fn a_deleted_file_that_is_held_open_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = fs::File::create(&path).unwrap();
        std::io::Write::write_all(&mut &file, &vec![1; 3 << 20]).unwrap();
        fs::remove_file(&path).unwrap();
        let own = || vec![std::process::id() as i32];
        let limits = bounds(Some(1 << 20), None);
        let cancel = CancellationToken::new();
        let looked = look(&open(dir.path()), limits, &own, &cancel);
        assert!(matches!(looked.unwrap(), Looked::Exceeded(_)));
        drop(file);
        let looked = look(&open(dir.path()), limits, &own, &cancel);
        assert!(matches!(looked.unwrap(), Looked::Content(_)));
    }

    #[tokio::test]
    async fn what_grows_too_large_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("input"), vec![1; 1 << 20]).unwrap();
        let before = count(open(dir.path())).unwrap();
        let limits = Limits {
            disk_bytes: Some(1 << 20),
            ..Limits::default()
        };
        let bounds = Bounds::new(&limits, before).unwrap();
        let watch = |cancel| watch(open(dir.path()), bounds, Vec::new, cancel);
        let cancel = CancellationToken::new();
        let watching = watch(cancel.clone());
        fs::write(dir.path().join("output"), vec![1; 3 << 20]).unwrap();
        // What was there before the first look is found by the walk that comes by itself; what comes later is seen to come.
        let growing = async {
            for file in 0.. {
                fs::write(dir.path().join(format!("{file}")), vec![1; 1 << 20]).unwrap();
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            what = watching => assert!(what.unwrap().contains("1.0MiB of disk")),
            () = growing => unreachable!(),
        }
        let cancelled = watch(cancel.clone());
        cancel.cancel();
        assert_eq!(cancelled.await, None);
    }
}
