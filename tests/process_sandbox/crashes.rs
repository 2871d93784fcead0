//! Whoever is killed, nothing of the command survives, and the slot works again.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use boxwright::sandbox::{End, Sandbox, SandboxError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::bed::{Bed, marked, marker, unused_id};

const NONE: [u32; 0] = [];

fn kill_9(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
}

/// A command with descendants in sessions of their own; it says `ready` when all are there.
fn family(marker: &str) -> String {
    format!(
        "(setsid sh -c 'trap \"\" TERM; sleep {marker} & sleep {marker} & echo ready; wait' &); sleep {marker}"
    )
}

#[tokio::test]
async fn a_killed_launcher_is_reported_and_replaced() {
    let bed = Bed::new();
    for _ in 0..3 {
        let launcher = bed.sandbox.launcher(0).unwrap();
        let marker = marker();
        let mut spec = bed.shell(&family(&marker));
        let (send, mut receive) = mpsc::channel(10);
        spec.stdout.live = Some(Box::new(send));
        let (result, ()) =
            tokio::join!(bed.sandbox.run(0, spec, CancellationToken::new()), async {
                receive.recv().await;
                kill_9(launcher);
            });
        match result {
            Err(SandboxError::Launcher { slot: 0, problem }) => assert_eq!(problem, "died"),
            other => panic!("{other:?}"),
        }
        assert_eq!(marked(&marker), NONE);
        assert_eq!(bed.run(bed.shell("exit 3")).await.end, End::Exited(3));
        assert_ne!(bed.sandbox.launcher(0), Some(launcher));
    }
}

#[tokio::test]
async fn a_launcher_killed_between_two_commands_is_not_noticed() {
    let bed = Bed::new();
    for code in [1, 2] {
        let launcher = bed.sandbox.launcher(0).unwrap();
        kill_9(launcher);
        // A dead launcher is a zombie until it is replaced.
        let stat = format!("/proc/{launcher}/stat");
        while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
        let outcome = bed.run(bed.shell(&format!("exit {code}"))).await;
        assert_eq!(outcome.end, End::Exited(code));
    }
}

#[tokio::test]
async fn a_slot_does_not_care_what_becomes_of_another() {
    let bed = Bed::with_slots(2);
    let mut spec = bed.shell("echo ready; while [ ! -e go ]; do sleep 0.01; done; exit 7");
    let (send, mut receive) = mpsc::channel(10);
    spec.stdout.live = Some(Box::new(send));
    let (outcome, ()) = tokio::join!(bed.run(spec), async {
        receive.recv().await;
        let launcher = bed.sandbox.launcher(1).unwrap();
        let marker = marker();
        let mut spec = bed.shell(&family(&marker));
        let (send, mut receive) = mpsc::channel(10);
        spec.stdout.live = Some(Box::new(send));
        let (result, ()) =
            tokio::join!(bed.sandbox.run(1, spec, CancellationToken::new()), async {
                receive.recv().await;
                kill_9(launcher);
            });
        assert!(matches!(
            result,
            Err(SandboxError::Launcher { slot: 1, .. })
        ));
        assert_eq!(marked(&marker), NONE);
        bed.file("go", "", 0o644);
    });
    assert_eq!(outcome.end, End::Exited(7));
}

#[tokio::test]
async fn a_slot_that_is_not_there_is_an_error() {
    let bed = Bed::new();
    let spec = bed.shell("exit 0");
    let error = bed.sandbox.run(1, spec, CancellationToken::new()).await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "sandbox: the launcher of slot 1 does not exist: there are 1 slots"
    );
}

#[tokio::test]
async fn a_dropped_run_kills_its_command() {
    let bed = Bed::new();
    let marker = marker();
    let mut spec = bed.shell(&family(&marker));
    let (send, mut receive) = mpsc::channel(10);
    spec.stdout.live = Some(Box::new(send));
    tokio::select! {
        outcome = bed.sandbox.run(0, spec, CancellationToken::new()) => panic!("{outcome:?}"),
        _ = receive.recv() => {}
    }
    assert_eq!(bed.run(bed.shell("exit 3")).await.end, End::Exited(3));
    assert_eq!(marked(&marker), NONE);
}

#[tokio::test]
async fn a_dropped_sandbox_leaves_nothing() {
    let bed = Bed::new();
    let marker = marker();
    let launcher = bed.sandbox.launcher(0).unwrap();
    let mut spec = bed.shell(&family(&marker));
    let (send, mut receive) = mpsc::channel(10);
    spec.stdout.live = Some(Box::new(send));
    tokio::select! {
        outcome = bed.sandbox.run(0, spec, CancellationToken::new()) => panic!("{outcome:?}"),
        _ = receive.recv() => {}
    }
    drop(bed);
    assert_eq!(marked(&marker), NONE);
    assert!(!std::path::Path::new(&format!("/proc/{launcher}")).exists());
}

/// A process that a failing test must not leave behind.
struct Guard(std::process::Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: the daemon that the next test kills.
#[tokio::test]
#[ignore = "started by when_the_daemon_is_killed_nothing_survives"]
async fn daemon() {
    let marker = std::env::var("BOXWRIGHT_TEST_MARKER").unwrap();
    let bed = Bed::new();
    let fifo = std::env::var("BOXWRIGHT_TEST_FIFO").unwrap();
    // All processes of the command hold the pipe's end; so do no others.
    let mut spec = bed.shell(&format!(
        "exec 1>{fifo} 2>&1; (setsid sh -c 'trap \"\" TERM; sleep {marker} & sleep {marker} & echo ready; wait' &); sleep {marker}"
    ));
    spec.grace = Duration::from_secs(300);
    let _ = bed.run(spec).await;
}

#[test]
fn when_the_daemon_is_killed_nothing_survives() {
    let marker = marker();
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_retain(0o666)).unwrap();
    std::fs::set_permissions(&fifo, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crashes::daemon", "--ignored", "--nocapture"])
        .env("BOXWRIGHT_TEST_MARKER", &marker)
        .env("BOXWRIGHT_TEST_FIFO", &fifo)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut daemon = Guard(daemon);
    let mut reader = BufReader::new(std::fs::File::open(&fifo).unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    // Two shells and three sleeps.
    while marked(&marker).len() < 5 {
        std::thread::yield_now();
    }
    daemon.0.kill().unwrap();
    daemon.0.wait().unwrap();
    // The end of file comes when the last process that held the pipe is gone.
    assert_eq!(reader.read_to_string(&mut line).unwrap(), 0);
    assert_eq!(marked(&marker), NONE);
}

#[tokio::test]
async fn what_an_earlier_daemon_left_is_gone_before_the_first_command() {
    if !crate::skipped::unless_root() {
        return;
    }
    let bed = Bed::new();
    let uid = bed.sandbox.owner(0).unwrap().uid;
    let left = Command::new("setpriv")
        .args([format!("--reuid={uid}"), format!("--regid={uid}")])
        .args(["--clear-groups", "sleep", "1000"])
        .spawn()
        .unwrap();
    let mut left = Guard(left);
    // It is the slot's user's once it has executed sleep.
    let comm = format!("/proc/{}/comm", left.0.id());
    while std::fs::read_to_string(&comm).unwrap() != "sleep\n" {
        std::thread::yield_now();
    }
    assert_eq!(bed.run(bed.shell("exit 0")).await.end, End::Exited(0));
    let status = left.0.try_wait().unwrap_or(None);
    // Dead, whoever of us has waited for it.
    assert!(status.is_none_or(|status| !status.success()));
    assert!(!std::path::Path::new(&comm).exists());
}

#[test]
fn a_launcher_started_by_hand_says_so() {
    let output = Command::new(super::bed::launcher_executable())
        .args(["sandbox-launcher", "0", "1"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("for boxwright's own use"), "{said}");
}

#[test]
fn a_launcher_that_is_sent_nonsense_says_so_and_ends() {
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
    let exact = [&1_u64.to_le_bytes()[..], &[0xff; 68]].concat();
    for nonsense in [&b"x"[..], &exact, &[0; 76], &[7; 100_000]] {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let launcher = Command::new(super::bed::launcher_executable())
            .args(["sandbox-launcher", "0", &std::process::id().to_string()])
            .stdin(Stdio::from(theirs))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        send(&ours, nonsense, SendFlags::empty()).unwrap();
        let output = launcher.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.starts_with("boxwright sandbox-launcher: "), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[tokio::test]
async fn a_root_daemon_has_no_slot_for_uid_0() {
    if !crate::skipped::unless_root() {
        return;
    }
    use boxwright::sandbox::{Launchers, Level, process::ProcessSandbox};
    for first_uid in [0, u32::MAX, u32::MAX - 1] {
        let launchers =
            Launchers::start_from(super::bed::launcher_executable(), Level::Process, 2).unwrap();
        let error = ProcessSandbox::new(launchers, first_uid).unwrap_err();
        assert!(error.to_string().contains("not a range"), "{error}");
    }
    assert_ne!(unused_id(), 0);
}
