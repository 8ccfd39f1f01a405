//! `logits`: writes what a model computes for given tokens, so that anyone can hold this program against another.

use super::output::print;
use crate::device::Device;
use crate::device::choice::{self, SimMode};
use crate::formats::checkpoint::{load_model, views};
use crate::formats::safetensors::{Named, write};
use crate::infer::{Footprint, reserve_arena};
use crate::model::Gpt;
use crate::model::gpt::{Recompute, Rows, sum_losses};
use crate::tape::Tape;
use crate::tensor::{Arena, DType, Grads, Params, Tensor};
use crate::user_bail;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Write the logits, losses and gradients of given tokens to a safetensors file
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  nanochat-gpu logits --checkpoint runs/first --tokens 1,2,3 --targets 2,3,4 --grads \
                  --out out.safetensors\n\n\
                  Tensors of the file: logits [1, T, V]; with --targets the mean loss and loss.lm; \
                  with --grads grad.NAME of every parameter."
)]
pub struct LogitsCommand {
    /// Folder of a checkpoint, or of a run, whose newest checkpoint is taken; or a GGUF file
    #[arg(long, value_name = "DIR|FILE")]
    checkpoint: PathBuf,
    /// Token ids of one row, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// The id that follows each token, as many as there are tokens
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    targets: Vec<u32>,
    /// Also the gradients of the loss
    #[arg(long)]
    grads: bool,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Type that weights and activations are stored in; the file always has f32
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    dtype: Precision,
    /// Where to compute: auto, cpu, sim or cuda[:i]
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    F32,
    Bf16,
}

/// Runs the command. Errors: user errors for tokens out of range, targets that do not fit, and a folder that is not
/// there, and those of opening the checkpoint.
pub fn run(command: LogitsCommand) -> anyhow::Result<()> {
    let LogitsCommand { tokens, targets, out, .. } = &command;
    if command.grads && targets.is_empty() {
        user_bail!("--grads needs --targets: gradients are those of a loss");
    }
    if !targets.is_empty() && targets.len() != tokens.len() {
        user_bail!("--targets has {} ids and --tokens {}; give one target for each token", targets.len(), tokens.len());
    }
    if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        user_bail!("--out {}: there is no folder {}", out.display(), folder.display());
    }
    let dtype = match command.dtype {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::Bf16,
    };
    let opened = load_model(&command.checkpoint, dtype)?;
    let config = opened.model.config();
    let (t, v) = (tokens.len(), config.vocab_size);
    if t > config.max_seq_len {
        user_bail!("--tokens has {t} ids and the model's context {}; give fewer", config.max_seq_len);
    }
    for (flag, ids) in [("--tokens", tokens), ("--targets", targets)] {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= v) {
            user_bail!("{flag} has {id}; the ids of this model are 0 to {}", v - 1);
        }
    }
    let footprint = Footprint { tokens: t, logit_rows: t, layers: config.layers };
    let device = choice::open(&command.device, SimMode::Checked)?;
    let arena = reserve_arena(device, config, footprint)?;
    let (model, params) = (opened.model.to(device), opened.params.clone().to(device));
    let rows = Rows::new(&arena, tokens, t, None);
    let logits = model.logits(&mut Tape::inference(&arena, &params), &rows);
    let logits = logits.cast(&arena, DType::F32).to(Device::Cpu).reshape([1, t, v]);
    let mut summary = format!("logits of {t} tokens, {v} each");
    let mut losses = None;
    if !targets.is_empty() {
        let (loss, grads) = loss_and_gradients(&model, &params, &arena, &rows, targets, command.grads);
        summary += &format!("; loss {loss:.6}");
        let mut scalar = Tensor::owned([1], DType::F32);
        scalar.copy_from_f64(&[loss]);
        losses = Some((scalar, grads));
    }
    device.synchronise()?;
    let mut gradients = Vec::new();
    if let Some((_, Some(grads))) = &losses {
        let entries = model.layout().entries().iter().zip(views(&model, grads.flat()));
        gradients.extend(entries.map(|(entry, view)| (format!("grad.{}", entry.name), view)));
    }
    let mut named = vec![Named::new("logits", &logits)];
    if let Some((loss, _)) = &losses {
        named.extend(["loss", "loss.lm"].map(|name| Named::new(name, loss)));
    }
    named.extend(gradients.iter().map(|(name, gradient)| Named::new(name.as_str(), gradient)));
    write(out, &named)?;
    print(format!("{summary}: {}\n", out.display()).as_bytes())
}

/// Mean loss in nats and, where asked for, its gradients.
fn loss_and_gradients(
    model: &Gpt,
    params: &Params,
    arena: &Arena,
    rows: &Rows,
    targets: &[u32],
    wanted: bool,
) -> (f64, Option<Grads>) {
    let scale = 1.0 / targets.len() as f64;
    let targets = Tensor::from_slice(arena, [targets.len()], targets);
    let mut grads = wanted.then(|| Grads::zeros_on(params.device(), model.layout().clone(), params.dtype()));
    let mut tape = match &mut grads {
        Some(grads) => Tape::recording(arena, params, grads),
        None => Tape::inference(arena, params),
    };
    let losses = model.loss(&mut tape, rows, &targets, scale, Recompute::Nothing);
    tape.backward();
    drop(tape);
    (sum_losses(&losses) * scale, grads)
}
