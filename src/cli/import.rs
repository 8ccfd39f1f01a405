//! `import`: makes a checkpoint of ours out of a GGUF file or a Hugging Face folder.

use super::output::print;
use crate::formats::checkpoint::{load_model, write_folder};
use crate::formats::weights::Export;
use crate::tensor::{BlockType, DType};
use crate::user_bail;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Make a checkpoint out of a GGUF file or a Hugging Face folder
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nanochat-gpu import SmolLM2-135M-Instruct.Q4_1.gguf --out models/smollm2\n\n\
                  Llama and Qwen3 models: safetensors in one file or several with an index, or GGUF of F32, F16, BF16, \
                  Q8_0, Q4_0, Q4_1 and Q6_K, whose weights become plain numbers. sample, eval, logits and concepts also \
                  open them as they are.")]
pub struct ImportCommand {
    /// The GGUF file or the folder with config.json
    #[arg(value_name = "FILE|DIR")]
    source: PathBuf,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type that the weights are stored in
    #[arg(long, value_enum, default_value_t = Stored::F32)]
    dtype: Stored,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Stored {
    F32,
    Bf16,
}

/// Refuses a path where something is already.
pub fn refuse_existing(out: &Path) -> anyhow::Result<()> {
    if out.exists() {
        user_bail!("--out {} is there already; name another, or remove it", out.display());
    }
    Ok(())
}

/// Runs the command. Errors: user errors for an output that is there, and those of opening the model.
pub fn run(command: ImportCommand) -> anyhow::Result<()> {
    refuse_existing(&command.out)?;
    let opened = load_model(&command.source, DType::F32)?;
    let kind = match command.dtype {
        Stored::F32 => BlockType::F32,
        Stored::Bf16 => BlockType::Bf16,
    };
    let (model, tokenizer) = (&opened.model, opened.tokenizer.as_ref());
    write_folder(&command.out, Export { model, params: &opened.params, tokenizer, text: &opened.text, kind })?;
    let config = model.config();
    let (layers, width, vocabulary) = (config.layers, config.width, config.vocab_size);
    let parameters = model.layout().elems() as f64 / 1e6;
    let mut text = format!(
        "{}: {parameters:.1} M parameters, {layers} layers, width {width}, vocabulary {vocabulary}, context {}\n",
        command.out.display(),
        config.max_seq_len
    );
    if tokenizer.is_none() {
        text += "note: there is no tokenizer; copy the model's tokenizer.json there\n";
    }
    print(text.as_bytes())
}
