//! Whether another user can get to a directory: found out by going there as that user, since permission bits alone say
//! nothing of access control lists or of who root is to a file server.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::prctl::{get_dumpable, set_dumpable};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

/// The first directory on the way to what is in `dir` that a user cannot pass, who is in no group but that of its own id.
/// An error if this process may not act for that user.
pub fn closed_to(dir: &Path, id: u32) -> io::Result<Option<PathBuf>> {
    let mut way: Vec<PathBuf> = std::path::absolute(dir)?
        .ancestors()
        .map(Path::to_owned)
        .collect();
    // A command asks the system where it is, and hears this.
    way.extend(dir.canonicalize()?.ancestors().map(Path::to_owned));
    way.sort_by_key(|path| path.components().count());
    as_user(id, || {
        way.into_iter()
            .find(|path| rustix::fs::stat(path.join(".")).is_err())
    })
}

/// Looks at files as another user would, on a thread of its own: to the kernel, who looks at files belongs to the thread.
fn as_user<T: Send>(id: u32, look: impl FnOnce() -> T + Send) -> io::Result<T> {
    let dumpable = get_dumpable()?;
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    let looked = std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            rustix::thread::set_thread_groups(&[])?;
            setfsgid(gid);
            setfsuid(uid);
            // It tells of no failure but by changing nothing.
            match (setfsgid(gid), setfsuid(uid)) {
                (group, user) if (group, user) == (gid, uid) => Ok(look()),
                _ => Err(io::ErrorKind::PermissionDenied.into()),
            }
        });
        there
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that looked panicked")))
    });
    // The kernel takes it from the whole process.
    set_dumpable(dumpable)?;
    looked
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, create_dir_all, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SOMEBODY: u32 = 12_345;

    #[test]
    fn the_first_closed_directory_is_named() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let open = |path: &Path| set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        open(base.path());
        let dir = base.path().join("a/b/c");
        create_dir_all(&dir).unwrap();
        assert_eq!(closed_to(&dir, SOMEBODY).unwrap(), None);
        for closed in [dir.as_path(), &base.path().join("a")] {
            // Root's own group is of no use to others.
            set_permissions(closed, Permissions::from_mode(0o710)).unwrap();
            assert_eq!(closed_to(&dir, SOMEBODY).unwrap().as_deref(), Some(closed));
            assert!(get_dumpable().unwrap());
            // Neither is another way there.
            let link = base.path().join("link");
            std::os::unix::fs::symlink(&dir, &link).unwrap();
            assert!(closed_to(&link, SOMEBODY).unwrap().is_some());
            std::fs::remove_file(link).unwrap();
        }
        // Who owns it may pass.
        let b = base.path().join("a/b");
        open(&base.path().join("a"));
        open(&dir);
        set_permissions(&b, Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&b, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        assert_eq!(closed_to(&dir, SOMEBODY).unwrap(), None);
    }
}
