//! `boxwright run`, with a standalone of its own: the command's exit code and output, its outputs on disk,
//! and everything that is not the command's failure told apart from it.

#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/skipped.rs"]
mod skipped;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::fs::Mode;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// A place for one test; the users that slots of a root test run as can pass through it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, flags: &[&str], command: &[&str]) -> Command {
        let mut run = Command::new(env!("CARGO_BIN_EXE_boxwright"));
        run.arg("run").args(flags).arg("--").args(command);
        run.current_dir(self.dir.path());
        run.env("BOXWRIGHT_STATE_DIR", self.path("state"));
        // What is tested here is the same at every level; this one every host can give.
        run.env("BOXWRIGHT_SANDBOX", "process");
        run
    }

    fn sh(&self, flags: &[&str], script: &str) -> Command {
        self.run(flags, &["/bin/sh", "-c", script])
    }

    /// Something that a command can wait for, and the test can end the wait.
    fn gate(&self) -> PathBuf {
        let path = self.path("gate");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        path
    }
}

fn ends(mut command: Command, code: i32) -> (String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let (out, err) = (
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    );
    assert_eq!(status.code(), Some(code), "{command:?}: {out} {err}");
    (out, err)
}

/// Starts it; the first line of its standard output.
fn first_line(mut command: Command) -> (Child, BufReader<std::process::ChildStdout>, String) {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    (child, out, line)
}

#[test]
fn code_and_output_are_the_command_s_own() {
    let place = Place::new();
    for (code, script) in [
        (0, "echo out; echo err >&2"),
        (7, "echo out; echo err >&2; exit 7"),
    ] {
        let (out, err) = ends(place.sh(&[], script), code);
        assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    }
    let (_, err) = ends(place.run(&[], &["/nonexistent"]), 127);
    assert!(err.contains("/nonexistent"), "{err}");
    ends(place.sh(&[], "kill -SEGV $$"), 139);
    let (_, err) = ends(place.sh(&[], "kill -9 $$"), 70);
    assert!(
        err.contains("SIGKILL, which the worker did not send"),
        "{err}"
    );
    let (out, _) = ends(
        place.sh(
            &["--env", "B=2", "--env", "A=1"],
            "env | grep -v PWD= | sort",
        ),
        0,
    );
    assert_eq!(out, "A=1\nB=2\nPATH=/usr/local/bin:/usr/bin:/bin\n");
}

#[test]
fn outputs_come_back_as_they_are() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("in/sub")).unwrap();
    std::fs::write(place.path("in/sub/f"), "content").unwrap();
    let script = "cp f made && printf '#!/bin/sh\\n' > tool && chmod +x tool && mkdir -p d/e/empty && cp f d/e && ln -s e/f d/l";
    let flags = [
        "--input",
        "in",
        "--cwd",
        "sub",
        "--output",
        "made",
        "--output",
        "tool",
        "--output",
        "d",
        "--output",
        "not-made",
        "--output-dir",
        "out",
    ];
    let (_, err) = ends(place.sh(&flags, script), 0);
    assert!(err.contains("did not make not-made"), "{err}");
    let out = place.path("out");
    let mode = |name: &str| out.join(name).metadata().unwrap().permissions().mode() & 0o111;
    assert_eq!((mode("tool") != 0, mode("made")), (true, 0));
    assert_eq!(
        std::fs::read_to_string(out.join("d/e/f")).unwrap(),
        "content"
    );
    assert_eq!(
        std::fs::read_link(out.join("d/l")).unwrap(),
        Path::new("e/f")
    );
    assert!(out.join("d/e/empty").is_dir());

    // The whole working directory is an output too.
    ends(
        place.sh(&["--output", ".", "--output-dir", "whole"], "echo x > x"),
        0,
    );
    assert_eq!(
        std::fs::read_to_string(place.path("whole/x")).unwrap(),
        "x\n"
    );
}

#[test]
fn nothing_is_written_through_a_link() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("outside")).unwrap();
    std::fs::create_dir_all(place.path("out")).unwrap();
    std::os::unix::fs::symlink(place.path("outside"), place.path("out/d")).unwrap();
    let (_, err) = ends(
        place.sh(&["--output", "d/f", "--output-dir", "out"], "echo x > d/f"),
        73,
    );
    assert!(err.contains("not a directory"), "{err}");
    assert_eq!(std::fs::read_dir(place.path("outside")).unwrap().count(), 0);
}

#[test]
fn a_known_result_is_not_computed_again() {
    let place = Place::new();
    let run = |flags: &[&str]| ends(place.sh(flags, "cat /proc/sys/kernel/random/uuid"), 0).0;
    let first = run(&[]);
    assert_eq!(run(&[]), first);
    assert_ne!(run(&["--skip-cache"]), first);
    assert_ne!(run(&["--no-cache"]), run(&["--no-cache"]));
}

#[test]
fn output_is_shown_while_it_is_written_and_only_once() {
    let place = Place::new();
    let gate = place.gate();
    let script = format!("echo first; cat {} >/dev/null; echo second", gate.display());
    let (mut child, mut out, line) = first_line(place.sh(&[], &script));
    assert_eq!(line, "first\n");
    // The command waits in `cat` until this: its first line came while it ran.
    std::fs::write(&gate, "go").unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "second\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn much_output_comes_whole() {
    let place = Place::new();
    let expected: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    let (out, _) = ends(place.sh(&["--no-live"], "seq 1 300000"), 0);
    assert!(
        out == expected,
        "{} bytes instead of {}",
        out.len(),
        expected.len()
    );
}

#[test]
fn an_interrupted_command_is_killed() {
    let place = Place::new();
    let (mut child, _out, line) = first_line(place.sh(&["--no-cache"], "echo $$; exec sleep 1000"));
    let command = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
    assert!(test_kill_process(command).is_ok());
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{err}");
    assert!(err.contains("interrupted"), "{err}");
    assert!(test_kill_process(command).is_err(), "the command lives on");
}

/// The command has ended, and nobody reads what it wrote.
#[test]
fn a_run_that_is_stuck_in_its_output_ends_when_it_is_told_to_and_cleans_up() {
    let place = Place::new();
    let temporary = place.path("tmp");
    std::fs::create_dir(&temporary).unwrap();
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (number, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut run = place.sh(&["--no-live"], "echo; head -c 1000000 /dev/zero");
        run.env("TMPDIR", &temporary);
        let (mut child, _out, _) = first_line(run);
        kill_process(Pid::from_child(&child), number).unwrap();
        let mut err = String::new();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut err).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{err}");
        let left = std::fs::read_dir(&temporary).unwrap().count();
        assert_eq!(left, 0, "{err}");
    }
}

#[test]
fn what_is_not_the_command_s_failure_says_so() {
    let place = Place::new();
    let (out, err) = ends(
        place.sh(&["--timeout", "1s"], "echo part; exec sleep 1000"),
        124,
    );
    assert_eq!(out, "part\n");
    assert!(
        err.contains("timeout") && err.contains("what to do"),
        "{err}"
    );
    let (_, err) = ends(place.sh(&["--platform", "pool=none"], "true"), 65);
    assert!(
        err.contains("pool=none") && err.contains("refused"),
        "{err}"
    );
}

/// As a service or a CI job runs it.
#[test]
fn an_ordinary_user_without_a_home_needs_nothing_and_may_have_silence() {
    use std::os::unix::process::CommandExt;
    if !skipped::unless_root() {
        return;
    }
    let place = Place::new();
    std::fs::set_permissions(place.dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    // The tests' own may lie where no other user gets to.
    let program = place.path("boxwright");
    std::fs::copy(env!("CARGO_BIN_EXE_boxwright"), &program).unwrap();
    let mut run = Command::new(program);
    run.args(["run", "-q", "--", "/bin/sh", "-c", "echo out; exit 3"]);
    run.current_dir(place.dir.path());
    for name in ["HOME", "XDG_CACHE_HOME", "BOXWRIGHT_STATE_DIR"] {
        run.env_remove(name);
    }
    run.env("TMPDIR", place.dir.path());
    run.env("BOXWRIGHT_SANDBOX", "process");
    run.uid(12_345).gid(12_345);
    let (out, err) = ends(run, 3);
    assert_eq!((&*out, &*err), ("out\n", ""));
    // Nothing stays.
    let left: Vec<_> = place.dir.path().read_dir().unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn two_at_a_time_do_not_disturb_each_other() {
    let place = Place::new();
    let gate = place.gate();
    let script = format!("echo first; cat {}", gate.display());
    let (mut child, _out, line) = first_line(place.sh(&[], &script));
    assert_eq!(line, "first\n");
    // The store of the first is in use: the second has one of its own.
    let (out, _) = ends(place.sh(&[], "echo meanwhile"), 0);
    assert_eq!(out, "meanwhile\n");
    std::fs::write(&gate, "go").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A run on a disk of 64 MiB, of which 4 are to stay free.
fn on_a_small_disk(place: &Place, mounted: &mounted::Mounted, script: &str) -> Command {
    let mut run = place.sh(&["--output", "o"], script);
    run.env("BOXWRIGHT_STATE_DIR", mounted.path().join("state"));
    run.env("BOXWRIGHT_CAS_FREE_FLOOR", "4M");
    run
}

/// Old outputs go for new ones, and no command fails because they are there.
#[test]
fn outputs_keep_the_floor_of_free_space() {
    let Some(mounted) = mounted::Mounted::new("size=64m,mode=755") else {
        return;
    };
    let place = Place::new();
    let free = || mounted.free();
    for n in 0..8 {
        let script = format!("head -c 20000000 /dev/urandom > o && : {n}");
        ends(on_a_small_disk(&place, &mounted, &script), 0);
        let size = std::fs::metadata(place.path("o")).unwrap().len();
        assert_eq!(size, 20_000_000, "run {n}");
        assert!(free() >= 4 << 20, "{} after {n}", free());
    }
}

/// Whatever the command makes of it, what it is told of a full disk is not the command's end, and no other run is given it.
#[test]
fn a_full_disk_is_told_as_that_and_nothing_made_on_it_is_kept() {
    let Some(mounted) = mounted::Mounted::new("size=64m,mode=755") else {
        return;
    };
    let place = Place::new();
    // What one attempt leaves is no reason for the next to fail in another way.
    for script in [
        "head -c 200000000 /dev/zero > o || exit 1",
        "head -c 200000000 /dev/zero > o; true",
    ] {
        let (_, said) = ends(on_a_small_disk(&place, &mounted, script), 70);
        assert!(said.contains("was full while it ran"), "{script}: {said}");
    }
    // The state directory is of use all the while.
    ends(on_a_small_disk(&place, &mounted, "echo well > o"), 0);
}

/// What is removed again before anybody looks is known from how fast it came.
#[test]
fn an_end_on_a_full_disk_is_not_the_command_s_though_it_removes_what_it_wrote() {
    for ext4 in [false, true] {
        let mounted = match ext4 {
            false => mounted::Mounted::new("size=96m,mode=755"),
            true => mounted::Mounted::ext4(96 << 20),
        };
        let Some(mounted) = mounted else { return };
        let place = Place::new();
        let mut scripts = vec![
            "head -c 200000000 /dev/zero > o || { rm -f o; exit 1; }",
            // It overlooks that, and what it makes is not what it would be with room.
            "head -c 200000000 /dev/zero > tmp; size=$(wc -c < tmp); rm tmp; echo $size > o",
        ];
        if ext4 {
            // In memory nothing stays of it.
            scripts.push("fallocate -l 200M o || exit 1");
        }
        for script in scripts {
            let (_, said) = ends(on_a_small_disk(&place, &mounted, script), 70);
            assert!(said.contains("full while it ran"), "{script}: {said}");
        }
        // There is room, and it fails.
        let script = "head -c 1000000 /dev/zero > o; exit 3";
        let (_, said) = ends(on_a_small_disk(&place, &mounted, script), 3);
        assert!(!said.contains("full while it ran"), "{said}");
    }
}

/// However fast: space that is allocated at once is not taken for what could be written in the same time again.
#[test]
fn an_end_on_a_disk_of_which_most_was_allocated_at_once_is_the_command_s() {
    let Some(mounted) = mounted::Mounted::ext4(16 << 30) else {
        return;
    };
    let place = Place::new();
    let script = "fallocate -l 10G o && sleep 0.5 && rm o && exit 3";
    let (_, said) = ends(on_a_small_disk(&place, &mounted, script), 3);
    assert!(!said.contains("full while it ran"), "{said}");
}

/// All that may go goes for a command that fills the disk, but not what it needs to be tried again.
#[test]
fn a_command_with_inputs_that_fills_the_disk_is_told_so_each_time() {
    let Some(mounted) = mounted::Mounted::ext4(96 << 20) else {
        return;
    };
    let place = Place::new();
    std::fs::create_dir_all(place.path("in/sub")).unwrap();
    std::fs::write(place.path("in/sub/f"), "content").unwrap();
    for inputs in ["fuse", "staged"] {
        let script = format!("cat sub/f && head -c 200000000 /dev/zero > o || exit 1 # {inputs}");
        let mut run = place.sh(&["--input", "in", "--output", "o"], &script);
        run.env("BOXWRIGHT_STATE_DIR", mounted.path().join("state"));
        run.env("BOXWRIGHT_CAS_FREE_FLOOR", "4M");
        run.env("BOXWRIGHT_INPUTS", inputs);
        let (_, said) = ends(run, 70);
        assert!(said.contains("full while it ran"), "{inputs}: {said}");
    }
}
