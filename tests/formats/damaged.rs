//! Files that are wrong: each refused in one line that says what, and thousands of random changes, none of which may end in a
//! panic or in memory far beyond the file.

use super::allocations::peak_of;
use super::build::{self, File};
use crate::tokenizer::small;
use nanochat_gpu::error::is_user_error;
use nanochat_gpu::formats::checkpoint::{LoadedModel, load_model};
use nanochat_gpu::tensor::DType;
use nanochat_gpu::tensor::random::Philox;
use nanochat_gpu::tokenizer::{Pattern, Tokenizer};
use std::path::Path;

/// What is wrong with a file, and words of the line that says so.
type Case = (fn(&mut File), &'static [&'static str]);

fn load(path: &Path, bytes: &[u8]) -> anyhow::Result<LoadedModel> {
    std::fs::write(path, bytes).unwrap();
    load_model(path, DType::F32)
}

/// The line of an error that is the user's.
fn line_of(result: anyhow::Result<LoadedModel>, what: &str) -> String {
    let Err(error) = result else { panic!("{what}: opened") };
    let line = format!("{error:#}");
    assert!(is_user_error(&error) && !line.contains('\n'), "{what}: {line}");
    line
}

fn all_refused(cases: &[Case]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let good = File::small(&small(Pattern::Gpt2));
    load(&path, &good.bytes()).unwrap();
    for (change, words) in cases {
        let mut file = good.clone();
        change(&mut file);
        let line = line_of(load(&path, &file.bytes()), &format!("{words:?}"));
        assert!(line.contains("model.gguf"), "{line}");
        for word in *words {
            assert!(line.contains(word), "lacks {word:?}: {line}");
        }
    }
}

#[test]
fn heads_that_lie_are_refused() {
    all_refused(&[
        (|f| f.magic = *b"GGML", &["is not a GGUF file"]),
        (|f| f.version = 1, &["version 1", "2 and 3 are read"]),
        (|f| f.version = 3u32.swap_bytes(), &["big-endian"]),
        (|f| f.claimed[0] = Some(u64::MAX), &["18446744073709551615 tensors"]),
        (|f| f.claimed[0] = Some(1 << 40), &["tensors", "damaged or truncated"]),
        (|f| f.claimed[1] = Some(1 << 60), &["metadata", "damaged or truncated"]),
        (|f| f.entries[0].1 = build::value(8, &u64::MAX.to_le_bytes()), &["letters"]),
        (|f| f.entries[0].1 = build::value(13, &[]), &["general.architecture", "unknown type 13"]),
        (|f| f.entries[0].1 = build::value(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xFF]), &["not UTF-8"]),
        (|f| f.entries.push(f.entries[0].clone()), &["general.architecture", "twice"]),
        (|f| f.set("x", build::value(9, &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])), &["x is a list of lists"]),
        (|f| f.set("x", build::value(9, &[77, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])), &["x", "unknown type 77"]),
        (|f| f.set("x", build::value(9, &[[4, 0, 0, 0].as_slice(), &[0xFF; 8]].concat())), &["words"]),
        (|f| f.set("general.alignment", build::count(24)), &["general.alignment"]),
        (|f| f.set("general.alignment", build::text("32")), &["general.alignment"]),
    ]);
}

#[test]
fn tensors_that_lie_are_refused() {
    all_refused(&[
        (|f| f.tensors[3].extents = vec![32, 1, 1, 1, 32], &["blk.0.attn_q.weight", "5 dimensions"]),
        (|f| f.tensors[3].extents = vec![], &["blk.0.attn_q.weight", "0 dimensions"]),
        (|f| f.tensors[3].extents = vec![32, 0], &["blk.0.attn_q.weight", "[32, 0]"]),
        (|f| f.tensors[3].extents = vec![1 << 40, 1 << 40], &["blk.0.attn_q.weight", "beyond the file"]),
        (|f| f.tensors[3].extents = vec![1 << 62, 8], &["blk.0.attn_q.weight", "beyond the file"]),
        (|f| f.tensors[3].extents = vec![1 << 20, 1 << 20], &["blk.0.attn_q.weight", "beyond the end of the file"]),
        (|f| f.tensors[3].kind = 12, &["blk.0.attn_q.weight", "Q4_K", "not supported", "Q6_K"]),
        (|f| f.tensors[3].kind = 4, &["Q4_2"]),
        (|f| f.tensors[3].kind = 12345, &["unknown type 12345"]),
        (|f| f.tensors[3].kind = 14, &["rows of 32", "Q6_K"]),
        (|f| f.tensors[3].offset = u64::MAX - 31, &["blk.0.attn_q.weight", "beyond the file"]),
        (|f| f.tensors[3].offset += 4, &["blk.0.attn_q.weight", "multiple of 32"]),
        (|f| f.tensors[3].offset = 1 << 40, &["beyond the end of the file"]),
        (|f| f.tensors[3].offset = 0, &["overlap"]),
        (|f| f.tensors[3].name = f.tensors[4].name.clone(), &["blk.0.attn_k.weight", "twice"]),
        (|f| f.data.truncate(f.data.len() - 64), &["blk.0.ffn_down.weight", "truncated"]),
        (|f| drop(f.tensors.remove(5)), &["no tensor blk.0.attn_v.weight"]),
        (|f| drop(f.tensors.remove(0)), &["no tensor token_embd.weight"]),
        (|f| f.tensors[5].extents = vec![16, 32], &["v_proj", "shape [32, 16]", "[16, 32]"]),
        (|f| f.tensors[4].extents = vec![64, 8], &["attn_k.weight", "8 rows", "16"]),
        (|f| f.tensors[1].extents = vec![16, 2], &["model.norm.weight", "shape"]),
        (|f| f.add("blk.0.attn_q.bias", &[32]), &["blk.0.attn_q.bias", "no part of this model"]),
        (|f| f.add("blk.1.attn_norm.weight", &[32]), &["layers.1", "no part of this model"]),
        (|f| f.add("rope_freqs.weight", &[4]), &["rope_freqs.weight", "8 numbers"]),
        (|f| f.add("rope_freqs.weight", &[8]), &["rope_freqs.weight", "not Llama 3's"]),
    ]);
}

#[test]
fn models_that_are_not_ours_are_refused() {
    all_refused(&[
        (|f| f.set("general.architecture", build::text("gpt2")), &["\"gpt2\"", "llama and qwen3 are"]),
        (|f| f.set("general.architecture", build::text("qwen2")), &["qwen2", "biases"]),
        (|f| f.set("general.architecture", build::count(3)), &["general.architecture is not a text"]),
        (|f| f.remove("general.architecture"), &["architecture \"\""]),
        (|f| f.remove("llama.block_count"), &["llama.block_count is missing"]),
        (|f| f.remove("llama.attention.layer_norm_rms_epsilon"), &["epsilon is missing"]),
        (|f| f.set("llama.block_count", build::number(1.0)), &["llama.block_count is not a whole number"]),
        (|f| f.set("llama.block_count", build::count(2)), &["no tensor blk.1.attn_norm.weight"]),
        (|f| f.set("llama.block_count", build::count(u32::MAX)), &["layers"]),
        (|f| f.set("llama.embedding_length", build::count(1 << 31)), &["width"]),
        (|f| f.set("llama.embedding_length", build::count(64)), &["shape"]),
        (|f| f.set("llama.attention.head_count", build::count(0)), &["heads is 0"]),
        (|f| f.set("llama.attention.head_count_kv", build::count(3)), &["kv_heads"]),
        (|f| f.set("llama.rope.freq_base", build::number(f32::NAN)), &["rope_theta"]),
        (|f| f.set("llama.attention.layer_norm_rms_epsilon", build::number(f32::NAN)), &["norm_eps"]),
        (|f| f.set("split.count", build::count(3)), &["one of 3 parts"]),
        (|f| f.set("llama.rope.scaling.type", build::text("yarn")), &["yarn"]),
        (|f| f.set("llama.rope.dimension_count", build::count(8)), &["rope.dimension_count is 8", "16"]),
        (|f| f.set("llama.expert_count", build::count(8)), &["mixture of experts"]),
        (|f| f.set("llama.attention.sliding_window", build::count(8)), &["sliding window"]),
    ]);
}

#[test]
fn tokenizers_with_holes_are_refused() {
    all_refused(&[
        (|f| f.set("tokenizer.ggml.model", build::text("llama")), &["\"llama\"", "byte-level BPE"]),
        (|f| f.set("tokenizer.ggml.pre", build::text("tekken")), &["tekken", "smollm"]),
        (|f| f.remove("tokenizer.ggml.pre"), &["default"]),
        (|f| f.remove("tokenizer.ggml.tokens"), &["tokenizer.ggml.tokens is missing"]),
        (|f| f.remove("tokenizer.ggml.merges"), &["tokenizer.ggml.merges is missing"]),
        (|f| f.set("tokenizer.ggml.tokens", build::count(1)), &["not a list of texts"]),
        (|f| f.set("tokenizer.ggml.token_type", build::integers(&[1, 1])), &["2 types"]),
        (|f| f.set("tokenizer.ggml.token_type", build::integers(&[6; 500])), &["type 6"]),
        (|f| f.set("tokenizer.ggml.token_type", build::integers(&[5; 500])), &["merge 0"]),
        (|f| f.set("tokenizer.ggml.merges", build::texts(&["a".into()])), &["merge 0"]),
        (|f| f.set("tokenizer.ggml.merges", build::texts(&["zz yy".into()])), &["merge 0", "zz"]),
        (|f| f.set("tokenizer.ggml.bos_token_id", build::count(500)), &["bos_token_id is 500"]),
        (|f| f.set("tokenizer.ggml.eos_token_id", build::count(u32::MAX)), &["eos_token_id"]),
        (|f| f.set("tokenizer.ggml.add_space_prefix", build::flag(true)), &["add_space_prefix"]),
        (|f| f.set("tokenizer.ggml.add_bos_token", build::count(1)), &["add_bos_token is not true or false"]),
        (|f| f.set("tokenizer.chat_template", build::count(1)), &["chat_template is not a text"]),
        (
            |f| {
                f.set("tokenizer.ggml.tokens", build::texts(&["a".into(), "b".into(), "ab".into()]));
                f.remove("tokenizer.ggml.token_type");
                f.set("tokenizer.ggml.merges", build::texts(&["a b".into()]));
            },
            &["no token for the byte"],
        ),
        (
            |f| {
                f.set("tokenizer.ggml.tokens", build::texts(&["a".into(), "€".into()]));
                f.remove("tokenizer.ggml.token_type");
            },
            &["token 1", "alphabet"],
        ),
    ]);
}

/// A byte to change, a bit or a whole value, or an end to cut off; `head` is what is changed most often.
fn mutate(bytes: &mut Vec<u8>, head: usize, number: u64) {
    let random = Philox::new(7, "mutations");
    let draw = |i: u64, bound: usize| random.below(number * 16 + i, bound as u64) as usize;
    for change in 0..=draw(0, 3) as u64 {
        let span = if draw(4 * change + 1, 8) > 0 { head.min(bytes.len()) } else { bytes.len() };
        let at = draw(4 * change + 2, span.max(1)).min(bytes.len().saturating_sub(1));
        match draw(4 * change + 3, 8) {
            0 => bytes.truncate(at),
            1 => bytes[at] = 0xFF,
            2 => bytes[at] = 0,
            3 => bytes[at] = bytes[at].wrapping_add(1),
            _ => bytes[at] ^= 1 << draw(4 * change + 4, 8),
        }
        if bytes.is_empty() {
            return;
        }
    }
}

/// Opens `times` changed copies of `good`, through `open`; how many still opened.
fn survive(good: &[u8], head: usize, times: u64, open: &dyn Fn(&[u8]) -> anyhow::Result<LoadedModel>) -> usize {
    let (_, usual) = peak_of(|| open(good).map(drop).unwrap());
    let mut opened = 0;
    for number in 0..times {
        let mut bytes = good.to_vec();
        mutate(&mut bytes, head, number);
        let (result, peak) = peak_of(|| open(&bytes));
        // Tables of rotary positions and of token ids are bounded by constants, not by the file.
        assert!(peak <= 2 * usual + (64 << 20), "change {number}: {peak} bytes, {usual} for the file as it was");
        match result {
            Ok(_) => opened += 1,
            Err(error) => {
                let line = format!("{error:#}");
                assert!(is_user_error(&error) && line.lines().count() == 1, "change {number}: {line}");
            }
        }
    }
    opened
}

#[test]
fn no_change_of_a_gguf_file_ends_in_a_panic_or_in_memory_beyond_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let file = File::small(&small(Pattern::Gpt2));
    let (bytes, [infos, data]) = (file.bytes(), file.places());
    let open = |bytes: &[u8]| load(&path, bytes);
    let opened = survive(&bytes, data, 2000, &open);
    assert!((20..1900).contains(&opened), "{opened}");
    // The metadata of the model, and of the tensors, more densely: the list of tokens is most of the head.
    survive(&bytes, 400, 1000, &open);
    let mut turned = file.clone();
    turned.entries.rotate_left(8);
    let front: usize = turned.entries.iter().take_while(|(key, _)| !key.contains("tokens")).count();
    assert!(front < turned.entries.len() && infos < data);
    for at in infos..data {
        for bit in 0..8 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            let (_, peak) = peak_of(|| open(&bytes).map(drop));
            assert!(peak < 64 << 20, "bit {bit} of byte {at}: {peak} bytes");
        }
    }
    // Every length of the head.
    for len in (0..data).step_by(7).chain(data - 64..data + 64) {
        line_of(load(&path, &bytes[..len]), &format!("the first {len} bytes"));
    }
}

#[test]
fn no_change_of_a_folder_ends_in_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/llama_gqa");
    super::folders::split(&reference, folder);
    small(Pattern::SmolLm).save(folder).unwrap();
    std::fs::write(folder.join("tokenizer_config.json"), r#"{"bos_token": "<|bos|>", "chat_template": "x"}"#).unwrap();
    for (name, head, times) in [
        ("model-00001-of-00002.safetensors", 1500, 1000),
        ("model.safetensors.index.json", usize::MAX, 500),
        ("config.json", usize::MAX, 500),
        ("tokenizer_config.json", usize::MAX, 200),
        ("tokenizer.json", usize::MAX, 1000),
    ] {
        let good = std::fs::read(folder.join(name)).unwrap();
        let open = |bytes: &[u8]| {
            std::fs::write(folder.join(name), bytes).unwrap();
            load_model(folder, DType::F32)
        };
        let opened = survive(&good, head, times, &open);
        assert!((opened as u64) < times, "{name}: every change went unnoticed");
        std::fs::write(folder.join(name), &good).unwrap();
    }
}

#[test]
fn a_tokenizer_of_any_pattern_is_read_from_the_keys_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for (name, pattern) in [
        ("gpt-2", Pattern::Gpt2),
        ("smollm", Pattern::SmolLm),
        ("llama-bpe", Pattern::Llama3),
        ("qwen2", Pattern::Qwen2),
    ] {
        let tokenizer: Tokenizer = small(pattern);
        let mut file = File::small(&tokenizer);
        file.set("tokenizer.ggml.pre", build::text(name));
        let opened = load(&path, &file.bytes()).unwrap();
        assert_eq!(opened.tokenizer.unwrap().digest(), tokenizer.digest(), "{name}");
        assert_eq!(opened.text.template, None);
    }
}
