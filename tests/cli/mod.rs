//! The command line through the real binary: what it refuses and how, what survives kills, signals and full disks.

mod ablate;
mod chat;
mod checkpoints;
mod formats;
mod inputs;
mod parts;
mod runs;
mod surface;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The smallest run; flags and further `--set` win over these.
const TINY: &str = "train --set model.layers=1 --set model.width=32 --set train.steps=3 --set train.seq_len=16 \
                    --set train.rows=2 --set train.threads=1 --set train.eval_tokens=64 --set data.vocab_size=300 \
                    --set data.sources=['synthetic:addition']";

/// [`TINY`] with a tokenizer of its data, so that not every run trains one.
fn tiny() -> &'static str {
    static LINE: OnceLock<(TempDir, String)> = OnceLock::new();
    let (_, line) = LINE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        succeed(folder.path(), "tokenizer train --data synthetic:addition --vocab-size 300 --out tok");
        let line = format!("{TINY} --set data.tokenizer={}", folder.path().join("tok").display());
        (folder, line)
    });
    line
}

/// How a process ended and what it said.
struct Ended {
    /// None after a signal.
    code: Option<i32>,
    out: String,
    err: String,
}

/// A command of the binary, run in `folder`; words are separated by spaces.
fn program(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nanochat-gpu"));
    command.current_dir(folder).args(line.split_whitespace()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn finish(mut command: Command) -> Ended {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn run(folder: &Path, line: &str) -> Ended {
    finish(program(folder, line))
}

/// Runs a line that must succeed; its standard output.
pub fn succeed(folder: &Path, line: &str) -> String {
    let Ended { code, out, err } = run(folder, line);
    assert_eq!(code, Some(0), "{line}\n{out}{err}");
    out
}

/// The last line of standard output as one JSON object.
pub fn last_object(out: &str) -> Value {
    let value: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert!(value.is_object(), "{out}");
    value
}

/// Runs a line that must be refused: exit code 2, one line that holds all of `parts`.
pub fn refused(folder: &Path, line: &str, parts: &[&str]) {
    assert_refused(line, &run(folder, line), parts);
}

fn assert_refused(line: &str, ended: &Ended, parts: &[&str]) {
    let Ended { code, out, err } = ended;
    assert_eq!((*code, err.lines().count()), (Some(2), 1), "{line}\nstdout: {out}\nstderr: {err}");
    for part in parts {
        assert!(err.contains(part), "{line}\nlacks {part:?}: {err}");
    }
}

/// As [`refused`], for [`tiny`] with `more`; the folder `out` must not come to be.
fn training_refused(folder: &Path, more: &str, parts: &[&str]) {
    refused(folder, &format!("{} --out out {more}", tiny()), parts);
    assert!(!folder.join("out").exists(), "{more}: something was written");
}

pub fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    path
}

pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Names in a folder, hidden ones too, sorted.
fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = std::fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// Makes `checksums` of a checkpoint fit its files again after one was changed.
fn reseal(checkpoint: &Path) {
    let files = names(checkpoint).into_iter().filter(|name| name != "checksums");
    let line = |name: String| format!("{}  {name}\n", blake3::hash(&std::fs::read(checkpoint.join(&name)).unwrap()));
    std::fs::write(checkpoint.join("checksums"), files.map(line).collect::<String>()).unwrap();
}

/// A finished run of 4 steps with checkpoints after 2 and 4; the folder `run` in it must not be changed.
fn finished() -> &'static Path {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    let folder = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        succeed(folder.path(), &format!("{} --steps 4 --set train.save_every=2 --out run", tiny()));
        folder
    });
    folder.path()
}

/// A copy of [`finished`] that may be changed.
fn finished_copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(finished(), folder.path());
    folder
}

/// Waits until `done`, a minute at most.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
