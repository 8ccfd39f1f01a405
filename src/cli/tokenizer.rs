//! `tokenizer`: trains a tokenizer, encodes and decodes with one, and says what one is.

use super::output::print;
use crate::tokenizer::{Codec, Pattern, Tokenizer, TrainError, TrainReport, TrainSpec, train};
use crate::{data, user_bail, user_error};
use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

/// Train a tokenizer, encode and decode text, or show what a tokenizer is.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  nanochat-gpu tokenizer train --data books/*.txt --vocab-size 4096 --out tok\n  nanochat-gpu tokenizer encode --tokenizer tok 'Hello, world'"
)]
pub struct TokenizerCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Train a byte-pair vocabulary on text and write its tokenizer.json
    #[command(after_help = "Example:\n  nanochat-gpu tokenizer train --data books/*.txt --vocab-size 4096 --out tok")]
    Train(TrainArgs),
    /// Print the token ids of a text (an argument, a file, or standard input)
    #[command(after_help = "Example:\n  nanochat-gpu tokenizer encode --tokenizer tok 'Hello, world'")]
    Encode(EncodeArgs),
    /// Print the text of token ids (arguments or standard input, separated by spaces or commas)
    #[command(after_help = "Example:\n  nanochat-gpu tokenizer decode --tokenizer tok 72,101,108,108,111")]
    Decode(DecodeArgs),
    /// Show a tokenizer's size, special tokens, split pattern and digest
    #[command(after_help = "Example:\n  nanochat-gpu tokenizer info --tokenizer tok --json")]
    Info(InfoArgs),
}

#[derive(Debug, Args)]
struct TrainArgs {
    /// Text to train on: files, folders, globs or built-in data; may be given several times
    #[arg(long, required = true, num_args = 1.., value_name = "SPEC")]
    data: Vec<String>,
    /// Number of tokens in all: 256 bytes, merges and special tokens
    #[arg(long, default_value_t = 32_768, value_name = "N")]
    vocab_size: usize,
    /// Folder for tokenizer.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Make every digit a piece of its own instead of groups of up to three
    #[arg(long)]
    single_digits: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct EncodeArgs {
    /// Folder with a tokenizer.json, or such a file
    #[arg(long, value_name = "DIR")]
    tokenizer: PathBuf,
    /// The text; standard input when neither this nor --file is given
    text: Option<String>,
    /// Read the text from a file, which may hold any bytes
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Recognise the texts of special tokens
    #[arg(long)]
    special: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DecodeArgs {
    /// Folder with a tokenizer.json, or such a file
    #[arg(long, value_name = "DIR")]
    tokenizer: PathBuf,
    /// The ids; standard input when there are none
    ids: Vec<String>,
    /// Print one JSON object; bytes that are not UTF-8 are replaced in it
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct InfoArgs {
    /// Folder with a tokenizer.json, or such a file
    #[arg(long, value_name = "DIR")]
    tokenizer: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(command: TokenizerCommand) -> anyhow::Result<()> {
    match command.action {
        Action::Train(args) => run_train(&args),
        Action::Encode(args) => run_encode(&args),
        Action::Decode(args) => run_decode(&args),
        Action::Info(args) => run_info(&args),
    }
}

fn run_train(args: &TrainArgs) -> anyhow::Result<()> {
    let pattern = if args.single_digits { Pattern::Gpt4SingleDigit } else { Pattern::Gpt4 };
    let spec = TrainSpec { pattern, ..TrainSpec::new(args.vocab_size) };
    let began = Instant::now();
    let (tokenizer, report) = train_on(&args.data, &spec)?;
    let path = tokenizer.save(&args.out)?;
    let seconds = began.elapsed().as_secs_f64();
    if args.json {
        let mut object = serde_json::to_value(&report)?;
        object["seconds"] = json!(seconds);
        object["digest"] = json!(tokenizer.digest());
        object["path"] = json!(path);
        return print(format!("{object}\n").as_bytes());
    }
    let mut text = format!(
        "{} tokens from {} documents, {} bytes, {} different pieces, in {seconds:.1} s: {}\n",
        report.vocab_size,
        report.documents,
        report.bytes,
        report.distinct_pieces,
        path.display()
    );
    if report.ran_out_of_pairs() {
        text += &format!(
            "The text ran out of pairs to merge: {} tokens instead of {}. More text would fill the vocabulary.\n",
            report.vocab_size, report.requested_vocab_size
        );
    }
    print(text.as_bytes())
}

/// Trains a tokenizer on the text of `sources`, document by document, so that the text need not fit in memory.
///
/// # Errors
/// What is wrong with the sources, no text in them, or a vocabulary that is too small.
pub fn train_on(sources: &[String], spec: &TrainSpec) -> anyhow::Result<(Tokenizer, TrainReport)> {
    let mut failure = None;
    let documents = data::open_documents(sources)?;
    // The trainer wants plain documents: the first failure ends them and is reported in place of the result.
    let documents = documents.map_while(|document| document.map_err(|error| failure = Some(error)).ok());
    let trained = train(documents, spec);
    if let Some(error) = failure {
        return Err(error);
    }
    let names = sources.join(", ");
    trained.map_err(|error| match error {
        TrainError::VocabularyTooSmall { minimum, .. } => {
            user_error!("cannot train a tokenizer on {names}: {error}; give --vocab-size {minimum} or more")
        }
        other => user_error!("cannot train a tokenizer on {names}: {other}"),
    })
}

fn run_encode(args: &EncodeArgs) -> anyhow::Result<()> {
    let tokenizer = Tokenizer::load(&args.tokenizer)?;
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(file)) => {
            std::fs::read(file).map_err(|error| user_error!("{}: cannot be read: {error}", file.display()))?
        }
        (None, None) => standard_input()?,
    };
    let mut ids = Vec::new();
    if args.special {
        tokenizer.encode_with_special(&text, &mut ids);
    } else {
        tokenizer.encode_into(&text, &mut ids);
    }
    if args.json {
        return print(format!("{}\n", json!({"ids": ids, "tokens": ids.len(), "bytes": text.len()})).as_bytes());
    }
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    print(format!("{}\n", ids.join(" ")).as_bytes())
}

fn run_decode(args: &DecodeArgs) -> anyhow::Result<()> {
    let tokenizer = Tokenizer::load(&args.tokenizer)?;
    let text = match args.ids.as_slice() {
        [] => String::from_utf8_lossy(&standard_input()?).into_owned(),
        ids => ids.join(" "),
    };
    let mut ids = Vec::new();
    for word in text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty()) {
        match word.parse::<u32>() {
            Ok(id) if tokenizer.token_bytes(id).is_some() => ids.push(id),
            Ok(id) => user_bail!("{id} is not a token: the vocabulary has {}", tokenizer.vocab_size()),
            Err(_) => user_bail!("{word:?} is not a token id: give numbers separated by spaces or commas"),
        }
    }
    let bytes = tokenizer.decode(&ids);
    if args.json {
        let object = json!({"text": String::from_utf8_lossy(&bytes), "tokens": ids.len(), "bytes": bytes.len()});
        return print(format!("{object}\n").as_bytes());
    }
    print(&bytes)
}

fn run_info(args: &InfoArgs) -> anyhow::Result<()> {
    let tokenizer = Tokenizer::load(&args.tokenizer)?;
    let longest = tokenizer.ordinary_tokens().map(|(bytes, _)| bytes.len()).max().unwrap_or(0);
    if args.json {
        let specials: Vec<_> = tokenizer.specials().iter().map(|(text, id)| json!({"text": text, "id": id})).collect();
        let object = json!({
            "vocab_size": tokenizer.vocab_size(),
            "merges": tokenizer.merges().len(),
            "longest_token_bytes": longest,
            "pattern": tokenizer.pattern().name(),
            "regex": tokenizer.pattern().regex(),
            "specials": specials,
            "digest": tokenizer.digest(),
        });
        return print(format!("{object}\n").as_bytes());
    }
    let mut text = format!(
        "vocabulary  {} tokens: {} merges, {} special; the longest has {longest} bytes\npattern     {}: {}\ndigest      {}\n",
        tokenizer.vocab_size(),
        tokenizer.merges().len(),
        tokenizer.specials().len(),
        tokenizer.pattern().name(),
        tokenizer.pattern().regex(),
        tokenizer.digest(),
    );
    for (name, id) in tokenizer.specials() {
        text += &format!("special     {id:>7} {name}\n");
    }
    print(text.as_bytes())
}

fn standard_input() -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).context("standard input cannot be read")?;
    Ok(bytes)
}
