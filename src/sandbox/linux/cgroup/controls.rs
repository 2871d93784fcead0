//! The control files of one slot's group: what is set, what is counted. The two versions differ in names and in the order of
//! writes, and hardly in anything else.

use std::path::Path;
use std::time::Duration;

use super::error::CgroupError;
use super::knob::Knob;
use crate::sandbox::Io;

/// The length of a period in which a group may use its quota of CPU, in microseconds.
const PERIOD: u64 = 100_000;
/// The kernel takes no smaller quota.
const LEAST_QUOTA: u64 = 1_000;

/// Which of the two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// Memory: its limit, its peak, and the count of killed processes.
#[derive(Debug)]
pub(super) struct Memory {
    version: Version,
    max: Knob,
    /// v2: swap alone; v1: memory and swap together. `None` if the kernel does not count swap.
    swap: Option<Knob>,
    current: Knob,
    peak: Option<Knob>,
    events: Knob,
}

/// What was killed for want of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OomCounts {
    /// Processes of the group that were killed, whosever limit it was.
    pub(super) kills: u64,
    /// How often the group's own limit was the one; v1 does not count it.
    pub(super) own: Option<u64>,
}

impl Memory {
    pub(super) fn open(dir: &Path, version: Version) -> Result<Option<Memory>, CgroupError> {
        let [max, swap, current, peak, events] = match version {
            Version::V1 => [
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                "memory.usage_in_bytes",
                "memory.max_usage_in_bytes",
                "memory.oom_control",
            ],
            Version::V2 => [
                "memory.max",
                "memory.swap.max",
                "memory.current",
                "memory.peak",
                "memory.events",
            ],
        };
        let none = unlimited(version);
        let peak = match version {
            Version::V1 => Knob::writable(dir, peak)?,
            // Before 6.12 nobody may write it, but for root, who gets an error when it does.
            Version::V2 => match Knob::writable(dir, peak) {
                Ok(peak) => peak,
                Err(_) => Knob::read_only(dir, peak)?,
            },
        };
        let (Some(max), Some(current), Some(events)) = (
            Knob::writable(dir, max)?,
            Knob::read_only(dir, current)?,
            Knob::read_only(dir, events)?,
        ) else {
            return Ok(None);
        };
        if let Some(group) = Knob::writable(dir, "memory.oom.group")? {
            group.write("1")?;
        }
        Ok(Some(Memory {
            version,
            max: max.assume(none),
            swap: Knob::writable(dir, swap)?.map(|swap| swap.assume(none)),
            current,
            peak,
            events,
        }))
    }

    /// Whether a limit of memory is a limit of swap too.
    pub(super) fn counts_swap(&self) -> bool {
        self.swap.is_some()
    }

    /// Sets the limit; says whether anything was written.
    pub(super) fn limit(&mut self, bytes: Option<u64>) -> Result<bool, CgroupError> {
        let none = unlimited(self.version);
        let max = bytes.map_or(none.to_owned(), |bytes| bytes.to_string());
        let Some(swap) = &mut self.swap else {
            return self.max.set(&max);
        };
        match (self.version, bytes) {
            (Version::V2, None) => Ok(swap.set("max")? | self.max.set(&max)?),
            (Version::V2, Some(_)) => Ok(swap.set("0")? | self.max.set(&max)?),
            (Version::V1, _) if !self.max.differs(&max) && !swap.differs(&max) => Ok(false),
            // Memory may never be allowed more than both together: out of the way first.
            (Version::V1, None) => Ok(swap.set(none)? | self.max.set(none)?),
            (Version::V1, Some(_)) => {
                swap.set(none)?;
                self.max.set(&max)?;
                swap.set(&max)
            }
        }
    }

    /// Makes the peak begin anew; says whether that is possible.
    pub(super) fn reset_peak(&self) -> bool {
        let peak = self.peak.as_ref();
        peak.is_some_and(|peak| peak.write("0").is_ok())
    }

    pub(super) fn peak(&self) -> Result<Option<u64>, CgroupError> {
        self.peak.as_ref().map(Knob::number).transpose()
    }

    pub(super) fn current(&self) -> Result<u64, CgroupError> {
        self.current.number()
    }

    pub(super) fn oom(&self) -> Result<OomCounts, CgroupError> {
        // Not `failcnt`: it counts what could be reclaimed, and not what swap's limit refused.
        let [kills, own] = self.events.fields(["oom_kill", "oom"])?;
        let own = (self.version == Version::V2).then_some(own);
        Ok(OomCounts { kills, own })
    }
}

fn unlimited(version: Version) -> &'static str {
    match version {
        Version::V1 => "-1",
        Version::V2 => "max",
    }
}

/// Processes and threads; the same in both versions.
#[derive(Debug)]
pub(super) struct Pids {
    max: Knob,
    events: Option<Knob>,
}

impl Pids {
    pub(super) fn open(dir: &Path) -> Result<Option<Pids>, CgroupError> {
        let Some(max) = Knob::writable(dir, "pids.max")? else {
            return Ok(None);
        };
        Ok(Some(Pids {
            max: max.assume("max"),
            events: Knob::read_only(dir, "pids.events")?,
        }))
    }

    pub(super) fn limit(&mut self, pids: Option<u64>) -> Result<bool, CgroupError> {
        // The kernel refuses numbers that no system can have.
        const MOST: u64 = 4 << 20;
        match pids {
            Some(pids) if pids < MOST => self.max.set(&pids.to_string()),
            _ => self.max.set("max"),
        }
    }

    /// How many forks were refused.
    pub(super) fn refused(&self) -> Result<u64, CgroupError> {
        match &self.events {
            Some(events) => events.field("max"),
            None => Ok(0),
        }
    }
}

/// Processor time: its quota, and how long it made processes wait.
#[derive(Debug)]
pub(super) struct Cpu {
    version: Version,
    quota: Knob,
    stat: Option<Knob>,
}

impl Cpu {
    pub(super) fn open(dir: &Path, version: Version) -> Result<Option<Cpu>, CgroupError> {
        let quota = match version {
            Version::V1 => Knob::writable(dir, "cpu.cfs_quota_us")?.map(|quota| quota.assume("-1")),
            Version::V2 => {
                Knob::writable(dir, "cpu.max")?.map(|quota| quota.assume(&format!("max {PERIOD}")))
            }
        };
        let Some(quota) = quota else { return Ok(None) };
        if version == Version::V1
            && let Some(period) = Knob::writable(dir, "cpu.cfs_period_us")?
        {
            period.write(&PERIOD.to_string())?;
        }
        Ok(Some(Cpu {
            version,
            quota,
            stat: Knob::read_only(dir, "cpu.stat")?,
        }))
    }

    pub(super) fn limit(&mut self, milli: Option<u64>) -> Result<bool, CgroupError> {
        let quota = milli.map(|milli| (milli.saturating_mul(PERIOD) / 1000).max(LEAST_QUOTA));
        let value = match (self.version, quota) {
            (Version::V1, None) => "-1".to_owned(),
            (Version::V1, Some(quota)) => quota.to_string(),
            (Version::V2, None) => format!("max {PERIOD}"),
            (Version::V2, Some(quota)) => format!("{quota} {PERIOD}"),
        };
        self.quota.set(&value)
    }

    /// How long processes waited for the next period.
    pub(super) fn throttled(&self) -> Result<Duration, CgroupError> {
        let Some(stat) = &self.stat else {
            return Ok(Duration::ZERO);
        };
        Ok(match self.version {
            Version::V1 => Duration::from_nanos(stat.field("throttled_time")?),
            Version::V2 => Duration::from_micros(stat.field("throttled_usec")?),
        })
    }
}

/// Where the processor time that was used is read.
#[derive(Debug)]
pub(super) enum Time {
    /// `cpu.stat` of the second version, which every group has, with controllers or without.
    Stat(Knob),
    /// The first version: the sum is exact, its two parts are counted in ticks.
    Acct { sum: Knob, user: Knob, system: Knob },
}

/// Processor time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// In user mode.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
}

impl Time {
    pub(super) fn open(dir: &Path, version: Version) -> Result<Option<Time>, CgroupError> {
        if version == Version::V2 {
            return Ok(Knob::read_only(dir, "cpu.stat")?.map(Time::Stat));
        }
        let knobs = (
            Knob::read_only(dir, "cpuacct.usage")?,
            Knob::read_only(dir, "cpuacct.usage_user")?,
            Knob::read_only(dir, "cpuacct.usage_sys")?,
        );
        Ok(match knobs {
            (Some(sum), Some(user), Some(system)) => Some(Time::Acct { sum, user, system }),
            _ => None,
        })
    }

    /// The counters since the group was made: the sum, the user's part, the kernel's, in nanoseconds.
    pub(super) fn read(&self) -> Result<[u64; 3], CgroupError> {
        match self {
            Time::Stat(stat) => {
                let [user, system] = stat.fields(["user_usec", "system_usec"])?;
                let [user, system] = [user, system].map(|us| us.saturating_mul(1000));
                Ok([user.saturating_add(system), user, system])
            }
            Time::Acct { sum, user, system } => {
                Ok([sum.number()?, user.number()?, system.number()?])
            }
        }
    }
}

/// The time between two readings, its sum shared out as its parts are.
pub(super) fn time_between(before: [u64; 3], after: [u64; 3]) -> CpuTime {
    let [sum, user, system] = [0, 1, 2].map(|at| after[at].saturating_sub(before[at]));
    let parts = u128::from(user) + u128::from(system);
    let user = match parts {
        // Shorter than a tick: most programs are in user mode.
        0 => sum,
        parts => (u128::from(sum) * u128::from(user) / parts) as u64,
    };
    CpuTime {
        user: Duration::from_nanos(user),
        system: Duration::from_nanos(sum - user),
    }
}

/// Bytes from and to devices, of lines such as `8:0 rbytes=1 wbytes=2 rios=3 ...`.
pub(super) fn io_of(text: &str) -> Io {
    let mut io = Io::default();
    for pair in text.split_ascii_whitespace() {
        let Some((key, value)) = pair.split_once('=') else {
            continue;
        };
        let value = value.parse().unwrap_or(0);
        match key {
            "rbytes" => io.read = io.read.saturating_add(value),
            "wbytes" => io.written = io.written.saturating_add(value),
            _ => {}
        }
    }
    io
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    fn said(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).unwrap()
    }

    /// A plain file keeps the end of what was longer; the kernel's do not.
    fn clear(dir: &Path, name: &str) {
        fs::write(dir.join(name), "").unwrap();
    }

    #[test]
    fn memory_of_the_second_version() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(
            dir,
            &[
                ("memory.max", ""),
                ("memory.swap.max", ""),
                ("memory.current", "4096\n"),
                ("memory.peak", "67108864\n"),
                (
                    "memory.events",
                    "low 0\nhigh 0\nmax 9\noom 1\noom_kill 3\noom_group_kill 1\n",
                ),
                ("memory.oom.group", "0"),
            ],
        );
        let mut memory = Memory::open(dir, Version::V2).unwrap().unwrap();
        assert_eq!(said(dir, "memory.oom.group"), "1");
        assert!(!memory.limit(None).unwrap(), "a new group has no limit");
        assert!(memory.limit(Some(64 << 20)).unwrap());
        assert_eq!(said(dir, "memory.max"), "67108864");
        assert_eq!(said(dir, "memory.swap.max"), "0");
        assert!(!memory.limit(Some(64 << 20)).unwrap());
        clear(dir, "memory.max");
        clear(dir, "memory.swap.max");
        assert!(memory.limit(None).unwrap());
        assert_eq!(said(dir, "memory.max"), "max");
        assert_eq!(said(dir, "memory.swap.max"), "max");
        let oom = OomCounts {
            kills: 3,
            own: Some(1),
        };
        assert_eq!(memory.oom().unwrap(), oom);
        assert_eq!(memory.peak().unwrap(), Some(67_108_864));
        assert_eq!(memory.current().unwrap(), 4096);
    }

    #[test]
    fn an_old_kernel_has_neither_peak_nor_swap() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("memory.max", ""),
                ("memory.current", "1"),
                ("memory.events", "oom_kill 0"),
            ],
        );
        let mut memory = Memory::open(dir.path(), Version::V2).unwrap().unwrap();
        assert!(!memory.counts_swap() && !memory.reset_peak());
        assert_eq!(memory.peak().unwrap(), None);
        assert!(memory.limit(Some(1)).unwrap());
        fs::remove_file(dir.path().join("memory.max")).unwrap();
        assert!(Memory::open(dir.path(), Version::V2).unwrap().is_none());
    }

    #[test]
    fn processors_in_thousandths() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(
            dir,
            &[
                ("cpu.max", ""),
                (
                    "cpu.stat",
                    "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_throttled 2\nthrottled_usec 1500\n",
                ),
            ],
        );
        let mut cpu = Cpu::open(dir, Version::V2).unwrap().unwrap();
        assert!(!cpu.limit(None).unwrap());
        cpu.limit(Some(1500)).unwrap();
        assert_eq!(said(dir, "cpu.max"), "150000 100000");
        clear(dir, "cpu.max");
        cpu.limit(Some(1)).unwrap();
        assert_eq!(said(dir, "cpu.max"), "1000 100000");
        assert_eq!(cpu.throttled().unwrap(), Duration::from_micros(1500));
        let time = Time::open(dir, Version::V2).unwrap().unwrap();
        assert_eq!(time.read().unwrap(), [9000, 5000, 4000]);
    }

    #[test]
    fn pids_are_counted_by_refusals() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[("pids.max", ""), ("pids.events", "max 7\n")]);
        let mut pids = Pids::open(dir.path()).unwrap().unwrap();
        assert!(pids.limit(Some(100)).unwrap());
        assert_eq!(said(dir.path(), "pids.max"), "100");
        assert_eq!(pids.refused().unwrap(), 7);
        clear(dir.path(), "pids.max");
        assert!(pids.limit(Some(u64::MAX)).unwrap());
        assert_eq!(said(dir.path(), "pids.max"), "max");
    }

    #[test]
    fn devices_are_summed() {
        let text =
            "8:0 rbytes=4096 wbytes=10 rios=1 wios=1 dbytes=0 dios=0\n253:1 rbytes=1 wbytes=x\n\n";
        let io = Io {
            read: 4097,
            written: 10,
        };
        assert_eq!(io_of(text), io);
        assert_eq!(io_of(""), Io::default());
    }

    #[test]
    fn the_exact_sum_is_shared_out_by_ticks() {
        let ms = |ms: u64| ms * 1_000_000;
        let time = time_between([ms(100), ms(50), ms(50)], [ms(203), ms(130), ms(70)]);
        assert_eq!(time.user + time.system, Duration::from_millis(103));
        assert_eq!(time.user, Duration::from_micros(82_400));
        let short = time_between([0; 3], [500, 0, 0]);
        assert_eq!(short.user, Duration::from_nanos(500));
        // Counters never run backwards; if one did, it is not four hundred years.
        assert_eq!(time_between([5; 3], [0; 3]), CpuTime::default());
    }
}
