//! What a mount leaves that was killed: a mounted directory in which everything fails, until somebody unmounts it.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;

use crate::cli::exit::{Exit, Failure};
use crate::mountinfo;

/// Takes away a mount of ours at `dir`, an absolute path, whose program is dead. One of another program's is refused.
pub(super) fn remove(dir: &Path) -> Result<(), Failure> {
    if !is_dead(dir) {
        return Ok(());
    }
    let shown = dir.display();
    if !mounted_by_us(dir) {
        let text = format!(
            "{shown} is a mount whose program is dead, and is not boxwright's; unmount it: fusermount3 -u {shown}"
        );
        return Err(Failure::new(Exit::CannotCreate, text));
    }
    let done = Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(dir)
        .output();
    if is_dead(dir) {
        let why = match &done {
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => format!("fusermount3 (package fuse3): {error}"),
        };
        let text = format!(
            "{shown} is what a killed program had mounted, and cannot be unmounted: {why}; whoever mounted it can: \
             fusermount3 -u {shown}"
        );
        return Err(Failure::new(Exit::CannotCreate, text));
    }
    eprintln!("boxwright: unmounted what a killed program had left at {shown}");
    Ok(())
}

/// Asked by a call whose answer the kernel does not remember.
fn is_dead(dir: &Path) -> bool {
    matches!(rustix::fs::statfs(dir), Err(Errno::NOTCONN))
}

/// Whether what is mounted there last is a tree of a CAS.
fn mounted_by_us(dir: &Path) -> bool {
    // It cannot be looked at itself.
    let real = dir
        .parent()
        .zip(dir.file_name())
        .and_then(|(parent, name)| {
            let parent = parent.canonicalize().ok()?;
            Some(parent.join(name))
        });
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let at_dir = { table.lines().rev() }
        .filter_map(line)
        .find(|(point, _)| Some(point) == real.as_ref());
    at_dir.is_some_and(|(_, source)| source == "fuse boxwright")
}

/// The mount point of a line of mountinfo (proc_pid_mountinfo(5)), and the type and source of its file system.
fn line(line: &str) -> Option<(PathBuf, &str)> {
    let (mount, system) = line.split_once(" - ")?;
    // Without the options.
    let (system, _) = system.rsplit_once(' ')?;
    Some((mountinfo::point(mount)?, system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_read() {
        let ours = r"36 35 0:50 / /mnt/a\040b\134 rw,nosuid shared:1 - fuse boxwright rw,user_id=0";
        let (point, system) = line(ours).unwrap();
        assert_eq!(point, Path::new(r"/mnt/a b\"));
        assert_eq!(system, "fuse boxwright");
        assert_eq!(line("nonsense"), None);
    }
}
