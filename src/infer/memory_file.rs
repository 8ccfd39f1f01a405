//! The file of what a conversation's memories hold: what one call learnt is there in the next. It is read through a memory map, and replaced
//! as a whole or not at all.
//!
//! Tensors of a safetensors file. Of a long-term memory keys and values of the bank, when each row was written, the clock, the sums of the
//! segment that is not finished; of a state memory `abacus [1, H, dk, dv]`. Of any `memory.filled [1]`, the tokens of that segment;
//! `memory.model [8]`, the digest of the matrix that makes keys, and `memory.digest [8]`, that of all the others.

use super::{Engine, Held};
use crate::device::Device;
use crate::formats::safetensors::{Named, Reader, write};
use crate::model::{Gpt, SequenceState};
use crate::tensor::{DType, Params, Tensor};
use crate::user_bail;
use std::path::Path;

const FILLED: &str = "memory.filled";
const MODEL: &str = "memory.model";
const DIGEST: &str = "memory.digest";

/// Refuses a model that has no memory.
///
/// # Errors
/// A user error.
pub fn check(model: &Gpt) -> anyhow::Result<()> {
    if model.memory_key().is_none() {
        user_bail!("the model has no memory; train with --set memory.enabled=true or --set abacus.enabled=true");
    }
    Ok(())
}

/// The words of a digest.
fn words(hash: blake3::Hash) -> Tensor {
    let words = hash.as_bytes().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4")));
    let mut tensor = Tensor::owned([8], DType::U32);
    tensor.copy_from_slice(&words.collect::<Vec<u32>>());
    tensor
}

/// Of the matrix that makes keys.
fn digest_of_model(model: &Gpt, params: &Params) -> Tensor {
    let key = model.memory_key().expect("a model with a memory");
    words(blake3::hash(&params.view(key).to_bytes()))
}

fn digest<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Tensor {
    let mut hasher = blake3::Hasher::new();
    for (name, tensor) in tensors {
        hasher.update(name.as_bytes());
        hasher.update(&tensor.to_bytes());
    }
    words(hasher.finalize())
}

/// What a sequence goes on from that has no token, and the memories that `path` holds.
///
/// # Errors
/// As [`load`].
pub fn recall(path: &Path, engine: &Engine) -> anyhow::Result<Held> {
    let mut state = engine.empty_state();
    load(path, engine.model(), engine.params(), &mut state)?;
    Ok(engine.held_of(state))
}

/// Writes what the memories of an ended sequence hold to `path`.
///
/// # Errors
/// As [`save`].
pub fn keep(path: &Path, engine: &Engine, held: &mut Held) -> anyhow::Result<()> {
    save(path, engine.model(), engine.params(), held.state())
}

/// Writes what the memories in `state` hold to `path`.
///
/// # Errors
/// As [`check`]; the file cannot be written, and is as it was.
pub fn save(path: &Path, model: &Gpt, params: &Params, state: &mut SequenceState) -> anyhow::Result<()> {
    check(model)?;
    let mut filled = Tensor::owned([1], DType::U32);
    filled.copy_from_slice(&[state.memory().map_or(0, |conversation| conversation.filled() as u32)]);
    let kept = state.memories().map(|(name, tensor)| (name, tensor.to(Device::Cpu)));
    let mut all: Vec<(&str, Tensor)> =
        kept.chain([(FILLED, filled), (MODEL, digest_of_model(model, params))]).collect();
    let digest = digest(all.iter().map(|(name, tensor)| (*name, tensor)));
    all.push((DIGEST, digest));
    write(path, &all.iter().map(|(name, tensor)| Named::new(*name, tensor)).collect::<Vec<_>>())
}

/// Reads what the memories in `state` hold from `path`; they stay empty where there is no file yet.
///
/// # Errors
/// User errors: a model without a memory, a damaged file, one of other extents or of another model; no folder for it.
pub fn load(path: &Path, model: &Gpt, params: &Params, state: &mut SequenceState) -> anyhow::Result<()> {
    check(model)?;
    let file = path.display();
    if !path.exists() {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            user_bail!(
                "{file} could not be written: there is no folder {}; make it, or name another",
                folder.display()
            );
        }
        return Ok(());
    }
    let reader = Reader::open(path)?;
    let integers = |name: &str, n: usize| -> anyhow::Result<Tensor> {
        let values: Vec<u32> = reader.integers(name)?.into_iter().map(|value| value as u32).collect();
        if values.len() != n {
            user_bail!("{file} holds {} numbers as {name}, not {n}; it is no memory file", values.len());
        }
        let mut tensor = Tensor::owned([n], DType::U32);
        tensor.copy_from_slice(&values);
        Ok(tensor)
    };
    let mut all = Vec::new();
    for (name, tensor) in state.memories() {
        let (shape, want) = (reader.shape(name)?, tensor.shape());
        if shape != want.as_slice() {
            user_bail!(
                "{file} holds a {name} of {shape:?} and the model's is {want:?}; give the file of another conversation a name of its own"
            );
        }
        let mut read = Tensor::owned(want.as_slice(), tensor.dtype());
        match tensor.dtype() {
            DType::U32 => read = integers(name, tensor.elems())?.reshape(want.as_slice()),
            _ => read.copy_from_f64(&reader.floats(name)?.1.into_iter().map(f64::from).collect::<Vec<_>>()),
        }
        all.push((name, read));
    }
    all.extend([(FILLED, integers(FILLED, 1)?), (MODEL, integers(MODEL, 8)?)]);
    let said = integers(DIGEST, 8)?;
    if said.to_bytes() != digest(all.iter().map(|(name, tensor)| (*name, tensor))).to_bytes() {
        user_bail!("{file} is damaged: its digest is another; remove it to begin anew");
    }
    if all[all.len() - 1].1.to_bytes() != digest_of_model(model, params).to_bytes() {
        user_bail!("{file} was written by another model; use that one, or another file");
    }
    let filled = all[all.len() - 2].1.as_slice::<u32>()[0] as usize;
    if !state.memory().is_none_or(|conversation| conversation.fill(filled)) {
        user_bail!("{file} has a segment of more tokens than the model's; use the model that wrote it");
    }
    for ((_, to), (_, from)) in state.memories_mut().zip(&all) {
        to.copy_from_bytes(&from.to_bytes());
    }
    Ok(())
}
