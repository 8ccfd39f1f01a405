//! A warp: registers, frames of calls, and the groups of lanes that are at the same instruction.

use crate::launch::Launch;
use crate::program::FunctionCode;
use crate::scalar::lanes::{L32, L64};

/// Registers of one frame.
#[derive(Clone, Debug, Default)]
pub struct RegFile {
    /// 32-bit class.
    pub narrow: Vec<L32>,
    /// 64-bit class.
    pub wide: Vec<L64>,
    /// Predicates: a bit per lane.
    pub predicates: Vec<u32>,
    /// The carry flag of every lane.
    pub carry: u32,
    /// A result before it is written to the lanes that are active.
    pub scratch: L32,
    /// The same of 64 bits.
    pub scratch64: L64,
}

impl RegFile {
    /// All zero.
    pub fn new(slots: [u16; 3]) -> RegFile {
        RegFile {
            narrow: vec![L32::ZERO; slots[0] as usize],
            wide: vec![L64::ZERO; slots[1] as usize],
            predicates: vec![0; slots[2] as usize],
            carry: 0,
            scratch: L32::ZERO,
            scratch64: L64::ZERO,
        }
    }
}

/// An activation of a function, shared by the lanes that entered it together.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// Registers, while another frame runs; the running frame's are in [`Warp::regs`].
    pub regs: RegFile,
    /// Index of the function.
    pub function: u16,
    /// `.param` variables: lane after lane.
    pub params: Vec<u8>,
    /// Bytes of `.param` variables per lane.
    pub param_bytes: u32,
    /// Start of the frame's local memory.
    pub local_base: u32,
    /// Bytes above the function's own local memory that `alloca` took.
    pub stack_bytes: u32,
    /// Frame of the caller.
    pub parent: u32,
    /// Calls above it.
    pub depth: u32,
    /// The call instruction in the caller.
    pub call_pc: u32,
    /// Lanes inside.
    pub lanes: u32,
}

/// What a group waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Lanes of its warp that must execute the instruction with it.
    Gather,
    /// `bar.warp.sync` with this member mask.
    WarpBarrier(u32),
    /// A named barrier's use.
    Barrier {
        /// Number.
        id: u8,
        /// Use.
        generation: u64,
    },
    /// Another grid.
    Grid,
    /// This many registers per thread.
    Registers(u32),
    /// The cluster barrier's use.
    ClusterBarrier {
        /// Use.
        generation: u64,
    },
}

/// Lanes at the same instruction of the same frame.
#[derive(Clone, Debug)]
pub struct Group {
    /// Next instruction.
    pub pc: u32,
    /// Lanes.
    pub mask: u32,
    /// Frame.
    pub frame: u32,
    /// Waits.
    pub wait: Option<Wait>,
    /// May execute an `.aligned` instruction without the rest of its warp: nothing else could go on.
    pub forced: bool,
    /// Gave its turn to other groups.
    pub yielded: bool,
    /// Blocks that it has run while others of its warp waited for their turn.
    pub age: u32,
}

impl Group {
    /// Lanes about to run.
    pub fn new(pc: u32, mask: u32, frame: u32) -> Group {
        Group { pc, mask, frame, wait: None, forced: false, yielded: false, age: 0 }
    }
}

/// A warp.
#[derive(Clone, Debug)]
pub struct Warp {
    /// Rank of its CTA.
    pub cta: u32,
    /// Index in the CTA.
    pub index: u32,
    /// Lanes that have not exited.
    pub live: u32,
    /// Groups; none waits at the same place as another.
    pub groups: Vec<Group>,
    /// Frames in use or free.
    pub frames: Vec<Frame>,
    /// Free ones.
    pub free_frames: Vec<u32>,
    /// Registers of the running frame.
    pub regs: RegFile,
    /// The running frame.
    pub frame: u32,
    /// Thread index, per lane.
    pub tid: [L32; 3],
    /// Local memory, lane after lane.
    pub local: Vec<u8>,
    /// Bytes of local memory per lane.
    pub local_bytes: u32,
    /// `cp.async` groups that each lane has committed.
    pub committed: [u32; 32],
    /// Bulk groups that each lane has committed.
    pub bulk_committed: [u32; 32],
    /// `wgmma` groups that the warp has committed.
    pub wgmma_committed: u32,
    /// Registers per thread, as `setmaxnreg` counts them.
    pub registers: u32,
    /// Instructions executed.
    pub executed: u64,
}

impl Warp {
    /// Warp `index` of the CTA with this rank, before its first instruction.
    pub fn new(launch: &Launch, cta: u32, index: u32) -> Warp {
        let threads = launch.info.threads();
        let lanes = (threads - index * 32).min(32);
        let live = if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 };
        let mut tid = [L32::ZERO; 3];
        for lane in 0..32 {
            let position = launch.info.thread_index(index, lane);
            (0..3).for_each(|axis| tid[axis].0[lane as usize] = position[axis]);
        }
        let entry = &launch.program.functions[0];
        let mut warp = Warp {
            cta,
            index,
            live,
            groups: vec![Group::new(0, live, 0)],
            frames: vec![frame(entry, 0, live)],
            free_frames: Vec::new(),
            regs: RegFile::new(entry.slots),
            frame: 0,
            tid,
            local: Vec::new(),
            local_bytes: 0,
            committed: [0; 32],
            bulk_committed: [0; 32],
            wgmma_committed: 0,
            registers: super::registers::at_launch(launch),
            executed: 0,
        };
        warp.reserve_local(entry.local_bytes);
        warp
    }

    /// Makes local memory at least this large; contents stay.
    pub fn reserve_local(&mut self, bytes: u32) {
        if bytes <= self.local_bytes {
            return;
        }
        let mut local = vec![0; bytes as usize * 32];
        for lane in 0..32 {
            let (old, new) = (self.local_bytes as usize, bytes as usize);
            local[lane * new..lane * new + old].copy_from_slice(&self.local[lane * old..(lane + 1) * old]);
        }
        (self.local, self.local_bytes) = (local, bytes);
    }

    /// Makes `frame` the running one.
    pub fn enter(&mut self, frame: u32) {
        if self.frame != frame {
            std::mem::swap(&mut self.regs, &mut self.frames[self.frame as usize].regs);
            std::mem::swap(&mut self.regs, &mut self.frames[frame as usize].regs);
            self.frame = frame;
        }
    }

    /// A new frame for a call; gives its number.
    pub fn push_frame(&mut self, function: &FunctionCode, index: u16, call_pc: u32, lanes: u32) -> u32 {
        let parent = &self.frames[self.frame as usize];
        let (depth, local_base) = (parent.depth + 1, parent.local_base);
        let mut new = frame(function, index, lanes);
        new.regs = RegFile::new(function.slots);
        new.parent = self.frame;
        new.depth = depth;
        new.call_pc = call_pc;
        new.local_base = local_base;
        match self.free_frames.pop() {
            Some(number) => {
                self.frames[number as usize] = new;
                number
            }
            None => {
                self.frames.push(new);
                self.frames.len() as u32 - 1
            }
        }
    }

    /// Removes lanes from every group; empty groups go.
    pub fn drop_lanes(&mut self, lanes: u32) {
        self.groups.iter_mut().for_each(|group| group.mask &= !lanes);
        self.groups.retain(|group| group.mask != 0);
    }
}

fn frame(function: &FunctionCode, index: u16, lanes: u32) -> Frame {
    Frame {
        regs: RegFile::default(),
        function: index,
        params: vec![0; function.param_bytes as usize * 32],
        param_bytes: function.param_bytes,
        local_base: 0,
        stack_bytes: 0,
        parent: 0,
        depth: 0,
        call_pc: 0,
        lanes,
    }
}
