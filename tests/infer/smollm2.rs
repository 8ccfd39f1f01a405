//! A real model answers: prompts by its own template and greedy answers token for token as `transformers` gives them (tests/reference).

use crate::formats::smollm2;
use nanochat_gpu::device::Device;
use nanochat_gpu::formats::checkpoint::{LoadedModel, load_for_inference, load_model};
use nanochat_gpu::infer::{
    Answer, ChatFormat, Engine, EngineOptions, Event, Sampler, SamplerOptions, Submission, for_engine,
};
use nanochat_gpu::tensor::DType;
use nanochat_gpu::tokenizer::Message;
use serde_json::Value;
use std::collections::HashMap;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn five_answers_at_once_are_those_of_transformers() {
    let mut opened = load_model(&smollm2(), DType::F32).unwrap();
    opened.params = for_engine(opened.model.config(), opened.params);
    five_answers(opened);
}

/// As `chat` opens it: weights in the blocks of the file, activations of 16 bits.
#[test]
fn five_answers_out_of_quantised_weights_are_those_of_transformers() {
    let opened = load_for_inference(&smollm2(), DType::F32, Device::Cpu).unwrap();
    assert!(opened.params.has_packed());
    five_answers(opened);
}

fn five_answers(opened: LoadedModel) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/smollm2_135m_q4_1.json");
    let reference: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (tokenizer, text) = (opened.tokenizer.as_ref().unwrap(), &opened.text);
    let format = ChatFormat::new(tokenizer, text.template.as_deref(), [text.bos, text.eos.first().copied()]).unwrap();
    let options = EngineOptions::new(opened.model.config(), DType::F32, 5, Some(5 * 200));
    let mut engine = Engine::new(opened.model.clone(), &opened.params, options).unwrap();
    let mut answers = HashMap::new();
    for chat in reference["chats"].as_array().unwrap() {
        let messages = [Message::new("user", chat["prompt"].as_str().unwrap())];
        let prompt = format.prompt(tokenizer, &messages).unwrap();
        assert_eq!(prompt, ids(&chat["prompt_tokens"]), "{}", chat["prompt"]);
        let want = ids(&chat["answer_tokens"]);
        let greedy = Sampler::new(SamplerOptions::GREEDY).unwrap();
        // No token ends it: the reference goes on past the end of a turn where there is one.
        let id = engine.submit(Submission::new(prompt, want.len(), greedy, vec![])).unwrap();
        answers.insert(id, (chat, want, Vec::new(), Answer::new(tokenizer, &[])));
    }
    assert_eq!(answers.len(), 5);
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { id, token, .. } => {
                    let (_, _, got, answer) = answers.get_mut(&id).unwrap();
                    got.push(token);
                    answer.token(tokenizer, token);
                }
                Event::Finished { .. } => {}
                Event::Failed { error, .. } => panic!("{error:#}"),
            }
        }
        engine.check_invariants([]).unwrap();
    }
    for (chat, want, got, answer) in answers.values() {
        assert_eq!(got, want, "{}: {}", chat["prompt"], answer.text());
    }
    let tokens: usize = answers.values().map(|(_, want, ..)| want.len()).sum();
    assert!(tokens >= 130, "{tokens} tokens show little");
    let france = answers.values().find(|(chat, ..)| chat["prompt"].as_str().unwrap().contains("France")).unwrap();
    assert!(france.3.text().contains("Paris"), "{}", france.3.text());
}
