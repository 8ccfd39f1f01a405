//! Checkpoint folders: written under a temporary name, synced, renamed; every file with a checksum; opened for inference, as GGUF files are.
//!
//! A folder holds `config.json` and `model.safetensors` in Hugging Face's naming, `tokenizer.json`, what training adds, and
//! `checksums`: a line per file, BLAKE3 in hexadecimal and the name. A folder without `checksums` (a model of others) is
//! opened as it is.

use super::gguf::{self, Gguf};
use super::hf;
use super::safetensors::{self, Named, Reader};
use super::text_rules::TextRules;
use super::weights::Export;
use crate::device::Device;
use crate::model::{Gpt, ModelConfig, Parts};
use crate::tensor::{BlockType, DType, ParamId, Params, Tensor};
use crate::tokenizer::{Codec, Tokenizer};
use crate::{user_bail, user_error};
use anyhow::Context;
use std::path::{Path, PathBuf};

/// A model opened for inference.
pub struct LoadedModel {
    pub model: Gpt,
    pub params: Params,
    pub tokenizer: Option<Tokenizer>,
    /// What is put before texts, what ends them, and the template of chats.
    pub text: TextRules,
    /// The checkpoint's folder, or its GGUF file.
    pub path: PathBuf,
}

/// Opens the checkpoint in the folder `path`, the newest one of a run folder, or a GGUF file; its parameters are computed with
/// in `dtype`.
///
/// # Errors
/// Missing, damaged or mismatching files, named in one line. Whether the tokenizer is the model's is for the caller to ask.
pub fn load_model(path: &Path, dtype: DType) -> anyhow::Result<LoadedModel> {
    match path.is_file() {
        true => load_gguf(path, dtype, Matrices::Widened),
        false => load_folder(&resolve(path)?, dtype),
    }
}

/// As [`load_model`], for inference on `device`. The matrices of a GGUF file stay as they are stored, but for a GPU that computes in f32.
///
/// # Errors
/// As [`load_model`].
pub fn load_for_inference(path: &Path, dtype: DType, device: Device) -> anyhow::Result<LoadedModel> {
    let mut loaded = match path.is_file() {
        true => load_gguf(
            path,
            dtype,
            if device.is_gpu() && dtype != DType::Bf16 { Matrices::Widened } else { Matrices::AsStored },
        )?,
        false => load_model(path, dtype)?,
    };
    loaded.model = loaded.model.to(device);
    loaded.params = loaded.params.to(device);
    Ok(loaded)
}

/// What becomes of the matrices of a GGUF file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Matrices {
    /// They are rounded to the type that is computed with.
    Widened,
    /// They stay as they are, for inference.
    AsStored,
}

fn load_gguf(path: &Path, dtype: DType, matrices: Matrices) -> anyhow::Result<LoadedModel> {
    let checkpoint = gguf::Checkpoint::new(Gguf::open(path)?)?;
    let (tokenizer, text) = checkpoint.tokenizer()?;
    let file = checkpoint.gguf().file();
    hf::check_extents(checkpoint.config(), &checkpoint, file)?;
    let model = Gpt::new(checkpoint.config().clone(), dtype)?;
    let params = match matrices {
        Matrices::Widened => hf::read_params(&model, &checkpoint, dtype, file)?,
        Matrices::AsStored => {
            hf::check_tensors(&model, &checkpoint, file)?;
            checkpoint.packed_params(&model, dtype)?
        }
    };
    Ok(LoadedModel { model, params, tokenizer, text, path: path.to_owned() })
}

fn load_folder(dir: &Path, dtype: DType) -> anyhow::Result<LoadedModel> {
    verify(dir)?;
    let config_file = dir.join("config.json");
    let name = config_file.display().to_string();
    let text = std::fs::read_to_string(&config_file).map_err(|e| user_error!("cannot read {name}: {e}"))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| user_error!("{name} is not valid JSON: {e}"))?;
    let config = hf::parse_config(&value, &name)?;
    let (weights, index) = (dir.join("model.safetensors"), dir.join("model.safetensors.index.json"));
    let (weights, reader) = match !weights.exists() && index.exists() {
        true => (&index, Reader::open_sharded(&index)?),
        false => (&weights, Reader::open(&weights)?),
    };
    let weights = weights.display().to_string();
    hf::check_extents(&config, &reader, &weights)?;
    let model = Gpt::new(config, dtype)?;
    let params = hf::read_params(&model, &reader, dtype, &weights)?;
    let tokenizer = match dir.join("tokenizer.json").exists() {
        true => Some(Tokenizer::load(dir)?),
        false => None,
    };
    if let Some(tokenizer) = &tokenizer {
        let digest = value["nanochat"]["tokenizer_digest"].as_str();
        if digest.is_some_and(|digest| digest != tokenizer.digest()) {
            user_bail!(
                "the tokenizer in {} is not the one that the model was trained with; bring its tokenizer.json back",
                dir.display()
            );
        }
    }
    let text = match &tokenizer {
        Some(tokenizer) => TextRules::of_folder(dir, &value, tokenizer)?,
        None => TextRules::default(),
    };
    Ok(LoadedModel { model, params, tokenizer, text, path: dir.to_owned() })
}

/// `dir` itself where it is a checkpoint, the newest checkpoint where it is a run folder.
fn resolve(dir: &Path) -> anyhow::Result<PathBuf> {
    if dir.join("config.json").exists() {
        return Ok(dir.to_path_buf());
    }
    if let Some((_, newest)) = list(&dir.join("checkpoints")).pop() {
        return Ok(newest);
    }
    match dir.exists() {
        false => user_bail!("{} does not exist; name a checkpoint, a run folder or a GGUF file", dir.display()),
        true => user_bail!("{} holds neither a config.json nor checkpoints/step_*", dir.display()),
    }
}

/// The checkpoints `step_NNNNNN` in a folder, oldest first, with their steps.
pub fn list(checkpoints: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(checkpoints).into_iter().flatten().flatten();
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step_")?.parse().ok();
    let mut found: Vec<(u64, PathBuf)> = entries.filter_map(|e| step(&e.path()).map(|step| (step, e.path()))).collect();
    found.sort();
    found
}

/// Compares every file of `dir` with its checksum, where there are checksums.
///
/// # Errors
/// The first file that is missing or differs.
pub fn verify(dir: &Path) -> anyhow::Result<()> {
    let Ok(sums) = std::fs::read_to_string(dir.join("checksums")) else { return Ok(()) };
    for line in sums.lines() {
        let Some((sum, name)) = line.split_once("  ") else {
            user_bail!("{}/checksums is damaged; use another checkpoint", dir.display())
        };
        let path = dir.join(name);
        let found =
            digest(&path).map_err(|e| user_error!("cannot read {}: {e}; use another checkpoint", path.display()))?;
        if found != sum {
            user_bail!(
                "{} does not match its checksum: it is damaged; use another checkpoint (--resume=-1 takes the one before)",
                path.display()
            );
        }
    }
    Ok(())
}

fn digest(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut file = std::fs::File::open(path)?;
    std::io::copy(&mut file, &mut hasher)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Makes the folder `target` out of what `fill` writes into an empty temporary folder beside it: whole or not at all.
///
/// # Errors
/// What `fill` or the disk refuses; then nothing is left behind and `target` is as it was.
pub fn write_atomically(target: &Path, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let parent = target.parent().context("a checkpoint lies inside a folder")?;
    let name = target.file_name().context("a checkpoint has a name")?.to_string_lossy().into_owned();
    let temporary = parent.join(format!(".{name}.tmp"));
    let result = (|| {
        std::fs::create_dir_all(parent)?;
        let _ = std::fs::remove_dir_all(&temporary); // left by a process that was killed
        std::fs::create_dir(&temporary)?;
        fill(&temporary)?;
        seal(&temporary)?;
        // Aside first: were the old one removed here, a kill meanwhile would leave neither.
        let replaced = parent.join(format!(".{name}.old"));
        let _ = std::fs::remove_dir_all(&replaced);
        if target.exists() {
            std::fs::rename(target, &replaced)?;
        }
        std::fs::rename(&temporary, target)?;
        std::fs::File::open(parent)?.sync_all()?;
        let _ = std::fs::remove_dir_all(&replaced); // else the next opening of the run does
        anyhow::Ok(())
    })();
    if result.is_err() {
        let _ = std::fs::remove_dir_all(&temporary);
    }
    result.map_err(|error| {
        user_error!("cannot write {}: {error:#}; free some space, earlier checkpoints are whole", target.display())
    })
}

/// Clears away what [`write_atomically`] left in a folder when its process was killed.
pub fn remove_unfinished(checkpoints: &Path) {
    for entry in std::fs::read_dir(checkpoints).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(hidden) = name.strip_prefix('.').filter(|name| name.starts_with("step_")) else { continue };
        match hidden.strip_suffix(".old").map(|name| checkpoints.join(name)) {
            // Killed between the two renames: the old one is the only one.
            Some(target) if !target.exists() => drop(std::fs::rename(entry.path(), target)),
            None if !hidden.ends_with(".tmp") => {}
            _ => drop(std::fs::remove_dir_all(entry.path())),
        }
    }
}

/// Writes `checksums` and syncs every file.
fn seal(dir: &Path) -> anyhow::Result<()> {
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let mut sums = String::new();
    for name in names {
        std::fs::File::open(dir.join(&name))?.sync_all()?;
        sums += &format!("{}  {name}\n", digest(&dir.join(&name))?);
    }
    write_synced(&dir.join("checksums"), sums.as_bytes())?;
    std::fs::File::open(dir)?.sync_all()?;
    Ok(())
}

/// Writes and syncs one file.
pub fn write_synced(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(())
}

/// Replaces one file: temporary name, sync, rename.
///
/// # Errors
/// What the disk refuses; then the file is as it was.
pub fn replace_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let temporary = path.with_extension("tmp");
    let result = write_synced(&temporary, bytes).and_then(|()| Ok(std::fs::rename(&temporary, path)?));
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result.with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the model's part of a checkpoint into `dir`.
///
/// # Errors
/// What the disk refuses.
pub fn write_model(dir: &Path, model: &Gpt, params: &Params, tokenizer: &Tokenizer) -> anyhow::Result<()> {
    let eos = tokenizer.special("<|assistant_end|>").or(tokenizer.bos());
    let ids = hf::SpecialIds { bos: tokenizer.bos(), eos: eos.into_iter().collect() };
    let mut config = hf::config_json(model.config(), &ids);
    config["nanochat"]["tokenizer_digest"] = tokenizer.digest().into();
    write_synced(&dir.join("config.json"), &serde_json::to_vec_pretty(&config)?)?;
    let views = views(model, params.master());
    safetensors::write(&dir.join("model.safetensors"), &named("", model, &views))?;
    tokenizer.save(dir)?;
    Ok(())
}

/// Writes a model, in F32 or BF16, as the folder `target` that Hugging Face's programs and this one open: whole or not at all.
///
/// # Errors
/// What the disk refuses.
pub fn write_folder(target: &Path, model: Export) -> anyhow::Result<()> {
    let Export { model, params, tokenizer, text, kind } = model;
    let target = std::path::absolute(target)?;
    write_atomically(&target, |dir| {
        let ids = hf::SpecialIds { bos: text.bos, eos: text.eos.clone() };
        let mut config = hf::config_json(model.config(), &ids);
        if let Some(tokenizer) = tokenizer {
            config["nanochat"]["tokenizer_digest"] = tokenizer.digest().into();
            tokenizer.save_with_prefix(dir, text.prefix())?;
            let rules = text.to_json(tokenizer, model.config().max_seq_len);
            write_synced(&dir.join("tokenizer_config.json"), &serde_json::to_vec_pretty(&rules)?)?;
        }
        let file = dir.join("model.safetensors");
        if kind == BlockType::F32 {
            write_synced(&dir.join("config.json"), &serde_json::to_vec_pretty(&config)?)?;
            return safetensors::write(&file, &named("", model, &views(model, params.master())));
        }
        config["dtype"] = "bfloat16".into();
        write_synced(&dir.join("config.json"), &serde_json::to_vec_pretty(&config)?)?;
        let entries = model.layout().entries();
        let rounded: Vec<Vec<u8>> = views(model, params.master()).iter().map(bf16_bytes).collect();
        let tensors = entries.iter().zip(&rounded).map(|(entry, bytes)| Named {
            name: entry.name.clone(),
            shape: entry.shape.as_slice().to_vec(),
            dtype: ::safetensors::Dtype::BF16,
            bytes,
        });
        safetensors::write(&file, &tensors.collect::<Vec<_>>())
    })
}

fn bf16_bytes(view: &Tensor) -> Vec<u8> {
    let values = view.as_slice::<f32>();
    let mut bytes = vec![0; 2 * values.len()];
    BlockType::Bf16.quantise(values, &mut bytes);
    bytes
}

/// The backbone alone of a model with parts beyond it, and without a mask of documents, which a single text never meets.
///
/// # Errors
/// None that a model which is there could give.
pub fn backbone(model: &Gpt, params: &Params) -> anyhow::Result<(Gpt, Params)> {
    let config = ModelConfig { parts: Parts::default(), document_mask: false, ..model.config().clone() };
    let plain = Gpt::new(config, params.dtype())?;
    let mut kept = Params::zeros(plain.layout().clone(), params.dtype());
    for (i, entry) in plain.layout().entries().iter().enumerate() {
        let of_all = model.layout().entries().iter().position(|other| other.name == entry.name);
        let from = ParamId(of_all.context("a backbone has no parameters of its own")? as u32);
        kept.set_master(ParamId(i as u32), &params.master_view(from).to_f64());
    }
    kept.round();
    Ok((plain, kept))
}

/// A flat buffer of `model` as one tensor per parameter, on the host.
pub fn views(model: &Gpt, flat: &Tensor) -> Vec<Tensor> {
    let flat = flat.to(Device::Cpu);
    model.layout().entries().iter().map(|e| flat.view(e.offset_elems, e.shape.as_slice())).collect()
}

/// `views` under the parameters' names, each behind `prefix`.
pub fn named<'a>(prefix: &str, model: &Gpt, views: &'a [Tensor]) -> Vec<Named<'a>> {
    let entries = model.layout().entries().iter().zip(views);
    entries.map(|(entry, view)| Named::new(format!("{prefix}{}", entry.name), view)).collect()
}

/// Fills a flat buffer of `model` from the tensors of `reader` whose names stand behind `prefix`.
///
/// # Errors
/// A missing tensor or another shape.
pub fn read_flat(prefix: &str, model: &Gpt, reader: &Reader, flat: &mut Tensor) -> anyhow::Result<()> {
    for (i, entry) in model.layout().entries().iter().enumerate() {
        let name = format!("{prefix}{}", model.layout().entry(ParamId(i as u32)).name);
        let (shape, values) = reader.floats(&name)?;
        if shape != entry.shape {
            user_bail!("{name} has shape {shape:?} in the checkpoint, {:?} here", entry.shape);
        }
        flat.view_mut(entry.offset_elems, entry.shape).as_mut_slice::<f32>().copy_from_slice(&values);
    }
    Ok(())
}
