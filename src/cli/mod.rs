//! The commands, one file each. Only here does the library print.

pub mod ablate;
pub mod bench;
pub mod chat;
pub mod completions;
pub mod concepts;
pub mod data;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod import;
pub mod logits;
pub mod output;
pub mod sample;
pub mod tokenizer;
pub mod train;

use crate::error::is_user_error;
use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Train, evaluate and sample GPT models on a tensor runtime written from scratch.
#[derive(Debug, Parser)]
#[command(
    name = "nanochat-gpu",
    version,
    long_version = concat!(env!("CARGO_PKG_VERSION"), ", commit ", env!("NANOCHAT_COMMIT")),
    after_help = "Example:\n  nanochat-gpu train\n\nExit codes: 0 done, 1 failed, 2 the input was wrong, 130 interrupted with the state saved."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(Box<train::TrainCommand>),
    Sample(sample::SampleCommand),
    Chat(Box<chat::ChatCommand>),
    Eval(eval::EvalCommand),
    Ablate(ablate::AblateCommand),
    Logits(logits::LogitsCommand),
    Concepts(concepts::ConceptsCommand),
    Tokenizer(tokenizer::TokenizerCommand),
    Data(data::DataCommand),
    Import(import::ImportCommand),
    Export(export::ExportCommand),
    Doctor(doctor::DoctorCommand),
    Bench(bench::BenchCommand),
    /// Print shell completions
    #[command(after_help = "Example:\n  nanochat-gpu completions bash > /etc/bash_completion.d/nanochat-gpu")]
    Completions {
        shell: clap_complete::Shell,
    },
}

/// Runs the program and says how it ended.
pub fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("NANOCHAT_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return refuse(&error),
    };
    let result = match command {
        Command::Train(command) => train::run(*command),
        Command::Sample(command) => sample::run(command).map(|()| 0),
        Command::Chat(command) => chat::run(*command),
        Command::Eval(command) => eval::run(command).map(|()| 0),
        Command::Ablate(command) => ablate::run(command),
        Command::Logits(command) => logits::run(command).map(|()| 0),
        Command::Concepts(command) => concepts::run(command).map(|()| 0),
        Command::Tokenizer(command) => tokenizer::run(command).map(|()| 0),
        Command::Data(command) => data::run(command).map(|()| 0),
        Command::Import(command) => import::run(command).map(|()| 0),
        Command::Export(command) => export::run(command).map(|()| 0),
        Command::Doctor(command) => doctor::run(command).map(|()| 0),
        Command::Bench(command) => bench::run(command).map(|()| 0),
        Command::Completions { shell } => completions::run(shell, Cli::command()).map(|()| 0),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::note(&format!("nanochat-gpu: {}", one_line(&format!("{error:#}"))));
            ExitCode::from(if is_user_error(&error) { 2 } else { 1 })
        }
    }
}

/// Prints help and versions as they are, and of mistakes what is wrong and the tip, in one line.
fn refuse(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !error.use_stderr() || error.kind() == DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print(); // to a reader that may have gone away
        return ExitCode::from(error.exit_code() as u8);
    }
    let text = error.to_string();
    let end = text.find("Usage:").or(text.find("For more information")).unwrap_or(text.len());
    let message = one_line(text[..end].trim_start_matches("error: "));
    output::note(&format!("nanochat-gpu: {message}; --help shows what can be given"));
    ExitCode::from(2)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
