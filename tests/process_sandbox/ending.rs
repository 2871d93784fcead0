//! When `run` returns, the last process of the command is dead, however it ended.

use std::time::Duration;

use boxwright::sandbox::{CommandSpec, End, Exempt, Sandbox};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::bed::{Bed, marked, marker, text};

const NONE: [u32; 0] = [];
const LONG: Duration = Duration::from_secs(300);

/// Lets the command write one piece, then cancels it.
async fn cancel_when_ready(bed: &Bed, mut spec: CommandSpec) -> boxwright::sandbox::Outcome {
    let (send, mut receive) = mpsc::channel(10);
    spec.stdout.live = Some(Box::new(send));
    let cancel = CancellationToken::new();
    let (outcome, ()) = tokio::join!(bed.sandbox.run(0, spec, cancel.clone()), async {
        assert!(
            receive.recv().await.is_some(),
            "it ended before it was ready"
        );
        cancel.cancel();
    });
    outcome.unwrap()
}

#[tokio::test]
async fn a_timeout_gives_the_command_a_grace() {
    let bed = Bed::new();
    let mut spec =
        bed.shell("trap 'echo bye; exit 0' TERM; echo hello; while :; do sleep 0.01; done");
    spec.timeout = Some(Duration::from_millis(300));
    spec.grace = LONG;
    let outcome = bed.run(spec).await;
    // It exited by itself within the grace: it has timed out all the same.
    assert_eq!(outcome.end, End::TimedOut);
    assert_eq!(text(&outcome.stdout), "hello\nbye\n");
}

#[tokio::test]
async fn what_ignores_sigterm_dies_after_the_grace() {
    let bed = Bed::new();
    let marker = marker();
    let script = format!("trap '' TERM; echo ready; (sleep {marker}); sleep {marker}");
    let mut spec = bed.shell(&script);
    spec.grace = Duration::from_millis(100);
    let outcome = cancel_when_ready(&bed, spec).await;
    assert_eq!(outcome.end, End::Cancelled);
    assert_eq!(marked(&marker), NONE);
    let mut spec = bed.shell(&script);
    spec.timeout = Some(Duration::from_millis(50));
    spec.grace = Duration::from_millis(50);
    assert_eq!(bed.run(spec).await.end, End::TimedOut);
    assert_eq!(marked(&marker), NONE);
}

#[tokio::test]
async fn without_grace_it_is_killed_at_once() {
    let bed = Bed::new();
    let mut spec =
        bed.shell("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done");
    spec.grace = Duration::ZERO;
    let outcome = cancel_when_ready(&bed, spec).await;
    assert_eq!(outcome.end, End::Cancelled);
    assert_eq!(text(&outcome.stdout), "ready\n");
}

#[tokio::test]
async fn sigterm_reaches_the_whole_session_and_the_stopped() {
    let bed = Bed::new();
    // `set -m` gives background jobs process groups of their own.
    let mut spec = bed.shell(
        "set -m; sh -c 'trap \"echo group; exit 0\" TERM; echo ready; while :; do sleep 0.01; done' & \
         set +m; trap 'wait; echo leader; exit 0' TERM; kill -STOP $$; while :; do sleep 0.01; done",
    );
    spec.grace = LONG;
    let outcome = cancel_when_ready(&bed, spec).await;
    assert_eq!(outcome.end, End::Cancelled);
    assert_eq!(text(&outcome.stdout), "ready\ngroup\nleader\n");
}

#[tokio::test]
async fn cancelled_before_the_start_it_never_runs() {
    let bed = Bed::new();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let spec = bed.shell("touch ran");
    let outcome = bed.sandbox.run(0, spec, cancel).await.unwrap();
    assert_eq!(outcome.end, End::Cancelled);
    assert!(!bed.root().join("ran").exists());
}

#[tokio::test]
async fn an_end_of_its_own_is_its_own() {
    let bed = Bed::new();
    let mut spec = bed.shell("exit 5");
    spec.timeout = Some(LONG);
    assert_eq!(bed.run(spec).await.end, End::Exited(5));
}

fn two_thousand_daemons(marker: &str) -> String {
    format!(
        "i=0; while [ $i -lt 2000 ]; do (trap '' TERM; setsid sleep {marker} >&- 2>&- &); i=$((i+1)); done; echo ready"
    )
}

#[tokio::test]
async fn two_thousand_daemons_are_dead_on_return() {
    let bed = Bed::new();
    let marker = marker();
    let outcome = bed.run(bed.shell(&two_thousand_daemons(&marker))).await;
    assert_eq!(outcome.end, End::Exited(0), "{}", text(&outcome.stderr));
    assert_eq!(text(&outcome.stdout), "ready\n");
    assert_eq!(marked(&marker), NONE);
}

#[tokio::test]
async fn two_thousand_daemons_are_dead_after_a_cancel() {
    let bed = Bed::new();
    let marker = marker();
    let script = format!("{}; sleep {marker}", two_thousand_daemons(&marker));
    let mut spec = bed.shell(&script);
    spec.grace = Duration::from_millis(10);
    let outcome = cancel_when_ready(&bed, spec).await;
    assert_eq!(outcome.end, End::Cancelled);
    assert_eq!(marked(&marker), NONE);
}

#[tokio::test]
async fn a_fork_bomb_is_put_out() {
    let bed = Bed::new();
    let marker = marker();
    let script = format!(": {marker}; b() {{ b | b & }}; b; sleep {marker}");
    let mut spec = bed.shell(&script);
    spec.limits.processes = Some(400);
    spec.timeout = Some(Duration::from_millis(500));
    let outcome = bed.run(spec).await;
    assert!(
        matches!(outcome.end, End::TimedOut | End::Exited(_)),
        "{:?}",
        outcome.end
    );
    assert_eq!(marked(&marker), NONE);
    assert_eq!(bed.run(bed.shell("exit 6")).await.end, End::Exited(6));
}

#[tokio::test]
async fn one_that_kills_all_it_may_is_still_put_out() {
    // Without root it may kill this test.
    if !crate::skipped::unless_root() {
        return;
    }
    let bed = Bed::new();
    let marker = marker();
    let script = format!(
        "echo ready; (setsid sh -c ': {marker}; while :; do kill -9 -1; done' &); while :; do sleep {marker}; done"
    );
    let outcome = bed.run(bed.shell(&script)).await;
    assert_eq!(outcome.end, End::Signalled(9));
    assert_eq!(marked(&marker), NONE);
}

/// The attacker is in full swing when the command dies by its hand; it is one process, as two would stop each other.
async fn stops_all_it_may(bed: &Bed, marker: &str) {
    let script = format!(
        "(setsid sh -c ': {marker}; i=0; while :; do kill -STOP -1; i=$((i+1)); [ $i = 50 ] && kill -9 $0; done' $$ &); \
         while :; do sleep {marker}; done"
    );
    let run = bed.run(bed.shell(&script));
    let outcome = tokio::time::timeout(Duration::from_secs(30), run).await;
    let outcome = outcome.expect("the kill was held up");
    assert_eq!(outcome.end, End::Signalled(9), "{}", text(&outcome.stderr));
    assert_eq!(marked(marker), NONE);
}

#[tokio::test]
async fn one_that_stops_all_it_may_is_still_put_out() {
    // Without root it may stop this test.
    if !crate::skipped::unless_root() {
        return;
    }
    let bed = Bed::new();
    let marker = marker();
    for _ in 0..100 {
        stops_all_it_may(&bed, &marker).await;
    }
    assert_eq!(bed.run(bed.shell("exit 6")).await.end, End::Exited(6));
}

#[tokio::test]
async fn exempt_time_does_not_count_towards_the_timeout() {
    let bed = Bed::new();
    let allowed = async |exempt| {
        let mut spec = bed.shell("sleep 0.5");
        spec.timeout = Some(Duration::from_millis(100));
        spec.exempt = exempt;
        bed.run(spec).await.end
    };
    assert_eq!(allowed(Exempt::default()).await, End::TimedOut);
    // Far more than the command needs, and known only while it runs.
    let exempt = Exempt::new(|| Duration::from_secs(60));
    assert_eq!(allowed(exempt).await, End::Exited(0));
    let little = Exempt::new(|| Duration::from_millis(50));
    assert_eq!(allowed(little).await, End::TimedOut);
}
