//! `import` and `export` through the real binary: a trained model goes to other formats and comes back.

use super::{finished, names, refused, succeed, tiny, write};
use nanochat_gpu::formats::safetensors::Reader;
use std::path::Path;

/// The logits of a few tokens by the binary.
fn logits(folder: &Path, checkpoint: &str) -> Vec<f32> {
    let out = format!("logits-{}.safetensors", checkpoint.replace(['/', '.'], "-"));
    succeed(folder, &format!("logits --checkpoint {checkpoint} --tokens 1,2,3,50,60,7,299 --out {out}"));
    Reader::open(&folder.join(out)).unwrap().floats("logits").unwrap().1
}

/// Exports `run` in both formats and reads both back; a GGUF file becomes a folder again, too.
fn goes_and_comes_back(folder: &Path, run: &str) {
    let want = logits(folder, run);
    succeed(folder, &format!("export --checkpoint {run} --format hf --out hf"));
    assert_eq!(logits(folder, "hf"), want);
    succeed(folder, &format!("export --checkpoint {run} --format gguf --type f32 --out model.gguf"));
    assert_eq!(logits(folder, "model.gguf"), want);
    succeed(folder, "import model.gguf --out back");
    assert_eq!(logits(folder, "back"), want);
    let sample = |checkpoint: &str| {
        succeed(folder, &format!("sample --checkpoint {checkpoint} -p 12+ --max-tokens 6 --seed 4 --json"))
    };
    let text = sample(run);
    for checkpoint in ["hf", "model.gguf", "back"] {
        assert_eq!(sample(checkpoint), text, "{checkpoint}");
        let line = format!("eval --checkpoint {checkpoint} --data synthetic:addition --tokens 64 --json");
        assert!(succeed(folder, &line).contains("bits_per_byte"), "{checkpoint}");
    }
}

#[test]
fn a_trained_model_comes_back_from_hugging_face_and_gguf() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::os::unix::fs::symlink(finished().join("run"), folder.join("run")).unwrap();
    goes_and_comes_back(folder, "run");
    assert_eq!(names(&folder.join("hf")), names(&folder.join("back")));
    let wanted = ["checksums", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&folder.join("hf")), wanted);
    // Blocks along rows of 32: half a percent off, and still the model.
    let want = logits(folder, "run");
    let out = succeed(folder, "export --checkpoint run --format gguf --type q8_0 --out small.gguf");
    assert!(out.contains("Q8_0") && out.contains("note: llama.cpp splits text"), "{out}");
    let got = logits(folder, "small.gguf");
    let error = got.iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    let norm = want.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    assert!(error > 0.0 && error <= 0.03_f64.powi(2) * norm, "{}", (error / norm).sqrt());
    refused(folder, "export --checkpoint run --format hf --type q8_0 --out x", &["--format hf stores f32 or bf16"]);
    refused(folder, "export --checkpoint run --format gguf --type q5_0 --out x", &["q5_0", "q6_k"]);
    refused(folder, "export --checkpoint run --format gguf --out small.gguf", &["small.gguf", "there already"]);
    refused(folder, "export --checkpoint run --format gguf --out absent/x", &["absent/x", "there is no folder absent"]);
    refused(folder, "import run --out hf", &["hf", "there already"]);
    refused(folder, "import absent --out x", &["absent", "does not exist"]);
    write(folder, "text.gguf", "plain text");
    refused(folder, "import text.gguf --out x", &["text.gguf", "not a GGUF file"]);
    assert!(!folder.join("x").exists());
}

#[test]
fn a_llama_with_a_mask_of_documents_comes_back_too() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let more = "--set model.qk_norm=false --set model.tie_embeddings=true --set model.heads=2 --set model.kv_heads=1 \
                --set model.document_mask=true";
    succeed(folder, &format!("{} {more} --out run", tiny()));
    goes_and_comes_back(folder, "run");
    let config = super::read(&folder.join("hf/config.json"));
    assert!(config.contains("LlamaForCausalLM"), "{config}");
}

#[test]
fn parts_beyond_the_backbone_are_left_out_only_when_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeed(folder, &format!("{} --set model.layers=3 --set psyche.enabled=true --out run", tiny()));
    for format in ["hf", "gguf"] {
        let line = format!("export --checkpoint run --format {format} --out {format}");
        refused(folder, &line, &["parts beyond the backbone", "--backbone-only"]);
        assert!(!folder.join(format).exists());
        let out = succeed(folder, &format!("{line} --type f32 --backbone-only"));
        assert!(out.contains("M parameters"), "{out}");
    }
    assert_eq!(logits(folder, "hf"), logits(folder, "gguf"));
    assert!(super::read(&folder.join("hf/config.json")).contains("Qwen3ForCausalLM"));
    let more = "--set model.softcap=5 --set model.window_pattern=SL --set model.window=4 --set model.layers=2";
    succeed(folder, &format!("{} {more} --out odd", tiny()));
    for format in ["hf", "gguf"] {
        let line = format!("export --checkpoint odd --format {format} --backbone-only --out x");
        refused(folder, &line, &["no word"]);
    }
}
