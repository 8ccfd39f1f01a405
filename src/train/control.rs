//! Live changes: `control.toml` in the run folder, read between steps.
//!
//! What was applied is part of every checkpoint, so a resumed run repeats it bit for bit; what is asked for once
//! (evaluate, save, stop) is set back to false when it was done.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What `control.toml` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// Multiplies every learning rate, on top of `train.lr_scale`.
    pub lr_scale: f64,
    /// Evaluate once, now.
    pub evaluate: bool,
    /// Save once, now.
    pub save: bool,
    /// Save and end.
    pub stop: bool,
    pub loss: ControlLosses,
}

/// Loss weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlLosses {
    pub lm: ControlLoss,
}

/// One loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlLoss {
    pub weight: f64,
}

impl Default for Control {
    fn default() -> Control {
        Control::new(1.0)
    }
}

impl Control {
    /// Nothing changed, with the configured weight of the language-model loss.
    pub fn new(lm_weight: f64) -> Control {
        let loss = ControlLosses { lm: ControlLoss { weight: lm_weight } };
        Control { lr_scale: 1.0, evaluate: false, save: false, stop: false, loss }
    }

    fn check(&self) -> Result<(), String> {
        for (key, value) in [("lr_scale", self.lr_scale), ("loss.lm.weight", self.loss.lm.weight)] {
            if !(0.0..=1e6).contains(&value) {
                return Err(format!("{key} = {value} must lie between 0 and 1e6"));
            }
        }
        Ok(())
    }
}

/// The file and when it was last read.
pub struct ControlFile {
    path: PathBuf,
    seen: Option<SystemTime>,
}

impl ControlFile {
    /// Writes `control` as the file in `run`.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn create(run: &Path, control: &Control) -> anyhow::Result<ControlFile> {
        let mut file = ControlFile { path: run.join("control.toml"), seen: None };
        file.write(control)?;
        Ok(file)
    }

    /// The new content if the file was changed since it was last read or written, or what is wrong with it.
    pub fn poll(&mut self) -> Option<Result<Control, String>> {
        let modified = std::fs::metadata(&self.path).and_then(|m| m.modified()).ok()?;
        if self.seen == Some(modified) {
            return None;
        }
        self.seen = Some(modified);
        let text = std::fs::read_to_string(&self.path).ok()?;
        let parsed = toml::from_str::<Control>(&text).map_err(|e| e.message().to_string());
        Some(parsed.and_then(|control| control.check().map(|()| control)))
    }

    /// Writes `control`, so that the file says what is applied.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn write(&mut self, control: &Control) -> anyhow::Result<()> {
        let text = toml::to_string(control).expect("plain values");
        let text = format!("# Edit while training runs: applied before the next step.\n{text}");
        crate::formats::checkpoint::replace_file(&self.path, text.as_bytes())?;
        self.seen = std::fs::metadata(&self.path).and_then(|m| m.modified()).ok();
        Ok(())
    }
}
