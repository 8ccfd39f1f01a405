//! Parses `--data SPEC[@weight]` into files by kind, or a built-in task. Reads folder listings, never file contents.

use super::synthetic::Task;
use crate::{user_bail, user_error};
use std::path::{Path, PathBuf};

/// Folders deeper than this are taken for a loop of links.
const FOLDER_DEPTH_MAX: usize = 32;

/// The kinds of files that can be read, told apart by their extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// `.txt`: the file is a document.
    Text,
    /// `.jsonl`: a document per line, key `text` or `messages`.
    JsonLines,
    /// `.parquet`: a document per row, column `text`.
    Parquet,
    /// `.bin`: token shards, ours or llm.c's.
    Shards,
}

impl FileKind {
    /// All kinds, in the order in which a mixed folder is read.
    pub const ALL: [FileKind; 4] = [FileKind::Text, FileKind::JsonLines, FileKind::Parquet, FileKind::Shards];

    fn of(path: &Path) -> Option<FileKind> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "txt" => Some(FileKind::Text),
            "jsonl" => Some(FileKind::JsonLines),
            "parquet" => Some(FileKind::Parquet),
            "bin" => Some(FileKind::Shards),
            _ => None,
        }
    }
}

/// What a SPEC names.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// Files of known kinds, sorted by path; never empty.
    Files(Vec<(FileKind, PathBuf)>),
    /// A built-in generator.
    Synthetic(Task),
}

/// One `--data SPEC[@weight]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// The SPEC as given, without the weight.
    pub name: String,
    /// Share of the tokens, relative to the other specs; positive and finite.
    pub weight: f64,
    /// What it names.
    pub origin: Origin,
}

impl Spec {
    /// Parses `text`. A path that exists is taken as it is, even with an `@` in it; otherwise what follows the last `@`
    /// is the weight (1 when there is none).
    /// Errors: a user error for a bad weight, an unknown task, a missing file, an unknown extension, or a folder or
    /// pattern with nothing usable in it.
    pub fn parse(text: &str) -> anyhow::Result<Spec> {
        let (name, weight) = match text.rsplit_once('@') {
            Some((name, weight)) if !Path::new(text).exists() => (name, parse_weight(text, weight)?),
            _ => (text, 1.0),
        };
        if name.is_empty() {
            user_bail!("empty data specification '{text}'; give a file, a folder, a pattern or 'synthetic'");
        }
        let origin = match name.split_once(':') {
            _ if name == "synthetic" => Origin::Synthetic(Task::Mixture),
            Some(("synthetic", task)) => Origin::Synthetic(Task::parse(task)?),
            _ => Origin::Files(find_files(name)?),
        };
        Ok(Spec { name: name.to_owned(), weight, origin })
    }

    /// Parses every spec. Errors: as [`Spec::parse`]; a user error when there is none.
    pub fn parse_all(texts: &[String]) -> anyhow::Result<Vec<Spec>> {
        if texts.is_empty() {
            user_bail!("no data given; use --data with files, a folder or 'synthetic'");
        }
        texts.iter().map(|text| Spec::parse(text)).collect()
    }

    /// The files of one kind, in order.
    pub fn files(&self, kind: FileKind) -> Vec<PathBuf> {
        match &self.origin {
            Origin::Files(files) => files.iter().filter(|(k, _)| *k == kind).map(|(_, path)| path.clone()).collect(),
            Origin::Synthetic(_) => Vec::new(),
        }
    }
}

fn parse_weight(text: &str, weight: &str) -> anyhow::Result<f64> {
    let value: f64 = weight.trim().parse().map_err(|_| {
        user_error!(
            "'{weight}' in '{text}' is neither a weight nor part of a file name; write for example data.txt@0.5"
        )
    })?;
    if !(value.is_finite() && value > 0.0) {
        user_bail!("the weight {weight} in '{text}' must be positive and finite; leave the data out to give it none");
    }
    Ok(value)
}

fn find_files(name: &str) -> anyhow::Result<Vec<(FileKind, PathBuf)>> {
    let path = Path::new(name);
    let mut files = Vec::new();
    if path.is_dir() {
        collect_folder(path, 0, &mut files)?;
        if files.is_empty() {
            user_bail!("the folder {name} holds no .txt, .jsonl, .parquet or .bin file; name another one");
        }
    } else if path.exists() {
        let Some(kind) = FileKind::of(path) else {
            user_bail!("{name} is of no known kind; data files end in .txt, .jsonl, .parquet or .bin");
        };
        files.push((kind, path.to_owned()));
    } else if name.contains(['*', '?', '[']) {
        let visible = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
        let found =
            glob::glob_with(name, visible).map_err(|error| user_error!("'{name}' is not a valid pattern: {error}"))?;
        for entry in found {
            let entry = entry.map_err(|error| user_error!("cannot read the folder behind '{name}': {error}"))?;
            match FileKind::of(&entry) {
                _ if entry.is_dir() => collect_folder(&entry, 0, &mut files)?,
                Some(kind) => files.push((kind, entry)),
                None => {}
            }
        }
        if files.is_empty() {
            user_bail!("no .txt, .jsonl, .parquet or .bin file matches '{name}'; check the pattern");
        }
    } else {
        user_bail!("no such file or folder: {name}; check --data, or use 'synthetic' for built-in data");
    }
    files.sort_by(|a, b| a.1.cmp(&b.1));
    files.dedup();
    Ok(files)
}

/// Adds the usable files below `folder`; hidden entries and unknown extensions are ignored.
fn collect_folder(folder: &Path, depth: usize, files: &mut Vec<(FileKind, PathBuf)>) -> anyhow::Result<()> {
    if depth > FOLDER_DEPTH_MAX {
        user_bail!("{} is nested too deeply (a loop of links?); name the inner folder", folder.display());
    }
    let unreadable = |error| user_error!("cannot read the folder {}: {error}", folder.display());
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        if path.is_dir() {
            collect_folder(&path, depth + 1, files)?;
        } else if let Some(kind) = FileKind::of(&path) {
            files.push((kind, path));
        }
    }
    Ok(())
}
