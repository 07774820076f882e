//! TorchScript files: modules of any kind whose tensors are declared, run in batches along a new
//! first dimension.
//!
//! - [`warmup`]: the first runs, which check the declarations and find the outputs
//! - [`error`]: why a file does not load
//!
//! One module serves every instance: frozen, it cannot change. A module that does change itself is
//! read once an instance.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use tch::{Device, Tensor};
use trustformers_batching::{BatchError, BatchResults, Model, ModelError};

use super::{DynModel, Input, Lengths, Loaded, Output, Signature, batch_error};
use crate::tensor::{HostTensor, TensorSpec};
use crate::torch::device::set_threads;
use crate::torch::gauge::{Meter, count_allocations};
use crate::torch::module::{Module, Outputs};
use crate::torch::shim::InferenceMode;
use crate::torch::tensor::{Stacker, split};

mod error;
#[cfg(test)]
mod tests;
mod warmup;

pub use self::error::LoadError;

/// What to load, and how it is run.
#[derive(Debug, Clone)]
pub struct TorchScriptOptions {
    /// The file.
    pub path: PathBuf,
    /// What `forward` takes, in its order.
    pub inputs: Vec<TensorSpec>,
    /// What it answers, in its order, or by the names of its dictionary; empty to find out by a run.
    pub outputs: Vec<TensorSpec>,
    /// Where it runs.
    pub device: Device,
    /// How many batches run side by side.
    pub instances: usize,
    /// LibTorch's threads of one instance.
    pub threads: usize,
    /// Runs at batch size 1, and at `max_batch_size`, before the model counts as loaded.
    pub warmup: usize,
    /// The most items of a batch.
    pub max_batch_size: usize,
    /// Whether every batch gets `max_batch_size` rows, for a module that takes no other number of them.
    pub static_batch: bool,
    /// The longest item of a model that pads its inputs; `None`: any.
    pub max_length: Option<usize>,
    /// Whether a longer one is cut.
    pub truncation: bool,
}

impl TorchScriptOptions {
    fn lengths(&self) -> Option<Lengths> {
        Lengths::of(&self.inputs, self.max_length, self.truncation)
    }
}

/// Reads the file, checks it against the declarations, and warms it up.
///
/// # Errors
/// When the file is not a TorchScript module, does not fit its declarations, or fails in a first run.
pub fn load(options: &TorchScriptOptions) -> Result<Loaded, LoadError> {
    // On a thread of its own: LibTorch keeps a team of workers for every thread that ran an operator,
    // for as long as that thread lives.
    thread::scope(|scope| {
        let loading = thread::Builder::new()
            .name("torchscript-load".to_owned())
            .spawn_scoped(scope, || read(options))
            .map_err(LoadError::Thread)?;
        loading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn read(options: &TorchScriptOptions) -> Result<Loaded, LoadError> {
    set_threads(options.threads);
    count_allocations();
    let mut models = Vec::with_capacity(options.instances);
    let mut outputs = options.outputs.clone();
    while models.len() < options.instances.max(1) {
        let module = Arc::new(read_module(options)?);
        let mut model = TorchScript::new(Arc::clone(&module), options)?;
        warmup::run(&mut model, options)?;
        if module.is_stateless() {
            for _ in 1..options.instances {
                let outputs = model.outputs.clone();
                models.push(TorchScript { outputs, ..TorchScript::new(Arc::clone(&module), options)? });
            }
        }
        outputs.clone_from(&model.outputs);
        models.push(model);
    }
    Ok(Loaded {
        signature: Signature::Tensors { inputs: options.inputs.clone(), outputs, lengths: options.lengths() },
        instances: models.into_iter().map(|model| -> DynModel { Box::new(model) }).collect(),
    })
}

fn read_module(options: &TorchScriptOptions) -> Result<Module, LoadError> {
    let path = &options.path;
    error::check_is_archive(path)?;
    let module =
        Module::load(path, options.device).map_err(|reason| LoadError::unreadable(path, &reason.0))?;
    let arguments = module.arguments();
    let declared = options.inputs.len();
    if declared == 0 {
        return Err(LoadError::NoInputs { arguments: arguments.names });
    }
    if declared < arguments.required || declared > arguments.total {
        return Err(LoadError::Inputs { declared, arguments: arguments.names });
    }
    Ok(module)
}

/// One instance.
struct TorchScript {
    module: Arc<Module>,
    stackers: Vec<Stacker>,
    lengths: Option<Lengths>,
    /// The rows of a batch of fewer items.
    least_rows: usize,
    outputs: Vec<TensorSpec>,
    threads: usize,
    /// The thread that LibTorch's thread count was set for.
    threads_set_on: Option<ThreadId>,
    device: Device,
    /// Of the last batch.
    peak_bytes: Option<u64>,
}

impl TorchScript {
    fn new(module: Arc<Module>, options: &TorchScriptOptions) -> Result<Self, LoadError> {
        let stacker = |spec: &TensorSpec| {
            let padding =
                spec.padding().map_err(|reason| LoadError::Pad { input: spec.name.clone(), reason });
            Ok(Stacker::new(spec.dtype, options.device, padding?))
        };
        Ok(Self {
            module,
            stackers: options.inputs.iter().map(stacker).collect::<Result<_, LoadError>>()?,
            lengths: options.lengths(),
            least_rows: if options.static_batch { options.max_batch_size } else { 0 },
            outputs: options.outputs.clone(),
            threads: options.threads,
            threads_set_on: None,
            device: options.device,
            peak_bytes: None,
        })
    }

    /// How a batch of `items` is put together, padded to `length` or to the longest of them.
    fn layout(&self, items: &[&[HostTensor]], length: usize) -> Result<Layout, ModelError> {
        let given = self.stackers.len();
        if let Some(item) = items.iter().find(|item| item.len() != given) {
            return Err(ModelError(format!("{} tensors for {given} inputs", item.len())));
        }
        let rows = self.least_rows.max(items.len());
        let Some(lengths) = &self.lengths else { return Ok(Layout { rows, ..Layout::default() }) };
        let own: Vec<usize> = (items.iter())
            .map(|item| lengths.length(item).map_err(|error| ModelError(error.to_string())))
            .collect::<Result<_, _>>()?;
        let longest = own.iter().copied().max().unwrap_or(0);
        Ok(Layout { rows, length: lengths.padded_length(length, longest), own })
    }

    /// Runs the items, each with one tensor an input, as one batch. The result may be a view of this
    /// instance's buffers.
    fn forward(&mut self, items: &[&[HostTensor]], layout: &Layout) -> Result<Outputs, BatchError> {
        let thread = thread::current().id();
        if self.threads_set_on != Some(thread) {
            set_threads(self.threads);
            self.threads_set_on = Some(thread);
        }
        let batches: Vec<Tensor> = (self.stackers.iter_mut().enumerate())
            .map(|(input, stacker)| {
                stacker.stack(items.iter().map(|item| &item[input]), layout.rows, layout.length)
            })
            .collect::<Result<_, _>>()
            .map_err(|error| batch_error(&format!("the batch cannot be put together: {error}")))?;
        let batches: Vec<&Tensor> = batches.iter().collect();
        self.module.forward(&batches).map_err(|error| batch_error(&error.0))
    }

    /// Takes apart what [`TorchScript::forward`] answered for as many items of that layout.
    fn rows(&self, outputs: Outputs, items: usize, layout: &Layout) -> Result<Vec<Output>, BatchError> {
        let tensors = self.in_order(outputs)?;
        let mut rows: Vec<Output> = (0..items).map(|_| Vec::with_capacity(tensors.len())).collect();
        for (spec, tensor) in self.outputs.iter().zip(&tensors) {
            let failed = |reason: String| batch_error(&format!("output \"{}\": {reason}", spec.name));
            check(spec, tensor).map_err(failed)?;
            let follows = layout.open_dimensions(spec, tensor).map_err(failed)?;
            let cut = |item: usize, row| {
                follows.iter().fold(row, |row: HostTensor, &axis| row.cut(axis, layout.own[item]))
            };
            split(tensor, layout.rows, items, |item, row| rows[item].push(cut(item, row)))
                .map_err(|error| failed(error.to_string()))?;
        }
        Ok(rows)
    }

    /// The tensors in the order of declaration: a dictionary's by name, others as they come.
    fn in_order(&self, outputs: Outputs) -> Result<Vec<Tensor>, ModelError> {
        let Outputs { tensors, names } = outputs;
        if !names.is_empty() {
            let position = |spec: &TensorSpec| names.iter().position(|name| *name == spec.name);
            return (self.outputs.iter())
                .map(|spec| {
                    position(spec).map(|index| tensors[index].shallow_clone()).ok_or_else(|| {
                        ModelError(format!(
                            "output \"{}\" is missing; it answers {}",
                            spec.name,
                            names.join(", ")
                        ))
                    })
                })
                .collect();
        }
        if tensors.len() != self.outputs.len() {
            let (declared, answered) = (self.outputs.len(), tensors.len());
            return Err(ModelError(format!("{declared} outputs are declared, but it answers {answered}")));
        }
        Ok(tensors)
    }
}

/// How a batch was put together, to take it apart again.
#[derive(Debug, Default)]
struct Layout {
    /// Items, and rows without one where the module wants a fixed number.
    rows: usize,
    /// What all are padded to.
    length: usize,
    /// The items' own lengths; empty where nothing is padded.
    own: Vec<usize>,
}

impl Layout {
    /// The dimensions of an item's output that are as long as its inputs.
    fn open_dimensions(&self, spec: &TensorSpec, batch: &Tensor) -> Result<Vec<usize>, String> {
        if self.own.is_empty() {
            return Ok(Vec::new());
        }
        let open: Vec<usize> = (0..spec.shape.len()).filter(|&axis| spec.shape[axis] == -1).collect();
        let sizes = batch.size();
        let size = |axis: usize| usize::try_from(sizes[axis + 1]).unwrap_or(0);
        match open.iter().find(|&&axis| size(axis) != self.length) {
            None => Ok(open),
            Some(&axis) => Err(format!(
                "dimension {axis} is {} for inputs padded to {}, so it cannot be cut to an item's own length; \
                 declare its size, or no `pad`",
                size(axis),
                self.length
            )),
        }
    }
}

/// Checks a batch against the declaration of its items; the number of rows is `split`'s to check.
fn check(spec: &TensorSpec, batch: &Tensor) -> Result<(), String> {
    let (kind, sizes) = (batch.kind(), batch.size());
    if kind != crate::torch::tensor::kind(spec.dtype) {
        let got = crate::torch::tensor::dtype(kind).map_or(format!("{kind:?}"), |dtype| dtype.to_string());
        return Err(format!("{} is declared, but its elements are {got}", spec.dtype));
    }
    let fits = sizes.len() == spec.shape.len() + 1
        && spec.shape.iter().zip(&sizes[1..]).all(|(declared, size)| *declared == -1 || declared == size);
    if fits {
        Ok(())
    } else {
        Err(format!("shape {:?} is declared for an item, but the batch is {sizes:?}", spec.shape))
    }
}

impl Model for TorchScript {
    type Input = Input;
    type Output = Output;

    fn run(&mut self, inputs: &[Arc<Input>]) -> BatchResults<Output> {
        self.run_padded(inputs, 0)
    }

    fn run_padded(&mut self, inputs: &[Arc<Input>], length: u32) -> BatchResults<Output> {
        self.peak_bytes = None;
        let items: Vec<&[HostTensor]> = inputs
            .iter()
            .map(|input| match &**input {
                Input::Tensors(tensors) => Ok(tensors.as_slice()),
                Input::Tokens(_) => Err(ModelError("this model takes tensors, not tokens".to_owned())),
            })
            .collect::<Result<_, _>>()?;
        let layout = self.layout(&items, length as usize)?;
        let _inference = InferenceMode::enter();
        let meter = Meter::start(self.device);
        let rows = self.forward(&items, &layout).and_then(|outputs| self.rows(outputs, items.len(), &layout));
        self.peak_bytes = meter.stop();
        Ok(rows?.into_iter().map(Ok).collect())
    }

    fn peak_bytes(&mut self) -> Option<u64> {
        self.peak_bytes
    }
}
