//! What a cluster did to global memory: listed as it comes, and now and then put in order as disjoint runs of words.

/// Runs listed before they are put in order, beyond as many as there are in order already.
const LISTED_MAX: usize = 4096;

/// What a cluster did to 4 bytes. The first and last step count reads and writes alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Touch {
    pub first: u32,
    pub last: u32,
    /// Operation + 1 of the last write and read.
    pub write_pc: u32,
    pub read_pc: u32,
    pub write_cta: u8,
    pub read_cta: u8,
    pub write_bytes: u8,
    pub read_bytes: u8,
    /// Only atomics and other strong accesses.
    pub is_strong: bool,
}

impl Touch {
    /// Both, the other one later.
    fn then(self, later: Touch) -> Touch {
        if self.first == 0 {
            return later;
        }
        let mut both = Touch {
            last: later.last,
            write_bytes: self.write_bytes | later.write_bytes,
            read_bytes: self.read_bytes | later.read_bytes,
            is_strong: self.is_strong && later.is_strong,
            ..self
        };
        if later.write_pc != 0 {
            (both.write_pc, both.write_cta) = (later.write_pc, later.write_cta);
        }
        if later.read_pc != 0 {
            (both.read_pc, both.read_cta) = (later.read_pc, later.read_cta);
        }
        both
    }
}

/// Words side by side that were touched alike: addresses of the first byte and of the one after the last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub start: u64,
    pub end: u64,
    pub touch: Touch,
}

/// All that a cluster did.
#[derive(Default)]
pub(super) struct Touches {
    /// The first `ordered` are disjoint and lie by address; the others came later, one after the other.
    runs: Vec<Run>,
    ordered: usize,
}

impl Touches {
    /// Notes that the bytes `start .. end` were touched so. The fields of bytes are filled here, for writes and reads that
    /// have an operation.
    pub fn note(&mut self, start: u64, end: u64, touch: Touch) {
        if start >= end {
            return;
        }
        let (inner, outer) = (start.next_multiple_of(4), end & !3);
        if start == inner && end == outer {
            return self.list(start, end, 0xf, touch);
        }
        if start / 4 == (end - 1) / 4 {
            return self.list(start & !3, (start & !3) + 4, field(start % 4, end - (start & !3)), touch);
        }
        if start < inner {
            self.list(inner - 4, inner, field(start % 4, 4), touch);
        }
        if inner < outer {
            self.list(inner, outer, 0xf, touch);
        }
        if outer < end {
            self.list(outer, outer + 4, field(0, end % 4), touch);
        }
    }

    #[inline]
    fn list(&mut self, start: u64, end: u64, bytes: u8, mut touch: Touch) {
        touch.write_bytes = if touch.write_pc != 0 { bytes } else { 0 };
        touch.read_bytes = if touch.read_pc != 0 { bytes } else { 0 };
        self.runs.push(Run { start, end, touch });
        if self.runs.len() - self.ordered > LISTED_MAX.max(self.ordered) {
            self.put_in_order();
        }
    }

    /// All of it as disjoint runs by address.
    pub fn into_runs(mut self) -> Vec<Run> {
        self.put_in_order();
        self.runs
    }

    #[inline(never)]
    fn put_in_order(&mut self) {
        let all = &self.runs;
        let mut order: Vec<u32> = (0..all.len() as u32).collect();
        order.sort_unstable_by_key(|&i| (all[i as usize].start, i));
        let mut out = Vec::with_capacity(all.len());
        let mut at = 0;
        while at < order.len() {
            // Those that overlap, each with one before it.
            let (from, mut end) = (at, all[order[at] as usize].end);
            at += 1;
            while at < order.len() && all[order[at] as usize].start < end {
                end = end.max(all[order[at] as usize].end);
                at += 1;
            }
            lay_over(all, &mut order[from..at], end, &mut out);
        }
        self.ordered = out.len();
        self.runs = out;
    }
}

/// Bytes `from .. to` of a word, a bit each.
fn field(from: u64, to: u64) -> u8 {
    (0xf << from & 0xf) & (0xf >> (4 - to))
}

/// Joins runs that overlap, given by their places, of which the first starts first and the last byte is before `end`.
fn lay_over(all: &[Run], places: &mut [u32], end: u64, out: &mut Vec<Run>) {
    let run = |place: u32| all[place as usize];
    let first = run(places[0]);
    places.sort_unstable(); // the order in which they came
    if places.iter().all(|&place| (run(place).start, run(place).end) == (first.start, end)) {
        let touch = places.iter().fold(Touch::default(), |touch, &place| touch.then(run(place).touch));
        return append(out, Run { touch, ..first });
    }
    let mut words = vec![Touch::default(); ((end - first.start) / 4) as usize];
    for &place in places.iter() {
        let Run { start, end, touch } = run(place);
        let words = &mut words[((start - first.start) / 4) as usize..((end - first.start) / 4) as usize];
        words.iter_mut().for_each(|word| *word = word.then(touch));
    }
    for (word, start) in words.into_iter().zip((first.start..).step_by(4)) {
        append(out, Run { start, end: start + 4, touch: word });
    }
}

/// Appends a run that lies behind the others.
fn append(out: &mut Vec<Run>, run: Run) {
    match out.last_mut() {
        Some(last) if last.end == run.start && last.touch == run.touch => last.end = run.end,
        _ => out.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A random list of touches, many times put in order, is what a map of words says.
    #[test]
    fn runs_are_what_a_map_of_words_holds() {
        let mut random = 1u64;
        let mut below = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        for spread in [40, 4000, 1 << 20] {
            let mut touches = Touches::default();
            let mut words = std::collections::BTreeMap::<u64, Touch>::new();
            for step in 1..30_000 {
                let start = below(spread);
                let end = start + 1 + below(70);
                let (reads, writes) = [(true, false), (false, true), (true, true)][below(3) as usize];
                let (pc, cta, is_strong) = (1 + below(9) as u32, below(4) as u8, below(2) == 0);
                let mut touch = Touch { first: step, last: step, is_strong, ..Touch::default() };
                if reads {
                    (touch.read_pc, touch.read_cta) = (pc, cta);
                }
                if writes {
                    (touch.write_pc, touch.write_cta) = (pc, cta);
                }
                touches.note(start, end, touch);
                for byte in start..end {
                    let word = words.entry(byte / 4 * 4).or_default();
                    let bit = 1 << (byte % 4);
                    let of = |is: bool| if is { bit } else { 0 };
                    *word = word.then(Touch { read_bytes: of(reads), write_bytes: of(writes), ..touch });
                }
            }
            let mut last = 0;
            let mut seen = Vec::new();
            for Run { start, end, touch } in touches.into_runs() {
                assert!(last <= start && start < end && start % 4 == 0 && end % 4 == 0);
                seen.extend((start..end).step_by(4).map(|word| (word, touch)));
                last = end;
            }
            assert!(words.into_iter().eq(seen), "spread {spread}");
        }
    }
}
