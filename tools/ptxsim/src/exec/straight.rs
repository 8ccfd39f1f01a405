//! Straight-line code: arithmetic, comparisons and selections, which touch nothing but registers. Runs of such operations
//! are executed in one loop, compiled for the widest vectors of the machine.

use pulp::Arch;

use super::warp::RegFile;
use crate::counters::Counters;
use crate::program::Program;
use crate::program::op::{Combine, Comparison, NONE, Op, PredOp};
use crate::scalar::lanes::{blend32, blend64};

/// Where a run of straight-line code starts, and where it must stop.
pub(super) struct Run {
    /// First operation; after the run, the first one that was not executed.
    pub pc: u32,
    /// Lanes of the group.
    pub mask: u32,
    /// Instructions that it may execute; after the run, how many are left.
    pub left: u32,
    /// Stop at the start of a basic block: another group may be due.
    pub in_block: bool,
}

/// Executes operations from `run.pc` on, as long as they are straight-line code.
pub(super) fn run(arch: Arch, program: &Program, regs: &mut RegFile, counters: &mut Counters, run: &mut Run) {
    vector!('w, arch;
        arch: Arch = arch, program: &'w Program = program, regs: &'w mut RegFile = regs,
        counters: &'w mut Counters = counters, run: &'w mut Run = run
        => () {
            while run.left > 0 {
                let instr = &program.code[run.pc as usize];
                if !instr.straight {
                    return;
                }
                let mut active = run.mask;
                if instr.guard != NONE {
                    let predicate = regs.predicates[instr.guard as usize];
                    active &= if instr.negated { !predicate } else { predicate };
                }
                counters.instruction(run.pc, active);
                if active != 0 {
                    simple(arch, program, regs, &instr.op, active);
                }
                run.left -= 1;
                run.pc += 1;
                if run.in_block && program.leader[run.pc as usize] {
                    return;
                }
            }
        }
    )
}

/// Executes one straight-line operation for the active lanes.
#[inline(always)]
pub(super) fn simple(arch: Arch, program: &Program, regs: &mut RegFile, op: &Op, active: u32) {
    let RegFile { narrow, wide, scratch, scratch64, .. } = regs;
    match op {
        Op::Nop => {}
        Op::A1(f, d, a) => {
            f(arch, program.narrow(narrow, *a), scratch);
            blend32(arch, &mut narrow[*d as usize], scratch, active);
        }
        Op::A2(f, d, a, b) => {
            f(arch, program.narrow(narrow, *a), program.narrow(narrow, *b), scratch);
            blend32(arch, &mut narrow[*d as usize], scratch, active);
        }
        Op::A3(f, d, a, b, c) => {
            f(arch, program.narrow(narrow, *a), program.narrow(narrow, *b), program.narrow(narrow, *c), scratch);
            blend32(arch, &mut narrow[*d as usize], scratch, active);
        }
        Op::D1(f, d, a) => {
            f(arch, program.wide(wide, *a), scratch64);
            blend64(arch, &mut wide[*d as usize], scratch64, active);
        }
        Op::D2(f, d, a, b) => {
            f(arch, program.wide(wide, *a), program.wide(wide, *b), scratch64);
            blend64(arch, &mut wide[*d as usize], scratch64, active);
        }
        Op::D3(f, d, a, b, c) => {
            f(arch, program.wide(wide, *a), program.wide(wide, *b), program.wide(wide, *c), scratch64);
            blend64(arch, &mut wide[*d as usize], scratch64, active);
        }
        Op::Shift64(f, d, a, b) => {
            f(arch, program.wide(wide, *a), program.narrow(narrow, *b), scratch64);
            blend64(arch, &mut wide[*d as usize], scratch64, active);
        }
        Op::Widen1(f, d, a) => {
            f(arch, program.narrow(narrow, *a), scratch64);
            blend64(arch, &mut wide[*d as usize], scratch64, active);
        }
        Op::Widen2(f, d, a, b) => {
            f(arch, program.narrow(narrow, *a), program.narrow(narrow, *b), scratch64);
            blend64(arch, &mut wide[*d as usize], scratch64, active);
        }
        Op::Widen3(f, d, a, b, c) => {
            f(arch, program.narrow(narrow, *a), program.narrow(narrow, *b), program.wide(wide, *c), scratch64);
            blend64(arch, &mut wide[*d as usize], scratch64, active);
        }
        Op::Narrow1(f, d, a) => {
            f(arch, program.wide(wide, *a), scratch);
            blend32(arch, &mut narrow[*d as usize], scratch, active);
        }
        Op::Predicate(op, d, a, b) => {
            let (a, b) = (program.predicate(regs, *a), program.predicate(regs, *b));
            write_predicate(regs, *d, logic(*op, a, b), active);
        }
        Op::Select32(d, a, b, p) => {
            let mask = program.predicate(regs, *p);
            let RegFile { narrow, scratch, .. } = regs;
            *scratch = *program.narrow(narrow, *b);
            blend32(arch, scratch, program.narrow(narrow, *a), mask);
            blend32(arch, &mut narrow[*d as usize], scratch, active);
        }
        Op::Select64(d, a, b, p) => {
            let mask = program.predicate(regs, *p);
            let RegFile { wide, scratch64, .. } = regs;
            *scratch64 = *program.wide(wide, *b);
            blend64(arch, scratch64, program.wide(wide, *a), mask);
            blend64(arch, &mut wide[*d as usize], scratch64, active);
        }
        Op::SetPredicate(set) => {
            let (p, q) = compare(arch, program, regs, &set.comparison, set.combine);
            write_predicate(regs, set.p, p, active);
            write_predicate(regs, set.q, q, active);
        }
        _ => {}
    }
}

/// Mask of a comparison, and of its second half for pairs (else the opposite).
pub(super) fn compare(
    arch: Arch,
    program: &Program,
    regs: &RegFile,
    comparison: &Comparison,
    combine: Option<Combine>,
) -> (u32, u32) {
    let (first, second) = match comparison {
        Comparison::Narrow(f, a, b) => {
            let first = f(arch, program.source32(regs, *a), program.source32(regs, *b));
            (first, !first)
        }
        Comparison::Wide(f, a, b) => {
            let first = f(arch, program.source64(regs, *a), program.source64(regs, *b));
            (first, !first)
        }
        Comparison::Pair(lower, upper, a, b) => {
            let (a, b) = (program.source32(regs, *a), program.source32(regs, *b));
            (lower(arch, a, b), upper(arch, a, b))
        }
    };
    match combine {
        None => (first, second),
        Some(Combine { op, with }) => {
            let with = program.predicate(regs, with);
            (logic(op, first, with), logic(op, second, with))
        }
    }
}

/// Writes the active lanes of a predicate; [`NONE`] takes nothing.
#[inline(always)]
pub(super) fn write_predicate(regs: &mut RegFile, slot: u16, value: u32, active: u32) {
    if slot != NONE {
        let old = &mut regs.predicates[slot as usize];
        *old = *old & !active | value & active;
    }
}

#[inline(always)]
fn logic(op: PredOp, a: u32, b: u32) -> u32 {
    match op {
        PredOp::Mov => a,
        PredOp::Not => !a,
        PredOp::And => a & b,
        PredOp::Or => a | b,
        PredOp::Xor => a ^ b,
    }
}
