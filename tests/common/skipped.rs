//! What a test says that does not run here, or not wholly: on its output, which nobody sees of a test that passes, and in the
//! file that `tests/all` makes for it and shows in the end.
#![allow(dead_code)] // each test file uses its own part

use std::fmt::Display;
use std::io::Write;
use std::path::Path;

/// Where `tests/all` gathers them.
const RECORD: &str = "BOXWRIGHT_TEST_SKIPS";
/// Set where root runs the same test a second time, as somebody else.
const AGAIN: &str = "BOXWRIGHT_TEST_UNPRIVILEGED";

/// Tells of a reason that is this machine's nature: its kernel, its user, its file systems.
pub(crate) fn here(reason: impl Display) {
    println!("SKIPPED: {reason}");
    let Some(record) = std::env::var_os(RECORD) else {
        return;
    };
    let thread = std::thread::current();
    let test = std::env::var("NEXTEST_TEST_NAME");
    let test = test.unwrap_or_else(|_| thread.name().unwrap_or("a test").to_owned());
    let opened = std::fs::OpenOptions::new().append(true).open(&record);
    let mut opened = opened.unwrap_or_else(|e| panic!("cannot open {}: {e}", record.display()));
    // In one piece, for others write too.
    let line = format!("{test}: {reason}\n");
    opened.write_all(line.as_bytes()).unwrap();
}

/// Tells of a program that `tests/peers/install` installs: where that was done, a test that misses it fails.
pub(crate) fn program(name: &str) {
    let strict = std::env::var("BOXWRIGHT_NO_SKIPS").is_ok_and(|set| set == "1");
    assert!(!strict, "there is no {name}, and BOXWRIGHT_NO_SKIPS is set");
    here(format!("there is no {name}"));
}

/// Whether this is root; tells if not.
pub(crate) fn unless_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root && std::env::var_os(AGAIN).is_none() {
        here("needs root");
    }
    root
}

/// Whether this is root, who has FUSE; tells if not.
pub(crate) fn unless_root_and_fuse() -> bool {
    let fuse = Path::new("/dev/fuse").exists();
    if !fuse {
        here("needs /dev/fuse");
    }
    unless_root() && fuse
}
