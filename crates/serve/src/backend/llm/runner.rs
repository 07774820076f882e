//! A decoder with its cache, which runs steps.

use std::path::PathBuf;
use std::thread::ThreadId;

use tch::{Device, Kind, Tensor};
use trustformers_batching::continuous::{BlockId, Work};

use super::activations::Workspace;
use super::attention::Means;
use super::cache::{CacheSize, KvCache};
use super::config::{self, DecoderConfig, Settings};
use super::decoder::Decoder;
use super::error::{BackendError, LlmError};
use super::generation::Generation;
use super::projection::Target;
use super::step::{Batch, Limits};
use crate::backend::checkpoint::{Checkpoint, CheckpointError};
use crate::tensor::DType;
use crate::torch::device;
use crate::torch::memory::Turnover;
use crate::torch::region::Region;
use crate::torch::shim::InferenceMode;
use crate::torch::tensor::kind;

/// What to load and how to run it.
#[derive(Debug, Clone)]
pub struct LlmOptions {
    /// The checkpoint's folder: config.json and its safetensors.
    pub path: PathBuf,
    /// Where to run.
    pub device: Device,
    /// What to compute with; by default what config.json names.
    pub dtype: Option<DType>,
    /// What weights become when they are loaded; `None` for the type computed with.
    pub quantization: Option<Quantization>,
    /// Threads that load and run it.
    pub threads: usize,
}

/// Smaller weights than those computed with. Embeddings, norms and biases stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// Eight bits, with a scale for each output of a product. On CPUs only.
    Int8,
}

/// A decoder without a cache: how large that can be may depend on what the weights leave free.
pub struct LoadedDecoder {
    decoder: Decoder,
    generation: Generation,
    threads: usize,
}

impl std::fmt::Debug for LoadedDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedDecoder").field("config", &self.decoder.config).finish_non_exhaustive()
    }
}

/// Loads a checkpoint's weights.
///
/// # Errors
/// When a file is missing, damaged or asks for what is not implemented, naming it.
pub fn load(options: &LlmOptions) -> Result<LoadedDecoder, LlmError> {
    let Settings { decoder: config, generation } = config::read(&options.path)?;
    let checkpoint = Checkpoint::open(&options.path)?;
    let kind = options.dtype.map_or(config.kind, kind);
    if !matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half) {
        return Err(CheckpointError::Unsupported {
            path: options.path.clone(),
            what: format!("computing with {kind:?}"),
            supported: "f32, bf16, f16".into(),
        }
        .into());
    }
    let _turnover = Turnover::begin();
    device::set_threads(options.threads);
    let _inference = InferenceMode::enter();
    let region = Region::default();
    let quantized = options.quantization.is_some();
    let target = Target { device: options.device, kind, quantized, region: &region };
    let decoder = Decoder::load(&checkpoint, &config, target)?;
    checkpoint.forget_pages();
    Ok(LoadedDecoder { decoder, generation, threads: options.threads })
}

impl LoadedDecoder {
    /// The model.
    pub fn config(&self) -> &DecoderConfig {
        &self.decoder.config
    }

    /// Which tokens end a text, and how its makers want the model sampled.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Bytes of a KV block over all layers.
    pub fn bytes_per_block(&self, block_size: usize) -> usize {
        self.decoder.config.bytes_per_block(block_size, self.decoder.kind)
    }

    /// Allocates the cache.
    ///
    /// # Errors
    /// When the cache cannot be made of such a size.
    pub fn with_cache(self, size: CacheSize) -> Result<Runner, LlmError> {
        let Self { decoder, generation, threads } = self;
        let _inference = InferenceMode::enter();
        let cache = KvCache::new(&decoder.config, size, decoder.kind, decoder.device)?;
        let means = Means::best(decoder.device);
        let workspace = Workspace::new();
        Ok(Runner {
            decoder,
            generation,
            cache,
            workspace,
            means,
            threads,
            threads_set_on: None,
            pages_gathered: 0,
        })
    }
}

/// A model and its cache. One thread at a time runs its steps.
pub struct Runner {
    decoder: Decoder,
    generation: Generation,
    cache: KvCache,
    workspace: Workspace,
    means: Means,
    threads: usize,
    /// The thread that helpers were set for.
    threads_set_on: Option<ThreadId>,
    pages_gathered: u64,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Runner");
        out.field("config", &self.decoder.config).field("cache", &self.cache.size).finish_non_exhaustive()
    }
}

impl Runner {
    /// The model.
    pub fn config(&self) -> &DecoderConfig {
        &self.decoder.config
    }

    /// Which tokens end a text, and how its makers want the model sampled.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Blocks of the cache and tokens of a block.
    pub fn cache_size(&self) -> CacheSize {
        self.cache.size
    }

    /// Pages that were copied together for attention since the start: none on a CPU.
    pub fn pages_gathered(&self) -> u64 {
        self.pages_gathered
    }

    /// The same model with another cache, in which nothing is.
    ///
    /// # Errors
    /// When the cache cannot be made of such a size.
    pub fn with_cache(mut self, size: CacheSize) -> Result<Self, LlmError> {
        let _inference = InferenceMode::enter();
        self.cache = KvCache::new(&self.decoder.config, size, self.decoder.kind, self.decoder.device)?;
        Ok(self)
    }

    /// Computes attention by other means than the device's best.
    #[must_use]
    pub fn with_means(mut self, means: Means) -> Self {
        // The kernels know the CPU's memory only.
        if self.decoder.device == Device::Cpu || means == Means::Operators {
            self.means = means;
        }
        self
    }

    /// Copies blocks, feeds the tokens of all works at once, writes their keys and values to their blocks, and
    /// answers logits `[rows, vocabulary]` in `f32`, on the model's device: work after work, a row for each token of
    /// one that scores, in their order, so that the last is what is sampled if it samples too; else a row for the
    /// last token of one that samples, and none for the others.
    ///
    /// No two works may write to one block, and none may write to what another reads.
    ///
    /// # Errors
    /// When a work does not fit the model or the cache, memory is wanting, or LibTorch fails. Refused works have
    /// changed nothing; copies are done in any case but their own error, or where no threads can be had.
    pub fn step(&mut self, work: &[Work], copies: &[(BlockId, BlockId)]) -> Result<Tensor, BackendError> {
        let CacheSize { blocks, block_size } = self.cache.size;
        let (vocabulary, context) = (self.decoder.config.vocabulary, self.decoder.config.context);
        let batch = Batch::new(work, Limits { vocabulary, context, blocks, block_size });
        self.set_threads()?;
        let _inference = InferenceMode::enter();
        self.cache.copy(copies)?;
        let batch = batch?;
        if batch.tokens.is_empty() {
            return Ok(Tensor::f_zeros([0, vocabulary], (Kind::Float, self.decoder.device))?);
        }
        let (logits, gathered) =
            self.decoder.forward(&batch, &mut self.cache, &mut self.workspace, self.means)?;
        self.pages_gathered += gathered;
        Ok(logits)
    }

    fn set_threads(&mut self) -> Result<(), BackendError> {
        let thread = std::thread::current().id();
        if self.threads_set_on != Some(thread) {
            device::set_threads(self.threads);
            // Beside LibTorch's helpers ours would want for cores: kernels have their own where all of them are ours.
            if self.decoder.device == Device::Cpu && self.decoder.is_packed() {
                device::start_team(self.threads)?;
            }
            self.threads_set_on = Some(thread);
        }
        Ok(())
    }
}
