//! Loads a model that generates text: its weights, a cache as large as what is free allows, and its thread.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use tch::Device;
use trustformers_batching::continuous::{BlockId, SequenceId, Work};

use super::free_memory::free_memory;
use super::sources::Source;
use crate::backend::llm::{self, CacheSize, LlmOptions, LoadedDecoder, Runner};
use crate::config::BatchingMode;
use crate::generation::Generator;
use crate::generation::engine::{Engine, Guard};
use crate::metrics::{GenerationMetrics, VersionMetrics};
use crate::text::Tokenizer;

/// The model in the checkpoint's folder `path`, ready to answer, or the reason why not.
pub(super) fn load(
    source: &Source,
    path: &Path,
    threads: usize,
    device: Device,
    metrics: &Arc<VersionMetrics>,
) -> Result<Generator, String> {
    check(source)?;
    let settings = &source.settings;
    let tokenizer = Tokenizer::load(path).map_err(|error| error.to_string())?;
    let (dtype, quantization) = (settings.dtype, settings.quantization);
    let options = LlmOptions { path: path.to_owned(), device, dtype, quantization, threads };
    let decoder = llm::load(&options).map_err(|error| error.to_string())?;
    decoder.config().check_vocabulary(tokenizer.highest_id()).map_err(|error| error.to_string())?;
    let context = context(source, &decoder)?;
    let blocks = blocks(source, &decoder, context, device)?;
    let defaults = decoder.generation().clone();
    let vocabulary = usize::try_from(decoder.config().vocabulary).unwrap_or(0);
    let block_size = settings.batching.continuous.block_size as usize;
    let size = CacheSize { blocks: blocks as usize, block_size };
    // Warmed up with a cache of its own: the memory of the other is to be taken as it is used.
    let mut runner =
        decoder.with_cache(CacheSize { blocks: 1, block_size }).map_err(|error| error.to_string())?;
    warm_up(&mut runner, settings.warmup)?;
    let runner = runner.with_cache(size).map_err(|error| error.to_string())?;
    let tokens = size.blocks * size.block_size;
    tracing::info!(model = source.model(), version = source.version, tokens, context, "KV cache");
    let batching = &settings.batching;
    let guard = Guard {
        breaker: Some(batching.breaker.clone()).filter(|breaker| breaker.failures > 0),
        stall_after: batching.stall_timeout,
    };
    let name = format!("{}:{}", source.model(), source.version);
    let config = batching.continuous_config(blocks, context);
    let engine = Engine::start(&name, runner, config, guard, GenerationMetrics::new(metrics))
        .map_err(|error| format!("cannot start its thread: {error}"))?;
    Ok(Generator { engine: Arc::new(engine), tokenizer: Arc::new(tokenizer), defaults, vocabulary, context })
}

/// Refuses what a model that generates text would ignore.
fn check(source: &Source) -> Result<(), String> {
    let settings = &source.settings;
    if let Some(mode @ BatchingMode::Requests(_)) = settings.batching.mode {
        return Err(format!(
            "it generates text, which batching.mode = \"{}\" does not batch: models.{}.batching.mode = \"continuous\" does",
            mode.name(),
            source.model()
        ));
    }
    if settings.instances != 1 {
        return Err(
            "it generates text, which one instance does for all; `instances` is for other models".into()
        );
    }
    if settings.truncation.is_some() {
        return Err("it generates text, and a prompt is never cut; `truncation` is for other models".into());
    }
    Ok(())
}

/// The most tokens of a prompt and its text.
fn context(source: &Source, decoder: &LoadedDecoder) -> Result<u32, String> {
    let most = usize::try_from(decoder.config().context).unwrap_or(0);
    let asked = source.settings.max_length.unwrap_or(most);
    if asked > most || asked < 2 {
        return Err(format!("max_length is {asked}; the model's context is 2 to {most} tokens"));
    }
    Ok(u32::try_from(asked).unwrap_or(u32::MAX))
}

/// The cache's memory where the configuration does not say: no more than can ever be in use, and half of what is free,
/// as steps need memory too.
fn unless_said(most: u64, free: Option<u64>) -> u64 {
    free.map_or(most, |free| most.min(free / 2))
}

/// Blocks of the cache: what its memory holds.
fn blocks(source: &Source, decoder: &LoadedDecoder, context: u32, device: Device) -> Result<u32, String> {
    let continuous = &source.settings.batching.continuous;
    let bytes_per_block = decoder.bytes_per_block(continuous.block_size as usize).max(1) as u64;
    let most = u64::from(continuous.max_sequences) * u64::from(context.div_ceil(continuous.block_size));
    let memory = continuous
        .kv_cache_memory
        .unwrap_or_else(|| unless_said(most.saturating_mul(bytes_per_block), free_memory(device)));
    let blocks = memory / bytes_per_block;
    let tokens = blocks * u64::from(continuous.block_size);
    if blocks > 0 && tokens < u64::from(context) {
        tracing::warn!(
            model = source.model(),
            tokens,
            context,
            "batching.continuous.kv_cache_memory holds fewer tokens than one text may have"
        );
    }
    if blocks == 0 {
        return Err(format!(
            "a KV cache of {memory} bytes holds nothing: a block of {} tokens takes {bytes_per_block}; set \
             batching.continuous.kv_cache_memory to more",
            continuous.block_size
        ));
    }
    u32::try_from(blocks).map_err(|_| format!("a KV cache of {memory} bytes has too many blocks"))
}

/// Runs a prompt and a token after it, so that what cannot run fails before it is asked.
fn warm_up(runner: &mut Runner, runs: u32) -> Result<(), String> {
    let tokens = runner.cache_size().block_size.min(16) - 1;
    let work = |start: usize, tokens: usize| Work {
        sequence: SequenceId(0),
        tokens: vec![0; tokens],
        start: u32::try_from(start).unwrap_or(0),
        blocks: vec![BlockId(0)],
        samples: true,
        scores: false,
        forks: Vec::new(),
    };
    let run = || {
        for _ in 0..runs {
            for work in [work(0, tokens), work(tokens, 1)] {
                drop(runner.step(&[work], &[]).map_err(|error| format!("warm-up: {error}"))?);
            }
        }
        Ok(())
    };
    // On a thread of its own, with which its helpers end.
    thread::scope(|scope| match scope.spawn(run).join() {
        Ok(result) => result,
        Err(_) => Err("warm-up: it panicked".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_takes_half_of_what_is_free_and_no_more_than_it_can_use() {
        assert_eq!(unless_said(1000, Some(600)), 300);
        assert_eq!(unless_said(1000, Some(6000)), 1000);
        assert_eq!(unless_said(1000, None), 1000);
    }
}
