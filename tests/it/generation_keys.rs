//! Every key of `[batching.continuous]` and those of models that generate text, with two values.

use std::fmt::Debug;

use serde_json::{Value, json};

use crate::completions::{COMPLETIONS, TINYLM, with};
use crate::harness::{Running, start, start_settled};
use crate::keys::{Case, two_values_for_all_and_one_of, two_values_of};

fn two_values_for_all_and_one<T: PartialEq + Debug + Clone>(
    key: &str,
    first: Case<'_, T>,
    second: Case<'_, T>,
    observe: impl Fn(&str) -> T,
) {
    two_values_for_all_and_one_of("tinylm", key, first, second, observe);
}

/// Serves the built-in language model with `line`, which may say how large its cache is.
fn serve(line: &str) -> Running {
    let model = if line.contains("kv_cache_memory") { "models.tinylm.warmup = 1\n" } else { TINYLM };
    start(&format!("{line}{model}"))
}

/// A prompt of so many tokens.
fn prompt(tokens: u32) -> Value {
    let ids: Vec<u32> = (0..tokens).map(|index| 4 + index % 800).collect();
    json!({ "prompt": ids, "max_tokens": 1, "temperature": 0, "ignore_eos": true })
}

/// Tokens of a repeated prompt of 100 that need not be computed again.
fn cached_of_100(line: &str) -> u64 {
    let running = serve(line);
    running.post(COMPLETIONS, &prompt(100)).ok();
    let again = running.post(COMPLETIONS, &prompt(100)).ok();
    again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

/// Blocks of the cache.
fn blocks(line: &str) -> u64 {
    serve(line).stats("tinylm")["generation"]["limits"]["blocks"].as_u64().unwrap()
}

/// The tokens of a long prompt in each step in which another text is generated, the last left out.
fn chunks(line: &str) -> Vec<u64> {
    let running = serve(&format!("{line}models.tinylm.batching.continuous.max_step_tokens = 66\n"));
    let prompts = [&prompt(4)["prompt"], &prompt(1500)["prompt"]];
    let body = with(&prompt(4), json!({ "prompt": prompts, "max_tokens": 200 }));
    running.post(COMPLETIONS, &body).ok();
    let trace = running.get("/admin/trace").ok();
    let steps = trace["traceEvents"].as_array().unwrap().iter();
    let beside = steps.filter(|event| event["args"]["decodes"] == 1 && event["args"]["prompts"] == 1);
    let mut chunks: Vec<_> = beside.map(|event| event["args"]["prompt_tokens"].as_u64().unwrap()).collect();
    chunks.pop();
    chunks
}

#[test]
fn block_size() {
    two_values_for_all_and_one("continuous.block_size", ("16", 96), ("64", 64), cached_of_100);
}

#[test]
fn prefix_caching() {
    two_values_for_all_and_one("continuous.prefix_caching", ("true", 96), ("false", 0), cached_of_100);
}

#[test]
fn kv_cache_memory() {
    // A token's keys and values: 5 layers of 2 x 2 heads x 32 elements of 2 bytes.
    let block = 16 * 5 * 2 * 2 * 32 * 2;
    two_values_for_all_and_one(
        "continuous.kv_cache_memory",
        ("'1MB'", 1_000_000 / block),
        ("'2MB'", 2_000_000 / block),
        blocks,
    );
}

#[test]
fn max_sequences() {
    two_values_for_all_and_one("continuous.max_sequences", ("2", 400), ("3", 200), |line| {
        serve(line).post(COMPLETIONS, &with(&prompt(4), json!({ "n": 3 }))).status
    });
}

#[test]
fn max_step_tokens() {
    two_values_for_all_and_one("continuous.max_step_tokens", ("64", 2), ("128", 1), |line| {
        let running = serve(line);
        running.post(COMPLETIONS, &prompt(100)).ok();
        running.stats("tinylm")["generation"]["steps"].as_u64().unwrap()
    });
}

#[test]
fn prefill_chunk() {
    two_values_for_all_and_one("continuous.prefill_chunk", ("16", Some(16)), ("64", Some(64)), |line| {
        chunks(line).into_iter().max()
    });
}

#[test]
fn inter_token_target() {
    // What a step takes has to be known before a target for it counts.
    let (met, free) = (("'1us'", Some(16)), ("'1h'", Some(65)));
    two_values_for_all_and_one("continuous.inter_token_target", met, free, |line| {
        chunks(line).into_iter().min()
    });
}

#[test]
fn preemption() {
    two_values_for_all_and_one("continuous.preemption", ("true", 200), ("false", 400), |line| {
        // 16 blocks: three texts of 93 tokens need 18, and have them only one after the other.
        let running = serve(&format!("{line}models.tinylm.batching.continuous.kv_cache_memory = '340KB'\n"));
        let reply = running.post(
            COMPLETIONS,
            &with(&prompt(4), json!({ "max_tokens": 90, "n": 3, "temperature": 1, "seed": 1 })),
        );
        let preemptions = running.metric("trustformers_preemptions_total{model=\"tinylm\",version=\"1\"}");
        assert_eq!(preemptions > 0.0, reply.status == 200);
        reply.status
    });
}

#[test]
fn dtype() {
    two_values_of("tinylm", "models.NAME.dtype", ("'f32'", 24), ("'bf16'", 48), |line| {
        let running = start(&format!("{line}models.tinylm.batching.continuous.kv_cache_memory = '1MB'\n"));
        running.stats("tinylm")["generation"]["limits"]["blocks"].as_u64().unwrap()
    });
}

#[test]
fn quantization() {
    two_values_of("tinylm", "models.NAME.quantization", ("'none'", true), ("'int8'", false), |line| {
        let logprobs = |line: &str| {
            let reply = serve(line).post(COMPLETIONS, &with(&prompt(9), json!({ "logprobs": 0 }))).ok();
            reply["choices"][0]["logprobs"]["token_logprobs"][0].as_f64().unwrap()
        };
        (logprobs(line) - logprobs("")).abs() < 1e-6
    });
}

#[test]
fn what_a_model_that_generates_text_would_ignore_fails_its_load() {
    for (line, says) in [
        ("models.tinylm.batching.mode = 'fixed'", "batching.mode = \"continuous\" does"),
        ("models.tinylm.instances = 2", "`instances` is for other models"),
        ("models.tinylm.max_length = 4096", "max_length is 4096; the model's context is 2 to 2048 tokens"),
        (
            "models.tinylm.batching.continuous.kv_cache_memory = '1KB'",
            "a KV cache of 1000 bytes holds nothing",
        ),
        ("models.minilm.batching.mode = 'continuous'", "is for models that generate text"),
    ] {
        let running = start_settled(&format!("{line}\n"));
        let versions = running.server.app().registry.versions().next().unwrap().state();
        assert!(versions.to_string().contains(says), "{line}: {versions}");
    }
}
