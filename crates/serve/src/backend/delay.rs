//! A model that takes a set time and computes nothing: for tests and benchmarks of everything but the model.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use trustformers_batching::{BatchResults, Model, ModelError};

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
    let data = TensorSpec { name: "data".to_owned(), dtype: DType::F32, shape: vec![-1], pad: None };
    let instance = || -> DynModel { Box::new(Delay::new(options)) };
    Loaded {
        signature: Signature::Tensors { inputs: vec![data.clone()], outputs: vec![data], lengths: None },
        instances: (0..options.instances).map(|_| instance()).collect(),
    }
}

/// One instance.
#[derive(Debug)]
pub struct Delay {
    batch: Duration,
    item: Duration,
}

impl Delay {
    /// One instance.
    pub fn new(options: &DelayOptions) -> Self {
        Self { batch: options.batch_time, item: options.item_time }
    }
}

impl Model for Delay {
    type Input = Input;
    type Output = Output;

    fn run(&mut self, inputs: &[Arc<Input>]) -> BatchResults<Output> {
        let started = Instant::now();
        let items = u32::try_from(inputs.len()).unwrap_or(u32::MAX);
        wait_until(started + self.batch.saturating_add(self.item.saturating_mul(items)));
        Ok(inputs
            .iter()
            .map(|input| match &**input {
                Input::Tensors(tensors) => Ok(tensors.clone()),
                Input::Tokens(_) => Err(ModelError("the delay model takes tensors, not tokens".to_owned())),
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
        thread::sleep(left.saturating_sub(OVERSLEEP));
    }
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::HostTensor;

    fn items(count: usize) -> Vec<Arc<Input>> {
        let item = |index| HostTensor {
            dtype: DType::F32,
            shape: vec![1],
            data: f32::to_ne_bytes(index as f32).to_vec().into(),
        };
        (0..count).map(|index| Arc::new(Input::Tensors(vec![item(index)]))).collect()
    }

    fn delay(batch_time: Duration, item_time: Duration) -> Delay {
        Delay::new(&DelayOptions { batch_time, item_time, instances: 1 })
    }

    #[test]
    fn answers_what_it_was_given() {
        let inputs = items(3);
        let answers = delay(Duration::ZERO, Duration::ZERO).run(&inputs).unwrap();
        let answers = answers.into_iter().map(|answer| Arc::new(Input::Tensors(answer.unwrap())));
        assert_eq!(answers.collect::<Vec<_>>(), inputs);
    }

    #[test]
    fn takes_the_time_of_the_batch_and_of_each_item_and_hardly_more() {
        let mut delay = delay(Duration::from_millis(2), Duration::from_micros(500));
        let inputs = items(4);
        // The best of some: other processes may hold a core at any moment.
        let best = (0..20)
            .map(|_| {
                let started = Instant::now();
                delay.run(&inputs).unwrap();
                started.elapsed()
            })
            .min()
            .unwrap();
        let set = Duration::from_millis(4);
        assert!(best >= set && best < set + Duration::from_micros(100), "{best:?}");
    }
}
