//! `boxwright doctor` on this host, and on hosts that are made to lack something; and a worker that is started there.

#[path = "common/skipped.rs"]
mod skipped;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

const BOXWRIGHT: &str = env!("CARGO_BIN_EXE_boxwright");

/// Runs a shell script in a user namespace in which it is root; `"$@"` is boxwright with these arguments.
fn within(flags: &[&str], script: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]).args(flags);
    command
        .args(["sh", "-c", script, "sh", BOXWRIGHT])
        .args(arguments);
    command.output().unwrap()
}

struct Report {
    output: Output,
    json: serde_json::Value,
}

impl Report {
    fn new(output: Output) -> Self {
        let json = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        Report { output, json }
    }

    /// The state, and the whole text, of one line.
    fn of(&self, name: &str) -> (String, String) {
        let findings = self.json["findings"].as_array().unwrap();
        let finding = findings
            .iter()
            .find(|f| f["name"] == name)
            .unwrap_or_else(|| panic!("nothing is said of {name}: {findings:?}"));
        let text = format!("{} {}", finding["what"], finding["remedy"]);
        (finding["state"].as_str().unwrap().to_owned(), text)
    }
}

#[test]
fn the_exit_code_is_the_verdict_and_every_lack_has_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let state = dir.path().to_str().unwrap();
    let output = Command::new(BOXWRIGHT)
        .args(["doctor", "--json", "--state-dir", state])
        .output()
        .unwrap();
    let report = Report::new(output);
    let findings = report.json["findings"].as_array().unwrap();
    for finding in findings {
        let good = finding["state"] == "good";
        assert_eq!(finding["remedy"].is_null(), good, "{finding}");
    }
    let missing = findings.iter().any(|f| f["state"] == "missing");
    assert_eq!(report.json["full"], !missing);
    assert_eq!(report.output.status.code(), Some(i32::from(missing)));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let lines = Command::new(BOXWRIGHT)
        .args(["doctor", "--state-dir", state])
        .output()
        .unwrap();
    let text = String::from_utf8(lines.stdout).unwrap();
    for finding in findings {
        let line = format!(
            "{:8} {}",
            finding["state"].as_str().unwrap(),
            finding["name"].as_str().unwrap()
        );
        assert!(text.contains(&line), "{text}");
    }
}

/// Where user namespaces cannot be made to begin with, there is nothing to take away, and doctor says that.
fn can_be_taken_away() -> bool {
    let output = Command::new(BOXWRIGHT)
        .args(["doctor", "--json"])
        .output()
        .unwrap();
    let report = Report::new(output);
    let can = report.of("user namespaces").0 == "good";
    let unshare = within(&[], "true", &[]).status.success();
    assert_eq!(can, unshare, "doctor and unshare disagree");
    if !can {
        skipped::here("no user namespace can be made");
    }
    can
}

const FORBID: &str = "echo 0 >/proc/sys/user/max_user_namespaces && exec \"$@\"";

#[test]
fn forbidden_user_namespaces_are_found_with_their_knob() {
    if !can_be_taken_away() {
        return;
    }
    let report = Report::new(within(&[], FORBID, &["doctor", "--json"]));
    let (state, text) = report.of("user namespaces");
    assert_eq!(state, "missing");
    assert!(text.contains("user.max_user_namespaces"), "{text}");
    assert_eq!(report.output.status.code(), Some(1));
}

#[test]
fn a_masked_proc_is_found() {
    // Only root can mask it and be itself afterwards.
    if !can_be_taken_away() || !skipped::unless_root() {
        return;
    }
    // As container engines do.
    let mask = "mount -t tmpfs none /proc/sys && exec \"$@\"";
    let output = Command::new("unshare")
        .args([
            "--mount", "sh", "-c", mask, "sh", BOXWRIGHT, "doctor", "--json",
        ])
        .output()
        .unwrap();
    let report = Report::new(output);
    let (state, text) = report.of("own /proc");
    assert_eq!(state, "missing", "{text}");
    assert!(text.contains("systempaths=unconfined"), "{text}");
    assert_eq!(report.of("namespaces").0, "good");
}

#[test]
fn root_of_a_container_with_one_id_is_told_that_it_needs_more() {
    if !can_be_taken_away() {
        return;
    }
    let report = Report::new(within(&[], "exec \"$@\"", &["doctor", "--json"]));
    let (state, text) = report.of("user ids");
    assert_eq!(
        (state.as_str(), report.output.status.code()),
        ("missing", Some(1)),
        "{text}"
    );
    assert!(text.contains("uid_map"), "{text}");
}

#[test]
fn a_worker_that_can_give_no_level_does_not_start_and_says_why() {
    if !can_be_taken_away() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let standalone = [
        "standalone",
        "--listen",
        "127.0.0.1:0",
        "--state-dir",
        state,
    ];
    let output = within(&[], FORBID, &standalone);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    for word in [
        "level full",
        "user.max_user_namespaces",
        "doctor",
        "--sandbox full,process",
    ] {
        assert!(said.contains(word), "{said}");
    }
}

/// A worker of one kind or another that is told to work there must not start.
fn does_not_start(output: Output, words: &[&str]) {
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    for word in words {
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn a_state_directory_without_execution_is_no_place_for_staged_inputs() {
    if !can_be_taken_away() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let mount = format!("mount -t tmpfs -o noexec,nosuid,nodev none {state} && ");
    let standalone = ["standalone", "--listen", "127.0.0.1:0"];
    let told = [&standalone[..], &["--state-dir", state]].concat();
    for level in ["full", "process"] {
        let staged = [&told[..], &["--inputs", "staged", "--sandbox", level]].concat();
        let script = format!("{mount} exec timeout 60 \"$@\"");
        let output = within(&["--mount"], &script, &staged);
        does_not_start(output, &[state, "noexec", "--state-dir"]);
    }
    let script = format!(
        "{mount} BOXWRIGHT_STATE_DIR={state} BOXWRIGHT_INPUTS=staged exec timeout 60 \"$@\""
    );
    let run = ["run", "--", "true"];
    does_not_start(within(&["--mount"], &script, &run), &[state, "noexec"]);
    // An ordinary user, whatever the way of showing inputs.
    let script = format!(
        "{mount} chmod 777 {state} && exec timeout 60 unshare --user --map-user=1000 \"$@\""
    );
    for inputs in ["auto", "fuse", "staged"] {
        let asked = [&told[..], &["--inputs", inputs]].concat();
        let output = within(&["--mount"], &script, &asked);
        does_not_start(output, &[state, "noexec", "--state-dir"]);
    }
    let script = format!("{mount} exec \"$@\"");
    let doctor = ["doctor", "--json", "--state-dir", state];
    let report = Report::new(within(&["--mount"], &script, &doctor));
    let (state, text) = report.of("state directory");
    assert_ne!(state, "good");
    assert!(text.contains("noexec"), "{text}");
}

#[test]
fn a_state_directory_that_others_cannot_pass_to_is_no_place_for_level_process() {
    if !skipped::unless_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let closed = dir.path().to_str().unwrap();
    let state = format!("{closed}/state");
    for inputs in ["fuse", "staged"] {
        // One that starts after all is stopped, and drains with 0.
        let output = Command::new("timeout")
            .args(["--preserve-status", "60", BOXWRIGHT])
            .args(["standalone", "--listen", "127.0.0.1:0"])
            .args(["--sandbox", "process", "--inputs", inputs])
            .args(["--state-dir", &state])
            .output()
            .unwrap();
        does_not_start(output, &["level process", &format!("chmod o+x {closed},")]);
    }
    let run = |level: &str| {
        Command::new(BOXWRIGHT)
            .args(["run", "--", "echo", "ran"])
            .env("BOXWRIGHT_STATE_DIR", &state)
            .env("BOXWRIGHT_SANDBOX", level)
            .output()
            .unwrap()
    };
    does_not_start(run("process"), &["chmod o+x"]);
    let told = |level: &str| {
        let output = run(level);
        let said = String::from_utf8(output.stderr).unwrap();
        (output.stdout == b"ran\n", said)
    };
    let (both, full) = (told("full,process"), told("full"));
    // Where both levels may be used the stronger one is left, and that is said.
    assert!(both.1.contains(&format!("chmod o+x {closed},")), "{both:?}");
    // Level full shows inputs under a path of its own.
    assert!(!full.1.contains("chmod o+x"), "{full:?}");
    let doctor = ["doctor", "--json", "--state-dir", &state];
    let doctor = Command::new(BOXWRIGHT).args(doctor).output().unwrap();
    match Report::new(doctor).json["full"] == true {
        true => assert!(both.0 && full.0, "{both:?} {full:?}"),
        false => skipped::here("level full is not to be had"),
    }
}
