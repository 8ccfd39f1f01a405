//! The configuration of a run: every key, where its value comes from, and what follows from `depth`.
//!
//! Values are layered as TOML tables, a later one over an earlier: defaults, preset, file, `--set`, flags. Keys that are
//! still open are then derived; the result, [`RunConfig`], is concrete and is what `config.toml` in a run folder holds.

pub use super::keys::{KEYS, PRESETS};
pub use super::losses::LossConfig;
use super::optim::Kind;
use crate::data::Packing;
use crate::device::choice::{self, SimMode};
use crate::model::ModelConfig;
use crate::model::config::{EXTENT_MAX, LAYERS_MAX};
use crate::model::parts::TABLES;
use crate::tensor::DType;
use crate::{user_bail, user_error};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// The concrete configuration of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    pub model: ModelConfig,
    pub train: TrainConfig,
    pub data: DataConfig,
    pub device: DeviceConfig,
    pub loss: LossConfig,
}

/// `[train]`; see [`KEYS`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    pub steps: u64,
    pub batch_tokens: usize,
    pub seq_len: usize,
    pub rows: usize,
    pub optimizer: Kind,
    pub lr_scale: f64,
    pub warmup_steps: u64,
    pub cooldown_fraction: f64,
    pub clip: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    pub seed: u64,
    pub eval_every: u64,
    pub eval_tokens: usize,
    pub save_every: u64,
    pub keep: usize,
    pub sample_every: u64,
    pub recompute: bool,
    pub threads: usize,
    pub spike_sigma: f64,
    pub bad_steps_max: u32,
}

/// `[data]`; see [`KEYS`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    pub sources: Vec<String>,
    pub val_fraction: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    pub vocab_size: usize,
    pub packing: Packing,
}

/// `[device]`; see [`KEYS`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    pub kind: String,
    pub dtype: DType,
    #[serde(default)]
    pub sim: SimMode,
    #[serde(default = "yes")]
    pub graph: bool,
}

impl DeviceConfig {
    /// Whether it is a card or the simulator.
    pub fn is_gpu(&self) -> bool {
        self.kind != "cpu"
    }
}

fn yes() -> bool {
    true
}

/// Most tokens of an optimiser step: a bound that keeps every product of extents in range.
const TOKENS_MAX: usize = 1 << 40;

/// Width of the latent's layers where nobody says another: half the model's, at most this.
const LATENT_WIDTH_MAX: usize = 256;

const DEFAULTS: &str = "
[model]
depth = 4
[train]
steps = 300
seq_len = 256
lr_scale = 1.0
cooldown_fraction = 0.6
clip = 1.0
seed = 0
eval_tokens = 65536
keep = 3
recompute = false
threads = 0
spike_sigma = 8.0
bad_steps_max = 5
optimizer = 'muon'
[data]
sources = ['synthetic']
val_fraction = 0.02
vocab_size = 4096
[device]
kind = 'auto'
dtype = 'auto'
sim = 'checked'
graph = true
[loss]
";

/// The layers above the defaults, lowest first.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    layers: Vec<Table>,
}

impl Layers {
    /// A named preset.
    ///
    /// # Errors
    /// An unknown name.
    pub fn preset(&mut self, name: &str) -> anyhow::Result<()> {
        let Some((_, text)) = PRESETS.iter().find(|(preset, _)| *preset == name) else {
            let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
            user_bail!("unknown preset {name:?}; there are {}", names.join(", "))
        };
        self.layers.push(parse(text, "preset")?);
        Ok(())
    }

    /// A TOML file.
    ///
    /// # Errors
    /// A file that cannot be read, bad TOML, or an unknown key.
    pub fn file(&mut self, path: &std::path::Path) -> anyhow::Result<()> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| user_error!("cannot read {name}: {e}"))?;
        let table = parse(&text, &name)?;
        check_keys(&table, &name)?;
        self.layers.push(table);
        Ok(())
    }

    /// One `key=value`; a value that is no TOML is a string.
    ///
    /// # Errors
    /// A missing `=` or an unknown key.
    pub fn set(&mut self, assignment: &str) -> anyhow::Result<()> {
        let Some((key, value)) = assignment.split_once('=') else {
            user_bail!("--set {assignment:?} has no '='; write --set table.key=value")
        };
        let (key, value) = (key.trim(), value.trim());
        let parsed = toml::from_str::<Table>(&format!("x = {value}")).ok().and_then(|mut t| t.remove("x"));
        self.value(key, parsed.unwrap_or_else(|| Value::String(value.to_string())), "--set")
    }

    /// One value under a dotted key; `origin` is named in errors.
    ///
    /// # Errors
    /// An unknown key.
    pub fn value(&mut self, key: &str, value: Value, origin: &str) -> anyhow::Result<()> {
        let mut value = value;
        for part in key.split('.').rev() {
            value = Value::Table(Table::from_iter([(part.to_string(), value)]));
        }
        let Value::Table(table) = value else { unreachable!("a key has at least one part") };
        check_keys(&table, origin)?;
        self.layers.push(table);
        Ok(())
    }

    /// The explicit value of a dotted key in the layers, the uppermost.
    fn merged(&self) -> Table {
        let mut merged = parse(DEFAULTS, "defaults").expect("the defaults are valid TOML");
        for layer in &self.layers {
            merge(&mut merged, layer.clone());
        }
        // A memory reads on from batch to batch.
        let is_on = |part: &&str| merged.get(*part).and_then(|part| part.get("enabled")) == Some(&Value::Boolean(true));
        let packing = if ["abacus", "memory"].iter().any(is_on) { "stream" } else { "bos" };
        table(&mut merged, "data").entry("packing").or_insert_with(|| packing.into());
        // One source may be written without the brackets.
        if let Value::String(source) = &merged["data"]["sources"] {
            merged["data"]["sources"] = Value::Array(vec![Value::String(source.clone())]);
        }
        merged
    }

    /// The data specs and how a tokenizer is to be had: what must be known before [`Layers::resolve`].
    ///
    /// # Errors
    /// A value of the wrong type.
    pub fn data(&self) -> anyhow::Result<DataConfig> {
        typed("data", &self.merged()["data"])
    }

    /// Derives what is open, for a tokenizer of `vocab_size` tokens.
    ///
    /// # Errors
    /// A value of the wrong type or out of range, or extents that do not fit each other: one line with the remedy.
    pub fn resolve(&self, vocab_size: usize) -> anyhow::Result<RunConfig> {
        let mut merged = self.merged();
        let mut parts = take_parts(&mut merged);
        let seq_len = integer(&merged, "train", "seq_len")?.unwrap_or(256);
        let model = table(&mut merged, "model");
        let depth = match model.remove("depth") {
            Some(Value::Integer(depth)) if (1..=LAYERS_MAX as i64).contains(&depth) => depth as usize,
            Some(other) => user_bail!("model.depth = {other} must be a whole number from 1 to {LAYERS_MAX}"),
            None => unreachable!("the defaults have a depth"),
        };
        let mut model = resolve_model(model, depth, vocab_size, seq_len)?;
        // Its decoder goes over the whole vocabulary: in a narrow model 256 would cost as much as half the head.
        // A part that is off keeps the defaults, which a checkpoint need not name.
        match parts.get_mut("latent") {
            Some(Value::Table(latent)) if latent.get("enabled") == Some(&Value::Boolean(true)) => {
                fill(latent, "width", || LATENT_WIDTH_MAX.min(model.width / 2).max(1) as i64);
            }
            _ => {}
        }
        model.parts = typed("the tables of the parts", &Value::Table(parts))?;
        let memory = &mut model.parts.memory;
        if memory.enabled && memory.segment == 0 {
            memory.segment = seq_len;
        }
        let train = table(&mut merged, "train");
        let segments = if model.parts.abacus.enabled { model.parts.abacus.segments.clamp(1, 2048) } else { 1 };
        fill(train, "rows", || (2048 / seq_len).max(1).next_multiple_of(segments) as i64);
        let rows = count(train, "train.rows")?;
        fill(train, "batch_tokens", || rows.saturating_mul(seq_len).min(i64::MAX as usize) as i64);
        let steps = count(train, "train.steps")? as i64;
        fill(train, "warmup_steps", || 40.min(steps / 5));
        for key in ["eval_every", "save_every", "sample_every"] {
            fill(train, key, || (steps / 5).max(1));
        }
        let device = table(&mut merged, "device");
        let kind = choice::resolve(device["kind"].as_str().unwrap_or_default())?;
        if device["dtype"].as_str() == Some("auto") {
            let dtype = if kind.starts_with("cuda") { "bf16" } else { "f32" };
            device.insert("dtype".into(), dtype.into());
        }
        device.insert("kind".into(), kind.into());
        let mut loss = Table::try_from(LossConfig::default()).expect("plain values");
        if let Some(Value::Table(given)) = merged.remove("loss") {
            merge(&mut loss, given);
        }
        let config = RunConfig {
            model,
            train: typed("train", &merged["train"])?,
            data: typed("data", &merged["data"])?,
            device: typed("device", &merged["device"])?,
            loss: typed("loss", &Value::Table(loss))?,
        };
        config.validate()?;
        Ok(config)
    }
}

fn resolve_model(model: &Table, depth: usize, vocab_size: usize, seq_len: usize) -> anyhow::Result<ModelConfig> {
    let given = |key: &str| match model.get(key) {
        Some(Value::Integer(n)) if *n > 0 => Ok(Some(*n as usize)),
        Some(other) => Err(user_error!("model.{key} = {other} must be a whole number above 0")),
        None => Ok(None),
    };
    let mut derived = ModelConfig::from_depth(depth, vocab_size, seq_len.max(1));
    if let Some(width) = given("width")? {
        if width > EXTENT_MAX {
            user_bail!("model.width = {width} is above {EXTENT_MAX}; lower it");
        }
        derived.width = width;
        derived.ffn_width = ModelConfig::default_ffn_width(width);
        derived.head_dim = if width < 256 { 32 } else { 64 };
    }
    match (given("heads")?, given("head_dim")?) {
        (Some(heads), None) => {
            if !derived.width.is_multiple_of(heads) {
                user_bail!(
                    "model.heads = {heads} does not divide model.width = {}; choose a divisor or give model.head_dim",
                    derived.width
                );
            }
            (derived.heads, derived.head_dim) = (heads, derived.width / heads);
        }
        (Some(heads), Some(head_dim)) => (derived.heads, derived.head_dim) = (heads, head_dim),
        (None, head_dim) => {
            derived.head_dim = head_dim.unwrap_or(derived.head_dim);
            if !derived.width.is_multiple_of(derived.head_dim) {
                user_bail!(
                    "model.width = {} is not a multiple of model.head_dim = {}; choose a multiple or give model.heads",
                    derived.width,
                    derived.head_dim
                );
            }
            derived.heads = derived.width / derived.head_dim;
        }
    }
    derived.kv_heads = derived.heads;
    if let Some(max_seq_len) = given("max_seq_len")? {
        derived.max_seq_len = max_seq_len;
        derived.window = (max_seq_len / 2).max(1);
    }
    let mut full = match Value::try_from(&derived) {
        Ok(Value::Table(table)) => table,
        _ => unreachable!("a configuration is a table"),
    };
    merge(&mut full, model.clone());
    let config: ModelConfig = typed("model", &Value::Table(full))?;
    if config.vocab_size < vocab_size {
        user_bail!(
            "model.vocab_size = {} is below the tokenizer's {vocab_size}; raise it or leave it out",
            config.vocab_size
        );
    }
    Ok(config)
}

impl RunConfig {
    /// Refuses values that are out of range or do not fit each other.
    ///
    /// # Errors
    /// The first such value, with the remedy.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.model.validate()?;
        let RunConfig { model, train, data, device, loss } = self;
        choice::resolve(&device.kind)?;
        if device.dtype == DType::F64 {
            user_bail!("device.dtype = \"f64\" is for checks only; train in f32 or bf16");
        }
        if data.sources.is_empty() {
            user_bail!("data.sources is empty; name data, or leave it out for the built-in ones");
        }
        if train.seq_len > model.max_seq_len {
            user_bail!(
                "train.seq_len = {} is beyond model.max_seq_len = {}; lower --seq-len or raise model.max_seq_len",
                train.seq_len,
                model.max_seq_len
            );
        }
        for (key, value) in [
            ("train.seq_len", train.seq_len),
            ("train.rows", train.rows),
            ("train.batch_tokens", train.batch_tokens),
            ("train.steps", train.steps as usize),
            ("train.keep", train.keep),
            ("train.eval_tokens", train.eval_tokens),
            ("train.bad_steps_max", train.bad_steps_max as usize),
        ] {
            if value == 0 {
                user_bail!("{key} is 0; it must be at least 1");
            }
        }
        let tokens = |rows: usize, seq_len: usize| rows.checked_mul(seq_len).filter(|&tokens| tokens <= TOKENS_MAX);
        let Some(micro) = tokens(train.rows, train.seq_len) else {
            user_bail!("train.rows = {} is too large; lower it", train.rows)
        };
        if train.batch_tokens > TOKENS_MAX {
            user_bail!("train.batch_tokens = {} is above {TOKENS_MAX}; lower it", train.batch_tokens);
        }
        if train.steps.checked_mul(train.batch_tokens as u64).is_none_or(|tokens| tokens > i64::MAX as u64) {
            user_bail!("train.steps = {} is too large; lower it", train.steps);
        }
        if !train.batch_tokens.is_multiple_of(micro) {
            user_bail!(
                "train.batch_tokens = {} is not a multiple of rows x seq_len = {} x {} = {micro}; choose a multiple",
                train.batch_tokens,
                train.rows,
                train.seq_len
            );
        }
        if !train.rows.is_multiple_of(self.segments()) {
            user_bail!(
                "abacus.segments = {} does not divide train.rows = {}; choose a divisor",
                self.segments(),
                train.rows
            );
        }
        let memory = &model.parts.memory;
        if memory.enabled && memory.segment != train.seq_len {
            user_bail!("memory.segment = {} must be train.seq_len = {}; leave it out", memory.segment, train.seq_len);
        }
        if train.warmup_steps > train.steps {
            user_bail!("train.warmup_steps = {} exceeds train.steps = {}", train.warmup_steps, train.steps);
        }
        for (key, value, low, high) in [
            ("train.lr_scale", train.lr_scale, 0.0, 1e6),
            ("train.cooldown_fraction", train.cooldown_fraction, 0.0, 1.0),
            ("train.clip", train.clip, 1e-12, f64::MAX),
            ("train.weight_decay", train.weight_decay.unwrap_or(0.0), 0.0, 1e3),
            ("train.spike_sigma", train.spike_sigma, 0.0, f64::MAX),
            ("data.val_fraction", data.val_fraction, 1e-9, 0.999_999),
        ] {
            if !(low..=high).contains(&value) {
                user_bail!("{key} = {value} is out of range; it must lie between {low} and {high}");
            }
        }
        if let Some(complaint) = loss.complaint() {
            user_bail!("{complaint}");
        }
        Ok(())
    }

    /// Rows of a micro-batch that go on with each other.
    pub fn segments(&self) -> usize {
        let abacus = &self.model.parts.abacus;
        if abacus.enabled && self.data.packing == Packing::Stream { abacus.segments } else { 1 }
    }

    /// Micro-batches of an optimiser step.
    pub fn accumulation(&self) -> usize {
        self.train.batch_tokens / (self.train.rows * self.train.seq_len)
    }

    /// As `config.toml`: the tables of the parts stand beside the model's.
    pub fn to_toml(&self) -> String {
        let mut all = Table::try_from(self).expect("plain values");
        if let Some(Value::Table(parts)) = table(&mut all, "model").remove("parts") {
            all.extend(parts);
        }
        toml::to_string(&all).expect("plain values")
    }

    /// From a run folder's `config.toml`; `file` is named in errors.
    ///
    /// # Errors
    /// A file that was edited into something invalid.
    pub fn from_toml(text: &str, file: &str) -> anyhow::Result<RunConfig> {
        let mut all = parse(text, file)?;
        check_keys(&all, file)?;
        let parts = take_parts(&mut all);
        if let Some(Value::Table(model)) = all.get_mut("model") {
            model.insert("parts".into(), Value::Table(parts));
        }
        let config: RunConfig = all.try_into().map_err(|e| user_error!("{file}: {}", one_line(&e)))?;
        config.validate()?;
        Ok(config)
    }
}

/// Takes the tables of the parts out of the top level.
fn take_parts(all: &mut Table) -> Table {
    TABLES.iter().filter_map(|name| Some((name.to_string(), all.remove(*name)?))).collect()
}

fn parse(text: &str, origin: &str) -> anyhow::Result<Table> {
    text.parse::<Table>().map_err(|e| user_error!("{origin} is not valid TOML: {}", one_line(&e)))
}

fn one_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(super) fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// Refuses keys that are not in [`KEYS`], naming the nearest one that is.
fn check_keys(table: &Table, origin: &str) -> anyhow::Result<()> {
    fn walk(table: &Table, prefix: &str, origin: &str) -> anyhow::Result<()> {
        for (key, value) in table {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            let is_key = KEYS.iter().any(|(known, _)| *known == path);
            let is_table = KEYS.iter().any(|(known, _)| known.starts_with(&format!("{path}.")));
            match value {
                Value::Table(inner) if is_table || path == "model.rope_scaling" => {
                    if path != "model.rope_scaling" {
                        walk(inner, &path, origin)?;
                    }
                }
                _ if is_key => {}
                _ => {
                    let distance = |known: &&(&str, &str)| strsim::damerau_levenshtein(known.0, &path);
                    let (nearest, _) = KEYS.iter().min_by_key(distance).expect("there are keys");
                    user_bail!("{origin}: unknown key {path}; did you mean {nearest}?");
                }
            }
        }
        Ok(())
    }
    walk(table, "", origin)
}

fn typed<T: serde::de::DeserializeOwned>(name: &str, value: &Value) -> anyhow::Result<T> {
    value.clone().try_into().map_err(|e| user_error!("in [{name}]: {}", one_line(&e)))
}

fn table<'a>(root: &'a mut Table, name: &str) -> &'a mut Table {
    root.get_mut(name).and_then(Value::as_table_mut).expect("the defaults hold every table")
}

fn integer(root: &Table, name: &str, key: &str) -> anyhow::Result<Option<usize>> {
    match root[name].get(key) {
        Some(Value::Integer(n)) if *n > 0 => Ok(Some(*n as usize)),
        Some(other) => user_bail!("{name}.{key} = {other} must be a whole number above 0"),
        None => Ok(None),
    }
}

fn count(train: &Table, path: &str) -> anyhow::Result<usize> {
    let key = path.rsplit('.').next().unwrap_or(path);
    match train.get(key) {
        Some(Value::Integer(n)) if *n > 0 => Ok(*n as usize),
        other => {
            user_bail!("{path} = {} must be a whole number above 0", other.map_or("nothing".into(), Value::to_string))
        }
    }
}

fn fill(table: &mut Table, key: &str, value: impl FnOnce() -> i64) {
    if !table.contains_key(key) {
        table.insert(key.into(), Value::Integer(value()));
    }
}
