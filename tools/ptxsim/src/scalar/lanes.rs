//! A warp's worth of values, and the macro that turns arithmetic on one lane into a vectorised loop over 32.

use pulp::Arch;

/// 32 values of at most 32 bits, one per lane. A 16-bit value has zeros above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(64))]
pub struct L32(pub [u32; 32]);

/// 32 values of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(64))]
pub struct L64(pub [u64; 32]);

impl Default for L32 {
    fn default() -> L32 {
        L32::ZERO
    }
}

impl Default for L64 {
    fn default() -> L64 {
        L64::ZERO
    }
}

impl L32 {
    /// All lanes zero.
    pub const ZERO: L32 = L32([0; 32]);
}

impl L64 {
    /// All lanes zero.
    pub const ZERO: L64 = L64([0; 32]);
}

/// One 32-bit source, 32-bit result.
pub type F1 = fn(Arch, &L32, &mut L32);
/// Two 32-bit sources, 32-bit result.
pub type F2 = fn(Arch, &L32, &L32, &mut L32);
/// Three 32-bit sources, 32-bit result.
pub type F3 = fn(Arch, &L32, &L32, &L32, &mut L32);
/// One 64-bit source, 64-bit result.
pub type D1 = fn(Arch, &L64, &mut L64);
/// Two 64-bit sources, 64-bit result.
pub type D2 = fn(Arch, &L64, &L64, &mut L64);
/// Three 64-bit sources, 64-bit result.
pub type D3 = fn(Arch, &L64, &L64, &L64, &mut L64);
/// A shift: 64-bit value, 32-bit amount.
pub type Shift64 = fn(Arch, &L64, &L32, &mut L64);
/// 32-bit source, 64-bit result.
pub type Widen1 = fn(Arch, &L32, &mut L64);
/// Two 32-bit sources, 64-bit result.
pub type Widen2 = fn(Arch, &L32, &L32, &mut L64);
/// Two 32-bit factors and a 64-bit addend.
pub type Widen3 = fn(Arch, &L32, &L32, &L64, &mut L64);
/// 64-bit source, 32-bit result.
pub type Narrow1 = fn(Arch, &L64, &mut L32);
/// A comparison: bit per lane.
pub type Compare32 = fn(Arch, &L32, &L32) -> u32;
/// A comparison of 64-bit values.
pub type Compare64 = fn(Arch, &L64, &L64) -> u32;
/// Anything rare, on one lane: up to four sources widened with zeros.
pub type Rare = fn([u64; 4]) -> u64;

/// `vector!('w, arch; a: &'w L64 = addresses => u64 { ... })` runs a block compiled for the widest vectors of the machine. What
/// it uses is handed over by name and type: a closure would not be compiled for them. A plain call into code that has the
/// features, rather than through `Arch::dispatch`, which packs the arguments into a structure in memory first.
macro_rules! vector {
    ($w:lifetime, $arch:expr; $($name:ident : $ty:ty = $value:expr),+ => $out:ty $body:block) => {{
        #[inline(always)]
        #[allow(clippy::extra_unused_lifetimes, clippy::too_many_arguments)]
        fn plain<$w>($($name: $ty),+) -> $out $body

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "sse4.2,popcnt,avx,avx2,bmi1,bmi2,fma,lzcnt")]
        #[allow(clippy::extra_unused_lifetimes, clippy::too_many_arguments)]
        fn with_avx2<$w>($($name: $ty),+) -> $out {
            plain($($name),+)
        }

        match $arch {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `V3` exists only where these features were found.
            pulp::Arch::V3(_) => unsafe { with_avx2($($value),+) },
            _ => plain($($value),+),
        }
    }};
}

/// `lanes!(L32; a: L32, b: L32 => a.wrapping_add(b))` is a function that computes the expression in every lane.
macro_rules! lanes {
    ($out:ident; $($x:ident : $t:ident),+ => $e:expr) => {{
        fn run(arch: pulp::Arch, $($x: &$crate::scalar::lanes::$t,)+ out: &mut $crate::scalar::lanes::$out) {
            vector!('w, arch;
                $($x: &'w $crate::scalar::lanes::$t = $x,)+
                out: &'w mut $crate::scalar::lanes::$out = out
                => () {
                    for lane in 0..32 {
                        $(let $x = $x.0[lane];)+
                        out.0[lane] = $e;
                    }
                }
            )
        }
        run
    }};
}

/// `compare!(L32; a, b => a < b)` is a function that gives a mask of the lanes for which the expression holds.
macro_rules! compare {
    ($t:ident; $a:ident, $b:ident => $e:expr) => {{
        fn run(arch: pulp::Arch, $a: &$crate::scalar::lanes::$t, $b: &$crate::scalar::lanes::$t) -> u32 {
            vector!('w, arch;
                $a: &'w $crate::scalar::lanes::$t = $a,
                $b: &'w $crate::scalar::lanes::$t = $b
                => u32 {
                    let mut mask = 0;
                    for lane in 0..32 {
                        let ($a, $b) = ($a.0[lane], $b.0[lane]);
                        mask |= if $e { 1u32 << lane } else { 0 };
                    }
                    mask
                }
            )
        }
        run
    }};
}

/// `a` in the lanes of `mask`, `b` in the others.
#[inline(always)]
pub fn select32(arch: Arch, a: &L32, b: &L32, mask: u32, out: &mut L32) {
    vector!('w, arch; a: &'w L32 = a, b: &'w L32 = b, mask: u32 = mask, out: &'w mut L32 = out => () {
        for lane in 0..32 {
            out.0[lane] = if mask & (1 << lane) != 0 { a.0[lane] } else { b.0[lane] };
        }
    })
}

/// `a` in the lanes of `mask`, `b` in the others.
#[inline(always)]
pub fn select64(arch: Arch, a: &L64, b: &L64, mask: u32, out: &mut L64) {
    vector!('w, arch; a: &'w L64 = a, b: &'w L64 = b, mask: u32 = mask, out: &'w mut L64 = out => () {
        for lane in 0..32 {
            out.0[lane] = if mask & (1 << lane) != 0 { a.0[lane] } else { b.0[lane] };
        }
    })
}

/// Copies the lanes of `mask` from `new` to `old`.
#[inline(always)]
pub fn blend32(arch: Arch, old: &mut L32, new: &L32, mask: u32) {
    if mask == u32::MAX {
        *old = *new;
        return;
    }
    vector!('w, arch; old: &'w mut L32 = old, new: &'w L32 = new, mask: u32 = mask => () {
        for lane in 0..32 {
            old.0[lane] = if mask & (1 << lane) != 0 { new.0[lane] } else { old.0[lane] };
        }
    })
}

/// Copies the lanes of `mask` from `new` to `old`.
#[inline(always)]
pub fn blend64(arch: Arch, old: &mut L64, new: &L64, mask: u32) {
    if mask == u32::MAX {
        *old = *new;
        return;
    }
    vector!('w, arch; old: &'w mut L64 = old, new: &'w L64 = new, mask: u32 = mask => () {
        for lane in 0..32 {
            old.0[lane] = if mask & (1 << lane) != 0 { new.0[lane] } else { old.0[lane] };
        }
    })
}

/// The lanes of a mask, lowest first.
pub fn each(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}
