//! What GGUF calls the parts of a model: its metadata as our configuration, its tensors by Hugging Face's names, and the
//! order of rows in which llama.cpp keeps the weights of queries and keys.

use super::{Gguf, TensorInfo, tokenizer};
use crate::device::packed::PackedMatrix;
use crate::formats::text_rules::TextRules;
use crate::formats::weights::Weights;
use crate::model::config::SEQ_LEN_MAX;
use crate::model::{Gpt, ModelConfig, Parts};
use crate::ops::rope::{Llama3Scaling, frequencies};
use crate::tensor::{BlockType, DType, ParamId, Params, Shape};
use crate::tokenizer::Tokenizer;
use crate::{user_bail, user_error};
use anyhow::Context;
use rayon::prelude::*;

/// Names outside the blocks: Hugging Face's, and GGUF's.
const OUTER: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];
/// Names behind `model.layers.N.` and `blk.N.`.
const BLOCK: [(&str, &str); 11] = [
    ("input_layernorm.weight", "attn_norm.weight"),
    ("self_attn.q_proj.weight", "attn_q.weight"),
    ("self_attn.k_proj.weight", "attn_k.weight"),
    ("self_attn.v_proj.weight", "attn_v.weight"),
    ("self_attn.o_proj.weight", "attn_output.weight"),
    ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    ("self_attn.k_norm.weight", "attn_k_norm.weight"),
    ("post_attention_layernorm.weight", "ffn_norm.weight"),
    ("mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp.down_proj.weight", "ffn_down.weight"),
];
/// The factors by which Llama 3 divides its rotary frequencies, one for each pair of a head's elements.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// GGUF's name of a parameter, none where GGUF has no word for it.
pub fn file_name(name: &str) -> Option<String> {
    if let Some((_, file)) = OUTER.iter().find(|(hf, _)| *hf == name) {
        return Some((*file).to_string());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (_, file) = BLOCK.iter().find(|(hf, _)| *hf == rest)?;
    Some(format!("blk.{layer}.{file}"))
}

/// Hugging Face's name of a tensor, none where it is no parameter that we know.
fn parameter_name(file: &str) -> Option<String> {
    if let Some((hf, _)) = OUTER.iter().find(|(_, name)| *name == file) {
        return Some((*hf).to_string());
    }
    let (layer, rest) = file.strip_prefix("blk.")?.split_once('.')?;
    let (hf, _) = BLOCK.iter().find(|(_, name)| *name == rest)?;
    Some(format!("model.layers.{layer}.{hf}"))
}

/// How rows lie in a file. llama.cpp rotates neighbours, Hugging Face the halves of a head, so that the rows of `q` and `k`
/// of the architecture `llama` are moved: even ones of a head are its first half, odd ones its second. Whole rows move, so
/// blocks stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    Same,
    Interleaved { head_dim: usize },
}

impl RowOrder {
    /// Where row `gguf_row` of the file belongs.
    pub fn hf_row(self, gguf_row: usize) -> usize {
        match self {
            RowOrder::Same => gguf_row,
            RowOrder::Interleaved { head_dim } => {
                let (head, row) = (gguf_row / head_dim, gguf_row % head_dim);
                head * head_dim + row % 2 * (head_dim / 2) + row / 2
            }
        }
    }

    /// Where row `hf_row` lies in the file.
    pub fn gguf_row(self, hf_row: usize) -> usize {
        match self {
            RowOrder::Same => hf_row,
            RowOrder::Interleaved { head_dim } => {
                let (head, row) = (hf_row / head_dim, hf_row % head_dim);
                head * head_dim + row % (head_dim / 2) * 2 + row / (head_dim / 2)
            }
        }
    }

    /// The order of the parameter `name` (Hugging Face's) in a file of a model with this configuration.
    pub fn of(name: &str, config: &ModelConfig) -> RowOrder {
        let is_rotated = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
        match is_rotated && !config.qk_norm {
            true => RowOrder::Interleaved { head_dim: config.head_dim },
            false => RowOrder::Same,
        }
    }
}

/// A GGUF file that holds a model of ours.
#[derive(Debug)]
pub struct Checkpoint {
    gguf: Gguf,
    config: ModelConfig,
}

impl Checkpoint {
    /// Understands what `gguf` says of its model.
    ///
    /// # Errors
    /// A missing or odd value, or an architecture that this program does not compute.
    pub fn new(gguf: Gguf) -> anyhow::Result<Checkpoint> {
        let config = config(&gguf)?;
        Ok(Checkpoint { gguf, config })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The tokenizer, if the file has one, and what the file says of texts.
    ///
    /// # Errors
    /// A tokenizer of another kind, or a damaged one.
    pub fn tokenizer(&self) -> anyhow::Result<(Option<Tokenizer>, TextRules)> {
        tokenizer::read(&self.gguf)
    }

    /// A parameter as it lies in the file, and the order of its rows. [`Gguf::bytes`] and [`Gguf::map`] give its blocks.
    ///
    /// # Errors
    /// A missing tensor, or rows that are not whole heads.
    pub fn parameter(&self, name: &str) -> anyhow::Result<(&TensorInfo, RowOrder)> {
        let file = self.gguf.file();
        let stored = file_name(name).ok_or_else(|| user_error!("{file} holds no tensor {name}"))?;
        let tensor = self.gguf.tensor(&stored)?;
        let order = RowOrder::of(name, &self.config);
        match order {
            RowOrder::Interleaved { head_dim } if !tensor.rows().is_multiple_of(head_dim) => {
                user_bail!("{file}: {stored} has {} rows, no whole heads of {head_dim}; it is damaged", tensor.rows())
            }
            _ => Ok((tensor, order)),
        }
    }
}

impl Checkpoint {
    /// The parameters of `model` for inference, computed with in `dtype`: matrices stay as they are stored. The tensors
    /// are known to be the model's ([`check_tensors`](crate::formats::hf::check_tensors)).
    ///
    /// # Errors
    /// A tensor that is not what the file says.
    pub fn packed_params(&self, model: &Gpt, dtype: DType) -> anyhow::Result<Params> {
        let ids = || (0..).map(ParamId).zip(model.layout().entries());
        let mut packed = Vec::new();
        for (id, entry) in ids().filter(|(_, entry)| entry.shape.rank() == 2) {
            let (tensor, order) = self.parameter(&entry.name)?;
            let matrix = PackedMatrix::in_order(tensor.kind, entry.shape.dims(), self.gguf.bytes(tensor), |row| {
                order.gguf_row(row)
            });
            packed.push((id, matrix.with_context(|| format!("{}: {}", self.gguf.file(), tensor.name))?));
            self.gguf.release(tensor);
        }
        let mut params = Params::with_packed(model.layout().clone(), dtype, packed)?;
        for (id, entry) in ids().filter(|(_, entry)| entry.shape.rank() != 2) {
            let (_, values) = self.floats(&entry.name)?;
            params.set_master(id, &values.into_iter().map(f64::from).collect::<Vec<f64>>());
        }
        params.round();
        Ok(params)
    }
}

impl Weights for Checkpoint {
    fn names(&self) -> Vec<String> {
        let tensors = self.gguf.tensors().iter().filter(|tensor| tensor.name != ROPE_FACTORS);
        tensors.map(|tensor| parameter_name(&tensor.name).unwrap_or_else(|| tensor.name.clone())).collect()
    }

    fn shape(&self, name: &str) -> anyhow::Result<Vec<usize>> {
        Ok(self.parameter(name)?.0.shape.clone())
    }

    fn floats(&self, name: &str) -> anyhow::Result<(Shape, Vec<f32>)> {
        let (tensor, order) = self.parameter(name)?;
        if tensor.shape.len() > crate::tensor::shape::DIMS_MAX {
            user_bail!("{}: {} has {} dimensions", self.gguf.file(), tensor.name, tensor.shape.len());
        }
        let (bytes, cols) = (self.gguf.bytes(tensor), tensor.cols());
        let row_bytes = bytes.len() / tensor.rows();
        let mut values = vec![0.0; tensor.rows() * cols];
        values.par_chunks_exact_mut(cols).enumerate().for_each(|(row, out)| {
            tensor.kind.dequantise(&bytes[order.gguf_row(row) * row_bytes..][..row_bytes], out);
        });
        Ok((Shape::from(tensor.shape.as_slice()), values))
    }
}

/// The configuration that the metadata and the presence of tensors tell.
fn config(gguf: &Gguf) -> anyhow::Result<ModelConfig> {
    let file = gguf.file();
    let architecture = gguf.text("general.architecture")?.unwrap_or("");
    let qk_norm = match architecture {
        "llama" => false,
        "qwen3" => true,
        "qwen2" => user_bail!(
            "{file}: architecture qwen2 adds biases to q, k and v, which is not supported; llama and qwen3 are"
        ),
        other => user_bail!("{file}: architecture {other:?} is not supported; llama and qwen3 are"),
    };
    let key = |name: &str| format!("{architecture}.{name}");
    let optional = |name: &str| -> anyhow::Result<Option<usize>> {
        let n = gguf.count(&key(name))?;
        n.map(|n| usize::try_from(n).map_err(|_| user_error!("{file}: {} is {n}; the file is damaged", key(name))))
            .transpose()
    };
    let needed = |name: &str| {
        optional(name)?.ok_or_else(|| user_error!("{file}: {} is missing; it is not a whole model", key(name)))
    };
    let (width, heads) = (needed("embedding_length")?, needed("attention.head_count")?);
    let head_dim = optional("attention.key_length")?.unwrap_or(width / heads.max(1));
    refuse_unknown(gguf, architecture, head_dim)?;
    let embedding = gguf.tensor("token_embd.weight")?;
    let max_seq_len = needed("context_length")?.min(SEQ_LEN_MAX);
    let epsilon = key("attention.layer_norm_rms_epsilon");
    let mut config = ModelConfig {
        layers: needed("block_count")?,
        width,
        heads,
        kv_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn_width: needed("feed_forward_length")?,
        vocab_size: embedding.rows(),
        max_seq_len,
        rope_theta: gguf.number(&key("rope.freq_base"))?.unwrap_or(10_000.0),
        rope_scaling: None,
        norm_eps: gguf
            .number(&epsilon)?
            .ok_or_else(|| user_error!("{file}: {epsilon} is missing; it is not a whole model"))?,
        qk_norm,
        tie_embeddings: gguf.tensor("output.weight").is_err(),
        layer_pattern: "A".into(),
        window_pattern: "L".into(),
        window: (max_seq_len / 2).max(1),
        softcap: 0.0,
        document_mask: false,
        parts: Parts::default(),
    };
    config.validate().map_err(|e| user_error!("{file}: {e}"))?;
    if let Ok(tensor) = gguf.tensor(ROPE_FACTORS) {
        config.rope_scaling = Some(scaling(gguf, tensor, &config)?);
    }
    Ok(config)
}

/// Refuses what changes the computation and is not ours.
fn refuse_unknown(gguf: &Gguf, architecture: &str, head_dim: usize) -> anyhow::Result<()> {
    let (file, key) = (gguf.file(), |name: &str| format!("{architecture}.{name}"));
    if let Some(parts) = gguf.count("split.count")?.filter(|n| *n > 1) {
        user_bail!("{file}: it is one of {parts} parts of a model; put them together first (llama-gguf-split --merge)");
    }
    if gguf.count(&key("expert_count"))?.unwrap_or(0) > 0 {
        user_bail!("{file}: a mixture of experts is not supported; take a dense model");
    }
    if let Some(kind) = gguf.text(&key("rope.scaling.type"))?.filter(|kind| *kind != "none") {
        user_bail!("{file}: rotary scaling of type {kind:?} is not supported; Llama 3's is");
    }
    for name in ["rope.dimension_count", "attention.value_length"] {
        if let Some(n) = gguf.count(&key(name))?.filter(|n| *n != head_dim as u64) {
            user_bail!(
                "{file}: {} is {n} and a head has {head_dim} elements; only equal ones are supported",
                key(name)
            );
        }
    }
    if let Some(window) = gguf.count(&key("attention.sliding_window"))?.filter(|n| *n > 0) {
        user_bail!("{file}: a sliding window (of {window}) is not supported in GGUF files");
    }
    Ok(())
}

/// The factor of each pair of a head's elements: by it the frequency without scaling is divided.
pub fn rope_factors(config: &ModelConfig, scaling: Llama3Scaling) -> Vec<f32> {
    let plain = frequencies(config.head_dim, config.rope_theta, None);
    let scaled = frequencies(config.head_dim, config.rope_theta, Some(scaling));
    plain.iter().zip(scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect()
}

/// Llama 3's scaling that gives the factors in a file, which keeps nothing else of it.
fn scaling(gguf: &Gguf, tensor: &TensorInfo, config: &ModelConfig) -> anyhow::Result<Llama3Scaling> {
    let (file, half) = (gguf.file(), config.head_dim / 2);
    if tensor.shape != [half] || tensor.kind != BlockType::F32 {
        user_bail!("{file}: {ROPE_FACTORS} is no list of {half} numbers in F32; the file is damaged");
    }
    let mut factors = vec![0.0; half];
    tensor.kind.dequantise(gguf.bytes(tensor), &mut factors);
    // The lowest frequencies are divided by the whole factor, and between 1 and 4 turns in the original context lies the ramp.
    let factor = factors.iter().copied().fold(0.0, f32::max);
    let candidates = (4..=20).map(|bits| Llama3Scaling {
        factor: factor.to_string().parse().unwrap_or(1.0),
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 1 << bits,
    });
    let fits = |scaling: &Llama3Scaling| {
        rope_factors(config, *scaling).iter().zip(&factors).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs())
    };
    let found = candidates.into_iter().find(fits);
    found.ok_or_else(|| {
        user_error!("{file}: {ROPE_FACTORS} holds factors that are not Llama 3's, which is not supported")
    })
}
