//! The mounts that a view is made of: overlays, clones of directories and files, and their removal.

use std::fmt::Display;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen, mount_bind, mount_change, mount_remount, move_mount, open_tree, unmount,
};

use crate::inputs::InputError;
use crate::mountinfo;

/// Names the attempted operation and its object.
pub(super) fn failed(
    action: &'static str,
    object: impl Display,
) -> impl FnOnce(Errno) -> InputError {
    let object = object.to_string();
    move |error| InputError::Disk {
        action,
        object,
        source: error.into(),
    }
}

/// Gives this process mounts of its own: what it mounts is seen by it and its children alone, and goes with the last of
/// them. To be called before there are threads; needs CAP_SYS_ADMIN.
pub fn private_mounts() -> std::io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(mount_change("/", slave)?)
}

/// Whether this process may mount: as root, or in a user namespace of its own.
pub(super) fn may_mount() -> bool {
    let effective = caps::has_cap(
        None,
        caps::CapSet::Effective,
        caps::Capability::CAP_SYS_ADMIN,
    );
    effective.unwrap_or(false)
}

/// An overlay that is mounted nowhere yet: what is written to it goes to `upper`.
///
/// A directory of the lower layer cannot be renamed and a file of it is copied whole before it is changed: so everything
/// that an action made or changed is in `upper` as it is.
pub(super) fn overlay(lower: &Path, upper: &Path, work: &Path) -> Result<OwnedFd, InputError> {
    let step = |action| failed(action, "an overlay");
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(step("open"))?;
    // As descriptors: their names have no length or letter that the kernel's parser minds.
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty());
        fd.map_err(failed("open", path.display()))
    };
    let (lower, upper, work) = (open(lower)?, open(upper)?, open(work)?);
    let named = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let options = [
        ("source", "boxwright".to_owned()),
        ("lowerdir", named(&lower)),
        ("upperdir", named(&upper)),
        ("workdir", named(&work)),
        // By its index it knows a file again that it copied: two names of one file are the same file.
        ("index", "on".to_owned()),
        ("xino", "off".to_owned()),
    ];
    for (key, value) in &options {
        fsconfig_set_string(&context, *key, value.as_str()).map_err(step("set an option of"))?;
    }
    if rustix::process::geteuid().is_root() {
        for key in ["redirect_dir", "metacopy"] {
            fsconfig_set_string(&context, key, "off").map_err(step("set an option of"))?;
        }
    } else {
        // Who is not root marks opaque directories in attributes of the user's; the two are off then, and must not be mentioned.
        fsconfig_set_flag(&context, "userxattr").map_err(step("set userxattr for"))?;
    }
    // What an action leaves is not flushed to disk when it ends: it goes to the store or nowhere.
    fsconfig_set_flag(&context, "volatile").map_err(step("set volatile for"))?;
    fsconfig_create(&context).map_err(step("create"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(step("mount"))
}

/// A copy of what is mounted at `path`, or of the part of a mount below it, with all mounts below that.
pub(in crate::inputs) fn clone(path: &Path) -> Result<OwnedFd, InputError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    open_tree(CWD, path, flags).map_err(failed("clone the mount of", path.display()))
}

/// Mounts what was cloned or made at `at`.
pub(in crate::inputs) fn attach(mount: impl AsFd, at: &Path) -> Result<(), InputError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount, "", CWD, at, flags).map_err(failed("mount at", at.display()))
}

/// Shows the directory `source` at `target` too, read-only.
pub(super) fn show_read_only(source: &Path, target: &Path) -> Result<(), InputError> {
    mount_bind(source, target).map_err(failed("show a directory at", target.display()))?;
    make_read_only(target)
}

/// Lets nobody write through the mount at `target`.
pub(super) fn make_read_only(target: &Path) -> Result<(), InputError> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(target, flags, "").map_err(failed("make read-only", target.display()))
}

/// Mounts what is seen at a directory there once more, and lets nobody write to it.
pub(in crate::inputs) fn close(directory: &Path) -> Result<OwnedFd, InputError> {
    close_at(directory, directory)
}

/// Mounts what is seen at `source` at `at`, and lets nobody write to it. Gives a descriptor of that mount, by which it can be
/// [`detach_opened`] wherever it has gone meanwhile; nothing is mounted if this fails.
pub(in crate::inputs) fn close_at(source: &Path, at: &Path) -> Result<OwnedFd, InputError> {
    let mount = clone(source)?;
    attach(&mount, at)?;
    match make_read_only(at) {
        Ok(()) => Ok(mount),
        Err(error) => {
            // The first error is the one to report.
            let _ = detach_opened(&mount);
            Err(error)
        }
    }
}

/// Mounts what is seen at a directory there once more, with all mounts below it, and opens that.
pub(in crate::inputs) fn over_itself(directory: &Path) -> Result<OwnedFd, InputError> {
    let mount = clone(directory)?;
    attach(&mount, directory)?;
    Ok(mount)
}

/// Takes away the mount of whose root this is a descriptor.
pub(in crate::inputs) fn detach_opened(mount: &OwnedFd) -> rustix::io::Result<()> {
    // The kernel follows it to the very mount.
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    match unmount(path, UnmountFlags::DETACH) {
        // It is gone: the kernel takes mounts off a directory that is removed elsewhere.
        Err(Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// Takes away what is mounted at `path` with everything below, now for everybody new and later for who is in it.
pub(in crate::inputs) fn detach(path: &Path) -> rustix::io::Result<()> {
    unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

/// Takes away every mount below `dir` that an earlier run left, the newest first.
pub(in crate::inputs) fn detach_all_below(dir: &Path) -> Result<usize, InputError> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").map_err(|source| {
        InputError::Disk {
            action: "read",
            object: "/proc/thread-self/mountinfo".to_owned(),
            source,
        }
    })?;
    let below: Vec<PathBuf> = { table.lines().rev() }
        .filter_map(mountinfo::point)
        .filter(|point| point.starts_with(dir) && point != dir)
        .collect();
    for point in &below {
        match detach(point) {
            // It went with one above it.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(failed("unmount", point.display())(error)),
        }
    }
    Ok(below.len())
}
