//! `export`: writes a checkpoint for other programs, as a Hugging Face folder or a GGUF file.

use super::import::refuse_existing;
use super::output::print;
use crate::formats::checkpoint::{LoadedModel, backbone, load_model, write_folder};
use crate::formats::gguf;
use crate::formats::weights::Export;
use crate::model::ModelConfig;
use crate::tensor::{BlockType, DType};
use crate::user_bail;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Write a model for other programs: a Hugging Face folder or a GGUF file
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nanochat-gpu export --checkpoint runs/first --format gguf --type q8_0 --out first.gguf\n  \
                  nanochat-gpu export --checkpoint runs/first --format hf --out models/first"
)]
pub struct ExportCommand {
    /// Folder of a checkpoint, or of a run, whose newest checkpoint is taken; or a GGUF file
    #[arg(long, value_name = "DIR|FILE")]
    checkpoint: PathBuf,
    /// A Hugging Face folder, or a GGUF file as llama.cpp reads
    #[arg(long, value_enum)]
    format: Format,
    /// The folder or file to make
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Type of the matrices; by default f32 in a folder and f16 in GGUF
    #[arg(long = "type", value_name = "TYPE", value_parser = kinds())]
    kind: Option<BlockType>,
    /// Leave out the parts beyond the backbone, which other programs do not know
    #[arg(long)]
    backbone_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Hf,
    Gguf,
}

/// The types of matrices by name.
fn kinds() -> impl TypedValueParser<Value = BlockType> {
    const NAMES: [&str; BlockType::ALL.len()] = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q6_k"];
    let kind = |name: String| BlockType::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(&name));
    PossibleValuesParser::new(NAMES).map(move |name| kind(name).expect("every name is a type's"))
}

/// Runs the command. Errors: user errors for an output that is there, for what the format has no word for, and those of
/// opening the checkpoint.
pub fn run(command: ExportCommand) -> anyhow::Result<()> {
    refuse_existing(&command.out)?;
    let kind = command.kind;
    if command.format == Format::Hf && !matches!(kind, None | Some(BlockType::F32 | BlockType::Bf16)) {
        user_bail!("--format hf stores f32 or bf16; blocks of other types are for --format gguf");
    }
    let folder = command.out.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir());
    if let Some(folder) = folder.filter(|_| command.format == Format::Gguf) {
        user_bail!("--out {}: there is no folder {}", command.out.display(), folder.display());
    }
    let mut opened = load_model(&command.checkpoint, DType::F32)?;
    let config = opened.model.config();
    if command.backbone_only || (config.document_mask && config.parts.is_plain()) {
        (opened.model, opened.params) = backbone(&opened.model, &opened.params)?;
    }
    let LoadedModel { model, params, tokenizer, text, .. } = &opened;
    let (tokenizer, out) = (tokenizer.as_ref(), command.out.display());
    let mut summary = format!("{out}: {:.1} M parameters", model.layout().elems() as f64 / 1e6);
    let mut notes = Vec::new();
    match command.format {
        Format::Hf => {
            refuse_inexpressible(model.config())?;
            let kind = kind.unwrap_or(BlockType::F32);
            summary += &format!(" in {}", kind.name());
            write_folder(&command.out, Export { model, params, tokenizer, text, kind })?;
        }
        Format::Gguf => {
            let kind = kind.unwrap_or(BlockType::F16);
            let exported = gguf::export(&command.out, Export { model, params, tokenizer, text, kind })?;
            summary += &format!(" in {}, {:.1} MB", kind.name(), exported.bytes as f64 / 1e6);
            notes = exported.notes;
        }
    }
    let notes: String = notes.iter().map(|note| format!("note: {note}\n")).collect();
    print(format!("{summary}\n{notes}").as_bytes())
}

/// What `transformers` has no word for; a folder with it is this program's alone.
fn refuse_inexpressible(config: &ModelConfig) -> anyhow::Result<()> {
    let what = if !config.parts.is_plain() {
        "parts beyond the backbone; --backbone-only leaves them out"
    } else if config.has_kda() {
        "layers of Kimi Delta Attention, for which Hugging Face has no word"
    } else if config.softcap().is_some() {
        "a soft-cap of the logits (model.softcap), for which Hugging Face's Llama and Qwen3 have no word"
    } else if config.has_windows() && !config.qk_norm {
        "sliding windows without QK-norm, for which Hugging Face's Llama has no word"
    } else {
        return Ok(());
    };
    user_bail!("the model has {what}")
}
