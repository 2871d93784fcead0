//! The trees on show, kept from action to action: the kernel remembers what it was told of each, so that an action finds hot
//! what an earlier one has touched.
//!
//! A view is a directory of the file system ([`super::nodes`]). One that is shown *within* roots is mounted at a place of
//! its own, with its large local blobs mounted over their paths, so that one clone shows all of it; its large files look the same
//! where they are not local yet, for what a command does must not depend on that. A blob that is mounted stays on the disk, so that it
//! is pinned; a view is unmounted when the store has no room otherwise. Views that were
//! used longest ago go when the kernel keeps too many names for them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::entry::is_large;
use super::layout::Layout;
use super::mounts::{self, failed};
use super::nodes::{Nodes, View};
use super::pinned::Pinning;
use super::places::Places;
use super::plan::below;
use super::subtree::Subtree;
use crate::beneath::modified;
use crate::cas::{LocalStore, Pins, Spare};
use crate::config::Owner;
use crate::inputs::InputError;
use crate::reapi::Digest;
use crate::tree::{File, shown_mtime};

/// Names that the kernel keeps for views that nobody uses: each takes it about one KiB.
const NAMES: u64 = 200_000;
/// Views that are kept while nobody uses them.
const VIEWS: usize = 2_000;
/// Entries of a directory that the kernel can be told of in one answer of a page.
const FEW: usize = 20;
/// Blobs that are mounted over their paths, per view.
const BLOBS: usize = 64;

/// How long the store waits for who only looks at a view's mount.
const GLANCE: Duration = Duration::from_millis(1);

/// The part of all mounts that the kernel allows which may be those of views that nobody uses. An action's launcher has as many again.
const SHARE: u64 = 4;
/// What the kernel allows by default.
const MOUNTS: u64 = 100_000;

/// All views.
pub(super) struct Views {
    layout: Arc<Layout>,
    places: Arc<Places>,
    nodes: Arc<Nodes>,
    store: Arc<LocalStore>,
    pinning: Arc<Pinning>,
    kept: Mutex<LruCache<Key, Arc<Kept>>>,
    numbers: AtomicU64,
    names: u64,
    mounts: u64,
}

/// With whether it is shown within roots.
type Key = (Digest, Owner, bool);

/// A view that is kept.
pub(super) struct Kept {
    this: Weak<Kept>,
    view: Arc<View>,
    /// Where the view is, below the read-only mount of the file system.
    pub(super) path: PathBuf,
    mounted: Mutex<Option<Mounted>>,
    /// The store wanted it unmounted, and found the mount in somebody's hand.
    wanted: AtomicBool,
    places: Arc<Places>,
    store: Arc<LocalStore>,
}

/// Unmounts a view when it is dropped, if it is still mounted there; what shows it within roots by then stays.
struct Unmounting {
    kept: Weak<Kept>,
    at: PathBuf,
}

impl Drop for Unmounting {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.upgrade() {
            kept.give_up(&self.at);
        }
    }
}

impl Kept {
    fn new(
        view: Arc<View>,
        path: PathBuf,
        places: Arc<Places>,
        store: Arc<LocalStore>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Kept {
            this: this.clone(),
            view,
            path,
            mounted: Mutex::new(None),
            wanted: AtomicBool::new(false),
            places,
            store,
        })
    }

    /// Does something with the mount. No lock may be held that the store could want.
    fn with_mount<T>(&self, work: impl FnOnce(&mut Option<Mounted>) -> T) -> T {
        let done = work(&mut self.mounted.lock());
        // What the store has dropped meanwhile is left there anew: it would never ask again.
        while self.wanted.swap(false, Ordering::SeqCst) {
            if let Some(mounted) = &mut *self.mounted.lock() {
                self.leave(mounted);
            }
        }
        done
    }

    /// Leaves the mount with the store, if it keeps anything there: as what was used last.
    fn leave(&self, mounted: &mut Mounted) {
        let renewed = mounted.spare.as_mut().is_some_and(Spare::renew);
        if !renewed && !mounted.blobs.is_empty() {
            let unmounting = Unmounting {
                kept: self.this.clone(),
                at: mounted.at.clone(),
            };
            mounted.spare = Some(self.store.spare(Arc::new(unmounting)));
        }
    }

    fn unmount(&self) {
        // What goes with it looks at the mount again.
        let mounted = self.mounted.lock().take();
        if let Some(mounted) = mounted {
            self.places.take_off(mounted.at);
        }
    }

    /// Unmounts it for the store, if it is still there and nobody has it in hand.
    fn give_up(&self, at: &Path) {
        // Who has it in hand for longer shows the view in one more root, and may be waiting for room, and so for this. Said before it is
        // tried: whoever has it then finds that when he lets go.
        self.wanted.store(true, Ordering::SeqCst);
        let Some(mut mounted) = self.mounted.try_lock_for(GLANCE) else {
            return;
        };
        // Else what is there now may be what another wanted at the same time.
        let taken = mounted.take_if(|mounted| mounted.at == at);
        if taken.is_some() {
            self.wanted.store(false, Ordering::SeqCst);
        }
        drop(mounted);
        if let Some(mounted) = taken {
            self.places.take_off(mounted.at);
        }
    }

    /// How many it takes.
    fn mounts(&self) -> u64 {
        self.with_mount(|mounted| { mounted.as_ref() }.map_or(0, |m| 1 + m.blobs.len() as u64))
    }
}

/// How many mounts a namespace may have, as the kernel says.
fn allowed(said: Option<String>) -> u64 {
    let said = said.and_then(|said| said.trim().parse().ok());
    said.unwrap_or(MOUNTS)
}

/// Where a view is mounted on its own.
struct Mounted {
    at: PathBuf,
    /// Paths that have their blob over them, which stays in the store.
    blobs: HashMap<String, Pins>,
    /// For as long as there is room, if there are any.
    spare: Option<Spare>,
}

impl Views {
    pub(super) fn new(
        layout: Arc<Layout>,
        nodes: Arc<Nodes>,
        store: Arc<LocalStore>,
        pinning: Arc<Pinning>,
    ) -> Self {
        Views {
            places: Arc::new(Places::new(layout.clone())),
            layout,
            nodes,
            store,
            pinning,
            kept: Mutex::new(LruCache::unbounded()),
            numbers: AtomicU64::new(0),
            names: NAMES,
            mounts: allowed(std::fs::read_to_string("/proc/sys/fs/mount-max").ok()) / SHARE,
        }
    }

    /// The view of a directory, for actions of this owner: to lie beneath their roots, or to be shown `within` them.
    pub(super) fn shared(&self, subtree: &Arc<Subtree>, owner: Owner, within: bool) -> Arc<Kept> {
        let mut kept = self.kept.lock();
        let make = || {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let digest = subtree.digest;
            // The number makes it a name that the kernel never heard: one that it was made to forget may still be in use.
            let name = format!("{}-{}.{number}", digest.hash_hex(), digest.size());
            let path = self.layout.shared(&name);
            let view = self.nodes.show(name, subtree.clone(), owner, within);
            Kept::new(view, path, self.places.clone(), self.store.clone())
        };
        kept.get_or_insert((subtree.digest, owner, within), make)
            .clone()
    }

    /// A clone of a view's mount, to be mounted within a root.
    pub(super) fn part(&self, kept: &Kept) -> Result<rustix::fd::OwnedFd, InputError> {
        kept.with_mount(|place| {
            let mounted = match place {
                Some(mounted) => mounted,
                None => place.insert(self.mount(kept)?),
            };
            self.lay_blobs(&kept.view.root, mounted);
            let cloned = mounts::clone(&mounted.at);
            // Last, for the store may have given the old one up by now.
            kept.leave(mounted);
            cloned
        })
    }

    /// Makes the kernel forget what was used longest ago, as long as it keeps too much. Blocks.
    pub(super) fn shrink(&self) {
        self.places.clear();
        self.let_blobs_go();
        loop {
            let oldest = {
                let mut kept = self.kept.lock();
                // One that somebody has in hand is in use.
                let idle = |kept: &Kept| kept.view.told() + 1;
                let (mut names, mut views, mut mounts, mut oldest) = (0, 0, 0, None);
                for (key, view) in kept.iter().filter(|(_, view)| Arc::strong_count(view) == 1) {
                    names += idle(view);
                    views += 1;
                    mounts += view.mounts();
                    oldest = Some(*key);
                }
                match oldest {
                    Some(key) if names > self.names || views > VIEWS || mounts > self.mounts => {
                        kept.pop(&key)
                    }
                    _ => return,
                }
            };
            if let Some(oldest) = oldest {
                self.drop_view(&oldest);
            }
        }
    }

    /// Unmounts views with blobs over their paths that may be evicted: a file that is mounted stays on the disk.
    fn let_blobs_go(&self) {
        let idle: Vec<Arc<Kept>> = {
            let kept = self.kept.lock();
            let large = kept.iter().filter(|(_, view)| view.view.root.large > 0);
            let idle = large.filter(|(key, view)| {
                Arc::strong_count(view) == 1 && !self.pinning.is_pinned(key.0)
            });
            idle.map(|(_, view)| view.clone()).collect()
        };
        idle.iter().for_each(|view| view.unmount());
    }

    fn drop_view(&self, kept: &Kept) {
        kept.unmount();
        self.forget(&self.layout.shared_control(&kept.view.name));
    }

    fn forget(&self, path: &Path) {
        match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => tracing::warn!("cannot take {} off: {error}", path.display()),
        }
    }

    fn mount(&self, kept: &Kept) -> Result<Mounted, InputError> {
        Ok(Mounted {
            at: self.places.mount(&kept.view.name, &kept.path)?,
            blobs: HashMap::new(),
            spare: None,
        })
    }

    /// Mounts large blobs that are local by now over their paths, as far as that can be done.
    fn lay_blobs(&self, root: &Arc<Subtree>, mounted: &mut Mounted) {
        if root.large <= mounted.blobs.len() as u64 || mounted.blobs.len() >= BLOBS {
            return;
        }
        let mut stack = vec![(String::new(), root)];
        while let Some((path, subtree)) = stack.pop() {
            for file in subtree.directory.files.iter().filter(|file| is_large(file)) {
                let path = below(&path, &file.name);
                if mounted.blobs.len() >= BLOBS {
                    return;
                }
                if mounted.blobs.contains_key(&path) {
                    continue;
                }
                let pins = self.store.pin([file.digest]);
                match self.lay(file, &mounted.at.join(&path)) {
                    Ok(false) => {}
                    Ok(true) => drop(mounted.blobs.insert(path, pins)),
                    // It is read as any other file, and tried again for the next action.
                    Err(error) => tracing::warn!("an input is read more slowly: {error}"),
                }
            }
            let names = subtree.directory.directories.iter().map(|d| &*d.name);
            let children = names.zip(&*subtree.children);
            let large = children.filter(|(_, child)| child.large > 0);
            stack.extend(large.map(|(name, child)| (below(&path, name), child)));
        }
    }

    fn lay(&self, file: &File, at: &Path) -> Result<bool, InputError> {
        if !self.store.contains(file.digest) {
            return Ok(false);
        }
        let Some(blob) = self.store.path(file.digest, file.executable)? else {
            return Ok(false);
        };
        let Some(shown) = self.layout.blob(&blob) else {
            return Ok(false);
        };
        // The time of its download is nobody's concern; it has the one that it has elsewhere.
        let (seconds, nanos) = shown_mtime(None);
        let times = modified(seconds, nanos.into());
        match rustix::fs::utimensat(CWD, &blob, &times, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(failed("set the time of", blob.display())(error)),
        }
        match mounts::clone(&shown) {
            Ok(mount) => mounts::attach(mount, at).map(|()| true),
            // Evicted since, or removed by hand: it is read as any other file.
            Err(InputError::Disk { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Has the kernel told of all entries of a small directory at once, which takes as long as telling it of one.
pub(super) fn introduce(at: &Path, subtree: &Subtree) -> Result<(), InputError> {
    if subtree.directory.entries() > FEW {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory =
        rustix::fs::openat(CWD, at, flags, Mode::empty()).map_err(failed("open", at.display()))?;
    let mut buffer = Vec::with_capacity(16 << 10);
    let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
    match entries.next() {
        Some(Err(error)) => Err(failed("list", at.display())(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::subtree::tests::directory;
    use super::*;
    use crate::cas::{CasError, StoreConfig};
    use crate::reapi::DigestFunction;

    const OWNER: Owner = Owner { uid: 7, gid: 8 };
    const BLOB: usize = 64 << 10;

    fn put(store: &LocalStore, n: u8) -> Result<Digest, CasError> {
        let data = vec![n; BLOB];
        let digest = DigestFunction::Sha256.digest(&data);
        store.put(digest, &data, false).map(|()| digest)
    }

    /// The store asks once for what was left with it.
    #[test]
    fn a_mount_that_somebody_had_in_hand_when_the_store_wanted_it_is_there_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(StoreConfig {
            root: dir.path().join("cas"),
            high_water: 10 * BLOB as u64,
            low_water: 9 * BLOB as u64,
            free_floor: 0,
        })
        .unwrap();
        let layout = Layout::make(&dir.path().join("fuse"), &dir.path().join("cas")).unwrap();
        let places = Arc::new(Places::new(Arc::new(layout)));
        let view = Nodes::new(OWNER).show("view".to_owned(), directory(&[], &[]), OWNER, true);
        let kept = Kept::new(view, PathBuf::new(), places, store.clone());
        let blobs = (0..10).map(|n| (n.to_string(), store.pin([put(&store, n).unwrap()])));
        let mounted = Mounted {
            at: dir.path().join("nothing"),
            blobs: blobs.collect(),
            spare: None,
        };
        kept.with_mount(|place| kept.leave(place.insert(mounted)));
        let in_hand = kept.with_mount(|_| put(&store, 10));
        assert!(matches!(in_hand, Err(CasError::Full { .. })), "{in_hand:?}");
        put(&store, 10).unwrap();
        assert_eq!(kept.mounts(), 0);
    }

    #[test]
    fn the_kernel_says_how_many_mounts_there_may_be() {
        assert_eq!(allowed(Some("4096\n".to_owned())), 4096);
        assert_eq!(allowed(Some("many".to_owned())), MOUNTS);
        assert_eq!(allowed(None), MOUNTS);
    }
}
