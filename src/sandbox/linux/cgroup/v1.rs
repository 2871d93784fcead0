//! The places for our groups in the hierarchies of the first version: below our own group in each. Joining one more costs
//! about 8 us for each action, so only what is needed is joined. `blkio` is not: it cannot tell whose the pages were that are written
//! back later, which is nearly all that a build writes.

use super::Hierarchy;
use super::base::{self, Base};
use super::controls::Version;
use super::host::{Found, V1};

/// The limits.
const LIMITS: [&str; 3] = ["memory", "pids", "cpu"];
/// Beside them time is counted, and the freezer makes killing sure. The second version would do both by one join where it is
/// mounted beside the first, but entering it waits until no fork is under way on the whole machine: see `slot`.
const WANTED: [&str; 5] = ["memory", "pids", "cpu", "cpuacct", "freezer"];

/// Whether a hierarchy has anything that limits an action.
pub(super) fn is_of_use(place: &V1) -> bool {
    let has = |controller: &String| LIMITS.contains(&controller.as_str());
    place.controllers.iter().any(has)
}

/// Makes the daemon's directories. The error says in words why there can be none; otherwise what could not be had is told beside
/// them.
pub(super) fn prepare(found: &Found) -> Result<(Vec<Hierarchy>, Option<String>), String> {
    let mut hierarchies = Vec::new();
    let mut missing = Vec::new();
    for controller in &WANTED {
        let has = |place: &&V1| place.controllers.iter().any(|name| name == controller);
        if !found.v1.iter().any(|place| has(&place)) {
            missing.push(format!("{controller} is not mounted"));
        }
    }
    for place in &found.v1 {
        let has = |name: &&&str| place.controllers.iter().any(|own| own == **name);
        let controllers: Vec<&'static str> = WANTED.iter().filter(has).copied().collect();
        if controllers.is_empty() {
            continue;
        }
        base::sweep(&place.dir);
        match Base::create(&place.dir) {
            Ok(base) => hierarchies.push(Hierarchy {
                base,
                version: Version::V1,
                controllers,
            }),
            Err(error) => missing.push(error.to_string()),
        }
    }
    if hierarchies.is_empty() {
        return Err(missing.join("; "));
    }
    let missing = (!missing.is_empty()).then(|| missing.join("; "));
    Ok((hierarchies, missing))
}
