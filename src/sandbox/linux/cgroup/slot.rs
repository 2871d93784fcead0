//! The group of one slot, used for one action after the other. A new group for each would cost several times as much, and
//! the page cache of every action would keep its dead group in the kernel's memory. So counters are told as differences.

use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Hierarchy;
use super::base;
use super::controls::{Cpu, CpuTime, Memory, OomCounts, Pids, Time, Version, io_of, time_between};
use super::error::{CgroupError, failed};
use super::kill;
use super::knob::Knob;
use crate::sandbox::{End, Io, Limits, Usage, UsageSource};

/// How long what is left in a slot may take to die when the slot goes.
const PATIENCE: Duration = Duration::from_secs(2);
/// As many dead groups may be kept in the kernel's memory by page cache before we stop making more.
const DYING: u64 = 1000;
/// A group that met its limit stays below it by no more than the largest charge, a huge page.
const HUGE_PAGE: u64 = 2 << 20;

/// A slot's control group: one directory in each hierarchy that is used.
#[derive(Debug)]
pub struct SlotGroup {
    hierarchies: Arc<Vec<Hierarchy>>,
    name: String,
    dirs: Vec<PathBuf>,
    join: Vec<OwnedFd>,
    controls: Controls,
    /// The counters as the last action left them; `None` if somebody may have been there since.
    counters: Option<Counters>,
    source: UsageSource,
}

#[derive(Debug)]
pub(super) struct Controls {
    pub(super) memory: Option<Memory>,
    pub(super) pids: Option<Pids>,
    pub(super) cpu: Option<Cpu>,
    pub(super) time: Option<Time>,
    pub(super) io: Option<Knob>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    time: Option<[u64; 3]>,
    oom: OomCounts,
    refused: u64,
    throttled: Duration,
    io: Option<Io>,
}

/// An action in a slot's group, between its [`begin`](SlotGroup::begin) and its [`end`](SlotGroup::end).
#[derive(Debug)]
#[must_use = "the group's counters are told by `end`"]
pub struct Begun {
    before: Counters,
    memory: Option<u64>,
    /// What earlier actions left in the group, which is page cache.
    inherited: u64,
    /// The peak that cannot be made to begin anew.
    old_peak: Option<u64>,
}

/// What an action did in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Processor time of all its processes; `None` where this host does not count it.
    pub cpu: Option<CpuTime>,
    /// The most memory that they held together, page cache and memory file systems included; `None` where this host
    /// does not tell it of one action.
    pub peak_memory: Option<u64>,
    /// Bytes from and to devices; `None` where this host does not count them.
    pub io: Option<Io>,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: u64,
    /// The limit that was met when they were killed; `None` if it was the host's or one above the action's own.
    pub oom_limit: Option<u64>,
    /// Forks that the limit of pids refused.
    pub pids_refused: u64,
    /// How long processes waited because of the limit of CPU, added up over processors.
    pub throttled: Duration,
    /// Which interface counted.
    pub source: UsageSource,
}

impl Ended {
    /// The end that want of memory made, if it did.
    pub fn out_of_memory(&self) -> Option<End> {
        (self.oom_kills > 0).then_some(End::OutOfMemory {
            limit: self.oom_limit,
        })
    }

    /// Puts the group's figures in the place of what `wait4` said where they are more complete.
    pub fn complete(&self, usage: Usage) -> Usage {
        let (user, system, source) = match self.cpu {
            Some(cpu) => (cpu.user, cpu.system, self.source),
            None => (usage.user, usage.system, usage.source),
        };
        Usage {
            user,
            system,
            source,
            peak_memory: self.peak_memory.or(usage.peak_memory),
            io: self.io.or(usage.io),
            ..usage
        }
    }
}

impl SlotGroup {
    pub(super) fn create(
        hierarchies: Arc<Vec<Hierarchy>>,
        name: String,
        source: UsageSource,
    ) -> Result<SlotGroup, CgroupError> {
        let dirs: Vec<PathBuf> = hierarchies
            .iter()
            .map(|hierarchy| hierarchy.base.dir().join(&name))
            .collect();
        let (join, controls) = match make(&hierarchies, &dirs) {
            Ok(made) => made,
            Err(error) => {
                for dir in &dirs {
                    let _ = fs::remove_dir(dir);
                }
                return Err(error);
            }
        };
        Ok(SlotGroup {
            hierarchies,
            name,
            dirs,
            join,
            controls,
            counters: None,
            source,
        })
    }

    pub(super) fn controls(&self) -> &Controls {
        &self.controls
    }

    /// The slot's name in the host's cgroup file systems.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Files of its directories, open for writing: a process of one thread that writes `0` to each is in the group from then
    /// on, with all its future children. It needs no permission of its own, as the kernel asks whether
    /// the opener was allowed to (since 5.16). Good until the next [`begin`](SlotGroup::begin), which may make the group anew.
    pub fn join(&self) -> &[OwnedFd] {
        &self.join
    }

    /// Makes the empty group ready for an action. Writes what differs from the last action's limits; limits that this host
    /// cannot enforce are left out, as [`Cgroups::unenforced`](super::Cgroups::unenforced) says. Blocks for microseconds, but a smaller limit of memory may have to
    /// wait for page cache to go.
    pub fn begin(&mut self, limits: &Limits) -> Result<Begun, CgroupError> {
        let reset = self.reset_peak()?;
        match self.limit(limits) {
            // On the first version, what earlier actions left may be more than this one is given and not go away.
            Err(error) if error.kind() == Some(std::io::ErrorKind::ResourceBusy) => {
                self.renew()?;
                self.limit(limits)?;
            }
            limited => limited?,
        }
        let before = match self.counters.take() {
            Some(counters) => counters,
            None => self.counters()?,
        };
        let memory = self.controls.memory.as_ref();
        let inherited = memory.map(Memory::current).transpose()?;
        let old_peak = match memory {
            Some(memory) if !reset => memory.peak()?,
            _ => None,
        };
        Ok(Begun {
            before,
            memory: limits.memory,
            inherited: inherited.unwrap_or(0),
            old_peak,
        })
    }

    /// Reads what the action did. Its processes should be dead: what they do from now on is counted for nobody.
    pub fn end(&mut self, begun: Begun) -> Result<Ended, CgroupError> {
        let Begun { before, .. } = begun;
        let after = self.counters()?;
        let oom_kills = after.oom.kills.saturating_sub(before.oom.kills);
        let peak = match &self.controls.memory {
            Some(memory) => memory.peak()?,
            None => None,
        };
        let met_limit = begun
            .memory
            .filter(|limit| peak.is_some_and(|peak| peak.saturating_add(HUGE_PAGE) >= *limit));
        let own = match (after.oom.own, before.oom.own) {
            (Some(after), Some(before)) => begun.memory.filter(|_| after > before),
            _ => met_limit,
        };
        let ended = Ended {
            cpu: before
                .time
                .zip(after.time)
                .map(|(before, after)| time_between(before, after)),
            peak_memory: peak.and_then(|peak| peak_of(peak, &begun, met_limit.is_some())),
            io: before.io.zip(after.io).map(|(before, after)| Io {
                read: after.read.saturating_sub(before.read),
                written: after.written.saturating_sub(before.written),
            }),
            oom_kills,
            oom_limit: own.filter(|_| oom_kills > 0),
            pids_refused: after.refused.saturating_sub(before.refused),
            throttled: after.throttled.saturating_sub(before.throttled),
            source: self.source,
        };
        self.counters = Some(after);
        Ok(ended)
    }

    /// Whether a process is alive in the group.
    pub fn populated(&self) -> Result<bool, CgroupError> {
        kill::populated(self.killing_dir())
    }

    /// The processes in the group, for whoever wants to look at them; of a PID namespace that is not below ours, 0.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        kill::processes(self.killing_dir())
    }

    /// Like [`SlotGroup::processes`], for whoever looks from elsewhere; none if they cannot be told.
    pub fn lister(&self) -> impl Fn() -> Vec<i32> + Send + Sync + 'static {
        let dir = self.killing_dir().to_owned();
        move || kill::processes(&dir).unwrap_or_default()
    }

    /// Kills what is alive in the group, and blocks until it is dead, at most for `patience`.
    pub fn kill_all(&self, patience: Duration) -> Result<(), CgroupError> {
        kill::kill_all(self.killing_dir(), patience)
    }

    fn killing_dir(&self) -> &Path {
        let best = |dir: &&PathBuf| dir.join("cgroup.kill").exists();
        let freezer = |dir: &&PathBuf| dir.join("freezer.state").exists();
        let dirs = || self.dirs.iter();
        let found = dirs().find(best).or_else(|| dirs().find(freezer));
        found.unwrap_or(&self.dirs[0])
    }

    fn limit(&mut self, limits: &Limits) -> Result<(), CgroupError> {
        if let Some(memory) = &mut self.controls.memory
            && memory.limit(limits.memory)?
        {
            // Making room may have been counted as want of memory.
            self.counters = None;
        }
        if let Some(pids) = &mut self.controls.pids {
            pids.limit(limits.pids)?;
        }
        if let Some(cpu) = &mut self.controls.cpu
            && cpu.limit(limits.cpu_milli)?
        {
            // What waited for its next period when it died is counted when the quota goes.
            self.counters = None;
        }
        Ok(())
    }

    fn counters(&self) -> Result<Counters, CgroupError> {
        let Controls {
            memory,
            pids,
            cpu,
            time,
            io,
        } = &self.controls;
        Ok(Counters {
            time: time.as_ref().map(Time::read).transpose()?,
            oom: memory
                .as_ref()
                .map(Memory::oom)
                .transpose()?
                .unwrap_or_default(),
            refused: pids.as_ref().map(Pids::refused).transpose()?.unwrap_or(0),
            throttled: cpu
                .as_ref()
                .map(Cpu::throttled)
                .transpose()?
                .unwrap_or_default(),
            io: match io {
                Some(io) => Some(io_of(&io.text()?)),
                None => None,
            },
        })
    }

    /// Makes the peak begin anew, if need be by making the group anew. False if it begins where earlier actions left it.
    fn reset_peak(&mut self) -> Result<bool, CgroupError> {
        let Some(memory) = &self.controls.memory else {
            return Ok(true);
        };
        if memory.reset_peak() {
            return Ok(true);
        }
        // Nothing to be reset, or nobody was here yet.
        if memory.peak()?.is_none_or(|peak| peak == 0) {
            return Ok(true);
        }
        if self.dying() > DYING {
            return Ok(false);
        }
        match self.renew() {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == Some(std::io::ErrorKind::ResourceBusy) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Dead groups below the daemon's that the kernel cannot forget yet.
    fn dying(&self) -> u64 {
        let of = |hierarchy: &Hierarchy| {
            let stat = Knob::read_only(hierarchy.base.dir(), "cgroup.stat").ok()??;
            stat.field("nr_dying_descendants").ok()
        };
        self.hierarchies.iter().filter_map(of).sum()
    }

    /// Makes the group anew. It is as it was if its processes are still there.
    fn renew(&mut self) -> Result<(), CgroupError> {
        for dir in &self.dirs {
            base::remove(dir)?;
        }
        let (join, controls) = make(&self.hierarchies, &self.dirs)?;
        self.join = join;
        self.controls = controls;
        self.counters = None;
        Ok(())
    }
}

impl Drop for SlotGroup {
    fn drop(&mut self) {
        for dir in &self.dirs {
            if let Err(error) = base::take_down(dir, PATIENCE) {
                tracing::warn!(%error, "a slot's control group cannot be removed");
            }
        }
    }
}

/// Makes the directories, as far as they are not there, and opens their files.
fn make(
    hierarchies: &[Hierarchy],
    dirs: &[PathBuf],
) -> Result<(Vec<OwnedFd>, Controls), CgroupError> {
    for dir in dirs {
        match fs::create_dir(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(failed("make", dir)(error));
            }
            _ => {}
        }
    }
    let with = |controller: &str| {
        let mut pairs = hierarchies.iter().zip(dirs);
        pairs.find(|(hierarchy, _)| hierarchy.controllers.contains(&controller))
    };
    let second = || {
        let mut pairs = hierarchies.iter().zip(dirs);
        pairs.find(|(hierarchy, _)| hierarchy.version == Version::V2)
    };
    let controls = Controls {
        memory: match with("memory") {
            Some((hierarchy, dir)) => Memory::open(dir, hierarchy.version)?,
            None => None,
        },
        pids: match with("pids") {
            Some((_, dir)) => Pids::open(dir)?,
            None => None,
        },
        cpu: match with("cpu") {
            Some((hierarchy, dir)) => Cpu::open(dir, hierarchy.version)?,
            None => None,
        },
        time: match second().or_else(|| with("cpuacct")) {
            Some((hierarchy, dir)) => Time::open(dir, hierarchy.version)?,
            None => None,
        },
        io: match with("io") {
            Some((_, dir)) => Knob::read_only(dir, "io.stat")?,
            None => None,
        },
    };
    let join = hierarchies.iter().zip(dirs).map(|(hierarchy, dir)| {
        let path = dir.join(match hierarchy.version {
            // Who moves one thread, its own, waits for nobody; who moves a process waits until no fork is under way on the whole
            // machine: 10 to 20 ms for the first in a while.
            Version::V1 => "tasks",
            Version::V2 => "cgroup.procs",
        });
        let file = OpenOptions::new().write(true).open(&path);
        file.map(OwnedFd::from).map_err(failed("open", &path))
    });
    Ok((join.collect::<Result<_, _>>()?, controls))
}

/// The peak of one action, out of that of its group.
fn peak_of(peak: u64, begun: &Begun, met_limit: bool) -> Option<u64> {
    match begun.old_peak {
        // Whatever this action held, an earlier one held more.
        Some(old) if peak <= old => None,
        // Page cache of earlier actions makes room for this one's memory at the limit: then it had all of it.
        _ if met_limit => Some(peak),
        _ => Some(peak.saturating_sub(begun.inherited)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(inherited: u64, old_peak: Option<u64>) -> Begun {
        Begun {
            before: Counters::default(),
            memory: None,
            inherited,
            old_peak,
        }
    }

    #[test]
    fn the_peak_is_the_actions_own() {
        assert_eq!(peak_of(100, &begun(0, None), false), Some(100));
        assert_eq!(peak_of(100, &begun(30, None), false), Some(70));
        assert_eq!(peak_of(100, &begun(30, None), true), Some(100));
        assert_eq!(peak_of(100, &begun(30, Some(100)), false), None);
        assert_eq!(peak_of(100, &begun(30, Some(90)), false), Some(70));
    }

    #[test]
    fn the_groups_figures_go_before_those_of_wait4() {
        let waited = Usage {
            user: Duration::from_secs(1),
            system: Duration::from_secs(1),
            max_rss: 10,
            minor_faults: 3,
            ..Usage::default()
        };
        let cpu = CpuTime {
            user: Duration::from_secs(3),
            system: Duration::from_secs(2),
        };
        let ended = Ended {
            cpu: Some(cpu),
            peak_memory: Some(50),
            source: UsageSource::CgroupV2,
            ..Ended::default()
        };
        let usage = ended.complete(waited);
        assert_eq!(usage.user, Duration::from_secs(3));
        assert_eq!(usage.system, Duration::from_secs(2));
        assert_eq!(usage.source, UsageSource::CgroupV2);
        assert_eq!((usage.peak_memory, usage.max_rss), (Some(50), 10));
        assert_eq!(usage.minor_faults, 3);
        let uncounted = Ended { cpu: None, ..ended };
        let usage = uncounted.complete(waited);
        assert_eq!(usage.source, UsageSource::Wait4);
        assert_eq!(usage.user, Duration::from_secs(1));
        assert_eq!(usage.peak_memory, Some(50));
    }

    #[test]
    fn only_kills_are_want_of_memory() {
        assert_eq!(Ended::default().out_of_memory(), None);
        let ended = Ended {
            oom_kills: 1,
            oom_limit: Some(9),
            ..Ended::default()
        };
        assert_eq!(
            ended.out_of_memory(),
            Some(End::OutOfMemory { limit: Some(9) })
        );
    }
}
