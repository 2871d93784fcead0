//! Opening what lies below a directory without ever leaving it: the kernel refuses `..` and links
//! that lead out, `/proc`'s magic links, and mounts. Whoever planted what is below may be hostile.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, openat2};
use rustix::io::{Errno, Result};
use rustix::path::Arg;

/// Which symbolic links may be on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// None; one is `ELOOP`. With `O_PATH | O_NOFOLLOW` the last component may be one and is itself opened.
    Refused,
    /// Those that stay below the directory; one that leaves is `EXDEV`.
    Inside,
}

/// Times that change nothing but when something was modified last.
pub(crate) fn modified(seconds: i64, nanos: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: nanos,
        },
    }
}

/// The kernel takes no longer path at once.
const LONGEST: usize = 4000;

/// Opens `path` below `directory`, whatever its length; "" is the directory itself.
pub(crate) fn open(
    directory: impl AsFd,
    path: &str,
    flags: OFlags,
    links: Links,
) -> Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    if path.len() <= LONGEST || links == Links::Inside {
        return step(directory, path, flags, links);
    }
    let through = OFlags::PATH | OFlags::DIRECTORY;
    let mut rest = path;
    let mut at: Option<OwnedFd> = None;
    while rest.len() > LONGEST {
        let cut = rest.as_bytes()[..LONGEST].iter().rposition(|b| *b == b'/');
        let cut = cut.ok_or(Errno::NAMETOOLONG)?;
        at = Some(match &at {
            Some(at) => step(at, &rest[..cut], through, links)?,
            None => step(directory.as_fd(), &rest[..cut], through, links)?,
        });
        rest = &rest[cut + 1..];
    }
    match at {
        Some(at) => step(at, rest, flags, links),
        None => step(directory, rest, flags, links),
    }
}

/// Opens one entry of `directory`, whatever bytes its name is made of.
pub(crate) fn entry(directory: impl AsFd, name: impl Arg + Copy, flags: OFlags) -> Result<OwnedFd> {
    step(directory, name, flags, Links::Refused)
}

/// Sets the mode of a file or directory that can be found but not opened, through an `O_PATH` descriptor.
pub(crate) fn regain(found: &OwnedFd, mode: Mode) -> Result<()> {
    // Such a descriptor takes no fchmod, but the name that /proc has for it does.
    rustix::fs::chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), mode)
}

fn step(
    directory: impl AsFd,
    path: impl Arg + Copy,
    flags: OFlags,
    links: Links,
) -> Result<OwnedFd> {
    let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    if links == Links::Refused {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    let mut tries = 0;
    loop {
        let flags = flags | OFlags::CLOEXEC;
        match openat2(directory.as_fd(), path, flags, Mode::empty(), resolve) {
            // Something was renamed meanwhile, perhaps in a tree of somebody else.
            Err(Errno::AGAIN | Errno::INTR) if tries < 100 => tries += 1,
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, openat};
    use std::os::unix::fs::symlink;

    const READ: OFlags = OFlags::RDONLY;

    #[test]
    fn nothing_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        std::fs::create_dir_all(path.join("root/a/b")).unwrap();
        std::fs::write(path.join("root/a/b/file"), "x").unwrap();
        std::fs::write(path.join("secret"), "x").unwrap();
        symlink("../secret", path.join("root/out")).unwrap();
        symlink("/", path.join("root/slash")).unwrap();
        symlink("a/b", path.join("root/inside")).unwrap();
        symlink("/proc/self/root", path.join("root/magic")).unwrap();
        let root = openat(CWD, path.join("root"), OFlags::PATH, Mode::empty()).unwrap();
        for links in [Links::Refused, Links::Inside] {
            assert!(open(&root, "a/b/file", READ, links).is_ok());
            assert!(open(&root, "", READ, links).is_ok());
            for bad in [
                "..",
                "a/../../secret",
                "out",
                "slash/etc",
                "magic/etc",
                "/etc",
            ] {
                assert!(open(&root, bad, READ, links).is_err(), "{bad}");
            }
        }
        assert!(open(&root, "inside/file", READ, Links::Inside).is_ok());
        let refused = open(&root, "inside/file", READ, Links::Refused);
        assert_eq!(refused.unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn long_paths_are_walked() {
        let dir = tempfile::tempdir().unwrap();
        let root = openat(CWD, dir.path(), READ, Mode::empty()).unwrap();
        let name = "n".repeat(200);
        let mut at = root.try_clone().unwrap();
        for _ in 0..50 {
            rustix::fs::mkdirat(&at, &*name, Mode::RWXU).unwrap();
            at = open(&at, &name, READ, Links::Refused).unwrap();
        }
        let path = vec![&*name; 50].join("/");
        let there = open(&root, &path, READ, Links::Refused).unwrap();
        let ino = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(ino(&there), ino(&at));
    }
}
