//! FUSE: the device, and the program by which a daemon that is not root mounts.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

/// What there is of it.
#[derive(Debug)]
pub struct Fuse {
    /// Whether the daemon can open `/dev/fuse`, and why not.
    pub device: Result<(), io::Error>,
    /// The device's permission bits.
    pub mode: Option<u32>,
    /// `fusermount3`, if it is there and set-uid root.
    pub fusermount: Option<PathBuf>,
}

/// Looks.
pub fn fuse() -> Fuse {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let mode = std::fs::metadata("/dev/fuse").map(|meta| meta.permissions().mode() & 0o777);
    let set_uid = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|meta| meta.uid() == 0 && meta.permissions().mode() & 0o4000 != 0)
    };
    Fuse {
        device: device.map(drop),
        mode: mode.ok(),
        fusermount: which("fusermount3").filter(set_uid),
    }
}

/// A program on `PATH`, or where programs for administrators are.
pub(super) fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}
