//! Integer and bit instructions: one table row per form, found by opcode and type.

use super::lanes::{D1, D2, D3, F1, F2, F3, Narrow1, Rare, Shift64, Widen2, Widen3};
use crate::front::ast::Type;

fn s(value: u32) -> i32 {
    value as i32
}

fn s16(value: u32) -> i32 {
    value as i16 as i32
}

fn low16(value: i32) -> u32 {
    value as u32 & 0xffff
}

fn product24(a: u32, b: u32) -> u64 {
    (a & 0xff_ffff) as u64 * (b & 0xff_ffff) as u64
}

fn signed_product24(a: u32, b: u32) -> i64 {
    ((s(a) << 8) >> 8) as i64 * ((s(b) << 8) >> 8) as i64
}

/// A function of both halves of two words.
#[inline(always)]
fn halves(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    f(a as u16, b as u16) as u32 | (f((a >> 16) as u16, (b >> 16) as u16) as u32) << 16
}

/// Forms with one 32-bit or 16-bit source.
pub fn unary32(opcode: &str, ty: Type) -> Option<F1> {
    use Type::*;
    Some(match (opcode, ty) {
        ("mov", _) => lanes!(L32; a: L32 => a),
        ("not", B32) => lanes!(L32; a: L32 => !a),
        ("not", B16) => lanes!(L32; a: L32 => !a & 0xffff),
        ("cnot", B32) => lanes!(L32; a: L32 => (a == 0) as u32),
        ("cnot", B16) => lanes!(L32; a: L32 => (a == 0) as u32),
        ("neg", S32) => lanes!(L32; a: L32 => a.wrapping_neg()),
        ("neg", S16) => lanes!(L32; a: L32 => a.wrapping_neg() & 0xffff),
        ("abs", S32) => lanes!(L32; a: L32 => s(a).wrapping_abs() as u32),
        ("abs", S16) => lanes!(L32; a: L32 => low16(s16(a).wrapping_abs())),
        ("popc", B32) => lanes!(L32; a: L32 => a.count_ones()),
        ("clz", B32) => lanes!(L32; a: L32 => a.leading_zeros()),
        ("brev", B32) => lanes!(L32; a: L32 => a.reverse_bits()),
        ("bfind", U32) => lanes!(L32; a: L32 => 31u32.wrapping_sub(a.leading_zeros())),
        ("bfind", S32) => lanes!(L32; a: L32 => 31u32.wrapping_sub((a ^ (s(a) >> 31) as u32).leading_zeros())),
        ("bfind.shiftamt", U32) => lanes!(L32; a: L32 => if a == 0 { u32::MAX } else { a.leading_zeros() }),
        ("bfind.shiftamt", S32) => {
            lanes!(L32; a: L32 => { let m = a ^ (s(a) >> 31) as u32; if m == 0 { u32::MAX } else { m.leading_zeros() } })
        }
        _ => return None,
    })
}

/// Forms with two 32-bit or 16-bit sources.
pub fn binary32(opcode: &str, ty: Type) -> Option<F2> {
    use Type::*;
    Some(match (opcode, ty) {
        ("add", S32 | U32) => lanes!(L32; a: L32, b: L32 => a.wrapping_add(b)),
        ("add", S16 | U16) => lanes!(L32; a: L32, b: L32 => a.wrapping_add(b) & 0xffff),
        ("add.sat", S32) => lanes!(L32; a: L32, b: L32 => s(a).saturating_add(s(b)) as u32),
        ("sub", S32 | U32) => lanes!(L32; a: L32, b: L32 => a.wrapping_sub(b)),
        ("sub", S16 | U16) => lanes!(L32; a: L32, b: L32 => a.wrapping_sub(b) & 0xffff),
        ("sub.sat", S32) => lanes!(L32; a: L32, b: L32 => s(a).saturating_sub(s(b)) as u32),
        ("mul.lo", S32 | U32) => lanes!(L32; a: L32, b: L32 => a.wrapping_mul(b)),
        ("mul.lo", S16 | U16) => lanes!(L32; a: L32, b: L32 => a.wrapping_mul(b) & 0xffff),
        ("mul.hi", S32) => lanes!(L32; a: L32, b: L32 => ((s(a) as i64 * s(b) as i64) >> 32) as u32),
        ("mul.hi", U32) => lanes!(L32; a: L32, b: L32 => ((a as u64 * b as u64) >> 32) as u32),
        ("mul.hi", S16) => lanes!(L32; a: L32, b: L32 => low16((s16(a) * s16(b)) >> 16)),
        ("mul.hi", U16) => lanes!(L32; a: L32, b: L32 => (a * b) >> 16),
        ("mul.wide", S16) => lanes!(L32; a: L32, b: L32 => (s16(a) * s16(b)) as u32),
        ("mul.wide", U16) => lanes!(L32; a: L32, b: L32 => a * b),
        ("mul24.hi", U32) => lanes!(L32; a: L32, b: L32 => (product24(a, b) >> 16) as u32),
        ("mul24.hi", S32) => lanes!(L32; a: L32, b: L32 => (signed_product24(a, b) >> 16) as u32),
        ("mul24.lo", U32) => lanes!(L32; a: L32, b: L32 => (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff)),
        ("mul24.lo", S32) => lanes!(L32; a: L32, b: L32 => ((s(a) << 8) >> 8).wrapping_mul((s(b) << 8) >> 8) as u32),
        // Division by zero: the ISA leaves it open; hardware gives all ones (and the dividend as remainder).
        ("div", U32 | U16) => lanes!(L32; a: L32, b: L32 => a.checked_div(b).unwrap_or(u32::MAX)),
        ("div", S32) => lanes!(L32; a: L32, b: L32 => if b == 0 { u32::MAX } else { s(a).wrapping_div(s(b)) as u32 }),
        ("div", S16) => lanes!(L32; a: L32, b: L32 => if b == 0 { 0xffff } else { low16(s16(a) / s16(b)) }),
        ("rem", U32 | U16) => lanes!(L32; a: L32, b: L32 => a.checked_rem(b).unwrap_or(a)),
        ("rem", S32) => lanes!(L32; a: L32, b: L32 => if b == 0 { a } else { s(a).wrapping_rem(s(b)) as u32 }),
        ("rem", S16) => lanes!(L32; a: L32, b: L32 => if b == 0 { a } else { low16(s16(a) % s16(b)) }),
        ("min", S32) => lanes!(L32; a: L32, b: L32 => s(a).min(s(b)) as u32),
        ("min", U32 | U16) => lanes!(L32; a: L32, b: L32 => a.min(b)),
        ("min", S16) => lanes!(L32; a: L32, b: L32 => low16(s16(a).min(s16(b)))),
        ("max", S32) => lanes!(L32; a: L32, b: L32 => s(a).max(s(b)) as u32),
        ("max", U32 | U16) => lanes!(L32; a: L32, b: L32 => a.max(b)),
        ("max", S16) => lanes!(L32; a: L32, b: L32 => low16(s16(a).max(s16(b)))),
        ("add", S16x2 | U16x2) => lanes!(L32; a: L32, b: L32 => halves(a, b, |x, y| x.wrapping_add(y))),
        ("min", S16x2) => lanes!(L32; a: L32, b: L32 => halves(a, b, |x, y| (x as i16).min(y as i16) as u16)),
        ("max", S16x2) => lanes!(L32; a: L32, b: L32 => halves(a, b, |x, y| (x as i16).max(y as i16) as u16)),
        ("min", U16x2) => lanes!(L32; a: L32, b: L32 => halves(a, b, |x, y| x.min(y))),
        ("max", U16x2) => lanes!(L32; a: L32, b: L32 => halves(a, b, |x, y| x.max(y))),
        ("min.relu", S16x2) => {
            lanes!(L32; a: L32, b: L32 => halves(a, b, |x, y| (x as i16).min(y as i16).max(0) as u16))
        }
        ("max.relu", S16x2) => {
            lanes!(L32; a: L32, b: L32 => halves(a, b, |x, y| (x as i16).max(y as i16).max(0) as u16))
        }
        ("min.relu", S32) => lanes!(L32; a: L32, b: L32 => s(a).min(s(b)).max(0) as u32),
        ("max.relu", S32) => lanes!(L32; a: L32, b: L32 => s(a).max(s(b)).max(0) as u32),
        ("and", B32 | B16) => lanes!(L32; a: L32, b: L32 => a & b),
        ("or", B32 | B16) => lanes!(L32; a: L32, b: L32 => a | b),
        ("xor", B32 | B16) => lanes!(L32; a: L32, b: L32 => a ^ b),
        // Amounts are clamped to the width.
        ("shl", B32) => lanes!(L32; a: L32, b: L32 => if b < 32 { a << b } else { 0 }),
        ("shl", B16) => lanes!(L32; a: L32, b: L32 => if b < 16 { (a << b) & 0xffff } else { 0 }),
        ("shr", U32 | B32) => lanes!(L32; a: L32, b: L32 => if b < 32 { a >> b } else { 0 }),
        ("shr", S32) => lanes!(L32; a: L32, b: L32 => (s(a) >> b.min(31)) as u32),
        ("shr", U16 | B16) => lanes!(L32; a: L32, b: L32 => if b < 16 { a >> b } else { 0 }),
        ("shr", S16) => lanes!(L32; a: L32, b: L32 => low16(s16(a) >> b.min(15))),
        ("bmsk.clamp", B32) => lanes!(L32; a: L32, b: L32 => {
            let (start, width) = (a.min(32), b.min(32));
            let ones = if width == 32 { u32::MAX } else { (1 << width) - 1 };
            if start == 32 { 0 } else { ones << start }
        }),
        ("bmsk.wrap", B32) => lanes!(L32; a: L32, b: L32 => ((1u32 << (b & 31)) - 1) << (a & 31)),
        ("szext.wrap", U32) => lanes!(L32; a: L32, b: L32 => a & ((1 << (b & 31)) - 1)),
        ("szext.wrap", S32) => lanes!(L32; a: L32, b: L32 => match b & 31 {
            0 => 0,
            b => ((s(a) << (32 - b)) >> (32 - b)) as u32,
        }),
        ("szext.clamp", U32) => lanes!(L32; a: L32, b: L32 => if b >= 32 { a } else { a & ((1 << b) - 1) }),
        ("szext.clamp", S32) => lanes!(L32; a: L32, b: L32 => match b {
            0 => 0,
            1..32 => ((s(a) << (32 - b)) >> (32 - b)) as u32,
            _ => a,
        }),
        _ => return None,
    })
}

/// Forms with three 32-bit or 16-bit sources.
pub fn ternary32(opcode: &str, ty: Type) -> Option<F3> {
    use Type::*;
    Some(match (opcode, ty) {
        ("mad.lo", S32 | U32) => lanes!(L32; a: L32, b: L32, c: L32 => a.wrapping_mul(b).wrapping_add(c)),
        ("mad.lo", S16 | U16) => lanes!(L32; a: L32, b: L32, c: L32 => a.wrapping_mul(b).wrapping_add(c) & 0xffff),
        ("mad.hi", S32) => {
            lanes!(L32; a: L32, b: L32, c: L32 => (((s(a) as i64 * s(b) as i64) >> 32) as u32).wrapping_add(c))
        }
        ("mad.hi", U32) => {
            lanes!(L32; a: L32, b: L32, c: L32 => (((a as u64 * b as u64) >> 32) as u32).wrapping_add(c))
        }
        ("mad.wide", S16) => lanes!(L32; a: L32, b: L32, c: L32 => ((s16(a) * s16(b)) as u32).wrapping_add(c)),
        ("mad.wide", U16) => lanes!(L32; a: L32, b: L32, c: L32 => (a * b).wrapping_add(c)),
        ("mad.hi", S16) => lanes!(L32; a: L32, b: L32, c: L32 => low16(((s16(a) * s16(b)) >> 16).wrapping_add(s16(c)))),
        ("mad.hi", U16) => lanes!(L32; a: L32, b: L32, c: L32 => ((a * b) >> 16).wrapping_add(c) & 0xffff),
        ("mad.hi.sat", S32) => {
            lanes!(L32; a: L32, b: L32, c: L32 => (((s(a) as i64 * s(b) as i64) >> 32) as i32).saturating_add(s(c)) as u32)
        }
        ("mad24.hi", U32) => lanes!(L32; a: L32, b: L32, c: L32 =>
            ((product24(a, b) >> 16) as u32).wrapping_add(c)),
        ("mad24.hi", S32) => lanes!(L32; a: L32, b: L32, c: L32 =>
            ((signed_product24(a, b) >> 16) as u32).wrapping_add(c)),
        ("mad24.hi.sat", S32) => lanes!(L32; a: L32, b: L32, c: L32 =>
            ((signed_product24(a, b) >> 16) as i32).saturating_add(s(c)) as u32),
        ("mad24.lo", U32) => {
            lanes!(L32; a: L32, b: L32, c: L32 => (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff).wrapping_add(c))
        }
        ("mad24.lo", S32) => lanes!(L32; a: L32, b: L32, c: L32 =>
            (((s(a) << 8) >> 8).wrapping_mul((s(b) << 8) >> 8) as u32).wrapping_add(c)),
        ("sad", S32) => lanes!(L32; a: L32, b: L32, c: L32 => s(a).abs_diff(s(b)).wrapping_add(c)),
        ("sad", U32) => lanes!(L32; a: L32, b: L32, c: L32 => a.abs_diff(b).wrapping_add(c)),
        ("sad", S16) => lanes!(L32; a: L32, b: L32, c: L32 => (s16(a).abs_diff(s16(b)) + c) & 0xffff),
        ("sad", U16) => lanes!(L32; a: L32, b: L32, c: L32 => (a.abs_diff(b) + c) & 0xffff),
        ("shf.l.wrap", B32) => lanes!(L32; a: L32, b: L32, c: L32 => {
            ((((b as u64) << 32) | a as u64) << (c & 31) >> 32) as u32
        }),
        ("shf.l.clamp", B32) => lanes!(L32; a: L32, b: L32, c: L32 => {
            ((((b as u64) << 32) | a as u64) << c.min(32) >> 32) as u32
        }),
        ("shf.r.wrap", B32) => lanes!(L32; a: L32, b: L32, c: L32 => {
            ((((b as u64) << 32) | a as u64) >> (c & 31)) as u32
        }),
        ("shf.r.clamp", B32) => lanes!(L32; a: L32, b: L32, c: L32 => {
            ((((b as u64) << 32) | a as u64) >> c.min(32)) as u32
        }),
        ("prmt", B32) => lanes!(L32; a: L32, b: L32, c: L32 => permute(a, b, c)),
        ("bfe", U32) => lanes!(L32; a: L32, b: L32, c: L32 => extract(a as u64, b, c, 32, false) as u32),
        ("bfe", S32) => lanes!(L32; a: L32, b: L32, c: L32 => extract(a as u64, b, c, 32, true) as u32),
        ("dp4a.u32", U32) => lanes!(L32; a: L32, b: L32, c: L32 => dot4(a, b, c, false, false)),
        ("dp4a.u32", S32) => lanes!(L32; a: L32, b: L32, c: L32 => dot4(a, b, c, false, true)),
        ("dp4a.s32", U32) => lanes!(L32; a: L32, b: L32, c: L32 => dot4(a, b, c, true, false)),
        ("dp4a.s32", S32) => lanes!(L32; a: L32, b: L32, c: L32 => dot4(a, b, c, true, true)),
        _ => return None,
    })
}

/// `prmt.b32` in its default mode: a byte of {b, a} per selector nibble, its sign replicated where bit 3 is set.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let both = ((b as u64) << 32) | a as u64;
    let mut out = 0;
    for i in 0..4 {
        let nibble = selector >> (4 * i);
        let byte = (both >> (8 * (nibble & 7))) as u8;
        let byte = if nibble & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        out |= (byte as u32) << (8 * i);
    }
    out
}

/// `bfe`: `length` bits from `start`; positions past the top repeat the sign or are zero.
fn extract(value: u64, start: u32, length: u32, width: u32, signed: bool) -> u64 {
    let (start, length) = (start & 0xff, length & 0xff);
    let top = width - 1;
    let sign = signed && length > 0 && (value >> (start + length - 1).min(top)) & 1 == 1;
    let mut out = if sign { u64::MAX } else { 0 };
    for i in 0..length.min(width) {
        let bit = if start + i <= top { (value >> (start + i)) & 1 } else { sign as u64 };
        out = (out & !(1 << i)) | (bit << i);
    }
    if width == 32 { out & 0xffff_ffff } else { out }
}

/// `bfi`: `length` low bits of `a` into `b` at `start`.
fn insert(a: u64, b: u64, start: u64, length: u64, width: u64) -> u64 {
    let (start, length) = (start & 0xff, length & 0xff);
    let end = (start + length).min(width);
    if start >= end {
        return b;
    }
    let ones = if end - start == 64 { u64::MAX } else { (1 << (end - start)) - 1 };
    (b & !(ones << start)) | ((a & ones) << start)
}

fn dot4(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let mut sum = c;
    for i in 0..4 {
        let byte = |x: u32, signed: bool| {
            let byte = (x >> (8 * i)) as u8;
            if signed { byte as i8 as i32 } else { byte as i32 }
        };
        sum = sum.wrapping_add((byte(a, a_signed) * byte(b, b_signed)) as u32);
    }
    sum
}

/// Forms with one 64-bit source.
pub fn unary64(opcode: &str, ty: Type) -> Option<D1> {
    use Type::*;
    Some(match (opcode, ty) {
        ("mov", _) => lanes!(L64; a: L64 => a),
        ("not", B64) => lanes!(L64; a: L64 => !a),
        ("cnot", B64) => lanes!(L64; a: L64 => (a == 0) as u64),
        ("neg", S64) => lanes!(L64; a: L64 => a.wrapping_neg()),
        ("abs", S64) => lanes!(L64; a: L64 => (a as i64).wrapping_abs() as u64),
        ("brev", B64) => lanes!(L64; a: L64 => a.reverse_bits()),
        _ => return None,
    })
}

/// Forms with a 64-bit source and a 32-bit result.
pub fn narrow1(opcode: &str, ty: Type) -> Option<Narrow1> {
    use Type::*;
    Some(match (opcode, ty) {
        ("popc", B64) => lanes!(L32; a: L64 => a.count_ones()),
        ("clz", B64) => lanes!(L32; a: L64 => a.leading_zeros()),
        ("bfind", U64) => lanes!(L32; a: L64 => 63u32.wrapping_sub(a.leading_zeros())),
        ("bfind", S64) => lanes!(L32; a: L64 => 63u32.wrapping_sub((a ^ ((a as i64) >> 63) as u64).leading_zeros())),
        ("bfind.shiftamt", U64) => lanes!(L32; a: L64 => if a == 0 { u32::MAX } else { a.leading_zeros() }),
        ("bfind.shiftamt", S64) => lanes!(L32; a: L64 => {
            let m = a ^ ((a as i64) >> 63) as u64;
            if m == 0 { u32::MAX } else { m.leading_zeros() }
        }),
        _ => return None,
    })
}

/// Forms with two 64-bit sources.
pub fn binary64(opcode: &str, ty: Type) -> Option<D2> {
    use Type::*;
    Some(match (opcode, ty) {
        ("add", S64 | U64) => lanes!(L64; a: L64, b: L64 => a.wrapping_add(b)),
        ("sub", S64 | U64) => lanes!(L64; a: L64, b: L64 => a.wrapping_sub(b)),
        ("mul.lo", S64 | U64) => lanes!(L64; a: L64, b: L64 => a.wrapping_mul(b)),
        ("mul.hi", U64) => lanes!(L64; a: L64, b: L64 => ((a as u128 * b as u128) >> 64) as u64),
        ("mul.hi", S64) => lanes!(L64; a: L64, b: L64 => ((a as i64 as i128 * b as i64 as i128) >> 64) as u64),
        ("div", U64) => lanes!(L64; a: L64, b: L64 => a.checked_div(b).unwrap_or(u64::MAX)),
        ("div", S64) => {
            lanes!(L64; a: L64, b: L64 => if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 })
        }
        ("rem", U64) => lanes!(L64; a: L64, b: L64 => a.checked_rem(b).unwrap_or(a)),
        ("rem", S64) => {
            lanes!(L64; a: L64, b: L64 => if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 })
        }
        ("min", S64) => lanes!(L64; a: L64, b: L64 => (a as i64).min(b as i64) as u64),
        ("min", U64) => lanes!(L64; a: L64, b: L64 => a.min(b)),
        ("max", S64) => lanes!(L64; a: L64, b: L64 => (a as i64).max(b as i64) as u64),
        ("max", U64) => lanes!(L64; a: L64, b: L64 => a.max(b)),
        ("and", B64) => lanes!(L64; a: L64, b: L64 => a & b),
        ("or", B64) => lanes!(L64; a: L64, b: L64 => a | b),
        ("xor", B64) => lanes!(L64; a: L64, b: L64 => a ^ b),
        _ => return None,
    })
}

/// Forms with three 64-bit sources.
pub fn ternary64(opcode: &str, ty: Type) -> Option<D3> {
    use Type::*;
    Some(match (opcode, ty) {
        ("sad", S64) => {
            lanes!(L64; a: L64, b: L64, c: L64 => (a as i64).abs_diff(b as i64).wrapping_add(c))
        }
        ("sad", U64) => lanes!(L64; a: L64, b: L64, c: L64 => a.abs_diff(b).wrapping_add(c)),
        ("mad.lo", S64 | U64) => lanes!(L64; a: L64, b: L64, c: L64 => a.wrapping_mul(b).wrapping_add(c)),
        ("mad.hi", U64) => {
            lanes!(L64; a: L64, b: L64, c: L64 => (((a as u128 * b as u128) >> 64) as u64).wrapping_add(c))
        }
        ("mad.hi", S64) => lanes!(L64; a: L64, b: L64, c: L64 =>
            (((a as i64 as i128 * b as i64 as i128) >> 64) as u64).wrapping_add(c)),
        _ => return None,
    })
}

/// Shifts of 64-bit values.
pub fn shift64(opcode: &str, ty: Type) -> Option<Shift64> {
    use Type::*;
    Some(match (opcode, ty) {
        ("shl", B64) => lanes!(L64; a: L64, b: L32 => if b < 64 { a << b } else { 0 }),
        ("shr", U64 | B64) => lanes!(L64; a: L64, b: L32 => if b < 64 { a >> b } else { 0 }),
        ("shr", S64) => lanes!(L64; a: L64, b: L32 => ((a as i64) >> b.min(63)) as u64),
        _ => return None,
    })
}

/// 32-bit factors, 64-bit product.
pub fn widen2(opcode: &str, ty: Type) -> Option<Widen2> {
    use Type::*;
    Some(match (opcode, ty) {
        ("mul.wide", S32) => lanes!(L64; a: L32, b: L32 => (s(a) as i64 * s(b) as i64) as u64),
        ("mul.wide", U32) => lanes!(L64; a: L32, b: L32 => a as u64 * b as u64),
        _ => return None,
    })
}

/// 32-bit factors, 64-bit addend and result.
pub fn widen3(opcode: &str, ty: Type) -> Option<Widen3> {
    use Type::*;
    Some(match (opcode, ty) {
        ("mad.wide", S32) => {
            lanes!(L64; a: L32, b: L32, c: L64 => ((s(a) as i64 * s(b) as i64) as u64).wrapping_add(c))
        }
        ("mad.wide", U32) => lanes!(L64; a: L32, b: L32, c: L64 => (a as u64 * b as u64).wrapping_add(c)),
        _ => return None,
    })
}

/// Rare forms, on one lane, with the number of sources.
pub fn rare(opcode: &str, ty: Type) -> Option<(Rare, usize)> {
    use Type::*;
    Some(match (opcode, ty) {
        ("bfi", B32) => (|[a, b, c, d]| insert(a, b, c, d, 32), 4),
        ("bfi", B64) => (|[a, b, c, d]| insert(a, b, c, d, 64), 4),
        ("bfe", U64) => (|[a, b, c, _]| extract(a, b as u32, c as u32, 64, false), 3),
        ("bfe", S64) => (|[a, b, c, _]| extract(a, b as u32, c as u32, 64, true), 3),
        ("prmt.f4e", B32) => (|[a, b, c, _]| permute(a as u32, b as u32, 0x3210 + 0x1111 * (c as u32 & 3)) as u64, 3),
        ("prmt.b4e", B32) => (|[a, b, c, _]| permute(a as u32, b as u32, PERMUTE_B4E[c as usize & 3]) as u64, 3),
        ("prmt.rc8", B32) => (|[a, b, c, _]| permute(a as u32, b as u32, 0x1111 * (c as u32 & 3)) as u64, 3),
        ("prmt.ecl", B32) => (|[a, b, c, _]| permute(a as u32, b as u32, PERMUTE_ECL[c as usize & 3]) as u64, 3),
        ("prmt.ecr", B32) => (|[a, b, c, _]| permute(a as u32, b as u32, PERMUTE_ECR[c as usize & 3]) as u64, 3),
        ("prmt.rc16", B32) => (|[a, b, c, _]| permute(a as u32, b as u32, PERMUTE_RC16[c as usize & 1]) as u64, 3),
        ("lop3", B32) => (|[a, b, c, table]| logic3(a as u32, b as u32, c as u32, table as u32) as u64, 4),
        ("fns", B32) => (|[mask, base, offset, _]| nth_set(mask as u32, base as u32, offset as i32) as u64, 3),
        ("dp2a.lo.u32", U32) => (|[a, b, c, _]| dot2(a, b as u32, c as u32, false, false) as u64, 3),
        ("dp2a.lo.u32", S32) => (|[a, b, c, _]| dot2(a, b as u32, c as u32, false, true) as u64, 3),
        ("dp2a.lo.s32", U32) => (|[a, b, c, _]| dot2(a, b as u32, c as u32, true, false) as u64, 3),
        ("dp2a.hi.u32", S32) => (|[a, b, c, _]| dot2(a, b as u32 >> 16, c as u32, false, true) as u64, 3),
        ("dp2a.hi.s32", U32) => (|[a, b, c, _]| dot2(a, b as u32 >> 16, c as u32, true, false) as u64, 3),
        ("dp2a.lo.s32", S32) => (|[a, b, c, _]| dot2(a, b as u32, c as u32, true, true) as u64, 3),
        ("dp2a.hi.u32", U32) => (|[a, b, c, _]| dot2(a, b as u32 >> 16, c as u32, false, false) as u64, 3),
        ("dp2a.hi.s32", S32) => (|[a, b, c, _]| dot2(a, b as u32 >> 16, c as u32, true, true) as u64, 3),
        _ => return None,
    })
}

const PERMUTE_B4E: [u32; 4] = [0x5670, 0x6701, 0x7012, 0x0123];
const PERMUTE_ECL: [u32; 4] = [0x3210, 0x3211, 0x3222, 0x3333];
const PERMUTE_ECR: [u32; 4] = [0x0000, 0x1110, 0x2210, 0x3210];
const PERMUTE_RC16: [u32; 2] = [0x1010, 0x3232];

fn logic3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    let mut out = 0;
    for index in 0..8 {
        if table >> index & 1 == 1 {
            let pick = |x: u32, bit: u32| if index >> bit & 1 == 1 { x } else { !x };
            out |= pick(a, 2) & pick(b, 1) & pick(c, 0);
        }
    }
    out
}

/// `fns`: position of the n-th set bit from `base`, upward for positive offsets, downward for negative ones.
fn nth_set(mask: u32, base: u32, offset: i32) -> u32 {
    let up = offset >= 0;
    let wanted = if offset == 0 { 1 } else { offset.unsigned_abs() };
    if base > 31 || (offset == 0 && mask >> base & 1 == 0) {
        return u32::MAX;
    }
    let mut seen = 0;
    let mut position = base as i32;
    while (0..32).contains(&position) {
        if mask >> position & 1 == 1 {
            seen += 1;
            if seen == wanted {
                return position as u32;
            }
        }
        position += if up { 1 } else { -1 };
    }
    u32::MAX
}

fn dot2(a: u64, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let mut sum = c;
    for i in 0..2 {
        let word = (a >> (16 * i)) as u16;
        let byte = (b >> (8 * i)) as u8;
        let x = if a_signed { word as i16 as i32 } else { word as i32 };
        let y = if b_signed { byte as i8 as i32 } else { byte as i32 };
        sum = sum.wrapping_add((x * y) as u32);
    }
    sum
}
