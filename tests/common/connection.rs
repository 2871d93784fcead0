//! The kernel's end of a FUSE file system, by which it can be ended.

#![allow(dead_code)] // each test file uses its own part

use std::path::Path;
use std::process::Command;

/// Its directory in the kernel's control file system, which is unmounted when this is dropped.
pub(crate) struct Connection {
    control: tempfile::TempDir,
    number: u32,
}

impl Connection {
    /// Of the file system that is mounted at `at`.
    pub(crate) fn at(at: &Path) -> Self {
        let device = rustix::fs::stat(at).unwrap().st_dev;
        Self::numbered(rustix::fs::minor(device))
    }

    /// Of the file system with this device number.
    pub(crate) fn numbered(number: u32) -> Self {
        let control = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "fusectl", "fusectl"])
            .arg(control.path())
            .status();
        assert!(mounted.unwrap().success());
        Connection { control, number }
    }

    /// Ends it, for all who use it.
    pub(crate) fn abort(&self) {
        let own = self.control.path().join(self.number.to_string());
        std::fs::write(own.join("abort"), "1").unwrap();
    }

    /// Requests that are not answered yet.
    pub(crate) fn waiting(&self) -> u64 {
        let own = self.control.path().join(self.number.to_string());
        let said = std::fs::read_to_string(own.join("waiting")).unwrap();
        said.trim().parse().unwrap()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.control.path()).status();
    }
}
