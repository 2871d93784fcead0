//! A slot whose command takes all it can, and its neighbour's.

use std::time::Duration;

use boxwright::sandbox::{End, Limits};

use super::attempt::Lab;

pub(crate) async fn all(lab: &Lab) -> Vec<String> {
    if !lab.place.is_ours() {
        return Vec::new();
    }
    let mut surprises = Vec::new();
    surprises.extend(flood(lab).await);
    surprises.extend(forks(lab).await);
    if lab.place.is_full() {
        surprises.extend(memory(lab).await);
    }
    surprises
}

/// `io.flood`: a command that writes for ever is read and cut.
async fn flood(lab: &Lab) -> Option<String> {
    let mut spec = lab.spec(0, &["res.output_flood", "256"]);
    // It is a lot for an emulated machine.
    spec.timeout = Some(Duration::from_secs(120));
    let outcome = lab.run(0, spec).await;
    let dropped = outcome.stdout_dropped;
    (outcome.end != End::Exited(0) || dropped != 255 << 20)
        .then(|| format!("res.output_flood: {:?}, {dropped} dropped", outcome.end))
}

/// `res.neighbour_survives`: one slot's processes do not count against another's.
async fn forks(lab: &Lab) -> Option<String> {
    let limited = |slot| {
        let mut spec = lab.spec(
            slot,
            &["res.forkbomb", if slot == 0 { "40" } else { "300" }],
        );
        spec.limits = match lab.place.is_full() {
            true => Limits {
                pids: Some(64),
                ..Limits::default()
            },
            false => Limits {
                processes: Some(64),
                ..Limits::default()
            },
        };
        spec
    };
    let (neighbour, bomb) = tokio::join!(lab.says_of(0, limited(0)), lab.says_of(1, limited(1)));
    (!neighbour.is("ALLOWED") || !bomb.is("DENIED EAGAIN")).then(|| {
        format!(
            "res.neighbour_survives: {}, beside {}",
            neighbour.line(),
            bomb.line()
        )
    })
}

/// The kernel kills in the slot that is too large, and not in the one beside it.
async fn memory(lab: &Lab) -> Option<String> {
    let limited = |slot, mib| {
        let mut spec = lab.spec(slot, &["res.membomb_children", mib]);
        spec.limits.memory = Some(96 << 20);
        spec
    };
    let (neighbour, bomb) =
        tokio::join!(lab.run(0, limited(0, "32")), lab.run(1, limited(1, "512")));
    let counted = bomb.usage.peak_memory.is_some();
    (neighbour.end != End::Exited(0) || counted && !matches!(bomb.end, End::OutOfMemory { .. }))
        .then(|| {
            format!(
                "res.neighbour_survives: {:?}, beside {:?}",
                neighbour.end, bomb.end
            )
        })
}
