//! A daemon that is not root shows inputs on a FUSE file system of its own user namespace: an action sees and leaves what it
//! would with real files, cannot change its inputs, and a killed daemon leaves nothing behind.
//!
//! The daemon runs as `nobody`, by root in a mount namespace in which everybody may open /dev/fuse, as distributions have it.

#[path = "common/skipped.rs"]
mod skipped;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What the daemon has of subordinate ids.
#[derive(Clone, Copy, Debug)]
enum Ids {
    /// None: launcher and commands are one user.
    Alone,
    /// A range.
    Subordinate,
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// `None`, and said so, where that cannot be.
    fn new() -> Option<Place> {
        if !skipped::unless_root_and_fuse() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let place = Place { dir };
        open_to_all(place.dir.path());
        std::fs::copy(env!("CARGO_BIN_EXE_boxwright"), place.path("boxwright")).unwrap();
        std::fs::create_dir_all(place.path("in/dir")).unwrap();
        std::fs::write(place.path("in/a.txt"), "hello\n").unwrap();
        std::fs::write(place.path("in/dir/b.txt"), "deep\n").unwrap();
        std::fs::write(place.path("in/tool"), "#!/bin/sh\necho tool says $1\n").unwrap();
        open_to_all(&place.path("in/tool"));
        std::os::unix::fs::symlink("dir/b.txt", place.path("in/link")).unwrap();
        Some(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `boxwright run` as nobody, over the inputs; `device` says whether /dev/fuse may be opened.
    fn run(&self, ids: Ids, device: bool, settings: &[(&str, &str)], script: &str) -> Command {
        let prepare = format!(
            "set -e; cd {dir}; test -e fuse || mknod fuse c 10 229; chmod {mode} fuse; mount --bind fuse /dev/fuse; \
             echo {ids} > subid; mount --bind subid /etc/subuid; mount --bind subid /etc/subgid; \
             exec setpriv --reuid=65534 --regid=65534 --clear-groups -- ./boxwright \"$@\"",
            dir = self.dir.path().display(),
            mode = if device { "666" } else { "600" },
            ids = match ids {
                Ids::Alone => "''",
                Ids::Subordinate => "65534:300000:65536",
            },
        );
        let mut command = Command::new("unshare");
        command
            .args(["-m", "--propagation", "private", "sh", "-c", &prepare, "sh"])
            .args(["run", "--skip-cache", "--input", "in", "--output", "out"])
            .args(["--output-dir", "."])
            // The command changes its inputs.
            .args(["--platform", "boxwright-writable-inputs=true"])
            .args(["--", "/bin/sh", "-c", script])
            .env("BOXWRIGHT_STATE_DIR", self.path("state"))
            .env("BOXWRIGHT_LOG_LEVEL", "info");
        command.envs(settings.iter().copied());
        command
    }

    fn output(&self) -> String {
        let mut found = String::new();
        for name in ["seen", "looks"] {
            let path = self.path("out").join(name);
            found += &std::fs::read_to_string(&path).unwrap();
        }
        std::fs::remove_dir_all(self.path("out")).unwrap();
        found
    }
}

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
}

fn done(mut command: Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let log = String::from_utf8(stderr).unwrap();
    assert!(status.success(), "{status}: {log}");
    log
}

const FUSE: &str = "inputs are shown on a FUSE file system";
const SCRIPT: &str = "set -e; mkdir out; { cat a.txt dir/b.txt link; ./tool yes; ls -A . dir; } > out/seen; \
    rm a.txt; echo changed > a.txt; rm dir/b.txt; mv dir moved; mkdir dir; touch dir/new; ls -A . dir moved > out/looks; \
    stat -c '%F %s' a.txt tool link >> out/looks; cat a.txt >> out/looks";

#[test]
fn an_action_sees_and_leaves_what_it_would_with_real_files() {
    let Some(place) = Place::new() else { return };
    for level in ["full", "process"] {
        for ids in [Ids::Alone, Ids::Subordinate] {
            let mut all = Vec::new();
            // Twice: what the first has changed, the second must not see.
            for inputs in ["fuse", "fuse", "staged"] {
                let settings = [("BOXWRIGHT_INPUTS", inputs), ("BOXWRIGHT_SANDBOX", level)];
                let log = done(place.run(ids, true, &settings, SCRIPT));
                assert_eq!(log.contains(FUSE), inputs == "fuse", "{log}");
                all.push(place.output());
            }
            assert!(
                all[0].contains("hello\ndeep\ndeep\ntool says yes\n"),
                "{}",
                all[0]
            );
            assert_eq!(all[0], all[1], "{level} {ids:?}");
            assert_eq!(all[0], all[2], "{level} {ids:?}");
        }
    }
}

#[test]
fn outputs_are_moved_into_the_store() {
    let Some(place) = Place::new() else { return };
    let script = "mkdir out; echo made > out/seen; stat -c %i out/seen > out/looks";
    for level in ["full", "process"] {
        let settings = [("BOXWRIGHT_INPUTS", "fuse"), ("BOXWRIGHT_SANDBOX", level)];
        let log = done(place.run(Ids::Subordinate, true, &settings, script));
        assert!(log.contains(FUSE), "{log}");
        let said = place.output();
        let inode = said.trim().strip_prefix("made\n").unwrap();
        let mut find = Command::new("find");
        find.arg(place.path("state/cas")).args(["-inum", inode]);
        let found = find.output().unwrap().stdout;
        let blob = String::from_utf8(found).unwrap();
        assert_eq!(std::fs::read(blob.trim()).unwrap(), b"made\n", "{level}");
        std::fs::remove_dir_all(place.path("state")).unwrap();
    }
}

#[test]
fn a_command_has_none_of_the_capabilities_that_the_daemon_mounts_with() {
    let Some(place) = Place::new() else { return };
    for level in ["full", "process"] {
        let settings = [("BOXWRIGHT_INPUTS", "fuse"), ("BOXWRIGHT_SANDBOX", level)];
        let script = "mkdir out; grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status > out/seen; \
                      mount -t tmpfs none /tmp 2>/dev/null && echo mounted > out/looks || echo refused > out/looks";
        done(place.run(Ids::Subordinate, true, &settings, script));
        let found = place.output();
        let sets: Vec<&str> = found
            .lines()
            .filter(|line| line.starts_with("Cap"))
            .collect();
        assert_eq!(sets.len(), 4, "{found}");
        assert!(
            sets.iter().all(|set| set.ends_with("\t0000000000000000")),
            "{found}"
        );
        assert!(found.ends_with("refused\n"), "{level}: {found}");
    }
}

#[test]
fn without_the_device_inputs_are_staged_and_the_log_says_why() {
    let Some(place) = Place::new() else { return };
    let settings = [
        ("BOXWRIGHT_INPUTS", "auto"),
        ("BOXWRIGHT_SANDBOX", "process"),
    ];
    let log = done(place.run(Ids::Alone, false, &settings, SCRIPT));
    assert!(log.contains("inputs are staged"), "{log}");
    assert!(log.contains("cannot open /dev/fuse"), "{log}");
    assert!(place.output().starts_with("hello\n"));
}

#[test]
fn a_killed_daemon_leaves_no_mount_and_no_process_and_the_next_one_works() {
    let Some(place) = Place::new() else { return };
    let settings = [("BOXWRIGHT_INPUTS", "fuse"), ("BOXWRIGHT_SANDBOX", "full")];
    let script = "echo started; echo written > dir/new; sleep 1000";
    let mut child = place
        .run(Ids::Subordinate, true, &settings, script)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!(line, "started\n");
    let roots = place.path("state/inputs").display().to_string();
    assert!(
        !holders(&roots).is_empty(),
        "the mounts can be seen from outside"
    );
    // The daemon itself: every program before it was replaced by the next.
    child.kill().unwrap();
    child.wait().unwrap();
    let begun = Instant::now();
    while !holders(&roots).is_empty() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{:?}",
            holders(&roots)
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    done(place.run(Ids::Subordinate, true, &settings, SCRIPT));
    assert!(place.output().contains("deep\n"));
}

/// Processes that have something mounted below this path.
fn holders(path: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mounted = |entry: &std::fs::DirEntry| {
        let table = std::fs::read_to_string(entry.path().join("mountinfo"));
        table.is_ok_and(|table| table.contains(path))
    };
    { processes.filter(mounted) }
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
