//! `metrics.jsonl`, a line per step, and the curve drawn from it.

use crate::formats::checkpoint::replace_file;
use crate::train::plot::{Series, loss_svg};
use anyhow::Context;
use serde_json::{Map, Value};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file of a run.
pub struct Metrics {
    run: PathBuf,
    file: std::fs::File,
    train: Vec<(f64, f64)>,
    validation: Vec<(f64, f64)>,
}

/// What one step is described by; absent values are left out of the line.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct StepRecord {
    /// From 1: the number of steps done.
    pub step: u64,
    /// Training tokens so far.
    pub tokens: u64,
    pub loss: f64,
    #[serde(rename = "loss.lm")]
    pub loss_lm: f64,
    /// Factor of the schedule times all scales.
    pub lr: f64,
    pub grad_norm: f64,
    pub tokens_per_second: f64,
    pub gflops_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_bpb: Option<f64>,
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
        let (mut train, mut validation, mut kept) = (Vec::new(), Vec::new(), String::new());
        for line in text.lines() {
            let Ok(record) = serde_json::from_str::<Map<String, Value>>(line) else { continue };
            let at = record.get("step").and_then(Value::as_f64).unwrap_or(f64::MAX);
            if at > step as f64 {
                continue;
            }
            train.extend(record.get("loss").and_then(Value::as_f64).map(|loss| (at, loss)));
            validation.extend(record.get("val_loss").and_then(Value::as_f64).map(|loss| (at, loss)));
            kept += line;
            kept.push('\n');
        }
        replace_file(&path, kept.as_bytes())?;
        let file = std::fs::OpenOptions::new().append(true).open(&path).context("opening metrics.jsonl")?;
        Ok(Metrics { run: run.to_path_buf(), file, train, validation })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn append(&mut self, record: &StepRecord) -> anyhow::Result<()> {
        let line = serde_json::to_string(record)? + "\n";
        self.file.write_all(line.as_bytes()).context("writing metrics.jsonl")?;
        self.train.push((record.step as f64, record.loss));
        self.validation.extend(record.val_loss.map(|loss| (record.step as f64, loss)));
        Ok(())
    }

    /// Redraws `loss.svg`.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn draw(&self) -> anyhow::Result<()> {
        let series = [
            Series { name: "training".into(), points: self.train.clone() },
            Series { name: "validation".into(), points: self.validation.clone() },
        ];
        let title = self.run.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        loss_svg(&self.run.join("loss.svg"), &series, &title)
    }
}
