//! What a command finds when it looks at itself.

use std::collections::BTreeMap;

use boxwright::sandbox::{End, Limits, Sandbox};

use super::bed::{Bed, is_root};

async fn status(bed: &Bed) -> BTreeMap<String, String> {
    bed.says(bed.spec(["cat", "/proc/self/status"]))
        .await
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.into(), value.trim().into()))
        .collect()
}

#[tokio::test]
async fn it_has_no_privileges_and_default_signals() {
    let bed = Bed::new();
    let status = status(&bed).await;
    let zero = "0000000000000000";
    let mut expected = vec![
        ("NoNewPrivs", "1"),
        ("Umask", "0022"),
        ("SigBlk", zero),
        ("SigIgn", zero),
        ("CapPrm", zero),
        ("CapEff", zero),
        ("CapAmb", zero),
    ];
    let ids;
    if is_root() {
        let owner = bed.sandbox.owner(0).unwrap();
        assert!(owner.uid != 0 && owner.gid != 0);
        ids = [owner.uid, owner.gid].map(|id| format!("{id}\t{id}\t{id}\t{id}"));
        expected.extend([("Uid", &*ids[0]), ("Gid", &*ids[1]), ("Groups", "")]);
    } else {
        assert!(bed.sandbox.owner(0).is_none());
    }
    for (name, value) in expected {
        assert_eq!(status[name], value, "{name}");
    }
}

#[tokio::test]
async fn it_has_three_descriptors_and_a_session_of_its_own() {
    let bed = Bed::new();
    let fds = bed.says(bed.shell("ls /proc/$$/fd; :")).await;
    assert_eq!(fds, "0\n1\n2\n");
    let stdin = bed.says(bed.spec(["readlink", "/proc/self/fd/0"])).await;
    assert_eq!(stdin, "/dev/null\n");
    let stat = bed.says(bed.spec(["cat", "/proc/self/stat"])).await;
    // pid (cat) state ppid pgrp session tty_nr
    let fields: Vec<&str> = stat.split(' ').collect();
    assert_eq!((fields[4], fields[5]), (fields[0], fields[0]), "{stat}");
    assert_eq!(fields[6], "0", "{stat}");
}

#[tokio::test]
async fn the_limits_are_those_asked_for() {
    let bed = Bed::new();
    let mut spec = bed.spec(["cat", "/proc/self/limits"]);
    spec.limits = Limits {
        open_files: Some(77),
        file_size: Some(123_456),
        processes: Some(4_321),
        ..Limits::default()
    };
    let limits = bed.says(spec).await;
    let limit = |name: &str| -> Vec<String> {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let values = line[name.len()..].split_ascii_whitespace();
        values.take(2).map(String::from).collect()
    };
    assert_eq!(limit("Max open files"), ["77", "77"]);
    assert_eq!(limit("Max file size"), ["123456", "123456"]);
    assert_eq!(limit("Max processes"), ["4321", "4321"]);
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    // A bound above what the daemon may give is still kept.
    let mut spec = bed.shell("ulimit -n");
    spec.limits.open_files = Some(u64::MAX);
    let files: u64 = bed.says(spec).await.trim().parse().unwrap();
    assert!(files > 77);
}

#[tokio::test]
async fn it_goes_before_the_daemon_when_memory_is_short() {
    let bed = Bed::new();
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let own: i32 = own.trim().parse().unwrap();
    let score = bed
        .says(bed.spec(["cat", "/proc/self/oom_score_adj"]))
        .await;
    assert_eq!(score.trim().parse::<i32>().unwrap(), own.max(500));
    // Also not where none executed.
    let outcome = bed.run(bed.spec(["/missing"])).await;
    assert_ne!(outcome.end, End::Exited(0));
    // Its launcher does not go with it, nor instead of it: what is left of the command is for that to kill.
    let script = "for i in $(seq 200); do
        launcher=$(cat /proc/$PPID/oom_score_adj)
        [ $launcher = OWN ] && break
        sleep 0.05
    done
    echo $launcher";
    let launcher = bed
        .says(bed.shell(&script.replace("OWN", &own.to_string())))
        .await;
    assert_eq!(launcher.trim().parse::<i32>().unwrap(), own);
}

#[tokio::test]
async fn it_cannot_look_into_its_launcher() {
    if !crate::skipped::unless_root() {
        return;
    }
    let bed = Bed::new();
    let script = "cat /proc/$PPID/environ; ls /proc/$PPID/fd; kill -9 $PPID; echo done";
    let outcome = bed.run(bed.shell(script)).await;
    assert_eq!(super::bed::text(&outcome.stdout), "done\n");
    let errors = super::bed::text(&outcome.stderr);
    let denials = errors.matches("ermission denied").count();
    assert_eq!(
        denials + errors.matches("not permitted").count(),
        3,
        "{errors}"
    );
}
