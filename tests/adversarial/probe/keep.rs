//! An input, written through every door: afterwards the tester looks whether the store's copy is the same.

use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::ptr::null_mut;

use crate::sys::{self, Errno};
use crate::verdict::Verdict;

pub fn run(name: &str, arguments: &[String]) -> Option<Verdict> {
    let path = arguments.first().map_or("", String::as_str);
    Some(match name {
        "cas.write_input" => Verdict::io(
            OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, b"poison")),
            path,
        ),
        "cas.truncate" => Verdict::io(
            OpenOptions::new().write(true).truncate(true).open(path),
            path,
        ),
        "cas.chmod" => {
            let _ = std::fs::set_permissions(path, Permissions::from_mode(0o777));
            match std::fs::metadata(path) {
                Ok(now) if now.mode() & 0o222 != 0 => Verdict::io(
                    OpenOptions::new()
                        .write(true)
                        .open(path)
                        .and_then(|mut file| std::io::Write::write_all(&mut file, b"poison")),
                    path,
                ),
                Ok(_) => Verdict::Denied("EPERM".into(), path.into()),
                Err(error) => Verdict::denied(error.into(), path),
            }
        }
        "cas.mmap_shared" => mapped(path),
        _ => return None,
    })
}

/// A shared mapping of a descriptor that was opened for reading, made writable afterwards.
fn mapped(path: &str) -> Verdict {
    unsafe extern "C" {
        fn mmap(
            address: *mut u8,
            length: usize,
            protection: i32,
            flags: i32,
            fd: i32,
            offset: i64,
        ) -> *mut u8;
        fn mprotect(address: *mut u8, length: usize, protection: i32) -> i32;
    }
    const READ_WRITE: i32 = 3;
    let open = |write| OpenOptions::new().read(true).write(write).open(path);
    let file: File = match open(true).or_else(|_| open(false)) {
        Ok(file) => file,
        Err(error) => return Verdict::denied(Errno::from(error), path),
    };
    // SAFETY: a new mapping of at least the first page, whose address is checked before it is used.
    let (page, made) = unsafe {
        let page = mmap(null_mut(), 4096, 1, 1, file.as_raw_fd(), 0);
        if page as isize == -1 {
            return Verdict::denied(sys::last(), "mmap");
        }
        (page, mprotect(page, 4096, READ_WRITE))
    };
    if made != 0 {
        return Verdict::denied(sys::last(), path);
    }
    // SAFETY: the page is mapped and writable, and the file is not empty.
    unsafe { page.write_volatile(b'P') };
    Verdict::Allowed(path.into())
}
