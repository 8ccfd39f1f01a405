//! Layers of Kimi Delta Attention: decode over chunks, recomputing, half-lives at the beginning, no positions beside them, documents, and
//! what is refused.

use super::gpt::{mixed, random_params, rows};
use nanochat_gpu::model::gpt::{Recompute, Rows};
use nanochat_gpu::model::psyche::{PsycheConfig, PsycheSource};
use nanochat_gpu::model::{Gpt, KvCache, ModelConfig, Parts};
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, Grads, ParamId};
use nanochat_gpu::verify::{close, integers};

/// Prompts longer than a chunk go through the chunked form, single tokens and short pieces through the recurrent one.
#[test]
fn a_sequence_goes_on_from_its_state_in_pieces_of_any_length() {
    let config = ModelConfig { document_mask: false, max_seq_len: 160, ..mixed() };
    let model = Gpt::new(config.clone(), DType::F32).unwrap();
    let (arena, params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::F32));
    let tokens = integers("pieces", 150, config.vocab_size);
    let rows = Rows::new(&arena, &tokens, 150, None);
    let want = model.logits(&mut Tape::inference(&arena, &params), &rows).to_f64();
    for steps in [vec![150], vec![64, 63, 1, 2, 20], vec![3, 70, 1, 76]] {
        let mut cache = KvCache::new(&config, 150, DType::F32);
        let (mut got, mut at) = (Vec::new(), 0);
        for step in &steps {
            let tape = &mut Tape::inference(&arena, &params);
            got.extend(model.logits_cached(tape, &tokens[at..at + step], &mut cache).to_f64());
            at += step;
        }
        close(&format!("{steps:?}"), &got, &want, 1e-5).unwrap();
    }
}

#[test]
fn recomputing_changes_no_bit_of_a_gradient() {
    let model = Gpt::new(mixed(), DType::F32).unwrap();
    let (params, (rows, targets)) = (random_params(&model, DType::F32), rows(&model, 60));
    let run = |recompute| {
        let arena = Arena::new(64 << 20).unwrap();
        let mut grads = Grads::zeros(model.layout().clone(), DType::F32);
        let mut tape = Tape::recording(&arena, &params, &mut grads);
        model.loss(&mut tape, &rows, &targets, 1.0, recompute);
        tape.backward();
        drop(tape);
        grads.flat().as_bytes().to_vec()
    };
    assert_eq!(run(Recompute::Nothing), run(Recompute::Blocks));
}

/// A step that ends after Id leaves in the states of the layers it skips what they take of Id's stream.
#[test]
fn a_step_that_ends_early_moves_the_states_on() {
    let of = |exit_threshold: f64| {
        let psyche = PsycheConfig { enabled: true, source: PsycheSource::Id, exit_threshold };
        let parts = Parts { psyche, ..Parts::default() };
        Gpt::new(ModelConfig { document_mask: false, parts, ..mixed() }, DType::F32).unwrap()
    };
    let (always, never) = (of(1e-6), of(1.0));
    let (arena, params) = (Arena::new(64 << 20).unwrap(), random_params(&always, DType::F32));
    let next = |model: &Gpt, token: u32, cache: &mut KvCache| {
        model.next(&mut Tape::inference(&arena, &params), &[token], cache)
    };
    let after = |first: u32, model: &Gpt| {
        let mut cache = KvCache::new(model.config(), 9, DType::F32);
        assert_eq!(next(model, first, &mut cache).is_early, model.config().parts.psyche.exit_threshold < 1.0);
        // Whole steps, which read what the first one left.
        next(&never, 3, &mut cache).logits.to_f64()
    };
    let (early, other, whole) = (after(7, &always), after(8, &always), after(7, &never));
    assert!(close("", &early, &other, 1e-3).is_err() && close("", &early, &whole, 1e-4).is_err());
}

/// Rates `softplus(dt)` go from 0.1 to 0.001, as often multiplied by the same.
#[test]
fn half_lives_spread_at_the_beginning() {
    let params = Gpt::new(mixed(), DType::F32).unwrap().init(DType::F32, 0);
    let at = params.layout().entries().iter().position(|entry| entry.name.ends_with("self_attn.dt_bias")).unwrap();
    let dt = params.master_view(ParamId(at as u32)).to_f64();
    let half_lives: Vec<f64> = dt.iter().map(|dt| std::f64::consts::LN_2 / dt.exp().ln_1p()).collect();
    close("ends", &[half_lives[0], half_lives[255]], &[7.0, 693.0], 1e-5).unwrap();
    let ratio = (693f64 / 7.0).powf(1.0 / 255.0);
    assert!(half_lives.windows(2).all(|pair| (pair[1] / pair[0] / ratio - 1.0).abs() < 1e-4), "{half_lives:?}");
}

/// Where the other layers say nothing, the last token does not see in which order those before it came.
#[test]
fn attention_beside_states_knows_no_positions() {
    for (pattern, turns) in [("KKA", false), ("A", true)] {
        let config =
            ModelConfig { layer_pattern: pattern.into(), document_mask: false, window_pattern: "L".into(), ..mixed() };
        let model = Gpt::new(config, DType::F32).unwrap();
        let (arena, mut params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::F32));
        for (i, entry) in model.layout().entries().iter().enumerate() {
            if ["0.self_attn.o_proj", "1.self_attn.o_proj"].iter().any(|name| entry.name.contains(name)) {
                params.set_master(ParamId(i as u32), &vec![0.0; entry.shape.elems()]);
            }
        }
        let logits = |tokens: &[u32]| {
            let rows = Rows::new(&arena, tokens, tokens.len(), None);
            let all = model.logits(&mut Tape::inference(&arena, &params), &rows).to_f64();
            all[(tokens.len() - 1) * model.config().vocab_size..].to_vec()
        };
        let (one, other) = (logits(&[4, 9, 2, 11, 5]), logits(&[11, 2, 4, 9, 5]));
        assert_eq!(close("", &one, &other, 1e-5).is_err(), turns, "{pattern}: {one:?} {other:?}");
    }
}

#[test]
fn other_letters_and_heads_that_the_kernels_do_not_take_are_refused() {
    let refused = |config: ModelConfig| Gpt::new(config, DType::F32).err().unwrap().to_string();
    for pattern in ["", "KKL", "k"] {
        let message = refused(ModelConfig { layer_pattern: pattern.into(), ..mixed() });
        assert!(message.contains("model.layer_pattern") && message.contains("KKKA"), "{message}");
    }
    assert!(refused(ModelConfig { head_dim: 24, ..mixed() }).contains("multiples of 32 up to 256"));
    assert!(refused(ModelConfig { head_dim: 288, ..mixed() }).contains("model.head_dim = 288"));
    assert!(Gpt::new(ModelConfig { layer_pattern: "A".into(), head_dim: 24, ..mixed() }, DType::F32).is_ok());
}
