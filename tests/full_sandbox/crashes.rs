//! Whoever is killed, and whenever, nothing of the command survives, nothing stays mounted, and the next command runs. 30 times at
//! random moments; 200 with `BOXWRIGHT_SOAK=1` (`make soak`).

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use boxwright::sandbox::{End, Identity, Sandbox, SandboxError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::bed::{Bed, marked, marker};

const NONE: [u32; 0] = [];

fn times() -> usize {
    match std::env::var_os("BOXWRIGHT_SOAK").is_some_and(|value| value != "0") {
        true => 200,
        false if super::is_root() => 30,
        false => 10,
    }
}

/// A moment within so many milliseconds, another one each time.
fn moment(most: u64) -> Duration {
    let mut bytes = [0; 4];
    fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    Duration::from_micros(u64::from(u32::from_le_bytes(bytes)) % (most * 1000))
}

fn children(of: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// The children of all threads: a process is the child of the thread that started it.
fn all_children() -> Vec<u32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    texts
        .flat_map(|text| {
            text.split_ascii_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// A command with descendants in sessions of their own; it says `ready` when all are there.
fn family(marker: &str) -> String {
    format!(
        "(setsid sh -c 'trap \"\" TERM; sleep {marker} & sleep {marker} & echo ready; wait' &); sleep {marker}"
    )
}

/// Lines of our mount table about this test's directory.
fn mounts(bed: &Bed) -> usize {
    let own = bed.dir.path().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.contains(&own)).count()
}

/// The keeper or the launcher proper of the only slot, whichever of them is there.
fn one_of_the_two(which: usize) -> Option<u32> {
    let keeper = all_children().into_iter().next()?;
    match which {
        0 => Some(keeper),
        _ => children(keeper).into_iter().next(),
    }
}

#[test]
fn keeper_and_launcher_may_be_killed_at_any_moment() {
    // In a process of its own, whose children are those of one sandbox only.
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "crashes::killed_at_any_moment",
            "--ignored",
            "--nocapture",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Not a test of its own.
#[tokio::test]
#[ignore = "started by keeper_and_launcher_may_be_killed_at_any_moment"]
async fn killed_at_any_moment() {
    let bed = Bed::new();
    let (mut survived, mut lost) = (0, 0);
    for at in 0..times() {
        let marker = marker();
        let mut spec = bed.shell(&family(&marker));
        spec.timeout = Some(Duration::from_millis(60));
        // Every other time the launcher is a new one, which is set up meanwhile.
        spec.view.user = Identity {
            uid: 1000 + (at as u32 / 2) % 2,
            gid: 1000,
        };
        let (result, ()) = tokio::join!(bed.try_run(spec), async {
            tokio::time::sleep(moment(100)).await;
            if let Some(pid) = one_of_the_two(at % 2) {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
        });
        match result {
            Ok(outcome) => {
                survived += 1;
                assert_eq!(outcome.end, End::TimedOut);
            }
            Err(SandboxError::Launcher { slot: 0, .. }) => lost += 1,
            Err(other) => panic!("{other}"),
        }
        assert_eq!(marked(&marker), NONE, "after {at} kills");
        assert_eq!(mounts(&bed), 0);
        let next = bed.run(bed.shell("exit 3")).await;
        assert_eq!(next.end, End::Exited(3));
        // The new launcher, and none of the old ones.
        let keepers = all_children();
        assert_eq!(keepers.len(), 1, "{keepers:?}");
        assert_eq!(children(keepers[0]).len(), 1);
    }
    println!("{lost} commands were lost with their launcher, {survived} ended before");
    assert!(lost > 0);
}

/// A signal that was not meant for the command is no end of it.
#[tokio::test]
async fn a_killed_init_is_no_end_of_its_command() {
    let bed = Bed::new();
    assert_eq!(bed.run(bed.shell("exit 1")).await.end, End::Exited(1));
    let launcher = children(bed.sandbox.launcher(0).unwrap())[0];
    let marker = marker();
    let mut spec = bed.shell(&family(&marker));
    let (send, mut receive) = mpsc::channel(10);
    spec.stdout.live = Some(Box::new(send));
    let (result, ()) = tokio::join!(bed.try_run(spec), async {
        assert!(receive.recv().await.is_some());
        let init = children(launcher)[0];
        kill(Pid::from_raw(init as i32), Signal::SIGKILL).unwrap();
    });
    match result {
        Err(SandboxError::Launcher { slot: 0, problem }) => {
            assert!(problem.contains("lost the init"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(marked(&marker), NONE);
    // What kills the command itself is its end.
    let killed = bed.run(bed.shell("kill -9 $$")).await;
    assert_eq!(killed.end, End::Signalled(9));
}

#[tokio::test]
async fn between_two_commands_nobody_notices() {
    let bed = Bed::new();
    for which in [0, 1, 0, 1] {
        assert_eq!(bed.run(bed.shell("exit 1")).await.end, End::Exited(1));
        let keeper = bed.sandbox.launcher(0).unwrap();
        let both = [keeper, children(keeper)[0]];
        kill(Pid::from_raw(both[which] as i32), Signal::SIGKILL).unwrap();
        // Each takes the other with it. Who is dead is a zombie until somebody asks.
        let dead = |pid| match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        while !both.into_iter().all(dead) {
            std::thread::yield_now();
        }
        assert_eq!(bed.run(bed.shell("exit 2")).await.end, End::Exited(2));
    }
}

#[tokio::test]
async fn a_dropped_sandbox_leaves_nothing() {
    let bed = Bed::new();
    assert_eq!(bed.run(bed.shell("exit 1")).await.end, End::Exited(1));
    let keeper = bed.sandbox.launcher(0).unwrap();
    let launcher = children(keeper)[0];
    let marker = marker();
    let mut spec = bed.shell(&family(&marker));
    let (send, mut receive) = mpsc::channel(10);
    spec.stdout.live = Some(Box::new(send));
    tokio::select! {
        outcome = bed.sandbox.run(0, spec, CancellationToken::new()) => panic!("{outcome:?}"),
        _ = receive.recv() => {}
    }
    drop(bed);
    assert_eq!(marked(&marker), NONE);
    for pid in [keeper, launcher] {
        assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
    }
}

/// Not a test of its own: the daemon that the next test kills. Says `ran` after its first command, then runs one after the other.
#[tokio::test]
#[ignore = "started by a_killed_daemon_takes_everything_with_it"]
async fn daemon() {
    let marker = std::env::var("BOXWRIGHT_TEST_MARKER").unwrap();
    let bed = Bed::new();
    assert_eq!(bed.run(bed.shell("exit 5")).await.end, End::Exited(5));
    eprintln!("ran {}", bed.dir.path().display());
    if marker == "end" {
        return;
    }
    for at in 0.. {
        let mut spec = bed.shell(&family(&marker));
        spec.timeout = Some(Duration::from_millis(10 + at % 20));
        bed.run(spec).await;
    }
}

/// A process that a failing test must not leave behind.
struct Guard(std::process::Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon, all of whose launchers hold the pipe; it has run a command.
fn start_daemon(marker: &str) -> (Guard, BufReader<std::io::PipeReader>, String) {
    let (read, write) = std::io::pipe().unwrap();
    let daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crashes::daemon", "--ignored", "--nocapture"])
        .env("BOXWRIGHT_TEST_MARKER", marker)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(write)
        .spawn()
        .unwrap();
    let daemon = Guard(daemon);
    let mut read = BufReader::new(read);
    let mut said = String::new();
    loop {
        let mut line = String::new();
        assert_ne!(read.read_line(&mut line).unwrap(), 0, "it died: {said}");
        if let Some(dir) = line.strip_prefix("ran ") {
            return (daemon, read, dir.trim().to_owned());
        }
        said += &line;
    }
}

/// Directories of this daemon's cgroups.
fn groups_of(daemon: u32) -> Vec<std::path::PathBuf> {
    let name = format!("boxwright-{daemon}");
    let mut found = Vec::new();
    let mut queue = vec![(std::path::PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = queue.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || depth > 6 {
                continue;
            }
            match entry.file_name() == *name {
                true => found.push(entry.path()),
                false => queue.push((entry.path(), depth + 1)),
            }
        }
    }
    found
}

#[test]
fn a_killed_daemon_takes_everything_with_it() {
    let mut killed = Vec::new();
    let mut slowest = Duration::ZERO;
    for _ in 0..times() {
        let marker = marker();
        let (mut daemon, mut pipe, dir) = start_daemon(&marker);
        std::thread::sleep(moment(60));
        daemon.0.kill().unwrap();
        let begun = Instant::now();
        daemon.0.wait().unwrap();
        // The end of file comes when the last launcher has let go; its namespace goes with it.
        pipe.read_to_end(&mut Vec::new()).unwrap();
        while !marked(&marker).is_empty() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "{:?}",
                marked(&marker)
            );
            std::thread::yield_now();
        }
        slowest = slowest.max(begun.elapsed());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&dir), "{mounts}");
        fs::remove_dir_all(dir).unwrap();
        killed.push(daemon.0.id());
    }
    println!(
        "{} daemons killed; all was dead within {slowest:?}",
        killed.len()
    );
    // The next daemon takes down the groups that they left, and its own when it ends.
    let (mut last, mut pipe, _) = start_daemon("end");
    pipe.read_to_end(&mut Vec::new()).unwrap();
    assert!(last.0.wait().unwrap().success());
    killed.push(last.0.id());
    for daemon in killed {
        assert_eq!(groups_of(daemon), Vec::<std::path::PathBuf>::new());
    }
}

#[tokio::test]
async fn two_thousand_daemons_are_dead_within_a_second_of_a_cancel() {
    let bed = Bed::new();
    let mut fastest = Duration::MAX;
    // Once is enough: this machine may be busy with something else.
    for _ in 0..5 {
        let marker = marker();
        let mut spec = bed.shell(&format!(
            "i=0; while [ $i -lt 2000 ]; do (trap '' TERM; setsid sleep {marker} >&- 2>&- &); i=$((i+1)); done; echo ready; sleep {marker}"
        ));
        let (send, mut receive) = mpsc::channel(10);
        spec.stdout.live = Some(Box::new(send));
        let cancel = CancellationToken::new();
        let (outcome, asked) = tokio::join!(bed.sandbox.run(0, spec, cancel.clone()), async {
            assert!(receive.recv().await.is_some());
            while marked(&marker).len() < 2000 {
                tokio::task::yield_now().await;
            }
            cancel.cancel();
            Instant::now()
        });
        fastest = fastest.min(asked.elapsed());
        assert_eq!(outcome.unwrap().end, End::Cancelled);
        assert_eq!(marked(&marker), NONE);
        if fastest <= Duration::from_secs(1) {
            break;
        }
    }
    println!("2 000 daemons were dead {fastest:?} after the cancel");
    assert!(fastest <= Duration::from_secs(1), "{fastest:?}");
}
