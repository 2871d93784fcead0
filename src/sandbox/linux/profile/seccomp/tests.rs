//! Programs say what policies say, whoever asks.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::machine::{self, Raw};
use super::*;
use crate::sandbox::linux::profile::Profiles;

pub(super) const MACHINES: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];
pub(super) const EPERM: Action = Action::Errno(1);

fn raw(program: &[Instruction]) -> Vec<Raw> {
    program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
}

pub(super) fn compiled(policy: &Policy, machine: Arch) -> Vec<Raw> {
    let program = raw(&compile(policy, machine).expect("it fits"));
    machine::check(&program);
    program
}

pub(super) fn built_in() -> Vec<(String, Policy)> {
    let profiles = Profiles::load(None).expect("the built-in profiles are right");
    let policy = |name: &str| (name.to_owned(), profiles.get(name).unwrap().policy.clone());
    profiles.names().map(policy).collect()
}

/// Whatever a condition of this rule could turn on, its neighbours, and the same with rubbish in the upper half.
fn interesting(rule: &Rule) -> BTreeSet<u64> {
    let mut values = BTreeSet::from([0, 1, u64::MAX, 0xffff_ffff, 1 << 32, 1 << 63]);
    for test in &rule.when {
        match &test.check {
            Check::In { mask, values: list } | Check::NotIn { mask, values: list } => {
                for &value in list {
                    values.extend([
                        value,
                        value.wrapping_add(1),
                        value | !mask,
                        value ^ (1 << 40),
                    ]);
                }
            }
            Check::AnyBit(bits) => {
                let single = (0..64).map(|bit| 1 << bit).filter(|bit| bits & bit != 0);
                values.extend(single);
                values.extend([*bits, !bits, bits << 32]);
            }
        }
    }
    values
}

/// Arguments for a call: one of nothing in particular if no rule asks, else every pair of what is interesting.
pub(super) fn arguments(policy: &Policy, name: Option<&str>) -> Vec<[u64; 6]> {
    let mut all = vec![[0; 6], [u64::MAX; 6], [1, 2, 3, 4, 5, 6]];
    let asks = |rule: &&Rule| name.is_some_and(|name| rule.calls.contains(&name));
    for rule in policy.rules.iter().filter(asks) {
        let values = interesting(rule);
        for first in &rule.when {
            for second in &rule.when {
                for &one in &values {
                    for &other in &values {
                        let mut arguments = [7; 6];
                        arguments[usize::from(first.argument)] = one;
                        arguments[usize::from(second.argument)] = other;
                        all.push(arguments);
                    }
                }
            }
        }
    }
    all
}

fn numbers() -> impl Iterator<Item = u32> {
    let far = [0x3fff_ffff, 0x7fff_ffff, 0x8000_0000, u32::MAX];
    (0..600).chain(0x4000_0000..0x4000_0258).chain(far)
}

fn assert_same(name: &str, policy: &Policy, machine: Arch) {
    let program = compiled(policy, machine);
    for arch in [Arch::X86_64, Arch::Aarch64, Arch::I386] {
        for number in numbers() {
            for arguments in arguments(policy, arch.name(number)) {
                let data = machine::data(number, arch.audit(), &arguments);
                let verdict = policy.verdict(machine, arch.audit(), number, &arguments);
                let (result, _) = machine::run(&program, &data);
                assert_eq!(
                    result,
                    verdict.code(),
                    "{name} on {machine:?}: {arch:?} {number} {arguments:x?}"
                );
            }
        }
    }
}

#[test]
fn every_built_in_program_says_what_its_policy_says() {
    for (name, policy) in built_in() {
        for machine in MACHINES {
            assert_same(&name, &policy, machine);
        }
    }
}

#[test]
fn a_built_in_program_is_short_shallow_and_always_the_same() {
    for (name, policy) in built_in() {
        for machine in MACHINES {
            let program = compiled(&policy, machine);
            assert!(
                program.len() < 1024,
                "{name} has {} instructions",
                program.len()
            );
            assert_eq!(program, compiled(&policy, machine));
            let steps = |&number: &u32| {
                let data = machine::data(number, machine.audit(), &[0; 6]);
                machine::run(&program, &data).1
            };
            let deepest = machine.calls().keys().map(steps).max();
            assert!(deepest < Some(24), "{name} takes {deepest:?} steps");
        }
    }
}

#[test]
fn another_kind_of_call_kills_unless_the_profile_takes_it() {
    let (write, exit) = (4, 1);
    for (name, policy) in built_in() {
        let programs = MACHINES.map(|machine| compiled(&policy, machine));
        let verdict = |machine: Arch, arch: Arch, number| {
            let data = machine::data(number, arch.audit(), &[0; 6]);
            machine::run(&programs[machine as usize], &data).0
        };
        let i386 = match name.as_str() {
            "compat32" => Action::Allow,
            _ => Action::Kill,
        };
        for number in [write, exit] {
            assert_eq!(
                verdict(Arch::X86_64, Arch::I386, number),
                i386.code(),
                "{name}"
            );
            assert_eq!(
                verdict(Arch::X86_64, Arch::Aarch64, number),
                Action::Kill.code()
            );
            assert_eq!(
                verdict(Arch::Aarch64, Arch::I386, number),
                Action::Kill.code()
            );
            assert_eq!(
                verdict(Arch::Aarch64, Arch::X86_64, number),
                Action::Kill.code()
            );
        }
        for number in 0..600 {
            let x32 = verdict(Arch::X86_64, Arch::X86_64, 0x4000_0000 | number);
            assert_eq!(x32, Action::UNKNOWN.code(), "{name} {number}");
        }
    }
}

/// What the built-in profiles are for, call by call, as the threats have it.
#[test]
fn what_is_refused_is_refused_and_builds_have_what_they_need() {
    let profiles: BTreeMap<String, Policy> = built_in().into_iter().collect();
    let none = [0; 6];
    let (vsock, netlink_audit, raw) = (
        [40, 1, 0, 0, 0, 0],
        [16, 3, 9, 0, 0, 0],
        [17, 3, 0, 0, 0, 0],
    );
    let (tiocsti, hidden) = ([0, 0x5412, 0, 0, 0, 0], [0, 0xdead_0000_5412, 0, 0, 0, 0]);
    let (enosys, family) = (Action::Errno(38), Action::Errno(97));
    let refused = [
        ("mount", none, EPERM),
        ("umount2", none, EPERM),
        ("pivot_root", none, EPERM),
        ("chroot", none, EPERM),
        ("fsopen", none, EPERM),
        ("open_tree", none, EPERM),
        ("move_mount", none, EPERM),
        ("setns", none, EPERM),
        ("unshare", [0x1000_0000, 0, 0, 0, 0, 0], EPERM),
        ("clone", [0x1000_0011, 0, 0, 0, 0, 0], EPERM),
        ("unshare", [0x80, 0, 0, 0, 0, 0], EPERM),
        ("clone3", none, enosys),
        ("keyctl", none, EPERM),
        ("add_key", none, EPERM),
        ("request_key", none, EPERM),
        ("io_uring_setup", none, enosys),
        ("bpf", none, EPERM),
        ("perf_event_open", none, EPERM),
        ("userfaultfd", none, EPERM),
        ("kexec_load", none, EPERM),
        ("finit_module", none, EPERM),
        ("fanotify_init", none, EPERM),
        ("open_by_handle_at", none, EPERM),
        ("name_to_handle_at", none, EPERM),
        ("move_pages", none, EPERM),
        ("clock_settime", none, EPERM),
        ("sched_setscheduler", [0, 1, 0, 0, 0, 0], EPERM),
        ("sched_setscheduler", [0, 0x4000_0002, 0, 0, 0, 0], EPERM),
        ("sched_setattr", none, EPERM),
        ("socket", vsock, family),
        ("socket", netlink_audit, family),
        ("socket", raw, family),
        ("socketpair", vsock, family),
        ("ioctl", tiocsti, EPERM),
        ("ioctl", hidden, EPERM),
        ("mknodat", [0, 0, 0o020_644, 0, 0, 0], EPERM),
        ("reboot", none, EPERM),
        ("syslog", none, EPERM),
    ];
    let allowed = [
        ("clone", [0x0035_0f00, 0, 0, 0, 0, 0]),
        ("unshare", [0x200, 0, 0, 0, 0, 0]),
        ("execve", none),
        ("openat", none),
        ("socket", [1, 1, 0, 0, 0, 0]),
        ("socket", [2, 1, 6, 0, 0, 0]),
        ("socket", [10, 2, 17, 0, 0, 0]),
        ("socket", [16, 3, 0, 0, 0, 0]),
        ("socketpair", [1, 1, 0, 0, 0, 0]),
        ("ioctl", [0, 0x5401, 0, 0, 0, 0]),
        ("mknodat", [0, 0, 0o010_644, 0, 0, 0]),
        ("personality", [0x0004_0000, 0, 0, 0, 0, 0]),
        ("mbind", none),
        ("personality", [0xffff_ffff, 0, 0, 0, 0, 0]),
        ("sched_setscheduler", [0, 3, 0, 0, 0, 0]),
        ("set_mempolicy", none),
        ("seccomp", none),
        ("landlock_restrict_self", none),
        ("memfd_create", none),
    ];
    for (name, policy) in &profiles {
        for machine in MACHINES {
            let verdict = |call: &str, arguments: &[u64; 6]| {
                let number = machine.number(call).expect("both machines have it");
                policy.verdict(machine, machine.audit(), number, arguments)
            };
            for (call, arguments, expected) in &refused {
                assert_eq!(
                    verdict(call, arguments),
                    *expected,
                    "{name}: {call} {arguments:x?}"
                );
            }
            for (call, arguments) in &allowed {
                if name == "strict" && *call == "unshare" {
                    continue;
                }
                assert_eq!(
                    verdict(call, arguments),
                    Action::Allow,
                    "{name}: {call} {arguments:x?}"
                );
            }
            let tracing = if name == "debug" {
                Action::Allow
            } else {
                EPERM
            };
            assert_eq!(verdict("ptrace", &none), tracing, "{name}");
            assert_eq!(verdict("process_vm_readv", &none), tracing, "{name}");
            assert_eq!(
                verdict("personality", &[0x0040_0000, 0, 0, 0, 0, 0]),
                tracing,
                "{name}"
            );
            let unnamed = if name == "strict" {
                enosys
            } else {
                Action::Allow
            };
            assert_eq!(verdict("memfd_secret", &none), unnamed, "{name}");
            assert_eq!(verdict("io_setup", &none), enosys, "{name}");
        }
    }
    let modify_ldt = Arch::X86_64.number("modify_ldt").unwrap();
    for policy in profiles.values() {
        let verdict = policy.verdict(Arch::X86_64, Arch::X86_64.audit(), modify_ldt, &none);
        assert_eq!(verdict, EPERM);
    }
    let compat = &profiles["compat32"];
    let i386 = |call: &str, arguments: &[u64; 6]| {
        let number = Arch::I386.number(call).unwrap();
        compat.verdict(Arch::X86_64, Arch::I386.audit(), number, arguments)
    };
    assert_eq!(i386("mount", &none), EPERM);
    assert_eq!(i386("socketcall", &[1, 0, 0, 0, 0, 0]), enosys);
    assert_eq!(i386("socketcall", &[3, 0, 0, 0, 0, 0]), Action::Allow);
    assert_eq!(i386("socket", &vsock), family);
    assert_eq!(i386("ioctl", &tiocsti), EPERM);
    assert_eq!(i386("clone", &[0x1000_0011, 0, 0, 0, 0, 0]), EPERM);
}

fn wide_rule(call: &'static str, seed: u64) -> Rule {
    let values = (0..64).map(|n| seed * 1000 + 3 * n).collect();
    Rule {
        calls: vec![call],
        when: vec![Test {
            argument: (seed % 6) as u8,
            width: Width::Long,
            check: Check::In {
                mask: u64::MAX,
                values,
            },
        }],
        action: Action::Errno(22),
    }
}

fn wide_policy(calls: usize) -> Policy {
    let names = Arch::X86_64.calls().values().take(calls);
    let rules = names
        .enumerate()
        .map(|(n, call)| wide_rule(call, n as u64 + 1));
    Policy {
        default: Action::Allow,
        compat: Some(Arch::I386),
        rules: rules.collect(),
    }
}

#[test]
fn a_program_whose_jumps_are_far_still_says_what_its_policy_says() {
    let policy = wide_policy(7);
    let far = compiled(&policy, Arch::X86_64)
        .iter()
        .filter(|i| i.0 == 0x05)
        .count();
    assert!(far > 3, "{far} far jumps");
    assert_same("wide", &policy, Arch::X86_64);
}

#[test]
fn a_program_that_the_kernel_would_not_take_is_refused() {
    let error = compile(&wide_policy(40), Arch::X86_64).unwrap_err();
    assert!(matches!(error, CompileError::TooLong(length) if length > MAX_INSTRUCTIONS));
}

fn any_value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..8_u64,
        any::<u64>(),
        any::<u32>().prop_map(u64::from),
        (0..64_u32).prop_map(|bit| 1 << bit)
    ]
}

fn any_test() -> impl Strategy<Value = Test> {
    let mask = prop_oneof![Just(u64::MAX), Just(7), any_value()];
    let list = proptest::collection::vec(any_value(), 1..20);
    (0..6_u8, any::<bool>(), 0..3, mask, list).prop_map(|(argument, int, check, mask, values)| {
        let width = if int { Width::Int } else { Width::Long };
        let mask = width.cut(mask);
        let values: Vec<u64> = values.iter().map(|value| value & mask).collect();
        let check = match check {
            0 => Check::In { mask, values },
            1 => Check::NotIn { mask, values },
            _ => Check::AnyBit(mask),
        };
        Test {
            argument,
            width,
            check,
        }
    })
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Allow),
        Just(Action::Kill),
        (1..100_u16).prop_map(Action::Errno)
    ]
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let names: Vec<&'static str> = syscalls::names()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let calls = proptest::collection::vec(proptest::sample::select(names), 1..12);
    let rule = (
        calls,
        proptest::collection::vec(any_test(), 0..4),
        any_action(),
    )
        .prop_map(|(calls, when, action)| Rule {
            calls,
            when,
            action,
        });
    (
        any_action(),
        any::<bool>(),
        proptest::collection::vec(rule, 0..24),
    )
        .prop_map(|(default, compat, rules)| Policy {
            default,
            compat: compat.then_some(Arch::I386),
            rules,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_program_says_what_its_policy_says(
        policy in any_policy(),
        machine in proptest::sample::select(MACHINES.to_vec()),
        others in proptest::collection::vec(proptest::array::uniform6(any_value()), 4),
    ) {
        let Ok(program) = compile(&policy, machine) else { return Ok(()) };
        let program = raw(&program);
        machine::check(&program);
        for arch in [Arch::X86_64, Arch::Aarch64, Arch::I386] {
            for number in (0..480).chain([0x4000_0000, u32::MAX]) {
                let mut all = others.clone();
                let name = arch.name(number);
                for rule in policy.rules.iter().filter(|rule| name.is_some_and(|name| rule.calls.contains(&name))) {
                    // Arguments that meet, or just miss, the rule.
                    for (n, value) in interesting(rule).into_iter().enumerate() {
                        let mut arguments = others[n % others.len()];
                        for test in &rule.when {
                            arguments[usize::from(test.argument)] = value;
                        }
                        all.push(arguments);
                    }
                }
                for arguments in all {
                    let data = machine::data(number, arch.audit(), &arguments);
                    let verdict = policy.verdict(machine, arch.audit(), number, &arguments);
                    prop_assert_eq!(machine::run(&program, &data).0, verdict.code());
                }
            }
        }
    }
}
