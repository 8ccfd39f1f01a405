//! The memory between segments: what is carried from batch to batch, where it is reset, gradients over segments, and that it remembers.

use super::gpt::{configs, random_params};
use nanochat_gpu::model::abacus::AbacusConfig;
use nanochat_gpu::model::gpt::{Recompute, Rows, sum_losses};
use nanochat_gpu::model::losses::LossScales;
use nanochat_gpu::model::{Carried, Gpt, ModelConfig, Parts};
use nanochat_gpu::ops::lm_loss::IGNORE;
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, Grads, ParamId, Params, Tensor};
use nanochat_gpu::train::optim::{Kind, Moments, Plan, update};
use nanochat_gpu::verify::{close, integers};

fn config() -> ModelConfig {
    let abacus = AbacusConfig { enabled: true, heads: 2, key_dim: 32, value_dim: 64, ..AbacusConfig::default() };
    ModelConfig { parts: Parts { abacus, ..Parts::default() }, ..configs().swap_remove(0) }
}

/// Rows of `t` tokens, `segments` of a stream one behind the other; a document starts where `starts` says so.
fn segments(arena: &Arena, tokens: &[u32], t: usize, segments: usize, starts: Option<&[u32]>) -> Rows {
    let ids = |values: &[u32]| Tensor::from_slice(arena, [values.len()], values);
    Rows { segments, starts: starts.map(ids), ..Rows::new(arena, tokens, t, None) }
}

const T: usize = 9;

/// Two streams of four segments at once; the same, two segments and then two more; and rows that stand alone.
#[test]
fn what_is_carried_makes_two_batches_one() {
    let model = Gpt::new(config(), DType::F32).unwrap();
    let (arena, params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::F32));
    let (v, stream) = (model.config().vocab_size, 4 * T);
    let tokens = integers("carried", 2 * stream, v);
    let logits = |rows: &Rows, carried: &mut Carried| {
        model.output(&mut Tape::inference(&arena, &params), rows, carried).logits.to_f64()
    };
    let of = |range: std::ops::Range<usize>| [&tokens[range.clone()], &tokens[stream..][range]].concat();
    let whole = logits(&segments(&arena, &tokens, T, 4, None), &mut Carried::default());
    let alone = logits(&segments(&arena, &tokens, T, 1, None), &mut Carried::default());
    for half in [2, 1] {
        let mut carried = Carried::new(params.device(), model.config(), [2, 1], DType::F32);
        for batch in 0..4 / half {
            let range = batch * half * T..(batch + 1) * half * T;
            let got = logits(&segments(&arena, &of(range.clone()), T, half, None), &mut carried);
            let want =
                [&whole[range.start * v..range.end * v], &whole[(stream + range.start) * v..(stream + range.end) * v]];
            close(&format!("batch {batch} of {half} segments"), &got, &want.concat(), 1e-5).unwrap();
        }
    }
    assert_eq!(alone[..T * v], whole[..T * v]);
    for row in 1..4 {
        let here = row * T * v..(row + 1) * T * v;
        assert!(close("", &alone[here.clone()], &whole[here], 1e-3).is_err(), "segment {row} reads nothing");
    }
}

/// Nothing passes a start, whether it begins a segment or stands inside one, in this batch or in the one before.
#[test]
fn a_documents_start_resets_the_state() {
    let model = Gpt::new(config(), DType::F32).unwrap();
    let (arena, params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::F32));
    let v = model.config().vocab_size;
    // Of two segments, one behind the other; `first` is the fourth token.
    let logits = |first: u32, start: usize, at_once: bool| {
        let mut tokens = integers("reset", 2 * T, v);
        tokens[3] = first;
        let starts: Vec<u32> = (0..2 * T).map(|i| u32::from(start == i)).collect();
        let began = |i: usize| if start / T == i / T && i >= start { (start % T) as u32 } else { 0 };
        let doc_start: Vec<u32> = (0..2 * T).map(began).collect();
        let (n, mut all) = (if at_once { 2 } else { 1 }, Vec::new());
        let mut carried = Carried::new(params.device(), model.config(), [1, 1], DType::F32);
        for at in (0..2 * T).step_by(n * T) {
            let here = at..at + n * T;
            let rows = segments(&arena, &tokens[here.clone()], T, n, Some(&starts[here.clone()]));
            let rows = Rows { doc_start: Some(Tensor::from_slice(&arena, [n * T], &doc_start[here])), ..rows };
            all.extend(model.output(&mut Tape::inference(&arena, &params), &rows, &mut carried).logits.to_f64());
        }
        all
    };
    for at_once in [false, true] {
        for start in [T - 3, T - 1, T, T + 4] {
            let (one, other) = (logits(1, start, at_once), logits(2, start, at_once));
            let from = start.max(T) * v;
            assert_eq!(one[from..], other[from..], "start at {start}");
            let before = (start - 1) * v..start * v;
            assert!(close("", &one[before.clone()], &other[before], 1e-5).is_err(), "before {start}");
        }
        let (one, other) = (logits(1, 2 * T, at_once), logits(2, 2 * T, at_once));
        assert!(close("", &one[T * v..], &other[T * v..], 1e-4).is_err(), "without a start");
    }
}

/// A loss in the last of three segments against differences in what the first two are made of.
#[test]
fn gradients_go_back_over_segments_and_not_over_batches() {
    let model = Gpt::new(config(), DType::F64).unwrap();
    let (arena, mut params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::F64));
    let tokens: Vec<u32> = (0..15).map(|i| if i < 10 { i % 7 } else { 11 + i % 5 }).collect();
    let targets: Vec<u32> = (0..15).map(|i| if i < 10 { IGNORE } else { i }).collect();
    let loss = |params: &Params, grads: Option<&mut Grads>| {
        let rows = segments(&arena, &tokens, 5, 3, None);
        let targets = Tensor::from_slice(&arena, [15], &targets);
        let mut tape = match grads {
            Some(grads) => Tape::recording(&arena, params, grads),
            None => Tape::inference(&arena, params),
        };
        let mut carried = Carried::new(params.device(), model.config(), [1, 1], DType::F64);
        let losses = model.losses(&mut tape, &rows, &targets, &LossScales::lm(1.0), Recompute::Nothing, &mut carried);
        tape.backward();
        sum_losses(&losses[0].values)
    };
    let mut grads = Grads::zeros(model.layout().clone(), DType::F64);
    loss(&params, Some(&mut grads));
    let entries = model.layout().entries().to_vec();
    for (i, entry) in entries.iter().enumerate() {
        let is_embedding = entry.name == "model.embed_tokens.weight";
        if !is_embedding && !entry.name.starts_with("nanochat.abacus.") {
            continue;
        }
        // Of the embedding, rows of the first two segments alone.
        let most = if is_embedding { 7 * model.config().width } else { entry.shape.elems() };
        let gradient = grads.view(ParamId(i as u32)).to_f64();
        assert!(gradient[..most].iter().any(|&g| g.abs() > 1e-6), "{} gets no gradient", entry.name);
        for pick in integers(&entry.name, 6, most) {
            let at = entry.offset_elems + pick as usize;
            let value = params.master().as_slice::<f64>()[at];
            let mut shifted = |shift: f64| {
                params.master_mut().as_mut_slice::<f64>()[at] = value + shift;
                loss(&params, None)
            };
            let slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            shifted(0.0);
            let g = gradient[pick as usize];
            assert!((g - slope).abs() <= 1e-6 * (1.0 + slope.abs()), "{}[{pick}]: {g}, {slope}", entry.name);
        }
    }
}

const KEYS: usize = 4;
const VALUES: usize = 4;
const STREAMS: usize = 32;
const SHORT: usize = 4;

/// Streams of three segments: the first gives a value for each of two keys, the second nothing, the third asks for one of the keys in its
/// last token. Tokens: 0 is nothing, `1 + 4 k + v` gives, `17 + k` asks; the answer is `21 + v`.
fn lesson(batch: usize) -> (Vec<u32>, Vec<u32>) {
    let draws = integers(&format!("lesson {batch}"), 6 * STREAMS, KEYS * VALUES * 3);
    let (mut tokens, mut targets) = (vec![0; STREAMS * 3 * SHORT], vec![IGNORE; STREAMS * 3 * SHORT]);
    for (stream, draw) in draws.chunks(6).enumerate() {
        let pick = |i: usize, n: usize| draw[i] % n as u32;
        let first = pick(0, KEYS);
        let keys = [first, (first + 1 + pick(1, KEYS - 1)) % KEYS as u32];
        let values = [pick(2, VALUES), pick(3, VALUES)];
        let (at, asked) = (stream * 3 * SHORT, pick(4, 2) as usize);
        for i in 0..2 {
            tokens[at + 2 * i + (pick(5, 2) as usize)] = 1 + VALUES as u32 * keys[i] + values[i];
        }
        tokens[at + 3 * SHORT - 1] = 17 + keys[asked];
        targets[at + 3 * SHORT - 1] = 21 + values[asked];
    }
    (tokens, targets)
}

/// Trains on lessons; the share of right answers to others, in one batch and with the three segments in batches of their own.
pub fn taught(parts: Parts, steps: usize) -> [f64; 2] {
    let (layers, width, heads, head_dim, ffn_width) = (3, 32, 1, 32, 64);
    let plain = ModelConfig::from_depth(3, 25, SHORT);
    let config = ModelConfig { layers, width, heads, kv_heads: 1, head_dim, ffn_width, parts, ..plain };
    let model = Gpt::new(config, DType::F32).unwrap();
    let (arena, mut params) = (Arena::new(64 << 20).unwrap(), model.init(DType::F32, 5));
    let (mut grads, mut moments) = (Grads::zeros(model.layout().clone(), DType::F32), Moments::zeros(&params));
    let plan = Plan::new(Kind::Adamw, model.layout(), width, 1.5, None);
    for step in 0..steps {
        let (tokens, targets) = lesson(step);
        let rows = segments(&arena, &tokens, SHORT, 3, None);
        let targets = Tensor::from_slice(&arena, [targets.len()], &targets);
        grads.clear();
        let mut tape = Tape::recording(&arena, &params, &mut grads);
        let scales = LossScales::lm(1.0 / STREAMS as f64);
        drop(model.losses(&mut tape, &rows, &targets, &scales, Recompute::Nothing, &mut Carried::default()));
        tape.backward();
        drop((tape, rows, targets));
        arena.reset();
        update(&arena, &plan, &mut params, grads.flat(), &mut moments, 1.0, 1.0);
    }
    let answers = |rows: &Rows, carried: &mut Carried| -> Vec<u32> {
        let logits = model.output(&mut Tape::inference(&arena, &params), rows, carried).logits.to_f64();
        let best = |row: &[f64]| (21..25).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
        logits.chunks(25).map(best).collect()
    };
    let (mut at_once, mut apart, lessons) = (0, 0, 8);
    for batch in 0..lessons {
        let (tokens, targets) = lesson(1_000_000 + batch);
        let whole = answers(&segments(&arena, &tokens, SHORT, 3, None), &mut Carried::default());
        let mut carried = Carried::new(params.device(), model.config(), [STREAMS, 1], DType::F32);
        let mut last = Vec::new();
        for segment in 0..3 {
            let of = |stream: usize| &tokens[(3 * stream + segment) * SHORT..][..SHORT];
            let tokens: Vec<u32> = (0..STREAMS).flat_map(of).copied().collect();
            last = answers(&segments(&arena, &tokens, SHORT, 1, None), &mut carried);
        }
        for stream in 0..STREAMS {
            let at = (stream + 1) * 3 * SHORT - 1;
            at_once += usize::from(whole[at] == targets[at]);
            apart += usize::from(last[(stream + 1) * SHORT - 1] == targets[at]);
        }
    }
    [at_once, apart].map(|right| right as f64 / (lessons * STREAMS) as f64)
}

/// 256 questions: by chance a quarter is right, give or take 0.027.
#[test]
fn a_value_given_in_the_first_segment_is_known_in_the_third() {
    let abacus = AbacusConfig { enabled: true, heads: 2, key_dim: 32, value_dim: 32, ..AbacusConfig::default() };
    let [at_once, apart] = taught(Parts { abacus, ..Parts::default() }, 300);
    assert!(at_once > 0.9 && apart > 0.9, "{at_once} at once, {apart} apart");
    let [without, _] = taught(Parts::default(), 300);
    assert!((without - 0.25).abs() < 0.11, "{without} without a memory");
}

#[test]
fn a_cell_that_the_kernels_do_not_take_is_refused() {
    let refused = |abacus: AbacusConfig| {
        let parts = Parts { abacus: AbacusConfig { enabled: true, ..abacus }, ..Parts::default() };
        Gpt::new(ModelConfig { parts, ..configs().swap_remove(0) }, DType::F32).err().unwrap().to_string()
    };
    let usual = AbacusConfig::default;
    assert!(refused(AbacusConfig { key_dim: 48, ..usual() }).contains("abacus.key_dim = 48"));
    assert!(refused(AbacusConfig { value_dim: 0, ..usual() }).contains("multiples of 32 up to 256"));
    assert!(refused(AbacusConfig { heads: 0, ..usual() }).contains("abacus.heads = 0"));
    assert!(refused(AbacusConfig { segments: 65, ..usual() }).contains("between 1 and 64"));
}
