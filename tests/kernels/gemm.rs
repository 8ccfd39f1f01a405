//! Matrix products: all layouts, sizes that divide nothing, rows at every alignment, K in parts, and what is added.

use crate::ops::{hopper, simulators, tensor};
use nanochat_gpu::device::cpu::WriteMode;
use nanochat_gpu::device::gemm::{MMA, Operand, WGMMA, gemm};
use nanochat_gpu::device::modules::KERNELS;
use nanochat_gpu::tensor::{Arena, DType, Tensor};
use nanochat_gpu::verify::products::{GEMM, GEMM_TYPES, WIDE, gemm_case};

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

/// The PTX for compute capability 9.0, in its simulated tensor cores.
#[test]
fn the_modules_for_hopper() {
    let Some(gpu) = hopper() else { return };
    for size in [[97, 33, 65], [136, 264, 72], [68, 132, 100], [24, 40, 1128]].into_iter().chain(WIDE) {
        for types in GEMM_TYPES {
            let [first, second] = [(); 2].map(|()| gemm_case(gpu, size, types).unwrap_or_else(|m| panic!("{m}")));
            assert!(first == second, "{size:?} {types:?}: other bits the second time");
        }
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
