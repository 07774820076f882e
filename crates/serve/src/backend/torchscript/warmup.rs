//! The first runs of a module, on zeros: they check it against its declarations, find outputs that
//! are not declared, and leave the caches of LibTorch filled.

use super::{Layout, LoadError, TorchScript, TorchScriptOptions};
use crate::tensor::{HostTensor, TensorSpec};
use crate::torch::module::Outputs;
use crate::torch::shim::InferenceMode;
use crate::torch::tensor::dtype;

/// What -1 dimensions are in the first runs.
const SMALL: usize = 8;

/// What they are in one more run, which tells what dimensions of the outputs follow them.
const OTHER: usize = 16;

/// Runs `model` as often as the options say, and finds its outputs where none are declared.
pub(super) fn run(model: &mut TorchScript, options: &TorchScriptOptions) -> Result<(), LoadError> {
    let _inference = InferenceMode::enter();
    if model.outputs.is_empty() {
        model.outputs = find_outputs(model, options)?;
    }
    let most = options.max_batch_size.max(1);
    let sizes = if most == 1 { vec![1] } else { vec![1, most] };
    let (small, _) = open_sizes(options);
    for batch_size in sizes {
        for _ in 0..options.warmup {
            let (outputs, layout) = try_run(model, options, batch_size, small)?;
            model
                .rows(outputs, batch_size, &layout)
                .map_err(|error| LoadError::Outputs { batch_size, reason: error.to_string() })?;
        }
    }
    Ok(())
}

/// Two sizes for -1 dimensions, neither longer than the model takes.
fn open_sizes(options: &TorchScriptOptions) -> (usize, usize) {
    let other = options.max_length.unwrap_or(OTHER).clamp(1, OTHER);
    (SMALL.min(other.div_ceil(2)), other)
}

fn try_run(
    model: &mut TorchScript,
    options: &TorchScriptOptions,
    batch_size: usize,
    open_size: usize,
) -> Result<(Outputs, Layout), LoadError> {
    let item: Vec<HostTensor> = options.inputs.iter().map(|spec| zeros(spec, open_size)).collect();
    let items = vec![item.as_slice(); batch_size];
    let failed = |reason: String| LoadError::Run {
        batch_size,
        sizes: if has_open_dimension(options) {
            format!(", its -1 dimensions being {open_size}")
        } else {
            String::new()
        },
        reason,
    };
    let layout = model.layout(&items, 0).map_err(|error| failed(error.0))?;
    let outputs = model.forward(&items, &layout).map_err(|error| failed(error.to_string()))?;
    Ok((outputs, layout))
}

fn has_open_dimension(options: &TorchScriptOptions) -> bool {
    options.inputs.iter().any(|spec| spec.shape.contains(&-1))
}

fn zeros(spec: &TensorSpec, open_size: usize) -> HostTensor {
    let shape: Vec<usize> =
        spec.shape.iter().map(|size| usize::try_from(*size).unwrap_or(open_size)).collect();
    let bytes = shape.iter().product::<usize>() * spec.dtype.size();
    HostTensor { dtype: spec.dtype, shape, data: vec![0; bytes].into() }
}

/// What `model` answers: named as in its dictionary, else `output`, or `output_0` and so on. A
/// dimension is -1 where it differs between two sizes of the inputs' -1 dimensions.
fn find_outputs(model: &mut TorchScript, options: &TorchScriptOptions) -> Result<Vec<TensorSpec>, LoadError> {
    let (small, other) = open_sizes(options);
    let (seen, layout) = try_run(model, options, 1, small)?;
    let mut specs =
        describe(&seen, layout.rows).map_err(|reason| LoadError::Outputs { batch_size: 1, reason })?;
    if has_open_dimension(options) {
        // A model that takes no other size keeps the sizes that were seen.
        if let Ok((other, _)) = try_run(model, options, 1, other) {
            for (spec, tensor) in specs.iter_mut().zip(&other.tensors) {
                for (size, other) in spec.shape.iter_mut().zip(tensor.size().into_iter().skip(1)) {
                    if *size != other {
                        *size = -1;
                    }
                }
            }
        }
    }
    Ok(specs)
}

fn describe(outputs: &Outputs, rows: usize) -> Result<Vec<TensorSpec>, String> {
    if outputs.tensors.is_empty() {
        return Err("it answers no tensor".to_owned());
    }
    let name = |index: usize| match outputs.names.get(index) {
        Some(name) => name.clone(),
        None if outputs.tensors.len() == 1 => "output".to_owned(),
        None => format!("output_{index}"),
    };
    (outputs.tensors.iter().enumerate())
        .map(|(index, tensor)| {
            let name = name(index);
            let (kind, sizes) = (tensor.kind(), tensor.size());
            let dtype = dtype(kind).ok_or_else(|| {
                format!("output \"{name}\" has elements of type {kind:?}, which cannot be answered")
            })?;
            if sizes.first().and_then(|size| usize::try_from(*size).ok()) != Some(rows) {
                return Err(format!(
                    "output \"{name}\" is {sizes:?}, whose first dimension is not the batch"
                ));
            }
            Ok(TensorSpec { name, dtype, shape: sizes[1..].to_vec(), pad: None })
        })
        .collect()
}
