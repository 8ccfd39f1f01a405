//! The command line: runs a launch file, lists the forms of PTX files.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use ptxsim::error::Error;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ptxsim: {error:#}");
            // A kernel that traps has failed; all else is what the user gave.
            let failed = matches!(error.downcast_ref::<Error>(), Some(Error::Execution { .. }));
            ExitCode::from(if failed { 1 } else { 2 })
        }
    }
}
