//! The one error kind that the command line tells apart: a mistake in what the user gave. Knows of nothing else.

use std::fmt;

/// A mistake in what the user gave (a file, a flag, a value): one line that names the thing and the remedy.
/// The program ends with exit code 2 when an error of this kind is anywhere in the chain, with 1 otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct UserError(pub String);

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Builds an [`anyhow::Error`] that holds a [`UserError`], with `format!` arguments.
#[macro_export]
macro_rules! user_error {
    ($($arg:tt)*) => { anyhow::Error::new($crate::error::UserError(format!($($arg)*))) };
}

/// Returns early with a [`UserError`], with `format!` arguments.
#[macro_export]
macro_rules! user_bail {
    ($($arg:tt)*) => { return Err($crate::user_error!($($arg)*)) };
}

/// Whether the chain of `error` holds a [`UserError`].
pub fn is_user_error(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<UserError>())
}
