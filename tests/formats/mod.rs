//! Tests of `formats`: real and small checkpoints in each format, and damaged ones.

mod allocations;
mod build;
mod damaged;
mod folders;
mod gguf;
mod smollm2;

use nanochat_gpu::model::Gpt;
use nanochat_gpu::model::gpt::Rows;
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, Params};
use std::path::{Path, PathBuf};

/// The real SmolLM2-135M-Instruct, as `tools/get-fixtures` lays it down.
pub fn smollm2() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join(".fixtures/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing; run tools/get-fixtures", path.display());
    path
}

/// The logits of one row of tokens.
pub fn logits_of(model: &Gpt, params: &Params, tokens: &[u32]) -> Vec<f64> {
    let arena = Arena::new(2 << 30).unwrap();
    let rows = Rows::new(&arena, tokens, tokens.len(), None);
    model.logits(&mut Tape::inference(&arena, params), &rows).to_f64()
}
