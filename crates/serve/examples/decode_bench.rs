//! How fast a language model's steps are on this CPU, beside the machine's limits in the same run.
//!
//! `decode_bench FOLDER [--dtype bf16|f16|f32] [--int8] [--threads N] [--context N] [--batches N,..] [--rounds N]`:
//! FOLDER is a checkpoint. Prints tokens a second of decoding at some numbers of sequences and of prompts of 512
//! tokens; the share of the limit; and where a step's time goes, from its parts run by themselves on weights and pages of the same shapes.
//! Medians, and the least in brackets: on a shared machine the least is what the program takes.

use std::error::Error;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use memmap2::{Advice, MmapMut};
use tch::{Device, Kind, Tensor};
use trustformers_batching::continuous::{BlockId, SequenceId, Work};
use trustformers_serve::backend::llm::{
    self, CacheSize, DecoderConfig, LlmOptions, Perceptron, Quantization, Runner,
};
use trustformers_serve::tensor::DType;
use trustformers_serve::torch::device::start_team;
use trustformers_serve::torch::linear::Activation;
use trustformers_serve::torch::paged::{self, InstructionSet, Pages, Preparation, Span};
use trustformers_serve::torch::product::{Finish, Product};
use trustformers_serve::torch::region::Region;

#[derive(Parser)]
struct Arguments {
    /// The checkpoint.
    folder: PathBuf,
    /// What to compute with.
    #[arg(long, default_value = "bf16")]
    dtype: String,
    /// Weights quantised at load.
    #[arg(long)]
    int8: bool,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Tokens of each sequence that decodes.
    #[arg(long, default_value_t = 160)]
    context: u32,
    /// Sequences that decode together, up to 32.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32], value_parser = clap::value_parser!(u32).range(1..=32))]
    batches: Vec<u32>,
    /// Steps measured of each kind.
    #[arg(long, default_value_t = 40)]
    rounds: usize,
}

const BLOCK: usize = 16;
const PROMPT: u32 = 512;

/// Seconds: the median, and the least.
struct Times(Vec<f64>);

impl Times {
    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

fn timed(rounds: usize, mut call: impl FnMut()) -> Times {
    call();
    let one = |_| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    };
    Times((0..rounds).map(one).collect())
}

/// Bytes a second that threads read together from much more memory than caches hold.
///
/// # Errors
/// When there is no room for that memory.
fn read_bandwidth(threads: usize) -> std::io::Result<f64> {
    let mut memory = MmapMut::map_anon(256 << 20)?;
    // Like the weights.
    drop(memory.advise(Advice::HugePage));
    memory.fill(1);
    let sum = |part: &[u8]| {
        let (words, _) = part.as_chunks();
        words.iter().fold(0, |sum, &word| sum ^ u64::from_ne_bytes(word))
    };
    let times = timed(7, || {
        std::thread::scope(|scope| {
            for part in memory.chunks(memory.len() / threads) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
    });
    Ok(memory.len() as f64 / times.least())
}

/// Operations a second of a product of so many rows whose weights stay in the nearest caches.
fn product_rate(rows: i64, kind: Kind, quantized: bool) -> Result<f64, Box<dyn Error>> {
    let (inputs, outputs) = (768, 512);
    let weight = Tensor::f_randn([outputs, inputs], (Kind::Float, Device::Cpu))?.f_to_kind(kind)?;
    let finish = Finish::Plain(Activation::None);
    let product = Product::new(&[weight], kind, None, finish, quantized, &Region::default())?;
    let x = Tensor::f_randn([rows, inputs], (Kind::Float, Device::Cpu))?.f_to_kind(kind)?;
    let set = InstructionSet::best();
    let mut out = Tensor::f_empty([rows, outputs], (kind, Device::Cpu))?;
    let times = timed(50, || drop(black_box(product.forward(&x, &mut out, set))));
    Ok((2 * rows * inputs * outputs) as f64 / times.least())
}

/// Weights of all products, which a step reads once.
fn weights(config: &DecoderConfig) -> f64 {
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let perceptron = if matches!(config.perceptron, Perceptron::Gated(_)) { 3 } else { 2 };
    let layer = config.hidden * (2 * queries + 2 * keys + perceptron * config.intermediate);
    (config.vocabulary * config.hidden) as f64 + layer as f64 * config.layers.len() as f64
}

/// Sequence `index`, with blocks that lie apart.
fn work(index: u32, start: u32, tokens: u32, vocabulary: u32, length: u32) -> Work {
    let each = length.div_ceil(16);
    let total = each * 32;
    Work {
        sequence: SequenceId(index.into()),
        tokens: (0..tokens).map(|token| (token * 7 + index) % vocabulary).collect(),
        start,
        blocks: (0..each).map(|block| BlockId((index * each + block) * 7 % total)).collect(),
        samples: true,
        scores: false,
        forks: Vec::new(),
    }
}

fn steps(runner: &mut Runner, rounds: usize, works: &[Work]) -> Times {
    timed(rounds, || drop(black_box(runner.step(works, &[]))))
}

/// A layer's parts, on numbers that mean nothing.
struct Layer {
    qkv: Product,
    output: Product,
    up: Product,
    down: Product,
    pages: Pages,
}

/// What a step is made of, apart from what joins it.
struct Parts {
    config: DecoderConfig,
    kind: Kind,
    layers: Vec<Layer>,
    head: Product,
}

impl Parts {
    fn new(config: &DecoderConfig, kind: Kind, int8: bool, blocks: usize) -> Result<Self, Box<dyn Error>> {
        let region = Region::default();
        let product = |outputs: i64, inputs: i64, finish: Finish| {
            // Nothing is added up over the rounds.
            let weight = Tensor::f_zeros([outputs, inputs], (kind, Device::Cpu))?;
            Product::new(&[weight], kind, None, finish, int8, &region)
        };
        let plain = Finish::Plain(Activation::None);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let (finish, wide) = match config.perceptron {
            Perceptron::Gated(activation) => (Finish::Gated(activation), 2 * config.intermediate),
            Perceptron::Plain(activation) => (Finish::Plain(activation), config.intermediate),
        };
        let (count, block) = (i64::try_from(blocks)?, i64::try_from(BLOCK)?);
        let zeros = |shape: [i64; 4]| Tensor::f_zeros(shape, (kind, Device::Cpu));
        let layer = || -> Result<Layer, Box<dyn Error>> {
            Ok(Layer {
                qkv: product(queries + 2 * keys, config.hidden, plain)?,
                output: product(config.hidden, queries, plain)?,
                up: product(wide, config.hidden, finish)?,
                down: product(config.hidden, config.intermediate, plain)?,
                pages: Pages {
                    keys: zeros([count, config.kv_heads, config.head_dim, block])?,
                    values: zeros([count, config.kv_heads, block, config.head_dim])?,
                },
            })
        };
        let layers = config.layers.iter().map(|_| layer()).collect::<Result<_, _>>()?;
        let head = product(config.vocabulary, config.hidden, plain)?;
        Ok(Self { config: config.clone(), kind, layers, head })
    }

    fn rows(&self, rows: i64, width: i64, kind: Kind) -> Result<Tensor, Box<dyn Error>> {
        Ok(Tensor::f_ones([rows, width], (kind, Device::Cpu))?)
    }

    /// Milliseconds of each part of a step of these works, by name.
    fn times(&mut self, works: &[Work], rounds: usize) -> Result<Vec<(&'static str, f64)>, Box<dyn Error>> {
        let set = InstructionSet::best();
        let (hidden, wide) = (self.config.hidden, self.config.intermediate);
        let (heads, kv_heads, width) = (self.config.heads, self.config.kv_heads, self.config.head_dim);
        let (mut spans, mut table, mut slots, mut rows) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for work in works {
            let count = i64::try_from(work.tokens.len())?;
            spans.push(Span {
                row: rows,
                rows: count,
                start: work.start.into(),
                table: i64::try_from(table.len())?,
            });
            rows += count;
            for position in i64::from(work.start)..i64::from(work.start) + count {
                slots.push(i64::from(work.blocks[usize::try_from(position)? / BLOCK].0) * 16 + position % 16);
            }
            for block in &work.blocks {
                table.push(i32::try_from(block.0)?);
            }
        }
        let (kind, float) = (self.kind, Kind::Float);
        let (mut x, mut normed) = (self.rows(rows, hidden, kind)?, self.rows(rows, hidden, kind)?);
        let mut mixed = self.rows(rows, heads * width, kind)?;
        let mut inner = self.rows(rows, wide, kind)?;
        let mut projections = self.rows(rows, (heads + 2 * kv_heads) * width, kind)?;
        let mut queries = self.rows(rows, heads * width, float)?;
        let weight = self.rows(1, hidden, float)?.f_view([hidden])?;
        let angles = (self.rows(rows, width / 2, float)?, self.rows(rows, width / 2, float)?);
        let sampled = i64::try_from(works.len())?;
        let last = self.rows(sampled, hidden, kind)?;
        let mut logits = self.rows(sampled, self.config.vocabulary, float)?;
        let layers = &mut self.layers;
        let products = timed(rounds, || {
            for layer in &*layers {
                drop(black_box(layer.qkv.forward(&x, &mut projections, set)));
                drop(black_box(layer.output.forward_add(&mixed, &mut x, set)));
                drop(black_box(layer.up.forward(&x, &mut inner, set)));
                drop(black_box(layer.down.forward_add(&inner, &mut x, set)));
            }
        });
        let attention = timed(rounds, || {
            for layer in &*layers {
                let pages = &layer.pages;
                drop(black_box(paged::paged_attention(
                    &queries, pages, &spans, &table, None, &mut mixed, set,
                )));
            }
        });
        let preparation = Preparation { angles: Some(&angles), norms: None, eps: 1e-5, scale: 1.0 };
        let small = timed(rounds, || {
            for layer in &mut *layers {
                let pages = &mut layer.pages;
                drop(black_box(paged::rms_norm(&x, &weight, 1e-5, &mut normed, set)));
                drop(black_box(paged::project(&projections, &preparation, pages, &slots, &mut queries, set)));
                drop(black_box(paged::rms_norm(&x, &weight, 1e-5, &mut normed, set)));
            }
        });
        // After as much else as in a step, so that its weights are no more in caches than there.
        let mut head = Times(Vec::new());
        for _ in 0..rounds {
            for layer in &*layers {
                drop(black_box(layer.up.forward(&x, &mut inner, set)));
            }
            let start = Instant::now();
            drop(black_box(self.head.forward(&last, &mut logits, set)));
            head.0.push(start.elapsed().as_secs_f64());
        }
        let parts =
            [("linears", products), ("attention", attention), ("norms and rotary", small), ("head", head)];
        Ok(parts.into_iter().map(|(name, times)| (name, times.least() * 1e3)).collect())
    }
}

/// The least times of a step's parts, and what of the whole is none of them.
fn print_parts(parts: &[(&str, f64)], step: f64) {
    let rest = step - parts.iter().map(|(_, time)| time).sum::<f64>();
    let texts: Vec<_> =
        parts.iter().chain([&("rest", rest)]).map(|(name, time)| format!("{name} {time:.2}")).collect();
    println!("    {} ms", texts.join(", "));
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let (dtype, kind, bytes) = match arguments.dtype.as_str() {
        "bf16" => (DType::BF16, Kind::BFloat16, 2.0),
        "f16" => (DType::F16, Kind::Half, 2.0),
        "f32" => (DType::F32, Kind::Float, 4.0),
        other => return Err(format!("--dtype {other}: bf16, f16 or f32").into()),
    };
    let bytes = if arguments.int8 { 1.0 } else { bytes };
    start_team(arguments.threads)?;
    let bandwidth = read_bandwidth(arguments.threads)?;
    let rates = (product_rate(32, kind, arguments.int8)?, product_rate(512, kind, arguments.int8)?);
    println!(
        "{:?}, {} threads: reads {:.1} GB/s; products of 32 rows {:.0} GFLOP/s, of 512 rows {:.0}",
        InstructionSet::best(),
        arguments.threads,
        bandwidth / 1e9,
        rates.0 / 1e9,
        rates.1 / 1e9
    );

    let loaded = llm::load(&LlmOptions {
        path: arguments.folder,
        device: Device::Cpu,
        dtype: Some(dtype),
        quantization: arguments.int8.then_some(Quantization::Int8),
        threads: arguments.threads,
    })?;
    let weights = weights(loaded.config());
    let vocabulary = u32::try_from(loaded.config().vocabulary)?;
    let length = (arguments.context + 1).max(PROMPT);
    let blocks = length.div_ceil(16) as usize * 32;
    let mut parts = Parts::new(loaded.config(), kind, arguments.int8, blocks)?;
    let mut runner = loaded.with_cache(CacheSize { blocks, block_size: BLOCK })?;
    for batch in arguments.batches {
        let works: Vec<_> =
            (0..batch).map(|index| work(index, arguments.context, 1, vocabulary, length)).collect();
        let times = steps(&mut runner, arguments.rounds, &works);
        // A step reads its weights and multiplies with them: neither is faster than the machine.
        let limit = (weights * bytes / bandwidth).max(2.0 * weights * f64::from(batch) / rates.0);
        println!(
            "decode of {batch:>2} at {}: {:6.2} ms [{:.2}], {:5.0} tokens/s [{:.0}], {:.0} % [{:.0}] of the limit",
            arguments.context,
            times.median() * 1e3,
            times.least() * 1e3,
            f64::from(batch) / times.median(),
            f64::from(batch) / times.least(),
            limit / times.median() * 100.0,
            limit / times.least() * 100.0,
        );
        print_parts(&parts.times(&works, arguments.rounds)?, times.least() * 1e3);
    }
    let (works, rounds) = ([work(0, 0, PROMPT, vocabulary, length)], arguments.rounds.min(10));
    let times = steps(&mut runner, rounds, &works);
    let limit = 2.0 * weights * f64::from(PROMPT) / rates.1;
    println!(
        "prompt of {PROMPT}: {:6.1} ms [{:.1}], {:5.0} tokens/s [{:.0}], {:.0} % [{:.0}] of the limit",
        times.median() * 1e3,
        times.least() * 1e3,
        f64::from(PROMPT) / times.median(),
        f64::from(PROMPT) / times.least(),
        limit / times.median() * 100.0,
        limit / times.least() * 100.0,
    );
    print_parts(&parts.times(&works, rounds)?, times.least() * 1e3);
    Ok(())
}
