//! `vprintf` and `__assertfail`: their arguments lie in memory, the text goes to the launch's report.

use super::warp::Warp;
use super::{Cluster, format};
use crate::address::{Space, resolve_generic};
use crate::error::{Error, Result};
use crate::event::Site;
use crate::program::op::Call;
use crate::scalar::lanes::each;

/// Longest string that is read from device memory.
const TEXT_MAX: usize = 4096;

impl<'a> Cluster<'a> {
    /// A 64-bit argument of a call, from the caller's frame.
    fn argument(warp: &Warp, call: &Call, index: usize, lane: usize) -> u64 {
        let frame = &warp.frames[warp.frame as usize];
        let Some(&(start, _, bytes)) = call.arguments.get(index) else { return 0 };
        super::access::little(&frame.params, lane * frame.param_bytes as usize + start as usize, bytes.min(8))
    }

    /// One byte at a generic address, if it is somewhere.
    fn byte(&self, warp: &Warp, lane: usize, address: u64) -> Option<u8> {
        let (space, inside) = resolve_generic(address);
        match space {
            Space::Global | Space::Const => {
                let allocation = self.launch.memory.find(inside)?;
                Some(allocation.load(inside - allocation.base, 1) as u8)
            }
            Space::Local if inside < warp.local_bytes as u64 => {
                warp.local.get(lane * warp.local_bytes as usize + inside as usize).copied()
            }
            Space::Shared if self.in_cluster(inside, 1) => {
                let mut byte = [0];
                self.read_bytes(Space::Shared, inside, &mut byte);
                Some(byte[0])
            }
            _ => None,
        }
    }

    fn text(&self, warp: &Warp, lane: usize, address: u64) -> String {
        let bytes = (0..TEXT_MAX as u64).map_while(|i| self.byte(warp, lane, address + i).filter(|byte| *byte != 0));
        String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
    }

    fn value(&self, warp: &Warp, lane: usize, address: u64, bytes: u64) -> u64 {
        (0..bytes).fold(0, |all, i| all | (self.byte(warp, lane, address + i).unwrap_or(0) as u64) << (8 * i))
    }

    /// `vprintf(format, arguments)`: arguments lie one after the other, each aligned to its size. Gives their number, or -1
    /// without a format.
    pub(super) fn vprintf(&mut self, warp: &mut Warp, site: Site, call: &Call) -> Result<()> {
        for lane in each(site.mask) {
            let format = Self::argument(warp, call, 0, lane);
            let count = match format {
                0 => -1,
                _ => {
                    let format = self.text(warp, lane, format);
                    let (text, count) = self.format(warp, lane, &format, Self::argument(warp, call, 1, lane));
                    self.printed.extend_from_slice(text.as_bytes());
                    count
                }
            };
            if let Some(&(start, _, 4)) = call.results.first() {
                let frame = &mut warp.frames[warp.frame as usize];
                let at = lane * frame.param_bytes as usize + start as usize;
                frame.params[at..at + 4].copy_from_slice(&count.to_le_bytes());
            }
        }
        Ok(())
    }

    /// The text, and how many arguments it took.
    fn format(&self, warp: &Warp, lane: usize, format: &str, mut at: u64) -> (String, i32) {
        let mut count = 0;
        let mut next = |bytes: u64| {
            at = at.next_multiple_of(bytes);
            let value = self.value(warp, lane, at, bytes);
            at += bytes;
            count += 1;
            value
        };
        let mut out = String::new();
        let mut rest = format;
        while let Some(percent) = rest.find('%') {
            out.push_str(&rest[..percent]);
            let Some((spec, after)) = format::parse(&rest[percent + 1..], || next(4) as i32) else {
                out.push_str(&rest[percent..]);
                return (out, count);
            };
            let written = &rest[percent..rest.len() - after.len()];
            rest = after;
            match spec.conversion {
                '%' => out.push('%'),
                'd' | 'i' | 'u' | 'x' | 'X' | 'o' => out.push_str(&spec.integer(next(spec.bytes.max(4)))),
                'p' => out.push_str(&spec.text(&format!("{:#x}", next(8)))),
                'c' => out.push_str(&spec.text(&char::from(next(4) as u8).to_string())),
                's' => {
                    let address = next(8);
                    out.push_str(&spec.text(&self.text(warp, lane, address)));
                }
                'e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'a' | 'A' => out.push_str(&spec.float(f64::from_bits(next(8)))),
                _ => out.push_str(written),
            }
        }
        out.push_str(rest);
        (out, count)
    }

    /// `__assertfail(message, file, line, function, size)`.
    pub(super) fn assert_fail(&self, warp: &Warp, site: Site, call: &Call) -> Error {
        let lane = site.mask.trailing_zeros() as usize & 31;
        let text = |index: usize| self.text(warp, lane, Self::argument(warp, call, index, lane));
        let line = Self::argument(warp, call, 2, lane);
        self.error(site, &format!("assertion `{}` failed, {}:{line}, {}", text(0), text(1), text(3)))
    }
}
