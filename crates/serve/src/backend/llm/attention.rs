//! Attention over pages: kernels of ours on the CPU, which read them in place, and plain operators elsewhere, which
//! gather them first.

use tch::{Device, Kind, TchError, Tensor};

use super::activations::Activations;
use super::config::LayerAttention;
use super::norm::rms;
use super::step::Batch;
use crate::torch::paged::{self, InstructionSet, Pages, Preparation, Span};

/// What all layers of a step share.
pub(super) struct StepAttention<'a> {
    pub(super) batch: &'a Batch,
    /// Cosines and sines of each row's angles, `[rows, head_dim / 2]` in `f32`, where positions are rotated in.
    pub(super) angles: Option<(Tensor, Tensor)>,
    pub(super) heads: i64,
    pub(super) kv_heads: i64,
    pub(super) head_dim: i64,
    /// Of norms of heads.
    pub(super) eps: f64,
    pub(super) means: Means,
}

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// By the kernels for CPUs, of this instruction set or less.
    Kernels(InstructionSet),
    /// By LibTorch's operators over gathered pages, on any device.
    Operators,
}

impl Means {
    /// What is fastest on a device.
    pub fn best(device: Device) -> Self {
        match device {
            Device::Cpu => Self::Kernels(InstructionSet::best()),
            _ => Self::Operators,
        }
    }
}

impl StepAttention<'_> {
    /// Writes the keys and values of a step's rows to one layer's pages, and to `mixed` what each row attends to.
    /// Answers how many pages were gathered for that.
    pub(super) fn forward(
        &self,
        activations: &mut Activations,
        layer: &LayerAttention,
        norms: Option<&(Tensor, Tensor)>,
        pages: &mut Pages,
    ) -> Result<u64, TchError> {
        let Activations { projections, queries, mixed, .. } = activations;
        let preparation =
            Preparation { angles: self.angles.as_ref(), norms, eps: self.eps, scale: layer.scale };
        match self.means {
            Means::Kernels(instructions) => {
                let batch = self.batch;
                paged::project(projections, &preparation, pages, &batch.slots, queries, instructions)?;
                let (spans, table) = (&batch.spans, &batch.table);
                paged::paged_attention(queries, pages, spans, table, layer.window, mixed, instructions)?;
                Ok(0)
            }
            Means::Operators => {
                let queries = self.project(projections, &preparation, pages)?;
                let gathered;
                (*mixed, gathered) = self.attend(&queries, pages, layer.window)?;
                Ok(gathered)
            }
        }
    }

    /// As `paged::project`, answering `[rows, kv_heads, group, head_dim]` in `f32`.
    fn project(
        &self,
        projections: &Tensor,
        preparation: &Preparation<'_>,
        pages: &mut Pages,
    ) -> Result<Tensor, TchError> {
        let (heads, kv_heads, width) = (self.heads, self.kv_heads, self.head_dim);
        let rows = projections.size()[0];
        let all = projections.f_view([rows, heads + 2 * kv_heads, width])?;
        let mut queries = all.f_narrow(1, 0, heads)?.f_to_kind(Kind::Float)?;
        let mut keys = all.f_narrow(1, heads, kv_heads)?.f_to_kind(Kind::Float)?;
        let values = all.f_narrow(1, heads + kv_heads, kv_heads)?;
        if let Some((query, key)) = preparation.norms {
            queries = rms(&queries, query, preparation.eps)?;
            keys = rms(&keys, key, preparation.eps)?;
        }
        if let Some((cosines, sines)) = preparation.angles {
            queries = rotate(&queries, cosines, sines)?;
            keys = rotate(&keys, cosines, sines)?;
        }
        let block_size = pages.values.size()[2];
        let slots = Tensor::f_from_slice(&self.batch.slots)?.f_to_device(projections.device())?;
        let block = slots.f_divide_scalar_mode(block_size, "floor")?;
        let place = slots.f_remainder(block_size)?;
        let keys = keys.f_to_kind(pages.keys.kind())?;
        // Indices apart from each other put the dimension they share first, as rows have it.
        let at = [Some(&block), None, None, Some(&place)];
        let _ = pages.keys.f_index_put_(&at, &keys, false)?;
        let at = [Some(&block), None, Some(&place)];
        let _ = pages.values.f_index_put_(&at, &values, false)?;
        queries.f_mul_scalar(preparation.scale)?.f_view([rows, kv_heads, heads / kv_heads, width])
    }

    /// Sequences with one row each together, chunks of prompts one by one.
    fn attend(
        &self,
        queries: &Tensor,
        pages: &Pages,
        window: Option<i64>,
    ) -> Result<(Tensor, u64), TchError> {
        let rows = queries.size()[0];
        let out = Tensor::f_empty([rows, self.heads * self.head_dim], (pages.keys.kind(), queries.device()))?;
        let spans = &self.batch.spans;
        let mut gathered = 0;
        let mut from = 0;
        while from < spans.len() {
            let alike = if spans[from].rows == 1 {
                spans[from..].iter().take_while(|span| span.rows == 1).count()
            } else {
                1
            };
            let group = &spans[from..from + alike];
            let (mixed, pages) = self.attend_group(queries, group, pages, window)?;
            out.f_narrow(0, group[0].row, mixed.size()[0])?.f_copy_(&mixed)?;
            gathered += pages;
            from += alike;
        }
        Ok((out, gathered))
    }

    /// Neighbouring sequences with equal numbers of rows, over pages gathered to equal lengths.
    fn attend_group(
        &self,
        queries: &Tensor,
        spans: &[Span],
        pages: &Pages,
        window: Option<i64>,
    ) -> Result<(Tensor, u64), TchError> {
        let (kv_heads, width) = (self.kv_heads, self.head_dim);
        let group = self.heads / kv_heads;
        let (device, block_size) = (queries.device(), pages.values.size()[2]);
        let (count, rows) = (i64::try_from(spans.len()).unwrap_or(i64::MAX), spans[0].rows);
        let lengths: Vec<i64> = spans.iter().map(|span| span.start + span.rows).collect();
        let blocks = lengths.iter().max().copied().unwrap_or(0).div_euclid(block_size) + 1;
        let table = self.table(spans, &lengths, blocks, block_size);
        let total = blocks * block_size;
        let index = Tensor::f_from_slice(&table)?.f_to_device(device)?;
        let keys = pages.keys.f_index_select(0, &index)?;
        let keys = keys.f_view([count, blocks, kv_heads, width, block_size])?;
        let keys = keys.f_permute([0, 2, 3, 1, 4])?.f_reshape([count, kv_heads, width, total])?;
        let values = pages.values.f_index_select(0, &index)?;
        let values = values.f_view([count, blocks, kv_heads, block_size, width])?;
        let values = values.f_permute([0, 2, 1, 3, 4])?.f_reshape([count, kv_heads, total, width])?;
        // What no token wrote has no weight, yet would make NaN of it.
        let places = Tensor::f_arange(total, (Kind::Int64, device))?;
        let ends = Tensor::f_from_slice(&lengths)?.f_to_device(device)?.f_view([count, 1])?;
        let unwritten = places.f_view([1, total])?.f_ge_tensor(&ends)?.f_view([count, 1, total, 1])?;
        let values = values.f_to_kind(Kind::Float)?.f_masked_fill(&unwritten, 0.0)?;

        let first = ends.f_view([count, 1, 1])?.f_sub_scalar(rows)?;
        let own = Tensor::f_arange(rows, (Kind::Int64, device))?.f_view([1, rows, 1])?.f_add(&first)?;
        let places = places.f_view([1, 1, total])?;
        let mut hidden = places.f_gt_tensor(&own)?;
        if let Some(window) = window {
            hidden = hidden.f_logical_or(&places.f_le_tensor(&own.f_sub_scalar(window)?)?)?;
        }
        let hidden = hidden.f_view([count, 1, rows, 1, total])?;

        let queries = queries.f_narrow(0, spans[0].row, count * rows)?;
        let queries = queries.f_view([count, rows, kv_heads, group, width])?;
        let queries =
            queries.f_permute([0, 2, 1, 3, 4])?.f_reshape([count, kv_heads, rows * group, width])?;
        let scores = queries.f_matmul(&keys.f_to_kind(Kind::Float)?)?;
        let scores = scores.f_view([count, kv_heads, rows, group, total])?;
        let weights = scores.f_masked_fill(&hidden, f64::NEG_INFINITY)?.f_softmax(-1, Kind::Float)?;
        let mixed = weights.f_view([count, kv_heads, rows * group, total])?.f_matmul(&values)?;
        let mixed = mixed.f_view([count, kv_heads, rows, group, width])?.f_permute([0, 2, 1, 3, 4])?;
        let mixed = mixed.f_reshape([count * rows, self.heads * width])?.f_to_kind(pages.keys.kind())?;
        Ok((mixed, table.len() as u64))
    }

    /// The pages of sequences, each filled up with page 0 to `blocks`.
    fn table(&self, spans: &[Span], lengths: &[i64], blocks: i64, block_size: i64) -> Vec<i64> {
        let size = |number: i64| usize::try_from(number).unwrap_or(0);
        let mut table = vec![0; spans.len() * size(blocks)];
        for ((span, &length), row) in spans.iter().zip(lengths).zip(table.chunks_mut(size(blocks))) {
            let used = size((length + block_size - 1) / block_size);
            let pages = &self.batch.table[size(span.table)..][..used];
            for (to, &page) in row.iter_mut().zip(pages) {
                *to = i64::from(page);
            }
        }
        table
    }
}

/// Rotates pairs `(i, i + width / 2)` of `[rows, heads, width]` by each row's angles.
fn rotate(x: &Tensor, cosines: &Tensor, sines: &Tensor) -> Result<Tensor, TchError> {
    let halves = x.f_chunk(2, -1)?;
    let (left, right) = (&halves[0], &halves[1]);
    let (cosines, sines) = (cosines.f_unsqueeze(1)?, sines.f_unsqueeze(1)?);
    let first = left.f_mul(&cosines)?.f_sub(&right.f_mul(&sines)?)?;
    let second = right.f_mul(&cosines)?.f_add(&left.f_mul(&sines)?)?;
    Tensor::f_cat(&[first, second], -1)
}
