//! Where seccompiler can express a policy, its program and ours say the same.

use std::collections::BTreeMap;

use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::machine::{self, Raw};
use super::tests::{EPERM, MACHINES, arguments, built_in, compiled};
use super::*;

/// The same rule in seccompiler's terms: alternatives of conditions. `None` where it has none.
fn theirs(rule: &Rule) -> Option<Vec<SeccompRule>> {
    let mut alternatives: Vec<Vec<SeccompCondition>> = vec![Vec::new()];
    for test in &rule.when {
        let width = match test.width {
            Width::Int => SeccompCmpArgLen::Dword,
            Width::Long => SeccompCmpArgLen::Qword,
        };
        let condition =
            |op, value| SeccompCondition::new(test.argument, width.clone(), op, value).unwrap();
        let choices: Vec<SeccompCondition> = match &test.check {
            Check::In { mask, values } => values
                .iter()
                .map(|&value| condition(SeccompCmpOp::MaskedEq(*mask), value))
                .collect(),
            Check::AnyBit(bits) => (0..64)
                .map(|bit| 1 << bit)
                .filter(|bit| bits & bit != 0)
                .map(|bit| condition(SeccompCmpOp::MaskedEq(bit), bit))
                .collect(),
            Check::NotIn { .. } => return None,
        };
        let with = |choice: &SeccompCondition| {
            let add = |list: &Vec<SeccompCondition>| [list.clone(), vec![choice.clone()]].concat();
            alternatives.iter().map(add).collect::<Vec<_>>()
        };
        alternatives = choices.iter().flat_map(with).collect();
    }
    alternatives
        .into_iter()
        .map(|list| SeccompRule::new(list).ok())
        .collect()
}

/// The refusals with EPERM that seccompiler can express, by both.
pub(super) fn both(policy: &Policy, machine: Arch) -> (Policy, Vec<Raw>) {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut ours = Policy {
        default: Action::Allow,
        compat: None,
        rules: Vec::new(),
    };
    for rule in policy.rules.iter().filter(|rule| rule.action == EPERM) {
        // A rule that is left over when others of its call were looked at first is not theirs to express.
        let first = |call: &&str| {
            policy
                .rules
                .iter()
                .filter(|r| r.calls.contains(call))
                .all(|r| r.action == EPERM)
        };
        let calls: Vec<&'static str> = rule
            .calls
            .iter()
            .copied()
            .filter(|call| first(call))
            .collect();
        if rule.when.is_empty() {
            for call in &calls {
                if let Some(number) = machine.number(call) {
                    rules.insert(number.into(), Vec::new());
                }
            }
        } else if let Some(alternatives) = theirs(rule) {
            for call in &calls {
                if let Some(number) = machine.number(call) {
                    rules
                        .entry(number.into())
                        .or_default()
                        .extend(alternatives.clone());
                }
            }
        } else {
            continue;
        }
        ours.rules.push(Rule {
            calls,
            ..rule.clone()
        });
    }
    assert!(rules.len() > 40);
    let target = match machine {
        Arch::Aarch64 => seccompiler::TargetArch::aarch64,
        _ => seccompiler::TargetArch::x86_64,
    };
    let filter = seccompiler::SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(1),
        target,
    )
    .unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    (
        ours,
        program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect(),
    )
}

#[test]
fn seccompilers_program_of_the_same_refusals_says_the_same() {
    for (name, policy) in built_in() {
        for machine in MACHINES {
            let (policy, theirs) = both(&policy, machine);
            let ours = compiled(&policy, machine);
            for (&number, call) in machine.calls() {
                for arguments in arguments(&policy, Some(call)) {
                    let data = machine::data(number, machine.audit(), &arguments);
                    let (one, other) =
                        (machine::run(&ours, &data).0, machine::run(&theirs, &data).0);
                    assert_eq!(one, other, "{name} on {machine:?}: {call} {arguments:x?}");
                }
            }
        }
    }
}
