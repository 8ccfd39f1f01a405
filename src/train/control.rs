//! Live changes: `control.toml` in the run folder, read between steps.
//!
//! What was applied is part of every checkpoint, so a resumed run repeats it bit for bit; what is asked for once
//! (evaluate, save, stop) is set back to false when it was done.

use super::config::LossConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use toml::Table;

/// What `control.toml` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// Multiplies every learning rate, on top of `train.lr_scale`.
    pub lr_scale: f64,
    /// Evaluate once, now.
    pub evaluate: bool,
    /// Save once, now.
    pub save: bool,
    /// Save and end.
    pub stop: bool,
    pub loss: LossConfig,
}

impl Control {
    /// Nothing changed, with the configured losses.
    pub fn new(loss: LossConfig) -> Control {
        Control { lr_scale: 1.0, evaluate: false, save: false, stop: false, loss }
    }

    fn check(&self) -> Result<(), String> {
        if !(0.0..=1e6).contains(&self.lr_scale) {
            return Err(format!("lr_scale = {} must lie between 0 and 1e6", self.lr_scale));
        }
        self.loss.complaint().map_or(Ok(()), Err)
    }
}

/// The file and what it last held. Its time would not do: an edit within a tick of the clock would be missed.
pub struct ControlFile {
    path: PathBuf,
    seen: String,
}

impl ControlFile {
    /// Writes `control` as the file in `run`.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn create(run: &Path, control: &Control) -> anyhow::Result<ControlFile> {
        let mut file = ControlFile { path: run.join("control.toml"), seen: String::new() };
        file.write(control)?;
        Ok(file)
    }

    /// The new content if the file was changed since it was last read or written, or what is wrong with it.
    /// A key that it leaves out stays as in `now`: an editor may empty a file before it fills it.
    pub fn poll(&mut self, now: &Control) -> Option<Result<Control, String>> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        if text == self.seen {
            return None;
        }
        let changed = change(now, &text);
        self.seen = text;
        Some(changed)
    }

    /// Writes `control`, so that the file says what is applied.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn write(&mut self, control: &Control) -> anyhow::Result<()> {
        let text = toml::to_string(control).expect("plain values");
        let text = format!("# Edit while training runs: applied before the next step.\n{text}");
        crate::formats::checkpoint::replace_file(&self.path, text.as_bytes())?;
        self.seen = text;
        Ok(())
    }
}

/// `now` with what `text` says, or what is wrong with it.
fn change(now: &Control, text: &str) -> Result<Control, String> {
    let changes = text.parse::<Table>().map_err(|e| e.message().to_string())?;
    let mut merged = Table::try_from(now).expect("plain values");
    super::config::merge(&mut merged, changes);
    let control: Control = merged.try_into().map_err(|e: toml::de::Error| e.message().to_string())?;
    control.check().map(|()| control)
}
