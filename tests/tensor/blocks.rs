//! Blocks of quantised weights: against numbers that the Python package `gguf` 0.19 gave, and bounds of rounding.

use half::f16;
use nanochat_gpu::tensor::BlockType;
use nanochat_gpu::verify::normals;

/// Bytes `37 i + 11`, with f16 scales written over them.
fn sample_block(kind: BlockType) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..kind.block_bytes()).map(|i| (i * 37 + 11) as u8).collect();
    let scales: &[(usize, f32)] = match kind {
        BlockType::Q4_1 => &[(0, 0.03125), (2, -1.5)],
        BlockType::Q6K => &[(208, 0.03125)],
        _ => &[(0, 0.03125)],
    };
    for &(at, scale) in scales {
        bytes[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    }
    bytes
}

fn dequantised(kind: BlockType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; bytes.len() / kind.block_bytes() * kind.block_elems()];
    kind.dequantise(bytes, &mut out);
    out
}

fn quantised(kind: BlockType, values: &[f32]) -> Vec<u8> {
    let mut out = vec![0xAA; kind.row_bytes(values.len()).unwrap()];
    kind.quantise(values, &mut out);
    out
}

#[test]
fn blocks_are_read_as_others_read_them() {
    // First and last elements, their sum, and their sum weighted by place, from 1.
    type Row = (BlockType, [f32; 3], f32, f64, f64);
    let rows: [Row; 4] = [
        (BlockType::Q8_0, [2.65625, 3.8125, -3.03125], -1.5, -5.5, -252.5),
        (BlockType::Q4_0, [-0.09375, 0.0625, 0.21875], 0.0, -0.65625, -16.1875),
        (BlockType::Q4_1, [-1.03125, -1.375, -1.21875], -1.125, -40.34375, -667.53125),
        (BlockType::Q6K, [-44.71875, 53.0, 18.21875], -1.875, 144.125, 24513.125),
    ];
    for (kind, first, last, sum, weighted) in rows {
        let values = dequantised(kind, &sample_block(kind));
        assert_eq!((&values[..3], values[values.len() - 1]), (&first[..], last), "{}", kind.name());
        assert_eq!(values.iter().map(|&x| f64::from(x)).sum::<f64>(), sum, "{}", kind.name());
        let places = values.iter().enumerate().map(|(i, &x)| (i + 1) as f64 * f64::from(x));
        assert_eq!(places.sum::<f64>(), weighted, "{}", kind.name());
    }
    assert_eq!(dequantised(BlockType::F16, &[0x00, 0x3C, 0x01, 0x80]), [1.0, -5.960_464_5e-8]);
    assert_eq!(dequantised(BlockType::Bf16, &[0x80, 0x3F, 0x20, 0xC0]), [1.0, -2.5]);
}

#[test]
fn blocks_are_written_as_others_write_them() {
    let values: Vec<f32> = (0..64).map(|i| (((i * 37 + 11) % 256) as f32 - 128.0) / 61.0).collect();
    let hex = |kind| quantised(kind, &values).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(BlockType::Q4_0), "ac335083b5d8fa1d3f6083b5d8fa1d3f60832a34fb2d4f7294b6e9fb2d4f7294b6e90b2d");
    assert_eq!(
        hex(BlockType::Q4_1),
        "0a34acbf5082a5c7fa1c3e5083a5d7fa1c3f60836d342ac0fa2c4e6184b6d8fa2c4f6294b6d80a2d"
    );
    assert_eq!(
        hex(BlockType::Q8_0),
        "bc2381a9d1f9224a7284acd5fd254d7588b0d8002850788bb3db032b547c8eb6de07\
         32242b50759abfe4092e53789dc2e70c31567ba0c5ea0f34597ea3c8ed12375c81a6"
    );
}

#[test]
fn rounding_stays_within_half_a_step() {
    let values: Vec<f32> = normals("blocks", 1024).iter().map(|&x| x as f32 * 0.05).collect();
    for kind in BlockType::ALL {
        let back = dequantised(kind, &quantised(kind, &values));
        for (block, values) in back.chunks(kind.block_elems()).zip(values.chunks(kind.block_elems())) {
            let most = values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            // Half a step, and what f16 scales are off, which is 2^-11 of the most.
            let bound = match kind {
                BlockType::F32 => 0.0,
                // Small ones are rounded to a multiple of 2^-24.
                BlockType::F16 => most / 2048.0 + 2.0_f32.powi(-25),
                BlockType::Bf16 => most / 256.0,
                BlockType::Q8_0 => most / 127.0 / 2.0 + most / 1024.0,
                // The side of the other sign has one step less: what is as far is a whole step off.
                BlockType::Q4_0 => most / 8.0 + most / 1024.0,
                BlockType::Q4_1 => 2.0 * most / 15.0 / 2.0 + most / 512.0,
                // One step less on one side, and 8 bits for the scale of 16.
                BlockType::Q6K => most / 32.0 * 1.5,
            };
            for (got, want) in block.iter().zip(values) {
                assert!((got - want).abs() <= bound, "{}: {got}, {want}, bound {bound}", kind.name());
            }
        }
        let error = |back: &[f32]| back.iter().zip(&values).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        let relative = (error(&back) / values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>()).sqrt();
        let most = match kind {
            BlockType::F32 => 0.0,
            BlockType::F16 => 4e-4,
            BlockType::Bf16 => 3e-3,
            BlockType::Q8_0 => 7e-3,
            BlockType::Q6K => 2.5e-2,
            BlockType::Q4_0 | BlockType::Q4_1 => 0.11,
        };
        assert!(relative <= most, "{}: {relative}", kind.name());
    }
}

#[test]
fn odd_blocks_keep_their_meaning() {
    for kind in BlockType::ALL {
        assert_eq!(dequantised(kind, &quantised(kind, &[0.0; 256])), [0.0; 256], "{}", kind.name());
        let tiny = dequantised(kind, &quantised(kind, &[1e-42; 256]));
        assert!(tiny.iter().all(|x| (0.0..=1e-6).contains(x)), "{}", kind.name());
        let same = dequantised(kind, &quantised(kind, &[-0.75; 256]));
        assert!(same.iter().all(|x| (x + 0.75).abs() <= 0.01), "{}: {same:?}", kind.name());
    }
    assert_eq!(BlockType::Q8_0.row_bytes(48), None);
    assert_eq!(BlockType::Q6K.row_bytes(512), Some(420));
    assert_eq!(BlockType::F32.row_bytes(usize::MAX), None);
}
