//! From a policy to a program: ranges of call numbers that fare alike, and a balanced search tree over them.
//!
//! The same policy gives the same program, byte by byte.

use std::collections::HashMap;

use super::bpf::{Condition, Instruction, Place, Writer};
use super::policy::{Action, Check, Policy, Rule, Test, Width};
use super::syscalls::Arch;

/// The kernel takes no longer program (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Why there is no program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The kernel would refuse it.
    #[error(
        "the system-call filter has {0} instructions, the kernel takes {MAX_INSTRUCTIONS}; use fewer argument checks"
    )]
    TooLong(usize),
}

/// What becomes of the calls of a range: conditional rules in order, then the rest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Fate<'a> {
    rules: Vec<(&'a [Test], Action)>,
    rest: Action,
}

/// The program for a process on a `machine`.
pub fn compile(policy: &Policy, machine: Arch) -> Result<Vec<Instruction>, CompileError> {
    let mut writer = Writer::default();
    let mut entry = writer.ret(Action::Kill.code());
    let kinds: Vec<Arch> = policy.kinds(machine).collect();
    // Written backwards: the machine's own kind, asked for first, comes last.
    for &arch in kinds.iter().rev() {
        let ranges = ranges(policy, arch);
        let tree = Tree::default().write(&mut writer, &ranges);
        let tree = writer.load(NUMBER, tree);
        entry = writer.branch(Condition::Equal(arch.audit()), tree, entry);
    }
    writer.load(ARCH, entry);
    match writer.len() {
        length if length > MAX_INSTRUCTIONS => Err(CompileError::TooLong(length)),
        _ => Ok(writer.finish()),
    }
}

/// The beginnings of all ranges, in order, the first at 0; a range ends where the next begins, the last at the largest number.
fn ranges(policy: &Policy, arch: Arch) -> Vec<(u32, Fate<'_>)> {
    let mut by_call: HashMap<&str, Vec<&Rule>> = HashMap::new();
    for rule in &policy.rules {
        for call in &rule.calls {
            by_call.entry(call).or_default().push(rule);
        }
    }
    let mut ranges: Vec<(u32, Fate<'_>)> = Vec::new();
    let mut add = |start, fate| {
        if ranges.last().is_none_or(|(_, last)| *last != fate) {
            ranges.push((start, fate));
        }
    };
    let mut next = 0;
    for (&number, call) in arch.calls() {
        if number > next {
            add(next, Fate::always(Action::UNKNOWN));
        }
        add(
            number,
            Fate::of(by_call.get(call).map_or(&[], Vec::as_slice), policy.default),
        );
        next = number + 1;
    }
    add(next, Fate::always(Action::UNKNOWN));
    ranges
}

impl<'a> Fate<'a> {
    fn always(rest: Action) -> Fate<'a> {
        Fate {
            rules: Vec::new(),
            rest,
        }
    }

    /// What these rules, in their order, make of a call.
    fn of(rules: &[&'a Rule], default: Action) -> Fate<'a> {
        let mut fate = Fate::always(default);
        for rule in rules {
            if rule.when.is_empty() {
                fate.rest = rule.action;
                break;
            }
            fate.rules.push((&rule.when, rule.action));
        }
        fate
    }
}

/// Writes search trees; a fate that several ranges share is written once.
#[derive(Default)]
struct Tree<'a> {
    fates: HashMap<&'a Fate<'a>, Place>,
}

impl<'a> Tree<'a> {
    fn write(&mut self, writer: &mut Writer, ranges: &'a [(u32, Fate<'a>)]) -> Place {
        match ranges {
            [(_, fate)] => self.fate(writer, fate),
            _ => {
                let (below, above) = ranges.split_at(ranges.len() / 2);
                let right = self.write(writer, above);
                let left = self.write(writer, below);
                writer.branch(Condition::AtLeast(above[0].0), right, left)
            }
        }
    }

    fn fate(&mut self, writer: &mut Writer, fate: &'a Fate<'a>) -> Place {
        if fate.rules.is_empty() {
            return writer.ret(fate.rest.code());
        }
        if let Some(&place) = self.fates.get(fate) {
            return place;
        }
        let mut place = writer.ret(fate.rest.code());
        for (tests, action) in fate.rules.iter().rev() {
            let otherwise = place;
            place = writer.ret(action.code());
            for test in tests.iter().rev() {
                place = write_test(writer, test, place, otherwise);
            }
        }
        self.fates.insert(fate, place);
        place
    }
}

fn write_test(writer: &mut Writer, test: &Test, yes: Place, no: Place) -> Place {
    let lower = ARGUMENTS + 8 * u32::from(test.argument);
    match &test.check {
        Check::AnyBit(bits) => {
            let branch = writer.branch(Condition::AnyBit(*bits as u32), yes, no);
            let place = writer.load(lower, branch);
            match test.width {
                Width::Int => place,
                Width::Long => {
                    let branch = writer.branch(Condition::AnyBit((*bits >> 32) as u32), yes, place);
                    writer.load(lower + 4, branch)
                }
            }
        }
        Check::In { mask, values } => member(writer, test.width, lower, *mask, values, yes, no),
        Check::NotIn { mask, values } => member(writer, test.width, lower, *mask, values, no, yes),
    }
}

/// Goes to `yes` if the argument is one of `values`.
fn member(
    writer: &mut Writer,
    width: Width,
    lower: u32,
    mask: u64,
    values: &[u64],
    yes: Place,
    no: Place,
) -> Place {
    let mut place = no;
    match width {
        Width::Int => {
            for &value in values.iter().rev() {
                place = writer.branch(Condition::Equal(value as u32), yes, place);
            }
            place = writer.and(mask as u32, place);
            writer.load(lower, place)
        }
        Width::Long => {
            for &value in values.iter().rev() {
                let otherwise = place;
                let branch = writer.branch(Condition::Equal(value as u32), yes, otherwise);
                let masked = writer.and(mask as u32, branch);
                let low = writer.load(lower, masked);
                let branch = writer.branch(Condition::Equal((value >> 32) as u32), low, otherwise);
                let masked = writer.and((mask >> 32) as u32, branch);
                place = writer.load(lower + 4, masked);
            }
            place
        }
    }
}
