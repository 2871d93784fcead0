//! The root that a launcher's commands find, built once: the host's tools read-only beneath a memory file system that holds
//! nothing else, or nothing at all where the input root is to be the root; a minimal /dev; memory file systems of bounded size.
//!
//! Runs in the launcher's own mount namespace, which belongs to its user namespace.

use std::fmt::Display;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};

use super::rules::Rules;
use super::set_up::{BUILD, SetUpMessage, Tmpfs};
use super::sys;
use super::trash::Trash;

/// Where an input root lies that is to become the root.
pub(super) const INPUT: &str = "/r";
/// Of memory file systems and of what the action brings: nothing gains privileges, no device works.
pub(super) const TAME: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
const READ_ONLY: u64 = TAME | libc::MOUNT_ATTR_RDONLY;
const PTS: &str = "/dev/pts";
/// Where an action's message queues are shown.
pub(super) const QUEUES: &str = "/dev/mqueue";
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Why a root cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {object}: {problem}")]
pub(super) struct TemplateError {
    action: &'static str,
    object: String,
    problem: String,
}

fn failed<E: Display>(
    action: &'static str,
    object: impl Display,
) -> impl FnOnce(E) -> TemplateError {
    move |error| TemplateError {
        action,
        object: object.to_string(),
        problem: error.to_string(),
    }
}

/// What is kept of it while commands run.
#[derive(Debug)]
pub(super) struct Template {
    /// The directory that holds the input roots, if they come by name; hidden below /proc.
    pub(super) roots: Option<OwnedFd>,
    /// What every command may do with files.
    pub(super) rules: Rules,
    /// Mounts that commands are done with.
    pub(super) trash: Trash,
    tmpfs: Vec<Tmpfs>,
    /// A file system that commands could change the root directory of is never taken for clean.
    always_dirty: bool,
    /// The pseudo-terminals as no command has seen them yet, if there are any.
    pts: Option<[Looks; 2]>,
}

impl Template {
    /// Builds the root and enters it.
    pub(super) fn build(told: &SetUpMessage) -> Result<Template, TemplateError> {
        let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", all).map_err(failed("make private", "the mounts"))?;
        // All of the host that is wanted is taken hold of before the new root covers a part of it.
        let shown = shown_of(told)?;
        let roots = match told.roots.as_str() {
            "" => None,
            roots => Some(sealed_tree(Path::new(roots), TAME)?),
        };
        // Below the new root is another file system, where no path leads from the root.
        let below = place()?;
        attach(tmpfs(1 << 20, 256, "0700")?.as_fd(), &below)?;
        let trash = Trash::make(path_fd(&below)?, !told.input_root)
            .map_err(failed("make", "places for old mounts"))?;
        let new = below.join("root");
        fs::create_dir(&new).map_err(failed("make directory", new.display()))?;
        let root = tmpfs(16 << 20, 4096, "0755")?;
        attach(root.as_fd(), &new)?;
        let building = Building {
            new: new.clone(),
            told,
        };
        building.host(shown)?;
        building.files()?;
        building.dev()?;
        for place in &told.tmpfs {
            building.tmpfs(place)?;
        }
        building.directory(if told.input_root { INPUT } else { BUILD })?;
        let roots = building.proc(roots)?;

        let (base, root) = (path_fd(&below)?, path_fd(&new)?);
        // The place of what is below is covered by the host's root, which is then let go.
        rustix::process::fchdir(&base).map_err(failed("enter", below.display()))?;
        rustix::process::pivot_root(".", ".").map_err(failed("make the root", below.display()))?;
        unmount(".", UnmountFlags::DETACH).map_err(failed("let go", "the host's root"))?;
        // The root covers it.
        attach(root.as_fd(), Path::new("/"))?;
        rustix::process::fchdir(&root).map_err(failed("enter", "the new root"))?;
        rustix::process::chroot(".").map_err(failed("make the root", "the new root"))?;
        rustix::process::chdir("/").map_err(failed("enter", "/"))?;
        sys::set_mount_attributes(root.as_fd(), READ_ONLY)
            .map_err(failed("make read-only", "/"))?;
        Ok(Template {
            roots,
            trash,
            rules: Rules {
                root,
                writable: told
                    .tmpfs
                    .iter()
                    .map(|t| path_fd(&t.path))
                    .collect::<Result<_, _>>()?,
                special: ["/dev"]
                    .into_iter()
                    .map(path_fd)
                    .collect::<Result<_, _>>()?,
                scope: told.scope,
            },
            tmpfs: told.tmpfs.clone(),
            always_dirty: told.alone(),
            pts: told.pts.then(pts_looks).transpose()?,
        })
    }

    /// Replaces the memory file systems that a command has left something in. What it has left is gone then, and the next command
    /// is not charged for it.
    pub(super) fn clean(&mut self) -> Result<(), TemplateError> {
        let mut dirty = false;
        for (at, place) in self.tmpfs.iter().enumerate() {
            let held = &self.rules.writable[at];
            let state = rustix::fs::fstatvfs(held).map_err(failed("look at", &place.path))?;
            // The root directory itself is one.
            if state.f_files - state.f_ffree <= 1 && !self.always_dirty {
                continue;
            }
            dirty = true;
            self.trash
                .take(&place.path)
                .map_err(failed("take away", &place.path))?;
            let new = tmpfs(place.bytes, place.inodes, "1777")?;
            attach(new.as_fd(), Path::new(&place.path))?;
            self.rules.writable[at] = path_fd(&place.path)?;
        }
        if let Some(before) = &self.pts {
            let now = pts_looks()?;
            if now != *before || self.always_dirty {
                dirty = true;
                self.trash.take(PTS).map_err(failed("take away", PTS))?;
                attach(pts()?.as_fd(), Path::new(PTS))?;
                self.pts = Some(pts_looks()?);
            }
        }
        if dirty || !self.trash.keeps() {
            let emptied = self.trash.empty();
            emptied.map_err(failed("unmount", "what a command had"))?;
        }
        Ok(())
    }
}

/// A directory of the host that can be mounted over: only our own mount namespace sees that.
fn place() -> Result<PathBuf, TemplateError> {
    let places = ["/tmp", "/run", "/mnt", "/var"];
    let found = places.into_iter().map(PathBuf::from).find(|p| p.is_dir());
    found.ok_or_else(|| failed("find", "a directory to build the root in")("this host has no /tmp"))
}

fn tmpfs(bytes: u64, inodes: u64, mode: &str) -> Result<OwnedFd, TemplateError> {
    let make = || {
        let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "size", bytes.to_string())?;
        fsconfig_set_string(&fs, "nr_inodes", inodes.to_string())?;
        fsconfig_set_string(&fs, "mode", mode)?;
        fsconfig_create(&fs)?;
        let tame = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, tame)
    };
    make().map_err(failed("make", "a memory file system"))
}

/// Puts a detached mount at a path of our own making.
pub(super) fn attach(mount: BorrowedFd<'_>, path: &Path) -> Result<(), TemplateError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount, "", CWD, path, flags).map_err(failed("mount", path.display()))
}

/// A detached copy of what is mounted at a path, with all below it.
pub(super) fn copy_tree(path: &Path) -> Result<OwnedFd, TemplateError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    open_tree(CWD, path, flags).map_err(failed("show", path.display()))
}

fn path_fd(path: impl AsRef<Path>) -> Result<OwnedFd, TemplateError> {
    let path = path.as_ref();
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open", path.display()))
}

/// Something of the host.
enum Shown {
    /// A link, with its target.
    Link(PathBuf),
    Directory(OwnedFd),
    File(OwnedFd),
}

/// What is to be shown of the host, in hand. A link stays a link, as long as what it leads to is shown.
fn shown_of(told: &SetUpMessage) -> Result<Vec<(&str, Shown)>, TemplateError> {
    let find = |path: &String| {
        let meta = fs::symlink_metadata(path).map_err(failed("show", path))?;
        let mut source = PathBuf::from(path);
        if meta.is_symlink() {
            let leads = fs::canonicalize(path).map_err(failed("follow", path))?;
            let shown = |shown: &String| leads.starts_with(shown) && shown != path;
            if told.host_paths.iter().any(shown) {
                let target = fs::read_link(path).map_err(failed("read link", path))?;
                return Ok(Shown::Link(target));
            }
            source = leads;
        }
        let tree = sealed_tree(&source, READ_ONLY)?;
        Ok(match source.is_dir() {
            true => Shown::Directory(tree),
            false => Shown::File(tree),
        })
    };
    let paths = told.host_paths.iter();
    paths.map(|path| Ok((path.as_str(), find(path)?))).collect()
}

fn sealed_tree(path: &Path, attributes: u64) -> Result<OwnedFd, TemplateError> {
    let tree = copy_tree(path)?;
    sys::seal_mounts(tree.as_fd(), attributes).map_err(failed("close", path.display()))?;
    Ok(tree)
}

struct Building<'a> {
    new: PathBuf,
    told: &'a SetUpMessage,
}

impl Building<'_> {
    /// A clean absolute path, below the new root.
    fn at(&self, path: &str) -> PathBuf {
        self.new.join(path.trim_start_matches('/'))
    }

    fn directory(&self, path: &str) -> Result<PathBuf, TemplateError> {
        let at = self.at(path);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&at)
            .map_err(failed("make directory", path))?;
        Ok(at)
    }

    fn parent(&self, path: &str) -> Result<PathBuf, TemplateError> {
        if let Some((parent, _)) = path
            .rsplit_once('/')
            .filter(|(parent, _)| !parent.is_empty())
        {
            self.directory(parent)?;
        }
        Ok(self.at(path))
    }

    /// The host's tools.
    fn host(&self, shown: Vec<(&str, Shown)>) -> Result<(), TemplateError> {
        for (path, what) in shown {
            match what {
                Shown::Link(target) => {
                    symlink(target, self.parent(path)?).map_err(failed("make link", path))?;
                }
                Shown::Directory(tree) => attach(tree.as_fd(), &self.directory(path)?)?,
                Shown::File(tree) => attach(tree.as_fd(), &self.empty(path)?)?,
            }
        }
        Ok(())
    }

    fn empty(&self, path: &str) -> Result<PathBuf, TemplateError> {
        let at = self.parent(path)?;
        fs::write(&at, "").map_err(failed("make", path))?;
        Ok(at)
    }

    fn files(&self) -> Result<(), TemplateError> {
        for file in &self.told.files {
            let at = self.parent(&file.path)?;
            fs::write(&at, &file.content).map_err(failed("write", &file.path))?;
            let mode = fs::Permissions::from_mode(0o644);
            fs::set_permissions(&at, mode).map_err(failed("write", &file.path))?;
        }
        Ok(())
    }

    /// A file system of its own, so that it can be shown below an input root as a whole.
    fn dev(&self) -> Result<(), TemplateError> {
        let dev = self.directory("/dev")?;
        attach(tmpfs(1 << 20, 64, "0755")?.as_fd(), &dev)?;
        for name in DEVICES {
            let node = Path::new("/dev").join(name);
            let quiet = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
            let tree = sealed_tree(&node, quiet)?;
            attach(tree.as_fd(), &self.empty(&format!("/dev/{name}"))?)?;
        }
        let links = [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ];
        for (name, target) in links {
            symlink(target, dev.join(name)).map_err(failed("make link /dev/", name))?;
        }
        if self.told.pts {
            let at = self.directory(PTS)?;
            attach(pts()?.as_fd(), &at)?;
            symlink("pts/ptmx", dev.join("ptmx")).map_err(failed("make link", "/dev/ptmx"))?;
        }
        self.directory("/dev/shm")?;
        self.directory(QUEUES)?;
        sys::set_mount_attributes(
            path_fd(&dev)?.as_fd(),
            libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_RDONLY,
        )
        .map_err(failed("make read-only", "/dev"))
    }

    fn tmpfs(&self, place: &Tmpfs) -> Result<(), TemplateError> {
        // /dev is read-only by now, and holds the place for what is shown there.
        let at = match place.path.starts_with("/dev/") {
            true => self.at(&place.path),
            false => self.directory(&place.path)?,
        };
        attach(tmpfs(place.bytes, place.inodes, "1777")?.as_fd(), &at)
    }

    /// A /proc of the launcher's own, without which the kernel lets nobody here mount another. Below it, where no path leads,
    /// is the directory of the input roots.
    fn proc(&self, roots: Option<OwnedFd>) -> Result<Option<OwnedFd>, TemplateError> {
        let at = self.directory("/proc")?;
        let roots = match roots {
            None => None,
            Some(tree) => {
                attach(tree.as_fd(), &at)?;
                Some(path_fd(&at)?)
            }
        };
        let make = || {
            let fs = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(&fs)?;
            let tame = MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, tame)
        };
        let proc = make().map_err(failed(
            "mount",
            "/proc in a namespace of its own (in a container, /proc must not be masked: systempaths=unconfined)",
        ))?;
        attach(proc.as_fd(), &at)?;
        Ok(roots)
    }
}

/// Mode, owner, group, and when they were changed.
type Looks = (u32, u32, u32, i64, i64);

/// What a command could change of the file system of pseudo-terminals, for whoever comes after it.
fn pts_looks() -> Result<[Looks; 2], TemplateError> {
    let look = |path: &str| {
        let found = rustix::fs::stat(path).map_err(failed("look at", path))?;
        let (mode, uid, gid) = (found.st_mode, found.st_uid, found.st_gid);
        Ok((mode, uid, gid, found.st_ctime, found.st_ctime_nsec as i64))
    };
    Ok([look(PTS)?, look("/dev/pts/ptmx")?])
}

fn pts() -> Result<OwnedFd, TemplateError> {
    let make = || {
        let fs = fsopen("devpts", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "ptmxmode", "0666")?;
        fsconfig_set_string(&fs, "mode", "0620")?;
        fsconfig_create(&fs)?;
        let tame = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, tame)
    };
    make().map_err(failed("mount", PTS))
}
