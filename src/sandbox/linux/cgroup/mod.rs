//! Control groups: the limits of an action, and the only complete account of what it used.
//!
//! [`Cgroups::open`] finds out what this host gives, and makes a [`SlotGroup`] for each slot:
//!
//! - the second version (`v2`), in a group that was delegated to us: memory, pids, cpu, io, kill;
//! - the first version (`v1`), below our own group in each controller's hierarchy, also where the second version is mounted beside
//!   it without controllers (a hybrid host);
//! - nothing, with the reason in words. It is for the caller to say so, and to refuse limits that
//!   [`Cgroups::unenforced`] names.
//!
//! A daemon that was killed leaves its groups, and perhaps processes in them; the next one that starts in the same place ends both.

mod base;
mod controls;
mod error;
mod host;
mod kill;
mod knob;
mod slot;
mod v1;
mod v2;

use std::sync::Arc;

pub use controls::CpuTime;
pub use error::CgroupError;
pub use slot::{Begun, Ended, SlotGroup};

use super::super::{Limits, UsageSource};
use base::Base;
use controls::{Memory, Version};

/// What this host gives, and a group for each slot.
#[derive(Debug)]
pub struct Cgroups {
    source: UsageSource,
    description: String,
    offers: Offers,
    slots: Vec<SlotGroup>,
}

/// The daemon's directory in one hierarchy.
#[derive(Debug)]
struct Hierarchy {
    base: Base,
    version: Version,
    controllers: Vec<&'static str>,
}

/// Which limits hold.
#[derive(Clone, Copy, Debug, Default)]
struct Offers {
    memory: bool,
    swap: bool,
    pids: bool,
    cpu: bool,
}

impl Cgroups {
    /// Looks at the host, takes down what dead daemons left, and makes the groups. On a host of the second version this
    /// process and its children may be moved into a leaf of their own group. Never fails: without groups, [`describe`](Cgroups::describe) says why.
    pub fn open(slots: usize) -> Cgroups {
        Cgroups::find(slots).unwrap_or_else(|reason| Cgroups {
            source: UsageSource::Wait4,
            description: format!("no cgroups: {reason}"),
            offers: Offers::default(),
            slots: Vec::new(),
        })
    }

    fn find(slots: usize) -> Result<Cgroups, String> {
        let found = host::look()?;
        let has_v1 = found.v1.iter().any(v1::is_of_use);
        let (hierarchies, missing) = if has_v1 {
            v1::prepare(&found)?
        } else {
            second(found.v2.as_ref())?
        };
        let source = match has_v1 {
            true => UsageSource::CgroupV1,
            false => UsageSource::CgroupV2,
        };
        let hierarchies = Arc::new(hierarchies);
        let slots = (0..slots)
            .map(|slot| SlotGroup::create(hierarchies.clone(), format!("slot-{slot}"), source))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| error.to_string())?;
        let offers = slots.first().map(offers).unwrap_or_default();
        Ok(Cgroups {
            source,
            description: describe(source, &hierarchies, missing),
            offers,
            slots,
        })
    }

    /// What was found, for the log, such as `cgroup v2 in /sys/fs/cgroup/...: memory, pids, cpu, io`.
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// Where figures of usage will be from.
    pub fn source(&self) -> UsageSource {
        self.source
    }

    /// Takes the slots' groups, the first for slot 0; none if there are no cgroups. Each removes itself when dropped; the last takes
    /// the daemon's directories with it.
    pub fn take_slots(&mut self) -> Vec<SlotGroup> {
        std::mem::take(&mut self.slots)
    }

    /// The limits that this host cannot enforce, each with what is missing. Limits that are no matter of control groups are not
    /// among them.
    pub fn unenforced(&self, limits: &Limits) -> Vec<&'static str> {
        let mut missing = Vec::new();
        let offers = self.offers;
        if limits.memory.is_some() {
            if !offers.memory {
                missing.push("memory (needs the cgroup controller `memory`)");
            } else if !offers.swap && host_swaps() {
                missing.push("memory (this kernel does not limit swap: boot with `swapaccount=1`, or turn swap off)");
            }
        }
        if limits.cpu_milli.is_some() && !offers.cpu {
            missing.push("cpus (needs the cgroup controller `cpu`)");
        }
        if limits.pids.is_some() && !offers.pids {
            missing.push("pids (needs the cgroup controller `pids`)");
        }
        missing
    }
}

/// The hierarchy of the second version, and what it lacks.
fn second(found: Option<&host::V2>) -> Result<(Vec<Hierarchy>, Option<String>), String> {
    let own = found.ok_or("none of the controllers memory, pids and cpu is mounted")?;
    let place = v2::prepare(own);
    base::sweep(&place.group);
    let base = Base::create(&place.group).map_err(|error| match &place.missing {
        Some(missing) => format!("{error}; {missing}"),
        None => error.to_string(),
    })?;
    let controllers = v2::enable(base.dir(), &place.controllers)?;
    let hierarchy = Hierarchy {
        base,
        version: Version::V2,
        controllers,
    };
    Ok((vec![hierarchy], place.missing))
}

fn offers(slot: &SlotGroup) -> Offers {
    let controls = slot.controls();
    Offers {
        memory: controls.memory.is_some(),
        swap: controls.memory.as_ref().is_some_and(Memory::counts_swap),
        pids: controls.pids.is_some(),
        cpu: controls.cpu.is_some(),
    }
}

/// Whether there is swap to escape to; without /proc it is to be feared.
fn host_swaps() -> bool {
    std::fs::read_to_string("/proc/swaps").map_or(true, |swaps| swaps.lines().count() > 1)
}

fn describe(source: UsageSource, hierarchies: &[Hierarchy], missing: Option<String>) -> String {
    let version = match source {
        UsageSource::CgroupV1 => "cgroup v1",
        _ => "cgroup v2",
    };
    let mut controllers: Vec<&str> = hierarchies
        .iter()
        .flat_map(|hierarchy| hierarchy.controllers.iter().copied())
        .collect();
    controllers.sort_unstable();
    let controllers = match controllers.is_empty() {
        true => "no controllers".to_owned(),
        false => controllers.join(", "),
    };
    let place = hierarchies
        .first()
        .map_or_else(String::new, |first| first.base.dir().display().to_string());
    let missing = missing.map_or_else(String::new, |missing| format!("; {missing}"));
    format!("{version} in {place}: {controllers}{missing}")
}
