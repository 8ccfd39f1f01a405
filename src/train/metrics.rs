//! `metrics.jsonl`, a line per step, and the curve drawn from it.

use crate::formats::checkpoint::replace_file;
use crate::train::plot::{Series, loss_svg};
use anyhow::Context;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file of a run.
pub struct Metrics {
    run: PathBuf,
    file: std::fs::File,
    curves: Curves,
}

/// Of each loss by the name of its key (`loss.concept`; the total is `loss`): training, and held out.
type Curves = BTreeMap<String, [Vec<(f64, f64)>; 2]>;

/// Takes a line into the curves.
fn extend(curves: &mut Curves, record: &Map<String, Value>) {
    let Some(at) = record.get("step").and_then(Value::as_f64) else { return };
    for (key, value) in record {
        let (name, held_out) = match key.strip_prefix("val_") {
            Some(name) => (name, 1),
            None => (&key[..], 0),
        };
        if let Some(loss) = value.as_f64().filter(|_| name == "loss" || name.starts_with("loss.")) {
            curves.entry(name.to_string()).or_default()[held_out].push((at, loss));
        }
    }
}

/// What one step is described by; absent values are left out of the line.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct StepRecord {
    /// From 1: the number of steps done.
    pub step: u64,
    /// Training tokens so far.
    pub tokens: u64,
    /// All losses, each by its weight.
    pub loss: f64,
    /// Each loss by itself, not weighted: `loss.lm`, ...
    #[serde(flatten)]
    pub loss_parts: BTreeMap<String, f64>,
    /// Factor of the schedule times all scales.
    pub lr: f64,
    pub grad_norm: f64,
    pub tokens_per_second: f64,
    pub gflops_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_bpb: Option<f64>,
    /// Each loss but the language model's on held-out data: `val_loss.concept`, ..., and what else parts report: `val_latent.accuracy`, ...
    #[serde(flatten)]
    pub val_parts: BTreeMap<String, f64>,
    /// Norm of the gradient of each loss but the language model's at the trunk, over that one's: `grad_share.concept`, ...
    #[serde(flatten)]
    pub grad_shares: BTreeMap<String, f64>,
    /// The generation of memes that followed the step: `memetic.replaced`, ...
    #[serde(flatten)]
    pub memetic: BTreeMap<String, f64>,
    /// Why the update was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

impl Metrics {
    /// Opens the metrics of `run`, dropping lines after `step` (from before a roll-back or a kill).
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn open(run: &Path, step: u64) -> anyhow::Result<Metrics> {
        let path = run.join("metrics.jsonl");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let (mut curves, mut kept) = (Curves::new(), String::new());
        for line in text.lines() {
            let Ok(record) = serde_json::from_str::<Map<String, Value>>(line) else { continue };
            let at = record.get("step").and_then(Value::as_f64).unwrap_or(f64::MAX);
            if at > step as f64 {
                continue;
            }
            extend(&mut curves, &record);
            kept += line;
            kept.push('\n');
        }
        replace_file(&path, kept.as_bytes())?;
        let file = std::fs::OpenOptions::new().append(true).open(&path).context("opening metrics.jsonl")?;
        Ok(Metrics { run: run.to_path_buf(), file, curves })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn append(&mut self, record: &StepRecord) -> anyhow::Result<()> {
        let line = serde_json::to_string(record)? + "\n";
        self.file.write_all(line.as_bytes()).context("writing metrics.jsonl")?;
        extend(&mut self.curves, &serde_json::from_str(&line)?);
        Ok(())
    }

    /// Redraws `loss.svg`, and a plot of each loss beyond the language model's: `loss.concept.svg`, ...
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn draw(&self) -> anyhow::Result<()> {
        let run = self.run.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        for (name, [train, validation]) in self.curves.iter().filter(|(name, _)| *name != "loss.lm") {
            let series = [
                Series { name: "training".into(), points: train.clone() },
                Series { name: "validation".into(), points: validation.clone() },
            ];
            let title = if name == "loss" { run.clone() } else { format!("{run}: {name}") };
            loss_svg(&self.run.join(format!("{name}.svg")), &series, &title)?;
        }
        Ok(())
    }
}
