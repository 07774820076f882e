//! Tensors in host memory: what a request brings and what its caller gets.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Element types that models may declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names are the documentation
pub enum DType {
    F32,
    F64,
    F16,
    BF16,
    I64,
    I32,
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Bool => 1,
        }
    }

    /// The name in configuration, requests and errors.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::Bool => "bool",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A declared input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Its name in requests and answers.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// The shape of one item, without the batch dimension; -1 where any size is right.
    pub shape: Vec<i64>,
}

impl TensorSpec {
    /// Whether a tensor is what is declared.
    ///
    /// # Errors
    /// What is expected, and what the tensor is.
    pub fn check(&self, tensor: &HostTensor) -> Result<(), String> {
        let fits = self.dtype == tensor.dtype
            && self.shape.len() == tensor.shape.len()
            && self.shape.iter().zip(&tensor.shape).all(|(&declared, &size)| {
                usize::try_from(declared).map_or(true, |declared| declared == size)
            });
        if fits {
            return Ok(());
        }
        let (name, shape, got) = (&self.name, &self.shape, &tensor.shape);
        let (dtype, got_dtype) = (self.dtype, tensor.dtype);
        Err(format!("input \"{name}\" takes {dtype} of shape {shape:?}, got {got_dtype} of shape {got:?}"))
    }
}

/// A tensor of one item, without the batch dimension, in host memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostTensor {
    /// Element type of `data`.
    pub dtype: DType,
    /// Sizes of its dimensions; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements in row-major order, native byte order; `bool` as 0 or 1.
    pub data: Bytes,
}

impl HostTensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}
