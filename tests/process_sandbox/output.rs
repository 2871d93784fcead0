//! What a command writes arrives, whole or capped and counted, and does not hold the worker up.

use boxwright::sandbox::{Captured, End};
use tokio::sync::mpsc;

use super::bed::{Bed, marked, marker, text};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn both_streams_are_kept_apart() {
    let bed = Bed::new();
    let outcome = bed.run(bed.shell("echo out; echo err >&2; exit 4")).await;
    assert_eq!(outcome.end, End::Exited(4));
    assert_eq!(text(&outcome.stdout), "out\n");
    assert_eq!(text(&outcome.stderr), "err\n");
    assert!(matches!(outcome.stdout, Captured::Memory(_)));
}

#[tokio::test]
async fn long_output_goes_to_a_file() {
    let bed = Bed::new();
    let mut spec = bed.shell("head -c 10485760 /dev/zero; echo end >&2");
    spec.stdout.memory = 1000;
    let outcome = bed.run(spec).await;
    match &outcome.stdout {
        Captured::File { path, size } => {
            assert_eq!(*size, 10 * MIB);
            assert!(path.starts_with(bed.spill()));
            let content = std::fs::read(path).unwrap();
            assert!(content.len() as u64 == 10 * MIB && content.iter().all(|b| *b == 0));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((outcome.stdout_dropped, outcome.stderr_dropped), (0, 0));
    assert_eq!(text(&outcome.stderr), "end\n");
}

#[tokio::test]
async fn output_beyond_the_cap_is_counted_and_still_seen_live() {
    let bed = Bed::new();
    let (send, mut receive) = mpsc::channel(10_000);
    let mut spec = bed.shell("head -c 10485760 /dev/zero >&2");
    spec.stderr.memory = 1000;
    spec.stderr.keep = 3 * MIB;
    spec.stderr.live = Some(Box::new(send));
    let outcome = bed.run(spec).await;
    assert_eq!(outcome.end, End::Exited(0));
    assert_eq!(outcome.stderr_dropped, 7 * MIB);
    let line = format!("\n[boxwright: {} bytes are left out here]\n", 7 * MIB);
    let kept = text(&outcome.stderr);
    assert_eq!(kept.len() as u64, 3 * MIB + line.len() as u64);
    assert_eq!(kept.find(&line), Some(3 * MIB as usize / 2));
    let mut live = 0;
    while let Some(piece) = receive.recv().await {
        live += piece.len() as u64;
    }
    assert_eq!(live, 10 * MIB);
}

#[tokio::test]
async fn a_live_reader_that_does_not_keep_up_holds_nobody_up() {
    let bed = Bed::new();
    let (send, mut receive) = mpsc::channel(1);
    let mut spec = bed.shell("head -c 1048576 /dev/zero");
    spec.stdout.live = Some(Box::new(send));
    let outcome = bed.run(spec).await;
    assert_eq!(text(&outcome.stdout).len() as u64, MIB);
    assert!(receive.recv().await.is_some());
}

#[tokio::test]
async fn a_daemon_that_keeps_the_output_open_does_not_hold_the_worker_up() {
    let bed = Bed::new();
    let marker = marker();
    let script = format!("setsid sleep {marker} & echo started");
    let outcome = bed.run(bed.shell(&script)).await;
    assert_eq!(outcome.end, End::Exited(0));
    assert_eq!(text(&outcome.stdout), "started\n");
    assert_eq!(marked(&marker), [] as [u32; 0]);
}

#[tokio::test]
async fn a_stranger_that_keeps_the_output_open_does_not_hold_the_worker_up() {
    let bed = Bed::new();
    let (send, mut receive) = mpsc::channel(10);
    let mut spec = bed.shell("echo $$; while [ ! -e go ]; do sleep 0.01; done; echo end");
    spec.stdout.live = Some(Box::new(send));
    let (outcome, stranger) = tokio::join!(bed.run(spec), async {
        let piece = receive.recv().await.unwrap();
        let pid = bed.outside(std::str::from_utf8(&piece).unwrap().trim());
        let stranger = std::fs::File::options()
            .write(true)
            .open(format!("/proc/{pid}/fd/1"))
            .unwrap();
        bed.file("go", "", 0o644);
        stranger
    });
    assert_eq!(outcome.end, End::Exited(0));
    assert!(text(&outcome.stdout).ends_with("\nend\n"));
    drop(stranger);
}

#[tokio::test]
async fn output_that_cannot_be_kept_ends_the_command() {
    let bed = Bed::new();
    let marker = marker();
    let mut spec = bed.shell(&format!("head -c 1000000 /dev/zero; sleep {marker}"));
    spec.stdout.memory = 10;
    spec.stdout.spill_dir = bed.dir.path().join("nowhere");
    let error = bed.try_run(spec).await.unwrap_err().to_string();
    assert!(
        error.contains("standard output") && error.contains("nowhere"),
        "{error}"
    );
    assert_eq!(marked(&marker), [] as [u32; 0]);
    assert_eq!(bed.run(bed.shell("exit 2")).await.end, End::Exited(2));
}
