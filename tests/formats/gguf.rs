//! GGUF files that we write: read back they are the same model, tokenizer and rules.

use super::logits_of;
use crate::infer::random_params;
use crate::tokenizer::small;
use nanochat_gpu::error::is_user_error;
use nanochat_gpu::formats::checkpoint::{LoadedModel, load_model};
use nanochat_gpu::formats::gguf::{self, Gguf};
use nanochat_gpu::formats::text_rules::TextRules;
use nanochat_gpu::formats::weights::Export;
use nanochat_gpu::model::{Gpt, ModelConfig};
use nanochat_gpu::tensor::{BlockType, DType, ParamId};
use nanochat_gpu::tokenizer::{Codec, Pattern};
use std::path::{Path, PathBuf};

fn reference(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(case)
}

fn export(opened: &LoadedModel, path: &Path, kind: BlockType) -> gguf::Exported {
    let LoadedModel { model, params, tokenizer, text, .. } = opened;
    gguf::export(path, Export { model, params, tokenizer: tokenizer.as_ref(), text, kind }).unwrap()
}

#[test]
fn models_of_others_come_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    for case in ["llama_gqa", "llama_tied_scaled_rope", "qwen3_qk_norm"] {
        let opened = load_model(&reference(case), DType::F32).unwrap();
        let path = folder.path().join(format!("{case}.gguf"));
        let exported = export(&opened, &path, BlockType::F32);
        assert_eq!(exported.bytes, std::fs::metadata(&path).unwrap().len());
        assert_eq!(exported.notes.len(), 1, "no tokenizer: {:?}", exported.notes);
        let back = load_model(&path, DType::F32).unwrap();
        assert_eq!((back.model.config(), back.tokenizer.is_none()), (opened.model.config(), true), "{case}");
        assert_eq!(back.params.master().as_slice::<f32>(), opened.params.master().as_slice::<f32>(), "{case}");
        let tokens: Vec<u32> = (0..20).map(|i| i * 4).collect();
        assert_eq!(logits_of(&back.model, &back.params, &tokens), logits_of(&opened.model, &opened.params, &tokens));
    }
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 3, "no temporary file is left");
}

/// A model whose matrices have rows of 256, and in part of 96.
fn wide_model(qk_norm: bool) -> Gpt {
    let config = ModelConfig {
        layers: 2,
        width: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        ffn_width: 96,
        qk_norm,
        tie_embeddings: true,
        ..ModelConfig::from_depth(4, 520, 64)
    };
    Gpt::new(config, DType::F32).unwrap()
}

#[test]
fn every_type_stores_what_its_blocks_hold() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, qk_norm) in BlockType::ALL.into_iter().zip([true, false].into_iter().cycle()) {
        let (model, tokenizer) = (wide_model(qk_norm), small(Pattern::Gpt4));
        let params = random_params(&model, DType::F32);
        let text = TextRules { template: Some("{{ messages }}".into()), ..TextRules::guessed(&tokenizer) };
        let digest = tokenizer.digest();
        let path = folder.path().join("model.gguf");
        let opened = LoadedModel { model, params, tokenizer: Some(tokenizer), text, path: PathBuf::new() };
        let exported = export(&opened, &path, kind);
        let noted = exported.notes.iter().any(|note| note.contains("2 matrices are F16"));
        assert_eq!(noted, kind == BlockType::Q6K, "{:?}", exported.notes);
        let back = load_model(&path, DType::F32).unwrap();
        assert_eq!(back.model.config(), opened.model.config(), "{}", kind.name());
        assert_eq!((&back.text, back.tokenizer.unwrap().digest()), (&opened.text, digest));
        for (i, entry) in opened.model.layout().entries().iter().enumerate() {
            let [want, got] = [&opened.params, &back.params]
                .map(|params| params.master_view(ParamId(i as u32)).as_slice::<f32>().to_vec());
            let cols = *entry.shape.as_slice().last().unwrap();
            let kind = match entry.shape.rank() {
                1 => BlockType::F32,
                _ if kind.row_bytes(cols).is_none() => BlockType::F16,
                _ => kind,
            };
            let mut bytes = vec![0; kind.row_bytes(want.len()).unwrap()];
            kind.quantise(&want, &mut bytes);
            let mut expected = vec![0.0; want.len()];
            kind.dequantise(&bytes, &mut expected);
            assert_eq!(got, expected, "{} {}", kind.name(), entry.name);
        }
    }
}

#[test]
fn tokenizers_of_every_named_pattern_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for pattern in Pattern::named().cloned() {
        let (model, tokenizer) = (wide_model(false), small(pattern.clone()));
        let params = random_params(&model, DType::F32);
        let text = TextRules { bos: Some(3), add_bos: false, eos: vec![5, 4, 9], template: None };
        let export =
            Export { model: &model, params: &params, tokenizer: Some(&tokenizer), text: &text, kind: BlockType::F16 };
        let written = gguf::export(&path, export);
        if pattern == Pattern::Llama3TwoDigits {
            let error = written.unwrap_err();
            assert!(is_user_error(&error) && error.to_string().contains("llama3-two-digits"), "{error}");
            continue;
        }
        let noted = written.unwrap().notes.iter().any(|note| note.contains("llama.cpp splits text"));
        assert_eq!(noted, [Pattern::Gpt4, Pattern::Gpt4SingleDigit].contains(&pattern));
        let back = load_model(&path, DType::F32).unwrap();
        let read = back.tokenizer.unwrap();
        assert_eq!((read.digest(), read.to_json()), (tokenizer.digest(), tokenizer.to_json()), "{}", pattern.name());
        // The model has more rows than the tokenizer has tokens.
        assert!(read.vocab_size() < back.model.config().vocab_size);
        assert_eq!((back.text.bos, back.text.prefix(), &back.text.eos[..3]), (Some(3), None, &[5, 4, 9][..]));
    }
}

#[test]
fn what_gguf_has_no_word_for_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let plain = wide_model(true).config().clone();
    let with = |change: &dyn Fn(&mut ModelConfig)| {
        let mut config = ModelConfig { layers: 3, ..plain.clone() };
        change(&mut config);
        Gpt::new(config, DType::F32).unwrap()
    };
    let refused = |model: Gpt, word: &str, change: &dyn Fn(&mut [f32])| {
        let mut params = random_params(&model, DType::F32);
        change(params.master_mut().as_mut_slice::<f32>());
        let text = TextRules::default();
        let export = Export { model: &model, params: &params, tokenizer: None, text: &text, kind: BlockType::Q8_0 };
        let error = gguf::export(&path, export).unwrap_err();
        let line = format!("{error:#}");
        assert!(is_user_error(&error) && line.contains(word) && !line.contains('\n'), "{line}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    };
    refused(with(&|c| c.softcap = 5.0), "soft-cap", &|_| ());
    refused(with(&|c| c.window_pattern = "SL".into()), "window", &|_| ());
    refused(with(&|c| c.layer_pattern = "KA".into()), "Kimi Delta Attention", &|_| ());
    refused(with(&|c| c.parts.psyche.enabled = true), "--backbone-only", &|_| ());
    refused(wide_model(true), "model.embed_tokens.weight holds NaN", &|values| values[7] = f32::NAN);
    refused(wide_model(true), "holds 70000", &|values| values[7] = 70_000.0);
}

#[test]
fn tensors_lie_where_the_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let opened = load_model(&reference("llama_gqa"), DType::F32).unwrap();
    export(&opened, &path, BlockType::F32);
    let file = Gguf::open(&path).unwrap();
    assert_eq!(file.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(file.count("llama.attention.head_count_kv").unwrap(), Some(2));
    assert_eq!(file.number("llama.attention.layer_norm_rms_epsilon").unwrap(), Some(1e-5));
    assert!(file.tensors().iter().all(|tensor| tensor.range.start.is_multiple_of(32)));
    // Heads of 8: rows 0, 4, 1, 5, ... of Hugging Face's matrix.
    let q = file.tensor("blk.1.attn_q.weight").unwrap();
    let mut first_rows = vec![0.0; 2 * 48];
    q.kind.dequantise(&file.bytes(q)[..2 * 48 * 4], &mut first_rows);
    let entries = opened.model.layout().entries();
    let index = entries.iter().position(|e| e.name == "model.layers.1.self_attn.q_proj.weight").unwrap();
    let matrix = opened.params.master_view(ParamId(index as u32));
    let matrix = matrix.as_slice::<f32>();
    assert_eq!(first_rows, [&matrix[..48], &matrix[4 * 48..5 * 48]].concat());
}
