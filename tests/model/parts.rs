//! The parts beyond the backbone: neutral when they begin, causal, the same in decode, their gradients by finite differences, on
//! a GPU as on the CPU, and in checkpoints.

use super::gpt::{configs, random_params, rows};
use nanochat_gpu::data::statistics::Statistics;
use nanochat_gpu::model::abacus::AbacusConfig;
use nanochat_gpu::model::concept::{ConceptCodes, ConceptConfig};
use nanochat_gpu::model::digits::DigitsConfig;
use nanochat_gpu::model::energy::EnergyConfig;
use nanochat_gpu::model::gpt::{Recompute, Rows, sum_losses};
use nanochat_gpu::model::hypercube::HypercubeConfig;
use nanochat_gpu::model::latent::LatentConfig;
use nanochat_gpu::model::losses::{LossKind, LossScales};
use nanochat_gpu::model::memetic::MemeticConfig;
use nanochat_gpu::model::memory::MemoryConfig;
use nanochat_gpu::model::psyche::{PsycheConfig, PsycheSource};
use nanochat_gpu::model::self_model::{SelfModelConfig, introspections};
use nanochat_gpu::model::{Carried, Gpt, KvCache, ModelConfig, Parts};
use nanochat_gpu::tape::{Frozen, Tape};
use nanochat_gpu::tensor::{Arena, DType, Grads, ParamId, Params};
use nanochat_gpu::verify::{close, integers};

fn psyche(source: PsycheSource) -> Parts {
    Parts { psyche: PsycheConfig { enabled: true, source, ..PsycheConfig::default() }, ..Parts::default() }
}

/// More tokens than concepts, a window that ends before its row does, and one that does not.
fn concept() -> Parts {
    let concept = ConceptConfig { enabled: true, count: 23, rank: 5, window: 4, every: 3, ..ConceptConfig::default() };
    Parts { concept, ..Parts::default() }
}

/// A concept for each token, and two that no token has.
fn feedback(codes: ConceptCodes) -> Parts {
    let concept = ConceptConfig { count: 31, codes, feedback: true, ..concept().concept };
    Parts { concept, ..Parts::default() }
}

/// Codes are counted in data: two topics, each with words of its own, are told apart by the highest bit.
#[test]
fn concepts_with_alike_neighbours_share_bits() {
    let codes = ConceptCodes::Hypercube;
    let concept = ConceptConfig { enabled: true, count: 20, codes, ..ConceptConfig::default() };
    let parts = Parts { concept, ..Parts::default() };
    let model = Gpt::new(with(&configs()[0], parts), DType::F32).unwrap();
    let mut statistics =
        Statistics { tokens: vec![9; 29], windows: vec![1; 29], window_count: 1, ..Statistics::default() };
    for (i, pair) in integers("topics", 4000, 10).chunks(2).enumerate() {
        let topic = 10 * (i % 2) as u32;
        *statistics.pairs.entry((topic + pair[0], topic + pair[1])).or_default() += 1;
    }
    let counted = || {
        let mut params = model.init(DType::F32, 0);
        model.count(&mut params, &statistics);
        let entries = model.layout().entries();
        let of = |name: &str| entries.iter().find(|entry| entry.name == name).unwrap().range();
        params.master().to_f64()[of("nanochat.concept.codes.weight")].to_vec()
    };
    let codes = counted();
    assert!(codes.iter().all(|x| x.abs() == 0.25), "vertices over sqrt(16)");
    let highest: Vec<bool> = codes.chunks(16).map(|code| code[15] > 0.0).collect();
    assert!((0..20).all(|c| highest[c] == highest[c / 10 * 10]) && highest[0] != highest[10], "{highest:?}");
    let distinct: std::collections::HashSet<Vec<u64>> =
        codes.chunks(16).map(|code| code.iter().map(|x| x.to_bits()).collect()).collect();
    assert_eq!(distinct.len(), 20);
    assert_eq!(codes, counted());
}

fn hypercube() -> Parts {
    let hypercube = HypercubeConfig { enabled: true, bits: 11, ..HypercubeConfig::default() };
    Parts { hypercube, ..Parts::default() }
}

/// All memes are read: which of them are the highest may hang on a rounding of bf16.
fn memetic() -> Parts {
    let memetic = MemeticConfig { enabled: true, memes: 29, key_width: 6, top: 29, ..MemeticConfig::default() };
    Parts { memetic, ..Parts::default() }
}

fn self_model() -> Parts {
    Parts { self_model: SelfModelConfig { enabled: true, width: 13 }, ..Parts::default() }
}

fn latent() -> Parts {
    Parts { latent: LatentConfig { enabled: true, width: 10, every: 1, dropout: 0.2 }, ..Parts::default() }
}

/// Heads as the kernels take them.
pub fn abacus() -> Parts {
    let abacus = AbacusConfig { enabled: true, heads: 2, key_dim: 32, value_dim: 32, ..AbacusConfig::default() };
    Parts { abacus, ..Parts::default() }
}

fn memory() -> Parts {
    let memory = MemoryConfig { enabled: true, rows: 7, key_width: 6, top: 2, segment: 23 };
    Parts { memory, ..Parts::default() }
}

/// With the latents that it needs.
fn energy() -> Parts {
    Parts { energy: EnergyConfig { enabled: true, width: 12 }, ..latent() }
}

/// Every other token is a digit, so that there are runs.
pub fn digits() -> Parts {
    let digits = DigitsConfig { enabled: true, ids: (0..29).step_by(2).collect() };
    Parts { digits, ..Parts::default() }
}

/// A part alone.
pub struct Alone {
    pub parts: Parts,
    /// The parameters that begin at zero and keep the part neutral.
    outputs: &'static [&'static str],
    /// It changes logits where they are not zero; else it is a head that nothing reads.
    is_read: bool,
}

/// Each part alone.
pub fn each() -> Vec<Alone> {
    let outputs = &["nanochat.psyche.controller.weight", "nanochat.psyche.controller.bias"][..];
    let sources = [PsycheSource::Superego, PsycheSource::Id, PsycheSource::Static];
    let psyches = sources.map(|source| Alone { parts: psyche(source), outputs, is_read: true });
    let concept = Alone { parts: concept(), outputs: &["nanochat.concept.projection.weight"], is_read: false };
    let outputs = &["nanochat.concept.feedback.weight"];
    let feedbacks = [ConceptCodes::Learned, ConceptCodes::Hypercube].map(|codes| Alone {
        parts: feedback(codes),
        outputs,
        is_read: true,
    });
    let outputs = &["nanochat.hypercube.output.weight"];
    let hypercube = Alone { parts: hypercube(), outputs, is_read: true };
    let memetic = Alone { parts: memetic(), outputs: &["nanochat.memetic.output.weight"], is_read: true };
    let outputs = &["nanochat.self_model.output.weight"];
    let self_model = Alone { parts: self_model(), outputs, is_read: false };
    let latent = Alone { parts: latent(), outputs: &["nanochat.latent.decoder.head.weight"], is_read: false };
    let outputs = &["nanochat.abacus.output.weight"];
    let abacus = Alone { parts: abacus(), outputs, is_read: true };
    let outputs = &["nanochat.memory.output_id.weight", "nanochat.memory.output_ego.weight"];
    let memory = Alone { parts: memory(), outputs, is_read: true };
    let energy = Alone { parts: energy(), outputs: &ENERGY_OUTPUTS, is_read: false };
    let outputs = &["nanochat.digits.weight"];
    let digits = Alone { parts: digits(), outputs, is_read: true };
    psyches
        .into_iter()
        .chain(feedbacks)
        .chain([concept, hypercube, memetic, self_model, latent, abacus, memory, energy, digits])
        .collect()
}

const ENERGY_OUTPUTS: [&str; 4] = [
    "nanochat.energy.generator.output.weight",
    "nanochat.energy.query.weight",
    "nanochat.energy.retrieval.query.weight",
    "nanochat.energy.bias",
];

fn with(config: &ModelConfig, parts: Parts) -> ModelConfig {
    ModelConfig { parts, ..config.clone() }
}

/// Random values everywhere but in the parameters of these names.
fn neutral_params(model: &Gpt, dtype: DType, outputs: &[&str]) -> Params {
    let mut params = random_params(model, dtype);
    for (i, entry) in model.layout().entries().iter().enumerate() {
        if outputs.contains(&&entry.name[..]) {
            params.set_master(ParamId(i as u32), &vec![0.0; entry.shape.elems()]);
        }
    }
    params.round();
    params
}

#[test]
fn each_part_is_neutral_where_its_output_is_zero() {
    for config in configs() {
        let plain = Gpt::new(config.clone(), DType::F32).unwrap();
        let arena = Arena::new(64 << 20).unwrap();
        for Alone { parts, outputs, is_read } in each() {
            let model = Gpt::new(with(&config, parts.clone()), DType::F32).unwrap();
            let (rows, _) = rows(&model, 19);
            let logits =
                |model: &Gpt, params: &Params| model.logits(&mut Tape::inference(&arena, params), &rows).to_f64();
            let want = logits(&plain, &random_params(&plain, DType::F32));
            let neutral = logits(&model, &neutral_params(&model, DType::F32, outputs));
            close(&format!("{parts:?}"), &neutral, &want, 1e-6).unwrap();
            let changed = logits(&model, &random_params(&model, DType::F32));
            assert_eq!(close("", &changed, &want, 1e-3).is_err(), is_read, "{parts:?}");
        }
    }
}

#[test]
fn a_new_model_with_parts_is_the_plain_one_and_shares_its_values() {
    let config = &configs()[0];
    let plain = Gpt::new(config.clone(), DType::F32).unwrap().init(DType::F32, 3);
    for Alone { parts, .. } in each() {
        let params = Gpt::new(with(config, parts), DType::F32).unwrap().init(DType::F32, 3);
        let shared = plain.layout().elems();
        assert_eq!(params.master().to_f64()[..shared], plain.master().to_f64()[..]);
    }
}

/// All losses by one weight, and with `grads` their gradients.
fn loss(model: &Gpt, arena: &Arena, params: &Params, grads: Option<&mut Grads>, frozen: &mut Frozen) -> f64 {
    0.37 * weighted(model, arena, params, grads, &LossScales::all(0.37, 1.0), frozen)
}

/// The sum of all losses, and with `grads` the gradients of what `scales` make of them.
fn weighted(
    model: &Gpt,
    arena: &Arena,
    params: &Params,
    grads: Option<&mut Grads>,
    scales: &LossScales,
    frozen: &mut Frozen,
) -> f64 {
    let (rows, targets) = rows(model, 16);
    let tape = match grads {
        Some(grads) => Tape::recording(arena, params, grads),
        None => Tape::inference(arena, params),
    };
    let mut tape = tape.freezing(frozen);
    let losses = model.losses(&mut tape, &rows, &targets, scales, Recompute::Nothing, &mut Carried::default());
    tape.backward();
    losses.iter().map(|loss| sum_losses(&loss.values)).sum()
}

/// Gradients of one loss alone at this rho.
fn gradients_of(model: &Gpt, params: &Params, kind: LossKind, rho: f64) -> Grads {
    let arena = Arena::new(64 << 20).unwrap();
    let mut scales = LossScales::all(0.0, rho);
    scales.each[kind.index()].weight = 1.0.into();
    let mut grads = Grads::zeros(model.layout().clone(), DType::F64);
    weighted(model, &arena, params, Some(&mut grads), &scales, &mut Frozen::default());
    grads
}

#[test]
fn rho_scales_what_reaches_the_trunk_and_nothing_else() {
    for Alone { parts, .. } in each() {
        let model = Gpt::new(with(&configs()[0], parts), DType::F64).unwrap();
        let params = random_params(&model, DType::F64);
        for kind in model.loss_kinds().into_iter().filter(|&kind| kind != LossKind::Lm) {
            let [whole, part, none] = [1.0, 0.3, 0.0].map(|rho| gradients_of(&model, &params, kind, rho));
            for (i, entry) in model.layout().entries().iter().enumerate() {
                let [whole, part, none] = [&whole, &part, &none].map(|grads| grads.view(ParamId(i as u32)).to_f64());
                let head = match kind {
                    LossKind::Entropy => "hypercube",
                    LossKind::Reconstruction => "latent",
                    LossKind::Score => "energy",
                    kind => kind.name(),
                };
                let is_trunk = !entry.name.starts_with(&format!("nanochat.{head}."));
                let share = |rho: f64| if is_trunk { rho } else { 1.0 };
                let times = |factor: f64| whole.iter().map(|g| factor * g).collect::<Vec<_>>();
                close(&entry.name, &part, &times(share(0.3)), 1e-12).unwrap();
                close(&entry.name, &none, &times(share(0.0)), 1e-12).unwrap();
            }
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for Alone { parts, outputs, .. } in each() {
        let model = Gpt::new(with(&configs()[0], parts.clone()), DType::F64).unwrap();
        // What goes straight through a sign is no derivative (that of the op is checked with its signs held): here nothing does.
        let zeros = if parts.hypercube.enabled { outputs } else { &[] };
        let (arena, mut params) = (Arena::new(64 << 20).unwrap(), neutral_params(&model, DType::F64, zeros));
        let mut grads = Grads::zeros(model.layout().clone(), DType::F64);
        // Shifted passes have the stop-gradients of this one.
        let mut frozen = Frozen::default();
        loss(&model, &arena, &params, Some(&mut grads), &mut frozen);
        let entries = model.layout().entries().to_vec();
        for (i, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.is_learnt()) {
            let gradient = grads.view(ParamId(i as u32)).to_f64();
            assert!(gradient.iter().any(|&g| g != 0.0), "{parts:?}: {} gets no gradient", entry.name);
            let is_part = entry.name.starts_with("nanochat.");
            for pick in integers(&entry.name, if is_part { 8 } else { 2 }, entry.shape.elems()) {
                let at = entry.offset_elems + pick as usize;
                let value = params.master().as_slice::<f64>()[at];
                let mut shifted = |shift: f64| {
                    params.master_mut().as_mut_slice::<f64>()[at] = value + shift;
                    frozen.rewind();
                    loss(&model, &arena, &params, None, &mut frozen)
                };
                let slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
                shifted(0.0);
                let g = gradient[pick as usize];
                let holds = (g - slope).abs() <= 1e-6 * (1.0 + slope.abs());
                assert!(holds, "{parts:?}: {}[{pick}]: {g}, {slope}", entry.name);
            }
        }
    }
}

#[test]
fn later_tokens_and_other_rows_change_nothing_before() {
    for Alone { parts, .. } in each() {
        let model = Gpt::new(with(&configs()[0], parts.clone()), DType::F32).unwrap();
        let (arena, params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::F32));
        let rows = Rows { segments: 1, ..rows(&model, 19).0 };
        let logits = |rows: &Rows| model.logits(&mut Tape::inference(&arena, &params), rows).to_f64();
        let (v, before) = (model.config().vocab_size, logits(&rows));
        for changed in [0, 6, 7, 18] {
            let mut tokens = rows.tokens.as_slice::<u32>().to_vec();
            tokens[changed] = (tokens[changed] + 1) % v as u32;
            let after = logits(&Rows { tokens: crate::ops::ids(&arena, &tokens), ..rows.clone() });
            let differs = |n: usize| before[n * v..][..v] != after[n * v..][..v];
            assert!((0..changed).all(|n| !differs(n)), "{parts:?}: token {changed} changes one before it");
            assert!((rows.t..2 * rows.t).all(|n| !differs(n)), "{parts:?}: token {changed} changes another row");
            assert!(differs(changed), "{parts:?}: token {changed} does not change its own logits");
        }
    }
}

#[test]
fn decode_equals_prefill() {
    for Alone { parts, .. } in each() {
        let config = with(&ModelConfig { document_mask: false, ..configs()[0].clone() }, parts);
        let model = Gpt::new(config.clone(), DType::F32).unwrap();
        let (arena, params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::F32));
        let tokens = integers("decode", 23, config.vocab_size);
        let rows = Rows::new(&arena, &tokens, 23, None);
        let want = model.output(&mut Tape::inference(&arena, &params), &rows, &mut Carried::default());
        let (weights, said) = (want.psyche.map(|w| w.to_f64()), want.said.map(|said| said.to_f64()));
        for steps in [vec![1; 23], vec![10, 1, 1, 8, 3]] {
            let mut cache = KvCache::new(&config, 23, DType::F32);
            let (mut got, mut at) = (Vec::new(), 0);
            for step in steps {
                let tape = &mut Tape::inference(&arena, &params);
                let next = model.next(tape, &tokens[at..at + step], &mut cache);
                at += step;
                got.extend(next.logits.to_f64());
                let v = config.vocab_size;
                let here = &want.logits.to_f64()[(at - 1) * v..at * v];
                close("decode", &next.logits.to_f64(), here, 1e-5).unwrap();
                if let Some(said) = &said {
                    close("said", &next.said.unwrap().to_f64(), &said[66 * (at - 1)..66 * at], 1e-5).unwrap();
                }
                if let Some(weights) = &weights {
                    close("weights", &next.psyche.unwrap().to_f64(), &weights[3 * (at - 1)..3 * at], 1e-5).unwrap();
                }
            }
        }
    }
}

#[test]
fn the_controllers_weights_follow_the_lean_and_sum_to_one() {
    let model = Gpt::new(with(&configs()[0], psyche(PsycheSource::Superego)), DType::F32).unwrap();
    let (arena, params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::F32));
    let (rows, _) = rows(&model, 9);
    let weights = |model: &Gpt| {
        let tape = &mut Tape::inference(&arena, &params);
        model.output(tape, &rows, &mut Carried::default()).psyche.unwrap().to_f64()
    };
    let (as_learnt, leaning) = (weights(&model), weights(&model.leaning([2.0, 0.0, 0.0])));
    for (a, b) in as_learnt.chunks(3).zip(leaning.chunks(3)) {
        assert!((a.iter().sum::<f64>() - 1.0).abs() < 1e-6 && (b.iter().sum::<f64>() - 1.0).abs() < 1e-6);
        // Adding 2 to Id's score multiplies its odds by e^2.
        let odds = (b[0] / b[1]) / (a[0] / a[1]);
        assert!((odds - 2f64.exp()).abs() < 1e-3, "{odds}");
    }
}

/// A new self-model expects no loss and is in doubt of every token; its features are those of Superego's stream once they are right.
#[test]
fn a_self_model_begins_in_doubt() {
    let model = Gpt::new(with(&configs()[0], self_model()), DType::F32).unwrap();
    let (arena, (rows, targets)) = (Arena::new(64 << 20).unwrap(), rows(&model, 9));
    let params = neutral_params(&model, DType::F32, &["nanochat.self_model.output.weight"]);
    let said = model.output(&mut Tape::inference(&arena, &params), &rows, &mut Carried::default()).said.unwrap();
    assert_eq!(said.dims(), [18, 66]);
    let all = introspections(&said);
    assert!(all.len() == 18 && all.iter().all(|said| said.loss == 0.0 && said.error == 0.5));
    let losses = model.losses(
        &mut Tape::inference(&arena, &params),
        &rows,
        &targets,
        &LossScales::lm(1.0),
        Recompute::Nothing,
        &mut Carried::default(),
    );
    let [lm, of_self] = [0, 1].map(|i: usize| losses[i].values.to_f64());
    for (lm, of_self) in lm.iter().zip(of_self) {
        let huber = if *lm <= 1.0 { 0.5 * lm * lm } else { lm - 0.5 };
        assert!((of_self - (1.0 + huber + 2f64.ln())).abs() < 1e-5, "{lm} {of_self}");
    }
}

/// A new latent knows nothing of the tokens, and the trunk has no gradient of it; in evaluation no noise is drawn.
#[test]
fn a_latent_begins_at_even_odds_and_draws_in_training_only() {
    let model = Gpt::new(with(&configs()[0], latent()), DType::F64).unwrap();
    let (arena, (rows, targets)) = (Arena::new(64 << 20).unwrap(), rows(&model, 11));
    let params = neutral_params(&model, DType::F64, &["nanochat.latent.decoder.head.weight"]);
    let run = |params: &Params, scales: &LossScales| {
        let mut tape = Tape::inference(&arena, params);
        let losses = model.losses(&mut tape, &rows, &targets, scales, Recompute::Nothing, &mut Carried::default());
        let of_latent = losses.iter().filter(|loss| loss.kind == LossKind::Reconstruction);
        let values = of_latent.map(|loss| loss.values.to_f64()).collect::<Vec<_>>();
        (values, tape.take_notes().into_iter().map(|note| note.name).collect::<Vec<_>>())
    };
    let (values, notes) = run(&params, &LossScales::lm(1.0));
    assert_eq!(notes, ["latent.bits", "latent.accuracy"]);
    // Two rows of two chunks each: 16 tokens, 4 divergences.
    assert!(values[0].len() == 16 && values[1].len() == 4);
    close("even odds", &values[0], &[29f64.ln(); 16], 1e-12).unwrap();
    let params = random_params(&model, DType::F64);
    let with_seed = |seed: Option<f64>| {
        let noise = seed.map(|seed| seed.into());
        run(&params, &LossScales { noise, ..LossScales::all(1.0, 0.0) }).0
    };
    assert_eq!(with_seed(Some(1.0)), with_seed(Some(1.0)));
    assert_ne!(with_seed(Some(1.0))[0], with_seed(Some(2.0))[0]);
    assert_eq!(with_seed(None), run(&params, &LossScales::lm(1.0)).0);
    assert_ne!(with_seed(None)[0], with_seed(Some(1.0))[0]);
    let grads = gradients_of(&model, &params, LossKind::Reconstruction, 1.0);
    for (i, entry) in model.layout().entries().iter().enumerate() {
        let is_zero = grads.view(ParamId(i as u32)).to_f64().iter().all(|&g| g == 0.0);
        assert_eq!(is_zero, !entry.name.starts_with("nanochat.latent."), "{}", entry.name);
    }
}

/// New heads generate nothing and find every latent as likely as another.
#[test]
fn energies_begin_at_even_odds_and_need_latents() {
    let model = Gpt::new(with(&configs()[0], energy()), DType::F64).unwrap();
    let (arena, (rows, targets)) = (Arena::new(64 << 20).unwrap(), rows(&model, 16));
    let params = neutral_params(&model, DType::F64, &ENERGY_OUTPUTS);
    let mut tape = Tape::inference(&arena, &params);
    let losses =
        model.losses(&mut tape, &rows, &targets, &LossScales::lm(1.0), Recompute::Nothing, &mut Carried::default());
    let of = |kind: LossKind| losses.iter().filter(move |loss| loss.kind == kind).map(|loss| loss.values.to_f64());
    let [tokens, starts] = [&rows.tokens, rows.doc_start.as_ref().unwrap()].map(|x| x.as_slice::<u32>());
    let counts = model.counts(tokens, targets.as_slice::<u32>(), 16, Some(starts));
    // Of chunks at 0, 7 and 11 of each row, only the last has a context.
    assert_eq!([LossKind::Score, LossKind::Energy].map(|kind| counts[kind.index()]), [2, 2]);
    let scores: Vec<f64> = of(LossKind::Score).flatten().collect();
    assert!(scores.iter().filter(|&&score| score > 0.0).count() == 2, "{scores:?}");
    // Each of two is contrasted at even odds and told from the other.
    let sums: Vec<f64> = of(LossKind::Energy).map(|values| values.iter().sum::<f64>()).collect();
    close("even odds", &sums, &[2.0 * 2.0 * 2f64.ln(), 2.0 * 2f64.ln()], 1e-12).unwrap();
    let alone = Parts { latent: LatentConfig::default(), ..energy() };
    let error = Gpt::new(with(&configs()[0], alone), DType::F64).err().unwrap();
    assert!(error.to_string().contains("set latent.enabled=true"), "{error}");
}

/// Above the threshold a step ends after Id, and what was skipped is in the cache as if made from Id's stream.
#[test]
fn a_step_ends_after_id_where_its_weight_is_above_the_threshold() {
    let of = |exit_threshold: f64| {
        let psyche = PsycheConfig { enabled: true, source: PsycheSource::Id, exit_threshold };
        let config = ModelConfig { document_mask: false, layers: 6, ..configs()[0].clone() };
        Gpt::new(with(&config, Parts { psyche, ..Parts::default() }), DType::F32).unwrap()
    };
    let (model, never) = (of(0.5), of(1.0));
    let (arena, params) = (Arena::new(64 << 20).unwrap(), random_params(&model, DType::F32));
    let tokens = integers("exit", 30, model.config().vocab_size);
    let [mut cache, mut other] = [(); 2].map(|()| KvCache::new(model.config(), 30, DType::F32));
    let (mut early, mut late) = (0, 0);
    for token in tokens {
        let next = model.next(&mut Tape::inference(&arena, &params), &[token], &mut cache);
        let whole = never.next(&mut Tape::inference(&arena, &params), &[token], &mut other);
        assert!(!whole.is_early);
        let weight = next.psyche.unwrap().to_f64()[0];
        assert_eq!(next.is_early, weight > 0.5, "weight {weight}");
        if early == 0 && !next.is_early {
            close("a step that goes on", &next.logits.to_f64(), &whole.logits.to_f64(), 1e-6).unwrap();
        }
        (early, late) = (early + usize::from(next.is_early), late + usize::from(!next.is_early));
    }
    assert!(early > 2 && late > 2, "{early} early, {late} late");
    assert_eq!((cache.len(), other.len()), (30, 30));
}

#[test]
fn what_is_out_of_range_or_what_the_backbone_cannot_carry_is_refused() {
    let refused = |config: ModelConfig| Gpt::new(config, DType::F32).err().unwrap().to_string();
    let shallow = ModelConfig { layers: 2, ..configs()[0].clone() };
    assert!(refused(with(&shallow, psyche(PsycheSource::Superego))).contains("3 layers or more"));
    let exit = |source, exit_threshold| Parts {
        psyche: PsycheConfig { enabled: true, source, exit_threshold },
        ..Parts::default()
    };
    assert!(refused(with(&configs()[0], exit(PsycheSource::Superego, 0.9))).contains("psyche.source"));
    assert!(refused(with(&configs()[0], exit(PsycheSource::Id, f64::NAN))).contains("exit_threshold"));
    let none = ConceptConfig { enabled: true, count: 0, ..ConceptConfig::default() };
    let wide = ConceptConfig { enabled: true, window: 99, ..ConceptConfig::default() };
    let of = |concept| Parts { concept, ..Parts::default() };
    assert!(refused(with(&configs()[0], of(none))).contains("concept.count = 0"));
    assert!(refused(with(&configs()[0], of(wide))).contains("between 1 and 32"));
}
