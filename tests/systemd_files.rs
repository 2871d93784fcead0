//! The files of `systemd/` say what this program understands.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("systemd")
        .join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

fn check(path: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_boxwright"))
        .args(["worker", "--check-config", "--config"])
        .arg(path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", path.display());
}

#[test]
fn the_example_is_a_good_configuration() {
    check(&file("worker.toml"));
}

/// What stands behind `#` is either prose or a setting; the settings are good ones too.
#[test]
fn what_the_example_shows_as_default_is_a_good_configuration() {
    let keys = |line: &&str| {
        let shown = line
            .strip_prefix("# ")
            .and_then(|rest| rest.split_once(" = "));
        shown.is_some_and(|(key, _)| {
            boxwright::config::keys::KEYS
                .iter()
                .any(|known| known.name == key)
        })
    };
    let text = text("worker.toml");
    let (above, below) = text.split_once("\n[platform]").unwrap();
    let shown: Vec<&str> = above.lines().filter(keys).map(|line| &line[2..]).collect();
    assert!(shown.len() > 12, "{shown:?}");
    let plain: Vec<&str> = above
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    let whole = format!(
        "{}\n{}\n[platform]{below}",
        plain.join("\n"),
        shown.join("\n")
    );
    let place = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(place.path(), whole).unwrap();
    check(place.path());
}

/// A unit that breaks the sandbox would be found out by the first action only.
#[test]
fn the_unit_delegates_and_does_not_break_the_sandbox() {
    let unit = text("boxwright-worker.service");
    let set = |name: &str| {
        unit.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    };
    assert_eq!(set("Delegate"), Some("cpu memory pids io"));
    assert_eq!(set("DelegateSubgroup"), Some("daemon"));
    assert_eq!(set("KillMode"), Some("mixed"));
    assert_eq!(set("OOMPolicy"), Some("continue"));
    assert_eq!(set("TasksMax"), Some("infinity"));
    // Who was told to stop, be it by hand, is not started again because the scheduler did not hear of it.
    assert_eq!(set("RestartPreventExitStatus"), Some("1 2 69 77 78"));
    // systemd looks at the main process's exit code alone: any other that fails is tried again for ever.
    assert_eq!(set("Type"), Some("notify"));
    assert!(!unit.contains("\nExecStartPre="));
    for breaks in [
        "PrivateUsers",
        "RestrictNamespaces",
        "NoNewPrivileges",
        "ProtectProc",
        "ProcSubset",
        "ProtectKernelTunables",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "PrivateDevices",
        "DeviceAllow",
        "ProtectClock",
        "LockPersonality",
        "RestrictAddressFamilies",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "ProtectHostname",
        "SystemCallArchitectures",
        "MemoryDenyWriteExecute",
        "SystemCallFilter",
    ] {
        assert_eq!(set(breaks), None, "{breaks}");
    }
    let capabilities = set("CapabilityBoundingSet").unwrap();
    for needed in [
        "CAP_SYS_ADMIN",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_CHOWN",
        "CAP_KILL",
    ] {
        assert!(capabilities.split(' ').any(|c| c == needed), "{needed}");
    }
    // What the unit starts is what the command line has.
    let program = set("ExecStart").unwrap();
    assert!(program.starts_with("/usr/bin/boxwright worker --config /etc/boxwright/"));
    assert!(text("apparmor-boxwright").contains("/usr/{,local/}bin/boxwright"));
}

/// What `Type=notify` waits for. A scheduler that does not answer is no reason to start again.
#[test]
fn a_daemon_says_when_it_is_up_and_a_wrong_one_never() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = dir.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let daemon = |what: &[&str], state: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_boxwright"));
        command
            .args(what)
            .args(["--sandbox", "full,process", "--state-dir"])
            .arg(state)
            .env("NOTIFY_SOCKET", &socket)
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    let worker = ["worker", "--remote", "http://127.0.0.1:1"];
    let standalone = ["standalone", "--listen", "127.0.0.1:0"];
    let mut said = [0; 64];

    manager.set_nonblocking(true).unwrap();
    for what in [&worker[..], &standalone] {
        let wrong = daemon(what, Path::new("/proc/x")).status().unwrap();
        assert_eq!(wrong.code(), Some(78), "{what:?}");
        assert!(manager.recv(&mut said).is_err(), "{what:?} was never up");
    }

    manager.set_nonblocking(false).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(900)))
        .unwrap();
    for what in [&worker[..], &standalone] {
        let state = dir.path().join(what[0]);
        let mut right = daemon(what, &state).spawn().unwrap();
        let length = manager.recv(&mut said).unwrap();
        assert_eq!(&said[..length], b"READY=1", "{what:?}");
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&right),
            rustix::process::Signal::TERM,
        )
        .unwrap();
        assert_eq!(right.wait().unwrap().code(), Some(0), "{what:?}");
    }
}
