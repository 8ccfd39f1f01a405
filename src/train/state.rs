//! What a checkpoint keeps of training besides the model: moments, what goes on from batch to batch, and `train_state.json`.

use super::control::Control;
use super::evolution;
use super::guard::Guard;
use super::optim::Moments;
use crate::data::LoaderState;
use crate::device::Device;
use crate::formats::checkpoint::{self, named, read_flat, views, write_synced};
use crate::formats::safetensors::{self, Named, Reader};
use crate::model::{Carried, Gpt};
use crate::tensor::{DType, Layout, Params, Tensor};
use crate::tokenizer::Tokenizer;
use crate::{user_bail, user_error};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file of what goes on from batch to batch.
const CARRIED: &str = "carried.safetensors";

/// `train_state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainState {
    /// Of this format: 1.
    pub version: u32,
    /// The program that wrote it.
    pub program: String,
    /// Steps done.
    pub step: u64,
    pub tokens: u64,
    /// Optimiser updates made: steps less those skipped.
    pub updates: u64,
    pub tokenizer_digest: String,
    pub loader: LoaderState,
    pub guard: Guard,
    /// What is remembered of the memes.
    #[serde(default)]
    pub memes: evolution::Record,
    /// The live changes in force.
    pub control: Control,
    /// None before the first step, or where it was not finite.
    pub last_train_loss: Option<f64>,
}

/// Writes a whole checkpoint to `target`.
///
/// # Errors
/// What the disk refuses; earlier checkpoints stay whole.
pub fn save(
    target: &Path,
    model: &Gpt,
    params: &Params,
    moments: &Moments,
    carried: &Carried,
    tokenizer: &Tokenizer,
    state: &TrainState,
) -> anyhow::Result<()> {
    checkpoint::write_atomically(target, |dir| {
        checkpoint::write_model(dir, model, params, tokenizer)?;
        let (first, second) = (views(model, &moments.first), views(model, &moments.second));
        let mut tensors = named("first.", model, &first);
        tensors.extend(named("second.", model, &second));
        safetensors::write(&dir.join("optimizer.safetensors"), &tensors)?;
        let carried = carried.tensors().into_iter().map(|(name, tensor)| (name, tensor.to(Device::Cpu)));
        let carried: Vec<(&str, Tensor)> = carried.collect();
        if !carried.is_empty() {
            let named: Vec<Named> = carried.iter().map(|(name, tensor)| Named::new(*name, tensor)).collect();
            safetensors::write(&dir.join(CARRIED), &named)?;
        }
        write_synced(&dir.join("train_state.json"), &serde_json::to_vec(state)?)
    })
}

/// Values of one layout, flat on the host, in the places that parameters of the same names have in another.
pub fn graft(from: &Layout, values: &Tensor, to: &Layout, into: &mut Tensor) {
    let values = values.to_f64();
    let mut all = into.to_f64();
    for entry in from.entries() {
        let target = to.entries().iter().find(|other| other.name == entry.name && other.shape == entry.shape);
        let target = target.unwrap_or_else(|| panic!("{} has a place in the other layout", entry.name));
        all[target.range()].copy_from_slice(&values[entry.range()]);
    }
    into.copy_from_f64(&all);
}

/// Reads what goes on from batch to batch out of the checkpoint `dir`; it stays as it is where the checkpoint is of a model that had no
/// such part yet.
///
/// # Errors
/// A damaged file, or one of other extents.
pub fn load_carried(dir: &Path, carried: &mut Carried) -> anyhow::Result<()> {
    let file = dir.join(CARRIED);
    if !file.exists() {
        return Ok(());
    }
    let reader = Reader::open(&file)?;
    for (name, tensor) in carried.tensors_mut() {
        if !reader.contains(name) {
            continue;
        }
        let shape = reader.shape(name)?;
        if shape != tensor.shape().as_slice() {
            user_bail!(
                "{} holds a {name} of {shape:?}, not {:?}; resume with the same train.rows",
                file.display(),
                tensor.shape()
            );
        }
        match tensor.dtype() {
            DType::U32 => {
                let values = reader.integers(name)?;
                tensor.copy_from_slice(&values.into_iter().map(|value| value as u32).collect::<Vec<_>>());
            }
            _ => {
                let (_, values) = reader.floats(name)?;
                tensor.copy_from_f64(&values.into_iter().map(f64::from).collect::<Vec<_>>());
            }
        }
    }
    Ok(())
}

/// Reads what training needs out of the checkpoint `dir` into `moments`.
///
/// # Errors
/// A checkpoint without training state, damaged, or of another format.
pub fn load(dir: &Path, model: &Gpt, moments: &mut Moments) -> anyhow::Result<TrainState> {
    let file = dir.join("train_state.json");
    let name = file.display();
    let text = std::fs::read_to_string(&file)
        .map_err(|e| user_error!("cannot read {name}: {e}; only a checkpoint of a training run can be resumed"))?;
    let state: TrainState = serde_json::from_str(&text).map_err(|e| user_error!("{name} is damaged: {e}"))?;
    if state.version != 1 {
        user_bail!("{name} has format {}, this program reads 1", state.version);
    }
    let reader = Reader::open(&dir.join("optimizer.safetensors"))?;
    read_flat("first.", model, &reader, &mut moments.first)?;
    read_flat("second.", model, &reader, &mut moments.second)?;
    moments.updates = state.updates;
    Ok(state)
}
