//! Every key with two values and what each resolves to.

use std::collections::BTreeSet;
use std::fmt::Debug;

use super::*;

/// A key, a text for it and what that makes of the settings, and another of each.
type Row =
    (&'static str, fn(&Settings) -> String, (&'static str, &'static str), (&'static str, &'static str));

fn show(value: impl Debug) -> String {
    format!("{value:?}")
}

fn model(settings: &Settings) -> &ModelSettings {
    &settings.models["delay"]
}

fn pt(settings: &Settings) -> &ModelSettings {
    &settings.models["pt"]
}

const SERVER: &[Row] = &[
    ("server.host", |s| s.server.host.clone(), ("'::1'", "::1"), ("'localhost'", "localhost")),
    ("server.port", |s| show(s.server.port), ("0", "0"), ("65535", "65535")),
    ("server.workers", |s| show(s.server.workers), ("1", "1"), ("7", "7")),
    ("server.max_body_size", |s| show(s.server.max_body_size), ("'1KiB'", "1024"), ("'2MB'", "2000000")),
    ("server.request_timeout", |s| show(s.server.request_timeout), ("'1.5s'", "1.5s"), ("'2m'", "120s")),
    ("server.shutdown_timeout", |s| show(s.server.shutdown_timeout), ("'0s'", "0ns"), ("'1h'", "3600s")),
    ("server.max_connections", |s| show(s.server.max_connections), ("1", "1"), ("100_000", "100000")),
    ("logging.level", |s| show(s.logging.level), ("'off'", "Off"), ("'trace'", "Trace")),
    ("logging.format", |s| show(s.logging.format), ("'text'", "Text"), ("'json'", "Json")),
    ("device.default", |s| show(model(s).device), ("'cpu'", "Cpu"), ("'cuda:1'", "Cuda(1)")),
    ("device.threads", |s| show(s.device.threads), ("1", "1"), ("3", "3")),
    ("device.memory_limit", |s| show(s.device.memory_limit), ("'1KB'", "Some(1000)"), ("'2B'", "Some(2)")),
    ("model_repository", |s| show(&s.model_repository), ("'a'", "Some(\"a\")"), ("'/b'", "Some(\"/b\")")),
    ("builtin_models", |s| show(&s.builtin_models), ("'a'", "\"a\""), ("'/b/c'", "\"/b/c\"")),
];

/// Read both as `[batching]`, seen by a model that says nothing, and as `[models.delay.batching]`.
const BATCHING: &[Row] = &[
    (
        "mode",
        |s| show(model(s).batching.mode),
        ("'fixed'", "Some(Requests(Fixed))"),
        ("'continuous'", "Some(Continuous)"),
    ),
    ("continuous.block_size", |s| show(model(s).batching.continuous.block_size), ("16", "16"), ("32", "32")),
    (
        "continuous.kv_cache_memory",
        |s| show(model(s).batching.continuous.kv_cache_memory),
        ("'1KB'", "Some(1000)"),
        ("'2GB'", "Some(2000000000)"),
    ),
    (
        "continuous.max_sequences",
        |s| show(model(s).batching.continuous.max_sequences),
        ("1", "1"),
        ("64", "64"),
    ),
    (
        "continuous.max_step_tokens",
        |s| show(model(s).batching.continuous.max_step_tokens),
        ("64", "64"),
        ("4096", "4096"),
    ),
    (
        "continuous.prefill_chunk",
        |s| show(model(s).batching.continuous.prefill_chunk),
        ("1", "Some(1)"),
        ("256", "Some(256)"),
    ),
    (
        "continuous.inter_token_target",
        |s| show(model(s).batching.continuous.inter_token_target),
        ("'1ms'", "Some(1ms)"),
        ("'2s'", "Some(2s)"),
    ),
    (
        "continuous.prefix_caching",
        |s| show(model(s).batching.continuous.prefix_caching),
        ("true", "true"),
        ("false", "false"),
    ),
    (
        "continuous.preemption",
        |s| show(model(s).batching.continuous.preemption),
        ("true", "true"),
        ("false", "false"),
    ),
    ("dispatch", |s| show(model(s).batching.dispatch), ("'eager'", "Eager"), ("'window'", "Window")),
    ("max_batch_size", |s| show(model(s).batching.max_batch_size), ("1", "1"), ("64", "64")),
    ("max_wait_time", |s| show(model(s).batching.max_wait_time), ("'0ms'", "0ns"), ("'100us'", "100µs")),
    ("max_queue_size", |s| show(model(s).batching.max_queue_size), ("1", "1"), ("9", "9")),
    ("max_queue_tokens", |s| show(model(s).batching.max_queue_tokens), ("1", "Some(1)"), ("9", "Some(9)")),
    ("max_batch_tokens", |s| show(model(s).batching.max_batch_tokens), ("1", "Some(1)"), ("9", "Some(9)")),
    ("isolation", |s| show(model(s).batching.isolation), ("'bisect'", "Bisect"), ("'none'", "None")),
    ("min_batch_size", |s| show(model(s).batching.min_batch_size), ("1", "1"), ("9", "9")),
    (
        "max_queue_bytes",
        |s| show(model(s).batching.max_queue_bytes),
        ("'1B'", "Some(1)"),
        ("'9KB'", "Some(9000)"),
    ),
    (
        "optimization_target",
        |s| show(model(s).batching.optimization_target),
        ("'cost'", "Cost"),
        ("'latency'", "Latency"),
    ),
    ("latency_slo", |s| show(model(s).batching.latency_slo), ("'1ms'", "Some(1ms)"), ("'2s'", "Some(2s)")),
    (
        "memory_limit",
        |s| show(model(s).batching.memory_limit),
        ("'1GB'", "Some(1000000000)"),
        ("'2B'", "Some(2)"),
    ),
    (
        "enable_priority_scheduling",
        |s| show(model(s).batching.enable_priority_scheduling),
        ("true", "true"),
        ("false", "false"),
    ),
    ("priority_ageing", |s| show(model(s).batching.priority_ageing), ("'1ms'", "1ms"), ("'1h'", "3600s")),
    ("max_priority", |s| show(model(s).batching.max_priority), ("'low'", "Low"), ("'critical'", "Critical")),
    ("stall_timeout", |s| show(model(s).batching.stall_timeout), ("'1s'", "1s"), ("'2ms'", "2ms")),
    (
        "timeout_multipliers.low",
        |s| show(model(s).batching.timeout_multipliers.low),
        ("1", "1.0"),
        ("0.5", "0.5"),
    ),
    (
        "timeout_multipliers.normal",
        |s| show(model(s).batching.timeout_multipliers.normal),
        ("2", "2.0"),
        ("0.25", "0.25"),
    ),
    (
        "timeout_multipliers.high",
        |s| show(model(s).batching.timeout_multipliers.high),
        ("3", "3.0"),
        ("0.5", "0.5"),
    ),
    (
        "timeout_multipliers.critical",
        |s| show(model(s).batching.timeout_multipliers.critical),
        ("4", "4.0"),
        ("0.001", "0.001"),
    ),
    ("breaker.failures", |s| show(model(s).batching.breaker.failures), ("0", "0"), ("7", "7")),
    ("breaker.window", |s| show(model(s).batching.breaker.window), ("'1s'", "1s"), ("'2ms'", "2ms")),
    ("breaker.open", |s| show(model(s).batching.breaker.open), ("'1s'", "1s"), ("'2ms'", "2ms")),
    (
        "dynamic.target_utilization",
        |s| show(model(s).batching.dynamic.target_utilization),
        ("0.5", "0.5"),
        ("1", "1.0"),
    ),
    ("dynamic.size_increment", |s| show(model(s).batching.dynamic.size_increment), ("1", "1"), ("8", "8")),
    (
        "dynamic.padding_strategy",
        |s| show(model(s).batching.dynamic.padding_strategy),
        ("'none'", "None"),
        ("'dynamic'", "Dynamic"),
    ),
    (
        "dynamic.enable_bucketing",
        |s| show(model(s).batching.dynamic.enable_bucketing),
        ("true", "true"),
        ("false", "false"),
    ),
    (
        "dynamic.bucket_boundaries",
        |s| show(&model(s).batching.dynamic.bucket_boundaries),
        ("[]", "[]"),
        ("[8, 16]", "[8, 16]"),
    ),
    (
        "dynamic.memory_aware",
        |s| show(model(s).batching.dynamic.memory_aware),
        ("true", "true"),
        ("false", "false"),
    ),
    (
        "dynamic.bytes_per_element",
        |s| show(model(s).batching.dynamic.bytes_per_element),
        ("'1B'", "Some(1)"),
        ("'4KB'", "Some(4000)"),
    ),
    (
        "adaptive.low_load_threshold",
        |s| show(model(s).batching.adaptive.low_load_threshold),
        ("0", "0.0"),
        ("2.5", "2.5"),
    ),
    (
        "adaptive.high_load_threshold",
        |s| show(model(s).batching.adaptive.high_load_threshold),
        ("50", "50.0"),
        ("1e3", "1000.0"),
    ),
    (
        "adaptive.adjustment_interval",
        |s| show(model(s).batching.adaptive.adjustment_interval),
        ("'1s'", "1s"),
        ("'20ms'", "20ms"),
    ),
    (
        "adaptive.high_load_batch_size",
        |s| show(model(s).batching.adaptive.high_load_batch_size),
        ("1", "1"),
        ("9", "9"),
    ),
    (
        "adaptive.low_load_timeout",
        |s| show(model(s).batching.adaptive.low_load_timeout),
        ("'0ms'", "0ns"),
        ("'1s'", "1s"),
    ),
    ("event_log", |s| show(&model(s).batching.event_log), ("'a'", "Some(\"a\")"), ("'/b'", "Some(\"/b\")")),
];

/// Below `models.`: `delay`, or `pt` and `hf` where a key needs a model of another format.
const MODEL: &[Row] = &[
    ("delay.device", |s| show(model(s).device), ("'auto'", "Auto"), ("'cpu'", "Cpu")),
    ("delay.instances", |s| show(model(s).instances), ("1", "1"), ("4", "4")),
    ("delay.threads", |s| show(model(s).threads), ("1", "Some(1)"), ("2", "Some(2)")),
    ("delay.warmup", |s| show(model(s).warmup), ("0", "0"), ("5", "5")),
    ("delay.load", |s| show(model(s).load), ("true", "true"), ("false", "false")),
    (
        "delay.delay.batch_time",
        |s| show(model(s).delay.unwrap().batch_time),
        ("'0s'", "0ns"),
        ("'9ms'", "9ms"),
    ),
    (
        "delay.delay.item_time",
        |s| show(model(s).delay.unwrap().item_time),
        ("'1us'", "1µs"),
        ("'2ms'", "2ms"),
    ),
    ("pt.path", |s| show(&pt(s).path), ("'a.pt'", "Some(\"a.pt\")"), ("'/b.pth'", "Some(\"/b.pth\")")),
    (
        "pt.format",
        |s| show(pt(s).format),
        ("'torchscript'", "Some(Torchscript)"),
        ("'huggingface'", "Some(Huggingface)"),
    ),
    ("pt.version", |s| pt(s).version.clone(), ("'2'", "2"), ("'v1.0'", "v1.0")),
    ("pt.versions", |s| show(&pt(s).versions), ("'all'", "All"), ("['1', 'b']", "Named([\"1\", \"b\"])")),
    ("pt.inputs", |s| show(&pt(s).inputs), (TENSOR, TENSOR_SHOWN), (PADDED, PADDED_SHOWN)),
    ("pt.outputs", |s| show(&pt(s).outputs), ("[]", "[]"), (TENSOR, TENSOR_SHOWN)),
    ("pt.static_batch", |s| show(pt(s).static_batch), ("true", "true"), ("false", "false")),
    ("hf.truncation", |s| show(s.models["hf"].truncation), ("true", "Some(true)"), ("false", "Some(false)")),
    ("hf.dtype", |s| show(s.models["hf"].dtype), ("'f32'", "Some(F32)"), ("'bf16'", "Some(BF16)")),
    ("hf.quantization", |s| show(s.models["hf"].quantization), ("'int8'", "Some(Int8)"), ("'none'", "None")),
    ("hf.max_length", |s| show(s.models["hf"].max_length), ("16", "Some(16)"), ("512", "Some(512)")),
];

const TENSOR: &str = "[{ name = 'x', dtype = 'bf16', shape = [-1, 3] }]";
const TENSOR_SHOWN: &str = "[TensorSpec { name: \"x\", dtype: BF16, shape: [-1, 3], pad: None }]";
const PADDED: &str = "[{ name = 'x', dtype = 'i64', shape = [2, -1], pad = -1 }]";
const PADDED_SHOWN: &str = "[TensorSpec { name: \"x\", dtype: I64, shape: [2, -1], pad: Some(-1.0) }]";

/// Every dotted key that has a row, with the whole table for both texts.
fn rows() -> Vec<(String, Row)> {
    let under = |prefix: &'static str| move |row: &Row| (format!("{prefix}{}", row.0), *row);
    let global = BATCHING.iter().map(under("batching."));
    let own = BATCHING.iter().map(under("models.delay.batching."));
    SERVER.iter().map(under("")).chain(global).chain(own).chain(MODEL.iter().map(under("models."))).collect()
}

/// A file that sets `key` beside the models that rows look at.
fn file(key: &str, value: &str) -> String {
    let beside = match key.split('.').collect::<Vec<_>>()[..] {
        ["models", "pt", "path"] => "",
        ["models", "pt", "versions" | "format"] => "models.pt.path = 'folder'",
        ["models", "pt", _] => "models.pt.path = 'a.pt'",
        ["models", "hf", _] => "models.hf.path = 'd'\nmodels.hf.format = 'huggingface'",
        _ => "",
    };
    let delay = if key.starts_with("models.delay.") { "" } else { "models.delay.load = true" };
    format!("{key} = {value}\n{beside}\n{delay}\n")
}

#[test]
fn every_key_changes_what_is_resolved() {
    for (key, (_, look, first, second)) in rows() {
        assert_ne!(first.1, second.1, "{key}");
        for (text, expected) in [first, second] {
            let settings = Settings::from_toml_str(&file(&key, text), "t")
                .unwrap_or_else(|error| panic!("{key} = {text}: {error}"));
            assert_eq!(look(&settings), expected, "{key} = {text}");
        }
    }
}

#[test]
fn every_key_has_a_row() {
    let rows: BTreeSet<String> = rows()
        .into_iter()
        .map(|(key, _)| {
            ["delay", "pt", "hf"].iter().fold(key, |key, name| {
                match key.strip_prefix(&format!("models.{name}.")) {
                    Some(rest) => format!("models.NAME.{rest}"),
                    None => key,
                }
            })
        })
        .collect();
    assert_eq!(rows, known_keys().into_iter().collect());
}

#[test]
fn what_is_printed_resolves_to_what_was_printed() {
    for (key, (_, look, first, second)) in rows() {
        for (text, expected) in [first, second] {
            let printed = Settings::from_toml_str(&file(&key, text), "t").unwrap().to_toml();
            let again = Settings::from_toml_str(&printed, "printed")
                .unwrap_or_else(|error| panic!("{key} = {text}: {error}\n{printed}"));
            assert_eq!(look(&again), expected, "{key} = {text}\n{printed}");
        }
    }
}
