//! What the next action in the same slot finds of the one before.

use super::attempt::Lab;
use super::place::Place;

pub(crate) async fn all(lab: &Lab) -> Vec<String> {
    let mut surprises = matrix(lab).await;
    surprises.extend(pair(lab, "kr.persist", "kr.plant").await);
    surprises.extend(pair(lab, "leak.port_reuse", "leak.port_plant").await);
    surprises.extend(peak(lab).await);
    surprises
}

/// The places where marks stay are these, and no others.
async fn matrix(lab: &Lab) -> Vec<String> {
    let mark = lab.mark();
    let planted = lab.says(&["leak.plant", &mark]).await;
    let found = lab.says(&["leak.scan", &mark]).await;
    let cleaned = lab.says(&["leak.clean", &mark]).await;
    println!(
        "{:?} leak.matrix: planted {}; found {}",
        lab.place,
        planted.line(),
        found.line()
    );
    let found: Vec<&str> = match found.word.as_str() {
        "ALLOWED" => found.detail.split(' ').collect(),
        _ => Vec::new(),
    };
    let (must, may): (&[&str], &[&str]) = match lab.place {
        Place::OutsideUser | Place::OutsideRoot => (
            &[
                "/dev/shm", "/tmp", "/var/tmp", "sysv-shm", "sysv-sem", "sysv-msg", "posix-mq",
                "key", "socket", "daemon",
            ],
            &[
                "/",
                "/dev",
                "/dev/mqueue",
                "/etc",
                "/home",
                "/mnt",
                "/opt",
                "/run",
                "/run/lock",
                "/srv",
            ],
        ),
        Place::Process => (
            &[
                "/dev/shm", "/tmp", "/var/tmp", "sysv-shm", "sysv-sem", "sysv-msg", "posix-mq",
            ],
            &["/dev/mqueue", "/run/lock", "key"],
        ),
        Place::Bubblewrap | Place::FullRoot | Place::FullRootless => (&[], &[]),
    };
    let missing: Vec<_> = must.iter().filter(|place| !found.contains(place)).collect();
    let beyond: Vec<_> = found
        .iter()
        .filter(|place| !must.contains(place) && !may.contains(place))
        .collect();
    let mut surprises = Vec::new();
    // Who may leave nothing has shown nothing.
    let left: Vec<&str> = planted.detail.split(' ').collect();
    if let Some(what) = [
        "/dev/shm", "/tmp", "sysv-shm", "sysv-sem", "sysv-msg", "posix-mq",
    ]
    .iter()
    .find(|what| !left.contains(what))
    {
        surprises.push(format!("leak.matrix: {what} could not be planted"));
    }
    if !missing.is_empty() || !beyond.is_empty() {
        surprises.push(format!(
            "leak.matrix: not found {missing:?}, found too {beyond:?}; planted {}",
            planted.line()
        ));
    }
    if cleaned.word != "DENIED" {
        surprises.push(format!(
            "leak.matrix: it could not be cleaned up: {}",
            cleaned.line()
        ));
    }
    surprises
}

/// One action prepares what another looks for; outside and at level `process` it finds it.
async fn pair(lab: &Lab, name: &str, before: &str) -> Option<String> {
    let mark = lab.mark();
    let planted = lab.says(&[before, &mark]).await;
    let said = lab.says(&[name, &mark]).await;
    lab.says(&["leak.clean", &mark]).await;
    println!(
        "{:?} {name}: {}, then {}",
        lab.place,
        planted.line(),
        said.line()
    );
    let wanted = if lab.place.is_outside() || lab.place == Place::Process {
        "ALLOWED"
    } else {
        "DENIED"
    };
    (!said.is(wanted)).then(|| {
        format!(
            "{name}: {}, then {}, wanted {wanted}",
            planted.line(),
            said.line()
        )
    })
}

/// The most memory that an action held is its own, not that of the one before.
async fn peak(lab: &Lab) -> Option<String> {
    if !lab.place.is_full() {
        return None;
    }
    let mut peaks = [0; 2];
    for (peak, mib) in peaks.iter_mut().zip(["128", "1"]) {
        let outcome = lab.run(0, lab.spec(0, &["res.membomb_anon", mib])).await;
        // Known only where there is a cgroup.
        *peak = outcome.usage.peak_memory?;
    }
    let [large, small] = peaks;
    // The kernel charges pages in batches: a few may not be counted yet.
    (large < 127 << 20 || small > 64 << 20)
        .then(|| format!("leak.peak: {large} then {small} bytes"))
}
