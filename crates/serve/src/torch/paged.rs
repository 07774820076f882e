//! CPU kernels of decoders: attention over a KV cache's pages in place, what writes those pages, and norms.

use std::ffi::{c_char, c_int};
use std::ptr;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::guard::done_or_error;

unsafe extern "C" {
    fn tfs_cpu_best_instruction_set() -> c_int;
    fn tfs_paged_attention(
        queries: *const C_tensor,
        keys: *const C_tensor,
        values: *const C_tensor,
        spans: *const Span,
        count: usize,
        table: *const i32,
        length: usize,
        window: i64,
        out: *mut C_tensor,
        instruction_set: c_int,
        error: *mut c_char,
        capacity: usize,
    ) -> bool;
    fn tfs_paged_project(
        projections: *const C_tensor,
        cosines: *const C_tensor,
        sines: *const C_tensor,
        query_norm: *const C_tensor,
        key_norm: *const C_tensor,
        eps: f64,
        scale: f64,
        keys: *mut C_tensor,
        values: *mut C_tensor,
        slots: *const i64,
        rows: usize,
        queries: *mut C_tensor,
        instruction_set: c_int,
        error: *mut c_char,
        capacity: usize,
    ) -> bool;
    fn tfs_rows_normalize(
        x: *const C_tensor,
        weight: *const C_tensor,
        eps: f64,
        out: *mut C_tensor,
        instruction_set: c_int,
        error: *mut c_char,
        capacity: usize,
    ) -> bool;
}

/// Token slots of a page must be a multiple of this.
pub const PAGE_ALIGNMENT: usize = 16;

/// The widest head the kernels take.
pub const MOST_HEAD_WIDTH: i64 = 512;

/// What the kernels are compiled for. One that this CPU lacks stands for the best it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionSet {
    /// What every CPU has.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with products of bf16 (BF16) and of int8 (VNNI).
    Avx512Dot,
}

impl InstructionSet {
    /// The best this CPU has.
    pub fn best() -> Self {
        // SAFETY: asks the CPU, and takes no pointer.
        match unsafe { tfs_cpu_best_instruction_set() } {
            3 => Self::Avx512Dot,
            2 => Self::Avx512,
            1 => Self::Avx2,
            _ => Self::Portable,
        }
    }

    pub(super) const fn code(self) -> c_int {
        match self {
            Self::Portable => 0,
            Self::Avx2 => 1,
            Self::Avx512 => 2,
            Self::Avx512Dot => 3,
        }
    }
}

/// Rows of one sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Span {
    /// Its first row.
    pub row: i64,
    /// How many rows it has.
    pub rows: i64,
    /// Position of the first row's token.
    pub start: i64,
    /// Where its pages begin in the step's table.
    pub table: i64,
}

/// One layer's pages.
#[derive(Debug)]
pub struct Pages {
    /// `[blocks, kv_heads, width, block_size]`: transposed, so that the scores of neighbouring tokens are
    /// neighbouring elements.
    pub keys: Tensor,
    /// `[blocks, kv_heads, block_size, width]`.
    pub values: Tensor,
}

/// Causal attention of the rows of `spans` over the pages that `table` lists for each, read in place.
///
/// `queries` is `[rows, heads * width]` in `f32`, already scaled. A query sees the last `window` tokens up to
/// its own, or all with `None`. Written to `out`, `[rows, heads * width]` in the cache's element type.
///
/// # Errors
/// When shapes, pages or rows do not fit each other, or a tensor is not on the CPU.
pub fn paged_attention(
    queries: &Tensor,
    pages: &Pages,
    spans: &[Span],
    table: &[i32],
    window: Option<i64>,
    out: &mut Tensor,
    instruction_set: InstructionSet,
) -> Result<(), TchError> {
    // SAFETY: all arguments outlive the call, which checks them.
    done_or_error(|error, capacity| unsafe {
        tfs_paged_attention(
            queries.as_ptr(),
            pages.keys.as_ptr(),
            pages.values.as_ptr(),
            spans.as_ptr(),
            spans.len(),
            table.as_ptr(),
            table.len(),
            window.unwrap_or(0).max(0),
            out.as_mut_ptr(),
            instruction_set.code(),
            error,
            capacity,
        )
    })
}

/// What is done to queries and keys before they meet.
#[derive(Debug)]
pub struct Preparation<'a> {
    /// Cosines and sines of each row's angles, `[rows, width / 2]` in `f32`, where positions are rotated in.
    pub angles: Option<&'a (Tensor, Tensor)>,
    /// Weights `[width]` in `f32` of the norms of queries and keys, where there are any.
    pub norms: Option<&'a (Tensor, Tensor)>,
    /// Of those norms.
    pub eps: f64,
    /// What queries are multiplied by.
    pub scale: f64,
}

/// Norms and rotates queries and keys, and writes keys and values to their slots in the pages and scaled queries to
/// `queries`, `[rows, heads * width]` in `f32`.
///
/// `projections` is `[rows, (heads + 2 * kv_heads) * width]`: queries, keys and values side by side. A slot is
/// a page's number times the size of a page, plus a place in it; two rows must not have the same.
///
/// # Errors
/// When shapes or slots do not fit each other, or a tensor is not on the CPU.
pub fn project(
    projections: &Tensor,
    preparation: &Preparation<'_>,
    pages: &mut Pages,
    slots: &[i64],
    queries: &mut Tensor,
    instruction_set: InstructionSet,
) -> Result<(), TchError> {
    let pair = |pair: Option<&(Tensor, Tensor)>| {
        pair.map_or((ptr::null(), ptr::null()), |(left, right)| (left.as_ptr(), right.as_ptr()))
    };
    let (cosines, sines) = pair(preparation.angles);
    let (query_norm, key_norm) = pair(preparation.norms);
    // SAFETY: all arguments outlive the call, which checks them and accepts null for what may be absent.
    done_or_error(|error, capacity| unsafe {
        tfs_paged_project(
            projections.as_ptr(),
            cosines,
            sines,
            query_norm,
            key_norm,
            preparation.eps,
            preparation.scale,
            pages.keys.as_mut_ptr(),
            pages.values.as_mut_ptr(),
            slots.as_ptr(),
            slots.len(),
            queries.as_mut_ptr(),
            instruction_set.code(),
            error,
            capacity,
        )
    })
}

/// Writes each row of `x` divided by its root mean square, times `weight` (`f32`), to `out`, which is as `x`.
///
/// # Errors
/// When shapes do not fit each other, or a tensor is not on the CPU.
pub fn rms_norm(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    out: &mut Tensor,
    instruction_set: InstructionSet,
) -> Result<(), TchError> {
    // SAFETY: the tensors outlive the call, which checks them.
    done_or_error(|error, capacity| unsafe {
        let (x, weight, out) = (x.as_ptr(), weight.as_ptr(), out.as_mut_ptr());
        tfs_rows_normalize(x, weight, eps, out, instruction_set.code(), error, capacity)
    })
}
