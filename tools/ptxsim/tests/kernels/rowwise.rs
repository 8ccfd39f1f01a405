use crate::gpu::{assert_near, everywhere, geometry, random_values, random_words};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;

#[test]
fn rmsnorm() {
    let (rows, width) = (9, 200);
    let (x, g) = (random_values(rows * width, 1), random_values(width, 2));
    let expected: Vec<f64> = (0..rows * width)
        .map(|i| {
            let row = &x[i / width * width..][..width];
            let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
            f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(g[i % width])
        })
        .collect();
    everywhere("rowwise", |gpu| {
        let (px, pg, py) = (gpu.floats(&x), gpu.floats(&g), gpu.space(4 * rows * width));
        let mut args = [px, pg, py].map(Arg::Pointer).to_vec();
        args.extend([Arg::I32(rows as i32), Arg::I32(width as i32), Arg::F32(1e-5)]);
        gpu.run("rmsnorm", Geometry::linear(3, 128), &args);
        assert_near(&gpu.read_floats(py, rows * width), &expected, 1e-5);
    });
}

#[test]
fn softmax_xent() {
    let (rows, width) = (5, 297);
    let x: Vec<f32> = random_values(rows * width, 3).iter().map(|x| 8.0 * x).collect();
    let target: Vec<u32> = random_words(rows, 4).iter().map(|word| word % width as u32).collect();
    let (mut loss, mut dx) = (Vec::new(), Vec::new());
    for (row, target) in x.chunks(width).zip(&target) {
        let top = row.iter().fold(f64::MIN, |top, x| top.max(f64::from(*x)));
        let sum: f64 = row.iter().map(|x| (f64::from(*x) - top).exp()).sum();
        loss.push(sum.ln() + top - f64::from(row[*target as usize]));
        let p = row.iter().map(|x| (f64::from(*x) - top).exp() / sum);
        dx.extend(p.enumerate().map(|(i, p)| p - if i == *target as usize { 1.0 } else { 0.0 }));
    }
    everywhere("rowwise", |gpu| {
        let (px, pt) = (gpu.bf16s(&x), gpu.words(&target));
        let (pl, pd) = (gpu.space(4 * rows), gpu.space(2 * rows * width));
        let mut args = [px, pt, pl, pd].map(Arg::Pointer).to_vec();
        args.push(Arg::I32(width as i32));
        gpu.run("softmax_xent", Geometry::linear(rows as u32, 128), &args);
        assert_near(&gpu.read_floats(pl, rows), &loss, 1e-5);
        assert_near(&gpu.read_bf16s(pd, rows * width), &dx, 2f64.powi(-8));
    });
}

#[test]
fn rope() {
    let (rows, length, half) = (14, 7, 16);
    let x = random_values(rows * 2 * half, 5);
    let mut expected = vec![0.0; x.len()];
    for row in 0..rows {
        for i in 0..half {
            let angle = (row % length) as f64 * 10000f64.powf(-(i as f64) / half as f64);
            let at = row * 2 * half + i;
            let (a, b) = (f64::from(x[at]), f64::from(x[at + half]));
            expected[at] = a * angle.cos() - b * angle.sin();
            expected[at + half] = a * angle.sin() + b * angle.cos();
        }
    }
    everywhere("rowwise", |gpu| {
        let px = gpu.floats(&x);
        let args = [Arg::Pointer(px), Arg::I32(length as i32), Arg::I32(half as i32), Arg::F32(10000.0)];
        gpu.run("rope", Geometry::linear(rows as u32, 32), &args);
        assert_near(&gpu.read_floats(px, x.len()), &expected, 1e-5);
    });
}

#[test]
fn embedding_bwd() {
    let (rows, width, vocabulary) = (300, 24, 11);
    let tokens: Vec<u32> = random_words(rows, 6).iter().map(|word| word % vocabulary as u32).collect();
    let dy: Vec<f32> = random_words(rows * width, 7).iter().map(|word| (word % 9) as f32 - 4.0).collect();
    let mut expected = vec![0f32; vocabulary * width];
    for (i, dy) in dy.iter().enumerate() {
        expected[tokens[i / width] as usize * width + i % width] += dy;
    }
    everywhere("rowwise", |gpu| {
        let (pt, pdy, pd) = (gpu.words(&tokens), gpu.floats(&dy), gpu.zeros(4 * expected.len()));
        let mut args = [pt, pdy, pd].map(Arg::Pointer).to_vec();
        args.extend([Arg::I32(rows as i32), Arg::I32(width as i32)]);
        gpu.run("embedding_bwd", Geometry::linear(6, 32), &args);
        assert_eq!(gpu.read_floats(pd, expected.len()), expected);
    });
}

#[test]
fn argmax_warp() {
    let n = 256;
    let x: Vec<u32> = random_words(n, 8).iter().map(|word| word % 40).collect();
    everywhere("rowwise", |gpu| {
        let px = gpu.words(&x);
        let outs: Vec<u64> = (0..4).map(|_| gpu.space(4 * n)).collect();
        let args: Vec<Arg> = [px].iter().chain(&outs).map(|address| Arg::Pointer(*address)).collect();
        gpu.run("argmax_warp", geometry([4, 1, 1], [64, 1, 1], 0), &args);
        let got: Vec<Vec<u32>> = outs.iter().map(|address| gpu.read_words(*address, n)).collect();
        for (i, v) in x.iter().enumerate() {
            let warp = &x[i / 32 * 32..][..32];
            let best = *warp.iter().max().expect("lanes");
            let peers = (0..32).filter(|lane| warp[*lane] & 7 == v & 7).fold(0u32, |mask, lane| mask | 1 << lane);
            let sum: u32 = warp.iter().map(|x| x & 3).sum();
            assert_eq!(got[0][i], best);
            assert_eq!(got[1][i] as usize, warp.iter().position(|x| *x == best).expect("a lane"));
            assert_eq!(got[2][i], peers);
            assert_eq!(got[3][i], u32::from(warp.contains(&5)) | 2 | sum << 2 | 32 << 16);
        }
    });
}
