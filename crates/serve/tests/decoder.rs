//! Language models against transformers, and steps that do not fit them.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod altered;
mod oracles;
mod scheduled;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use altered::altered;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use trustformers_batching::continuous::{BlockId, SequenceId, Work};
use trustformers_serve::backend::llm::{
    self, BackendError, CacheSize, LlmOptions, Means, Quantization, Runner,
};
use trustformers_serve::tensor::DType;
use trustformers_serve::torch::paged::InstructionSet;

/// The largest difference from an oracle that is rounding, as a share of the greatest logit.
const TOLERANCE: f32 = 1e-4;

/// A cache in which all texts of a case have room.
const SIZE: CacheSize = CacheSize { blocks: 101, block_size: 16 };

const INSTRUCTION_SETS: [InstructionSet; 4] =
    [InstructionSet::Portable, InstructionSet::Avx2, InstructionSet::Avx512, InstructionSet::Avx512Dot];

#[derive(Deserialize)]
struct Case {
    folder: PathBuf,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    ids: Vec<u32>,
    /// Those that follow, by always taking the likeliest.
    tokens: Vec<u32>,
    /// Logits of the prompt's last token.
    first: Vec<f32>,
    /// Logits that the last token was taken from.
    last: Vec<f32>,
}

fn cases() -> BTreeMap<String, Case> {
    oracles::cases("decoder")
}

fn runner_with(folder: &Path, dtype: DType, threads: usize) -> Runner {
    load(folder, dtype, None, threads)
}

fn load(folder: &Path, dtype: DType, quantization: Option<Quantization>, threads: usize) -> Runner {
    let (path, device) = (folder.to_owned(), Device::Cpu);
    let options = LlmOptions { path, device, dtype: Some(dtype), quantization, threads };
    llm::load(&options).unwrap().with_cache(SIZE).unwrap()
}

fn runner(case: &Case) -> Runner {
    runner_with(&case.folder, DType::F32, 1)
}

/// Hands out blocks in an order that no sequence would have by itself.
struct Blocks(Vec<BlockId>);

impl Blocks {
    fn scrambled() -> Self {
        // 37 and 101 have no common divisor, so each block comes once.
        Self((0..101).map(|index| BlockId(index * 37 % 101)).collect())
    }

    fn take(&mut self, tokens: usize) -> Vec<BlockId> {
        let left = self.0.len() - tokens.div_ceil(SIZE.block_size);
        self.0.split_off(left)
    }
}

/// A text that is being written.
struct Sequence<'a> {
    text: &'a Text,
    blocks: Vec<BlockId>,
    /// Prompt and what followed.
    tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    done: usize,
    first: Vec<f32>,
    last: Vec<f32>,
}

impl<'a> Sequence<'a> {
    fn new(text: &'a Text, blocks: &mut Blocks) -> Self {
        let room = text.ids.len() + text.tokens.len();
        let (first, last) = (Vec::new(), Vec::new());
        Self { text, blocks: blocks.take(room), tokens: text.ids.clone(), done: 0, first, last }
    }

    /// The next tokens, at most so many.
    fn work(&self, most: usize) -> Work {
        let end = self.tokens.len().min(self.done.saturating_add(most));
        Work {
            sequence: SequenceId(0),
            tokens: self.tokens[self.done..end].to_vec(),
            start: u32::try_from(self.done).unwrap(),
            blocks: self.blocks.clone(),
            samples: end == self.tokens.len(),
            scores: false,
            forks: Vec::new(),
        }
    }

    fn advance(&mut self, fed: usize, logits: Option<Vec<f32>>) {
        self.done += fed;
        let Some(logits) = logits else { return };
        self.tokens.push(likeliest(&logits));
        if self.first.is_empty() {
            self.first.clone_from(&logits);
        }
        self.last = logits;
    }

    fn ended(&self) -> bool {
        self.tokens.len() == self.text.ids.len() + self.text.tokens.len()
    }

    fn check(&self, name: &str) -> f32 {
        let prompt = self.text.ids.len();
        assert_eq!(self.tokens[prompt..], self.text.tokens, "{name}, after {prompt} tokens");
        let (first, last) =
            (difference(&self.first, &self.text.first), difference(&self.last, &self.text.last));
        assert!(first.max(last) < TOLERANCE, "{name}, after {prompt} tokens: off by {first} and {last}");
        first.max(last)
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    let most = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    u32::try_from(most).unwrap()
}

fn rows(logits: &Tensor) -> Vec<Vec<f32>> {
    assert_eq!(logits.kind(), Kind::Float);
    Vec::<Vec<f32>>::try_from(logits).unwrap()
}

/// The largest difference, as a share of the largest number.
fn difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    let scale = right.iter().copied().map(f32::abs).fold(0.0, f32::max);
    let off = left.iter().zip(right).map(|(left, right)| (left - right).abs());
    assert!(left.iter().all(|number| number.is_finite()));
    off.fold(0.0, f32::max) / scale
}

/// Runs one step of all sequences that have not ended, each with at most so many tokens.
fn step(runner: &mut Runner, sequences: &mut [&mut Sequence<'_>], most: impl Fn(usize) -> usize) {
    let works: Vec<_> =
        sequences.iter().enumerate().map(|(index, sequence)| sequence.work(most(index))).collect();
    let mut logits = rows(&runner.step(&works, &[]).unwrap()).into_iter();
    for (sequence, work) in sequences.iter_mut().zip(&works) {
        let row = work.samples.then(|| logits.next().unwrap());
        sequence.advance(work.tokens.len(), row);
    }
    assert_eq!(logits.next(), None);
}

#[test]
fn texts_alone_are_the_oracles() {
    let cases = cases();
    assert_eq!(cases.len(), 22);
    for (name, case) in &cases {
        let mut runner = runner(case);
        let mut off = 0.0_f32;
        for text in &case.texts {
            let mut sequence = Sequence::new(text, &mut Blocks::scrambled());
            while !sequence.ended() {
                step(&mut runner, &mut [&mut sequence], |_| usize::MAX);
            }
            off = off.max(sequence.check(name));
        }
        println!("{name}: off by {off:e}");
        assert_eq!(runner.pages_gathered(), 0);
    }
}

/// Sequences begin in different steps, their prompts in chunks of different sizes, so that a step has decodes and
/// chunks of all kinds.
fn write_together(runner: &mut Runner, name: &str, case: &Case) -> f32 {
    let mut blocks = Blocks::scrambled();
    let mut sequences: Vec<_> = case.texts.iter().map(|text| Sequence::new(text, &mut blocks)).collect();
    for round in 0.. {
        let mut running: Vec<_> = sequences
            .iter_mut()
            .rev()
            .enumerate()
            .filter(|(index, sequence)| round >= 3 * index && !sequence.ended())
            .map(|(_, sequence)| sequence)
            .collect();
        if running.is_empty() {
            break;
        }
        step(runner, &mut running, |index| [7, 16, 33, 1][(index + round) % 4]);
    }
    sequences.iter().map(|sequence| sequence.check(name)).fold(0.0, f32::max)
}

#[test]
fn texts_in_a_mixed_batch_are_the_oracles() {
    for (name, case) in &cases() {
        let off = write_together(&mut runner(case), name, case);
        println!("{name}: off by {off:e}");
    }
}

#[test]
fn every_instruction_set_and_plain_operators_compute_the_same() {
    let cases = cases();
    for name in ["llama", "llama_one_kv_head", "mistral", "qwen2_windows", "qwen3", "gpt2"] {
        for instructions in INSTRUCTION_SETS {
            let mut runner = runner(&cases[name]).with_means(Means::Kernels(instructions));
            write_together(&mut runner, name, &cases[name]);
            assert_eq!(runner.pages_gathered(), 0);
        }
        let mut runner = runner(&cases[name]).with_means(Means::Operators);
        write_together(&mut runner, name, &cases[name]);
        assert!(runner.pages_gathered() > 0);
    }
}

#[test]
fn threads_share_a_step_however_many_they_are() {
    let case = &cases()["llama"];
    for threads in [1, 2, 3, 16] {
        let mut runner = runner_with(&case.folder, DType::F32, threads);
        // More than once, as threads that sleep between steps are woken for each.
        for _ in 0..3 {
            write_together(&mut runner, "llama", case);
        }
    }
}

#[test]
fn half_precision_is_near_the_oracles() {
    for (name, dtype, tolerance) in [
        ("llama_bfloat16", DType::BF16, 0.06),
        ("llama_float16", DType::F16, 0.01),
        ("qwen3", DType::BF16, 0.06),
        ("gpt2", DType::BF16, 0.06),
        ("gpt2", DType::F16, 0.01),
    ] {
        let case = &cases()[name];
        for means in INSTRUCTION_SETS.map(Means::Kernels).into_iter().chain([Means::Operators]) {
            let mut runner = runner_with(&case.folder, dtype, 1).with_means(means);
            let mut off = 0.0_f32;
            for text in &case.texts {
                let mut sequence = Sequence::new(text, &mut Blocks::scrambled());
                while sequence.first.is_empty() {
                    step(&mut runner, &mut [&mut sequence], |_| 20);
                }
                off = off.max(difference(&sequence.first, &text.first));
            }
            println!("{name} {dtype} {means:?}: off by {off}");
            assert!(off < tolerance, "{name} {dtype} {means:?}: off by {off}");
        }
    }
}

#[test]
fn int8_weights_are_near_the_oracles_of_every_family() {
    let (mut alike, mut all) = (0, 0);
    for (name, case) in &cases() {
        let mut runner = load(&case.folder, DType::F32, Some(Quantization::Int8), 1);
        for means in INSTRUCTION_SETS.map(Means::Kernels) {
            runner = runner.with_means(means);
            let mut off = 0.0_f32;
            for text in &case.texts {
                let mut sequence = Sequence::new(text, &mut Blocks::scrambled());
                while !sequence.ended() {
                    step(&mut runner, &mut [&mut sequence], |_| 20);
                }
                off = off.max(difference(&sequence.first, &text.first));
                let tokens = &sequence.tokens[text.ids.len()..];
                alike += tokens.iter().zip(&text.tokens).take_while(|(ours, theirs)| ours == theirs).count();
                all += tokens.len();
            }
            println!("{name} {means:?}: off by {off}");
            // Random weights of some dozen inputs have nothing to make up for rounding with.
            assert!(off < 0.12, "{name} {means:?}: off by {off}");
        }
    }
    println!("{alike} of {all} greedy tokens alike before the first that is not");
}

#[test]
fn blocks_computed_for_one_sequence_serve_another_with_the_same_prefix() {
    for name in ["llama", "mistral", "gpt2"] {
        let case = &cases()[name];
        let mut runner = runner(case);
        let text = &case.texts[4];
        let mut blocks = Blocks::scrambled();
        let mut first = Sequence::new(text, &mut blocks);
        step(&mut runner, &mut [&mut first], |_| usize::MAX);

        let mut second = Sequence::new(text, &mut blocks);
        second.blocks[..5].copy_from_slice(&first.blocks[..5]);
        second.done = 5 * SIZE.block_size;
        while !second.ended() {
            step(&mut runner, &mut [&mut second], |_| usize::MAX);
        }

        second.check(name);
    }
}

#[test]
fn a_copied_block_is_written_without_changing_the_one_it_came_from() {
    let case = &cases()["qwen2"];
    let mut runner = runner(case);
    let text = &case.texts[3];
    let mut blocks = Blocks::scrambled();
    let mut first = Sequence::new(text, &mut blocks);
    step(&mut runner, &mut [&mut first], |_| usize::MAX);
    let copy = blocks.take(1)[0];
    let shared = text.ids.len() / SIZE.block_size;
    let mut forked = first.blocks.clone();
    forked[shared] = copy;

    // The copy goes another way from here on.
    let other = Work {
        sequence: SequenceId(1),
        tokens: vec![first.tokens[first.done] ^ 1],
        start: u32::try_from(first.done).unwrap(),
        blocks: forked,
        samples: false,
        scores: false,
        forks: Vec::new(),
    };
    drop(runner.step(&[other], &[(first.blocks[shared], copy)]).unwrap());
    while !first.ended() {
        step(&mut runner, &mut [&mut first], |_| usize::MAX);
    }

    first.check("qwen2");
}

#[test]
fn a_preempted_text_computed_again_goes_on_as_before() {
    let case = &cases()["llama_dynamic"];
    let mut runner = runner(case);
    let mut blocks = Blocks::scrambled();
    let mut sequence = Sequence::new(&case.texts[3], &mut blocks);
    for _ in 0..30 {
        step(&mut runner, &mut [&mut sequence], |_| usize::MAX);
    }
    sequence.blocks = blocks.take(37 + 64);
    sequence.done = 0;
    while !sequence.ended() {
        step(&mut runner, &mut [&mut sequence], |_| 25);
    }

    sequence.check("llama_dynamic");
}

#[test]
fn a_step_that_samples_nothing_answers_no_rows() {
    let case = &cases()["llama"];
    let mut runner = runner(case);
    let work = Work { samples: false, ..Sequence::new(&case.texts[4], &mut Blocks::scrambled()).work(20) };

    assert_eq!(runner.step(&[work], &[]).unwrap().size(), [0, 211]);
    assert_eq!(runner.step(&[], &[]).unwrap().size(), [0, 211]);
}

#[test]
fn a_work_that_scores_answers_a_row_for_each_token() {
    let case = &cases()["llama"];
    let (mut runner, mut blocks) = (runner(case), Blocks::scrambled());
    let [mut alone, mut scored] = [(); 2].map(|()| Sequence::new(&case.texts[3], &mut blocks));
    let other = Sequence::new(&case.texts[2], &mut blocks).work(usize::MAX);
    let silent = Work { samples: false, ..Sequence::new(&case.texts[1], &mut blocks).work(5) };
    for most in [20, usize::MAX] {
        let scores = Work { scores: true, ..scored.work(most) };
        scored.done += scores.tokens.len();
        let works = [silent.clone(), scores.clone(), other.clone()];
        let mut logits = rows(&runner.step(&works, &[]).unwrap());

        assert!(difference(&logits.pop().unwrap(), &case.texts[2].first) < TOLERANCE);
        assert_eq!(logits.len(), scores.tokens.len());
        for row in logits {
            let one = Work { samples: true, ..alone.work(1) };
            alone.done += 1;
            assert!(difference(&row, &rows(&runner.step(&[one], &[]).unwrap())[0]) < TOLERANCE);
        }
    }
}

#[test]
fn works_that_do_not_fit_are_refused_by_their_place() {
    let case = &cases()["llama"];
    let mut runner = runner(case);
    let good = Sequence::new(&case.texts[2], &mut Blocks::scrambled()).work(16);
    let cases = [
        (Work { tokens: vec![], ..good.clone() }, "no tokens"),
        (Work { tokens: vec![211], ..good.clone() }, "token 211 of a vocabulary of 211"),
        (Work { start: 250, ..good.clone() }, "position 265 of a model with 256 positions"),
        (Work { start: 1, blocks: vec![BlockId(1)], ..good.clone() }, "1 blocks for 17 tokens, which need 2"),
        (Work { blocks: vec![BlockId(101)], ..good.clone() }, "block 101 of 101"),
    ];
    for (bad, expected) in cases {
        match runner.step(&[good.clone(), bad], &[]) {
            Err(BackendError::Work { index: 1, reason }) => assert_eq!(reason, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    let copy = runner.step(&[], &[(BlockId(3), BlockId(101))]).unwrap_err().to_string();
    assert_eq!(copy, "a copy from block 3 to block 101, of 101");
}

/// A checkpoint in which one weight is no number.
fn broken(case: &Case, tensor: &str, at: usize) -> tempfile::TempDir {
    altered(&case.folder, "model.safetensors", |bytes| {
        let tensors = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let data = tensors.tensor(tensor).unwrap().data().as_ptr();
        let offset = data as usize - bytes.as_ptr() as usize + at * 4;
        let mut bytes = bytes.to_vec();
        bytes[offset..offset + 4].copy_from_slice(&f32::NAN.to_ne_bytes());
        bytes
    })
}

#[test]
fn a_weight_that_is_no_number_is_not_hidden_by_its_type() {
    let case = &cases()["llama"];
    let folder = broken(case, "model.layers.1.mlp.down_proj.weight", 7);
    for (dtype, quantization) in [
        (DType::F32, None),
        (DType::BF16, None),
        (DType::F32, Some(Quantization::Int8)),
        (DType::BF16, Some(Quantization::Int8)),
    ] {
        for means in INSTRUCTION_SETS.map(Means::Kernels) {
            let mut runner = load(folder.path(), dtype, quantization, 1).with_means(means);
            let work = Sequence::new(&case.texts[2], &mut Blocks::scrambled()).work(usize::MAX);
            let logits = rows(&runner.step(&[work], &[]).unwrap());
            assert!(logits[0].iter().all(|logit| logit.is_nan()), "{dtype:?} {quantization:?} {means:?}");
        }
    }
}

#[test]
fn a_sequence_that_becomes_nan_leaves_others_as_they_are() {
    let case = &cases()["llama"];
    // Only this token's embedding is broken.
    let token = 99_u32;
    let folder = broken(case, "model.embed_tokens.weight", token as usize * 48);
    let mut runner = runner_with(folder.path(), DType::F32, 2);
    let mut blocks = Blocks::scrambled();
    let mut broken = Sequence::new(&case.texts[4], &mut blocks).work(90);
    let broken_blocks = broken.blocks.clone();
    broken.tokens[40] = token;
    let clean = case.texts[..3].iter().find(|text| !text.ids.contains(&token)).unwrap();
    let healthy = Sequence::new(clean, &mut blocks);

    let logits = rows(&runner.step(&[broken, healthy.work(90)], &[]).unwrap());

    assert!(logits[0].iter().all(|logit| logit.is_nan()));
    assert!(difference(&logits[1], &clean.first) < TOLERANCE);
    // Nor do its blocks harm who has them next.
    let mut next = Sequence::new(clean, &mut blocks);
    next.blocks = broken_blocks;
    let logits = rows(&runner.step(&[next.work(90)], &[]).unwrap());
    assert!(difference(&logits[0], &clean.first) < TOLERANCE);
}
