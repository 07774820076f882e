//! Reads one model version and starts its instances.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use trustformers_batching::{Batcher, DeviceBudget, Instances, MonotonicClock, SchedulerConfig};

use super::batches::{Batches, NOT_CONTINUOUS, Watcher};
use super::budgets::Budgets;
use super::event_log::EventLog;
use super::generator;
use super::hosting::Hosting;
use super::running::{Running, Work};
use super::sources::{Origin, Source};
use crate::backend::delay::{self, DelayOptions};
use crate::backend::encoder::{self, EncoderOptions};
use crate::backend::torchscript::{self, TorchScriptOptions};
use crate::backend::{Loaded, Signature, builtin, llm};
use crate::config::{BatchingMode, Format};
use crate::metrics::VersionMetrics;
use crate::tensor::TensorSpec;
use crate::torch::device;

/// The version, ready to answer, or the reason why not. Blocks for as long as loading takes.
pub(super) fn load(
    source: &Source,
    threads: usize,
    metrics: &Arc<VersionMetrics>,
    budgets: &Budgets,
) -> Result<Running, String> {
    let started = Instant::now();
    let settings = &source.settings;
    let (path, format) = match &source.origin {
        Origin::Files { path, format } => (path, *format),
        Origin::Hosted(hosted) => {
            let work = Work::Hosted(Arc::new(Hosting::start(hosted, &settings.batching, metrics)?));
            let device = hosted.host.interface().format.to_owned();
            return Ok(Running { load_time: started.elapsed(), device, threads, work });
        }
    };
    let device = device::select(settings.device.into()).map_err(|error| error.to_string())?;
    let (work, device) = match language_model(source, path, format) {
        Some(path) => {
            let generator = generator::load(source, &path, threads, device, metrics)?;
            (Work::Generation(generator), device::name(device))
        }
        None => {
            let loaded = read(source, path, format, threads, device)?;
            let device = device::name(device);
            (Work::Batches(batches(source, loaded, &device, metrics, budgets)?), device)
        }
    };
    Ok(Running { load_time: started.elapsed(), device, threads, work })
}

/// The folder of the checkpoint, where it is of a model that generates text.
fn language_model(source: &Source, path: &Path, format: Format) -> Option<PathBuf> {
    let path = match format {
        Format::Huggingface => path.to_owned(),
        Format::Builtin => {
            let model = builtin::find(source.model()).filter(|_| source.settings.delay.is_none())?;
            path.join(model.file)
        }
        Format::Torchscript => return None,
    };
    llm::is_language_model(&path).then_some(path)
}

/// Starts the instances of a model that runs batches of requests.
fn batches(
    source: &Source,
    loaded: Loaded,
    device: &str,
    metrics: &Arc<VersionMetrics>,
    budgets: &Budgets,
) -> Result<Batches, String> {
    let settings = &source.settings;
    if settings.batching.mode == Some(BatchingMode::Continuous) {
        return Err(NOT_CONTINUOUS.to_owned());
    }
    if settings.dtype.is_some() || settings.quantization.is_some() {
        return Err("`dtype` and `quantization` are for models that generate text".to_owned());
    }
    let log = EventLog::of(&settings.batching, source.model(), &source.version)?;
    let log_events = log.is_some();
    let budget = budgets.of(device).filter(|_| settings.batching.dynamic.memory_aware);
    let reads_text = matches!(loaded.signature, Signature::Text { .. });
    let read_tokens = reads_text.then(|| metrics.tokens("prompt"));
    let batcher = Arc::new(Batcher::new(
        SchedulerConfig {
            instances: u32::try_from(loaded.instances.len()).unwrap_or(u32::MAX),
            // The device's limit too, so that what could never run is refused.
            ..settings.batching.scheduler_config(budget.as_ref().map(DeviceBudget::limit))
        },
        budget,
        Arc::new(MonotonicClock::default()),
        Arc::new(Watcher { metrics: Arc::clone(metrics), read_tokens, log }),
        log_events,
    ));
    let name = format!("{}:{}", source.model(), source.version);
    let instances = Instances::spawn(&name, Arc::clone(&batcher), loaded.instances)
        .map_err(|error| format!("cannot start its threads: {error}"))?;
    Ok(Batches::new(loaded.signature, Arc::clone(metrics), batcher, instances))
}

fn read(
    source: &Source,
    path: &Path,
    format: Format,
    threads: usize,
    device: tch::Device,
) -> Result<Loaded, String> {
    let settings = &source.settings;
    match format {
        Format::Torchscript => {
            torchscript(source, path, &settings.inputs, &settings.outputs, threads, device)
        }
        Format::Huggingface => huggingface(source, path, threads, device),
        Format::Builtin => match settings.delay {
            Some(delay) => {
                let (batch_time, item_time) = (delay.batch_time, delay.item_time);
                Ok(delay::load(&DelayOptions { batch_time, item_time, instances: settings.instances }))
            }
            None => read_builtin(source, path, threads, device),
        },
    }
}

fn read_builtin(
    source: &Source,
    folder: &Path,
    threads: usize,
    device: tch::Device,
) -> Result<Loaded, String> {
    let model = builtin::find(source.model())
        .ok_or_else(|| format!("there is no built-in model \"{}\"", source.model()))?;
    let path = folder.join(model.file);
    if !path.exists() {
        let path = path.display();
        return Err(format!(
            "{path} is not there: `python -m trustformers_serve.builtin` makes the built-in models"
        ));
    }
    match model.format {
        Format::Huggingface => huggingface(source, &path, threads, device),
        _ => torchscript(source, &path, &model.inputs, &model.outputs, threads, device),
    }
}

fn torchscript(
    source: &Source,
    path: &Path,
    inputs: &[TensorSpec],
    outputs: &[TensorSpec],
    threads: usize,
    device: tch::Device,
) -> Result<Loaded, String> {
    let settings = &source.settings;
    torchscript::load(&TorchScriptOptions {
        path: path.to_owned(),
        inputs: inputs.to_vec(),
        outputs: outputs.to_vec(),
        device,
        instances: settings.instances,
        threads,
        warmup: settings.warmup as usize,
        max_batch_size: settings.batching.max_batch_size as usize,
        static_batch: settings.static_batch,
        max_length: settings.max_length,
        truncation: settings.truncation.unwrap_or(false),
    })
    .map_err(|error| error.to_string())
}

fn huggingface(source: &Source, path: &Path, threads: usize, device: tch::Device) -> Result<Loaded, String> {
    let settings = &source.settings;
    encoder::load(&EncoderOptions {
        path: path.to_owned(),
        device,
        instances: settings.instances,
        threads,
        warmup: settings.warmup as usize,
        warmup_batch_size: settings.batching.max_batch_size as usize,
        max_length: settings.max_length,
        truncation: settings.truncation.unwrap_or(true),
    })
    .map_err(|error| error.to_string())
}
