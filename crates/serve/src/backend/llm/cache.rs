//! Keys and values of all sequences, in blocks.

use tch::{Device, Kind, Tensor};
use trustformers_batching::continuous::BlockId;

use super::config::DecoderConfig;
use super::error::{BackendError, LlmError};
use crate::torch::paged::{PAGE_ALIGNMENT, Pages};
use crate::torch::reserved;

/// How large a cache is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSize {
    /// Blocks, of all layers.
    pub blocks: usize,
    /// Tokens of a block: a multiple of 16.
    pub block_size: usize,
}

/// The pages of every layer, made at load and never moved.
#[derive(Debug)]
pub(super) struct KvCache {
    pub(super) size: CacheSize,
    pub(super) layers: Vec<Pages>,
}

impl KvCache {
    /// Allocates all of it; on a CPU it takes memory as it is used. Zeros, as memory that holds NaN would poison sums
    /// that it has no weight in.
    pub(super) fn new(
        config: &DecoderConfig,
        size: CacheSize,
        kind: Kind,
        device: Device,
    ) -> Result<Self, LlmError> {
        let CacheSize { blocks, block_size } = size;
        let refused = |reason: &str| LlmError::Cache { blocks, block_size, reason: reason.to_owned() };
        if block_size == 0 || block_size % PAGE_ALIGNMENT != 0 || block_size > 1024 {
            return Err(refused("a block's tokens must be a multiple of 16, up to 1024"));
        }
        if blocks == 0 {
            return Err(refused("there must be a block"));
        }
        let (Ok(count), Ok(tokens), true) =
            (i64::try_from(blocks), i64::try_from(block_size), i32::try_from(blocks).is_ok())
        else {
            return Err(refused("too many blocks"));
        };
        let (heads, width) = (config.kv_heads, config.head_dim);
        let layer = |_| {
            let zeros = |shape: [i64; 4]| match device {
                Device::Cpu => reserved::zeros(&shape, kind),
                device => Tensor::f_zeros(shape, (kind, device)),
            };
            Ok(Pages {
                keys: zeros([count, heads, width, tokens])?,
                values: zeros([count, heads, tokens, width])?,
            })
        };
        let layers = (0..config.layers.len()).map(layer).collect::<Result<_, tch::TchError>>();
        layers.map(|layers| Self { size, layers }).map_err(|error| refused(&error.to_string()))
    }

    /// Copies blocks in all layers, one after another.
    pub(super) fn copy(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), BackendError> {
        let blocks = self.size.blocks;
        for &(BlockId(from), BlockId(to)) in copies {
            if from.max(to) as usize >= blocks {
                return Err(BackendError::Copy { from, to, blocks });
            }
            for layer in &self.layers {
                for pages in [&layer.keys, &layer.values] {
                    let source = pages.f_select(0, i64::from(from))?;
                    pages.f_select(0, i64::from(to))?.f_copy_(&source)?;
                }
            }
        }
        Ok(())
    }
}
