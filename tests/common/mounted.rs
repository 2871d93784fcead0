//! A small file system for tests that fill one.
#![allow(dead_code)] // each test file uses its own part

use std::path::Path;
use std::process::Command;

/// Unmounted when dropped.
pub(crate) struct Mounted {
    dir: tempfile::TempDir,
    /// What it is on, if it is not in memory.
    _image: Option<tempfile::TempDir>,
}

impl Mounted {
    /// A tmpfs with these options of `mount`; `None`, and a word on why, where nothing can be mounted.
    pub(crate) fn new(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]);
        succeeds(mount.arg(dir.path()))?;
        Some(Mounted { dir, _image: None })
    }

    /// An ext4 of so many bytes: unlike one in memory, the kernel counts what is written to it.
    pub(crate) fn ext4(size: u64) -> Option<Self> {
        let (dir, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = image.path().join("image");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(size).unwrap();
        succeeds(Command::new("mkfs.ext4").args(["-q", "-m0"]).arg(&path))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", "loop"]);
        succeeds(mount.arg(&path).arg(dir.path()))?;
        Some(Mounted {
            dir,
            _image: Some(image),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Bytes that may still be written.
    pub(crate) fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.path()).status();
    }
}

fn succeeds(command: &mut Command) -> Option<()> {
    let why = match command.output() {
        Ok(output) if output.status.success() => return Some(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(why) => why.to_string(),
    };
    crate::skipped::here(format!("cannot mount a small file system: {why}"));
    None
}
