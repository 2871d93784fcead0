//! A thousand commands leave nothing behind in the daemon or the launcher: no descriptors, no processes, no memory.

#[allow(dead_code, reason = "shared with tests that need more of it")]
#[path = "process_sandbox/bed.rs"]
mod bed;

use std::fs;

use bed::Bed;
use boxwright::sandbox::End;

/// Descriptors here and in the launcher, and zombies among our children and the launcher's.
fn held(launcher: u32) -> [usize; 3] {
    let own = std::process::id();
    let parents = [own.to_string(), launcher.to_string()];
    let mut zombies = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let state = fields.next();
        let parent = fields.next().unwrap_or_default();
        if state == Some("Z") && parents.iter().any(|p| p == parent) {
            zombies += 1;
        }
    }
    let count = |pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    [count(own), count(launcher), zombies]
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

async fn commands(bed: &Bed, count: usize) {
    let long = "x".repeat(100_000);
    for at in 0..count {
        let (spec, end) = match at % 10 {
            0 => (bed.spec(["no-such-program"]), None),
            1 => (bed.spec(["true", &long]), Some(0)),
            2 => (bed.shell("setsid sleep 1000 & exit 9"), Some(9)),
            3 => {
                let mut spec = bed.shell("head -c 100000 /dev/zero");
                spec.stdout.keep = 50_000;
                (spec, Some(0))
            }
            _ => (bed.spec(["true"]), Some(0)),
        };
        let outcome = bed.run(spec).await;
        match end {
            Some(code) => assert_eq!(outcome.end, End::Exited(code)),
            None => assert!(matches!(outcome.end, End::NotStarted { code: 127, .. })),
        }
    }
}

#[tokio::test]
async fn a_thousand_commands_leave_nothing_behind() {
    let bed = Bed::new();
    commands(&bed, 100).await;
    let launcher = bed.sandbox.launcher(0).unwrap();
    let (before, resident) = (held(launcher), resident_kib(launcher));
    commands(&bed, 1000).await;
    assert_eq!(bed.sandbox.launcher(0), Some(launcher));
    assert_eq!(held(launcher), before);
    let now = resident_kib(launcher);
    assert!(
        now <= resident + 256,
        "the launcher grew from {resident} to {now} KiB"
    );
}
