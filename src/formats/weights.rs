//! Where the parameters of a model come from, tensors by Hugging Face's names whatever the file; and what a model is written with.

use super::text_rules::TextRules;
use crate::model::Gpt;
use crate::tensor::{BlockType, Params, Shape};
use crate::tokenizer::Tokenizer;

/// Tensors by Hugging Face's names.
pub trait Weights {
    /// All names; what a file holds beyond Hugging Face's is under its name in the file.
    fn names(&self) -> Vec<String>;

    /// Extents of a tensor.
    ///
    /// # Errors
    /// A missing tensor.
    fn shape(&self, name: &str) -> anyhow::Result<Vec<usize>>;

    /// Shape and elements of a floating-point tensor, widened to f32.
    ///
    /// # Errors
    /// A missing tensor, or a type that is no floating point.
    fn floats(&self, name: &str) -> anyhow::Result<(Shape, Vec<f32>)>;
}

/// A model to be written, with what belongs to it.
#[derive(Clone, Copy)]
pub struct Export<'a> {
    pub model: &'a Gpt,
    pub params: &'a Params,
    pub tokenizer: Option<&'a Tokenizer>,
    pub text: &'a TextRules,
    /// The type of its matrices.
    pub kind: BlockType,
}
