//! Mounting, in the place of `fusermount3`, which need not be there, and is nobody in a user namespace of the daemon's own.
//!
//! The crate `fuse3` runs whatever is called so, with `-o OPTIONS DIRECTORY` and a socket for the open device. So our own
//! program goes by this name where the daemon looks first.

use std::ffi::{OsStr, OsString};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::fs::{CWD, Mode, OFlags};

/// The name that is looked for.
const NAME: &str = "fusermount3";
/// Where the socket's number is told.
const SOCKET: &str = "_FUSE_COMMFD";

/// The entry point of the helper, called first thing in `main`: does nothing unless the program was started by that name, else never
/// returns.
pub fn mounter_main() {
    let mut arguments = std::env::args_os();
    let own = arguments.next().map(PathBuf::from).unwrap_or_default();
    if own.file_name() != Some(OsStr::new(NAME)) {
        return;
    }
    let code = match mount_for(arguments.collect()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("boxwright: cannot mount a FUSE file system: {error}");
            1
        }
    };
    std::process::exit(code)
}

fn mount_for(arguments: Vec<OsString>) -> std::io::Result<()> {
    let bad = || std::io::Error::other("this helper is for boxwright's own use");
    let [flag, options, at] = &arguments[..] else {
        return Err(bad());
    };
    let socket: Option<RawFd> = std::env::var(SOCKET).ok().and_then(|n| n.parse().ok());
    let (Some(socket), "-o", Some(options)) =
        (socket, flag.to_str().unwrap_or(""), options.to_str())
    else {
        return Err(bad());
    };
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::openat(CWD, "/dev/fuse", flags, Mode::empty())
        .map_err(|e| std::io::Error::other(format!("/dev/fuse: {e}")))?;
    let name = |option: &&str| option.starts_with("fsname=");
    let source = options.split(',').find(name).map_or("fuse", |o| &o[7..]);
    let options: Vec<&str> = options.split(',').filter(|o| !name(o)).collect();
    let options = format!("fd={},{}", device.as_raw_fd(), options.join(","));
    let tame = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some(source),
        Path::new(at),
        Some("fuse"),
        tame,
        Some(options.as_str()),
    )?;
    let device = [device.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&device)];
    let byte = [IoSlice::new(b"\0")];
    sendmsg::<()>(socket, &byte, &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// Makes this process look first in `dir` for programs that are looked for by their name. To be called before there are threads.
#[allow(unsafe_code)]
pub fn look_first_in(dir: &Path) {
    let mut path = dir.as_os_str().as_bytes().to_vec();
    if let Some(rest) = std::env::var_os("PATH").filter(|rest| !rest.is_empty()) {
        path.push(b':');
        path.extend(rest.as_bytes());
    }
    // SAFETY: nobody else reads or writes the environment, as there is no other thread.
    unsafe { std::env::set_var("PATH", OsStr::from_bytes(&path)) }
}

/// Puts the helper into `dir`.
pub fn install(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    match std::os::unix::fs::symlink("/proc/self/exe", dir.join(NAME)) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
