//! `vprintf` and `__assertfail`: their arguments lie in memory, the text goes to the launch's report.

use super::Cluster;
use super::warp::Warp;
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

    /// `vprintf(format, arguments)`: arguments lie one after the other, each aligned to its size.
    pub(super) fn vprintf(&mut self, warp: &mut Warp, site: Site, call: &Call) -> Result<()> {
        for lane in each(site.mask) {
            let format = self.text(warp, lane, Self::argument(warp, call, 0, lane));
            let text = self.format(warp, lane, &format, Self::argument(warp, call, 1, lane));
            self.printed.extend_from_slice(text.as_bytes());
            let count = text.len() as u32;
            if let Some(&(start, _, 4)) = call.results.first() {
                let frame = &mut warp.frames[warp.frame as usize];
                let at = lane * frame.param_bytes as usize + start as usize;
                frame.params[at..at + 4].copy_from_slice(&count.to_le_bytes());
            }
        }
        Ok(())
    }

    fn format(&self, warp: &Warp, lane: usize, format: &str, mut at: u64) -> String {
        let mut next = |bytes: u64| {
            at = at.next_multiple_of(bytes);
            let value = self.value(warp, lane, at, bytes);
            at += bytes;
            value
        };
        let mut out = String::new();
        let mut rest = format;
        while let Some(percent) = rest.find('%') {
            out.push_str(&rest[..percent]);
            rest = &rest[percent + 1..];
            let end = rest.find(|c: char| c.is_ascii_alphabetic() && !"lhzjt".contains(c) || c == '%');
            let Some(end) = end else {
                out.push('%');
                break;
            };
            let (spec, kind) = (&rest[..end], &rest[end..end + 1]);
            rest = &rest[end + 1..];
            let wide = spec.contains('l') || spec.contains(['z', 'j', 't']);
            let flags: String = spec.chars().filter(|c| !"lhzjt".contains(*c)).collect();
            let body = match kind {
                "%" => "%".to_string(),
                "d" | "i" if wide => (next(8) as i64).to_string(),
                "d" | "i" => (next(4) as i32).to_string(),
                "u" => next(if wide { 8 } else { 4 }).to_string(),
                "x" => format!("{:x}", next(if wide { 8 } else { 4 })),
                "X" => format!("{:X}", next(if wide { 8 } else { 4 })),
                "o" => format!("{:o}", next(if wide { 8 } else { 4 })),
                "p" => format!("{:#x}", next(8)),
                "c" => char::from(next(4) as u8).to_string(),
                "s" => {
                    let address = next(8);
                    self.text(warp, lane, address)
                }
                "e" | "E" | "f" | "F" | "g" | "G" | "a" | "A" => float(f64::from_bits(next(8)), &flags, kind),
                _ => format!("%{spec}{kind}"),
            };
            pad(&mut out, &body, &flags);
        }
        out.push_str(rest);
        out
    }

    /// `__assertfail(message, file, line, function, size)`.
    pub(super) fn assert_fail(&self, warp: &Warp, site: Site, call: &Call) -> Error {
        let lane = site.mask.trailing_zeros() as usize & 31;
        let text = |index: usize| self.text(warp, lane, Self::argument(warp, call, index, lane));
        let line = Self::argument(warp, call, 2, lane);
        self.error(site, &format!("assertion `{}` failed, {}:{line}, {}", text(0), text(1), text(3)))
    }
}

/// A number with the precision of its flags; `g` in the shortest form that reads back.
fn float(value: f64, flags: &str, kind: &str) -> String {
    let precision = flags.split_once('.').map(|(_, digits)| digits.parse().unwrap_or(0));
    match kind {
        "f" | "F" => format!("{value:.*}", precision.unwrap_or(6)),
        "e" | "E" => {
            let text = format!("{value:.*e}", precision.unwrap_or(6));
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => format!("{value}"),
    }
}

fn pad(out: &mut String, body: &str, flags: &str) {
    let (flags, _) = flags.split_once('.').unwrap_or((flags, ""));
    let digits = flags.trim_start_matches(['-', '+', ' ', '#', '0']);
    let width = digits.parse::<usize>().unwrap_or(0).min(TEXT_MAX);
    let plus = if flags.contains('+') && !body.starts_with('-') { "+" } else { "" };
    let left = flags.contains('-');
    let zero = flags[..flags.len() - digits.len()].contains('0');
    let fill = width.saturating_sub(body.len() + plus.len());
    if zero && !left {
        let (sign, number) = body.strip_prefix('-').map_or((plus, body), |number| ("-", number));
        out.push_str(sign);
        out.push_str(&"0".repeat(fill));
        out.push_str(number);
        return;
    }
    if !left {
        out.push_str(&" ".repeat(fill));
    }
    out.push_str(plus);
    out.push_str(body);
    if left {
        out.push_str(&" ".repeat(fill));
    }
}
