//! Tensor maps: what the driver refuses is refused, and the rows of a box are those of a plain loop over elements.

use super::Rng;
use ptxsim::units::swizzle::Swizzle;
use ptxsim::units::tensor_map::{DataType, Fill, MAP_BYTES, TensorMap};

fn matrix() -> TensorMap {
    TensorMap {
        data_type: DataType::Bf16,
        address: 0x1000,
        dims: vec![100, 50],
        strides_bytes: vec![208],
        box_dims: vec![64, 8],
        element_strides: vec![1, 1],
        swizzle: Swizzle::B128,
        fill: Fill::Zero,
        im2col: None,
    }
}

#[test]
fn a_map_survives_its_encoding() {
    let mut map = matrix();
    assert_eq!(TensorMap::decode(&map.encode().expect("valid")), Ok(map.clone()));
    map.dims.extend([3, 1 << 32, 7]);
    map.strides_bytes.extend([1 << 20, 1 << 30, (1 << 40) - 16]);
    map.box_dims.extend([1, 256, 2]);
    map.element_strides = vec![1, 2, 8, 3, 1];
    map.fill = Fill::Nan;
    map.swizzle = Swizzle::None;
    assert_eq!(TensorMap::decode(&map.encode().expect("valid")), Ok(map));
    assert!(TensorMap::decode(&[0; MAP_BYTES]).expect_err("refused").contains("no tensor map"));
}

#[test]
fn what_the_driver_refuses() {
    type Change = fn(&mut TensorMap);
    let cases: [(&str, Change); 12] = [
        ("no multiple of 16", |map| map.address += 8),
        ("outside 1..=2^32", |map| map.dims[1] = 0),
        ("outside 1..=2^32", |map| map.dims[1] = (1 << 32) + 1),
        ("a multiple of 16 below", |map| map.strides_bytes[0] = 200),
        ("a multiple of 16 below", |map| map.strides_bytes[0] = 1 << 40),
        ("outside 1..=256", |map| map.box_dims[1] = 257),
        ("outside 1..=256", |map| map.box_dims[0] = 0),
        ("outside 1..=8", |map| map.element_strides[1] = 9),
        ("must be a multiple of 16", |map| map.box_dims[0] = 12),
        ("more than the swizzle's 64", |map| map.swizzle = Swizzle::B64),
        ("floating-point type", |map| {
            map.data_type = DataType::U16;
            map.fill = Fill::Nan;
        }),
        ("need 1 strides", |map| map.strides_bytes.clear()),
    ];
    assert_eq!(matrix().validate(), Ok(()));
    for (message, change) in cases {
        let mut map = matrix();
        change(&mut map);
        let error = map.encode().expect_err(message);
        assert!(error.contains(message), "{error}");
    }
    let mut map = matrix();
    map.dims = vec![1; 6];
    assert!(map.validate().expect_err("refused").contains("1 to 5 dimensions"));
}

/// Element by element: (global address or None, byte in the box).
fn plain(map: &TensorMap, coordinates: &[i32]) -> Vec<Option<u64>> {
    let rank = map.dims.len();
    let counts: Vec<u32> = (0..rank)
        .map(|d| if d == 0 { map.box_dims[0] } else { map.box_dims[d].div_ceil(map.element_strides[d]) })
        .collect();
    let mut elements = Vec::new();
    let mut index = vec![0u32; rank];
    loop {
        let mut address = map.address;
        let mut inside = true;
        for d in 0..rank {
            let stride = if d == 0 { 1 } else { map.element_strides[d] };
            let at = i64::from(coordinates[d]) + i64::from(index[d] * stride);
            inside &= at >= 0 && at < map.dims[d] as i64;
            let pitch = if d == 0 { u64::from(map.data_type.bytes()) } else { map.strides_bytes[d - 1] };
            address = address.wrapping_add((at as u64).wrapping_mul(pitch));
        }
        elements.push(inside.then_some(address));
        let mut d = 0;
        loop {
            index[d] += 1;
            if index[d] < counts[d] {
                break;
            }
            index[d] = 0;
            d += 1;
            if d == rank {
                return elements;
            }
        }
    }
}

#[test]
fn rows_of_a_box_are_those_of_a_plain_loop() {
    let mut rng = Rng(8);
    let mut outside = 0;
    for case in 0..500 {
        let rank = case % 5 + 1;
        let data_type = [DataType::Bf16, DataType::F32, DataType::U8, DataType::F64][case / 5 % 4];
        let mut pick = |n: u32| rng.word() % n + 1;
        let dims: Vec<u64> = (0..rank).map(|_| u64::from(pick(40))).collect();
        let mut pitch = dims[0] * u64::from(data_type.bytes());
        let mut strides_bytes = Vec::new();
        for dim in &dims[1..] {
            pitch = pitch.next_multiple_of(16) + 16 * u64::from(pick(3));
            strides_bytes.push(pitch);
            pitch *= dim;
        }
        let map = TensorMap {
            data_type,
            address: 0x70_0000_0000,
            box_dims: (0..rank).map(|d| if d == 0 { 16 * pick(2) } else { pick(5) }).collect(),
            element_strides: (0..rank).map(|_| pick(3)).collect(),
            dims: dims.clone(),
            strides_bytes,
            swizzle: Swizzle::None,
            fill: Fill::Zero,
            im2col: None,
        };
        assert_eq!(map.validate(), Ok(()));
        let coordinates: Vec<i32> = dims.iter().map(|dim| pick(*dim as u32 + 20) as i32 - 10).collect();
        let element = map.data_type.bytes();
        let mut got = Vec::new();
        for (i, row) in map.rows(&coordinates).iter().enumerate() {
            assert_eq!((row.shared_offset, row.bytes), (i as u32 * row.bytes, map.box_dims[0] * element));
            for at in (0..row.bytes).step_by(element as usize) {
                let inside = at >= row.inside_from && at < row.inside_from + row.inside_bytes;
                got.push(inside.then(|| row.global + u64::from(at - row.inside_from)));
            }
        }
        assert_eq!(map.box_bytes() as usize, got.len() * element as usize);
        assert_eq!(got, plain(&map, &coordinates), "{map:?} at {coordinates:?}");
        outside += got.iter().filter(|address| address.is_none()).count();
    }
    assert!(outside > 10_000, "the cases reach outside the tensor");
}

#[test]
fn fills() {
    let mut map = matrix();
    assert_eq!((0..4).map(|at| map.fill_byte(at)).collect::<Vec<_>>(), [0; 4]);
    map.fill = Fill::Nan;
    assert!(half::bf16::from_le_bytes([map.fill_byte(2), map.fill_byte(3)]).is_nan());
    map.data_type = DataType::F32;
    assert_eq!(u32::from_le_bytes([4, 5, 6, 7].map(|at| map.fill_byte(at))), 0x7fff_ffff);
}
