//! The program: parses the command line, runs the command, and turns errors into one line and an exit code.

use nanochat_gpu::cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
