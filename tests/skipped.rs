//! A skipped test is told of, and fails where what it lacks could have been installed.

#[path = "common/skipped.rs"]
mod skipped;

use std::process::{Command, Output};

const CHILD: &str = "BOXWRIGHT_TEST_SKIP";

/// A test that lacks something, once more in a process of its own.
fn child(lack: &str, record: &std::path::Path, strict: bool) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_skip_is_recorded_and_fails_where_nothing_may_be_skipped",
        ])
        .arg("--nocapture")
        .env(CHILD, lack)
        .env("BOXWRIGHT_TEST_SKIPS", record)
        .env("BOXWRIGHT_NO_SKIPS", if strict { "1" } else { "" })
        .env("NEXTEST_TEST_NAME", "room::promise")
        .output()
        .unwrap()
}

#[test]
fn a_skip_is_recorded_and_fails_where_nothing_may_be_skipped() {
    match std::env::var(CHILD).as_deref() {
        Ok("kernel") => return skipped::here("the kernel is old"),
        Ok(program) => return skipped::program(program),
        Err(_) => {}
    }
    let record = tempfile::NamedTempFile::new().unwrap();
    for (lack, strict, passes) in [
        ("kernel", false, true),
        ("kernel", true, true),
        ("bwrap", false, true),
        ("bwrap", true, false),
    ] {
        let output = child(lack, record.path(), strict);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.success(), passes, "{lack} {strict}: {said}");
        assert_eq!(said.contains("SKIPPED"), passes, "{lack} {strict}: {said}");
    }
    assert_eq!(
        std::fs::read_to_string(record.path()).unwrap(),
        "room::promise: the kernel is old\n\
         room::promise: the kernel is old\n\
         room::promise: there is no bwrap\n"
    );
}
