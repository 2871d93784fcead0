//! Thousands of commands, of which one in fifty ends badly, leave nothing behind: no process, descriptor, mount, namespace, cgroup, file
//! or memory, in the daemon, its launchers or the kernel. 2 000 of them; 100 000 with `BOXWRIGHT_SOAK=1` (`make soak`).

#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "shared with tests that need more of it")]
#[path = "full_sandbox/bed.rs"]
mod bed;

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bed::Bed;
use boxwright::sandbox::{CommandSpec, End, Limits, Sandbox};
use tokio_util::sync::CancellationToken;

const SLOTS: usize = 2;
const OOM_LIMIT: u64 = 24 << 20;

fn long() -> bool {
    std::env::var_os("BOXWRIGHT_SOAK").is_some_and(|value| value != "0")
}

/// What is held now, in all the places where something could be left.
#[derive(Clone, Debug, Default)]
struct Held {
    /// By the daemon (this process), its keepers and its launchers, together.
    processes: usize,
    zombies: usize,
    descriptors: usize,
    /// Mounts that the daemon sees, and those that each launcher sees.
    mounts: Vec<usize>,
    /// Directories of cgroups that are this daemon's.
    groups: usize,
    /// Files and directories of the input roots and outputs.
    files: usize,
    daemon_kib: u64,
    /// The largest of the launchers.
    launcher_kib: u64,
    /// What the kernel holds for the whole machine, by name: others' too.
    kernel: Vec<(String, u64)>,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} processes, {} zombies, {} descriptors, mounts {:?}, {} cgroups, {} files, daemon {} KiB, launcher {} KiB; machine:",
            self.processes,
            self.zombies,
            self.descriptors,
            self.mounts,
            self.groups,
            self.files,
            self.daemon_kib,
            self.launcher_kib
        )?;
        self.kernel
            .iter()
            .try_for_each(|(name, count)| write!(f, " {name} {count}"))
    }
}

/// `(pid, parent, zombie)` of every process.
fn processes() -> Vec<(u32, u32, bool)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let stat = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit(") ").next()?.split(' ');
        let zombie = fields.next()? == "Z";
        Some((pid, fields.next()?.parse().ok()?, zombie))
    };
    entries.filter_map(stat).collect()
}

/// The daemon, its keepers, its launchers.
fn family() -> Vec<(u32, bool)> {
    let all = processes();
    let mut found = vec![(std::process::id(), false)];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at].0;
        let children = all.iter().filter(|(_, of, _)| *of == parent);
        found.extend(children.map(|(pid, _, zombie)| (*pid, *zombie)));
        at += 1;
    }
    found
}

fn count(dir: impl AsRef<Path>) -> usize {
    fs::read_dir(dir).map_or(0, |entries| entries.flatten().count())
}

/// Files and directories below.
fn tree(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => 1 + tree(&entry.path()),
            _ => 1,
        })
        .sum()
}

/// Not the pages of its program's file, which come and go.
fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    line.and_then(|l| l.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Directories called as ours are, with all below, in every hierarchy below our own group.
fn own_groups() -> usize {
    let name = format!("boxwright-{}", std::process::id());
    fn look(dir: &Path, name: &str, depth: usize) -> usize {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.map(|entry| match entry.file_name().to_str() {
            Some(found) if found == name => 1 + directories(&entry.path()),
            _ if depth > 0 => look(&entry.path(), name, depth - 1),
            _ => 0,
        })
        .sum()
    }
    look(Path::new("/sys/fs/cgroup"), &name, 6)
}

fn directories(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| 1 + directories(&entry.path())).sum()
}

/// Namespaces, mounts and groups in the kernel's memory, as far as it tells.
fn kernel() -> Vec<(String, u64)> {
    let slabs = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let slabs = slabs.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next()?;
        let wanted = [
            "mnt_cache",
            "pid_namespace",
            "net_namespace",
            "user_namespace",
            "nsproxy",
            "proc_inode_cache",
        ];
        wanted
            .contains(&name)
            .then(|| Some((name.to_owned(), fields.next()?.parse().ok()?)))?
    });
    let groups = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let groups = groups.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let name = fields
            .next()
            .filter(|name| ["memory", "pids"].contains(name))?;
        Some((format!("{name}-groups"), fields.nth(1)?.parse().ok()?))
    });
    slabs.chain(groups).collect()
}

/// A launcher cleans its slot after it has told of a command's end, and unmounts what is left when it has been idle for a
/// moment.
fn wait_for_launchers() {
    let mounts = || -> Vec<usize> {
        let launchers = family();
        launchers[1..].iter().map(|(pid, _)| mounts(*pid)).collect()
    };
    let (mut last, mut same) = (Vec::new(), 0);
    while same < 5 {
        std::thread::sleep(Duration::from_millis(20));
        let now = mounts();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
}

fn mounts(pid: u32) -> usize {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"));
    mounts.unwrap_or_default().lines().count()
}

fn held(bed: &Bed) -> Held {
    wait_for_launchers();
    let family = family();
    let alive = family.iter().filter(|(_, zombie)| !zombie);
    let alive: Vec<u32> = alive.map(|(pid, _)| *pid).collect();
    Held {
        processes: alive.len(),
        zombies: family.len() - alive.len(),
        descriptors: alive
            .iter()
            .map(|pid| count(format!("/proc/{pid}/fd")))
            .sum(),
        // The daemon's are those of the whole machine.
        mounts: alive[1..].iter().map(|pid| mounts(*pid)).collect(),
        groups: own_groups(),
        files: tree(bed.dir.path()),
        daemon_kib: resident_kib(alive[0]),
        launcher_kib: alive[1..]
            .iter()
            .map(|pid| resident_kib(*pid))
            .max()
            .unwrap_or(0),
        kernel: kernel(),
    }
}

/// The `at`th command, and whether its end is right.
fn command(bed: &Bed, at: usize, limits: bool) -> (CommandSpec, fn(&End) -> bool) {
    if at % 50 != 49 {
        return (bed.spec(["/bin/true"]), |end| *end == End::Exited(0));
    }
    match at / 50 % 6 {
        0 => {
            let mut spec = bed.shell("sleep 1000 & trap '' TERM; sleep 1000");
            spec.timeout = Some(Duration::from_millis(5));
            (spec, |end| *end == End::TimedOut)
        }
        1 => (bed.shell("kill -SEGV $$"), |end| {
            *end == End::Signalled(libc::SIGSEGV)
        }),
        2 => (
            bed.shell("(setsid sleep 1000 &); (setsid sleep 1000 &) ; exit 9"),
            |end| *end == End::Exited(9),
        ),
        3 if limits => {
            let mut spec = bed.spec(["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"]);
            spec.limits.memory = Some(OOM_LIMIT);
            (spec, |end| {
                *end == End::OutOfMemory {
                    limit: Some(OOM_LIMIT),
                }
            })
        }
        4 => (bed.spec(["/no/such/program"]), |end| {
            matches!(end, End::NotStarted { code: 127, .. })
        }),
        _ => (
            bed.shell("head -c 3000000 /dev/zero; echo x >/tmp/x; echo y >/dev/shm/y; exit 4"),
            |end| *end == End::Exited(4),
        ),
    }
}

/// Runs commands in all slots at once.
async fn commands(
    bed: &Bed,
    count: usize,
    each: impl Fn(usize) -> (CommandSpec, fn(&End) -> bool),
) {
    let slots = (0..SLOTS).map(|slot| {
        let each = &each;
        async move {
            for at in (slot..count).step_by(SLOTS) {
                let (spec, right) = each(at);
                let outcome = bed.sandbox.run(slot, spec, CancellationToken::new()).await;
                let outcome = outcome.unwrap();
                assert!(right(&outcome.end), "command {at}: {:?}", outcome.end);
            }
        }
    });
    futures::future::join_all(slots).await;
}

/// One test, as it looks at all that this process has.
#[tokio::test]
async fn thousands_of_commands_leave_nothing_behind() {
    a_launcher_does_not_grow().await;
    nothing_is_left_of_bad_ends().await;
}

async fn nothing_is_left_of_bad_ends() {
    let bed = Bed::with_slots(SLOTS);
    let wanted = Limits {
        memory: Some(OOM_LIMIT),
        ..Limits::default()
    };
    let limits = bed.sandbox.unenforced(&wanted).is_empty();
    let mixed = |at| command(&bed, at, limits);
    let total = if long() { 100_000 } else { 2_000 };
    // All kinds of ends, in both slots, and good ones after them.
    commands(&bed, 602, mixed).await;
    let before = held(&bed);
    println!("before: {before}");
    let begun = Instant::now();
    let mut done = 602;
    while done < 602 + total {
        let count = (602 + total - done).min(10_000);
        let from = done;
        commands(&bed, count, |at| mixed(from + at)).await;
        done += count;
        // Each slot has a new launcher at the end as at the beginning, whatever the last commands were.
        println!(
            "after {} in {:?}: {}",
            done - 602,
            begun.elapsed(),
            held(&bed)
        );
    }
    let after = held(&bed);
    assert_eq!(after.zombies, before.zombies);
    assert_eq!(after.processes, before.processes);
    assert_eq!(after.descriptors, before.descriptors);
    assert_eq!(after.mounts, before.mounts);
    assert_eq!(after.groups, before.groups);
    assert_eq!(after.files, before.files);
    let more = after.daemon_kib.saturating_sub(before.daemon_kib);
    assert!(more <= 4096, "the daemon grew by {more} KiB");
    let more = after.launcher_kib.saturating_sub(before.launcher_kib);
    assert!(more <= 512, "launchers are larger by {more} KiB");
    // Others make namespaces on this machine too, but not as many as were made here.
    for ((name, before), (_, after)) in before.kernel.iter().zip(&after.kernel) {
        let more = after.saturating_sub(*before);
        let bound = 700 + total as u64 / 100;
        assert!(
            name == "proc_inode_cache" || more <= bound,
            "{more} more {name} on this machine"
        );
    }
}

/// Launchers that are never replaced.
async fn a_launcher_does_not_grow() {
    let bed = Bed::with_slots(SLOTS);
    let plain = |at: usize| match at % 7 {
        3 => (
            bed.shell("echo x >/tmp/x; (setsid sleep 1000 &)"),
            (|end| *end == End::Exited(0)) as fn(&End) -> bool,
        ),
        _ => (
            bed.spec(["/bin/true"]),
            (|end| *end == End::Exited(0)) as fn(&End) -> bool,
        ),
    };
    let launchers = || -> Vec<_> { (0..SLOTS).map(|slot| bed.sandbox.launcher(slot)).collect() };
    commands(&bed, 200, plain).await;
    let (same, before) = (launchers(), held(&bed));
    // A launcher is replaced after 10 000.
    commands(&bed, if long() { 19_000 } else { 1_000 }, plain).await;
    let after = held(&bed);
    println!("before: {before}\nafter: {after}");
    assert_eq!(launchers(), same);
    assert_eq!(after.descriptors, before.descriptors);
    assert_eq!((after.processes, after.zombies), (before.processes, 0));
    assert_eq!(after.mounts, before.mounts);
    let more = after.launcher_kib.saturating_sub(before.launcher_kib);
    assert!(more <= 128, "launchers grew by {more} KiB");
}
