//! A model that takes a set time and computes nothing: for tests and benchmarks of everything but the model.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use trustformers_batching::{Model, ModelError};

use super::{DynModel, Input, Loaded, Output, Signature};
use crate::tensor::{DType, TensorSpec};

/// How long it takes.
#[derive(Debug, Clone, Copy)]
pub struct DelayOptions {
    /// For each batch.
    pub batch_time: Duration,
    /// For each item of a batch, in addition.
    pub item_time: Duration,
    /// Copies that wait side by side.
    pub instances: usize,
}

/// Instances that return their one input `data` (`f32`, any length) as their one output.
pub fn load(options: &DelayOptions) -> Loaded {
    let data = TensorSpec { name: "data".to_owned(), dtype: DType::F32, shape: vec![-1] };
    let instance = || -> DynModel { Box::new(Delay { batch: options.batch_time, item: options.item_time }) };
    Loaded {
        signature: Signature::Tensors { inputs: vec![data.clone()], outputs: vec![data] },
        instances: (0..options.instances).map(|_| instance()).collect(),
    }
}

struct Delay {
    batch: Duration,
    item: Duration,
}

impl Model for Delay {
    type Input = Input;
    type Output = Output;

    fn run(&mut self, inputs: &[Arc<Input>]) -> Result<Vec<Result<Output, ModelError>>, ModelError> {
        let items = u32::try_from(inputs.len()).unwrap_or(u32::MAX);
        wait_until(Instant::now() + self.batch + self.item * items);
        Ok(inputs
            .iter()
            .map(|input| match &**input {
                Input::Tensors(tensors) => Ok(tensors.clone()),
                Input::Tokens(_) => Err(ModelError("the delay model reads tensors".to_owned())),
            })
            .collect())
    }
}

/// What a sleeping thread may oversleep.
const OVERSLEEP: Duration = Duration::from_micros(80);

/// Sleeps most of the way and spins the rest: a sleep alone ends up to a tenth of a millisecond late.
fn wait_until(end: Instant) {
    let left = end.saturating_duration_since(Instant::now());
    if left > OVERSLEEP {
        thread::sleep(left - OVERSLEEP);
    }
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}
