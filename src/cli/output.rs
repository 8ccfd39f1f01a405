//! Standard output of the commands: a reader that went away (`| head`) is no failure.

use anyhow::Context;
use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;

/// Writes `bytes` at once; nothing more need be written when this breaks, since nobody reads it.
/// Errors: standard output cannot be written, a full disk for instance.
pub fn stream(bytes: &[u8]) -> anyhow::Result<ControlFlow<()>> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(error).context("standard output cannot be written"),
    }
}

/// Writes a line to standard error, where nobody need read it.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes `bytes`, read or not. Errors: those of [`stream`].
pub fn print(bytes: &[u8]) -> anyhow::Result<()> {
    stream(bytes).map(|_| ())
}
