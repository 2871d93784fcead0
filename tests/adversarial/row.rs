//! The table, row by row.

use boxwright::sandbox::Limits;

use super::attempt::Lab;
use super::expected::{Control, ROWS, Row};
use super::place::Place;

const MIB: u64 = 1 << 20;

/// Each surprise is a line.
pub(crate) async fn all(lab: &Lab) -> Vec<String> {
    let mut surprises = Vec::new();
    for row in ROWS {
        surprises.extend(one(lab, row).await);
    }
    surprises
}

fn wanted(place: Place, row: &Row) -> Option<&'static str> {
    let wanted = match place {
        Place::OutsideUser if row.control == Control::User => "ALLOWED",
        Place::OutsideRoot if row.control == Control::Root => "ALLOWED",
        Place::OutsideRoot if row.control == Control::Machine => "ALLOWED | ABSENT | DENIED",
        Place::OutsideUser | Place::OutsideRoot => return None,
        Place::Process => row.process,
        Place::Bubblewrap => row.bubblewrap,
        Place::FullRoot | Place::FullRootless => row.full,
    };
    (wanted != "-").then_some(wanted)
}

async fn one(lab: &Lab, row: &Row) -> Option<String> {
    let wanted = wanted(lab.place, row)?;
    let words = format!("{} {}", row.name, row.arguments);
    let Some(words) = lab.world.fill(&words) else {
        crate::skipped::here(format!("{}: this world has no {}", row.name, row.arguments));
        return None;
    };
    let mut words: Vec<&str> = words.split_whitespace().collect();
    if lab.place.is_full() && matches!(row.name, "res.disk" | "res.inodes") {
        words.push("watched");
    }
    let mut spec = lab.spec(0, &words);
    if lab.place.is_ours() {
        spec.limits = limits(lab.place, row.name);
    }
    // A limit that it cannot keep here it has to name; then the attempt may succeed.
    let lacking = lab.sandbox.unenforced(&spec.limits);
    let said = lab.says_of(0, spec).await;
    println!("{:?} {words:?}: {} {lacking:?}", lab.place, said.line());
    let excused = lab.place.is_full() && !lacking.is_empty() && said.is("ALLOWED");
    let mut surprise = (!said.is(wanted) && !excused)
        .then(|| format!("{words:?}: {}, wanted {wanted}", said.line()));
    // The kernel's own refusals are for those without privileges; what it does not have it has for nobody.
    if row.name == "sc.matrix" && lab.place == Place::OutsideRoot {
        let odd: Vec<_> = said
            .findings
            .iter()
            .filter(|line| !line.ends_with(" ENOSYS"))
            .collect();
        surprise =
            surprise.or((!odd.is_empty()).then(|| format!("sc.matrix: root is denied {odd:?}")));
    }
    if row.name == "sc.ordinary" {
        let denied = &said.findings;
        surprise = surprise.or((!denied.is_empty()).then(|| format!("sc.ordinary: {denied:?}")));
    }
    surprise
}

/// A bound on what the attempt wants more of, below what it takes. Level `process` has three.
fn limits(place: Place, name: &str) -> Limits {
    let mut limits = Limits::default();
    match name {
        "res.fds" => limits.open_files = Some(256),
        "res.forkbomb" => limits.processes = Some(64),
        "res.disk" => limits.file_size = Some(16 * MIB),
        _ => {}
    }
    if place.is_full() {
        match name {
            "res.forkbomb" => {
                limits = Limits {
                    pids: Some(64),
                    ..Limits::default()
                }
            }
            "res.disk" => limits.disk_bytes = Some(16 * MIB),
            "res.inodes" => limits.disk_nodes = Some(1000),
            "res.cpu" => limits.cpu_milli = Some(100),
            name if name.starts_with("res.membomb") => limits.memory = Some(96 * MIB),
            _ => {}
        }
    }
    limits
}
