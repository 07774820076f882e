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

use super::{DynModel, Input, Loaded, Output, Signature, batch_error};
use crate::tensor::{HostTensor, TensorSpec};
use crate::torch::device::set_threads;
use crate::torch::memory::{Meter, count_allocations};
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
        let mut model = TorchScript::new(Arc::clone(&module), options);
        warmup::run(&mut model, options)?;
        if module.is_stateless() {
            let shared = || TorchScript {
                outputs: model.outputs.clone(),
                ..TorchScript::new(Arc::clone(&module), options)
            };
            models.extend((1..options.instances).map(|_| shared()));
        }
        outputs.clone_from(&model.outputs);
        models.push(model);
    }
    Ok(Loaded {
        signature: Signature::Tensors { inputs: options.inputs.clone(), outputs },
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
    outputs: Vec<TensorSpec>,
    threads: usize,
    /// The thread that LibTorch's thread count was set for.
    threads_set_on: Option<ThreadId>,
    device: Device,
    /// Of the last batch.
    peak_bytes: Option<u64>,
}

impl TorchScript {
    fn new(module: Arc<Module>, options: &TorchScriptOptions) -> Self {
        Self {
            module,
            stackers: options.inputs.iter().map(|spec| Stacker::new(spec.dtype, options.device)).collect(),
            outputs: options.outputs.clone(),
            threads: options.threads,
            threads_set_on: None,
            device: options.device,
            peak_bytes: None,
        }
    }

    /// Runs the items, each with one tensor an input, as one batch. The result may be a view of this
    /// instance's buffers.
    fn forward(&mut self, items: &[&[HostTensor]]) -> Result<Outputs, BatchError> {
        let thread = thread::current().id();
        if self.threads_set_on != Some(thread) {
            set_threads(self.threads);
            self.threads_set_on = Some(thread);
        }
        let given = self.stackers.len();
        if let Some(item) = items.iter().find(|item| item.len() != given) {
            return Err(ModelError(format!("{} tensors for {given} inputs", item.len())).into());
        }
        let batches: Vec<Tensor> = (self.stackers.iter_mut().enumerate())
            .map(|(input, stacker)| stacker.stack(items.iter().map(|item| &item[input])))
            .collect::<Result<_, _>>()
            .map_err(|error| batch_error(&format!("the batch cannot be put together: {error}")))?;
        let batches: Vec<&Tensor> = batches.iter().collect();
        self.module.forward(&batches).map_err(|error| batch_error(&error.0))
    }

    /// Takes apart what [`TorchScript::forward`] answered for as many items.
    fn rows(&self, outputs: Outputs, items: usize) -> Result<Vec<Output>, BatchError> {
        let tensors = self.in_order(outputs)?;
        let mut rows: Vec<Output> = (0..items).map(|_| Vec::with_capacity(tensors.len())).collect();
        for (spec, tensor) in self.outputs.iter().zip(&tensors) {
            let failed = |reason: String| batch_error(&format!("output \"{}\": {reason}", spec.name));
            check(spec, tensor).map_err(failed)?;
            split(tensor, items, |item, row| rows[item].push(row))
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
        let items: Vec<&[HostTensor]> = inputs
            .iter()
            .map(|input| match &**input {
                Input::Tensors(tensors) => Ok(tensors.as_slice()),
                Input::Tokens(_) => Err(ModelError("this model takes tensors, not tokens".to_owned())),
            })
            .collect::<Result<_, _>>()?;
        let _inference = InferenceMode::enter();
        self.peak_bytes = None;
        let meter = Meter::start(self.device);
        let rows = self.forward(&items).and_then(|outputs| self.rows(outputs, items.len()));
        self.peak_bytes = meter.stop();
        Ok(rows?.into_iter().map(Ok).collect())
    }

    fn peak_bytes(&mut self) -> Option<u64> {
        self.peak_bytes
    }
}
