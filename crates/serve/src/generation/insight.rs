//! What `/admin/stats` shows of a model that generates text.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use trustformers_batching::continuous::{ContinuousConfig, End, Refusal, Stats};

/// What the scheduler did since the version was loaded, what it holds now, and its limits.
pub fn describe(stats: &Stats, config: &ContinuousConfig) -> Value {
    let counters = &stats.counters;
    let ended: BTreeMap<_, _> = End::ALL.map(End::name).into_iter().zip(counters.ended).collect();
    let refused: BTreeMap<_, _> =
        Refusal::REASONS.into_iter().zip(counters.refused).filter(|(_, count)| *count > 0).collect();
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    json!({
        "blocks": stats.blocks,
        "sequences": {
            "waiting": stats.sequences_waiting,
            "running": stats.sequences_running,
            "preempted": stats.sequences_preempted,
        },
        "queued_requests": stats.queued_requests,
        "queued_prompt_tokens": stats.queued_prompt_tokens,
        "predicted_drain_seconds": stats.predicted_drain.map(|drain| drain.as_secs_f64()),
        "step_seconds": stats.step_time,
        "output_share": stats.output_share,
        "steps": counters.steps,
        "busy_seconds": counters.busy_nanos as f64 / 1e9,
        "mean_step_tokens": share(counters.fed_tokens, counters.steps),
        "admitted": counters.admitted,
        "refused": refused,
        "ended": ended,
        "cancelled": counters.cancelled,
        "prompt_tokens": counters.prompt_tokens,
        "cached_prompt_tokens": counters.cached_prompt_tokens,
        "prefix_hit_ratio": share(counters.cached_prompt_tokens, counters.prompt_tokens),
        "generated_tokens": counters.generated_tokens,
        "fed_tokens": counters.fed_tokens,
        "preemptions": counters.preemptions,
        "preempted_tokens": counters.preempted_tokens,
        "copies": counters.copies,
        "evictions": counters.evictions,
        "limits": {
            "blocks": config.blocks,
            "block_size": config.block_size,
            "max_context": config.max_context,
            "max_sequences": config.max_sequences,
            "max_step_tokens": config.max_step_tokens,
        },
    })
}
