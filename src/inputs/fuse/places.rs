//! Where views are mounted on their own. Each mount has a directory that no other one had: one that is on its way out, or could not be
//! taken off, is in nobody's way.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode};
use rustix::io::Errno;

use super::layout::Layout;
use super::mounts::{self, failed};
use crate::inputs::InputError;

/// All of them.
pub(super) struct Places {
    layout: Arc<Layout>,
    numbers: AtomicU64,
    /// What could not be taken off when it was to go.
    left: Mutex<Vec<PathBuf>>,
}

impl Places {
    pub(super) fn new(layout: Arc<Layout>) -> Self {
        Places {
            layout,
            numbers: AtomicU64::new(0),
            left: Mutex::default(),
        }
    }

    /// Mounts what is at `source`, a view of this name, at a new place.
    pub(super) fn mount(&self, name: &str, source: &Path) -> Result<PathBuf, InputError> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let at = self.layout.place(&format!("{name}.{number}"));
        rustix::fs::mkdirat(CWD, &at, Mode::RWXU).map_err(failed("create", at.display()))?;
        let attached = mounts::clone(source).and_then(|mount| mounts::attach(mount, &at));
        match attached {
            Ok(()) => Ok(at),
            Err(error) => {
                self.take_off(at);
                Err(error)
            }
        }
    }

    /// Unmounts what is at a place, which goes too: now, or when [`Places::clear`] can remove it.
    pub(super) fn take_off(&self, at: PathBuf) {
        if let Err(error) = remove(&at) {
            tracing::warn!("cannot unmount {}: {error}", at.display());
            self.left.lock().push(at);
        }
    }

    /// Tries again what failed.
    pub(super) fn clear(&self) {
        let left = std::mem::take(&mut *self.left.lock());
        let still: Vec<PathBuf> = { left.into_iter() }
            .filter(|at| remove(at).is_err())
            .collect();
        self.left.lock().extend(still);
    }
}

fn remove(at: &Path) -> rustix::io::Result<()> {
    match mounts::detach(at) {
        // Nothing is mounted there, or nothing is there.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    match rustix::fs::unlinkat(CWD, at, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(dir: &Path) -> Places {
        let layout = Layout::make(&dir.join("fuse"), &dir.join("cas")).unwrap();
        Places::new(Arc::new(layout))
    }

    #[test]
    fn a_view_that_could_not_be_taken_off_is_in_nobodys_way() {
        if !mounts::may_mount() {
            crate::skipped::here("nothing can be mounted");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let source = dir.path().join("source");
        std::fs::create_dir_all(source.join("shown")).unwrap();
        let first = places.mount("view", &source).unwrap();
        let second = places.mount("view", &source).unwrap();
        for at in [first, second] {
            assert!(at.join("shown").exists());
            places.take_off(at.clone());
            assert!(!at.exists());
        }
        assert!(places.mount("view", &dir.path().join("missing")).is_err());
        let left = places.layout.place("").read_dir().unwrap();
        assert_eq!(left.count(), 0);
    }

    /// The numbers begin anew.
    #[test]
    fn what_a_killed_daemon_left_is_in_nobodys_way() {
        if !mounts::may_mount() {
            crate::skipped::here("nothing can be mounted");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::create_dir_all(source.join("shown")).unwrap();
        let killed = places(dir.path());
        let left: Vec<_> = { 0..3 }
            .map(|_| killed.mount("view", &source).unwrap())
            .collect();
        // Of this one the mount has gone and the directory has not: so it is of all, where a namespace ended with the daemon.
        mounts::detach(&left[1]).unwrap();
        drop(killed);
        let next = places(dir.path());
        assert!(left.iter().all(|at| !at.exists()));
        for at in left {
            assert_eq!(next.mount("view", &source).unwrap(), at);
            assert!(at.join("shown").exists());
            next.take_off(at);
        }
        assert!(source.join("shown").exists());
    }

    #[test]
    fn what_could_not_be_taken_off_goes_later() {
        if !mounts::may_mount() {
            crate::skipped::here("nothing can be unmounted");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let at = places.layout.place("view.0");
        let in_the_way = at.join("in-the-way");
        std::fs::create_dir_all(&in_the_way).unwrap();
        places.take_off(at.clone());
        places.clear();
        assert!(at.exists());
        std::fs::remove_dir(&in_the_way).unwrap();
        places.clear();
        assert!(!at.exists());
    }
}
