//! Basic blocks, and the order in which a warp's divergent groups run: reverse post-order with loops kept together.

use super::op::{Instr, NONE, Op};

/// Straight-line code.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// First instruction.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// Blocks that may follow.
    pub next: Vec<usize>,
    /// Place in the order: a group with a lower rank runs first.
    pub rank: u32,
}

/// Control flow of one function.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    /// In textual order.
    pub blocks: Vec<Block>,
}

impl Flow {
    /// Control flow of the instructions of a function whose first operation is `first_pc` in its program.
    pub fn new(code: &[Instr], first_pc: u32) -> Flow {
        let inside = |pc: u32| (pc - first_pc) as usize;
        let mut starts = vec![false; code.len() + 1];
        starts[0] = true;
        for (at, instr) in code.iter().enumerate() {
            for target in targets(&instr.op) {
                starts[inside(target)] = true;
            }
            if ends_block(&instr.op) {
                starts[at + 1] = true;
            }
            // A group may wait at such an instruction, and merges with others there.
            if instr.gathers {
                starts[at] = true;
                starts[at + 1] = true;
            }
        }
        let heads: Vec<usize> = (0..code.len()).filter(|&at| starts[at]).collect();
        let mut block_at = vec![usize::MAX; code.len() + 1];
        for (index, &start) in heads.iter().enumerate() {
            block_at[start] = index;
        }
        let mut blocks = Vec::with_capacity(heads.len());
        for (index, &start) in heads.iter().enumerate() {
            let end = heads.get(index + 1).copied().unwrap_or(code.len());
            let last = &code[end - 1];
            let mut next: Vec<usize> = Vec::new();
            let falls = last.guard != NONE
                || !matches!(last.op, Op::Branch(_) | Op::BranchIndexed(..) | Op::Return | Op::Exit | Op::Trap);
            if falls && end < code.len() {
                next.push(block_at[end]);
            }
            for target in targets(&last.op) {
                // A branch to the end of the function leaves it.
                if inside(target) < code.len() && !next.contains(&block_at[inside(target)]) {
                    next.push(block_at[inside(target)]);
                }
            }
            blocks.push(Block { start, end, next, rank: 0 });
        }
        let mut flow = Flow { blocks };
        flow.order();
        flow
    }

    /// Gives ranks: depth-first, exits of loops visited before their bodies, so that bodies come first in the order.
    fn order(&mut self) {
        let count = self.blocks.len();
        if count == 0 {
            return;
        }
        let loops = self.loops();
        let common = |a: usize, b: usize| loops.iter().filter(|members| members[a] && members[b]).count();
        let mut state = vec![(false, 0usize); count];
        let mut sorted: Vec<Vec<usize>> = Vec::with_capacity(count);
        for (index, block) in self.blocks.iter().enumerate() {
            let mut next = block.next.clone();
            next.sort_by_key(|&b| (common(index, b), std::cmp::Reverse(b)));
            sorted.push(next);
        }
        let mut post = Vec::with_capacity(count);
        // Blocks that nothing reaches come last, in textual order.
        for root in 0..count {
            if state[root].0 {
                continue;
            }
            let mut tree = Vec::new();
            let mut stack = vec![root];
            state[root].0 = true;
            while let Some(&top) = stack.last() {
                let visited = state[top].1;
                if let Some(&next) = sorted[top].get(visited) {
                    state[top].1 += 1;
                    if !state[next].0 {
                        state[next].0 = true;
                        stack.push(next);
                    }
                } else {
                    tree.push(top);
                    stack.pop();
                }
            }
            tree.reverse();
            post.extend(tree);
        }
        for (rank, block) in post.into_iter().enumerate() {
            self.blocks[block].rank = rank as u32;
        }
    }

    /// Members of every natural loop, one table per header.
    fn loops(&self) -> Vec<Vec<bool>> {
        let count = self.blocks.len();
        let mut previous = vec![Vec::new(); count];
        for (index, block) in self.blocks.iter().enumerate() {
            block.next.iter().for_each(|&next| previous[next].push(index));
        }
        let mut by_header = std::collections::BTreeMap::<usize, Vec<bool>>::new();
        for (tail, header) in self.back_edges() {
            let members = by_header.entry(header).or_insert_with(|| {
                let mut members = vec![false; count];
                members[header] = true;
                members
            });
            let mut work = vec![tail];
            while let Some(block) = work.pop() {
                if !members[block] {
                    members[block] = true;
                    work.extend(&previous[block]);
                }
            }
        }
        by_header.into_values().collect()
    }

    fn back_edges(&self) -> Vec<(usize, usize)> {
        let count = self.blocks.len();
        let (mut seen, mut open, mut visited) = (vec![false; count], vec![false; count], vec![0; count]);
        let mut edges = Vec::new();
        let mut stack = vec![0];
        (seen[0], open[0]) = (true, true);
        while let Some(&top) = stack.last() {
            if let Some(&next) = self.blocks[top].next.get(visited[top]) {
                visited[top] += 1;
                if open[next] {
                    edges.push((top, next));
                } else if !seen[next] {
                    (seen[next], open[next]) = (true, true);
                    stack.push(next);
                }
            } else {
                open[top] = false;
                stack.pop();
            }
        }
        edges
    }
}

fn targets(op: &Op) -> Vec<u32> {
    match op {
        Op::Branch(target) => vec![*target],
        Op::BranchIndexed(_, targets) => targets.to_vec(),
        _ => Vec::new(),
    }
}

fn ends_block(op: &Op) -> bool {
    matches!(op, Op::Branch(_) | Op::BranchIndexed(..) | Op::Return | Op::Exit | Op::Trap | Op::Call(_))
}
