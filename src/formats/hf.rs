//! Hugging Face's `config.json`, both spellings of rotary settings, and parameters by Hugging Face's names.
//!
//! A backbone without QK-norm is a `LlamaForCausalLM`, with it a `Qwen3ForCausalLM`; options that neither knows (soft-cap,
//! windows without QK-norm, layers of Kimi Delta Attention, parts beyond the backbone) make it a `NanochatForCausalLM`, which `transformers` refuses instead of computing wrongly.

use super::weights::Weights;
use crate::model::config::SEQ_LEN_MAX;
use crate::model::{Gpt, ModelConfig, Parts};
use crate::ops::rope::Llama3Scaling;
use crate::tensor::{DType, Elem, Float, ParamId, Params};
use crate::{user_bail, user_error};
use rustc_hash::FxHashSet;
use serde_json::{Map, Value, json};

/// Ids that mean something to programs that read the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Vec<u32>,
}

/// `config.json` of a model.
pub fn config_json(config: &ModelConfig, ids: &SpecialIds) -> Value {
    let windows = config.has_windows();
    let is_ours = config.softcap > 0.0 || config.document_mask || config.has_kda() || !config.parts.is_plain();
    let (architecture, model_type) = if is_ours || (windows && !config.qk_norm) {
        ("NanochatForCausalLM", "nanochat")
    } else if config.qk_norm {
        ("Qwen3ForCausalLM", "qwen3")
    } else {
        ("LlamaForCausalLM", "llama")
    };
    let eos = match ids.eos.as_slice() {
        [one] => json!(one),
        [] => Value::Null,
        several => json!(several),
    };
    let mut rope = json!({ "rope_theta": config.rope_theta, "rope_type": "default" });
    if let Some(scaling) = config.rope_scaling {
        rope = serde_json::to_value(scaling).expect("plain numbers");
        rope["rope_theta"] = json!(config.rope_theta);
        rope["rope_type"] = json!("llama3");
    }
    let mut out = json!({
        "architectures": [architecture],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": ids.bos,
        "dtype": "float32",
        "eos_token_id": eos,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.width,
        "initializer_range": 0.02,
        "intermediate_size": config.ffn_width,
        "max_position_embeddings": config.max_seq_len,
        "mlp_bias": false,
        "model_type": model_type,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": true,
        "vocab_size": config.vocab_size,
    });
    let object = out.as_object_mut().expect("an object");
    if config.rope_scaling.is_some() {
        object.insert("rope_scaling".into(), object["rope_parameters"].clone());
    }
    if model_type == "qwen3" {
        let kind = |layer| if config.window_of(layer).is_some() { "sliding_attention" } else { "full_attention" };
        object.insert("layer_types".into(), (0..config.layers).map(kind).collect());
        object.insert("use_sliding_window".into(), windows.into());
        object.insert("sliding_window".into(), if windows { config.window.into() } else { Value::Null });
    }
    // What Hugging Face has no word for; read back by this program, ignored by others.
    let mut own = json!({
        "qk_norm": config.qk_norm,
        "window_pattern": config.window_pattern,
        "window": config.window,
        "softcap": config.softcap,
        "document_mask": config.document_mask,
    });
    if config.has_kda() {
        own["layer_pattern"] = json!(config.layer_pattern);
    }
    if !config.parts.is_plain() {
        own["parts"] = serde_json::to_value(&config.parts).expect("plain values");
    }
    object.insert("nanochat".into(), own);
    out
}

/// The configuration in a `config.json`; `file` is named in errors.
///
/// # Errors
/// A missing or odd field, or an architecture that this program does not compute.
pub fn parse_config(value: &Value, file: &str) -> anyhow::Result<ModelConfig> {
    let Some(object) = value.as_object() else { user_bail!("{file} is not a JSON object") };
    let field = Fields { object, file };
    let architecture = object.get("architectures").and_then(|a| a[0].as_str()).unwrap_or("");
    let qk_norm = match architecture {
        "LlamaForCausalLM" => false,
        "Qwen3ForCausalLM" => true,
        "NanochatForCausalLM" => value["nanochat"]["qk_norm"].as_bool().unwrap_or(false),
        "Qwen2ForCausalLM" => user_bail!(
            "{file}: architecture Qwen2ForCausalLM adds biases to q, k and v, which is not supported; LlamaForCausalLM and \
             Qwen3ForCausalLM are"
        ),
        other => {
            user_bail!("{file}: architecture {other:?} is not supported; LlamaForCausalLM and Qwen3ForCausalLM are")
        }
    };
    for bias in ["attention_bias", "mlp_bias"] {
        if object.get(bias) == Some(&Value::Bool(true)) {
            user_bail!("{file}: {bias} is true; models with biases are not supported");
        }
    }
    refuse_unknown(object, file)?;
    let (width, heads) = (field.count("hidden_size")?, field.count("num_attention_heads")?);
    let rope = object.get("rope_parameters").filter(|v| v.is_object());
    let scaling = rope.or(object.get("rope_scaling").filter(|v| v.is_object()));
    let rope_theta = rope.and_then(|r| r["rope_theta"].as_f64()).or(object.get("rope_theta").and_then(Value::as_f64));
    let own = |key: &str| value.get("nanochat").and_then(|n| n.get(key));
    let layers = field.count("num_hidden_layers")?;
    // Longer contexts are cut to what is computed here; shorter texts do not know the difference.
    let max_seq_len = field.count("max_position_embeddings")?.min(SEQ_LEN_MAX);
    let (window_pattern, window) = windows(value, layers, max_seq_len);
    let config = ModelConfig {
        layers,
        width,
        heads,
        kv_heads: field.optional_count("num_key_value_heads")?.unwrap_or(heads),
        head_dim: field.optional_count("head_dim")?.unwrap_or(width / heads.max(1)),
        ffn_width: field.count("intermediate_size")?,
        vocab_size: field.count("vocab_size")?,
        max_seq_len,
        rope_theta: rope_theta.unwrap_or(10_000.0),
        rope_scaling: scaling.map(|s| rope_scaling(s, file)).transpose()?.flatten(),
        norm_eps: object.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6),
        qk_norm,
        tie_embeddings: object.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
        layer_pattern: own("layer_pattern").and_then(Value::as_str).unwrap_or("A").to_string(),
        window_pattern: own("window_pattern").and_then(Value::as_str).map_or(window_pattern, str::to_string),
        window: own("window").and_then(Value::as_u64).map_or(window, |w| w as usize),
        softcap: own("softcap").and_then(Value::as_f64).unwrap_or(0.0),
        document_mask: own("document_mask").and_then(Value::as_bool).unwrap_or(false),
        parts: own("parts").map_or_else(|| Ok(Parts::default()), |parts| parts_of(parts, file))?,
    };
    config.validate().map_err(|e| user_error!("{file}: {e}"))?;
    Ok(config)
}

/// Refuses what changes the computation and is not ours.
fn refuse_unknown(object: &Map<String, Value>, file: &str) -> anyhow::Result<()> {
    let odd = |key: &str, ours: Value| object.get(key).filter(|value| !value.is_null() && **value != ours);
    if let Some(activation) = odd("hidden_act", json!("silu")) {
        user_bail!("{file}: hidden_act is {activation}, which is not supported; silu is");
    }
    if odd("rope_interleaved", json!(false)).is_some() {
        user_bail!("{file}: rope_interleaved is true, which is not supported");
    }
    if let Some(factor) = odd("partial_rotary_factor", json!(1.0)) {
        user_bail!("{file}: partial_rotary_factor is {factor}, which is not supported; 1.0 is");
    }
    if odd("quantization_config", Value::Null).is_some() {
        user_bail!(
            "{file}: the weights are quantised (quantization_config); take the model's plain weights, or a GGUF file"
        );
    }
    if odd("use_sliding_window", json!(false)).is_some() && !object.get("layer_types").is_some_and(Value::is_array) {
        user_bail!("{file}: use_sliding_window is true, and no layer_types say where; that is not supported");
    }
    Ok(())
}

fn parts_of(value: &Value, file: &str) -> anyhow::Result<Parts> {
    serde_json::from_value(value.clone())
        .map_err(|e| user_error!("{file}: the model's parts: {e}; it may be of a newer program"))
}

struct Fields<'a> {
    object: &'a Map<String, Value>,
    file: &'a str,
}

impl Fields<'_> {
    fn optional_count(&self, key: &str) -> anyhow::Result<Option<usize>> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(n) => Ok(Some(n as usize)),
                None => user_bail!("{}: {key} is {value}, a whole number was expected", self.file),
            },
        }
    }

    fn count(&self, key: &str) -> anyhow::Result<usize> {
        match self.optional_count(key)? {
            Some(n) => Ok(n),
            None => user_bail!("{}: {key} is missing", self.file),
        }
    }
}

fn rope_scaling(value: &Value, file: &str) -> anyhow::Result<Option<Llama3Scaling>> {
    match value["rope_type"].as_str().or(value["type"].as_str()).unwrap_or("default") {
        "default" => Ok(None),
        "llama3" => match serde_json::from_value(value.clone()) {
            Ok(scaling) => Ok(Some(scaling)),
            Err(e) => user_bail!("{file}: rotary scaling of type llama3: {e}"),
        },
        other => user_bail!("{file}: rotary scaling of type {other:?} is not supported; llama3 is"),
    }
}

/// Window pattern and width out of `layer_types` and `sliding_window`.
fn windows(value: &Value, layers: usize, max_seq_len: usize) -> (String, usize) {
    let none = ("L".to_string(), (max_seq_len / 2).max(1));
    let (Some(window), Some(kinds)) = (value["sliding_window"].as_u64(), value["layer_types"].as_array()) else {
        return none;
    };
    let letter = |i: usize| if kinds.get(i).and_then(Value::as_str) == Some("sliding_attention") { 'S' } else { 'L' };
    let pattern: String = (0..layers).map(letter).collect();
    if pattern.contains('S') { (pattern, window as usize) } else { none }
}

/// Refuses a configuration whose extents are not those of the tensors that show most of them, before tables are made by it.
///
/// # Errors
/// A missing tensor or another shape, named.
pub fn check_extents(config: &ModelConfig, reader: &dyn Weights, file: &str) -> anyhow::Result<()> {
    let last = config.layers - 1;
    let mut expected = vec![
        ("model.embed_tokens.weight".to_string(), vec![config.vocab_size, config.width]),
        (format!("model.layers.{last}.input_layernorm.weight"), vec![config.width]),
    ];
    if let Some(layer) = (0..config.layers).find(|layer| !config.is_kda(*layer)) {
        let rows = config.heads * config.head_dim;
        expected.push((format!("model.layers.{layer}.self_attn.q_proj.weight"), vec![rows, config.width]));
    }
    expected.iter().try_for_each(|(name, shape)| expect_shape(reader, name, shape, file))
}

fn expect_shape(reader: &dyn Weights, name: &str, expected: &[usize], file: &str) -> anyhow::Result<()> {
    let shape = reader.shape(name)?;
    if shape != expected {
        user_bail!(
            "{file}: {name} has shape {shape:?}, this model needs {expected:?}; the file and its configuration do not fit"
        );
    }
    Ok(())
}

/// Reads the parameters of `model` out of `reader`; `file` is named in errors.
///
/// # Errors
/// A missing tensor, another shape, or a tensor that the model has no place for, named.
pub fn read_params(model: &Gpt, reader: &dyn Weights, dtype: DType, file: &str) -> anyhow::Result<Params> {
    check_tensors(model, reader, file)?;
    let layout = model.layout().clone();
    let mut params = Params::zeros(layout.clone(), dtype);
    for (i, entry) in layout.entries().iter().enumerate() {
        let (_, values) = reader.floats(&entry.name)?;
        let mut target = params.master_entry_mut(ParamId(i as u32));
        crate::for_float!(dtype.accumulator(), F => {
            for (to, from) in target.as_mut_slice::<F>().iter_mut().zip(&values) {
                *to = <F as Float>::from_f64(from.load().to_f64());
            }
        });
    }
    params.round();
    Ok(params)
}

/// Refuses tensors that are not those of `model`.
///
/// # Errors
/// A missing tensor, another shape, or a tensor that the model has no place for, named.
pub fn check_tensors(model: &Gpt, reader: &dyn Weights, file: &str) -> anyhow::Result<()> {
    let layout = model.layout();
    // All shapes first: a configuration that lies may ask for more memory than there is.
    for entry in layout.entries() {
        expect_shape(reader, &entry.name, entry.shape.as_slice(), file)?;
    }
    let known: FxHashSet<&str> = layout.entries().iter().map(|entry| entry.name.as_str()).collect();
    let tied = model.config().tie_embeddings;
    // Older files keep a table of rotary frequencies, and some the tied head a second time.
    let is_spare = |name: &str| name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight");
    if let Some(name) = reader.names().iter().find(|name| !known.contains(name.as_str()) && !is_spare(name)) {
        user_bail!("{file}: {name} is no part of this model (such as a bias); models with it are not supported");
    }
    Ok(())
}
