//! `boxwright run` against servers that break off, forget, fail and lie.

#[path = "common/scripted_server.rs"]
mod scripted_server;

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use boxwright::reapi::DigestFunction;
use boxwright::reapi::proto::re;
use boxwright::reapi::status::{MissingBlob, missing_blobs};
use prost::Message;
use scripted_server::{OPERATION, Script, done, executing, result};
use tokio::io::AsyncReadExt;
use tonic::Status;

struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

struct Place {
    dir: tempfile::TempDir,
    script: Arc<Script>,
    remote: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = Arc::new(Script::default());
        let remote = script.serve(dir.path());
        Place {
            dir,
            script,
            remote,
        }
    }

    async fn run(&self, flags: &[&str]) -> Ended {
        self.run_until(flags, 0).await
    }

    /// Opens the gate once so many bytes were shown.
    async fn run_until(&self, flags: &[&str], shown: usize) -> Ended {
        let mut child = self.start(flags);
        let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let mut out = vec![0; shown];
        stdout.read_exact(&mut out).await.unwrap();
        self.script.open.notify_one();
        let (mut rest, mut err) = (Vec::new(), String::new());
        let (read, told) = tokio::join!(
            stdout.read_to_end(&mut rest),
            stderr.read_to_string(&mut err)
        );
        assert!(read.is_ok() && told.is_ok());
        out.extend(rest);
        Ended {
            code: child.wait().await.unwrap().code(),
            out: String::from_utf8(out).unwrap(),
            err,
        }
    }

    fn start(&self, flags: &[&str]) -> tokio::process::Child {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_boxwright"));
        command
            .arg("run")
            .args(["--remote", &self.remote])
            .args(flags);
        command.args(["--", "true"]).current_dir(self.dir.path());
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn calls(&self) -> Vec<String> {
        self.script.calls.lock().clone()
    }
}

/// Sends the signal and waits for the end: the exit code, and what was said.
async fn interrupted(
    run: tokio::process::Child,
    signal: rustix::process::Signal,
) -> (Option<i32>, String) {
    let pid = rustix::process::Pid::from_raw(run.id().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), run.wait_with_output())
        .await
        .expect("it does not end")
        .unwrap();
    let err = String::from_utf8(ended.stderr).unwrap();
    (ended.status.code(), err)
}

fn exits(code: i32, stdout: &str) -> re::ActionResult {
    re::ActionResult {
        exit_code: code,
        stdout_raw: stdout.as_bytes().to_vec().into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_broken_stream_is_taken_up_again() {
    let place = Place::new();
    place
        .script
        .turn(vec![executing("")], Err(Status::unavailable("restarting")));
    place.script.turn(vec![executing("")], Ok(()));
    place
        .script
        .turn(vec![], Err(Status::unavailable("still restarting")));
    place.script.turn(vec![result(exits(3, "once\n"))], Ok(()));
    let ended = place.run(&[]).await;
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(3), "once\n"),
        "{}",
        ended.err
    );
    let wait = format!("wait {OPERATION}");
    assert_eq!(place.calls(), ["execute", &wait, &wait, &wait]);
}

#[tokio::test]
async fn a_forgotten_operation_is_asked_for_anew() {
    let place = Place::new();
    place
        .script
        .turn(vec![executing("")], Err(Status::unavailable("restarting")));
    place
        .script
        .turn(vec![], Err(Status::not_found("no such operation")));
    place.script.turn(vec![result(exits(0, ""))], Ok(()));
    let ended = place.run(&[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(
        place.calls(),
        ["execute", &format!("wait {OPERATION}"), "execute"]
    );
}

/// The server knows no CancelOperation, or has not said yet how it calls the execution.
#[tokio::test]
async fn an_interrupted_run_claims_no_cancel_that_nobody_has_granted() {
    for named in [true, false] {
        let place = Place::new();
        if named {
            place.script.turn(vec![executing("")], Ok(()));
        }
        // Never opened: it goes on and on.
        place.script.gated_turn(vec![executing("")]);
        let run = place.start(&[]);
        let last = match named {
            true => format!("wait {OPERATION}"),
            false => "execute".to_owned(),
        };
        let asked = async {
            while place.calls().last() != Some(&last) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), asked)
            .await
            .expect("it is not waited for");
        let (code, err) = interrupted(run, rustix::process::Signal::INT).await;
        assert_eq!(code, Some(130), "{err}");
        assert!(err.contains("the command may still run"), "{err}");
        assert_eq!(err.contains("could not be cancelled"), named, "{err}");
    }
}

#[tokio::test]
async fn a_report_of_an_absurd_size_is_refused_unread_and_costs_no_output() {
    let place = Place::new();
    let made = re::OutputFile {
        path: "out".into(),
        digest: Some(place.script.blob(b"made", b"made")),
        ..Default::default()
    };
    let mut report = place.script.blob(b"report", b"report");
    report.size_bytes = (256 << 20) + 1;
    let response = re::ExecuteResponse {
        result: Some(re::ActionResult {
            output_files: vec![made],
            ..exits(0, "")
        }),
        server_logs: [(
            boxwright::action::INPUT_REPORT_LOG.to_owned(),
            re::LogFile {
                digest: Some(report),
                human_readable: true,
            },
        )]
        .into(),
        ..Default::default()
    };
    place.script.turn(vec![done(response)], Ok(()));
    let flags = ["--input-report", "report", "--output", "out"];
    let ended = place.run(&flags).await;
    assert_eq!(ended.code, Some(65), "{}", ended.err);
    assert!(ended.err.contains("is not fetched"), "{}", ended.err);
    let made = std::fs::read(place.dir.path().join("out")).unwrap();
    assert_eq!(made, b"made");
    assert!(!place.dir.path().join("report").exists());
}

#[tokio::test]
async fn a_refusal_is_not_tried_again() {
    let place = Place::new();
    place.script.turn(
        vec![],
        Err(Status::failed_precondition(
            "Unregistered platform property",
        )),
    );
    let ended = place.run(&[]).await;
    assert_eq!(ended.code, Some(65));
    assert!(
        ended.err.contains("Unregistered platform property"),
        "{}",
        ended.err
    );
    assert_eq!(place.calls().len(), 1);
}

#[tokio::test]
async fn every_missing_blob_is_named() {
    let place = Place::new();
    let blobs: Vec<MissingBlob> = (0..20)
        .map(|n| MissingBlob {
            digest: DigestFunction::Sha256.digest(&[n]),
            what: format!("input file f{n}"),
        })
        .collect();
    place.script.turn(
        vec![done(re::ExecuteResponse {
            status: Some(missing_blobs("20 blobs are missing", &blobs)),
            ..Default::default()
        })],
        Ok(()),
    );
    let ended = place.run(&[]).await;
    assert_eq!(ended.code, Some(75));
    for blob in &blobs {
        assert!(
            ended.err.contains(&blob.digest.to_string()) && ended.err.contains(&blob.what),
            "{}",
            ended.err
        );
    }
    assert!(ended.err.contains("what to do"), "{}", ended.err);
}

#[tokio::test]
async fn a_server_places_nothing_that_was_not_asked_for() {
    let tree = |name: &str| {
        let child = re::DirectoryNode {
            name: name.into(),
            digest: Some(DigestFunction::Sha256.digest(b"").to_proto()),
        };
        let root = re::Directory {
            directories: vec![child],
            ..Default::default()
        };
        re::Tree {
            root: Some(root),
            children: vec![re::Directory::default()],
        }
        .encode_to_vec()
    };
    let place = Place::new();
    let good = place.script.blob(b"data", b"data");
    let lie = place.script.blob(b"honest", b"forged");
    let evil = tree("..");
    let evil = place.script.blob(&evil, &evil);
    let file = |path: &str, digest: &re::Digest| re::ActionResult {
        output_files: vec![re::OutputFile {
            path: path.into(),
            digest: Some(digest.clone()),
            ..Default::default()
        }],
        ..Default::default()
    };
    let directory = re::ActionResult {
        output_directories: vec![re::OutputDirectory {
            path: "out".into(),
            tree_digest: Some(evil),
            ..Default::default()
        }],
        ..Default::default()
    };
    for (bad, says) in [
        (file(".bashrc", &good), ".bashrc"),
        (file("../out", &good), "../out"),
        (file("/tmp/out", &good), "/tmp/out"),
        (file("out", &lie), "content"),
        (directory, ".."),
    ] {
        place.script.turn(vec![result(bad)], Ok(()));
        let ended = place
            .run(&["--output", "out", "--output-dir", "here"])
            .await;
        assert_eq!(ended.code, Some(65), "{says}: {}", ended.err);
        assert!(ended.err.contains(says), "{says}: {}", ended.err);
        let found: Vec<_> = std::fs::read_dir(place.dir.path().join("here"))
            .into_iter()
            .flatten()
            .collect();
        assert!(found.is_empty(), "{says}: {found:?}");
    }
    place.script.turn(vec![result(file("out", &good))], Ok(()));
    let ended = place
        .run(&["--output", "out", "--output-dir", "here"])
        .await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(
        std::fs::read(place.dir.path().join("here/out")).unwrap(),
        b"data"
    );
}

#[tokio::test]
async fn live_output_and_the_result_make_one_stream() {
    let whole = "first\nsecond\nthird\n";
    for (live, code, out) in [
        // What was shown is the beginning: the rest follows.
        (vec!["first\n", "sec"], 0, whole),
        (vec![whole], 0, whole),
        (vec![], 0, whole),
        // A piece is gone: nothing is repeated, and a pipe is not left with the wrong whole.
        (vec!["first\n", "third\n"], 74, "first\nthird\n"),
    ] {
        let place = Place::new();
        let pieces = live
            .iter()
            .map(|piece| piece.as_bytes().to_vec().into())
            .collect();
        place.script.streams.lock().insert("logs/1".into(), pieces);
        place
            .script
            .turn(vec![executing("logs/1")], Err(Status::unavailable("")));
        place.script.gated_turn(vec![result(exits(0, whole))]);
        let ended = place.run_until(&[], live.concat().len()).await;
        assert_eq!(
            (ended.code, ended.out.as_str()),
            (Some(code), out),
            "{live:?}: {}",
            ended.err
        );
        assert_eq!(ended.err.contains("--no-live"), code != 0, "{}", ended.err);
    }
}

/// An interruption while outputs come: nothing is left under their names, nor under others.
#[tokio::test]
async fn an_interrupted_download_ends_soon_and_leaves_no_partial_files() {
    for (number, code) in [
        (rustix::process::Signal::INT, 130),
        (rustix::process::Signal::TERM, 143),
    ] {
        let place = Place::new();
        let mut half = place.script.blob(b"half", &[7; 100_000]);
        half.size_bytes = 64 << 20;
        place.script.stalled.lock().insert(half.hash.clone());
        let file = re::OutputFile {
            path: "out".into(),
            digest: Some(half.clone()),
            ..Default::default()
        };
        let with_output = re::ActionResult {
            output_files: vec![file],
            ..Default::default()
        };
        let with_report = re::ExecuteResponse {
            result: Some(re::ActionResult::default()),
            server_logs: [(
                boxwright::action::INPUT_REPORT_LOG.to_owned(),
                re::LogFile {
                    digest: Some(half),
                    human_readable: true,
                },
            )]
            .into(),
            ..Default::default()
        };
        for (operation, flags) in [
            (result(with_output), ["--output", "out"]),
            (done(with_report), ["--input-report", "out"]),
        ] {
            place.script.turn(vec![operation], Ok(()));
            let run = place.start(&flags);
            tokio::time::timeout(Duration::from_secs(60), place.script.stalls.notified())
                .await
                .expect("it is not fetched");
            let (ended, err) = interrupted(run, number).await;
            assert_eq!(ended, Some(code), "{err}");
            assert!(err.contains("the command had ended"), "{err}");
            let left: Vec<_> = std::fs::read_dir(place.dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .filter(|name| name != "socket")
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}
