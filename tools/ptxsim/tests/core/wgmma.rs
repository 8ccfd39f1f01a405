//! `wgmma` of every element type and many widths, on PTX written here: operands in shared memory without a swizzle, K-major.

use super::{module, words};
use ptxsim::host::{Arg, Device};
use ptxsim::launch::Geometry;
use ptxsim::options::Options;
use ptxsim::units::tensor_core::{Accumulator, Arithmetic, Generation, Operand, Product, multiply_add};
use pulp::Arch;

/// Bytes of a row of A or B along k.
const ROW_BYTES: usize = 32;

/// A kernel of one product of 64 x n: it takes A, B (as they lie in shared memory) and the accumulators of each thread.
fn kernel(form: &str, n: usize, registers: usize, ty: &str, immediates: &str) -> String {
    let bytes = (64 + n) * ROW_BYTES;
    let list = |each: &dyn Fn(usize) -> String| (0..registers).map(each).collect::<Vec<_>>();
    let loads = list(&|i| format!("ld.global.{ty} %d{i}, [%rd8+{}];", 4 * i)).join(" ");
    let stores = list(&|i| format!("st.global.{ty} [%rd9+{}], %d{i};", 4 * i)).join(" ");
    let names = list(&|i| format!("%d{i}")).join(", ");
    module(&format!(
        ".reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .pred %p<3>; .reg .{ty} %d<{registers}>; .shared .align 1024 .b8 s[{bytes}];
        ld.param.u64 %rd0, [out]; ld.param.u64 %rd1, [in]; mov.u32 %r0, %tid.x; mov.u32 %r1, s; shl.b32 %r2, %r0, 2;
        LOOP: cvt.u64.u32 %rd2, %r2; add.u64 %rd3, %rd1, %rd2; ld.global.u32 %r3, [%rd3]; add.u32 %r4, %r1, %r2;
        st.shared.u32 [%r4], %r3; add.u32 %r2, %r2, 512; setp.lt.u32 %p0, %r2, {bytes}; @%p0 bra LOOP;
        fence.proxy.async.shared::cta; bar.sync 0;
        mul.wide.u32 %rd4, %r0, {}; add.u64 %rd8, %rd1, %rd4; add.u64 %rd8, %rd8, {bytes}; add.u64 %rd9, %rd0, %rd4; {loads}
        shr.u32 %r5, %r1, 4; cvt.u64.u32 %rd5, %r5; or.b64 %rd5, %rd5, {}; add.u64 %rd6, %rd5, {}; setp.eq.u32 %p1, %r1, %r1;
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n{n}k{form} {{{names}}}, %rd5, %rd6, %p1, 1, 1{immediates};
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; {stores} ret;",
        4 * registers,
        // Core matrices of 128 bytes: along k the next one, along rows the next pair.
        8u64 << 16 | 16 << 32,
        64 * ROW_BYTES / 16,
    ))
}

/// Bytes with an operand's rows in core matrices of 8 rows of 16 bytes.
fn lay_out(rows: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0; rows.len() * ROW_BYTES];
    for (mn, row) in rows.iter().enumerate() {
        for (k, byte) in row.iter().enumerate() {
            bytes[(mn / 8 * 2 + k / 16) * 128 + mn % 8 * 16 + k % 16] = *byte;
        }
    }
    bytes
}

#[test]
fn every_type_and_width() {
    let types = [
        (Operand::Bf16, Accumulator::F32, "16.f32.bf16.bf16", "f32", ", 0, 0"),
        (Operand::F16, Accumulator::F32, "16.f32.f16.f16", "f32", ", 0, 0"),
        (Operand::F16, Accumulator::F16, "16.f16.f16.f16", "b32", ", 0, 0"),
        (Operand::Tf32, Accumulator::F32, "8.f32.tf32.tf32", "f32", ""),
    ];
    for (operand, accumulator, form, ty, immediates) in types {
        let size = if operand == Operand::Tf32 { 4 } else { 2 };
        let k = ROW_BYTES / size;
        // Exponents near that of 1, so that sums keep many bits.
        let near_one = |word: u32| match operand {
            Operand::Bf16 => word & 0x807f | (124 + (word >> 20) % 6) << 7,
            Operand::F16 => word & 0x83ff | (12 + (word >> 20) % 6) << 10,
            Operand::Tf32 => word & 0x807f_ffff | (124 + (word >> 24) % 6) << 23,
        };
        for n in [8, 24, 40, 64, 136, 248, 256] {
            let a: Vec<u32> = words(64 * k, 1).into_iter().map(near_one).collect();
            let b: Vec<u32> = words(n * k, 2).into_iter().map(near_one).collect();
            let row = |list: &[u32]| list.iter().flat_map(|x| x.to_le_bytes()[..size].to_vec()).collect::<Vec<u8>>();
            let rows = |list: &[u32]| list.chunks(k).map(row).collect::<Vec<_>>();
            let halves = accumulator == Accumulator::F16;
            let c: Vec<u32> = words(64 * n, 3)
                .into_iter()
                .map(|word| if halves { word & 0x83ff | 15 << 10 } else { word & 0x807f_ffff | 127 << 23 })
                .collect();
            // Register i of a thread: row 16 w + g + 8 (i / 2 % 2), column 8 (i / 4) + 2 t + i % 2; halves two to a register.
            let at = |thread: usize, i: usize| {
                let (g, t) = (thread % 32 / 4, thread % 4);
                (16 * (thread / 32) + g + 8 * (i / 2 % 2)) * n + 8 * (i / 4) + 2 * t + i % 2
            };
            let fragments = |tile: &[u32]| -> Vec<u32> {
                let all: Vec<u32> = (0..128 * n / 2).map(|i| tile[at(i / (n / 2), i % (n / 2))]).collect();
                match halves {
                    true => all.as_chunks::<2>().0.iter().map(|[low, high]| low | high << 16).collect(),
                    false => all,
                }
            };
            let mut input = lay_out(&rows(&a));
            input.extend(lay_out(&rows(&b)));
            input.extend(fragments(&c).into_iter().flat_map(u32::to_le_bytes));
            let registers = if halves { n / 4 } else { n / 2 };
            let mut device = Device::new();
            let from = device.upload(&input, |byte: u8| [byte]).expect("memory");
            let out = device.alloc(4 * 128 * registers as u64).expect("memory");
            let module = device.load("wgmma.ptx", &kernel(form, n, registers, ty, immediates));
            let function = module.unwrap_or_else(|error| panic!("{error}")).function("k").expect("an entry");
            let args = [Arg::Pointer(out), Arg::Pointer(from)];
            let outcome = device.launch(&function, &Geometry::linear(1, 128), &args, &Options::default());
            assert_eq!(outcome.unwrap_or_else(|error| panic!("{error}")).findings, []);
            let b_rows: Vec<u32> = (0..k * n).map(|i| b[i % n * k + i / n]).collect();
            let mut d = c.clone();
            let product = Product { operand, accumulator, arithmetic: Arithmetic::Exact(Generation::Hopper), k };
            multiply_add(Arch::new(), product, &a, &b_rows, &mut d, n);
            let got = device.download(out, 128 * registers, u32::from_le_bytes).expect("memory");
            assert!(got == fragments(&d), "{form}, {n} columns");
        }
    }
}
