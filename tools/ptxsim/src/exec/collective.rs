//! Shuffles, votes, matches, reductions and elections among the lanes of a warp.

use super::Cluster;
use super::straight::write_predicate;
use super::warp::Warp;
use crate::event::{Site, WarpSync};
use crate::program::op::{Collective, NONE, ReduxOp, ShuffleMode, VoteMode};
use crate::scalar::lanes::{L32, blend32, each};

impl<'a> Cluster<'a> {
    /// Executes a collective for every member mask that the lanes name; all of its lanes are there.
    pub(super) fn collective(&mut self, warp: &mut Warp, site: Site, collective: &Collective, members: u16) {
        let masks = *self.launch.program.source32(&warp.regs, members);
        let mut rest = site.mask;
        while rest != 0 {
            let members = masks.0[rest.trailing_zeros() as usize];
            let lanes = each(rest).filter(|&lane| masks.0[lane] == members).fold(0u32, |all, lane| all | 1 << lane);
            rest &= !lanes;
            let absent = self.collective_of(warp, Site { mask: lanes, ..site }, collective);
            self.warp_sync(Site { mask: lanes, ..site }, WarpSync::Collective, members, absent);
        }
    }

    /// Gives the lanes that read from a lane without a part in it.
    fn collective_of(&mut self, warp: &mut Warp, site: Site, collective: &Collective) -> u32 {
        let program = &self.launch.program;
        let lanes = site.mask;
        match collective {
            Collective::Shuffle { mode, d, p, a, b, c } => {
                return self.shuffle(warp, lanes, *mode, [*d, *p, *a, *b, *c]);
            }
            Collective::Vote { mode, p, d, a } => {
                let votes = program.predicate(&warp.regs, *a) & lanes;
                let ones = |holds: bool| if holds { u32::MAX } else { 0 };
                match mode {
                    VoteMode::All => write_predicate(&mut warp.regs, *p, ones(votes == lanes), lanes),
                    VoteMode::Any => write_predicate(&mut warp.regs, *p, ones(votes != 0), lanes),
                    VoteMode::Uniform => {
                        write_predicate(&mut warp.regs, *p, ones(votes == 0 || votes == lanes), lanes);
                    }
                    VoteMode::Ballot => self.broadcast(warp, *d, votes, lanes),
                }
            }
            Collective::Match { all, d, p, a } => {
                let value = |lane: usize| program.lane(&warp.regs, *a, lane);
                let same = |lane: usize| {
                    each(lanes).filter(|&other| value(other) == value(lane)).fold(0u32, |all, other| all | 1 << other)
                };
                let mut out = L32(std::array::from_fn(|lane| if lanes >> lane & 1 == 1 { same(lane) } else { 0 }));
                if *all {
                    let agree = out.0[lanes.trailing_zeros() as usize & 31] == lanes;
                    out = L32([if agree { lanes } else { 0 }; 32]);
                    write_predicate(&mut warp.regs, *p, if agree { u32::MAX } else { 0 }, lanes);
                }
                blend32(self.arch, &mut warp.regs.narrow[*d as usize], &out, lanes);
            }
            Collective::Redux { op, d, a } => {
                let values = *program.source32(&warp.regs, *a);
                let join = |x: u32, y: u32| match op {
                    ReduxOp::Add => x.wrapping_add(y),
                    ReduxOp::MinS => (x as i32).min(y as i32) as u32,
                    ReduxOp::MaxS => (x as i32).max(y as i32) as u32,
                    ReduxOp::MinU => x.min(y),
                    ReduxOp::MaxU => x.max(y),
                    ReduxOp::And => x & y,
                    ReduxOp::Or => x | y,
                    ReduxOp::Xor => x ^ y,
                };
                let result = each(lanes).map(|lane| values.0[lane]).reduce(join).unwrap_or(0);
                self.broadcast(warp, *d, result, lanes);
            }
            // Which lane leads is not documented; the lowest is one legal choice.
            Collective::Elect { d, p } => {
                let leader = lanes.trailing_zeros();
                self.broadcast(warp, *d, leader, lanes);
                write_predicate(&mut warp.regs, *p, 1 << (leader & 31), lanes);
            }
        }
        0
    }

    fn broadcast(&self, warp: &mut Warp, d: u16, value: u32, lanes: u32) {
        if d != NONE {
            blend32(self.arch, &mut warp.regs.narrow[d as usize], &L32([value; 32]), lanes);
        }
    }

    fn shuffle(&mut self, warp: &mut Warp, lanes: u32, mode: ShuffleMode, [d, p, a, b, c]: [u16; 5]) -> u32 {
        let program = &self.launch.program;
        let source = *program.source32(&warp.regs, a);
        let (distance, control) = (program.source32(&warp.regs, b), program.source32(&warp.regs, c));
        let (mut out, mut in_range, mut absent) = (source, 0u32, 0u32);
        for lane in each(lanes) {
            let (b, c) = (distance.0[lane] & 0x1f, control.0[lane]);
            let (clamp, segment) = (c & 0x1f, c >> 8 & 0x1f);
            let this = lane as u32;
            let last = this & segment | clamp & !segment;
            let (from, ok) = match mode {
                ShuffleMode::Up => (this.wrapping_sub(b), this as i32 - b as i32 >= last as i32),
                ShuffleMode::Down => (this + b, this + b <= last),
                ShuffleMode::Butterfly => (this ^ b, this ^ b <= last),
                ShuffleMode::Index => {
                    let from = this & segment | b & !segment;
                    (from, from <= last)
                }
            };
            if ok {
                in_range |= 1 << lane;
                out.0[lane] = source.0[from as usize & 31];
                if lanes >> (from & 31) & 1 == 0 {
                    absent |= 1 << lane;
                }
            }
        }
        blend32(self.arch, &mut warp.regs.narrow[d as usize], &out, lanes);
        write_predicate(&mut warp.regs, p, in_range, lanes);
        absent
    }
}
