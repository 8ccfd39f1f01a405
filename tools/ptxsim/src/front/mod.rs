//! The front end: PTX text to tokens to a syntax tree whose names are resolved.

pub mod lexer;
pub mod ast;
pub mod parser;
mod function;
