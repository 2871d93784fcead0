//! What a line of `/proc/PID/mountinfo` says (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The mount point: the fifth field.
pub(crate) fn point(line: &str) -> Option<PathBuf> {
    Some(path(line.split(' ').nth(4)?))
}

/// A field that is a path: the kernel writes `\040` for a space, and its like.
pub(crate) fn path(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes[at..]
            .strip_prefix(b"\\")
            .and_then(|rest| rest.get(..3));
        let code =
            code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        plain.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_they_are() {
        let line =
            r"36 35 98:0 /mnt1 /mnt/with\040space\134 rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(point(line), Some("/mnt/with space\\".into()));
        assert_eq!(point("36 35"), None);
    }
}
