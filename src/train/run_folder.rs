//! The run folder: one trainer at a time, the configuration, metrics, and checkpoints with a keep policy.

use super::config::RunConfig;
use crate::formats::checkpoint::{self, replace_file};
use crate::{user_bail, user_error};
use std::fs::File;
use std::path::{Path, PathBuf};

/// An open run folder; the lock ends with it.
pub struct RunFolder {
    path: PathBuf,
    _lock: File,
}

impl RunFolder {
    /// Makes a new run folder.
    ///
    /// # Errors
    /// A folder that already holds a run, or that another trainer has locked.
    pub fn create(path: &Path, config: &RunConfig) -> anyhow::Result<RunFolder> {
        if path.join("config.toml").exists() {
            user_bail!("{} already holds a run; go on with it by --resume, or choose another --out", path.display());
        }
        std::fs::create_dir_all(path.join("checkpoints"))
            .map_err(|e| user_error!("cannot make the folder {}: {e}", path.display()))?;
        let folder = RunFolder::lock(path)?;
        replace_file(&path.join("config.toml"), config.to_toml().as_bytes())?;
        Ok(folder)
    }

    /// Opens an existing run folder and reads its configuration.
    ///
    /// # Errors
    /// A folder without a run, or that another trainer has locked.
    pub fn open(path: &Path) -> anyhow::Result<(RunFolder, RunConfig)> {
        let file = path.join("config.toml");
        let text = std::fs::read_to_string(&file).map_err(|e| {
            user_error!("cannot read {}: {e}; --resume needs --out with an existing run", file.display())
        })?;
        let config = RunConfig::from_toml(&text, &file.display().to_string())?;
        let folder = RunFolder::lock(path)?;
        checkpoint::remove_unfinished(&path.join("checkpoints"));
        Ok((folder, config))
    }

    /// Whether there is no checkpoint yet.
    pub fn is_fresh(&self) -> bool {
        checkpoint::list(&self.path.join("checkpoints")).is_empty()
    }

    fn lock(path: &Path) -> anyhow::Result<RunFolder> {
        let file = path.join("lock");
        let lock = File::create(&file).map_err(|e| user_error!("cannot make {}: {e}", file.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(RunFolder { path: path.to_path_buf(), _lock: lock }),
            Err(_) => user_bail!("another trainer works in {}; wait for it or choose another --out", path.display()),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the checkpoint of `step` lies.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.path.join("checkpoints").join(format!("step_{step:06}"))
    }

    /// The checkpoint `back` before the newest.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn nth_newest(&self, back: usize) -> anyhow::Result<PathBuf> {
        let all = checkpoint::list(&self.path.join("checkpoints"));
        match all.len().checked_sub(back + 1) {
            Some(i) => Ok(all[i].1.clone()),
            None => user_bail!(
                "{} holds {} checkpoints, too few for --resume={}",
                self.path.display(),
                all.len(),
                -(back as i64)
            ),
        }
    }

    /// Removes all but the `keep` newest checkpoints, and all after `step` (left from before a roll-back).
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn prune(&self, keep: usize, step: u64) -> anyhow::Result<()> {
        let all = checkpoint::list(&self.path.join("checkpoints"));
        let (past, future): (Vec<_>, Vec<_>) = all.into_iter().partition(|(s, _)| *s <= step);
        let old = past.len().saturating_sub(keep);
        for (_, path) in future.into_iter().chain(past.into_iter().take(old)) {
            std::fs::remove_dir_all(path)?;
        }
        Ok(())
    }
}
