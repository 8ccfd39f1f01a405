//! Whole models: finite differences in f64, causality, decode equals prefill, what the tape holds.

use nanochat_gpu::model::gpt::{Recompute, Rows, sum_losses};
use nanochat_gpu::model::{Gpt, KvCache, ModelConfig};
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, Grads, ParamId, Params, Tensor};
use nanochat_gpu::verify::{central_difference, close, integers, normals};

/// Every option of the backbone on, in awkward sizes.
fn rich() -> ModelConfig {
    ModelConfig {
        layers: 3,
        width: 24,
        heads: 6,
        kv_heads: 2,
        head_dim: 6,
        ffn_width: 40,
        vocab_size: 29,
        max_seq_len: 64,
        window_pattern: "SL".into(),
        window: 5,
        softcap: 9.0,
        document_mask: true,
        ..ModelConfig::from_depth(3, 29, 64)
    }
}

pub fn configs() -> Vec<ModelConfig> {
    let plain = ModelConfig { qk_norm: false, tie_embeddings: true, softcap: 0.0, document_mask: false, ..rich() };
    vec![rich(), plain, mixed()]
}

/// A layer with a state between two with attention, which the kernels take in heads of a multiple of 32.
pub fn mixed() -> ModelConfig {
    ModelConfig { layer_pattern: "AKA".into(), heads: 8, kv_heads: 4, head_dim: 32, ..rich() }
}

/// Random values everywhere: at the real initialisation the outputs of the blocks are zero and tests would see nothing.
pub fn random_params(model: &Gpt, dtype: DType) -> Params {
    let mut params = Params::zeros(model.layout().clone(), dtype);
    let width = model.config().width as f64;
    let values: Vec<f64> = (model.layout().entries().iter())
        .flat_map(|e| {
            // Queries near keys: where a state says almost nothing of them, the norm of what is read makes rounding large.
            let key =
                e.name.ends_with("abacus.query.weight").then(|| normals("nanochat.abacus.key.weight", e.shape.elems()));
            normals(&e.name, e.shape.elems())
                .into_iter()
                .enumerate()
                .map(|(i, x)| key.as_ref().map_or(x, |key| key[i] + 0.3 * x))
                .map(|x| match (e.shape.rank(), e.name.ends_with("A_log")) {
                    // Decays that leave something of a state after some tokens.
                    (1, true) => 0.2 * x - 1.5,
                    (1, false) => 1.0 + 0.2 * x,
                    _ => x / width.sqrt(),
                })
                .collect::<Vec<_>>()
        })
        .collect();
    params.master_mut().copy_from_f64(&values);
    params.round();
    params
}

/// Two rows with a document boundary each.
/// Two rows, in the middle of which a document begins; three of one stream where rows are read by later ones.
pub fn rows(model: &Gpt, t: usize) -> (Rows, Tensor) {
    // Not the step arena: it is reset while they live.
    let arena = &Arena::new(1 << 20).unwrap();
    let v = model.config().vocab_size;
    let [b, segments] = if model.config().parts.memory.enabled { [3, 3] } else { [2, 1] };
    let doc_start = (0..b * t).map(|i| if i % t >= 7 { 7 } else { 0 }).collect::<Vec<u32>>();
    let rows = Rows { segments, ..Rows::new(arena, &integers("tokens", b * t, v), t, Some(&doc_start)) };
    (rows, Tensor::from_slice(arena, [b * t], &integers("targets", b * t, v)))
}

fn loss(model: &Gpt, arena: &Arena, params: &Params, rows: &Rows, targets: &Tensor) -> f64 {
    sum_losses(&model.loss(&mut Tape::inference(arena, params), rows, targets, 1.0, Recompute::Nothing))
}

#[test]
fn gradients_equal_finite_differences() {
    for config in configs() {
        let model = Gpt::new(config, DType::F64).unwrap();
        let (arena, mut params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::F64));
        let (rows, targets) = rows(&model, 11);
        let mut grads = Grads::zeros(model.layout().clone(), DType::F64);
        let mut tape = Tape::recording(&arena, &params, &mut grads);
        model.loss(&mut tape, &rows, &targets, 1.0, Recompute::Nothing);
        tape.backward();
        drop(tape);
        arena.reset();
        for (i, entry) in model.layout().entries().to_vec().iter().enumerate() {
            let gradient = grads.view(ParamId(i as u32)).to_f64();
            assert!(gradient.iter().any(|&g| g != 0.0), "{} gets no gradient", entry.name);
            for pick in integers(&entry.name, 5, entry.shape.elems()) {
                let at = entry.offset_elems + pick as usize;
                let value = params.master().as_slice::<f64>()[at];
                let mut shifted = |shift: f64| {
                    params.master_mut().as_mut_slice::<f64>()[at] = value + shift;
                    loss(&model, &arena, &params, &rows, &targets)
                };
                let slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
                shifted(0.0);
                let g = gradient[pick as usize];
                assert!((g - slope).abs() <= 1e-6 * (1.0 + slope.abs()), "{}[{pick}]: {g}, {slope}", entry.name);
            }
        }
    }
    assert!((central_difference(1e-5, f64::sin) - 1.0).abs() < 1e-9);
}

#[test]
fn later_tokens_and_other_documents_change_nothing_before() {
    for config in configs() {
        let model = Gpt::new(config, DType::F32).unwrap();
        let (arena, params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::F32));
        let (rows, _) = rows(&model, 19);
        let logits = |rows: &Rows| model.logits(&mut Tape::inference(&arena, &params), rows).to_f64();
        let (v, before) = (model.config().vocab_size, logits(&rows));
        for changed in [0, 6, 7, 12, 18] {
            let mut tokens = rows.tokens.as_slice::<u32>().to_vec();
            tokens[changed] = (tokens[changed] + 1) % v as u32;
            let tokens = Tensor::from_slice(&arena, [tokens.len()], &tokens);
            let after = logits(&Rows { tokens, ..rows.clone() });
            let differs = |n: usize| before[n * v..][..v] != after[n * v..][..v];
            for n in 0..2 * rows.t {
                let same_row_later = n < rows.t && n >= changed;
                let same_document = (n >= 7) == (changed >= 7);
                if !same_row_later || (model.config().document_mask && !same_document) {
                    assert!(!differs(n), "token {changed} changed the logits of token {n}");
                }
            }
            assert!(differs(changed), "token {changed} does not change its own logits");
        }
    }
}

#[test]
fn decode_equals_prefill() {
    for config in configs() {
        let config = ModelConfig { document_mask: false, ..config };
        let model = Gpt::new(config.clone(), DType::F32).unwrap();
        let (arena, params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::F32));
        let tokens = integers("decode", 23, config.vocab_size);
        let rows = Rows::new(&arena, &tokens, 23, None);
        let want = model.logits(&mut Tape::inference(&arena, &params), &rows).to_f64();
        for steps in [vec![1; 23], vec![10, 1, 1, 8, 3], vec![23]] {
            let mut cache = KvCache::new(&config, 23, DType::F32);
            let (mut got, mut at) = (Vec::new(), 0);
            for step in steps {
                let tape = &mut Tape::inference(&arena, &params);
                got.extend(model.logits_cached(tape, &tokens[at..at + step], &mut cache).to_f64());
                at += step;
            }
            close("decode", &got, &want, 1e-5).unwrap();
        }
        // The logits of the last token alone, after a prompt in two pieces.
        let (mut cache, mut last) = (KvCache::new(&config, 23, DType::F32), Vec::new());
        for piece in [&tokens[..9], &tokens[9..]] {
            last = model.next_logits(&mut Tape::inference(&arena, &params), piece, &mut cache).to_f64();
        }
        close("next logits", &last, &want[want.len() - config.vocab_size..], 1e-5).unwrap();
    }
}

#[test]
fn bf16_follows_f32() {
    let model = Gpt::new(rich(), DType::Bf16).unwrap();
    let wide = Gpt::new(rich(), DType::F32).unwrap();
    let (arena, params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::Bf16));
    let (rows, targets) = rows(&model, 19);
    let (narrow, exact) = (
        loss(&model, &arena, &params, &rows, &targets),
        loss(&wide, &arena, &random_params(&wide, DType::F32), &rows, &targets),
    );
    assert!((narrow - exact).abs() <= 0.01 * exact, "{narrow} {exact}");
}

#[test]
fn the_tape_prints_and_is_empty_afterwards() {
    let config = ModelConfig { layers: 1, ..rich() };
    let model = Gpt::new(config, DType::F32).unwrap();
    let (arena, params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::F32));
    let (rows, targets) = rows(&model, 8);
    let mut grads = Grads::zeros(model.layout().clone(), DType::F32);
    let mut tape = Tape::recording(&arena, &params, &mut grads);
    model.loss(&mut tape, &rows, &targets, 1.0, Recompute::Nothing);
    let expected = "\
%0 = embedding model.embed_tokens.weight
%1 = rmsnorm %0 model.layers.0.input_layernorm.weight
%2 = linear %1 model.layers.0.self_attn.q_proj.weight (+2)
%3 = rope %2 model.layers.0.self_attn.q_norm.weight
%4 = attention %3
%5 = linear %4 model.layers.0.self_attn.o_proj.weight
%6, %7 = add_rmsnorm %0 %5 model.layers.0.post_attention_layernorm.weight
%8 = mlp %7 model.layers.0.mlp.gate_proj.weight (+1) model.layers.0.mlp.down_proj.weight
%9, %10 = add_rmsnorm %6 %8 model.norm.weight
lm_loss %10
";
    assert_eq!(tape.to_string(), expected);
    tape.backward();
    assert!(tape.nodes().is_empty());
    drop(tape);
    arena.reset();
}

#[test]
fn recomputing_blocks_saves_memory_and_changes_no_bit() {
    let model = Gpt::new(ModelConfig { layers: 6, ..rich() }, DType::F32).unwrap();
    let params = random_params(&model, DType::F32);
    let (rows, targets) = rows(&model, 60);
    let run = |recompute| {
        let arena = Arena::new(256 << 20).unwrap();
        let mut grads = Grads::zeros(model.layout().clone(), DType::F32);
        let mut tape = Tape::recording(&arena, &params, &mut grads);
        model.loss(&mut tape, &rows, &targets, 1.0, recompute);
        tape.backward();
        drop(tape);
        arena.reset();
        (grads.flat().as_bytes().to_vec(), arena.stats().peak_live_bytes)
    };
    let (saved, recomputed) = (run(Recompute::Nothing), run(Recompute::Blocks));
    assert_eq!(saved.0, recomputed.0);
    assert!(recomputed.1 * 2 < saved.1, "{} is not half of {}", recomputed.1, saved.1);
}

#[test]
fn the_same_bits_on_any_number_of_threads() {
    let model = Gpt::new(ModelConfig { width: 96, head_dim: 16, ffn_width: 200, ..rich() }, DType::F32).unwrap();
    let params = random_params(&model, DType::F32);
    let (rows, targets) = rows(&model, 60);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let arena = Arena::new(256 << 20).unwrap();
            let mut grads = Grads::zeros(model.layout().clone(), DType::F32);
            let mut tape = Tape::recording(&arena, &params, &mut grads);
            let losses = model.loss(&mut tape, &rows, &targets, 1.0, Recompute::Nothing);
            tape.backward();
            (losses.to_f64(), grads.flat().as_bytes().to_vec())
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3) && one == run(7));
}

#[test]
fn depth_decides_the_extents() {
    let of = |depth| {
        let c = ModelConfig::from_depth(depth, 4096, 256);
        c.validate().unwrap();
        [c.layers, c.width, c.heads, c.head_dim, c.ffn_width]
    };
    assert_eq!(of(1), [1, 64, 2, 32, 192]);
    assert_eq!(of(4), [4, 256, 4, 64, 704]);
    assert_eq!(of(8), [8, 512, 4, 128, 1408]);
    assert_eq!(of(9), [9, 576, 9, 64, 1536]);
    assert_eq!(of(12), [12, 768, 6, 128, 2048]);
    let stages = ModelConfig::from_depth(4, 4096, 256).stages().unwrap();
    assert_eq!((stages.id, stages.ego, stages.superego), (0..2, 2..3, 3..4));
    assert!(ModelConfig::from_depth(2, 4096, 256).stages().is_none());
}
