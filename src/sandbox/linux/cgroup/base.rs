//! The directory below which a daemon has its groups, one in each hierarchy: `boxwright-<pid>`, locked as long as the daemon
//! lives. Whoever gets the lock of such a directory knows that its owner is dead, whatever has become of the number
//! in its name, and takes it down.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{CgroupError, failed};
use super::kill;

/// What our directories are called, before the number.
const PREFIX: &str = "boxwright-";
/// How long the processes of a dead daemon may take to die.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a group without processes may be busy: the kernel lets go of the dead a moment after it says so.
const SETTLING: Duration = Duration::from_millis(500);

/// A daemon's directory in one hierarchy; taken down when dropped.
#[derive(Debug)]
pub(super) struct Base {
    dir: PathBuf,
    /// Locked. Closed when the process dies, however it dies.
    _lock: File,
}

impl Base {
    /// Makes one in the group `parent`.
    pub(super) fn create(parent: &Path) -> Result<Base, CgroupError> {
        let pid = std::process::id();
        // The number may be that of a daemon in another PID namespace.
        for more in 0..100 {
            let dir = match more {
                0 => parent.join(format!("{PREFIX}{pid}")),
                more => parent.join(format!("{PREFIX}{pid}-{more}")),
            };
            match fs::create_dir(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(failed("make", &dir)(error)),
            }
            // Between the two calls somebody who sweeps may have taken it for a dead one's.
            if let Some(lock) = lock(&dir)? {
                return Ok(Base { dir, _lock: lock });
            }
        }
        Err(failed("make", &parent.join(PREFIX))(
            io::ErrorKind::AlreadyExists.into(),
        ))
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        if let Err(error) = take_down(&self.dir, PATIENCE) {
            tracing::warn!(%error, "a control group is left behind; the next daemon in this place removes it");
        }
    }
}

/// Takes down what dead daemons left in the group `parent`. What resists is logged and left.
pub(super) fn sweep(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| name.starts_with(PREFIX)) {
            continue;
        }
        let dir = entry.path();
        match lock(&dir) {
            Ok(None) => {}
            Ok(Some(_lock)) => match take_down(&dir, PATIENCE) {
                Ok(()) => {
                    tracing::info!(path = %dir.display(), "removed the control groups of a daemon that is dead")
                }
                Err(error) => {
                    tracing::warn!(%error, "the control groups of a dead daemon cannot be removed")
                }
            },
            Err(error) => {
                tracing::warn!(%error, "the control groups of a dead daemon cannot be removed")
            }
        }
    }
}

/// Takes the lock; `None` if somebody else has it, or the directory has gone.
fn lock(dir: &Path) -> Result<Option<File>, CgroupError> {
    let file = match File::open(dir) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", dir)(error)),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(failed("lock", dir)(error)),
    }
    let locked = file.metadata().map_err(failed("look at", dir))?.ino();
    let there = fs::metadata(dir).map(|there| there.ino());
    Ok(there.is_ok_and(|there| there == locked).then_some(file))
}

/// Kills everything in the group and in those below it, and removes them.
pub(super) fn take_down(dir: &Path, patience: Duration) -> Result<(), CgroupError> {
    // By the second version's way all below goes with it.
    match kill::kill_all(dir, patience) {
        Err(error) if error.kind() == Some(io::ErrorKind::NotFound) => return Ok(()),
        result => result?,
    }
    for entry in fs::read_dir(dir).map_err(failed("list", dir))?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            take_down(&entry.path(), patience)?;
        }
    }
    remove(dir)
}

/// Removes a group that has no processes any more.
pub(super) fn remove(dir: &Path) -> Result<(), CgroupError> {
    let until = Instant::now() + SETTLING;
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result.map_err(failed("remove", dir)),
        }
    }
}
