//! The names and numbers of system calls. A number that stands in no row here is unknown to every policy.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

/// Whose numbers and whose calling convention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit x86, which a 64-bit kernel answers too (`int 0x80`).
    I386,
}

impl Arch {
    /// What this program was built for, if there are filters for it.
    pub fn this() -> Option<Arch> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Arch::X86_64),
            "aarch64" => Some(Arch::Aarch64),
            _ => None,
        }
    }

    /// `AUDIT_ARCH_*`, as the kernel tells a filter.
    pub fn audit(self) -> u32 {
        match self {
            Arch::X86_64 => 0xc000_003e,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::I386 => 0x4000_0003,
        }
    }

    /// Whether a machine of this kind answers calls of `other` too.
    pub fn answers(self, other: Arch) -> bool {
        self == Arch::X86_64 && other == Arch::I386
    }

    /// Every call there is, by number.
    pub fn calls(self) -> &'static BTreeMap<u32, &'static str> {
        &TABLES.by_number[self as usize]
    }

    /// The call of this number.
    pub fn name(self, number: u32) -> Option<&'static str> {
        self.calls().get(&number).copied()
    }

    /// The number of this call, if the machine has it.
    pub fn number(self, name: &str) -> Option<u32> {
        TABLES.by_name.get(name)?[self as usize]
    }
}

/// The call of this name as the table spells it; `None` if no machine has it.
pub fn known(name: &str) -> Option<&'static str> {
    TABLES.by_name.get_key_value(name).map(|(name, _)| *name)
}

/// Every name.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLES.by_name.keys().copied()
}

#[derive(Default)]
struct Tables {
    by_name: HashMap<&'static str, [Option<u32>; 3]>,
    by_number: [BTreeMap<u32, &'static str>; 3],
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let mut tables = Tables::default();
    let rows = include_str!("syscalls.tsv").lines();
    for row in rows.filter(|row| !row.starts_with('#')) {
        let mut columns = row.split('\t');
        let name = columns.next().unwrap_or_default();
        let mut numbers = [None; 3];
        for (arch, column) in columns.enumerate() {
            numbers[arch] = column.parse().ok();
            if let Some(number) = numbers[arch] {
                tables.by_number[arch].insert(number, name);
            }
        }
        tables.by_name.insert(name, numbers);
    }
    tables
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_whole_and_no_number_stands_twice() {
        let (mut rows, mut numbers) = (0, [0; 3]);
        for row in include_str!("syscalls.tsv").lines().skip(1) {
            let columns: Vec<&str> = row.split('\t').collect();
            assert_eq!(columns.len(), 4, "{row}");
            for (arch, column) in columns[1..].iter().enumerate() {
                assert!(*column == "-" || column.parse::<u32>().is_ok(), "{row}");
                numbers[arch] += usize::from(*column != "-");
            }
            rows += 1;
        }
        assert_eq!(names().count(), rows);
        for arch in [Arch::X86_64, Arch::Aarch64, Arch::I386] {
            assert_eq!(arch.calls().len(), numbers[arch as usize]);
        }
    }

    #[test]
    fn the_numbers_are_those_of_the_c_library() {
        let this = Arch::this().expect("tests run where there are filters");
        macro_rules! same {
            ($($name:ident $number:ident),* $(,)?) => { $(
                assert_eq!(this.number(stringify!($name)).map(i64::from), Some(libc::$number as i64), stringify!($name));
            )* };
        }
        same!(
            read SYS_read, openat SYS_openat, clone SYS_clone, clone3 SYS_clone3, unshare SYS_unshare, setns SYS_setns,
            mount SYS_mount, umount2 SYS_umount2, pivot_root SYS_pivot_root, keyctl SYS_keyctl, ptrace SYS_ptrace,
            bpf SYS_bpf, io_uring_setup SYS_io_uring_setup, socket SYS_socket, ioctl SYS_ioctl, personality SYS_personality,
            userfaultfd SYS_userfaultfd, perf_event_open SYS_perf_event_open, open_by_handle_at SYS_open_by_handle_at,
            kexec_load SYS_kexec_load, finit_module SYS_finit_module, clock_settime SYS_clock_settime,
            sched_setscheduler SYS_sched_setscheduler, sched_setattr SYS_sched_setattr, fanotify_init SYS_fanotify_init,
            process_vm_writev SYS_process_vm_writev, pidfd_getfd SYS_pidfd_getfd, openat2 SYS_openat2, mseal SYS_mseal,
            move_mount SYS_move_mount, fsopen SYS_fsopen, mount_setattr SYS_mount_setattr, quotactl_fd SYS_quotactl_fd,
        );
        assert_eq!(Arch::I386.number("socketcall"), Some(102));
        assert_eq!(Arch::I386.number("clone"), Some(120));
        assert_eq!(Arch::Aarch64.number("clone"), Some(220));
    }
}
