use crate::gpu::{Gpu, everywhere, geometry, random_words};
use crate::nvcc::Arch;
use ptxsim::host::Arg;
use ptxsim::options::Options;
use ptxsim::units::swizzle::Swizzle;
use ptxsim::units::tensor_map::{DataType, Fill, Im2col, TensorMap};

const CHANNELS: usize = 20;
const WIDTH: usize = 7;
const HEIGHT: usize = 5;
const IMAGES: usize = 3;
/// Channels of a pixel that one copy moves.
const PART: usize = 8;

/// Images for a 3 x 3 convolution with padding 1: the box of first pixels goes from -1 to the extent less 2.
fn images(address: u64, step: u32, pixels: u32) -> TensorMap {
    let pitch = 4 * CHANNELS as u64;
    TensorMap {
        data_type: DataType::F32,
        address,
        dims: [CHANNELS, WIDTH, HEIGHT, IMAGES].map(|dim| dim as u64).to_vec(),
        strides_bytes: vec![pitch, pitch * WIDTH as u64, pitch * (WIDTH * HEIGHT) as u64],
        box_dims: vec![1; 4],
        element_strides: vec![1, step, step, 1],
        swizzle: Swizzle::B32,
        fill: Fill::Zero,
        im2col: Some(Im2col { lower: vec![-1, -1], upper: vec![-1, -1], channels: PART as u32, pixels }),
    }
}

/// Where word `index` of a column lies in shared memory: chunks of 16 bytes exchanged by the line's number.
fn place(index: usize) -> usize {
    let (line, chunk, within) = (index / 32, index / 4 % 8, index % 4);
    line * 32 + (chunk ^ line & 1) * 4 + within
}

/// Word of the images that tap (s, r) of output pixel `index` takes, channel `c`; None in the padding.
fn tap(step: usize, index: usize, (s, r): (usize, usize), c: usize) -> Option<usize> {
    // Outputs of a convolution: (extent + 2 - 3) / step + 1 per dimension.
    let (columns, rows) = ((WIDTH - 1) / step + 1, (HEIGHT - 1) / step + 1);
    let (image, row, column) = (index / (rows * columns), index / columns % rows, index % columns);
    let (y, x) = (row * step + r, column * step + s);
    let inside = (1..=HEIGHT).contains(&y) && (1..=WIDTH).contains(&x) && image < IMAGES && c < CHANNELS;
    inside.then(|| ((image * HEIGHT + y - 1) * WIDTH + x - 1) * CHANNELS + c)
}

#[test]
fn columns_of_pixels_are_the_taps_of_a_convolution() {
    let words = random_words(CHANNELS * WIDTH * HEIGHT * IMAGES, 1);
    everywhere("tensor_maps", |gpu| {
        let address = gpu.words(&words);
        for (step, first, pixels, c) in [(1, 0, 40, 0), (1, 30, 64, 8), (2, 5, 24, 4), (2, 0, 48, 16)] {
            let map = images(address, step as u32, pixels as u32);
            let (columns, rows) = ((WIDTH - 1) / step + 1, (HEIGHT - 1) / step + 1);
            for offsets in [(0, 0), (1, 2), (2, 1)] {
                let mut expected = vec![0; pixels * PART];
                for index in 0..pixels * PART {
                    let word = tap(step, first + index / PART, offsets, c + index % PART);
                    expected[place(index)] = word.map_or(0, |at| words[at]);
                }
                let at = |index: usize, step: usize| (index * step) as i32 - 1;
                let out = gpu.space(4 * expected.len());
                let mut args = vec![Arg::Bytes(map.encode().expect("a legal map").to_vec()), Arg::Pointer(out)];
                args.push(Arg::U32(map.box_bytes()));
                let (w, h) = (at(first % columns, step), at(first / columns % rows, step));
                let n = (first / columns / rows) as i32;
                args.extend([c as i32, w, h, n, offsets.0 as i32, offsets.1 as i32].map(Arg::I32));
                gpu.run("pixels_2d", geometry([1; 3], [32, 1, 1], map.box_bytes()), &args);
                let got = gpu.read_words(out, expected.len());
                assert!(got == expected, "step {step}, from pixel {first} on, {offsets:?}");
            }
        }
    });
}

#[test]
fn columns_of_pixels_are_stored_without_offsets() {
    everywhere("tensor_maps", |gpu| {
        let (pixels, c) = (50, 16);
        let mut expected = random_words(CHANNELS * WIDTH * HEIGHT * IMAGES, 2);
        let (address, given) = (gpu.words(&expected), random_words(pixels * PART, 3));
        let map = TensorMap { swizzle: Swizzle::None, ..images(address, 1, pixels as u32) };
        // The first pixel is (-1, -1): its tap (0, 0) lies in the padding.
        for (index, value) in given.iter().enumerate() {
            if let Some(at) = tap(1, index / PART, (0, 0), c + index % PART) {
                expected[at] = *value;
            }
        }
        let input = gpu.words(&given);
        let mut args = vec![Arg::Bytes(map.encode().expect("a legal map").to_vec()), Arg::Pointer(input)];
        args.push(Arg::U32(map.box_bytes()));
        args.extend([c as i32, -1, -1, 0].map(Arg::I32));
        gpu.run("pixels_stored", geometry([1; 3], [32, 1, 1], map.box_bytes()), &args);
        assert!(gpu.read_words(address, expected.len()) == expected);
    });
}

#[test]
fn a_box_by_an_im2col_map_is_an_error() {
    let mut gpu = Gpu::new("tensor_maps", Arch::Sm90a, Options::default());
    let (address, changed, out) = (gpu.zeros(8400), gpu.zeros(128), gpu.zeros(1024));
    let map = images(address, 1, 8);
    let mut args = vec![Arg::Bytes(map.encode().expect("a legal map").to_vec())];
    args.extend([changed, out].map(Arg::Pointer));
    args.extend([Arg::U32(256), Arg::Pointer(address), Arg::U32(8), Arg::U32(8), Arg::U64(32), Arg::U32(8)]);
    args.extend([0, 0].map(Arg::I32));
    let error = gpu.fails("changed_map", geometry([1; 3], [32, 1, 1], 256), &args);
    assert!(error.to_string().contains("dimensions"), "{error}");
}

#[test]
fn a_kernel_changes_a_map() {
    let (width, height, pitch) = (13usize, 9usize, 16usize);
    let tensor = random_words(pitch * height, 4);
    everywhere("tensor_maps", |gpu| {
        let (other, address, changed) = (gpu.zeros(4096), gpu.words(&tensor), gpu.zeros(128));
        let map = TensorMap {
            data_type: DataType::F32,
            address: other,
            dims: vec![32, 32],
            strides_bytes: vec![128],
            box_dims: vec![32, 6],
            element_strides: vec![1; 2],
            swizzle: Swizzle::B128,
            fill: Fill::Zero,
            im2col: None,
        };
        let (box_width, x, y) = (8usize, 9i32, -2i32);
        let bytes = 4 * box_width as u32 * 6;
        let out = gpu.space(bytes as usize);
        let mut args = vec![Arg::Bytes(map.encode().expect("a legal map").to_vec())];
        args.extend([changed, out].map(Arg::Pointer));
        args.extend([Arg::U32(bytes), Arg::Pointer(address), Arg::U32(width as u32), Arg::U32(height as u32)]);
        args.extend([Arg::U64(4 * pitch as u64), Arg::U32(box_width as u32), Arg::I32(x), Arg::I32(y)]);
        // The box of the map before it is changed would be larger.
        gpu.run("changed_map", geometry([1; 3], [32, 1, 1], 1024), &args);
        let expected: Vec<u32> = (0..box_width * 6)
            .map(|i| {
                let (column, row) = (x + (i % box_width) as i32, y + (i / box_width) as i32);
                let inside = (0..width as i32).contains(&column) && (0..height as i32).contains(&row);
                if inside { tensor[row as usize * pitch + column as usize] } else { 0x7fff_ffff }
            })
            .collect();
        assert_eq!(gpu.read_words(out, expected.len()), expected);
    });
}
