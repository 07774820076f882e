//! Tensors in host memory: what a request brings and what its caller gets.

use std::fmt;

use bytes::Bytes;
use half::{bf16, f16};
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

    /// The bytes of one element of `value`; `None` where the type does not have it. Rounds to the nearest
    /// of a floating-point type.
    pub fn element(self, value: f64) -> Option<Vec<u8>> {
        #[allow(clippy::cast_possible_truncation)] // checked, or meant to round
        fn whole<T: TryFrom<i64>>(value: f64) -> Option<T> {
            // Doubles hold every whole number up to here.
            let exact = value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0;
            exact.then_some(value as i64).and_then(|value| T::try_from(value).ok())
        }
        let narrow = value as f32;
        match self {
            DType::F64 => value.is_finite().then(|| value.to_ne_bytes().to_vec()),
            DType::F32 => narrow.is_finite().then(|| narrow.to_ne_bytes().to_vec()),
            DType::F16 => {
                Some(f16::from_f64(value)).filter(|x| x.is_finite()).map(|x| x.to_ne_bytes().to_vec())
            }
            DType::BF16 => {
                Some(bf16::from_f64(value)).filter(|x| x.is_finite()).map(|x| x.to_ne_bytes().to_vec())
            }
            DType::I64 => whole::<i64>(value).map(|x| x.to_ne_bytes().to_vec()),
            DType::I32 => whole::<i32>(value).map(|x| x.to_ne_bytes().to_vec()),
            DType::Bool => whole::<u8>(value).filter(|x| *x <= 1).map(|x| vec![x]),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A declared input or output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Its name in requests and answers.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// The shape of one item, without the batch dimension; -1 where any size is right.
    pub shape: Vec<i64>,
    /// Of an input with exactly one -1 dimension: what an item is filled up with along it, so that items
    /// of different lengths share a batch. `None`: only items of one shape do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad: Option<f64>,
}

/// How an input is padded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Padding {
    /// The dimension of an item along which.
    pub axis: usize,
    /// The bytes of one element of it.
    pub element: Vec<u8>,
}

impl TensorSpec {
    /// How it is padded; `None` where it is not.
    ///
    /// # Errors
    /// When its shape or its type does not fit `pad`.
    pub fn padding(&self) -> Result<Option<Padding>, String> {
        let Some(pad) = self.pad else { return Ok(None) };
        let mut open = (0..self.shape.len()).filter(|&axis| self.shape[axis] == -1);
        let (Some(axis), None) = (open.next(), open.next()) else {
            return Err(format!(
                "is for inputs with exactly one -1 dimension, but shape is {:?}",
                self.shape
            ));
        };
        let element =
            self.dtype.element(pad).ok_or_else(|| format!("is {pad}, which is no {}", self.dtype))?;
        Ok(Some(Padding { axis, element }))
    }
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

    /// The first `length` along dimension `axis`; all of it where it has no more.
    #[must_use]
    pub fn cut(mut self, axis: usize, length: usize) -> HostTensor {
        let whole = self.shape[axis];
        if length >= whole {
            return self;
        }
        let outer: usize = self.shape[..axis].iter().product();
        let inner = self.shape[axis + 1..].iter().product::<usize>() * self.dtype.size();
        self.shape[axis] = length;
        self.data = if outer == 1 {
            self.data.slice(..length * inner)
        } else {
            let mut data = Vec::with_capacity(outer * length * inner);
            for start in (0..outer).map(|block| block * whole * inner) {
                data.extend_from_slice(&self.data[start..start + length * inner]);
            }
            data.into()
        };
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_an_element_of_the_types_that_have_it() {
        assert_eq!(DType::I64.element(-100.0), Some((-100i64).to_ne_bytes().to_vec()));
        assert_eq!(DType::I32.element(1.0), Some(1i32.to_ne_bytes().to_vec()));
        assert_eq!(DType::F32.element(0.1), Some(0.1f32.to_ne_bytes().to_vec()));
        assert_eq!(DType::F64.element(0.1), Some(0.1f64.to_ne_bytes().to_vec()));
        assert_eq!(DType::F16.element(-1.0), Some(vec![0x00, 0xbc]));
        assert_eq!(DType::BF16.element(1.0), Some(vec![0x80, 0x3f]));
        assert_eq!(DType::Bool.element(1.0), Some(vec![1]));
        for (dtype, value) in [
            (DType::I64, 0.5),
            (DType::I32, 3e9),
            (DType::Bool, 2.0),
            (DType::Bool, -1.0),
            (DType::F16, 1e6),
            (DType::F32, f64::NAN),
            (DType::I64, f64::INFINITY),
        ] {
            assert_eq!(dtype.element(value), None, "{dtype} {value}");
        }
    }

    #[test]
    fn a_cut_keeps_the_start_of_each_row() {
        let bytes: Vec<u8> = (0..12).collect();
        let tensor = HostTensor { dtype: DType::Bool, shape: vec![2, 3, 2], data: bytes.into() };
        let cut = |axis, length| {
            let cut = tensor.clone().cut(axis, length);
            (cut.shape, cut.data.to_vec())
        };
        assert_eq!(cut(0, 1), (vec![1, 3, 2], vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(cut(1, 2), (vec![2, 2, 2], vec![0, 1, 2, 3, 6, 7, 8, 9]));
        assert_eq!(cut(2, 1), (vec![2, 3, 1], vec![0, 2, 4, 6, 8, 10]));
        assert_eq!(cut(1, 0), (vec![2, 0, 2], vec![]));
        assert_eq!(cut(1, 5).0, [2, 3, 2], "it has no more");
    }
}
