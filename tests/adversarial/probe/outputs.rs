//! Something else in the place of an output, which is called `output`, or `parent/secret`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use crate::sys::{self, Errno};
use crate::verdict::Verdict;

const OUTPUT: &str = "output";

pub fn run(name: &str, arguments: &[String]) -> Option<Verdict> {
    let host = arguments.first().map_or("/", String::as_str);
    let made = match name {
        "out.symlink_file" => symlink(format!("{host}/secret"), OUTPUT),
        "out.symlink_dir" => symlink(host, OUTPUT),
        "out.symlink_magic" => symlink("/proc/self/root", OUTPUT),
        // A worker that makes the parents of outputs has made this one.
        "out.symlink_parent" => {
            let _ = fs::remove_dir("parent");
            symlink(host, "parent")
        }
        "out.fifo" => {
            const S_IFIFO: u32 = 0o010_000;
            let made = sys::mknod(sys::text(OUTPUT).as_ptr(), S_IFIFO | 0o666, 0);
            made.map(drop)
                .map_err(|Errno(number)| std::io::Error::from_raw_os_error(number))
        }
        "out.socket" => UnixListener::bind(OUTPUT).map(drop),
        "out.sparse" => File::create(OUTPUT).and_then(|file| file.set_len(8 << 40)),
        "out.deep" => deep(),
        "out.nonutf8" => fs::create_dir(OUTPUT)
            .and_then(|()| File::create(OsStr::from_bytes(b"output/\xff\xfe")).map(drop)),
        _ => return None,
    };
    Some(Verdict::io(made, name))
}

/// Deeper than a build ever is.
fn deep() -> std::io::Result<()> {
    let back = std::env::current_dir()?;
    fs::create_dir(OUTPUT)?;
    std::env::set_current_dir(OUTPUT)?;
    for _ in 0..400 {
        fs::create_dir("d")?;
        std::env::set_current_dir("d")?;
    }
    std::env::set_current_dir(back)
}
