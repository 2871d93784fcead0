//! Files of the host: read, list, write, link, climb.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;

use crate::sys::{self, Errno};
use crate::verdict::Verdict;

pub fn run(name: &str, arguments: &[String]) -> Option<Verdict> {
    let each = |attempt: fn(&str) -> Verdict| Verdict::any(arguments.iter().map(|a| attempt(a)));
    Some(match name {
        "fs.read_host" => each(|path| Verdict::io(fs::read(path), path)),
        "fs.list_host" => each(|path| match fs::read_dir(path).map(Iterator::count) {
            Ok(0) => Verdict::Denied("NOTHING".into(), format!("in {path}")),
            count => Verdict::io(count, path),
        }),
        "fs.write_ro" => each(|path| Verdict::io(OpenOptions::new().append(true).open(path), path)),
        "fs.create" => each(create),
        "fs.proc_root" => proc_root(&arguments[0]),
        "mnt.dotdot" => climb(&arguments[0]),
        "out.hardlink" => {
            let made = fs::hard_link(&arguments[0], "linked");
            let _ = fs::remove_file("linked");
            Verdict::io(made, &*arguments[0])
        }
        _ => return None,
    })
}

fn create(directory: &str) -> Verdict {
    let path = format!("{directory}/.boxwright-probe");
    let made = OpenOptions::new().write(true).create_new(true).open(&path);
    if made.is_ok() {
        let _ = fs::remove_file(&path);
    }
    Verdict::io(made, directory)
}

/// The root of every process that can be seen, and of this one's descriptors and working directory.
fn proc_root(secret: &str) -> Verdict {
    let mut ways = vec![
        "/proc/self/root".to_owned(),
        "/proc/self/cwd/../../../../../..".into(),
    ];
    ways.extend(sys::pids().iter().map(|pid| format!("/proc/{pid}/root")));
    Verdict::any(ways.iter().map(|way| {
        let path = format!("{way}{secret}");
        Verdict::io(fs::read(&path), &*path)
    }))
}

/// Out of a root: by `..`, and by the descriptor that was opened before a `chroot`.
fn climb(secret: &str) -> Verdict {
    let read = || {
        fs::read(secret.trim_start_matches('/'))
            .map(|_| 0)
            .map_err(Errno::from)
    };
    let up = || {
        for _ in 0..64 {
            std::env::set_current_dir("..").map_err(Errno::from)?;
        }
        Ok(0)
    };
    let plain = sys::in_child(|| up().and_then(|_: i64| read()));
    let chrooted = sys::in_child(|| {
        let root = fs::File::open("/").map_err(Errno::from)?;
        fs::create_dir("jail").map_err(Errno::from)?;
        let jailed = sys::chroot(sys::text("jail").as_ptr());
        let back = sys::fchdir(root.as_raw_fd());
        let _ = fs::remove_dir("jail");
        jailed?;
        back?;
        up()?;
        sys::chroot(sys::text(".").as_ptr())?;
        read()
    });
    let verdict = |way: &str, result: Result<Result<(), Errno>, sys::Ended>| match result {
        Ok(result) => Verdict::of(result, way),
        Err(ended) => Verdict::Error(format!("{way}: {ended:?}")),
    };
    Verdict::any([verdict("..", plain), verdict("chroot", chrooted)])
}
