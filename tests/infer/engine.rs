//! The engine against generation by itself: whatever goes on beside a sequence, however little memory there is.

use super::{random_params, small_model};
use crate::data::assert_user_error;
use crate::ops::simulators;
use nanochat_gpu::data::random::Draw;
use nanochat_gpu::device::Device;
use nanochat_gpu::infer::engine::log_probs;
use nanochat_gpu::infer::{
    Engine, EngineOptions, Event, Finish, Held, LogProbs, Request, RequestId, Sampler, SamplerOptions, Submission,
    generate,
};
use nanochat_gpu::model::{Gpt, ModelConfig, Parts};
use nanochat_gpu::ops::paged_attention::PAGE_TOKENS;
use nanochat_gpu::tensor::{DType, Params};
use nanochat_gpu::verify::integers;
use std::collections::HashMap;
use std::ops::ControlFlow;

const VOCABULARY: usize = 97;

fn options(seed: u64) -> SamplerOptions {
    SamplerOptions { temperature: 0.9, top_k: Some(20), seed, ..SamplerOptions::GREEDY }
}

fn submission(prompt: &[u32], tokens_max: usize, sequence: u64) -> Submission {
    let sampler = Sampler::new(options(5)).unwrap();
    Submission { sequence, logprobs: Some(2), ..Submission::new(prompt.to_vec(), tokens_max, sampler, vec![]) }
}

fn engine<'m>(model: &Gpt, params: &'m Params, sequences: usize, pages: usize) -> Engine<'m> {
    let options = EngineOptions::new(model.config(), params.dtype(), sequences, None);
    Engine::new(model.clone(), params, EngineOptions { pages, ..options }).unwrap()
}

/// What came of a request.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    tokens: Vec<u32>,
    logprobs: Vec<LogProbs>,
    finish: Option<Finish>,
}

/// Keeps what an event says; what an ended sequence leaves.
fn note(event: Event, outcomes: &mut HashMap<RequestId, Outcome>) -> Option<Held> {
    match event {
        Event::Token { id, token, logprobs, .. } => {
            let outcome = outcomes.entry(id).or_default();
            outcome.tokens.push(token);
            outcome.logprobs.extend(logprobs);
            None
        }
        Event::Finished { id, finish, held } => {
            outcomes.entry(id).or_default().finish = Some(finish);
            held
        }
        Event::Failed { id, error } => panic!("{id:?}: {error:#}"),
    }
}

/// Everything that has been submitted, to its end.
fn run(engine: &mut Engine, outcomes: &mut HashMap<RequestId, Outcome>) -> Vec<Held> {
    let mut all_held = Vec::new();
    while !engine.is_idle() {
        let events = engine.step().unwrap();
        all_held.extend(events.into_iter().filter_map(|event| note(event, outcomes)));
        engine.check_invariants(&all_held).unwrap();
    }
    all_held
}

fn alone(model: &Gpt, params: &Params, submission: Submission) -> Outcome {
    let mut engine = engine(model, params, 1, 40);
    let id = engine.submit(submission).unwrap();
    let mut outcomes = HashMap::new();
    run(&mut engine, &mut outcomes);
    outcomes.remove(&id).unwrap()
}

/// A model whose sequences have states: Kimi Delta Attention beside attention, both memories, digits.
fn model_with_states() -> Gpt {
    let mut parts = Parts::default();
    (parts.abacus.enabled, parts.memory.enabled, parts.psyche.enabled) = (true, true, true);
    (parts.abacus.heads, parts.abacus.key_dim, parts.abacus.value_dim) = (1, 32, 32);
    (parts.memory.rows, parts.memory.key_width, parts.memory.segment) = (16, 8, 10);
    let config = ModelConfig {
        width: 64,
        heads: 2,
        kv_heads: 2,
        head_dim: 32,
        ffn_width: 40,
        layer_pattern: "KA".into(),
        parts,
        ..ModelConfig::from_depth(3, VOCABULARY, 400)
    };
    Gpt::new(config, DType::F32).unwrap()
}

#[test]
fn one_sequence_is_what_generation_makes() {
    for model in [small_model(VOCABULARY, 400), model_with_states()] {
        let params = random_params(&model, DType::F32);
        for length in [1, 7, 40, 300] {
            let prompt = integers("prompt", length, VOCABULARY);
            let request = Request { prompt: &prompt, tokens_max: 25, sequence: 3, stop_ids: &[] };
            let sampler = Sampler::new(options(5)).unwrap();
            let want = generate(&model, &params, &sampler, &request, &mut |_| ControlFlow::Continue(())).unwrap();
            let got = alone(&model, &params, submission(&prompt, 25, 3));
            assert_eq!((got.tokens, got.finish), (want.tokens, Some(want.finish)), "a prompt of {length}");
            assert!(got.logprobs.iter().all(|p| p.drawn <= p.likeliest[0].1 && p.likeliest[1].1 <= p.likeliest[0].1));
        }
    }
}

/// Prompts of all lengths, some of which begin alike.
fn prompts(draw: &mut Draw, count: usize) -> Vec<Vec<u32>> {
    let common = integers("common", 70, VOCABULARY);
    let prompt = |i: usize| {
        let mut prompt = common[..draw.below(70)].to_vec();
        prompt.extend(integers(&format!("prompt {i}"), 1 + draw.below(40), VOCABULARY));
        prompt
    };
    (0..count).map(prompt).collect()
}

/// Requests that come at any time and are sometimes cancelled, with little memory: each that ends is what it is alone.
fn crowded(model: &Gpt, pages: usize) -> (u64, usize) {
    let params = random_params(model, DType::F32);
    let mut draw = Draw::new(&[7]);
    let prompts = prompts(&mut draw, 24);
    let mut engine = engine(model, &params, 6, pages);
    let (mut outcomes, mut ids, mut cancelled) = (HashMap::<RequestId, Outcome>::new(), Vec::new(), Vec::new());
    let (mut next, mut waited) = (0, 0);
    while next < prompts.len() || !engine.is_idle() {
        if next < prompts.len() && draw.below(3) > 0 {
            ids.push(engine.submit(submission(&prompts[next], 5 + next % 17, next as u64)).unwrap());
            next += 1;
        }
        for event in engine.step().unwrap() {
            assert!(note(event, &mut outcomes).is_none(), "nothing was to be held");
        }
        if draw.below(5) == 0 && !ids.is_empty() {
            let id = ids[draw.below(ids.len())];
            let is_over = outcomes.get(&id).is_some_and(|outcome| outcome.finish.is_some());
            if !is_over && !cancelled.contains(&id) {
                assert!(engine.cancel(id).is_none(), "nothing was to be held");
                cancelled.push(id);
            }
        }
        waited += engine.load()[0];
        engine.check_invariants([]).unwrap();
    }
    assert_eq!(engine.pages().available(), pages, "all pages come back");
    assert!(!cancelled.is_empty() && cancelled.len() < 12, "{} cancelled", cancelled.len());
    for (i, id) in ids.iter().enumerate().filter(|(_, id)| !cancelled.contains(id)) {
        let want = alone(model, &params, submission(&prompts[i], 5 + i % 17, i as u64));
        // Log-probabilities, too: bit for bit.
        assert_eq!(outcomes[id], want, "request {i}");
    }
    (engine.prefilled(), waited)
}

#[test]
fn a_sequence_is_the_same_in_a_crowd() {
    let model = small_model(VOCABULARY, 400);
    let (prefilled, _) = crowded(&model, 200);
    let mut draw = Draw::new(&[7]);
    let all: usize = prompts(&mut draw, 24).iter().map(Vec::len).sum();
    assert!((prefilled as usize) < all, "{prefilled} of {all} tokens of prompts were read: some were there already");
}

#[test]
fn a_sequence_is_the_same_where_pages_run_out() {
    // 400 tokens are 25 pages; six sequences of up to 130 tokens want up to 54.
    crowded(&small_model(VOCABULARY, 400), 25);
}

#[test]
fn sequences_with_states_do_not_mix() {
    let (_, waited) = crowded(&model_with_states(), 25);
    assert!(waited > 0);
}

#[test]
fn what_is_held_is_gone_on_with() {
    for model in [small_model(VOCABULARY, 400), model_with_states()] {
        let params = random_params(&model, DType::F32);
        let mut engine = engine(&model, &params, 2, 30);
        let prompt = integers("first", 37, VOCABULARY);
        let first = engine.submit(Submission { hold: true, ..submission(&prompt, 8, 0) }).unwrap();
        let mut outcomes = HashMap::new();
        let mut held = run(&mut engine, &mut outcomes).remove(0);
        let said = outcomes[&first].tokens.clone();
        // The last token was drawn and did not pass.
        assert_eq!(held.tokens(), [&prompt[..], &said[..7]].concat());
        assert!(held.state().memory_bytes() > 0 || model.config().sequences_mix());
        let more = [&prompt[..], &said, &integers("second", 12, VOCABULARY)].concat();
        let before = engine.prefilled();
        let second = engine.submit(Submission { from: Some(held), ..submission(&more, 8, 0) }).unwrap();
        run(&mut engine, &mut outcomes);
        assert_eq!(engine.prefilled() - before, 13, "the rest alone is read");
        if model.config().sequences_mix() {
            assert_eq!(outcomes[&second].tokens, alone(&model, &params, submission(&more, 8, 0)).tokens);
        }
        assert_eq!(engine.pages().available(), 30);
    }
}

#[test]
fn ends_and_refusals() {
    let model = small_model(VOCABULARY, 40);
    let params = random_params(&model, DType::F32);
    let prompt = integers("prompt", 10, VOCABULARY);
    let free = alone(&model, &params, submission(&prompt, 6, 1));
    assert_eq!((free.tokens.len(), free.finish), (6, Some(Finish::MaxTokens)));
    let stopped = Submission { stop_ids: vec![free.tokens[3]], ..submission(&prompt, 6, 1) };
    let first = free.tokens.iter().position(|&token| token == free.tokens[3]).unwrap();
    let stopped = alone(&model, &params, stopped);
    assert_eq!((&stopped.tokens[..], stopped.finish), (&free.tokens[..first], Some(Finish::Stopped)));
    let full = alone(&model, &params, submission(&prompt, 100, 1));
    assert_eq!((full.tokens.len(), full.finish), (30, Some(Finish::ContextFull)));
    assert_eq!(alone(&model, &params, submission(&prompt, 0, 1)).finish, Some(Finish::MaxTokens));
    let mut engine = engine(&model, &params, 2, 2);
    assert_user_error(engine.submit(submission(&[], 5, 0)), &["the prompt has no token"]);
    assert_user_error(engine.submit(submission(&[1; 41], 5, 0)), &["41 tokens", "context 40"]);
    assert_user_error(engine.submit(submission(&[1; 33], 5, 0)), &["33 tokens", "pages for 32"]);
    assert_user_error(engine.submit(submission(&[97], 5, 0)), &["token 97"]);
    assert!(engine.is_idle() && engine.step().unwrap().is_empty());
}

#[test]
fn held_pages_that_leave_no_room_are_told() {
    let model = small_model(VOCABULARY, 40);
    let params = random_params(&model, DType::F32);
    let mut engine = engine(&model, &params, 2, 3);
    let prompt = integers("prompt", 2 * PAGE_TOKENS, VOCABULARY);
    engine.submit(Submission { hold: true, ..submission(&prompt, 3, 0) }).unwrap();
    let held = run(&mut engine, &mut HashMap::new()).remove(0);
    let other = integers("other", 20, VOCABULARY);
    let id = engine.submit(submission(&other, 3, 0)).unwrap();
    let events = engine.step().unwrap();
    let [Event::Failed { id: failed, error }] = &events[..] else { panic!("{} events", events.len()) };
    assert_eq!((*failed, error.to_string().as_str()), (id, "all 3 pages of keys and values are in use"));
    engine.forget(held);
    assert_eq!(engine.pages().available(), 3);
}

#[test]
fn log_probabilities_are_those_of_the_softmax() {
    let logits = [1.0f32, 3.0, -2.0, 3.0, 0.5];
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let want = |id: usize| (f64::from(logits[id]) - sum.ln()) as f32;
    let got = log_probs(&logits, 2, 3);
    assert_eq!(got.likeliest.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 0]);
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-6;
    assert!(near(got.drawn, want(2)) && got.likeliest.iter().all(|&(id, p)| near(p, want(id as usize))));
    assert_eq!(log_probs(&logits, 0, 0).likeliest, []);
}

/// Tokens are drawn on the device, steps recorded and replayed; log-probabilities are drawn on the host from logits that come from there. Sequences
/// join and leave meanwhile.
#[test]
fn a_simulated_gpu_gives_the_tokens_of_the_processor() {
    let Some(&gpu) = simulators().first() else { return };
    let mut with_stages =
        ModelConfig { width: 32, heads: 2, kv_heads: 1, head_dim: 16, ..ModelConfig::from_depth(3, VOCABULARY, 400) };
    with_stages.parts.psyche.enabled = true;
    for model in [small_model(VOCABULARY, 400), Gpt::new(with_stages, DType::F32).unwrap()] {
        let params = random_params(&model, DType::F32);
        let (there, of_there) = (model.clone().to(Device::Gpu(gpu)), params.clone().to(Device::Gpu(gpu)));
        let plain = |submission: Submission| Submission { logprobs: None, ..submission };
        let outcomes = |model: &Gpt, params: &Params, records: bool| {
            let options =
                EngineOptions { pages: 40, records, ..EngineOptions::new(model.config(), DType::F32, 3, None) };
            let mut engine = Engine::new(model.clone(), params, options).unwrap();
            let prompts: Vec<Vec<u32>> = (1..5).map(|i| integers(&format!("prompt {i}"), 9 * i, VOCABULARY)).collect();
            for (i, prompt) in prompts.iter().enumerate() {
                let submission = submission(prompt, 5 + 3 * i, i as u64);
                engine.submit(if i == 1 { submission } else { plain(submission) }).unwrap();
            }
            let mut outcomes = HashMap::new();
            run(&mut engine, &mut outcomes);
            let mut outcomes: Vec<(RequestId, Outcome)> = outcomes.into_iter().collect();
            outcomes.sort_by_key(|(id, _)| *id);
            (
                outcomes.into_iter().map(|(_, outcome)| (outcome.tokens, outcome.finish)).collect::<Vec<_>>(),
                engine.replayed(),
            )
        };
        let (want, replayed) = outcomes(&model, &params, true);
        assert!(want.len() == 4 && replayed == 0, "the processor records nothing");
        let (got, replayed) = outcomes(&there, &of_there, true);
        assert!(got == want && replayed > 5, "{got:?} instead of {want:?}, {replayed} steps replayed");
        assert_eq!(outcomes(&there, &of_there, false), (want, 0));
    }
}
