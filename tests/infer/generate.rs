//! Generation against repeated prefill of whole rows, its ends, and its independence of other sequences.

use super::{random_params, small_model};
use crate::data::assert_user_error;
use nanochat_gpu::infer::{Drawn, Finish, Generation, Request, Sampler, SamplerOptions, generate};
use nanochat_gpu::model::Gpt;
use nanochat_gpu::model::gpt::Rows;
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, Params};
use nanochat_gpu::verify::integers;
use std::ops::ControlFlow;

const REQUEST: Request = Request { prompt: &[1, 2, 3], tokens_max: 20, sequence: 0, stop_ids: &[] };

fn run(model: &Gpt, params: &Params, options: SamplerOptions, request: &Request) -> Generation {
    let mut seen = Vec::new();
    let mut on_token = |drawn: Drawn| {
        assert!(drawn.psyche.is_none());
        seen.push(drawn.id);
        ControlFlow::Continue(())
    };
    let made = generate(model, params, &Sampler::new(options).unwrap(), request, &mut on_token).unwrap();
    assert_eq!(made.tokens, seen, "every token is shown");
    made
}

/// Greedy continuation by the logits of whole rows, without a cache.
fn by_prefill(model: &Gpt, params: &Params, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let arena = Arena::new(256 << 20).unwrap();
    let mut ids = prompt.to_vec();
    for _ in 0..tokens {
        let rows = Rows::new(&arena, &ids, ids.len(), None);
        let logits = model.logits(&mut Tape::inference(&arena, params), &rows).to_f64();
        let last = &logits[logits.len() - model.config().vocab_size..];
        let largest = last.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        ids.push(last.iter().position(|&logit| logit == largest).unwrap() as u32);
    }
    ids.split_off(prompt.len())
}

#[test]
fn greedy_generation_equals_repeated_prefill() {
    let model = small_model(97, 400);
    let params = random_params(&model, DType::F32);
    // One token, a few, and prompts that are longer than what passes at once.
    for length in [1, 7, 256, 257, 300] {
        let prompt = integers("prompt", length, 97);
        let made = run(&model, &params, SamplerOptions::GREEDY, &Request { prompt: &prompt, ..REQUEST });
        assert_eq!(made, Generation { tokens: by_prefill(&model, &params, &prompt, 20), finish: Finish::MaxTokens });
        assert!(made.tokens.iter().any(|&id| id != made.tokens[0]), "a model that says one thing shows nothing");
    }
}

#[test]
fn bf16_generates() {
    let config = small_model(97, 64).config().clone();
    let model = Gpt::new(config, DType::Bf16).unwrap();
    let made = run(&model, &random_params(&model, DType::Bf16), SamplerOptions::GREEDY, &REQUEST);
    assert_eq!(made.tokens.len(), 20);
}

#[test]
fn the_context_ends_a_sequence() {
    let model = small_model(97, 16);
    let params = random_params(&model, DType::F32);
    let of = |prompt: usize, tokens_max| {
        let prompt = integers("prompt", prompt, 97);
        let made = run(&model, &params, SamplerOptions::GREEDY, &Request { prompt: &prompt, tokens_max, ..REQUEST });
        (made.tokens.len(), made.finish)
    };
    assert_eq!(of(10, 5), (5, Finish::MaxTokens));
    assert_eq!(of(10, 6), (6, Finish::MaxTokens));
    assert_eq!(of(10, 7), (6, Finish::ContextFull));
    assert_eq!(of(10, usize::MAX), (6, Finish::ContextFull));
    assert_eq!(of(16, 1), (0, Finish::ContextFull));
    assert_eq!(of(16, 0), (0, Finish::MaxTokens));
}

#[test]
fn stop_ids_and_the_caller_end_a_sequence() {
    let model = small_model(97, 64);
    let params = random_params(&model, DType::F32);
    let options = SamplerOptions { temperature: 1.5, seed: 1, ..SamplerOptions::GREEDY };
    let free = run(&model, &params, options, &REQUEST).tokens;
    let stop = free[6];
    let before = free.iter().position(|&id| id == stop).unwrap();
    let stopped = run(&model, &params, options, &Request { stop_ids: &[96, stop], ..REQUEST });
    let expected = match free.iter().position(|&id| id == 96) {
        Some(at) => at.min(before),
        None => before,
    };
    assert_eq!(stopped, Generation { tokens: free[..expected].to_vec(), finish: Finish::Stopped });
    let mut left = 4;
    let mut on_token = |_| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let broken = generate(&model, &params, &Sampler::new(options).unwrap(), &REQUEST, &mut on_token).unwrap();
    assert_eq!(broken, Generation { tokens: free[..4].to_vec(), finish: Finish::Stopped });
}

#[test]
fn sequences_depend_on_their_own_number_alone() {
    let model = small_model(97, 64);
    let params = random_params(&model, DType::F32);
    let options =
        SamplerOptions { temperature: 1.0, top_k: Some(40), top_p: Some(0.95), seed: 7, ..SamplerOptions::GREEDY };
    let of = |sequence, seed| {
        run(&model, &params, SamplerOptions { seed, ..options }, &Request { sequence, ..REQUEST }).tokens
    };
    let (zero, one) = (of(0, 7), of(1, 7));
    assert_eq!((of(1, 7), of(0, 7)), (one.clone(), zero.clone()));
    assert_ne!(zero, one);
    assert_ne!(zero, of(0, 8));
    // A shorter request is a beginning of the longer one.
    assert_eq!(run(&model, &params, options, &Request { tokens_max: 5, ..REQUEST }).tokens, zero[..5]);
}

#[test]
fn bad_prompts_and_bad_numbers_are_refused() {
    let model = small_model(97, 16);
    let mut params = random_params(&model, DType::F32);
    let greedy = Sampler::new(SamplerOptions::GREEDY).unwrap();
    let attempt = |params: &Params, prompt: &[u32]| {
        generate(&model, params, &greedy, &Request { prompt, ..REQUEST }, &mut |_| ControlFlow::Continue(()))
    };
    assert_user_error(attempt(&params, &[]), &["the prompt has no token"]);
    assert_user_error(attempt(&params, &[1; 17]), &["17", "16"]);
    assert_user_error(attempt(&params, &[1, 97]), &["token 97", "97 tokens"]);
    params.master_mut().as_mut_slice::<f32>().fill(f32::NAN);
    let error = format!("{:#}", attempt(&params, &[1]).unwrap_err());
    assert!(error.contains("position 1") && error.contains("NaN"), "{error}");
}
