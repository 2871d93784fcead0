//! Every kind of failure of the command line has its code and says what is wrong.

#[path = "common/bots_server.rs"]
mod bots_server;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use bots_server::{Fault, Server};
use boxwright::reapi::proto::rw::BotStatus;

fn boxwright(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_boxwright"));
    command.args(arguments);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BOXWRIGHT_")) {
        command.env_remove(name);
    }
    // Codes are the same at every level; this one every host can give.
    command.env("BOXWRIGHT_SANDBOX", "process");
    command
}

/// The same command with at most so many KiB of memory for its data.
fn limited(command: &Command, kib: u32) -> Command {
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -d $0 && exec \"$@\"", &kib.to_string()])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

/// Runs it; asserts the code, and that standard error says all of these.
fn fails(mut command: Command, code: i32, says: &[&str]) -> Output {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {text}");
    for word in says {
        assert!(
            text.contains(word),
            "{command:?} does not say {word:?}: {text}"
        );
    }
    output
}

fn succeeds(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

const DIGEST: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad/3";

#[test]
fn wrong_usage_is_2() {
    for (arguments, says) in [
        (&[][..], "Usage"),
        (&["build"], "build"),
        (&["worker", "--concurent-jobs", "8"], "--concurrent-jobs"),
        (&["worker", "--concurrent-jobs", "0"], "from 1 to 1024"),
        (&["worker", "--remote", "localhost:50051"], "scheme"),
        (&["worker", "--remote", "ftp://x"], "\"ftp\""),
        (&["worker", "--remote", "http://me:secret@h:1"], "password"),
        (&["worker", "--platform", "OSFamily"], "KEY=VALUE"),
        (&["worker", "--retry-delay", "1 s"], "unit"),
        (&["worker", "--listen", "127.0.0.1:0"], "--listen"),
        (&["standalone", "--listen", "8980"], "8980"),
        (&["standalone", "--log-level", "loud"], "loud"),
        (&["run"], "COMMAND"),
        (&["run", "true"], "true"),
        (&["run", "--output", "../x", "--", "true"], "../x"),
        (&["run", "--cwd", "/tmp", "--", "true"], "/tmp"),
        (&["run", "--timeout", "30", "--", "true"], "unit"),
        (&["cas", "stat"], "DIGESTS"),
        (&["cas", "get", "abc", "-"], "HASH/SIZE"),
        (
            &[
                "cas",
                "stat",
                "--state-dir",
                "/x",
                "--remote",
                "http://h:1",
                DIGEST,
            ],
            "cannot be used with",
        ),
    ] {
        let output = fails(boxwright(arguments), 2, &[says]);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("secret"));
    }
}

#[test]
fn a_wrong_configuration_is_78_and_names_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("worker.toml");
    let path = file.to_str().unwrap();
    for (text, says) in [
        (
            "\nconcurent-jobs = 8",
            &["worker.toml:2", "did you mean \"concurrent-jobs\"?"][..],
        ),
        (
            "concurrent-jobs = 'eight'",
            &["worker.toml:1", "concurrent-jobs", "whole number"],
        ),
        (
            "remote = 'localhost:1'",
            &["worker.toml:1", "remote", "scheme"],
        ),
        (
            "remote = 'http://h:1'\nremote = 'http://h:2'",
            &["worker.toml:2", "duplicate"],
        ),
        (
            "listen = '127.0.0.1:1'",
            &["worker.toml:1", "boxwright standalone"],
        ),
        ("cas-remote = 'http://h:1'", &["bots-remote is not set"]),
        (
            "remote = 'http://h:1'\ncas-quota-high = '1G'\ncas-quota-low = '2G'",
            &["worker.toml:3", "cas-quota-low"],
        ),
        ("[platform\n", &["worker.toml:1", "TOML"]),
        ("a = \u{7f}", &["worker.toml:1"]),
    ] {
        std::fs::write(&file, text).unwrap();
        fails(
            boxwright(&["worker", "--config", path, "--check-config"]),
            78,
            says,
        );
    }
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    fails(boxwright(&["worker", "--config", path]), 78, &["UTF-8"]);
    fails(
        boxwright(&["worker", "--config", dir.path().to_str().unwrap()]),
        78,
        &["cannot read"],
    );
    fails(
        boxwright(&["worker", "--config", "/nonexistent.toml"]),
        78,
        &["/nonexistent.toml"],
    );
    fails(boxwright(&["worker"]), 78, &["bots-remote", "--remote"]);
    let mut command = boxwright(&["worker", "--check-config"]);
    command.env("BOXWRIGHT_REMOTE", "nowhere");
    fails(command, 78, &["BOXWRIGHT_REMOTE", "scheme"]);
}

/// No error, for other programs may have such names. The check says it, and so does the log at the start.
#[test]
fn a_variable_that_is_no_setting_is_told_of() {
    let remote = ["worker", "--remote", "http://h:1"];
    let mistyped = |more: &[&str]| {
        let mut command = boxwright(&[&remote, more].concat());
        command.env("BOXWRIGHT_CONCURENT_JOBS", "3");
        command
    };
    let said = "BOXWRIGHT_CONCURENT_JOBS is not a setting and has no effect; did you mean BOXWRIGHT_CONCURRENT_JOBS?";
    fails(mistyped(&["--check-config"]), 0, &[said]);
    // It starts, and comes no further than its state.
    let output = mistyped(&["--state-dir", "/dev/null/state"])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains(said) && !output.status.success(), "{log}");
}

#[test]
fn tls_without_roots_is_78_and_no_panic() {
    let address = "https://build.example:443";
    let nowhere = |arguments: &[&str]| {
        let mut command = boxwright(arguments);
        command
            .env("SSL_CERT_FILE", "/nonexistent/roots.pem")
            .env("SSL_CERT_DIR", "/nonexistent");
        command
    };
    for arguments in [
        &["worker", "--remote", address, "--check-config"][..],
        &["run", "--remote", address, "--", "true"],
    ] {
        fails(
            nowhere(arguments),
            78,
            &["install ca-certificates", address],
        );
    }
}

#[test]
fn what_is_printed_is_a_good_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("worker.toml");
    std::fs::write(&file, "remote = 'http://h:1'\nconcurrent-jobs = 3\n").unwrap();
    let path = file.to_str().unwrap();
    let mut command = boxwright(&[
        "worker",
        "--config",
        path,
        "--print-config",
        "--concurrent-jobs",
        "5",
    ]);
    let printed = succeeds({
        command.env("BOXWRIGHT_NAME", "from-env");
        command
    });
    for (key, value, origin) in [
        ("concurrent-jobs", "5", "flag --concurrent-jobs"),
        ("name", "\"from-env\"", "environment BOXWRIGHT_NAME"),
        ("remote", "\"http://h:1\"", "worker.toml:1"),
        ("cas-remote", "\"http://h:1\"", "from remote"),
        ("log-level", "\"info\"", "default"),
    ] {
        let line = printed
            .lines()
            .find(|line| line.starts_with(&format!("{key} = ")))
            .unwrap();
        assert!(line.contains(value) && line.ends_with(origin), "{line}");
    }
    std::fs::write(&file, &printed).unwrap();
    succeeds(boxwright(&["worker", "--config", path, "--check-config"]));
}

#[test]
fn an_absent_remote_is_69() {
    let nowhere = "unix:/nonexistent/socket";
    fails(
        boxwright(&["cas", "stat", "--remote", nowhere, DIGEST]),
        69,
        &[nowhere],
    );
    fails(
        boxwright(&["run", "--remote", nowhere, "--", "true"]),
        69,
        &[nowhere],
    );
}

#[test]
fn an_unreadable_input_is_66() {
    let missing = "/nonexistent/input";
    let remote = "unix:/nonexistent/socket";
    fails(
        boxwright(&["run", "--remote", remote, "--input", missing, "--", "true"]),
        66,
        &[missing],
    );
    fails(
        boxwright(&["cas", "put", "--remote", remote, missing]),
        66,
        &[missing],
    );
    fails(
        boxwright(&["cas", "stat", "--state-dir", missing, DIGEST]),
        66,
        &[missing],
    );
}

/// A standalone that serves at a socket in `dir`.
struct Standalone {
    child: Child,
    remote: String,
    log: BufReader<std::process::ChildStderr>,
}

impl Standalone {
    fn start(dir: &Path, more: &[&str]) -> Self {
        let remote = format!("unix:{}/socket", dir.display());
        let state = dir.join("state");
        let mut command = boxwright(&["standalone", "--listen", &remote, "--concurrent-jobs", "1"]);
        command
            .arg("--state-dir")
            .arg(&state)
            .args(more)
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut lines = String::new();
        while !lines.contains("serving at") {
            assert!(log.read_line(&mut lines).unwrap() > 0, "it ended: {lines}");
        }
        Standalone { child, remote, log }
    }

    /// Stops it with SIGTERM; what it logged meanwhile.
    fn stop(mut self) -> (Option<i32>, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.log, &mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_state_directory_in_use_is_75_and_an_address_in_use_69() {
    let dir = tempfile::tempdir().unwrap();
    let first = Standalone::start(dir.path(), &[]);
    let state = dir.path().join("state");
    let state = state.to_str().unwrap();
    let other = format!("unix:{}/other", dir.path().display());
    fails(
        boxwright(&["standalone", "--listen", &other, "--state-dir", state]),
        75,
        &[state],
    );
    fails(
        boxwright(&["cas", "stat", "--state-dir", state, DIGEST]),
        75,
        &[state],
    );
    let elsewhere = dir.path().join("elsewhere");
    let mut command = boxwright(&["standalone", "--listen", &first.remote, "--state-dir"]);
    command.arg(elsewhere);
    fails(command, 69, &["cannot listen", &first.remote]);
    let (code, log) = { first }.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("drained"), "{log}");
}

#[test]
fn a_daemon_ends_with_a_code_of_its_list() {
    let codes = |text: &str| -> Vec<i32> {
        let words = text.split(|c: char| c.is_whitespace() || c == ',');
        let mut codes: Vec<i32> = words.filter_map(|word| word.parse().ok()).collect();
        codes.sort_unstable();
        codes
    };
    let readme = include_str!("../README.md");
    let (_, listed) = readme.split_once("Daemons: ").unwrap();
    let listed = codes(listed.split_once("`boxwright run`").unwrap().0);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (below, file) = (file.join("x"), file.to_str().unwrap());
    let (below, long) = (below.to_str().unwrap(), format!("/tmp/{}", "x".repeat(300)));
    for daemon in [
        &["worker", "--remote", "http://127.0.0.1:1"][..],
        &["standalone", "--listen", "127.0.0.1:0"],
    ] {
        let help = succeeds(boxwright(&[daemon[0], "--help"]));
        assert_eq!(codes(help.rsplit_once("Exit codes: ").unwrap().1), listed);
        // No such place is a matter of the configuration; a place where nothing can be kept is one of the disk.
        for (state, code) in [
            ("/proc/x", 78),
            (file, 78),
            (below, 78),
            (&long, 78),
            ("/proc", 74),
        ] {
            let command = boxwright(&[daemon, &["--state-dir", state]].concat());
            fails(command, code, &[state]);
            assert!(listed.contains(&code));
        }
    }
}

/// Takes as long as a drain waits: half a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_the_scheduler_does_not_hear_of_is_69() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let server = Server::start();
    server.listen(&socket);
    let remote = format!("unix:{}", socket.display());
    let mut command = boxwright(&["worker", "--remote", &remote, "--concurrent-jobs", "1"]);
    command.arg("--state-dir").arg(dir.path().join("state"));
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    server.until("OK", |state| state.heard(BotStatus::Ok)).await;
    for _ in 0..100 {
        server.fault(Fault::Delay(Duration::from_secs(3600)));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap())
        .await
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{log}");
    assert!(log.contains("without the scheduler's knowledge"), "{log}");
    assert!(!log.contains("drained"), "{log}");
}

#[test]
fn json_logs_are_one_object_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let (code, log) = Standalone::start(dir.path(), &["--log-format", "json"]).stop();
    assert_eq!(code, Some(0));
    assert!(log.lines().count() > 0);
    for line in log.lines() {
        assert!(
            line.starts_with("{\"timestamp\":\"") && line.ends_with('}'),
            "{line}"
        );
    }
}

#[test]
fn blobs_and_trees_go_in_and_come_out() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir_all(source.join("bin/empty")).unwrap();
    std::fs::write(source.join("abc"), "abc").unwrap();
    std::fs::write(source.join("bin/large"), vec![7; 5 << 20]).unwrap();
    std::os::unix::fs::symlink("../abc", source.join("bin/link")).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();

    // Through a server, and into a store that nobody has open.
    let server = Standalone::start(dir.path(), &[]);
    std::fs::create_dir_all(dir.path().join("closed/cas")).unwrap();
    for flags in [
        ["--remote".to_owned(), server.remote.clone()],
        ["--state-dir".to_owned(), path("closed")],
    ] {
        let cas = |arguments: &[&str]| {
            let mut command = boxwright(&["cas"]);
            command.args(arguments).args(&flags);
            command
        };
        assert_eq!(succeeds(cas(&["put", &path("source/abc")])).trim(), DIGEST);
        assert_eq!(succeeds(cas(&["get", DIGEST, "-"])), "abc");
        let root = succeeds(cas(&["put", &path("source")]));
        let listing = succeeds(cas(&["tree", root.trim(), "--short"]));
        for line in [
            "abc",
            "bin/empty/",
            "bin/link -> ../abc",
            "2 files, 5.0MiB in all",
        ] {
            assert!(
                listing.lines().any(|found| found.ends_with(line)),
                "{line}: {listing}"
            );
        }
        let target = path(&format!("target{}", flags[0]));
        succeeds(cas(&["get", "--tree", root.trim(), &target]));
        let target = Path::new(&target);
        assert_eq!(
            std::fs::read(target.join("bin/large")).unwrap(),
            vec![7; 5 << 20]
        );
        assert_eq!(
            std::fs::read_link(target.join("bin/link")).unwrap(),
            Path::new("../abc")
        );
        assert!(target.join("bin/empty").is_dir());

        let stat = succeeds(cas(&["stat", DIGEST, root.trim()]));
        assert!(
            stat.contains("text") && stat.contains("Directory"),
            "{stat}"
        );
        let absent = DIGEST.replace("/3", "/4");
        let output = fails(cas(&["stat", DIGEST, &absent]), 1, &[]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("missing"));
        fails(cas(&["get", &absent, "-"]), 1, &["not in the CAS"]);
        fails(cas(&["tree", DIGEST]), 65, &["Directory"]);

        // Two bytes for each empty directory, which a decoder makes hundreds of.
        let hostile = [&[0x0a, 0][..], &[0x12, 0].repeat(4 << 20)].concat();
        std::fs::write(path("hostile"), hostile).unwrap();
        let digest = succeeds(cas(&["put", &path("hostile")]));
        for arguments in [
            &["tree", digest.trim()][..],
            &["get", "--tree", digest.trim(), "x"],
        ] {
            let says = ["is not a Tree", "more than 1048576 directories"];
            fails(limited(&cas(arguments), 512 << 10), 65, &says);
        }
    }
}

#[test]
fn an_upload_that_the_cas_cannot_keep_is_69_and_says_what_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for n in 0..12 {
        std::fs::write(source.join(n.to_string()), vec![n; 10 << 20]).unwrap();
    }
    let server = Standalone::start(dir.path(), &["--cas-quota-high", "64M"]);
    let source = source.to_str().unwrap();
    let says = ["the CAS is too small", "of 13 blobs", "--cas-quota-high"];
    let output = fails(
        boxwright(&["cas", "put", "--remote", &server.remote, source]),
        69,
        &says,
    );
    assert!(output.stdout.is_empty(), "a digest was printed");
    // With the Command and the Action.
    let says = ["the CAS is too small", "of 15 blobs", "--cas-quota-high"];
    let run = [
        "run",
        "--remote",
        &server.remote,
        "--input",
        source,
        "--",
        "/bin/true",
    ];
    fails(boxwright(&run), 69, &says);
    // What fits is taken, as it was.
    let one = format!("{source}/1");
    succeeds(boxwright(&["cas", "put", "--remote", &server.remote, &one]));
}
