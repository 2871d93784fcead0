//! A policy: an ordered list of rules, of which the first that fits a call decides, and what holds where none fits.
//!
//! [`Policy::verdict`] says this in the plainest way. The compiled program must agree with it for every call, and tests see to that.

use super::constants::errno;
use super::syscalls::Arch;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The kernel does it.
    Allow,
    /// The kernel does not; the caller gets this error.
    Errno(u16),
    /// The process is killed with SIGSYS.
    Kill,
}

impl Action {
    /// What calls get that a newer kernel than our table knows, and those of the x32 kind: as on a kernel without them.
    pub const UNKNOWN: Action = Action::Errno(38);

    /// Reads `allow`, `kill` or an error's name.
    pub fn read(text: &str) -> Option<Action> {
        match text {
            "allow" => Some(Action::Allow),
            "kill" => Some(Action::Kill),
            _ => errno(text).map(Action::Errno),
        }
    }

    /// `SECCOMP_RET_*`.
    pub fn code(self) -> u32 {
        match self {
            Action::Allow => 0x7fff_0000,
            Action::Errno(number) => 0x0005_0000 | u32::from(number),
            Action::Kill => 0x8000_0000,
        }
    }
}

/// How much of an argument the kernel looks at. A filter that looks at more can be passed by with rubbish in the upper half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// The lower 32 bits: `int` and `unsigned int`.
    Int,
    /// All 64: `long`, `size_t`, pointers.
    Long,
}

impl Width {
    /// The part of the argument that counts.
    pub fn cut(self, value: u64) -> u64 {
        match self {
            Width::Int => value & 0xffff_ffff,
            Width::Long => value,
        }
    }
}

/// A question to one argument.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Check {
    /// Is it, with the mask laid over, one of these?
    In {
        /// The bits that count.
        mask: u64,
        /// All within the mask.
        values: Vec<u64>,
    },
    /// Is it, with the mask laid over, none of these?
    NotIn {
        /// The bits that count.
        mask: u64,
        /// All within the mask.
        values: Vec<u64>,
    },
    /// Is any of these bits set?
    AnyBit(u64),
}

/// One condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Test {
    /// Which argument, 0 to 5.
    pub argument: u8,
    /// How much of it.
    pub width: Width,
    /// What is asked.
    pub check: Check,
}

impl Test {
    fn holds(&self, arguments: &[u64; 6]) -> bool {
        let value = self.width.cut(arguments[usize::from(self.argument)]);
        match &self.check {
            Check::In { mask, values } => values.contains(&(value & mask)),
            Check::NotIn { mask, values } => !values.contains(&(value & mask)),
            Check::AnyBit(bits) => value & bits != 0,
        }
    }
}

/// What becomes of some calls if all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The calls' names.
    pub calls: Vec<&'static str>,
    /// All must hold; none means always.
    pub when: Vec<Test>,
    /// What then.
    pub action: Action,
}

/// All that is said of system calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What becomes of a known call that no rule fits.
    pub default: Action,
    /// Calls of this other kind are judged by the same rules; of any further kind, they kill.
    pub compat: Option<Arch>,
    /// The first that fits decides.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// What becomes of a call with these numbers in a process on a `machine`.
    pub fn verdict(&self, machine: Arch, audit: u32, number: u32, arguments: &[u64; 6]) -> Action {
        let mut kinds = self.kinds(machine);
        let Some(arch) = kinds.find(|arch| arch.audit() == audit) else {
            return Action::Kill;
        };
        let Some(name) = arch.name(number) else {
            return Action::UNKNOWN;
        };
        let fits = |rule: &&Rule| {
            rule.calls.contains(&name) && rule.when.iter().all(|test| test.holds(arguments))
        };
        let rule = self.rules.iter().find(fits);
        rule.map_or(self.default, |rule| rule.action)
    }

    /// The kinds of call that are judged at all on a `machine`, its own first.
    pub fn kinds(&self, machine: Arch) -> impl Iterator<Item = Arch> {
        let compat = self.compat.filter(|&other| machine.answers(other));
        std::iter::once(machine).chain(compat)
    }
}
