//! Between tensors of single items in host memory and batches in LibTorch's.

use std::slice;

use bytes::Bytes;
use tch::{Device, Kind, TchError, Tensor};

use crate::tensor::{DType, HostTensor, Padding};

/// A batch that cannot be put together or taken apart.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// An item's bytes are not those of its shape and type, or not those of the batch's first item.
    #[error("item {item} is {dtype} {shape:?} of {bytes} bytes, which does not stack in a batch of {batch}")]
    Item {
        /// Its place in the batch.
        item: usize,
        /// Its element type.
        dtype: DType,
        /// Its shape.
        shape: Vec<usize>,
        /// Its length.
        bytes: usize,
        /// Element type and shape that the batch is made of.
        batch: String,
    },
    /// Elements of a type that no answer can carry.
    #[error("its elements are {0:?}; f32, f64, f16, bf16, i64, i32 and bool can be answered")]
    Kind(Kind),
    /// Fewer or more rows than went in.
    #[error("its shape is {shape:?}, whose first dimension is not the batch of {items}")]
    Rows {
        /// Shape of the batch.
        shape: Vec<i64>,
        /// Rows that went in.
        items: usize,
    },
    /// LibTorch's own reason.
    #[error("{0}")]
    Torch(#[from] TchError),
}

/// LibTorch's name of an element type.
pub const fn kind(dtype: DType) -> Kind {
    match dtype {
        DType::F32 => Kind::Float,
        DType::F64 => Kind::Double,
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
        DType::I64 => Kind::Int64,
        DType::I32 => Kind::Int,
        DType::Bool => Kind::Bool,
    }
}

/// Our name of an element type, where we have one.
pub const fn dtype(kind: Kind) -> Option<DType> {
    match kind {
        Kind::Float => Some(DType::F32),
        Kind::Double => Some(DType::F64),
        Kind::Half => Some(DType::F16),
        Kind::BFloat16 => Some(DType::BF16),
        Kind::Int64 => Some(DType::I64),
        Kind::Int => Some(DType::I32),
        Kind::Bool => Some(DType::Bool),
        _ => None,
    }
}

/// A buffer larger than this is given back after its batch: one batch of huge items must not hold
/// its memory for ever.
const RETAINED_BYTES: usize = 64 << 20;

/// Stacks the items of one input along a new first dimension, in a buffer that is used again.
#[derive(Debug)]
pub struct Stacker {
    dtype: DType,
    device: Device,
    padding: Option<Padding>,
    /// One dimension, on the host. A tensor rather than memory of our own, so that a module which
    /// keeps its input keeps the memory alive.
    buffer: Option<Tensor>,
    capacity: usize,
}

impl Stacker {
    /// For items of element type `dtype` that run on `device`.
    pub fn new(dtype: DType, device: Device, padding: Option<Padding>) -> Self {
        Self { dtype, device, padding, buffer: None, capacity: 0 }
    }

    /// The batch `[rows, ...]` of `items`, all of the first one's shape; with a padding, all filled up to
    /// `length`. Rows beyond the items, of which there may be more than `rows`, are zeros. On the CPU it is
    /// a view of the buffer, which the next call overwrites.
    ///
    /// # Errors
    /// When an item does not have the type or the shape of the batch, or memory cannot be had.
    pub fn stack<'a>(
        &mut self,
        items: impl ExactSizeIterator<Item = &'a HostTensor>,
        rows: usize,
        length: usize,
    ) -> Result<Tensor, TensorError> {
        let (given, count) = (items.len(), rows.max(items.len()));
        let mut items = items.enumerate().peekable();
        let mut shape = items.peek().map(|(_, first)| first.shape.clone()).unwrap_or_default();
        let padding = self.padding.clone();
        if let Some(size) = padding.as_ref().and_then(|padding| shape.get_mut(padding.axis)) {
            *size = length;
        }
        let elements: usize = shape.iter().product();
        let row = elements * self.dtype.size();
        let dtype = self.dtype;
        let buffer = self.reserve(count * elements)?;
        let bytes = host_bytes_mut(buffer, count * row);
        for (index, item) in items {
            let whole = item.dtype == dtype && item.data.len() == item.elements() * dtype.size();
            let target = &mut bytes[index * row..(index + 1) * row];
            if !whole || !put(item, &shape, padding.as_ref(), target) {
                return Err(TensorError::Item {
                    item: index,
                    dtype: item.dtype,
                    shape: item.shape.clone(),
                    bytes: item.data.len(),
                    batch: format!("{dtype} {shape:?}"),
                });
            }
        }
        bytes[given * row..].fill(0);
        let (sizes, strides) = layout(count, &shape);
        let view = buffer.f_as_strided(&sizes, &strides, None::<i64>)?;
        let batch = match self.device {
            Device::Cpu => view,
            device => view.f_to_device(device)?,
        };
        if count * row > RETAINED_BYTES {
            self.buffer = None;
            self.capacity = 0;
        }
        Ok(batch)
    }

    fn reserve(&mut self, elements: usize) -> Result<&mut Tensor, TensorError> {
        let buffer = match self.buffer.take() {
            Some(buffer) if self.capacity >= elements => buffer,
            _ => {
                // Powers of two, so that batches that grow one by one allocate few times.
                let rounded = elements.max(1).next_power_of_two();
                let capacity = if rounded * self.dtype.size() > RETAINED_BYTES { elements } else { rounded };
                let length = i64::try_from(capacity).unwrap_or(i64::MAX);
                let mut buffer = Tensor::f_empty([length], (kind(self.dtype), Device::Cpu))?;
                if self.device != Device::Cpu {
                    // Copies to the device from pinned memory are twice as fast.
                    buffer = buffer.f_pin_memory(self.device)?;
                }
                self.capacity = capacity;
                buffer
            }
        };
        Ok(self.buffer.insert(buffer))
    }
}

/// Writes an item as a row of `shape`, filled up along the padded dimension. False when it does not fit.
fn put(item: &HostTensor, shape: &[usize], padding: Option<&Padding>, row: &mut [u8]) -> bool {
    if item.shape == shape {
        row.copy_from_slice(&item.data);
        return true;
    }
    let Some(Padding { axis, element }) = padding else { return false };
    let axis = *axis;
    let fits = item.shape.len() == shape.len()
        && item
            .shape
            .iter()
            .zip(shape)
            .enumerate()
            .all(|(dimension, (own, size))| own == size || (dimension == axis && own < size));
    if !fits {
        return false;
    }
    let outer: usize = shape[..axis].iter().product();
    let inner = shape[axis + 1..].iter().product::<usize>() * item.dtype.size();
    let (own, whole) = (item.shape[axis] * inner, shape[axis] * inner);
    for block in 0..outer {
        let (kept, filled) = row[block * whole..(block + 1) * whole].split_at_mut(own);
        kept.copy_from_slice(&item.data[block * own..(block + 1) * own]);
        filled.chunks_exact_mut(element.len()).for_each(|place| place.copy_from_slice(element));
    }
    true
}

/// Sizes and strides of `count` contiguous rows of `shape`.
fn layout(count: usize, shape: &[usize]) -> (Vec<i64>, Vec<i64>) {
    let as_i64 = |size: &usize| i64::try_from(*size).unwrap_or(i64::MAX);
    let sizes: Vec<i64> = std::iter::once(&count).chain(shape).map(as_i64).collect();
    let mut strides = vec![1i64; sizes.len()];
    for dimension in (1..sizes.len()).rev() {
        strides[dimension - 1] = strides[dimension].saturating_mul(sizes[dimension].max(1));
    }
    (sizes, strides)
}

/// Takes a batch `[rows, ...]` apart: `put` gets the index and the tensor of each of the first `items`
/// rows, in order.
///
/// The items share one copy of the batch, which outlives the tensor and whatever it is a view of.
///
/// # Errors
/// When the elements are of a type we do not have, or the first dimension is not `rows`; then `put`
/// was not called.
pub fn split(
    batch: &Tensor,
    rows: usize,
    items: usize,
    mut put: impl FnMut(usize, HostTensor),
) -> Result<(), TensorError> {
    let dtype = dtype(batch.kind()).ok_or_else(|| TensorError::Kind(batch.kind()))?;
    let sizes = batch.size();
    if sizes.first().and_then(|rows| usize::try_from(*rows).ok()) != Some(rows) {
        return Err(TensorError::Rows { shape: sizes, items: rows });
    }
    let shape: Vec<usize> = sizes[1..].iter().filter_map(|size| usize::try_from(*size).ok()).collect();
    let row = shape.iter().product::<usize>() * dtype.size();
    let mut host = batch.shallow_clone();
    if host.device() != Device::Cpu {
        host = host.f_to_device(Device::Cpu)?;
    }
    // Materialises what only looks like a dense tensor, too: conjugates and negated views.
    if !host.is_contiguous() {
        host = host.f_contiguous()?;
    }
    let all = Bytes::copy_from_slice(host_bytes(&host, items * row));
    for item in 0..items {
        let data = all.slice(item * row..(item + 1) * row);
        put(item, HostTensor { dtype, shape: shape.clone(), data });
    }
    Ok(())
}

/// The first `length` bytes of a contiguous tensor in host memory, which must have as many.
fn host_bytes(tensor: &Tensor, length: usize) -> &[u8] {
    assert_holds(tensor, length);
    if length == 0 {
        return &[]; // a tensor without elements may have no memory
    }
    // SAFETY: dense host memory of at least `length` bytes, as asserted, alive as long as `tensor`,
    // initialised by whoever made it, and written by no one meanwhile: its run is over.
    unsafe { slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), length) }
}

/// As [`host_bytes`], to be written.
fn host_bytes_mut(tensor: &mut Tensor, length: usize) -> &mut [u8] {
    assert_holds(tensor, length);
    if length == 0 {
        return &mut [];
    }
    // SAFETY: dense host memory of at least `length` bytes, as asserted, alive as long as `tensor`.
    // Views of it made for earlier batches are read by no one any more: their runs are over. Bytes
    // never written before are as good as any: they are only written, never read.
    unsafe { slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), length) }
}

fn assert_holds(tensor: &Tensor, length: usize) {
    let size = tensor.numel() * tensor.kind().elt_size_in_bytes();
    assert!(
        length <= size && tensor.device() == Device::Cpu && tensor.is_contiguous() && !tensor.is_sparse(),
        "{length} bytes of a tensor of {size}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [DType; 7] =
        [DType::F32, DType::F64, DType::F16, DType::BF16, DType::I64, DType::I32, DType::Bool];

    fn item(dtype: DType, shape: &[usize], seed: usize) -> HostTensor {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let data = (0..bytes).map(|byte| u8::from((byte + seed).is_multiple_of(3))).collect::<Vec<u8>>();
        HostTensor { dtype, shape: shape.to_vec(), data: data.into() }
    }

    fn split_all(batch: &Tensor, items: usize) -> Result<Vec<HostTensor>, TensorError> {
        let mut rows = Vec::new();
        split(batch, items, items, |index, row| {
            assert_eq!(index, rows.len());
            rows.push(row);
        })?;
        Ok(rows)
    }

    #[test]
    fn items_of_every_type_come_back_as_they_went_in() {
        for dtype in ALL {
            for shape in [&[][..], &[3], &[2, 3], &[0], &[2, 0, 4]] {
                let items: Vec<_> = (0..5).map(|seed| item(dtype, shape, seed)).collect();
                let batch = Stacker::new(dtype, Device::Cpu, None).stack(items.iter(), 0, 0).unwrap();
                assert_eq!(batch.kind(), kind(dtype));
                assert_eq!(split_all(&batch, 5).unwrap(), items, "{dtype} {shape:?}");
            }
        }
    }

    #[test]
    fn rows_outlive_the_buffer_they_came_from() {
        let mut stacker = Stacker::new(DType::I32, Device::Cpu, None);
        let first = [item(DType::I32, &[4], 0)];
        let rows = split_all(&stacker.stack(first.iter(), 0, 0).unwrap(), 1).unwrap();
        let _ = stacker.stack([item(DType::I32, &[4], 1)].iter(), 0, 0).unwrap();
        assert_eq!(rows, first);
    }

    #[test]
    fn a_buffer_is_used_again_for_a_batch_that_fits_in_it() {
        let mut stacker = Stacker::new(DType::F32, Device::Cpu, None);
        let large: Vec<_> = (0..8).map(|seed| item(DType::F32, &[16], seed)).collect();
        let address = stacker.stack(large.iter(), 0, 0).unwrap().data_ptr();
        assert_eq!(stacker.stack(large[..3].iter(), 0, 0).unwrap().data_ptr(), address);
    }

    #[test]
    fn a_huge_buffer_is_given_back() {
        let mut stacker = Stacker::new(DType::Bool, Device::Cpu, None);
        let _ = stacker.stack([item(DType::Bool, &[RETAINED_BYTES + 1], 0)].iter(), 0, 0).unwrap();
        assert!(stacker.buffer.is_none());
    }

    #[test]
    fn the_rows_of_a_batch_share_one_allocation() {
        let rows = split_all(&Tensor::arange(6, (Kind::Int64, Device::Cpu)).view([3, 2]), 3).unwrap();
        let start = rows[0].data.as_ptr() as usize;
        assert_eq!(
            rows.iter().map(|row| row.data.as_ptr() as usize - start).collect::<Vec<_>>(),
            [0, 16, 32]
        );
    }

    #[test]
    fn a_transposed_batch_is_split_in_row_major_order() {
        let batch = Tensor::from_slice(&[1i32, 2, 3, 4]).view([2, 2]).tr();
        let rows = split_all(&batch, 2).unwrap();
        assert_eq!(rows[0].data[..], [1i32.to_ne_bytes(), 3i32.to_ne_bytes()].concat());
    }

    #[test]
    fn an_item_of_another_shape_does_not_stack() {
        let items = [item(DType::F32, &[2], 0), item(DType::F32, &[3], 0)];
        let error = Stacker::new(DType::F32, Device::Cpu, None).stack(items.iter(), 0, 0).unwrap_err();
        assert!(error.to_string().starts_with("item 1 is f32 [3]"), "{error}");
    }

    #[test]
    fn bytes_that_are_not_those_of_the_shape_do_not_stack() {
        let short = HostTensor { data: Bytes::from_static(&[0; 7]), ..item(DType::F32, &[2], 0) };
        assert!(Stacker::new(DType::F32, Device::Cpu, None).stack([short].iter(), 0, 0).is_err());
    }

    #[test]
    fn a_batch_of_other_elements_or_rows_is_refused() {
        let bytes = Tensor::zeros([2], (Kind::Uint8, Device::Cpu));
        assert!(matches!(split_all(&bytes, 2), Err(TensorError::Kind(Kind::Uint8))));
        let scalar = Tensor::zeros([0i64; 0], (Kind::Float, Device::Cpu));
        assert!(matches!(split_all(&scalar, 1), Err(TensorError::Rows { .. })));
        let rows = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        assert!(matches!(split_all(&rows, 2), Err(TensorError::Rows { .. })));
    }

    #[test]
    fn items_are_filled_up_to_the_length_along_the_padded_dimension() {
        let of = |shape: &[usize], bytes: &[u8]| HostTensor {
            dtype: DType::Bool,
            shape: shape.to_vec(),
            data: bytes.to_vec().into(),
        };
        let items = [of(&[2, 1, 2], &[1, 0, 0, 1]), of(&[2, 3, 2], &[0; 12]), of(&[2, 2, 2], &[0; 8])];
        let padding = Padding { axis: 1, element: vec![1] };
        let mut stacker = Stacker::new(DType::Bool, Device::Cpu, Some(padding));
        let batch = stacker.stack(items.iter(), 4, 3).unwrap();
        assert_eq!(batch.size(), [4, 2, 3, 2]);
        let rows = split_all(&batch, 4).unwrap();
        assert_eq!(rows[0].data[..], [1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1]);
        assert_eq!(rows[1].data[..], [0; 12]);
        assert_eq!(rows[2].data[..], [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]);
        assert_eq!(rows[3].data[..], [0; 12], "no item's row is zeros, not padding");
        let mut firsts = Vec::new();
        split(&batch, 4, 2, |_, row| firsts.push(row)).unwrap();
        assert_eq!(firsts, rows[..2]);
        assert!(stacker.stack(items.iter(), 4, 2).is_err(), "an item longer than the length");
    }

    #[test]
    fn padding_is_an_element_of_the_type() {
        let element = DType::I64.element(-100.0).unwrap();
        let mut stacker =
            Stacker::new(DType::I64, Device::Cpu, Some(Padding { axis: 0, element: element.clone() }));
        let one = item(DType::I64, &[1], 0);
        let rows = split_all(&stacker.stack([one.clone()].iter(), 0, 3).unwrap(), 1).unwrap();
        assert_eq!(rows[0].data[..], [&one.data[..], &element, &element].concat());
    }
}
