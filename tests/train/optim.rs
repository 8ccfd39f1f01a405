use nanochat_gpu::tensor::{Arena, DType, Grads, Layout, Params, Role};
use nanochat_gpu::train::optim::muon::newton_schulz;
use nanochat_gpu::train::optim::{self, Group, Kind, Moments, Plan, Rule, adamw, muon};
use nanochat_gpu::verify;
use std::sync::Arc;

/// Rounding unit of f32.
const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// Values, first and second moments of flat parameters under one rule.
struct Run {
    params: Params,
    grads: Grads,
    moments: Moments,
    plan: Plan,
}

impl Run {
    fn new(dtype: DType, shape: [usize; 2], values: &[f64], group: Group) -> Run {
        let mut layout = Layout::default();
        layout.push("w", shape, Role::Matrix);
        let layout = Arc::new(layout);
        let mut params = Params::zeros(layout.clone(), dtype);
        params.master_mut().copy_from_f64(values);
        let moments = Moments::zeros(&params);
        let plan = Plan { kind: Kind::Adamw, groups: vec![Group { range: 0..values.len(), ..group }] };
        Run { params, grads: Grads::zeros(layout, dtype), moments, plan }
    }

    fn step(&mut self, grads: &[f64], grad_factor: f64, lr_factor: f64) {
        self.grads.flat_mut().copy_from_f64(grads);
        let arena = Arena::new(1 << 20).unwrap();
        let (params, moments) = (&mut self.params, &mut self.moments);
        optim::update(&arena, &self.plan, params, self.grads.flat(), moments, grad_factor, lr_factor);
    }

    /// Values, first and second moments.
    fn state(&self) -> [Vec<f64>; 3] {
        [self.params.master().to_f64(), self.moments.first.to_f64(), self.moments.second.to_f64()]
    }
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.95;
const EPS: f64 = 1e-8;

fn adamw_group(lr: f64, weight_decay: f64) -> Group {
    Group { range: 0..0, rule: Rule::Adamw { beta1: BETA1, beta2: BETA2, eps: EPS }, lr, weight_decay, waits: false }
}

fn step_of(lr: f64, weight_decay: f64, updates: u64, grad_factor: f64) -> adamw::Step {
    adamw::Step { lr, beta1: BETA1, beta2: BETA2, eps: EPS, weight_decay, updates, grad_factor }
}

fn gradients_at(step: u64, n: usize) -> Vec<f64> {
    // A factor of ten between steps, and some exact zeros, as rows of the embedding that no token named.
    let mut grads = verify::normals(&format!("optim gradients {step}"), n);
    grads.iter_mut().enumerate().for_each(|(i, g)| *g *= if i % 7 == 0 { 0.0 } else { 10f64.powi(-(step as i32 % 3)) });
    grads
}

/// More elements than a task takes, not divisible by anything.
const SHAPE: [usize; 2] = [331, 97];

/// The equation in plain f32.
fn plain_f32(w: f32, g: f32, m: f32, v: f32, s: adamw::Step) -> (f32, f32, f32) {
    let (b1, b2, lr, n) = (s.beta1 as f32, s.beta2 as f32, s.lr as f32, s.updates as i32);
    let g = g * s.grad_factor as f32;
    let (m, v) = (b1 * m + (1.0 - b1) * g, b2 * v + (1.0 - b2) * g * g);
    let (m_hat, v_hat) = (m / (1.0 - b1.powi(n)), v / (1.0 - b2.powi(n)));
    (w - lr * s.weight_decay as f32 * w - lr * m_hat / (v_hat.sqrt() + s.eps as f32), m, v)
}

#[test]
fn adamw_is_its_reference_over_several_steps() {
    let n = SHAPE[0] * SHAPE[1];
    let start: Vec<f64> = verify::normals("optim start", n).iter().map(|&x| x as f32 as f64).collect();
    let (lr, decay, factor) = (0.01, 0.1, 0.7);
    for dtype in [DType::F64, DType::F32] {
        let mut run = Run::new(dtype, SHAPE, &start, adamw_group(lr, decay));
        let mut exact: Vec<(f64, f64, f64)> = start.iter().map(|&w| (w, 0.0, 0.0)).collect();
        let mut plain: Vec<(f32, f32, f32)> = start.iter().map(|&w| (w as f32, 0.0, 0.0)).collect();
        for updates in 1..=7 {
            let lr_factor = 1.0 / updates as f64;
            let step = step_of(lr * lr_factor, decay, updates, factor);
            let grads: Vec<f64> = gradients_at(updates, n).iter().map(|&g| g as f32 as f64).collect();
            run.step(&grads, factor, lr_factor);
            for (i, &g) in grads.iter().enumerate() {
                let ((w, m, v), (pw, pm, pv)) = (exact[i], plain[i]);
                exact[i] = adamw::reference(w, g, m, v, step);
                plain[i] = plain_f32(pw, g as f32, pm, pv, step);
            }
        }
        assert_eq!(run.moments.updates, 7);
        let want = [0, 1, 2].map(|k| exact.iter().map(|e| [e.0, e.1, e.2][k]).collect::<Vec<_>>());
        let near = [0, 1, 2].map(|k| plain.iter().map(|p| [p.0, p.1, p.2][k] as f64).collect::<Vec<_>>());
        for (k, got) in run.state().iter().enumerate() {
            let scale = want[k].iter().fold(0.0f64, |a, x| a.max(x.abs()));
            let err = |values: &[f64]| values.iter().zip(&want[k]).fold(0.0f64, |a, (g, w)| a.max((g - w).abs()));
            // Seven steps add seven roundings of the value itself whatever the formula.
            let bound = match dtype {
                DType::F64 => 64.0 * f64::EPSILON * scale,
                _ => 2.0 * err(&near[k]) + 7.0 * UNIT * scale,
            };
            assert!(got.iter().all(|x| x.is_finite()) && err(got) <= bound, "{dtype} {k}: {} > {bound}", err(got));
            assert!(scale > 1e-3, "the case says something");
        }
    }
}

#[test]
fn adamw_decays_apart_from_the_gradient() {
    let values = [1.0, -2.0, 0.5, 4.0];
    let mut still = Run::new(DType::F64, [2, 2], &values, adamw_group(0.1, 0.5));
    still.step(&[0.0; 4], 1.0, 1.0);
    let [w, m, v] = still.state();
    assert_eq!((m, v), (vec![0.0; 4], vec![0.0; 4]));
    verify::close("decay alone", &w, &values.map(|x| x * (1.0 - 0.1 * 0.5)), 1e-15).unwrap();

    let [mut plain, mut decayed] =
        [0.0, 0.5].map(|decay| Run::new(DType::F64, [2, 2], &values, adamw_group(0.1, decay)));
    for run in [&mut plain, &mut decayed] {
        run.step(&[0.3, -0.1, 2.0, 0.0], 1.0, 1.0);
    }
    assert_eq!(plain.state()[1..], decayed.state()[1..], "decay does not enter the moments");
    let difference: Vec<f64> = decayed.state()[0].iter().zip(&plain.state()[0]).map(|(a, b)| a - b).collect();
    verify::close("the difference", &difference, &values.map(|x| -0.05 * x), 1e-13).unwrap();
}

#[test]
fn the_gradient_factor_is_applied_before_the_rule() {
    let n = SHAPE[0] * SHAPE[1];
    let [rows, cols] = SHAPE;
    let start = verify::normals("optim start", n);
    let muon = Group {
        range: 0..0,
        rule: Rule::Muon { rows, cols, momentum: 0.95 },
        lr: 0.02,
        weight_decay: 0.05,
        waits: false,
    };
    for group in [adamw_group(0.01, 0.1), muon] {
        let [mut by_factor, mut by_hand] = [(); 2].map(|()| Run::new(DType::F32, SHAPE, &start, group.clone()));
        for step in 1..=3 {
            let grads = gradients_at(step, n);
            by_factor.step(&grads, 0.125, 1.0);
            by_hand.step(&grads.iter().map(|g| 0.125 * g).collect::<Vec<_>>(), 1.0, 1.0);
        }
        assert_eq!(by_factor.state(), by_hand.state(), "a power of two loses no bit");
    }
}

/// A running mean takes a hundredth of what is in the gradient's place, whatever the learning rate.
#[test]
fn an_average_is_a_running_mean() {
    let mut layout = Layout::default();
    layout.push("average", [2, 3], Role::Average);
    for kind in [Kind::Adamw, Kind::Muon] {
        let plan = Plan::new(kind, &layout, 64, 1.0, None);
        let group = Group { range: 0..6, ..plan.groups[0].clone() };
        let start = verify::normals("average", 6);
        let mut run = Run::new(DType::F64, [2, 3], &start, group);
        let mut want = start;
        for step in 1..=3 {
            let grads = gradients_at(step, 6);
            run.step(&grads, 0.5, 1.0);
            want.iter_mut().zip(&grads).for_each(|(w, g)| *w = 0.99 * *w + 0.005 * g);
        }
        let [values, _, second] = run.state();
        verify::close("average", &values, &want, 1e-14).unwrap();
        assert!(second.iter().all(|&m| m == 0.0));
    }
}

/// Row-major `a [n, k] b [k, m]`.
fn product(a: &[f64], b: &[f64], k: usize, m: usize) -> Vec<f64> {
    a.chunks(k).flat_map(|row| (0..m).map(move |j| (0..k).map(|i| row[i] * b[i * m + j]).sum::<f64>())).collect()
}

fn transposed(a: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).flat_map(|c| a.iter().skip(c).step_by(cols).copied()).collect()
}

const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Newton-Schulz from the definition, `X = a X + (b A + c A A) X` with `A = X X^T`, whichever side is long; the norm it
/// starts by is kept from zero.
fn newton_schulz_plain(x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let [a, b, c] = QUINTIC;
    let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt() + 1e-7;
    let mut x: Vec<f64> = x.iter().map(|v| v / norm).collect();
    for _ in 0..5 {
        let gram = product(&x, &transposed(&x, cols), cols, rows);
        let square = product(&gram, &gram, rows, rows);
        let mixed: Vec<f64> = gram.iter().zip(&square).map(|(g, s)| b * g + c * s).collect();
        x = x.iter().zip(product(&mixed, &x, rows, cols)).map(|(x, y)| a * x + y).collect();
    }
    x
}

/// What the rounds do to one singular value.
fn quintic_rounds(mut s: f64) -> f64 {
    let [a, b, c] = QUINTIC;
    for _ in 0..5 {
        s = a * s + b * s.powi(3) + c * s.powi(5);
    }
    s
}

/// Singular values, ascending: Jacobi rotations on the Gram matrix of the short side.
fn singular_values(x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let t = transposed(x, cols);
    let n = rows.min(cols);
    let mut a = if rows <= cols { product(x, &t, cols, n) } else { product(&t, x, rows, n) };
    for _ in 0..12 {
        for p in 0..n {
            for q in p + 1..n {
                if a[p * n + q].abs() < 1e-300 {
                    continue;
                }
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * a[p * n + q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let (c, s) = (1.0 / (t * t + 1.0).sqrt(), t / (t * t + 1.0).sqrt());
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
                for k in 0..n {
                    let (x, y) = (a[p * n + k], a[q * n + k]);
                    (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y);
                }
            }
        }
    }
    let mut values: Vec<f64> = (0..n).map(|i| a[i * n + i].max(0.0).sqrt()).collect();
    values.sort_by(f64::total_cmp);
    values
}

#[test]
fn newton_schulz_is_its_definition_and_orthogonalises() {
    for (rows, cols) in [(12, 40), (40, 12), (24, 24), (1, 9), (9, 1), (33, 70)] {
        let mut x = verify::normals(&format!("muon {rows}x{cols}"), rows * cols);
        if rows == cols {
            // A random square matrix has singular values near zero, which five rounds cannot lift.
            (0..rows).for_each(|i| x[i * cols + i] += 12.0);
        }
        let got = newton_schulz(x.clone(), rows, cols);
        verify::close(&format!("{rows}x{cols}"), &got, &newton_schulz_plain(&x, rows, cols), 1e-11).unwrap();
        let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt();
        let mut want: Vec<f64> = singular_values(&x, rows, cols).iter().map(|s| quintic_rounds(s / norm)).collect();
        want.sort_by(f64::total_cmp);
        let values = singular_values(&got, rows, cols);
        verify::close(&format!("singular values {rows}x{cols}"), &values, &want, 1e-6).unwrap();
        assert!(values.iter().all(|&s| 0.6 < s && s < 1.3), "{rows}x{cols}: {values:?}");

        let narrow = newton_schulz(x.iter().map(|&v| v as f32).collect(), rows, cols);
        let narrow: Vec<f64> = narrow.iter().map(|&v| v as f64).collect();
        // Each round may stretch an error by the quintic's steepest slope, 3.4445; five rounds of a few units each.
        let bound = 16.0 * UNIT * QUINTIC[0].powi(5);
        verify::close(&format!("f32 {rows}x{cols}"), &narrow, &got, bound).unwrap();
    }
}

#[test]
fn matrices_without_full_rank_stay_finite() {
    let (rows, cols) = (10, 30);
    let row = verify::normals("one row", cols);
    let cases: [Vec<f32>; 3] = [
        vec![0.0; rows * cols],
        (0..rows * cols).map(|i| row[i % cols] as f32).collect(),
        (0..rows * cols).map(|i| if i == 17 { 1e-30 } else { 0.0 }).collect(),
    ];
    for (case, x) in cases.into_iter().enumerate() {
        let y = newton_schulz(x, rows, cols);
        assert!(y.iter().all(|v| v.is_finite() && v.abs() <= 1.3), "case {case}");
    }
}

#[test]
fn muon_decays_only_where_update_and_weight_agree() {
    let (lr, decay) = (0.1, 0.5);
    let w = [0.5, 0.7, -0.3, -0.25];
    let group = Group {
        range: 0..0,
        rule: Rule::Muon { rows: 2, cols: 2, momentum: 0.95 },
        lr,
        weight_decay: decay,
        waits: false,
    };
    let mut run = Run::new(DType::F64, [2, 2], &w, group);
    run.step(&[3.0, 0.0, 0.0, 3.0], 1.0, 1.0);
    // A multiple of the identity stays one: both singular values are 1/sqrt(2) of the norm, off it nothing moves.
    let o = quintic_rounds(0.5f64.sqrt());
    let want = [w[0] - lr * o - lr * decay * w[0], w[1], w[2], w[3] - lr * o];
    verify::close("muon by hand", &run.state()[0], &want, 1e-6).unwrap();
    verify::close("momentum", &run.state()[1], &[0.05 * 3.0, 0.0, 0.0, 0.05 * 3.0], 1e-15).unwrap();
}

/// `w -= lr sqrt(max(1, rows / cols)) O` with Nesterov momentum, over three steps.
#[test]
fn muon_is_its_definition_over_several_steps() {
    for (rows, cols) in [(20, 9), (9, 20)] {
        let (lr, mu) = (0.02, 0.95);
        let mut w = verify::normals("muon w", rows * cols);
        let mut m = vec![0.0; rows * cols];
        let group =
            Group { range: 0..0, rule: Rule::Muon { rows, cols, momentum: mu }, lr, weight_decay: 0.0, waits: false };
        let mut run = Run::new(DType::F64, [rows, cols], &w, group);
        for step in 1..=3 {
            let grads = verify::normals(&format!("muon gradients {step}"), rows * cols);
            run.step(&grads, 1.0, 1.0);
            m.iter_mut().zip(&grads).for_each(|(m, g)| *m = mu * *m + (1.0 - mu) * g);
            let u: Vec<f64> = m.iter().zip(&grads).map(|(m, g)| (1.0 - mu) * g + mu * m).collect();
            let rate = lr * (rows as f64 / cols as f64).max(1.0).sqrt();
            w.iter_mut().zip(newton_schulz_plain(&u, rows, cols)).for_each(|(w, o)| *w -= rate * o);
        }
        verify::close(&format!("muon {rows}x{cols}"), &run.state()[0], &w, 1e-11).unwrap();
        verify::close("momentum", &run.state()[1], &m, 1e-13).unwrap();
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (rows, cols) = (190, 333);
    let values = verify::normals("threads", rows * cols);
    let grads = verify::normals("threads gradients", rows * cols);
    let on = |threads: usize, group: &Group| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut run = Run::new(DType::F32, [rows, cols], &values, group.clone());
            (0..2).for_each(|_| run.step(&grads, 0.9, 1.0));
            run.state()
        })
    };
    let muon = Rule::Muon { rows, cols, momentum: 0.95 };
    for group in [Group { range: 0..0, rule: muon, lr: 0.02, weight_decay: 0.05, waits: false }, adamw_group(0.01, 0.1)]
    {
        let one = on(1, &group);
        assert!(one == on(2, &group) && one == on(3, &group), "{:?}", group.rule);
    }
}

#[test]
fn muon_leaves_the_second_moment_alone() {
    let rule = Rule::Muon { rows: 2, cols: 2, momentum: 0.95 };
    let mut run =
        Run::new(DType::F64, [2, 2], &[1.0; 4], Group { range: 0..0, rule, lr: 0.1, weight_decay: 0.0, waits: false });
    run.step(&[1.0, 2.0, 3.0, 4.0], 1.0, 1.0);
    assert_eq!(run.state()[2], vec![0.0; 4]);
    let step = muon::Step { lr: 0.1, momentum: 0.95, weight_decay: 0.0, grad_factor: 1.0 };
    let mut flat = [vec![1.0; 4], vec![0.0; 4], vec![]];
    let [values, first, second] = &mut flat;
    muon::update(optim::State { values, grads: &[1.0, 2.0, 3.0, 4.0], first, second }, 2, 2, step);
    assert_eq!(flat[0], run.state()[0], "the same update on its own");
}

#[test]
fn rates_follow_the_role() {
    let mut layout = Layout::default();
    layout.push("embedding", [50, 192], Role::Embedding);
    layout.push("matrix", [64, 192], Role::Matrix);
    layout.push("gain", [192], Role::Gain);
    layout.push("head", [50, 192], Role::Head);
    let layout_and = |kind, scale, decay| Plan::new(kind, &layout, 192, scale, decay);

    let adamw = layout_and(Kind::Adamw, 1.0, None);
    let decays: Vec<f64> = adamw.groups.iter().map(|group| group.weight_decay).collect();
    assert_eq!(decays, [0.1, 0.1, 0.0, 0.1]);
    for group in &adamw.groups {
        assert_eq!(group.rule, Rule::Adamw { beta1: 0.9, beta2: 0.95, eps: 1e-8 });
        assert!((group.lr - 1e-3 * (256.0f64 / 192.0).sqrt()).abs() < 1e-15);
    }

    let muon = layout_and(Kind::Muon, 1.0, None);
    let decays: Vec<f64> = muon.groups.iter().map(|group| group.weight_decay).collect();
    assert_eq!(decays, [0.0, 0.05, 0.0, 0.0]);
    for (group, lr) in muon.groups.iter().zip([0.2 * 2.0, 0.02, 0.01 * 2.0, 0.004 * 2.0]) {
        assert!((group.lr - lr).abs() < 1e-15, "{group:?}"); // sqrt(768 / 192) = 2, which matrices do without
        let rule = match group.lr {
            0.02 if group.range == (9600..9600 + 64 * 192) => Rule::Muon { rows: 64, cols: 192, momentum: 0.95 },
            _ => Rule::Adamw { beta1: 0.8, beta2: 0.95, eps: 1e-10 },
        };
        assert_eq!(group.rule, rule);
    }

    let scaled = layout_and(Kind::Muon, 0.5, Some(0.3));
    for (half, whole) in scaled.groups.iter().zip(&muon.groups) {
        assert!((half.lr - 0.5 * whole.lr).abs() < 1e-15);
    }
    assert_eq!(scaled.groups[1].weight_decay, 0.3);
    let covered: Vec<_> = scaled.groups.iter().map(|group| group.range.clone()).collect();
    assert!(covered[0].start == 0 && covered.windows(2).all(|pair| pair[0].end == pair[1].start));
    assert_eq!(covered[3].end, layout.elems());
}
