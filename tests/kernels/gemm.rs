//! Matrix products: all layouts, sizes that divide nothing, rows at every alignment, K in parts, and what is added.

use crate::ops::{check_on_all, hopper, hoppers, simulators, tensor};
use nanochat_gpu::device::cpu::WriteMode;
use nanochat_gpu::device::gemm::{MMA, Operand, WGMMA, gemm, gemm_mma};
use nanochat_gpu::device::modules::KERNELS;
use nanochat_gpu::tensor::{Arena, DType, Tensor};
use nanochat_gpu::verify::packed::{embedding_packed_on, gemm_packed_on};
use nanochat_gpu::verify::products::{GEMM, GEMM_TYPES, WIDE, gemm_case, gemm_on, gemm_rows_on};
use nanochat_gpu::verify::{Extent, normals};

/// Every transpose, twin and way to add, right and with the same bits under every order of warps.
#[test]
fn every_layout_and_type_at_awkward_sizes() {
    for (size, types) in GEMM.into_iter().flat_map(|size| GEMM_TYPES.map(|types| (size, types))) {
        let bits = |gpu| gemm_case(gpu, size, types).unwrap_or_else(|message| panic!("{message}"));
        let mut bits = simulators().into_iter().map(bits);
        let first = bits.next();
        assert!(bits.all(|bits| Some(&bits) == first.as_ref()), "{size:?} {types:?}: other bits, other order");
    }
}

/// What inference multiplies by: the same row has the same bits alone and among others.
#[test]
fn rows_do_not_depend_on_each_other() {
    check_on_all(gemm_rows_on);
}

/// The same with weights in the blocks of a file, and rows of a table of such.
#[test]
fn quantised_weights_are_read_as_they_are() {
    check_on_all(gemm_packed_on);
    check_on_all(embedding_packed_on);
}

/// The PTX for compute capability 9.0, in its simulated tensor cores: what `doctor --full` launches of products on such a device.
#[test]
fn the_modules_for_hopper() {
    let Some(gpu) = hopper() else { return };
    for check in [gemm_on, gemm_rows_on, gemm_packed_on] {
        check(gpu, Extent::All).unwrap_or_else(|message| panic!("{message}"));
    }
    let launched = gpu.take_launched();
    for kernel in KERNELS.iter().filter(|kernel| kernel.stem.starts_with("gemm_")) {
        assert!(launched.contains(&kernel.name), "{} was not launched", kernel.name);
    }
}

/// `wgmma` gives the same bits under every order of warps, and for the same parts of K those of `mma`, which sums in the same order;
/// no access meets another in a bank.
#[test]
fn wgmma_at_awkward_sizes() {
    // Each size in one type of C, which the kernels do not know before their last step.
    for (size @ [m, n, k], types) in WIDE.into_iter().zip(GEMM_TYPES[1..].iter().copied().cycle()) {
        let bits = |gpu| gemm_case(gpu, size, types).unwrap_or_else(|message| panic!("{message}"));
        let mut bits = hoppers().into_iter().map(bits);
        let first = bits.next();
        assert!(bits.all(|bits| Some(&bits) == first.as_ref()), "{size:?} {types:?}: other bits, other order");
        let Some(gpu) = hopper().filter(|_| [MMA, WGMMA].iter().all(|cut| cut.parts_of_k(size) == 1)) else { continue };
        let arena = Arena::scattered(gpu);
        let [a, b] = [[m, k], [k, n]].map(|[r, c]| tensor(&arena, types[0], [r, c], &normals("wgmma", r * c)));
        let [by_wgmma, by_mma] = [gemm, gemm_mma].map(|multiply| {
            let mut c = Tensor::uninit(&arena, [m, n], types[1]);
            let operands = [Operand::new(&a, m, k), Operand::new(&b, k, n)];
            multiply(&arena, &mut c.whole_mut(), operands[0], operands[1], WriteMode::Overwrite);
            c.to_bytes()
        });
        assert!(by_wgmma == by_mma, "{size:?} {types:?}: wgmma and mma give other bits");
    }
    for gpu in hoppers() {
        let counts = gpu.take_counts();
        for kernel in KERNELS.iter().filter(|kernel| kernel.stem == "gemm_wgmma") {
            let counted = counts.get(kernel.name).unwrap_or_else(|| panic!("{} was not launched", kernel.name));
            assert!(counted.tensor_macs > 0 && counted.bank_conflicts == 0, "{}: {counted:?}", kernel.name);
        }
    }
}

/// What `wgmma` reads and writes of memory at sizes that fill its tiles: each operand once for every tile, in whole sectors.
#[test]
fn wgmma_moves_whole_sectors() {
    let Some(gpu) = hopper() else { return };
    let (arena, [m, n, k]) = (Arena::scattered(gpu), [256, 256, 128]);
    for (layout, to) in [0, 1, 2, 3].into_iter().flat_map(|i| [DType::Bf16, DType::F32].map(|to| (i, to))) {
        let [a, b] = [m * k, k * n].map(|elems| tensor(&arena, DType::Bf16, [elems], &normals("wgmma", elems)));
        let left = if layout % 2 == 0 { Operand::new(&a, m, k) } else { Operand::new(&a, k, m).t() };
        let right = if layout / 2 == 0 { Operand::new(&b, n, k).t() } else { Operand::new(&b, k, n) };
        let mut c = Tensor::uninit(&arena, [m, n], to);
        gpu.take_counts();
        gemm(&arena, &mut c.whole_mut(), left, right, WriteMode::Overwrite);
        let counts = gpu.take_counts();
        let (name, counted) = counts.first_key_value().unwrap();
        let must = 2 * (m * k + 2 * k * n) + m * n * to.size_bytes();
        assert_eq!((counted.global_bytes_moved, counted.global_bytes_requested), (must as u64, must as u64), "{name}");
        assert_eq!(counted.tensor_macs as usize, m * n * k, "{name}");
    }
}

#[test]
fn no_depth_clears_or_keeps() {
    for gpu in simulators() {
        for types @ [from, to] in GEMM_TYPES {
            let arena = Arena::scattered(gpu);
            let empty = Tensor::uninit(&arena, [0], from);
            let (a, b) = (Operand::new(&empty, 5, 0), Operand::new(&empty, 0, 7));
            for (mode, want) in [(WriteMode::Overwrite, 0.0), (WriteMode::Accumulate, 3.0)] {
                let mut c = tensor(&arena, to, [5, 7], &[3.0; 35]);
                gemm(&arena, &mut c.whole_mut(), a, b, mode);
                assert!(c.to_f64().iter().all(|&x| x == want), "{types:?} {mode:?}: {:?}", c.to_f64());
            }
            gpu.synchronise().unwrap();
        }
    }
}

/// Each kernel of these files, at sizes that fill tiles and at sizes that do not: copies, main loop and epilogue.
#[test]
fn no_bank_conflicts_on_tensor_cores() {
    let Some(gpu) = simulators().pop() else { return };
    gpu.take_counts();
    for size in [[128, 128, 96], [136, 264, 200], [68, 132, 100], [70, 130, 66], [97, 33, 65], [30, 9, 1601]] {
        for &types in &GEMM_TYPES[1..] {
            gemm_case(gpu, size, types).unwrap_or_else(|message| panic!("{message}"));
        }
    }
    let counts = gpu.take_counts();
    for kernel in KERNELS.iter().filter(|kernel| ["gemm_mma", "gemm_mma_narrow"].contains(&kernel.stem)) {
        let counted = counts.get(kernel.name).unwrap_or_else(|| panic!("{} was not launched", kernel.name));
        assert!(counted.tensor_macs > 0 && counted.bank_conflicts == 0, "{}: {counted:?}", kernel.name);
    }
}

/// K is cut where few tiles would leave multiprocessors idle and each part is long; never into empty parts.
#[test]
fn parts_follow_from_the_sizes() {
    for (size, parts) in [
        ([768, 768, 32_768], [6, 7]),
        ([2304, 768, 32_768], [2, 2]),
        ([4096, 4096, 32_768], [1, 1]),
        ([768, 768, 900], [1, 1]),
        ([1, 768, 3072], [6, 6]),
        ([1, 1, 0], [1, 1]),
    ] {
        assert_eq!([MMA, WGMMA].map(|cut| cut.parts_of_k(size)), parts, "{size:?}");
    }
    for (cut, depth) in [(MMA, 32), (WGMMA, 64)] {
        for k in (1..20_000).step_by(7) {
            let (parts, steps) = (cut.parts_of_k([64, 64, k]), usize::div_ceil(k, depth));
            assert!(parts == 1 || (parts - 1) * steps.div_ceil(parts) < steps, "K {k}: a part of {parts} is empty");
            assert!(parts == 1 || steps / parts >= 480 / depth, "K {k}: {parts} parts are short");
        }
    }
}

#[test]
#[should_panic(expected = "matmul shapes")]
fn operands_that_do_not_fit_are_refused() {
    let Some(gpu) = simulators().pop() else { panic!("matmul shapes: no kernels in this build") };
    let arena = Arena::scattered(gpu);
    let (a, b) = (Tensor::zeros(&arena, [4, 8], DType::Bf16), Tensor::zeros(&arena, [4, 8], DType::Bf16));
    let mut c = Tensor::zeros(&arena, [4, 8], DType::Bf16);
    gemm(&arena, &mut c.whole_mut(), Operand::new(&a, 4, 8), Operand::new(&b, 4, 8), WriteMode::Overwrite);
}
