//! The `process` level keeps its promises: what a command is given, what it finds, how it ends, that nothing of it is left.
//! As root it runs everything twice, the second time as an ordinary user.

mod bed;
mod command;
mod crashes;
mod ending;
mod inside;
mod output;
#[path = "../common/skipped.rs"]
mod skipped;

use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use bed::{launcher_executable, unused_id};

/// Runs this file's tests once more without root, where slots have no users of their own.
#[test]
fn all_of_it_without_root() {
    if !skipped::unless_root() {
        return;
    }
    // Copies, as the build's own directory may be closed to others.
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    open(dir.path());
    let tests = dir.path().join("tests");
    let launcher = dir.path().join("boxwright");
    std::fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    std::fs::copy(launcher_executable(), &launcher).unwrap();
    open(&tests);
    open(&launcher);
    let uid = unused_id();
    let temp = dir.path().join("tmp");
    std::fs::create_dir(&temp).unwrap();
    chown(&temp, Some(uid), Some(uid)).unwrap();
    let output = Command::new("setpriv")
        .args([format!("--reuid={uid}"), format!("--regid={uid}")])
        .args(["--clear-groups", "--"])
        .arg(&tests)
        .args(["--skip", "all_of_it_without_root", "--test-threads", "1"])
        .env("BOXWRIGHT_TEST_LAUNCHER", &launcher)
        .env("BOXWRIGHT_TEST_UNPRIVILEGED", "1")
        .env("TMPDIR", &temp)
        .current_dir("/")
        .output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skipped::program("setpriv");
            return;
        }
        output => output.unwrap(),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("test result: ok"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
