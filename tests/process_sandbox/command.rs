//! What runs: the exact arguments and environment, in the right directory, found as a shell would find it.

use std::os::unix::fs::symlink;

use boxwright::sandbox::{End, SandboxError};

use super::bed::{Bed, PATH, text};

fn not_started(code: i32, message: &str) -> End {
    End::NotStarted {
        code,
        message: message.into(),
    }
}

#[tokio::test]
async fn exit_codes_and_signals_are_told_apart() {
    let bed = Bed::new();
    for code in [0, 1, 7, 127, 255] {
        let outcome = bed.run(bed.shell(&format!("exit {code}"))).await;
        assert_eq!(outcome.end, End::Exited(code));
        assert!(outcome.started <= outcome.finished);
    }
    for signal in [1, 9, 15] {
        let outcome = bed.run(bed.shell(&format!("kill -{signal} $$"))).await;
        assert_eq!(outcome.end, End::Signalled(signal));
    }
}

#[tokio::test]
async fn the_environment_is_exact() {
    let bed = Bed::new();
    let mut spec = bed.spec(["/usr/bin/env", "-0"]);
    spec.env = [
        ("Z", "1"),
        ("A", " two\nlines=x "),
        ("EMPTY", ""),
        ("é", "ü"),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .to_vec();
    assert_eq!(bed.says(spec).await, "Z=1\0A= two\nlines=x \0EMPTY=\0é=ü\0");
    let mut spec = bed.spec(["/usr/bin/env"]);
    spec.env.clear();
    assert_eq!(bed.says(spec).await, "");
}

#[tokio::test]
async fn arguments_are_exact() {
    let bed = Bed::new();
    let argv = ["printf", "[%s]", "a b", "", "$HOME", "*", "\n", "é"];
    assert_eq!(bed.says(bed.spec(argv)).await, "[a b][][$HOME][*][\n][é]");
}

#[tokio::test]
async fn usage_is_of_the_whole_tree() {
    let bed = Bed::new();
    let burn = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
    let outcome = bed.run(bed.shell(&format!("({burn}); :"))).await;
    let usage = outcome.usage;
    assert!(usage.user.as_millis() > 10, "{usage:?}");
    assert!(
        usage.max_rss > 500_000 && usage.minor_faults > 10,
        "{usage:?}"
    );
}

#[tokio::test]
async fn the_working_directory_is_beneath_the_root() {
    let bed = Bed::new();
    bed.mkdir("a");
    bed.mkdir("a/b");
    bed.file("file", "", 0o644);
    symlink("a/b", bed.root().join("inner")).unwrap();
    symlink("/etc", bed.root().join("outer")).unwrap();
    symlink("../../..", bed.root().join("above")).unwrap();
    let root = bed.inside();
    for (cwd, real) in [
        ("", ""),
        ("a", "a"),
        ("a/b", "a/b"),
        ("inner", "a/b"),
        ("a/../a/b", "a/b"),
    ] {
        let mut spec = bed.spec(["readlink", "/proc/self/cwd"]);
        spec.cwd = cwd.into();
        let expected = root.join(real);
        let expected = expected.to_str().unwrap().trim_end_matches('/');
        assert_eq!(bed.says(spec).await.trim_end(), expected, "{cwd}");
    }
    let refusals = [
        (
            "missing",
            "cannot enter the working directory \"missing\": No such file or directory",
        ),
        (
            "file",
            "cannot enter the working directory \"file\": Not a directory",
        ),
        (
            "outer",
            "the working directory \"outer\" leads out of the input root",
        ),
        (
            "above",
            "the working directory \"above\" leads out of the input root",
        ),
        (
            "..",
            "the working directory \"..\" leads out of the input root",
        ),
        (
            "/etc",
            "the working directory \"/etc\" is not a path within the input root",
        ),
    ];
    for (cwd, message) in refusals {
        let mut spec = bed.shell("echo must not run");
        spec.cwd = cwd.into();
        let outcome = bed.run(spec).await;
        assert_eq!(outcome.end, not_started(126, message));
        assert_eq!(text(&outcome.stdout), "");
    }
}

#[tokio::test]
async fn a_missing_root_is_not_the_commands_fault() {
    let bed = Bed::new();
    let mut spec = bed.shell("exit 0");
    spec.root = bed.dir.path().join("nowhere");
    match bed.try_run(spec).await {
        Err(error @ SandboxError::Setup { .. }) => {
            assert!(error.to_string().contains("nowhere"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bed.run(bed.shell("exit 3")).await.end, End::Exited(3));
}

#[tokio::test]
async fn programs_are_found_as_a_shell_finds_them() {
    let bed = Bed::new();
    for dir in ["one", "two", "three", "sub", "sub/bin", "one/dir"] {
        bed.mkdir(dir);
    }
    bed.file("one/tool", "#!/bin/sh\necho one", 0o644);
    bed.file("two/tool", "#!/bin/sh\necho two", 0o755);
    bed.file("three/tool", "#!/bin/sh\necho three", 0o755);
    bed.file("sub/bin/tool", "#!/bin/sh\necho sub", 0o755);
    bed.file("tool", "#!/bin/sh\necho here", 0o755);
    let root = bed.root();
    let root = root.to_str().unwrap();
    // Absolute entries lead through directories that may be closed to the slot's user: relative ones count from cwd.
    let cases = [
        ("tool", "one:two:three", "", "two"),
        ("tool", "three:two", "", "three"),
        ("tool", "missing::two", "", "here"),
        ("tool", "two:", "sub", "NOT FOUND"),
        ("tool", "bin", "sub", "sub"),
        ("tool", "../two", "sub", "two"),
        ("./tool", "two", "", "here"),
        ("two/tool", "", "", "two"),
        ("../three/tool", "", "sub", "three"),
    ];
    for (program, path, cwd, expected) in cases {
        let mut spec = bed.spec([program]);
        spec.env = vec![("PATH".into(), path.into())];
        spec.cwd = cwd.into();
        let outcome = bed.run(spec).await;
        if expected == "NOT FOUND" {
            let message = format!("\"{program}\" was not found in PATH ({path})");
            assert_eq!(outcome.end, not_started(127, &message));
        } else {
            assert_eq!(outcome.end, End::Exited(0), "{program} in {path}");
            assert_eq!(text(&outcome.stdout).trim_end(), expected);
        }
    }
    let mut spec = bed.spec(["true"]);
    spec.env.clear();
    assert_eq!(bed.run(spec).await.end, End::Exited(0));
    assert!(root.starts_with('/'));
}

#[tokio::test]
async fn what_cannot_be_started_is_explained() {
    let bed = Bed::new();
    bed.mkdir("dir");
    bed.mkdir("dir/tool");
    bed.file("plain", "#!/bin/sh\n", 0o644);
    bed.file("noformat", "echo hello\n", 0o755);
    bed.file("empty", "", 0o755);
    bed.file("nointerpreter", "#!/no/such/interpreter\n", 0o755);
    symlink("loop", bed.root().join("loop")).unwrap();
    let unexecutable = match bed.user() {
        Some(uid) => format!("\"./plain\" is not executable for uid {uid}"),
        None => "\"./plain\" is not executable".into(),
    };
    let no_interpreter = "\"./nointerpreter\" is there, but its interpreter is not (the program after #! in its first line, or its ELF loader)";
    let no_format = |name| {
        format!(
            "{name:?} is not in an executable format (a script needs a first line such as #!/bin/sh)"
        )
    };
    let not_in_path = format!("\"no-such\" was not found in PATH ({PATH})");
    let cases = [
        ("no-such", 127, not_in_path),
        ("./no-such", 127, "\"./no-such\" was not found".into()),
        ("/no/such", 127, "\"/no/such\" was not found".into()),
        ("plain/x", 127, "\"plain/x\" was not found".into()),
        ("", 127, "the program's name is empty".into()),
        ("./plain", 126, unexecutable),
        ("./dir", 126, "\"./dir\" is a directory".into()),
        ("./noformat", 126, no_format("./noformat")),
        ("./empty", 126, no_format("./empty")),
        ("./nointerpreter", 127, no_interpreter.into()),
        (
            "./loop",
            126,
            "cannot execute \"./loop\": Too many levels of symbolic links".into(),
        ),
    ];
    for (program, code, message) in cases {
        let outcome = bed.run(bed.spec([program])).await;
        assert_eq!(outcome.end, not_started(code, &message));
    }
    let mut spec = bed.spec(["tool"]);
    spec.env = vec![("PATH".into(), "dir:.".into())];
    assert_eq!(
        bed.run(spec).await.end,
        not_started(126, "\"dir/tool\" is a directory")
    );
    let mut spec = bed.spec(["no-such"]);
    spec.env.clear();
    assert_eq!(
        bed.run(spec).await.end,
        not_started(
            127,
            &format!("\"no-such\" was not found in {PATH}, which is searched as PATH is not set")
        )
    );
}

#[tokio::test]
async fn it_is_the_slots_user_who_must_be_allowed_to_execute() {
    if !crate::skipped::unless_root() {
        return;
    }
    let bed = Bed::new();
    bed.file("theirs", "#!/bin/sh\n", 0o700);
    std::os::unix::fs::chown(bed.root().join("theirs"), Some(0), Some(0)).unwrap();
    let uid = bed.user().unwrap();
    assert_eq!(
        bed.run(bed.spec(["./theirs"])).await.end,
        not_started(
            126,
            &format!("\"./theirs\" is not executable for uid {uid}")
        )
    );
}

#[tokio::test]
async fn long_command_lines_work_as_far_as_the_kernel_takes_them() {
    let bed = Bed::new();
    let shell = ["/bin/sh", "-c", "echo $# ${#1}", "sh"].map(String::from);
    // Inline, just around the border to the memfd, and far beyond it.
    for (count, size) in [(1, 100), (6, 10_230), (12, 10_000), (15, 100_000)] {
        let argv = shell.iter().cloned();
        let spec = bed.spec(argv.chain((0..count).map(|_| "x".repeat(size))));
        assert_eq!(bed.says(spec).await.trim_end(), format!("{count} {size}"));
    }
    let mut spec = bed.shell("printf %s \"$LONG\" | wc -c");
    spec.env.push(("LONG".into(), "y".repeat(120_000).into()));
    assert_eq!(bed.says(spec).await.trim_end(), "120000");
    for (count, size) in [(1, 200_000), (30, 100_000), (70, 100_000), (300, 100_000)] {
        let argv = shell.iter().cloned();
        let spec = bed.spec(argv.chain((0..count).map(|_| "x".repeat(size))));
        match bed.run(spec).await.end {
            End::NotStarted { code: 126, message } => {
                assert!(message.starts_with("argument list too long: "), "{message}");
            }
            other => panic!("{count} arguments of {size}: {other:?}"),
        }
    }
}
