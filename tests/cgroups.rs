//! Control groups hold what they are given, count what was used, and leave nothing behind. On the host's own groups, of
//! whichever version they are: `make test-vm` has the second version where the host has the first.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[path = "common/skipped.rs"]
mod skipped;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use boxwright::sandbox::linux::cgroup::{Cgroups, Ended, SlotGroup};
use boxwright::sandbox::{End, Limits, UsageSource};

/// Any user but root.
const USER: u32 = 0x6fff_0001;
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// The groups of a daemon with as many slots; `None`, and a line that says why, if this host cannot enforce `needed`.
fn groups(slots: usize, needed: &Limits) -> Option<(Cgroups, Vec<SlotGroup>)> {
    let mut cgroups = Cgroups::open(slots);
    println!("{}", cgroups.describe());
    let missing = cgroups.unenforced(needed);
    if cgroups.source() == UsageSource::Wait4 || !missing.is_empty() {
        skipped::here(format!("{}: {}", cgroups.describe(), missing.join(", ")));
        return None;
    }
    let groups = cgroups.take_slots();
    assert_eq!(groups.len(), slots);
    Some((cgroups, groups))
}

/// Starts a shell that has joined the group as an ordinary user: another one, if this process is root.
fn shell(group: &SlotGroup, script: &str, in_user_namespace: bool) -> Child {
    let join: Vec<i32> = group.join().iter().map(|fd| fd.as_raw_fd()).collect();
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    let is_root = is_root();
    let become_user_and_join = move || {
        let said = |result: libc::c_long| match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        // SAFETY: system calls on plain numbers, by a process that has one thread; the C library's setuid would
        // look for others.
        unsafe {
            if is_root {
                said(libc::syscall(libc::SYS_setgroups, 0, 0))?;
                said(libc::syscall(libc::SYS_setresgid, USER, USER, USER))?;
                said(libc::syscall(libc::SYS_setresuid, USER, USER, USER))?;
            }
            if in_user_namespace {
                said(libc::c_long::from(libc::unshare(libc::CLONE_NEWUSER)))?;
            }
        }
        for fd in &join {
            // SAFETY: the group is borrowed until the child has been started.
            rustix::io::write(unsafe { BorrowedFd::borrow_raw(*fd) }, b"0")?;
        }
        Ok(())
    };
    // SAFETY: nothing in it allocates or locks.
    unsafe { command.pre_exec(become_user_and_join) };
    command.spawn().expect("a shell that joins the group")
}

/// One action: what became of its shell, and what its group says.
fn action(group: &mut SlotGroup, limits: &Limits, script: &str) -> (ExitStatus, Ended) {
    let begun = group.begin(limits).unwrap();
    let status = shell(group, script, false).wait().unwrap();
    group.kill_all(PATIENCE).unwrap();
    (status, group.end(begun).unwrap())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn memory(bytes: u64) -> Limits {
    Limits {
        memory: Some(bytes),
        ..Limits::default()
    }
}

/// The directories of a slot's group.
fn dirs(group: &SlotGroup) -> Vec<PathBuf> {
    let of = |fd: BorrowedFd<'_>| {
        let procs = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        procs.parent().unwrap().to_owned()
    };
    group.join().iter().map(|fd| of(fd.as_fd())).collect()
}

/// What the kernel says in the first of these files that the group has.
fn said(group: &SlotGroup, names: &[&str]) -> String {
    let dirs = dirs(group);
    let mut files = dirs
        .iter()
        .flat_map(|dir| names.iter().map(|name| dir.join(name)));
    files
        .find_map(|file| fs::read_to_string(file).ok())
        .unwrap()
}

/// A program that holds as many MiB, and needs nothing but what every system has.
fn hold(mib: u64) -> String {
    format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1 2>&1")
}

#[test]
fn a_memory_bomb_is_killed_and_the_count_proves_it() {
    let limits = memory(64 * MIB);
    let Some((_cgroups, mut groups)) = groups(1, &limits) else {
        return;
    };
    let group = &mut groups[0];
    let bomb = format!("exec {}", hold(200));
    let (status, ended) = action(group, &limits, &bomb);
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{ended:?}");
    assert_eq!(
        ended.out_of_memory(),
        Some(End::OutOfMemory {
            limit: Some(64 * MIB)
        })
    );
    if let Some(peak) = ended.peak_memory {
        assert!((60 * MIB..=64 * MIB).contains(&peak), "{ended:?}");
    }
    // The next action in the slot has neither the count nor the peak.
    let (status, ended) = action(group, &limits, "exec true");
    assert!(status.success());
    assert_eq!(ended.out_of_memory(), None);
    assert!(
        ended.peak_memory.is_none_or(|peak| peak < 20 * MIB),
        "{ended:?}"
    );
    // Nor the limit, if it asks for none.
    let (status, ended) = action(group, &Limits::default(), &bomb);
    assert!(status.success(), "{ended:?}");
    assert_eq!(ended.oom_kills, 0);
    assert!(
        ended.peak_memory.is_none_or(|peak| peak > 150 * MIB),
        "{ended:?}"
    );
}

#[test]
fn a_sigkill_is_not_want_of_memory() {
    let limits = memory(64 * MIB);
    let Some((_cgroups, mut groups)) = groups(1, &limits) else {
        return;
    };
    let (status, ended) = action(&mut groups[0], &limits, "kill -9 $$");
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    assert_eq!(ended.out_of_memory(), None);
}

#[test]
fn memory_is_that_of_all_processes_together() {
    let limits = memory(64 * MIB);
    let Some((_cgroups, mut groups)) = groups(1, &limits) else {
        return;
    };
    // Each of them is within the limit, and ends only when it is killed.
    let each = "(dd if=/dev/zero bs=24M count=1 2>/dev/null | sleep 1000) &";
    let script = format!("{each} {each} {each} {each} exit 0");
    let group = &mut groups[0];
    let begun = group.begin(&limits).unwrap();
    shell(group, &script, false).wait().unwrap();
    wait_until(|| {
        let events = said(group, &["memory.events", "memory.oom_control"]);
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|kills| kills != "0")
    });
    group.kill_all(PATIENCE).unwrap();
    assert!(group.end(begun).unwrap().oom_kills > 0);
    let begun = group.begin(&memory(1024 * MIB)).unwrap();
    shell(group, &script, false).wait().unwrap();
    wait_until(|| {
        let held = said(group, &["memory.current", "memory.usage_in_bytes"]);
        held.trim().parse::<u64>().unwrap() > 96 * MIB
    });
    group.kill_all(PATIENCE).unwrap();
    let ended = group.end(begun).unwrap();
    assert_eq!(ended.oom_kills, 0);
    assert!(
        ended.peak_memory.is_none_or(|peak| peak > 80 * MIB),
        "{ended:?}"
    );
}

#[test]
fn the_second_version_kills_the_whole_group() {
    let limits = memory(64 * MIB);
    let Some((cgroups, mut groups)) = groups(1, &limits) else {
        return;
    };
    if cgroups.source() != UsageSource::CgroupV2 {
        skipped::here("the first version of cgroups kills one process only");
        return;
    }
    let group = &mut groups[0];
    let begun = group.begin(&limits).unwrap();
    let bomb = hold(200);
    let status = shell(group, &format!("sleep 1000 & {bomb}; exit 7"), false)
        .wait()
        .unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    wait_until(|| !group.populated().unwrap());
    assert!(group.end(begun).unwrap().oom_kills >= 3);
}

#[test]
fn a_fork_bomb_meets_the_limit_of_pids() {
    let limits = Limits {
        pids: Some(20),
        ..Limits::default()
    };
    let Some((_cgroups, mut groups)) = groups(1, &limits) else {
        return;
    };
    let group = &mut groups[0];
    let begun = group.begin(&limits).unwrap();
    let script = "i=0; while [ $i -lt 100 ]; do i=$((i+1)); sleep 1000 & done 2>/dev/null";
    shell(group, script, false).wait().unwrap();
    let alive = group.processes().unwrap().len();
    assert!((10..=20).contains(&alive), "{alive} processes");
    group.kill_all(PATIENCE).unwrap();
    assert!(!group.populated().unwrap());
    let ended = group.end(begun).unwrap();
    assert!(ended.pids_refused > 0, "{ended:?}");
    // The dead count until their parent, which is now the host's init, has taken notice.
    wait_until(|| said(group, &["pids.current"]) == "0\n");
    let (status, ended) = action(group, &limits, "true & wait");
    assert!(status.success());
    assert_eq!(ended.pids_refused, 0);
}

#[test]
fn a_quota_of_cpu_makes_processes_wait() {
    let limits = Limits {
        cpu_milli: Some(100),
        ..Limits::default()
    };
    let Some((_cgroups, mut groups)) = groups(1, &limits) else {
        return;
    };
    let script = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done";
    let before = Instant::now();
    let (status, ended) = action(&mut groups[0], &limits, script);
    let wall = before.elapsed();
    assert!(status.success());
    assert!(ended.throttled > Duration::ZERO, "{ended:?}");
    let cpu = ended.cpu.expect("CPU time");
    let share = (cpu.user + cpu.system).as_secs_f64() / wall.as_secs_f64();
    assert!(share < 0.3, "{share} of a processor");
    let (_, ended) = action(&mut groups[0], &Limits::default(), "exec true");
    assert_eq!(ended.throttled, Duration::ZERO);
}

#[test]
fn cpu_time_of_what_nobody_waits_for_is_counted() {
    let Some((_cgroups, mut groups)) = groups(1, &Limits::default()) else {
        return;
    };
    let group = &mut groups[0];
    let burn = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
    let mark = tempfile::NamedTempFile::new().unwrap();
    if is_root() {
        std::os::unix::fs::chown(mark.path(), Some(USER), Some(USER)).unwrap();
    }
    let path = mark.path().display();
    // The parent has ended before the child says that it has burnt what it burns.
    let script = format!("( {burn}; echo done >{path}; sleep 1000 ) & exit 0");
    let begun = group.begin(&Limits::default()).unwrap();
    shell(group, &script, false).wait().unwrap();
    wait_until(|| mark.path().metadata().unwrap().len() > 0);
    group.kill_all(PATIENCE).unwrap();
    let ended = group.end(begun).unwrap();
    let cpu = ended.cpu.expect("CPU time");
    assert!(cpu.user > Duration::from_millis(50), "{ended:?}");
    let (_, ended) = action(group, &Limits::default(), "exec true");
    assert!(
        ended.cpu.unwrap().user < cpu.user / 2,
        "{ended:?} after {cpu:?}"
    );
}

#[test]
fn a_user_of_a_namespace_of_its_own_joins() {
    let Some((_cgroups, mut groups)) = groups(1, &Limits::default()) else {
        return;
    };
    let group = &mut groups[0];
    let begun = group.begin(&Limits::default()).unwrap();
    let mut child = shell(group, "exec sleep 1000", true);
    assert_eq!(group.processes().unwrap(), [child.id() as i32]);
    group.kill_all(PATIENCE).unwrap();
    assert_eq!(end_of(&mut child).signal(), Some(libc::SIGKILL));
    group.end(begun).unwrap();
}

#[test]
fn daemons_that_ignore_signals_are_killed() {
    let Some((_cgroups, mut groups)) = groups(1, &Limits::default()) else {
        return;
    };
    let group = &mut groups[0];
    let begun = group.begin(&Limits::default()).unwrap();
    let script =
        "trap '' TERM HUP; i=0; while [ $i -lt 60 ]; do i=$((i+1)); (setsid sleep 1000 &); done";
    shell(group, script, false).wait().unwrap();
    assert!(group.populated().unwrap());
    group.kill_all(PATIENCE).unwrap();
    assert!(!group.populated().unwrap());
    assert!(group.processes().unwrap().is_empty());
    group.end(begun).unwrap();
}

#[test]
fn what_a_dead_daemon_left_is_swept_and_a_living_ones_is_not() {
    let Some((living, living_groups)) = groups(2, &Limits::default()) else {
        return;
    };
    // A directory that nobody has locked is one whose daemon is dead, even if its number lives.
    let pid = std::process::id();
    let left: Vec<PathBuf> = dirs(&living_groups[0])
        .iter()
        .map(|dir| {
            let place = dir.parent().unwrap().parent().unwrap();
            place.join(format!("boxwright-{pid}-left"))
        })
        .collect();
    let mut survivor = Command::new("sleep").arg("1000").spawn().unwrap();
    for dir in &left {
        fs::create_dir_all(dir.join("slot-0/deeper")).unwrap();
        fs::write(
            dir.join("slot-0/deeper/cgroup.procs"),
            survivor.id().to_string(),
        )
        .unwrap();
    }
    drop(groups(1, &Limits::default()));
    assert_eq!(end_of(&mut survivor).signal(), Some(libc::SIGKILL));
    for dir in &left {
        assert!(!dir.exists(), "{}", dir.display());
    }
    for dir in living_groups.iter().flat_map(dirs) {
        assert!(dir.exists(), "{}", dir.display());
    }
    drop((living, living_groups));
}

#[test]
fn nothing_is_left_when_the_daemon_ends() {
    let Some((cgroups, mut groups)) = groups(3, &Limits::default()) else {
        return;
    };
    let mut child = shell(&groups[1], "exec sleep 1000", false);
    let dirs: Vec<PathBuf> = groups.iter().flat_map(dirs).collect();
    // One after the other: the others stay.
    drop(groups.remove(0));
    assert_eq!(
        dirs.iter().filter(|dir| dir.exists()).count(),
        dirs.len() / 3 * 2
    );
    drop((groups, cgroups));
    assert_eq!(end_of(&mut child).signal(), Some(libc::SIGKILL));
    for dir in dirs {
        assert!(!dir.parent().unwrap().exists(), "{}", dir.display());
    }
}

#[test]
fn without_groups_every_limit_is_named() {
    let cgroups = Cgroups::open(0);
    let all = Limits {
        memory: Some(MIB),
        cpu_milli: Some(1),
        pids: Some(1),
        ..Limits::default()
    };
    assert_eq!(cgroups.unenforced(&Limits::default()), [""; 0]);
    let missing = cgroups.unenforced(&all);
    for (at, name) in ["memory", "cpus", "pids"].iter().enumerate() {
        assert!(missing[at].starts_with(name), "{missing:?}");
    }
}

/// How a process ends that should end soon.
fn end_of(child: &mut Child) -> ExitStatus {
    let mut status = None;
    wait_until(|| {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "it did not happen in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
