use crate::gpu::{everywhere, geometry, random_words};
use ptxsim::host::Arg;
use ptxsim::units::swizzle::Swizzle;
use ptxsim::units::tensor_map::{DataType, Fill, TensorMap};

/// A tensor of words with these extents, rows padded to 16 bytes and 16 more.
fn map(address: u64, dims: &[u64], box_dims: &[u32], swizzle: Swizzle, fill: Fill) -> TensorMap {
    let mut strides_bytes = Vec::new();
    let mut pitch = (dims[0] * 4).next_multiple_of(16) + 16;
    for dim in &dims[1..] {
        strides_bytes.push(pitch);
        pitch *= dim;
    }
    TensorMap {
        data_type: DataType::F32,
        address,
        dims: dims.to_vec(),
        strides_bytes,
        box_dims: box_dims.to_vec(),
        element_strides: vec![1; dims.len()],
        swizzle,
        fill,
        im2col: None,
    }
}

fn tensor_words(map: &TensorMap) -> usize {
    let rows: u64 = map.dims[1..].iter().product();
    (map.strides_bytes.first().map_or(map.dims[0] * 4, |pitch| pitch * rows) / 4) as usize
}

/// Word offset in the tensor of element `index` (a count through the box) at these coordinates; None outside.
fn element(map: &TensorMap, coordinates: &[i32], mut index: u32) -> Option<usize> {
    let mut offset = 0;
    for (d, (extent, start)) in map.box_dims.iter().zip(coordinates).enumerate() {
        let at = i64::from(*start) + i64::from(index % extent);
        index /= extent;
        if at < 0 || at >= map.dims[d] as i64 {
            return None;
        }
        offset += at as u64 * if d == 0 { 4 } else { map.strides_bytes[d - 1] };
    }
    Some(offset as usize / 4)
}

/// Where word `index` of a box lies in shared memory, by the tables of the manual.
fn place(swizzle: Swizzle, index: u32) -> u32 {
    let (line, chunk, within) = (index / 32, index / 4 % 8, index % 4);
    let mask = match swizzle {
        Swizzle::None => 0,
        Swizzle::B32 => 1,
        Swizzle::B64 => 3,
        Swizzle::B128 => 7,
    };
    line * 32 + (chunk ^ line & mask) * 4 + within
}

type Case = (&'static [u64], &'static [u32], [i32; 5], Swizzle, Fill);

const LOADS: [Case; 9] = [
    (&[100], &[64], [50, 0, 0, 0, 0], Swizzle::None, Fill::Zero),
    (&[100], &[8], [-4, 0, 0, 0, 0], Swizzle::B32, Fill::Nan),
    (&[50, 20], &[32, 8], [-3, 15, 0, 0, 0], Swizzle::B128, Fill::Zero),
    (&[50, 20], &[16, 16], [40, -5, 0, 0, 0], Swizzle::B64, Fill::Nan),
    (&[50, 20], &[8, 32], [2, 1, 0, 0, 0], Swizzle::B32, Fill::Zero),
    (&[40, 7, 5], &[32, 4, 3], [4, 5, 3, 0, 0], Swizzle::B128, Fill::Zero),
    (&[12, 5, 4, 3], &[12, 2, 3, 2], [0, -1, 2, 2, 0], Swizzle::None, Fill::Zero),
    (&[9, 4, 3, 3, 2], &[8, 2, 2, 2, 2], [3, 3, -1, 2, 1], Swizzle::B32, Fill::Nan),
    (&[33, 4, 3, 3, 2], &[32, 1, 2, 1, 2], [1, 2, 1, 0, 0], Swizzle::B128, Fill::Zero),
];

#[test]
fn loads_of_every_rank_and_swizzle() {
    everywhere("tensor_copies", |gpu| {
        for (case, (dims, box_dims, coordinates, swizzle, fill)) in LOADS.iter().enumerate() {
            let words = random_words(tensor_words(&map(0, dims, box_dims, *swizzle, *fill)), case as u64);
            let map = map(gpu.words(&words), dims, box_dims, *swizzle, *fill);
            let count = map.box_bytes() / 4;
            let outside = if *fill == Fill::Nan { 0x7fff_ffff } else { 0 };
            let mut expected = vec![0; count as usize];
            for index in 0..count {
                let value = element(&map, coordinates, index).map_or(outside, |at| words[at]);
                expected[place(*swizzle, index) as usize] = value;
            }
            let out = gpu.space(4 * count as usize);
            let mut args = vec![Arg::Bytes(map.encode().expect("a valid map").to_vec()), Arg::Pointer(out)];
            args.push(Arg::U32(4 * count));
            args.extend(coordinates.map(Arg::I32));
            let kernel = format!("tensor_load_{}d_kernel", dims.len());
            gpu.run(&kernel, geometry([1, 1, 1], [128, 1, 1], 4 * count), &args);
            assert_eq!(gpu.read_words(out, count as usize), expected, "case {case}");
        }
    });
}

const STORES: [Case; 4] = [
    (&[50, 20], &[32, 8], [-3, 15, 0, 0, 0], Swizzle::B128, Fill::Zero),
    (&[50, 20], &[16, 16], [40, -5, 0, 0, 0], Swizzle::B64, Fill::Zero),
    (&[50, 20], &[40, 3], [12, 4, 0, 0, 0], Swizzle::None, Fill::Zero),
    (&[40, 7, 5], &[32, 4, 3], [4, 5, 3, 0, 0], Swizzle::B128, Fill::Zero),
];

/// Stores write what lies inside the tensor and nothing else; reductions add it.
#[test]
fn stores_and_reductions() {
    everywhere("tensor_copies", |gpu| {
        for (case, (dims, box_dims, coordinates, swizzle, fill)) in STORES.iter().enumerate() {
            for reduce in [0, 1] {
                if dims.len() == 3 && reduce == 1 {
                    continue;
                }
                let size = tensor_words(&map(0, dims, box_dims, *swizzle, *fill));
                let small = |seed: u64, count: usize| -> Vec<f32> {
                    random_words(count, seed).into_iter().map(|word| (word % 1000) as f32).collect()
                };
                let before = small(case as u64, size);
                let map = map(gpu.floats(&before), dims, box_dims, *swizzle, *fill);
                let count = map.box_bytes() / 4;
                let from = small(99 + case as u64, count as usize);
                let mut expected = before.clone();
                for index in 0..count {
                    if let Some(at) = element(&map, coordinates, index) {
                        let value = from[place(*swizzle, index) as usize];
                        expected[at] = if reduce == 1 { expected[at] + value } else { value };
                    }
                }
                let mut args = vec![Arg::Bytes(map.encode().expect("a valid map").to_vec())];
                args.extend([Arg::Pointer(gpu.floats(&from)), Arg::U32(4 * count)]);
                args.extend(coordinates[..dims.len()].iter().map(|at| Arg::I32(*at)));
                if dims.len() == 2 {
                    args.push(Arg::I32(reduce));
                }
                let kernel = format!("tensor_store_{}d_kernel", dims.len());
                gpu.run(&kernel, geometry([1, 1, 1], [128, 1, 1], 4 * count), &args);
                assert_eq!(gpu.read_floats(map.address, size), expected, "case {case}, reduce {reduce}");
            }
        }
    });
}
