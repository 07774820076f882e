//! A matrix of floats in host memory, row by row in place.

use std::slice;

use tch::{Device, Kind, TchError, Tensor};

/// A matrix `[rows, width]` of `f32` in host memory, of which nobody else has a view.
#[derive(Debug)]
pub struct Rows {
    tensor: Tensor,
    rows: usize,
    width: usize,
}

impl Rows {
    /// The rows of a fresh tensor, copied from where they are when that is a device or another type.
    ///
    /// # Errors
    /// When it is no matrix, or LibTorch cannot copy it.
    pub fn of(tensor: &Tensor) -> Result<Self, TchError> {
        let size = tensor.size();
        let &[rows, width] = size.as_slice() else {
            return Err(TchError::Shape(format!("a matrix is asked for, this is {size:?}")));
        };
        let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let length = |number: i64| usize::try_from(number).unwrap_or(0);
        Ok(Self { tensor, rows: length(rows), width: length(width) })
    }

    /// One of them; none beyond the last.
    pub fn row(&mut self, index: usize) -> Option<&mut [f32]> {
        if index >= self.rows {
            return None;
        }
        // SAFETY: the tensor is contiguous, of `rows * width` floats in host memory, and lives as long as the borrow,
        // which is of the whole.
        Some(unsafe {
            let start = self.tensor.data_ptr().cast::<f32>().add(index * self.width);
            slice::from_raw_parts_mut(start, self.width)
        })
    }
}
