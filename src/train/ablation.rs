//! Ablations: the same training with and without parts, at equal tokens, over seeds.
//!
//! Arms: the plain model; each part alone, as it is, as a probe (its losses reach no trunk) and beside its controls; all parts; all but
//! one. Every arm sees the same tokens in the same order for the same seed, and shared parameters begin alike, so differences are taken
//! seed by seed. What is finished stays in the folder: the same ablation goes on where it was interrupted.

use super::begin::meet_tokenizer;
use super::config::{Layers, RunConfig};
use super::losses::LossConfig;
use super::plot::{Spread, spreads_svg};
use super::trainer::{End, Event, Observer, Trainer};
use crate::formats::checkpoint::replace_file;
use crate::model::parts::{Parts, TABLES};
use crate::tokenizer::{Codec, Tokenizer};
use crate::{user_bail, user_error};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// One way to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Arm {
    pub name: String,
    /// What it sets, as `--set` does.
    pub sets: Vec<String>,
    /// The arm that it is held against.
    pub against: &'static str,
}

impl Arm {
    /// The configuration of a run, for a tokenizer of so many tokens.
    ///
    /// # Errors
    /// What the configuration refuses.
    pub fn config(&self, layers: &Layers, seed: u64, vocab_size: usize) -> anyhow::Result<RunConfig> {
        let mut layers = layers.clone();
        // The end says it all: no evaluations between, no samples.
        let quiet = ["train.eval_every=0", "train.sample_every=0", "train.save_every=0"].map(String::from);
        for set in quiet.iter().chain(&self.sets).chain([&format!("train.seed={seed}")]) {
            layers.set(set)?;
        }
        layers.resolve(vocab_size)
    }
}

/// The name of the first arm.
pub const PLAIN: &str = "plain";
/// The name of the one with all parts.
const ALL: &str = "all";

/// All arms over these parts.
///
/// # Errors
/// A name that is no part's.
pub fn arms(parts: &[String]) -> anyhow::Result<Vec<Arm>> {
    let known = Parts::default();
    if let Some(unknown) = parts.iter().find(|name| known.part(name).is_none()) {
        user_bail!("there is no part named {unknown}; parts: {}", TABLES.join(", "));
    }
    let part = |name: &str| known.part(name).expect("a name of TABLES");
    let on = |names: &[&str]| -> Vec<String> {
        let needed = |name: &&&str| names.iter().any(|other| part(other).requires().contains(*name));
        let all = TABLES.iter().filter(|name| names.contains(name) || needed(name));
        all.map(|name| format!("{name}.enabled=true")).collect()
    };
    let arm = |name: String, sets: Vec<String>, against| Arm { name, sets, against };
    let mut arms = vec![arm(PLAIN.into(), Vec::new(), PLAIN)];
    for name in parts {
        arms.push(arm(name.clone(), on(&[name]), PLAIN));
        // Of losses that reach the trunk; those of the latent never do.
        let reaching = part(name).losses().iter().filter(|&&kind| LossConfig::default().of(kind).rho > 0.0);
        let probe: Vec<String> = reaching.map(|kind| format!("loss.{}.rho=0", kind.name())).collect();
        if !probe.is_empty() {
            arms.push(arm(format!("{name}, probe"), [on(&[name]), probe].concat(), PLAIN));
        }
        for (what, set) in part(name).controls() {
            let sets = on(&[name]).into_iter().chain([set.to_string()]).collect();
            arms.push(arm(format!("{name}, {what}"), sets, PLAIN));
        }
    }
    if parts.len() > 1 {
        let all: Vec<&str> = parts.iter().map(|name| &name[..]).collect();
        arms.push(arm(ALL.into(), on(&all), PLAIN));
        for name in &all {
            let rest: Vec<&str> =
                all.iter().copied().filter(|other| other != name && !part(other).requires().contains(name)).collect();
            arms.push(arm(format!("all but {name}"), on(&rest), ALL));
        }
    }
    Ok(arms)
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub val_loss: f64,
    pub val_bpb: f64,
    /// Mean of each part's losses on held-out text, before the first step and after the last.
    pub parts: BTreeMap<String, [f64; 2]>,
    pub tokens_per_second: f64,
}

/// An ablation in a folder.
pub struct Ablation {
    layers: Layers,
    tokenizer: Arc<Tokenizer>,
    arms: Vec<Arm>,
    seeds: u64,
    out: PathBuf,
}

/// One of its runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    arm: usize,
    pub seed: u64,
}

struct Silent;

impl Observer for Silent {
    fn hear(&mut self, _event: Event) {}
}

impl Ablation {
    /// Of `layers` with each arm's settings over them, in the folder `out`.
    pub fn new(layers: Layers, tokenizer: Arc<Tokenizer>, arms: Vec<Arm>, seeds: u64, out: PathBuf) -> Ablation {
        Ablation { layers, tokenizer, arms, seeds, out }
    }

    /// All runs, every arm once before any has its second seed.
    pub fn runs(&self) -> Vec<Run> {
        (1..=self.seeds).flat_map(|seed| (0..self.arms.len()).map(move |arm| Run { arm, seed })).collect()
    }

    /// The name of a run's arm.
    pub fn name(&self, run: Run) -> &str {
        &self.arms[run.arm].name
    }

    fn config(&self, run: Run) -> anyhow::Result<RunConfig> {
        let mut config = self.arms[run.arm].config(&self.layers, run.seed, self.tokenizer.vocab_size())?;
        meet_tokenizer(&mut config, &self.tokenizer)?;
        Ok(config)
    }

    fn folder(&self, run: Run) -> PathBuf {
        let name = self.name(run).replace(", ", "-").replace(' ', "-");
        self.out.join(format!("{name}-seed-{}", run.seed))
    }

    /// The outcome of a run that is done already.
    ///
    /// # Errors
    /// A run of another configuration in its place, or a damaged one.
    pub fn finished(&self, run: Run) -> anyhow::Result<Option<Outcome>> {
        let folder = self.folder(run);
        let Ok(text) = std::fs::read_to_string(folder.join("outcome.json")) else { return Ok(None) };
        let there = std::fs::read_to_string(folder.join("config.toml")).unwrap_or_default();
        if there != self.config(run)?.to_toml() {
            user_bail!("{} holds a run of another configuration; choose another --out", folder.display());
        }
        let outcome = serde_json::from_str(&text);
        outcome.map(Some).map_err(|e| user_error!("{}/outcome.json is damaged: {e}; remove it", folder.display()))
    }

    /// Does a run from its beginning; nothing where it was interrupted. Of its checkpoint nothing stays.
    ///
    /// # Errors
    /// What training refuses.
    pub fn run(&self, run: Run, interrupted: &AtomicBool) -> anyhow::Result<Option<Outcome>> {
        let folder = self.folder(run);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        let mut trainer = Trainer::start(self.config(run)?, self.tokenizer.clone(), &folder)?;
        let before = trainer.evaluate()?;
        let (end, summary) = trainer.run(None, interrupted, &mut Silent)?;
        if end != End::Finished {
            return Ok(None);
        }
        let after = trainer.evaluate()?;
        let parts = after.parts.iter().map(|(&name, &last)| (name.to_string(), [before.parts[name], last]));
        let outcome = Outcome {
            val_loss: after.loss,
            val_bpb: after.bits_per_byte,
            parts: parts.collect(),
            tokens_per_second: summary.tokens_per_second,
        };
        std::fs::remove_dir_all(folder.join("checkpoints")).context("removing a checkpoint")?;
        replace_file(&folder.join("outcome.json"), &serde_json::to_vec(&outcome)?)?;
        Ok(Some(outcome))
    }

    /// What all finished runs come to.
    ///
    /// # Errors
    /// As [`Ablation::finished`].
    pub fn report(&self) -> anyhow::Result<Report> {
        let mut outcomes = vec![Vec::new(); self.arms.len()];
        for run in self.runs() {
            if let Some(outcome) = self.finished(run)? {
                outcomes[run.arm].push((run.seed, outcome));
            }
        }
        let at = |name: &str| self.arms.iter().position(|arm| arm.name == name);
        let rows = self.arms.iter().zip(&outcomes).filter(|(_, runs)| !runs.is_empty()).map(|(arm, runs)| {
            let values = |of: &dyn Fn(&Outcome) -> f64| Moments::of(runs.iter().map(|(_, outcome)| of(outcome)));
            let against: &[(u64, Outcome)] = at(arm.against).map_or(&[], |other| &outcomes[other]);
            let paired = runs.iter().filter_map(|(seed, outcome)| {
                let (_, other) = against.iter().find(|(other, _)| other == seed)?;
                Some([outcome.val_bpb - other.val_bpb, other.tokens_per_second / outcome.tokens_per_second])
            });
            let paired: Vec<[f64; 2]> = paired.collect();
            let names: Vec<&String> = runs[0].1.parts.keys().collect();
            let part = |name: &String, i: usize| Moments::of(runs.iter().map(|(_, outcome)| outcome.parts[name][i]));
            Row {
                arm: arm.name.clone(),
                against: arm.against,
                seeds: runs.len(),
                val_bpb: values(&|outcome| outcome.val_bpb),
                each: runs.iter().map(|(_, outcome)| outcome.val_bpb).collect(),
                difference: Moments::of(paired.iter().map(|pair| pair[0])),
                time: Moments::of(paired.iter().map(|pair| pair[1])),
                parts: names.into_iter().map(|name| (name.clone(), [part(name, 0), part(name, 1)])).collect(),
            }
        });
        Ok(Report { rows: rows.collect() })
    }
}

/// Mean and standard deviation over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Moments {
    pub mean: f64,
    /// 0 of a single value.
    pub deviation: f64,
}

impl Moments {
    /// Of some values; not a number of none.
    pub fn of(values: impl Iterator<Item = f64>) -> Moments {
        let values: Vec<f64> = values.collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
        Moments { mean, deviation: if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 } }
    }
}

/// What an arm came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub arm: String,
    pub against: &'static str,
    pub seeds: usize,
    pub val_bpb: Moments,
    #[serde(skip)]
    pub each: Vec<f64>,
    /// Of bits per byte to the arm that it is held against, seed by seed.
    pub difference: Moments,
    /// Of a step, over that arm's.
    pub time: Moments,
    /// Held-out loss of each part, before the first step and after the last.
    pub parts: BTreeMap<String, [Moments; 2]>,
}

/// What an ablation came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub rows: Vec<Row>,
}

impl Report {
    /// A table in Markdown: means and standard deviations over the seeds.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| arm | seeds | bits per byte | difference | to | step time | its losses, untrained -> trained |\n|---|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let Row { arm, against, seeds, val_bpb, difference, time, parts, .. } = row;
            let losses: Vec<String> = parts
                .iter()
                .map(|(name, [before, after])| {
                    format!("{name} {:.4} -> {:.4} ± {:.4}", before.mean, after.mean, after.deviation)
                })
                .collect();
            let (difference, against, time) = match arm == against {
                true => (String::new(), "", String::new()),
                false => (
                    format!("{:+.4} ± {:.4}", difference.mean, difference.deviation),
                    *against,
                    format!("{:.2} x", time.mean),
                ),
            };
            let bpb = format!("{:.4} ± {:.4}", val_bpb.mean, val_bpb.deviation);
            writeln!(text, "| {arm} | {seeds} | {bpb} | {difference} | {against} | {time} | {} |", losses.join(", "))
                .expect("writing to a string");
        }
        text
    }

    /// A picture: every seed's bits per byte, arm by arm.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn draw(&self, path: &Path, title: &str) -> anyhow::Result<()> {
        let spread = |row: &Row| Spread { name: row.arm.clone(), values: row.each.clone() };
        spreads_svg(path, &self.rows.iter().map(spread).collect::<Vec<_>>(), title, "bits per byte")
    }
}
