//! Real models behind the real batcher: what becomes of a batch that gets no memory, and what padding
//! strategies make of items of different lengths.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::Device;
use tempfile::TempDir;
use trustformers_batching::batcher::BatchRecord;
use trustformers_batching::replay::Event;
use trustformers_batching::{
    BatchError, Batcher, BucketConfig, ClientId, Failure, InstanceId, Instances, MonotonicClock, Observer,
    Outcome, PaddingStrategy, Priority, SchedulerConfig, ShapeKey, Submission,
};
use trustformers_serve::backend::encoder::{self, EncoderOptions};
use trustformers_serve::backend::torchscript::{self, TorchScriptOptions};
use trustformers_serve::backend::{Input, Loaded, Output, Signature};
use trustformers_serve::config::{Settings, cache_folders};
use trustformers_serve::tensor::{DType, HostTensor, TensorSpec};
use trustformers_serve::torch::gauge::fail_above;

/// The limit of [`fail_above`] is the process's: one test at a time, whatever runs them.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the limit whatever becomes of the test.
struct Limit;

impl Limit {
    fn set(bytes: u64) -> Self {
        fail_above(Some(bytes));
        Self
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        fail_above(None);
    }
}

/// A TorchScript file with the methods of `source`.
fn saved(source: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("import torch\nfrom torch import Tensor\nclass M(torch.nn.Module):\n{source}\n");
    std::fs::write(folder.path().join("m.py"), text).unwrap();
    let done = Command::new("python3")
        .args(["-W", "ignore", "-c", "import m, torch; torch.jit.script(m.M()).save('m.pt')"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let path = folder.path().join("m.pt");
    (folder, path)
}

fn spec(name: &str, dtype: DType, shape: &[i64], pad: Option<f64>) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec(), pad }
}

fn options(path: &Path, inputs: Vec<TensorSpec>, max_batch_size: usize) -> TorchScriptOptions {
    TorchScriptOptions {
        path: path.to_owned(),
        inputs,
        outputs: Vec::new(),
        device: Device::Cpu,
        instances: 1,
        threads: 1,
        warmup: 1,
        max_batch_size,
        static_batch: false,
        max_length: None,
        truncation: false,
    }
}

/// Remembers each batch's size and end.
#[derive(Default)]
struct Seen(Mutex<Vec<(usize, Outcome)>>);

impl Observer for Seen {
    fn batch_started(&self, _instance: InstanceId) {}

    fn batch_ended(&self, record: &BatchRecord<'_>) {
        self.0.lock().unwrap().push((record.size, record.outcome));
    }

    fn event(&self, _event: Event) {}
}

/// A model with its batcher and its threads.
struct Served {
    batcher: Arc<Batcher<Input, Output>>,
    seen: Arc<Seen>,
    signature: Signature,
    instances: Instances<Input, Output>,
}

impl Served {
    fn start(loaded: Loaded, config: SchedulerConfig) -> Self {
        let seen = Arc::new(Seen::default());
        let clock = Arc::new(MonotonicClock::default());
        let observer = Arc::clone(&seen) as Arc<dyn Observer>;
        let batcher = Arc::new(Batcher::new(config, None, clock, observer, false));
        let instances = Instances::spawn("test", Arc::clone(&batcher), loaded.instances).unwrap();
        Self { batcher, seen, signature: loaded.signature, instances }
    }

    /// Submits all at once and waits for every answer, in order.
    fn ask(&self, items: &[Vec<HostTensor>]) -> Vec<Result<Output, Failure>> {
        let Signature::Tensors { lengths, .. } = &self.signature else { panic!("a text model") };
        let (answer, answers) = mpsc::channel();
        let submissions = items.iter().enumerate().map(|(index, item)| {
            let answer = answer.clone();
            let length = lengths.as_ref().map_or(0, |lengths| lengths.length(item).unwrap());
            let seq_len = u32::try_from(length).unwrap();
            Submission {
                input: Arc::new(Input::Tensors(item.clone())),
                client: ClientId::default(),
                cost: seq_len.max(1),
                seq_len,
                bytes: 0,
                shape: ShapeKey::default(),
                priority: Priority::Normal,
                timeout: None,
                reply: Box::new(move |result| answer.send((index, result)).unwrap()),
            }
        });
        assert!(self.batcher.submit(submissions).iter().all(Result::is_ok));
        let mut all: Vec<_> = answers.iter().take(items.len()).collect();
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, result)| result).collect()
    }

    fn batches(&self) -> Vec<(usize, Outcome)> {
        std::mem::take(&mut *self.seen.0.lock().unwrap())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.instances.drain();
    }
}

fn floats(values: &[f32]) -> HostTensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    HostTensor { dtype: DType::F32, shape: vec![values.len()], data: data.into() }
}

fn values(tensor: &HostTensor) -> Vec<f32> {
    tensor.data.chunks_exact(4).map(|bytes| f32::from_ne_bytes(bytes.try_into().unwrap())).collect()
}

const KIB: u64 = 1024;

/// A model that needs 64 KiB an item, beside a few bytes, and answers its input doubled.
fn hungry() -> (TempDir, TorchScriptOptions) {
    let (folder, path) = saved("  def forward(self, x):\n    return (x.expand(-1, 16384) * 2).mean(1)");
    (folder, options(&path, vec![spec("x", DType::F32, &[1], None)], 32))
}

#[test]
fn a_batch_without_memory_is_halved_all_are_answered_and_later_batches_are_smaller() {
    let _alone = alone();
    let (_folder, options) = hungry();
    let loaded = torchscript::load(&options).unwrap();
    let served = Served::start(loaded, SchedulerConfig { max_batch_size: 32, ..SchedulerConfig::default() });
    let items: Vec<_> = (0..32u8).map(|item| vec![floats(&[f32::from(item)])]).collect();
    let right = |answers: Vec<Result<Output, Failure>>| {
        let answers = answers.into_iter().map(|answer| values(&answer.unwrap()[0])[0]);
        assert!(answers.eq((0..32u8).map(|item| f32::from(item) * 2.0)));
    };

    let limit = Limit::set(28 * 64 * KIB);
    right(served.ask(&items));
    assert_eq!(
        served.batches(),
        [(32, Outcome::OutOfMemory), (16, Outcome::Completed), (16, Outcome::Completed)]
    );
    right(served.ask(&items));
    assert_eq!(served.batches(), [(25, Outcome::Completed), (7, Outcome::Completed)], "a fifth below 32");

    drop(limit);
    right(served.ask(&items));
    assert!(served.batches().iter().all(|(size, _)| *size <= 25), "what was learnt stays for a while");
}

#[test]
fn one_item_without_memory_fails_alone_with_the_allocators_words() {
    let _alone = alone();
    let (_folder, options) = hungry();
    let served = Served::start(torchscript::load(&options).unwrap(), SchedulerConfig::default());
    let limit = Limit::set(32 * KIB);
    let error = served.ask(&[vec![floats(&[1.0])]]).pop().unwrap().unwrap_err().to_string();
    assert!(error.contains("DefaultCPUAllocator: can't allocate memory") && !error.contains('\n'), "{error}");
    drop(limit);
    assert_eq!(values(&served.ask(&[vec![floats(&[3.0])]])[0].as_ref().unwrap()[0]), [6.0]);
}

#[test]
fn the_peak_of_a_batch_grows_with_its_items_and_nothing_is_left_over() {
    let _alone = alone();
    let (_folder, options) = hungry();
    let mut model = torchscript::load(&options).unwrap().instances.pop().unwrap();
    let mut peak = |items: usize| {
        let input = Arc::new(Input::Tensors(vec![floats(&[1.0])]));
        let inputs = vec![input; items];
        model.run(&inputs).unwrap();
        model.peak_bytes().unwrap()
    };
    for items in [1, 8, 32, 8, 1] {
        let expected = items as u64 * 64 * KIB;
        let got = peak(items);
        assert!((expected..expected + 8 * KIB).contains(&got), "{items} items took {got} bytes");
    }
}

#[test]
fn an_encoder_counts_its_peak_and_knows_a_want_of_memory() {
    let _alone = alone();
    let models = Settings::load(None, cache_folders(), &[]).unwrap().builtin_models;
    let options = EncoderOptions {
        path: models.join("minilm"),
        device: Device::Cpu,
        instances: 1,
        threads: 2,
        warmup: 1,
        warmup_batch_size: 8,
        max_length: None,
        truncation: true,
    };
    let mut model = encoder::load(&options).unwrap().instances.pop().unwrap();
    let text = Arc::new(Input::Tokens(vec![101; 64]));
    let batch = |items: usize| vec![Arc::clone(&text); items];
    let mut peak = |items: usize| {
        model.run(&batch(items)).unwrap();
        model.peak_bytes().unwrap()
    };
    let (one, eight) = (peak(1), peak(8));
    // The widest moment has the states (384 wide) and the perceptron's middle (1,536) in memory.
    assert!(one >= 64 * (384 + 1536) * 4, "{one}");
    assert!((5 * one..9 * one).contains(&eight), "{one} {eight}");
    // Blocks are rounded up after they are asked for, so not just below.
    let limit = Limit::set(eight - eight / 50);
    assert!(matches!(model.run(&batch(8)), Err(BatchError::OutOfMemory(_))));
    assert!(model.run(&batch(7)).is_ok());
    drop(limit);
    assert!(model.run(&batch(8)).is_ok());
}

/// The mean of the embeddings that a mask leaves, and the embeddings themselves.
fn masked_mean() -> (TempDir, TorchScriptOptions) {
    let (folder, path) = saved(
        "  def __init__(self):
    super().__init__()
    torch.manual_seed(0)
    self.e = torch.nn.Embedding(100, 8)
  def forward(self, ids, mask):
    w = mask.to(torch.float32).unsqueeze(2)
    e = self.e(ids) * w
    return e.sum(dim=1) / w.sum(dim=1), e",
    );
    let inputs = vec![spec("ids", DType::I64, &[-1], Some(0.0)), spec("mask", DType::Bool, &[-1], Some(0.0))];
    (folder, options(&path, inputs, 16))
}

fn sequence(length: usize) -> Vec<HostTensor> {
    let ids: Vec<u8> =
        (0..length).flat_map(|place| ((length * 7 + place * 13) as i64 % 99 + 1).to_ne_bytes()).collect();
    let mask: Vec<u8> = (0..length).map(|place| u8::from(place % 3 != 2)).collect();
    vec![
        HostTensor { dtype: DType::I64, shape: vec![length], data: ids.into() },
        HostTensor { dtype: DType::Bool, shape: vec![length], data: mask.into() },
    ]
}

#[test]
fn every_padding_strategy_gives_each_item_what_it_gets_alone() {
    let _alone = alone();
    let (_folder, options) = masked_mean();
    let lengths: Vec<usize> = (0..40).map(|item| 1 + item * 29 % 63).chain([63, 63, 1]).collect();
    let items: Vec<_> = lengths.iter().map(|&length| sequence(length)).collect();
    let solo = Served::start(torchscript::load(&options).unwrap(), SchedulerConfig::default());
    let solo: Vec<Output> =
        items.iter().map(|item| solo.ask(std::slice::from_ref(item)).remove(0).unwrap()).collect();
    for strategy in
        [PaddingStrategy::Minimal, PaddingStrategy::Maximum, PaddingStrategy::None, PaddingStrategy::Dynamic]
    {
        for boundaries in [vec![], vec![16, 32, 64]] {
            let buckets = BucketConfig { enabled: !boundaries.is_empty(), boundaries, strategy };
            let config = SchedulerConfig { max_batch_size: 16, buckets, ..SchedulerConfig::default() };
            let served = Served::start(torchscript::load(&options).unwrap(), config);
            let answers = served.ask(&items);
            for ((answer, alone), length) in answers.into_iter().zip(&solo).zip(&lengths) {
                let answer = answer.unwrap();
                assert_eq!(answer[1].shape, [*length, 8], "{strategy:?}");
                for (batched, alone) in answer.iter().zip(alone) {
                    let near = values(batched).iter().zip(values(alone)).all(|(a, b)| (a - b).abs() < 1e-6);
                    assert!(near && batched.shape == alone.shape, "{strategy:?} {length}");
                }
            }
            let batches = served.batches();
            assert!(batches.len() < items.len(), "{strategy:?} batches: {batches:?}");
        }
    }
}
