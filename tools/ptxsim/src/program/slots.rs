//! Register colouring: registers whose live ranges do not meet share a slot, so that a warp's file fits a cache.

use super::decode::Uses;
use super::flow::Flow;
use crate::front::ast::{Register, Type};

/// Register files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// 8 to 32 bits, in 32-bit lanes.
    Narrow,
    /// 64 bits.
    Wide,
    /// A mask.
    Predicate,
}

impl Class {
    /// The file of a type.
    pub fn of(ty: Type) -> Class {
        match ty {
            Type::Pred => Class::Predicate,
            ty if ty.bytes() >= 8 => Class::Wide,
            _ => Class::Narrow,
        }
    }
}

/// Slot of every register of a function.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    /// By register; meaningless for registers that nothing uses.
    pub of: Vec<u16>,
    /// Slots in use: narrow, wide, predicates.
    pub count: [u16; 3],
}

/// A live range: positions 2i (reads of instruction i) and 2i + 1 (its writes).
#[derive(Clone, Copy)]
struct Range {
    register: u32,
    start: u32,
    end: u32,
}

/// Bits of registers.
struct Sets {
    words: usize,
    bits: Vec<u64>,
}

impl Sets {
    fn new(rows: usize, columns: usize) -> Sets {
        let words = columns.div_ceil(64);
        Sets { words, bits: vec![0; rows * words] }
    }

    fn row(&self, row: usize) -> &[u64] {
        &self.bits[row * self.words..(row + 1) * self.words]
    }

    fn insert(&mut self, row: usize, column: u32) {
        self.bits[row * self.words + column as usize / 64] |= 1 << (column % 64);
    }

    fn has(&self, row: usize, column: u32) -> bool {
        self.bits[row * self.words + column as usize / 64] >> (column % 64) & 1 == 1
    }
}

/// Colours the registers of a function. `uses` and `guarded` are by instruction; registers that `pinned` names get a slot
/// of their own, because asynchronous work may touch them outside their visible range. `None` when 16 bits do not suffice
/// or the function is too large to analyse.
pub fn colour(registers: &[Register], uses: &[Uses], guarded: &[bool], flow: &Flow, pinned: &[bool]) -> Option<Slots> {
    if (flow.blocks.len() as u64) * (registers.len() as u64) > 1 << 33 {
        return None;
    }
    let live_in = liveness(registers.len(), uses, guarded, flow);
    let mut ranges = ranges(registers.len(), uses, flow, &live_in);
    for range in &mut ranges {
        if pinned[range.register as usize] {
            (range.start, range.end) = (0, u32::MAX);
        }
    }
    ranges.sort_by_key(|range| (range.start, range.register));
    let mut slots = Slots { of: vec![0; registers.len()], count: [0; 3] };
    for (file, class) in [Class::Narrow, Class::Wide, Class::Predicate].into_iter().enumerate() {
        let mut active = std::collections::BinaryHeap::<std::cmp::Reverse<(u32, u32)>>::new();
        let mut free = std::collections::BinaryHeap::new();
        let mut count = 0u32;
        for range in ranges.iter().filter(|range| Class::of(registers[range.register as usize].ty) == class) {
            while let Some(&std::cmp::Reverse((end, slot))) = active.peek() {
                // A slot whose last reader writes this register is not taken over: a result goes straight to its place
                // only when that is none of the sources.
                if end.saturating_add(1) >= range.start {
                    break;
                }
                active.pop();
                free.push(std::cmp::Reverse(slot));
            }
            let slot = free.pop().map_or_else(
                || {
                    count += 1;
                    count - 1
                },
                |std::cmp::Reverse(slot)| slot,
            );
            active.push(std::cmp::Reverse((range.end, slot)));
            slots.of[range.register as usize] = u16::try_from(slot).ok().filter(|slot| *slot < 1 << 14)?;
        }
        slots.count[file] = count as u16;
    }
    Some(slots)
}

/// Registers live at the start of each block.
fn liveness(registers: usize, uses: &[Uses], guarded: &[bool], flow: &Flow) -> Sets {
    let blocks = flow.blocks.len();
    // Read before any certain write, and certainly written.
    let (mut needs, mut kills) = (Sets::new(blocks, registers), Sets::new(blocks, registers));
    for (index, block) in flow.blocks.iter().enumerate() {
        for at in block.start..block.end {
            for read in &uses[at].reads {
                if !kills.has(index, read.0) {
                    needs.insert(index, read.0);
                }
            }
            for write in uses[at].writes.iter().filter(|_| !guarded[at]) {
                kills.insert(index, write.0);
            }
        }
    }
    let mut live_in = Sets::new(blocks, registers);
    let words = live_in.words;
    let mut order: Vec<usize> = (0..blocks).collect();
    order.sort_by_key(|&block| std::cmp::Reverse(flow.blocks[block].rank));
    let mut changed = true;
    let mut out = vec![0u64; words];
    while changed {
        changed = false;
        for &block in &order {
            out.fill(0);
            for &next in &flow.blocks[block].next {
                out.iter_mut().zip(live_in.row(next)).for_each(|(out, live)| *out |= live);
            }
            for (word, out) in out.iter().enumerate() {
                let at = block * words + word;
                let live = needs.bits[at] | (out & !kills.bits[at]);
                changed |= live != live_in.bits[at];
                live_in.bits[at] = live;
            }
        }
    }
    live_in
}

fn ranges(registers: usize, uses: &[Uses], flow: &Flow, live_in: &Sets) -> Vec<Range> {
    let mut bounds = vec![(u32::MAX, 0u32); registers];
    let mut touch = |register: u32, at: u32| {
        let bound = &mut bounds[register as usize];
        *bound = (bound.0.min(at), bound.1.max(at));
    };
    let members = |row: &[u64]| -> Vec<u32> {
        let words = row.iter().enumerate();
        words
            .flat_map(|(i, &word)| (0..64).filter(move |b| word >> b & 1 == 1).map(move |b| i as u32 * 64 + b))
            .collect()
    };
    for (index, block) in flow.blocks.iter().enumerate() {
        for register in members(live_in.row(index)) {
            touch(register, 2 * block.start as u32);
        }
        for &next in &block.next {
            for register in members(live_in.row(next)) {
                touch(register, 2 * block.end as u32);
            }
        }
        for (at, uses) in (block.start as u32..).zip(&uses[block.start..block.end]) {
            uses.reads.iter().for_each(|register| touch(register.0, 2 * at));
            uses.writes.iter().for_each(|register| touch(register.0, 2 * at + 1));
        }
    }
    let used = bounds.iter().enumerate().filter(|(_, bound)| bound.0 != u32::MAX);
    used.map(|(register, &(start, end))| Range { register: register as u32, start, end }).collect()
}
