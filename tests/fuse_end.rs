//! The file system that shows inputs can end under a worker: no command's end is believed then, and the daemon says so and ends.

#[path = "common/action.rs"]
mod common;
#[path = "common/connection.rs"]
mod connection;
#[path = "common/skipped.rs"]
mod skipped;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use boxwright::action::Ending;
use common::{Bench, action, sh};
use connection::Connection;
use tokio_util::sync::CancellationToken;

/// Each name is a new question, until there is nobody to ask.
const SCRIPT: &str = "n=0; echo > ready; until stat none-$n 2>&1 | grep -q 'not connected'; do n=$((n+1)); sleep 0.02; done; exit 0";

/// What the running action has written, in a bench of one slot.
fn written(bench: &Bench, name: &str) -> bool {
    let layers = std::fs::read_dir(bench.dir.path().join("stage/behind/layers")).unwrap();
    { layers.flatten() }.any(|layer| layer.path().join("upper").join(name).exists())
}

#[tokio::test]
async fn an_action_whose_inputs_vanished_is_not_believed_and_no_other_is_begun() {
    for watched in [false, true] {
        let Some(bench) = Bench::fuse(None, |settings| settings.input_report = watched) else {
            return;
        };
        let root = bench.root(&[("in", b"x")]);
        let action = action(bench.put_message(&sh(SCRIPT)), root);
        let mut running = std::pin::pin!(bench.start(action, CancellationToken::new()));
        let ready = async {
            while !written(&bench, "ready") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            finished = &mut running => panic!("{finished:?}"),
            () = ready => {}
        }
        let mut at = bench.dir.path().join("stage/behind/tree");
        if watched {
            let mut all = std::fs::read_dir(bench.dir.path().join("stage/behind/watched")).unwrap();
            at = all.next().unwrap().unwrap().path();
        }
        Connection::at(&at).abort();
        let finished = running.await;
        let Ending::Infrastructure(why) = &finished.ending else {
            panic!("{finished:?}")
        };
        assert!(why.contains("file system of inputs"), "{why}");
        assert!(!finished.cacheable && finished.result.is_none());
        bench.settle().await;
        // One that was an action's own is missed by nobody else.
        let finished = bench.run(sh("cat in"), root).await;
        match watched {
            true => assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}"),
            false => assert!(
                matches!(&finished.ending, Ending::Infrastructure(why) if why.contains("restart")),
                "{finished:?}"
            ),
        }
    }
}

#[test]
fn a_daemon_whose_file_system_ended_ends_and_says_why() {
    if !skipped::unless_root_and_fuse() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_boxwright"))
        .args(["standalone", "--listen", "127.0.0.1:0", "--inputs", "fuse"])
        .args(["--sandbox", "process"])
        .env("BOXWRIGHT_STATE_DIR", place.path().join("state"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let tree = place.path().join("state/inputs/behind/tree");
    let table = format!("/proc/{}/mountinfo", daemon.id());
    let begun = Instant::now();
    let number = loop {
        let table = std::fs::read_to_string(&table).unwrap();
        let line = { table.lines() }.find(|line| line.contains(tree.to_str().unwrap()));
        let device = line.and_then(|line| line.split(' ').nth(2));
        if let Some((_, minor)) = device.and_then(|device| device.split_once(':')) {
            break minor.parse().unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{table}");
        std::thread::sleep(Duration::from_millis(10));
    };
    // Once it shows them to itself: the trial is over, and it serves.
    let connection = Connection::numbered(number);
    let mut log = std::io::BufReader::new(daemon.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("actions run at") {
        let read = std::io::BufRead::read_line(&mut log, &mut said).unwrap();
        assert!(read > 0, "{said}");
    }
    connection.abort();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = daemon.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(20) {
            daemon.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    std::io::Read::read_to_string(&mut log, &mut said).unwrap();
    assert_eq!(status.code(), Some(70), "{said}");
    assert!(said.contains("file system of inputs"), "{said}");
}
