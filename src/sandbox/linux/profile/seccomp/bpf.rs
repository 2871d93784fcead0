//! Classic BPF: instructions, and a writer that works from the end of a program to its beginning.
//!
//! All jumps go forward, so whoever writes backwards knows every target before the jump to it. A conditional jump
//! reaches 255 instructions; where that is too short the writer puts an unconditional one, which reaches everywhere, in between.
//! Only instructions are used that the kernel's own evaluation at installation understands
//! (`seccomp_is_const_allow`): with others it would not learn which calls need no filter at all.

use std::collections::HashMap;

const LD_W_ABS: u16 = 0x20;
const JMP_JA: u16 = 0x05;
const JMP_JEQ_K: u16 = 0x15;
const JMP_JGE_K: u16 = 0x35;
const JMP_JSET_K: u16 = 0x45;
const ALU_AND_K: u16 = 0x54;
const RET_K: u16 = 0x06;

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The operation.
    pub code: u16,
    /// Instructions to skip if the condition holds.
    pub jt: u8,
    /// Instructions to skip otherwise.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

impl Instruction {
    /// As it lies in memory.
    pub fn bytes(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.code.to_ne_bytes());
        bytes[2] = self.jt;
        bytes[3] = self.jf;
        bytes[4..].copy_from_slice(&self.k.to_ne_bytes());
        bytes
    }
}

/// A condition on the accumulator.
#[derive(Clone, Copy, Debug)]
pub(super) enum Condition {
    Equal(u32),
    AtLeast(u32),
    AnyBit(u32),
}

/// A place in the program: its distance from the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place(usize);

/// A program, written backwards.
#[derive(Default)]
pub(super) struct Writer {
    reversed: Vec<Instruction>,
    /// The latest place that ends with this value, and the latest jump to a place.
    returns: HashMap<u32, Place>,
    jumps: HashMap<Place, Place>,
}

/// How far a conditional jump reaches.
const REACH: usize = 255;

impl Writer {
    /// How many instructions there are.
    pub(super) fn len(&self) -> usize {
        self.reversed.len()
    }

    /// The program, in order; it begins at the place written last.
    pub(super) fn finish(mut self) -> Vec<Instruction> {
        self.reversed.reverse();
        self.reversed
    }

    /// The filter's result.
    pub(super) fn ret(&mut self, value: u32) -> Place {
        match self.returns.get(&value) {
            Some(&place) if self.skip(place) < REACH => place,
            _ => {
                let place = self.push(RET_K, 0, 0, value);
                self.returns.insert(value, place);
                place
            }
        }
    }

    /// Loads the 32-bit word at `offset` of `struct seccomp_data`, then goes on at `next`.
    pub(super) fn load(&mut self, offset: u32, next: Place) -> Place {
        self.fall(next);
        self.push(LD_W_ABS, 0, 0, offset)
    }

    /// Keeps the bits of `mask`, then goes on at `next`. All bits need no instruction.
    pub(super) fn and(&mut self, mask: u32, next: Place) -> Place {
        if mask == u32::MAX {
            return next;
        }
        self.fall(next);
        self.push(ALU_AND_K, 0, 0, mask)
    }

    /// Goes to `yes` if the condition holds, else to `no`.
    pub(super) fn branch(&mut self, condition: Condition, yes: Place, no: Place) -> Place {
        if yes == no {
            return yes;
        }
        // One instruction may still be written between this and the branch: the one for `yes`.
        let no = self.near(no, 1);
        let yes = self.near(yes, 0);
        let (code, k) = match condition {
            Condition::Equal(k) => (JMP_JEQ_K, k),
            Condition::AtLeast(k) => (JMP_JGE_K, k),
            Condition::AnyBit(k) => (JMP_JSET_K, k),
        };
        let (jt, jf) = (self.skip(yes) as u8, self.skip(no) as u8);
        self.push(code, jt, jf, k)
    }

    /// The instructions between the next one to be written and `place`.
    fn skip(&self, place: Place) -> usize {
        self.len() - 1 - place.0
    }

    /// A place that leads to `place` and that a branch reaches even if `more` instructions come in between.
    fn near(&mut self, place: Place, more: usize) -> Place {
        if self.skip(place) + more <= REACH {
            return place;
        }
        if let Some(&jump) = self.jumps.get(&place)
            && self.skip(jump) + more <= REACH
        {
            return jump;
        }
        let jump = self.jump(place);
        self.jumps.insert(place, jump);
        jump
    }

    /// Makes `next` what follows the instruction that is written next.
    fn fall(&mut self, next: Place) {
        if self.skip(next) != 0 {
            self.jump(next);
        }
    }

    fn jump(&mut self, place: Place) -> Place {
        let skip = self.skip(place) as u32;
        self.push(JMP_JA, 0, 0, skip)
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Place {
        self.reversed.push(Instruction { code, jt, jf, k });
        Place(self.reversed.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine;
    use super::*;

    /// A branch whose targets are `yes` and `no` instructions away.
    fn branch_over(yes: usize, no: usize) -> Vec<machine::Raw> {
        let mut writer = Writer::default();
        let farthest = yes.max(no);
        let places: Vec<Place> = (0..=farthest)
            .map(|at| writer.push(RET_K, 0, 0, (farthest - at) as u32))
            .collect();
        let (yes, no) = (places[farthest - yes], places[farthest - no]);
        let branch = writer.branch(Condition::Equal(7), yes, no);
        writer.load(0, branch);
        let program = writer.finish();
        program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
    }

    #[test]
    fn a_branch_finds_both_targets_however_far_they_are() {
        let distances = [0, 1, 2, 253, 254, 255, 256, 257, 258, 1000];
        for yes in distances {
            for no in distances {
                let program = branch_over(yes, no);
                machine::check(&program);
                let result = |number| machine::run(&program, &machine::data(number, 0, &[0; 6])).0;
                assert_eq!(
                    (result(7), result(8)),
                    (yes as u32, no as u32),
                    "{yes} {no}"
                );
            }
        }
    }
}
