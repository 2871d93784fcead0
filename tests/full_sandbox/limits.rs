//! What a command may use, and what is known of it afterwards.

use std::time::Duration;

use boxwright::sandbox::{End, Exempt, Limits, Sandbox, UsageSource};

use caps::{CapSet, Capability};

use super::bed::{Bed, is_root, text};

const MIB: u64 = 1 << 20;

/// A bed on a host that can limit; `None`, and says so, on another one.
fn limiting(bed: Bed) -> Option<Bed> {
    let all = Limits {
        memory: Some(64 * MIB),
        pids: Some(20),
        ..Limits::default()
    };
    match bed.sandbox.unenforced(&all).first() {
        None => Some(bed),
        Some(lacks) => {
            crate::skipped::here(format!(
                "this host does not limit {lacks}: {}",
                bed.sandbox.limits_in_words()
            ));
            None
        }
    }
}

#[tokio::test]
async fn memory_that_is_not_there_is_an_end_of_its_own() {
    let Some(bed) = limiting(Bed::new()) else {
        return;
    };
    let scripts = [
        "exec tail /dev/zero",
        // The one that is killed is not the one that is waited for.
        "tail /dev/zero; exit 0",
        "head -c 200000000 /dev/zero > /tmp/file; exit 0",
        "head -c 200000000 /dev/zero > /dev/shm/file; exit 0",
        "(tail /dev/zero &) ; sleep 3",
    ];
    for script in scripts {
        let mut spec = bed.shell(script);
        spec.limits.memory = Some(64 * MIB);
        let outcome = bed.run(spec).await;
        assert_eq!(
            outcome.end,
            End::OutOfMemory {
                limit: Some(64 * MIB)
            },
            "{script}"
        );
        let outcome = bed.run(bed.shell("exit 6")).await;
        assert_eq!(outcome.end, End::Exited(6), "after {script}");
    }
}

#[tokio::test]
async fn a_neighbour_does_not_pay() {
    let Some(bed) = limiting(Bed::with_slots(2)) else {
        return;
    };
    let mut bomb = bed.shell("exec tail /dev/zero");
    bomb.limits.memory = Some(64 * MIB);
    let neighbour = bed.shell("while [ ! -e over ]; do sleep 0.01; done; echo well");
    let neighbour = bed.sandbox.run(1, neighbour, Default::default());
    let (neighbour, bomb) = tokio::join!(neighbour, async {
        let outcome = bed.run(bomb).await;
        bed.file("over", "", 0o644);
        outcome
    });
    assert_eq!(
        bomb.end,
        End::OutOfMemory {
            limit: Some(64 * MIB)
        }
    );
    assert_eq!(text(&neighbour.unwrap().stdout), "well\n");
}

#[tokio::test]
async fn there_are_no_more_processes_than_allowed() {
    let Some(bed) = limiting(Bed::new()) else {
        return;
    };
    let mut spec = bed.shell("i=0; while [ $i -lt 40 ]; do sleep 60 & i=$((i+1)); done");
    spec.limits.pids = Some(20);
    let outcome = bed.run(spec).await;
    assert!(
        matches!(outcome.end, End::Exited(code) if code != 0),
        "{:?}",
        outcome.end
    );
    assert!(
        text(&outcome.stderr).contains("fork"),
        "{}",
        text(&outcome.stderr)
    );
}

#[tokio::test]
async fn what_nobody_waited_for_is_counted_too() {
    let Some(bed) = limiting(Bed::new()) else {
        return;
    };
    let burn = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    // A daemon burns, and is killed with the rest.
    let script = format!(
        "(setsid sh -c '{burn}; touch burnt; sleep 60' &); while [ ! -e burnt ]; do sleep 0.01; done"
    );
    let outcome = bed.run(bed.shell(&script)).await;
    let usage = outcome.usage;
    assert_ne!(usage.source, UsageSource::Wait4);
    assert!(usage.user.as_millis() >= 30, "{usage:?}");
    let quiet = bed.run(bed.shell(":")).await.usage;
    assert!(quiet.user < usage.user, "{quiet:?}");
    let Some(peak) = usage.peak_memory else {
        return;
    };
    assert!(peak > 100_000, "{usage:?}");
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

/// The kernel counts these for whoever made the namespaces, too.
#[tokio::test]
async fn what_is_counted_for_the_daemons_user_is_bounded() {
    let bed = Bed::new();
    let script = "cd /proc/sys/user; cat max_inotify_instances max_inotify_watches; \
                  grep -o 'pending signals *[0-9]* *[0-9]*' /proc/self/limits | tr -s ' '";
    assert_eq!(
        bed.says(bed.shell(script)).await,
        "32\n65536\npending signals 1024 1024\n"
    );
}

/// Makes message queues until there may be no more, and says how many there are. It takes less time than the launcher gives
/// itself before it unmounts what the last command had.
const FILL: &str =
    "cd /dev/mqueue; i=0; while { true > $i; } 2>/dev/null; do i=$((i+1)); done; echo $i";

/// Whether the count of message queues is not shared with other tests: each slot has its own, or no other test runs as this user.
fn queues_are_ours() -> bool {
    let ours = each_slot_has_queues() || !is_root();
    if !ours {
        println!("SKIPPED: root without CAP_SYS_RESOURCE shares one bound with all its tests");
    }
    ours
}

fn each_slot_has_queues() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).unwrap()
}

#[tokio::test]
async fn message_queues_are_bounded_and_those_left_do_not_count_for_the_next_command() {
    if !queues_are_ours() {
        return;
    }
    let bed = Bed::new();
    let full = bed.says(bed.shell(FILL)).await;
    let most: u32 = full.trim().parse().unwrap();
    assert!((1..100).contains(&most), "{most}");
    // They wait for the slot, and follow each other at once.
    let next = || bed.says(bed.shell(FILL));
    let (a, b, c, d) = tokio::join!(next(), next(), next(), next());
    assert_eq!([a, b, c, d], [full.as_str(); 4]);
}

#[tokio::test]
async fn message_queues_of_a_neighbour_take_no_room() {
    if !each_slot_has_queues() {
        println!("SKIPPED: without CAP_SYS_RESOURCE all slots share one bound");
        return;
    }
    let bed = Bed::with_slots(2);
    let full = bed.says(bed.shell(FILL)).await;
    let holds = format!("{FILL}; while [ ! -e /build/over ]; do sleep 0.01; done");
    let (send, mut filled) = tokio::sync::mpsc::channel(10);
    let mut spec = bed.shell(&holds);
    spec.stdout.live = Some(Box::new(send));
    let neighbour = async {
        filled.recv().await.unwrap();
        let fills = bed.shell(FILL);
        let outcome = bed.sandbox.run(1, fills, Default::default()).await;
        bed.file("over", "", 0o644);
        text(&outcome.unwrap().stdout)
    };
    let (holder, neighbour) = tokio::join!(bed.run(spec), neighbour);
    assert_eq!(holder.end, End::Exited(0));
    assert_eq!(neighbour, full);
}

#[tokio::test]
async fn it_goes_before_the_daemon_when_memory_is_short() {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let own: i32 = own.trim().parse().unwrap();
    let bed = Bed::new();
    let score = bed.spec(["cat", "/proc/self/oom_score_adj"]);
    let score: i32 = bed.says(score).await.trim().parse().unwrap();
    assert_eq!(score, own.max(500));
}
