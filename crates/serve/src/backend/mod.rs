//! What a model format must provide to be served.

use std::sync::Arc;

use trustformers_batching::{BatchError, Model, ModelError};

pub mod builtin;
pub mod checkpoint;
pub mod delay;
pub mod encoder;
pub mod lengths;
pub mod llm;
pub mod torchscript;

pub use self::encoder::TextTokenizer;
pub use self::lengths::Lengths;
use crate::tensor::{HostTensor, TensorSpec};
use crate::torch::gauge::is_out_of_memory;

/// What a request brings to a model, checked against its [`Signature`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// One tensor a declared input, in the order of declaration.
    Tensors(Vec<HostTensor>),
    /// Token ids of one text, special tokens included, already truncated.
    Tokens(Vec<u32>),
}

/// One tensor a declared output, in the order of declaration.
pub type Output = Vec<HostTensor>;

/// One instance of a model of any format.
pub type DynModel = Box<dyn Model<Input = Input, Output = Output>>;

/// What a model reads and writes.
#[derive(Debug, Clone)]
pub enum Signature {
    /// Tensors in, tensors out.
    Tensors {
        /// Inputs of one item.
        inputs: Vec<TensorSpec>,
        /// Outputs of one item.
        outputs: Vec<TensorSpec>,
        /// Where items of different lengths share a batch.
        lengths: Option<Lengths>,
    },
    /// A text in, one embedding out (`f32`, one dimension).
    Text {
        /// Turns texts into token ids.
        tokenizer: Arc<TextTokenizer>,
        /// Length of the embedding.
        dimensions: usize,
    },
}

impl Signature {
    /// Where items of different lengths share a batch by padding; `None` where nothing is padded.
    pub fn lengths(&self) -> Option<&Lengths> {
        match self {
            Signature::Tensors { lengths, .. } => lengths.as_ref(),
            Signature::Text { .. } => None,
        }
    }
}

/// A model that is ready to run.
pub struct Loaded {
    /// What it reads and writes.
    pub signature: Signature,
    /// One an instance, warmed up.
    pub instances: Vec<DynModel>,
}

/// A batch's failure from LibTorch's words: where memory was wanting, smaller batches may succeed.
fn batch_error(reason: &str) -> BatchError {
    if is_out_of_memory(reason) {
        // tch adds a trace of the stack below.
        let line = reason.lines().find(|line| is_out_of_memory(line)).unwrap_or(reason);
        return BatchError::OutOfMemory(ModelError(line.trim().to_owned()));
    }
    BatchError::Failed(ModelError(reason.to_owned()))
}
