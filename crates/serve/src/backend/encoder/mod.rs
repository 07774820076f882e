//! BERT-family sentence encoders, run natively from Hugging Face checkpoint folders.
//!
//! Invariants:
//! - Nothing is padded: the texts of a batch are the rows of one matrix, and only attention knows where
//!   one ends, so a text's embedding does not depend on its company.
//! - Weights are in memory once for all instances: embeddings in place in the mapped file, linear
//!   layers packed for the CPU (or copied to the GPU), their file pages given back.
//!
//! Code map: [`config`] reads the JSON files, [`tokenizer`] makes ids, [`weights`] maps the checkpoint,
//! [`packing`] lays a batch out, [`bert`] computes, [`pooling`] makes one vector a text.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::ThreadId;

use bytes::Bytes;
use tch::{Device, TchError};
use trustformers_batching::{BatchError, BatchResults, Model, ModelError};

mod bert;
mod config;
mod error;
mod packing;
mod pooling;
mod tokenizer;
mod weights;

use self::bert::Bert;
use self::config::ModelConfig;
pub use self::error::{EncoderError, TokenError};
use self::packing::Pack;
use self::pooling::Pooling;
pub use self::tokenizer::TextTokenizer;
use self::weights::Checkpoint;
use super::{DynModel, Input, Loaded, Output, Signature, batch_error};
use crate::tensor::{DType, HostTensor};
use crate::torch::gauge::{Meter, count_allocations};
use crate::torch::shim::InferenceMode;

/// What to load and how to run it.
#[derive(Debug, Clone)]
pub struct EncoderOptions {
    /// The checkpoint's folder: config.json, tokenizer.json, model.safetensors, and for a
    /// sentence-transformers model its modules.json.
    pub path: PathBuf,
    /// Where to run.
    pub device: Device,
    /// Instances to make; they share the weights.
    pub instances: usize,
    /// LibTorch threads of each instance.
    pub threads: usize,
    /// Runs before an instance counts as loaded, each at batch size 1 and at `warmup_batch_size`.
    pub warmup: usize,
    /// The larger batch of a warm-up.
    pub warmup_batch_size: usize,
    /// The most tokens of a text, instead of what the checkpoint says.
    pub max_length: Option<usize>,
    /// Whether a text with more is cut, where its caller does not say; otherwise it is refused.
    pub truncation: bool,
}

/// Loads a checkpoint and warms its instances up.
///
/// Without the files of sentence-transformers an embedding is the mean over the text's tokens, not
/// normalised.
///
/// # Errors
/// When a file is missing, damaged or asks for what is not implemented, naming it.
pub fn load(options: &EncoderOptions) -> Result<Loaded, EncoderError> {
    count_allocations();
    let settings = config::read(&options.path)?;
    let tokenizer = Arc::new(TextTokenizer::load(&settings, options.max_length, options.truncation)?);
    let path = settings.directory.join("model.safetensors");
    let checkpoint = Checkpoint::open(&path, settings.model.architecture.prefix())?;
    let bert = {
        let _inference = InferenceMode::enter();
        Bert::load(&checkpoint, &settings.model, options.device)?
    };
    checkpoint.forget_pages();
    let dimensions = usize::try_from(settings.model.hidden).unwrap_or(0);
    let mut encoders: Vec<Encoder> = (0..options.instances)
        .map(|_| Encoder {
            bert: bert.share(),
            tokenizer: Arc::clone(&tokenizer),
            config: settings.model.clone(),
            pooling: settings.pooling,
            normalize: settings.normalize,
            most_rows: if options.device == Device::Cpu { CPU_ROWS } else { GPU_ROWS },
            threads: options.threads,
            threads_set_on: None,
            device: options.device,
            peak_bytes: None,
        })
        .collect();
    warm_up(&mut encoders, options)?;
    Ok(Loaded {
        signature: Signature::Text { tokenizer, dimensions },
        instances: encoders.into_iter().map(|encoder| Box::new(encoder) as DynModel).collect(),
    })
}

/// Rows of a pack on the CPU: more would push a layer's states out of the cache between its steps.
const CPU_ROWS: usize = 1024;

/// Rows of a pack on a GPU, bounded for the sake of its memory.
const GPU_ROWS: usize = 32_768;

/// A text as long as most that are embedded.
const WARM_UP_TEXT: &str =
    "A sentence of about twenty tokens, which is as long as most of those that will come later.";

fn reason(error: BatchError) -> ModelError {
    match error {
        BatchError::Failed(error) | BatchError::OutOfMemory(error) => error,
    }
}

fn warm_up(encoders: &mut [Encoder], options: &EncoderOptions) -> Result<(), EncoderError> {
    let failed = |error: String| EncoderError::WarmUp(error);
    let Some(first) = encoders.first() else { return Ok(()) };
    let ids = first.tokenizer.encode(WARM_UP_TEXT).map_err(|error| failed(error.to_string()))?;
    let input = Arc::new(Input::Tokens(ids));
    // On a thread of its own: the number of LibTorch threads is set for the thread that runs.
    std::thread::scope(|scope| {
        let runs = scope.spawn(|| {
            for encoder in encoders {
                for _ in 0..options.warmup {
                    for size in [1, options.warmup_batch_size.max(1)] {
                        for result in encoder.run(&vec![Arc::clone(&input); size]).map_err(reason)? {
                            result?;
                        }
                    }
                }
            }
            Ok::<_, ModelError>(())
        });
        match runs.join() {
            Ok(result) => result.map_err(|error| failed(error.0)),
            Err(_) => Err(failed("it panicked".into())),
        }
    })
}

/// One instance of an encoder.
struct Encoder {
    bert: Bert,
    tokenizer: Arc<TextTokenizer>,
    config: ModelConfig,
    pooling: Pooling,
    normalize: bool,
    most_rows: usize,
    threads: usize,
    /// The thread that LibTorch's thread count was set for.
    threads_set_on: Option<ThreadId>,
    device: Device,
    /// Of the last batch.
    peak_bytes: Option<u64>,
}

impl Encoder {
    /// The embeddings of the sequences of a pack, one after another as native `f32`.
    fn embed(&self, pack: &Pack) -> Result<Bytes, TchError> {
        let states = self.bert.forward(pack)?;
        let mut rows = self.pooling.pool(&states, &pack.lengths)?;
        if self.normalize {
            rows = pooling::normalize(&rows)?;
        }
        let rows = rows.f_to_device(Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0; rows.numel() * size_of::<f32>()];
        rows.f_copy_data_u8(&mut bytes, rows.numel())?;
        Ok(bytes.into())
    }

    fn embed_all(&self, inputs: &[Arc<Input>]) -> BatchResults<Output> {
        let (mut places, mut sequences) = (Vec::new(), Vec::new());
        let mut results: Vec<Result<Output, ModelError>> = Vec::with_capacity(inputs.len());
        for (place, input) in inputs.iter().enumerate() {
            match self.checked(input) {
                Ok(ids) => {
                    places.push(place);
                    sequences.push(ids);
                    results.push(Ok(Vec::new()));
                }
                Err(error) => results.push(Err(error)),
            }
        }
        let lengths: Vec<usize> = sequences.iter().map(|ids| ids.len()).collect();
        let dimensions = usize::try_from(self.config.hidden).unwrap_or(0);
        let width = dimensions * size_of::<f32>();
        for members in packing::plan(&lengths, self.most_rows) {
            let pack = Pack::new(&self.config, members.iter().map(|&member| sequences[member]));
            let rows = self.embed(&pack).map_err(|error| batch_error(&error.to_string()))?;
            for (row, &member) in members.iter().enumerate() {
                let data = rows.slice(row * width..(row + 1) * width);
                results[places[member]] =
                    Ok(vec![HostTensor { dtype: DType::F32, shape: vec![dimensions], data }]);
            }
        }
        Ok(results)
    }

    fn set_threads(&mut self) {
        let thread = std::thread::current().id();
        if self.threads_set_on != Some(thread) {
            crate::torch::device::set_threads(self.threads);
            self.threads_set_on = Some(thread);
        }
    }

    fn checked<'a>(&self, input: &'a Input) -> Result<&'a [u32], ModelError> {
        match input {
            Input::Tokens(ids) => {
                self.tokenizer.check_ids(ids).map_err(|error| ModelError(error.to_string()))?;
                Ok(ids)
            }
            Input::Tensors(_) => Err(ModelError("a text model takes tokens, not tensors".into())),
        }
    }
}

impl Model for Encoder {
    type Input = Input;
    type Output = Output;

    fn run(&mut self, inputs: &[Arc<Input>]) -> BatchResults<Output> {
        self.set_threads();
        let _inference = InferenceMode::enter();
        self.peak_bytes = None;
        let meter = Meter::start(self.device);
        let results = self.embed_all(inputs);
        self.peak_bytes = meter.stop();
        results
    }

    fn peak_bytes(&mut self) -> Option<u64> {
        self.peak_bytes
    }
}
