//! `completions`: prints a script that completes the commands and flags in a shell.

use super::output::print;
use clap_complete::{Shell, generate};

/// Prints the script of `shell` for the whole command line `command`. Errors: standard output cannot be written.
pub fn run(shell: Shell, mut command: clap::Command) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    generate(shell, &mut command, name, &mut script);
    print(&script)
}
