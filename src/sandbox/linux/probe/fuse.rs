//! FUSE: the device.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// What there is of it.
#[derive(Debug)]
pub struct Fuse {
    /// Whether the daemon can open `/dev/fuse`, and why not.
    pub device: Result<(), io::Error>,
    /// The device's permission bits.
    pub mode: Option<u32>,
}

/// Looks.
pub fn fuse() -> Fuse {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let mode = std::fs::metadata("/dev/fuse").map(|meta| meta.permissions().mode() & 0o777);
    Fuse {
        device: device.map(drop),
        mode: mode.ok(),
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
