//! What a worker costs: CPU of its cgroup, memory of its processes, and the scheduler's own counters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A cgroup with all that a worker started, v1 (cpuacct) or v2.
#[derive(Clone)]
pub(crate) struct Group(pub(crate) PathBuf);

impl Group {
    /// Seconds of CPU used so far by all that ran in it, the dead included.
    pub(crate) fn cpu(&self) -> f64 {
        let read = |file: &str| std::fs::read_to_string(self.0.join(file)).unwrap_or_default();
        let v1 = read("cpuacct.usage");
        if let Ok(nanoseconds) = v1.trim().parse::<f64>() {
            return nanoseconds / 1e9;
        }
        read("cpu.stat")
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))
            .and_then(|word| word.parse::<f64>().ok())
            .unwrap_or(f64::NAN)
            / 1e6
    }

    /// Megabytes resident in its processes now, all together and by program.
    pub(crate) fn resident(&self) -> Resident {
        let mut found = Resident::default();
        let list = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for process in list.lines().map(|id| Path::new("/proc").join(id)) {
            let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
            let (Some(name), Some(resident)) = (field("Name:"), field("VmRSS:")) else {
                continue;
            };
            let kib = resident.trim().trim_end_matches(" kB").parse::<f64>();
            let mib = kib.unwrap_or_default() / 1024.0;
            found.total += mib;
            *found.by_name.entry(name.trim().to_owned()).or_default() += mib;
        }
        found
    }
}

/// Memory by program, in MiB.
#[derive(Clone, Default)]
pub(crate) struct Resident {
    total: f64,
    by_name: BTreeMap<String, f64>,
}

impl Resident {
    /// Keeps the larger of the two in each figure.
    pub(crate) fn peak(&mut self, other: Resident) {
        self.total = self.total.max(other.total);
        for (name, mib) in other.by_name {
            let held = self.by_name.entry(name).or_default();
            *held = held.max(mib);
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let by_name: BTreeMap<_, _> = self.by_name.iter().map(|(n, m)| (n, round(*m))).collect();
        json!({"total_mib": round(self.total), "by_name_mib": by_name})
    }
}

/// To three digits after the point.
pub(crate) fn round(x: f64) -> f64 {
    (x * 1000.0).round() / 1000.0
}

/// p50, p90, p99 and the largest.
pub(crate) fn quantiles(values: impl Iterator<Item = f64>) -> Value {
    let mut sorted: Vec<f64> = values.filter(|x| x.is_finite()).collect();
    if sorted.is_empty() {
        return Value::Null;
    }
    sorted.sort_by(f64::total_cmp);
    let at = |p: f64| round(sorted[((sorted.len() - 1) as f64 * p).round() as usize]);
    json!({"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0)})
}

/// The part of the machine that was busy between two looks at /proc/stat.
pub(crate) struct Machine {
    busy: f64,
    total: f64,
}

impl Machine {
    pub(crate) fn now() -> Machine {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let ticks: Vec<f64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|word| word.parse().ok())
            .collect();
        let total: f64 = ticks.iter().sum();
        let idle = ticks.get(3).unwrap_or(&0.0) + ticks.get(4).unwrap_or(&0.0);
        Machine {
            busy: total - idle,
            total,
        }
    }

    pub(crate) fn busy_since(&self, earlier: &Machine) -> f64 {
        round((self.busy - earlier.busy) / (self.total - earlier.total).max(1.0))
    }
}
