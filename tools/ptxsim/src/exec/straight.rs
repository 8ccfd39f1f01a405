//! Straight-line code: arithmetic, comparisons and selections, which touch nothing but registers. Runs of such operations
//! are executed in one loop, compiled for the widest vectors of the machine.

use pulp::Arch;

use super::warp::RegFile;
use crate::counters::Counters;
use crate::program::Program;
use crate::program::decode::Constants;
use crate::program::op::{CONSTANT, Combine, Comparison, NONE, Op, PredOp};
use crate::program::{predicate, row};
use crate::scalar::float;
use crate::scalar::lanes::{blend32, blend64, select32, select64};

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

/// A source, while another row of the file may be written.
///
/// # Safety
/// `first` starts `count` rows that live as long as `constants`, and the one that `source` names is not written meanwhile.
#[inline(always)]
unsafe fn beside<T>(first: *const T, count: usize, constants: &[T], source: u16) -> &T {
    if source & CONSTANT != 0 {
        return &constants[(source & !CONSTANT) as usize];
    }
    assert!((source as usize) < count);
    // SAFETY: reads a row inside the file, which nobody writes meanwhile.
    unsafe { &*first.add(source as usize) }
}

/// Executes one straight-line operation for the active lanes.
pub(super) fn one(arch: Arch, program: &Program, regs: &mut RegFile, op: &Op, active: u32) {
    vector!('w, arch;
        arch: Arch = arch, program: &'w Program = program, regs: &'w mut RegFile = regs, op: &'w Op = op, active: u32 = active
        => () { simple(arch, program, regs, op, active) }
    )
}

/// The same inside code that is compiled for the machine's vectors.
#[inline(always)]
pub(super) fn simple(arch: Arch, program: &Program, regs: &mut RegFile, op: &Op, active: u32) {
    let RegFile { narrow, wide, scratch, scratch64, predicates, .. } = regs;
    let Constants { narrow: constants, wide: constants64, .. } = &program.constants;
    // `put!(file, d, [sources of the same file], |out| ...)` writes a result: straight to its register where all lanes are active
    // and that is none of the sources, else by way of a scratch row from which the active lanes are taken.
    macro_rules! put {
        (narrow, $d:ident, [$($s:ident),*], |$out:ident| $compute:expr) => {
            put!(narrow, constants, scratch, blend32, $d, [$($s),*], |$out| $compute)
        };
        (wide, $d:ident, [$($s:ident),*], |$out:ident| $compute:expr) => {
            put!(wide, constants64, scratch64, blend64, $d, [$($s),*], |$out| $compute)
        };
        ($rows:ident, $constants:ident, $scratch:ident, $blend:ident, $d:ident, [$($s:ident),*], |$out:ident| $compute:expr) => {{
            let d = *$d as usize;
            if active != u32::MAX $(|| *$s == *$d)* {
                {
                    $(let $s = row($rows, $constants, *$s);)*
                    let $out = &mut *$scratch;
                    $compute;
                }
                $blend(arch, &mut $rows[d], $scratch, active);
            } else {
                let (first, count) = ($rows.as_mut_ptr(), $rows.len());
                assert!(d < count);
                // SAFETY: `$rows` is borrowed exclusively; its row `d` is written and is none of the rows that are read.
                unsafe {
                    $(let $s = beside(first, count, $constants, *$s);)*
                    let $out = &mut *first.add(d);
                    $compute;
                }
            }
        }};
    }
    match op {
        Op::Nop => {}
        Op::A1(f, d, a) => put!(narrow, d, [a], |out| f(arch, a, out)),
        Op::A2(f, d, a, b) => put!(narrow, d, [a, b], |out| f(arch, a, b, out)),
        Op::A3(f, d, a, b, c) => put!(narrow, d, [a, b, c], |out| f(arch, a, b, c, out)),
        Op::Fma(d, a, b, c) => put!(narrow, d, [a, b, c], |out| float::fma(a, b, c, out)),
        Op::D1(f, d, a) => put!(wide, d, [a], |out| f(arch, a, out)),
        Op::D2(f, d, a, b) => put!(wide, d, [a, b], |out| f(arch, a, b, out)),
        Op::D3(f, d, a, b, c) => put!(wide, d, [a, b, c], |out| f(arch, a, b, c, out)),
        Op::Shift64(f, d, a, b) => {
            let b = program.narrow(narrow, *b);
            put!(wide, d, [a], |out| f(arch, a, b, out))
        }
        Op::Widen1(f, d, a) => {
            let a = program.narrow(narrow, *a);
            put!(wide, d, [], |out| f(arch, a, out))
        }
        Op::Widen2(f, d, a, b) => {
            let (a, b) = (program.narrow(narrow, *a), program.narrow(narrow, *b));
            put!(wide, d, [], |out| f(arch, a, b, out))
        }
        Op::Widen3(f, d, a, b, c) => {
            let (a, b) = (program.narrow(narrow, *a), program.narrow(narrow, *b));
            put!(wide, d, [c], |out| f(arch, a, b, c, out))
        }
        Op::Narrow1(f, d, a) => {
            let a = program.wide(wide, *a);
            put!(narrow, d, [], |out| f(arch, a, out))
        }
        Op::Select32(d, a, b, p) => {
            let mask = predicate(predicates, *p);
            put!(narrow, d, [a, b], |out| select32(arch, a, b, mask, out))
        }
        Op::Select64(d, a, b, p) => {
            let mask = predicate(predicates, *p);
            put!(wide, d, [a, b], |out| select64(arch, a, b, mask, out))
        }
        Op::Predicate(op, d, a, b) => {
            let (a, b) = (program.predicate(regs, *a), program.predicate(regs, *b));
            write_predicate(regs, *d, logic(*op, a, b), active);
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
