//! Tests that hold for root and for everybody else.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

const AGAIN: &str = "BOXWRIGHT_TEST_UNPRIVILEGED";

/// Runs the test here, and if this is root again as somebody else.
pub(crate) fn as_everyone(name: &str, test: impl Fn()) {
    test();
    if !is_root() || std::env::var_os(AGAIN).is_some() {
        return;
    }
    // The binary may lie where nobody else may go.
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let binary = place.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    let status = as_other(&binary.to_string_lossy())
        .args(["--exact", name, "--nocapture"])
        .env(AGAIN, "1")
        .env("TMPDIR", place.path())
        .current_dir(place.path())
        .status()
        .unwrap();
    assert!(status.success(), "as an unprivileged user");
}

/// Whether permissions do not bind this process.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that runs as an unprivileged user.
pub(crate) fn as_other(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    command.arg(program);
    command
}
