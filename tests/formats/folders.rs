//! Hugging Face folders: weights in several files, and what the files around them say of texts.

use super::logits_of;
use crate::infer::{random_params, save_checkpoint, small_model};
use crate::tokenizer::small;
use nanochat_gpu::error::is_user_error;
use nanochat_gpu::formats::checkpoint::{load_model, write_folder};
use nanochat_gpu::formats::safetensors::{Named, Reader, write};
use nanochat_gpu::formats::text_rules::TextRules;
use nanochat_gpu::formats::weights::Export;
use nanochat_gpu::tensor::{BlockType, DType, Tensor};
use nanochat_gpu::tokenizer::{Codec, Pattern};
use serde_json::{Value, json};
use std::path::Path;

/// Copies a model of one file into `folder` as two with an index.
pub fn split(from: &Path, folder: &Path) {
    std::fs::copy(from.join("config.json"), folder.join("config.json")).unwrap();
    let reader = Reader::open(&from.join("model.safetensors")).unwrap();
    let mut places = serde_json::Map::new();
    for shard in 0..2 {
        let file = format!("model-0000{}-of-00002.safetensors", shard + 1);
        let mut tensors = Vec::new();
        for name in reader.names().into_iter().skip(shard).step_by(2) {
            let (shape, values) = reader.floats(&name).unwrap();
            let mut tensor = Tensor::owned(shape, DType::F32);
            tensor.copy_from_f64(&values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            places.insert(name.clone(), file.clone().into());
            tensors.push((name, tensor));
        }
        let named: Vec<_> = tensors.iter().map(|(name, tensor)| Named::new(name.as_str(), tensor)).collect();
        write(&folder.join(file), &named).unwrap();
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": places});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn line_of(folder: &Path) -> String {
    let Err(error) = load_model(folder, DType::F32) else { panic!("opened") };
    let line = format!("{error:#}");
    assert!(is_user_error(&error) && !line.contains('\n'), "{line}");
    line
}

#[test]
fn several_files_make_the_same_model_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for case in ["llama_gqa", "llama_tied_scaled_rope", "qwen3_qk_norm"] {
        let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(case);
        split(&reference, folder);
        let [whole, parts] = [&reference, folder].map(|folder| load_model(folder, DType::F32).unwrap());
        assert_eq!(whole.model.config(), parts.model.config());
        assert_eq!(whole.params.master().as_slice::<f32>(), parts.params.master().as_slice::<f32>(), "{case}");
    }
    let index = folder.join("model.safetensors.index.json");
    let good: Value = serde_json::from_str(&std::fs::read_to_string(&index).unwrap()).unwrap();
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 7] = [
        (|v| *v = json!(3), "no weight_map"),
        (|v| v["weight_map"] = json!({}), "no weight_map"),
        (|v| v["weight_map"]["lm_head.weight"] = json!("../model.safetensors"), "no file beside it"),
        (|v| v["weight_map"]["lm_head.weight"] = json!(".."), "no file beside it"),
        (|v| v["weight_map"]["lm_head.weight"] = json!(7), "no file beside it"),
        (|v| v["weight_map"]["lm_head.weight"] = json!("absent.safetensors"), "absent.safetensors"),
        (|v| v["weight_map"]["more.weight"] = json!("model-00001-of-00002.safetensors"), "more.weight"),
    ];
    for (change, word) in cases {
        let mut changed = good.clone();
        change(&mut changed);
        std::fs::write(&index, changed.to_string()).unwrap();
        let line = line_of(folder);
        assert!(line.contains(word), "lacks {word:?}: {line}");
    }
    std::fs::write(&index, good.to_string()).unwrap();
    load_model(folder, DType::F32).unwrap();
    std::fs::copy(folder.join("model-00001-of-00002.safetensors"), folder.join("model-00002-of-00002.safetensors"))
        .unwrap();
    assert!(line_of(folder).contains("in another file"));
    std::fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    assert!(line_of(folder).contains("model-00002-of-00002.safetensors"));
}

#[test]
fn configurations_that_compute_something_else_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/llama_gqa");
    split(&reference, folder);
    let good: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let scaling = |factor: f64, high: f64| {
        json!({"rope_type": "llama3", "rope_theta": 1e4, "factor": factor, "low_freq_factor": 1.0,
               "high_freq_factor": high, "original_max_position_embeddings": 32})
    };
    for (key, value, word) in [
        ("architectures", json!(["Qwen2ForCausalLM"]), "biases"),
        ("attention_bias", json!(true), "attention_bias"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("quantization_config", json!({"quant_method": "gptq"}), "quantised"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("rope_interleaved", json!(true), "rope_interleaved"),
        ("use_sliding_window", json!(true), "use_sliding_window"),
        ("num_hidden_layers", json!(1), "layers.1"),
        ("rms_norm_eps", json!(-1.0), "norm_eps"),
        ("rope_parameters", scaling(0.0, 4.0), "rotary scaling"),
        ("rope_parameters", scaling(8.0, 1.0), "rotary scaling"),
    ] {
        let mut config = good.clone();
        config[key] = value;
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let line = line_of(folder);
        assert!(line.contains(word), "lacks {word:?}: {line}");
    }
    let mut config = good;
    config["max_position_embeddings"] = json!(131_072);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    assert_eq!(
        load_model(folder, DType::F32).unwrap().model.config().max_seq_len,
        16_384,
        "as far as is computed here"
    );
}

#[test]
fn the_files_around_a_model_say_what_begins_and_ends_texts() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (model, tokenizer) = (small_model(500, 32), small(Pattern::Qwen2));
    let id = |name: &str| tokenizer.special(name).unwrap();
    save_checkpoint(folder, &model, &random_params(&model, DType::F32), Some(&tokenizer));
    let rules = || load_model(folder, DType::F32).unwrap().text;
    let (bos, end) = (id("<|bos|>"), id("<|assistant_end|>"));
    assert_eq!(rules(), TextRules { bos: Some(bos), add_bos: true, eos: vec![bos, end], template: None });

    let settings = |value: Value| std::fs::write(folder.join("tokenizer_config.json"), value.to_string()).unwrap();
    settings(json!({"bos_token": {"content": "<|user_start|>"}, "eos_token": "<|user_end|>", "chat_template": "one"}));
    let eos = vec![id("<|user_end|>"), bos, end];
    let named = TextRules { bos: Some(id("<|user_start|>")), add_bos: false, eos, template: Some("one".into()) };
    assert_eq!(rules(), named, "a model that does not say so wants nothing before texts");
    let templates = json!([{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]);
    settings(json!({"bos_token": "<|bos|>", "add_bos_token": true, "chat_template": templates}));
    let with = rules();
    assert_eq!((with.prefix(), with.template.as_deref()), (Some(bos), Some("three")));
    settings(json!({"bos_token": "<|bos|>", "chat_template": "one"}));
    std::fs::write(folder.join("chat_template.jinja"), "four").unwrap();
    assert_eq!((rules().prefix(), rules().template.as_deref()), (None, Some("four")));

    let mut file: Value = serde_json::from_str(&tokenizer.to_json()).unwrap();
    let single = json!([{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
    file["post_processor"] = json!({"type": "Sequence", "processors": [
        {"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": single},
    ]});
    std::fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
    assert_eq!(rules().prefix(), Some(bos), "as the post-processor does");

    std::fs::write(folder.join("generation_config.json"), r#"{"eos_token_id": [498, 7, 99999]}"#).unwrap();
    assert_eq!(rules().eos[..2], [498, 7]);
    std::fs::write(folder.join("generation_config.json"), "{").unwrap();
    assert!(line_of(folder).contains("generation_config.json is not valid JSON"));
}

#[test]
fn a_folder_that_we_write_is_the_same_model_and_rules() {
    let folder = tempfile::tempdir().unwrap();
    let (model, tokenizer) = (small_model(510, 32), small(Pattern::SmolLm));
    let params = random_params(&model, DType::F32);
    let [bos, user, end] =
        ["<|bos|>", "<|user_end|>", "<|assistant_end|>"].map(|name| tokenizer.special(name).unwrap());
    let text =
        TextRules { bos: Some(user), add_bos: false, eos: vec![user, bos, end], template: Some("{{ x }}".into()) };
    let tokens: Vec<u32> = (0..20).collect();
    for kind in [BlockType::F32, BlockType::Bf16] {
        let target = folder.path().join(kind.name());
        let tokenizer = Some(&tokenizer);
        write_folder(&target, Export { model: &model, params: &params, tokenizer, text: &text, kind }).unwrap();
        let back = load_model(&target, DType::F32).unwrap();
        assert_eq!(back.model.config(), model.config());
        assert_eq!(back.text, text);
        let [got, want] = [&back.params, &params].map(|params| params.master().as_slice::<f32>().to_vec());
        match kind {
            BlockType::F32 => {
                assert_eq!(got, want);
                assert_eq!(logits_of(&back.model, &back.params, &tokens), logits_of(&model, &params, &tokens));
            }
            _ => assert!(got.iter().zip(&want).all(|(got, want)| *got == half::bf16::from_f32(*want).to_f32())),
        }
    }
}
