use super::*;
use nanochat_gpu::ops::blend::{self, Options, Source, Weights};

#[test]
fn cases() {
    check(verify::parts::blend);
}

#[test]
fn equal_weights_leave_the_third_stream_as_it_is() {
    let arenas = simulators().into_iter().map(Arena::scattered).chain([Arena::new(1 << 20).unwrap()]);
    for arena in arenas {
        for dtype in [DType::F32, DType::Bf16] {
            let of = |name: &str, shape: [usize; 2]| {
                tensor(&arena, dtype, shape, &verify::normals(name, shape[0] * shape[1]))
            };
            let zeros = |shape: [usize; 2]| Tensor::zeros(&arena, shape, dtype);
            let (controller, bias) = (zeros([3, 97]), zeros([1, 3]).reshape([3]));
            let gain = of("gain", [1, 97]).reshape([97]);
            let weights = Weights { controller: Some(&controller), bias: &bias, gain: &gain };
            let options = Options { source: Source::Third, lean: [0.0; 3], eps: 1e-5 };
            let streams = ["first", "second", "third"].map(|name| of(name, [5, 97]));
            let third = streams[2].to_f64();
            let (y, x, saved) = blend::forward(&arena, streams, weights, options);
            let plain = nanochat_gpu::ops::rmsnorm::forward(&arena, &y, &gain, 1e-5).0;
            assert_eq!(y.to_f64(), third);
            assert_eq!(x.to_f64(), plain.to_f64());
            assert!(saved.weights.to_f64().iter().all(|&w| w == f64::from(1.0f32 / 3.0)));
        }
    }
}
