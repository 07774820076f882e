//! Which keys there are, their defaults, and what contradicts what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::batching::read_batching;
use super::env::{Override, parse_variable};
use super::error::ConfigError;
use super::file::Document;
use super::kinds::{
    NAME_RULE, boolean, choice, duration, inputs, integer, is_name, name, outputs, parsed, path, size, text,
    versions,
};
use super::section::{Leaf, Report, Section};
use super::tree::{EMPTY, Node, Source, Table, Value, dotted, merge};
use super::{
    BUILTIN_MODELS, DelaySettings, DeviceSettings, DeviceSpec, Format, LogFormat, LogLevel, LoggingSettings,
    ModelSettings, ServerSettings, Settings, Versions,
};
use crate::backend::llm::Quantization;
use crate::tensor::DType;

const LOG_LEVELS: &[(&str, LogLevel)] = &[
    ("off", LogLevel::Off),
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
const LOG_FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
const DTYPES: &[(&str, DType)] = &[("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)];
const QUANTIZATIONS: &[(&str, Option<Quantization>)] = &[("none", None), ("int8", Some(Quantization::Int8))];
const DEVICES: &str = "\"auto\" or \"cpu\" or \"cuda:N\"";

/// How settings came to be: for printing them, and for models that are found later.
#[derive(Debug, Clone)]
pub(super) struct Resolution {
    pub(super) leaves: Vec<Leaf>,
    /// What `[batching]` says itself, without defaults: a model's mode decides some of them.
    batching: Table,
}

/// What defaults depend on.
struct Machine {
    cores: usize,
    cache: PathBuf,
}

impl Machine {
    fn new(env: &BTreeMap<String, String>) -> Self {
        let folder = |name: &str| env.get(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let cache = folder("XDG_CACHE_HOME")
            .or_else(|| folder("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(|| PathBuf::from("/var/cache"));
        Self { cores: std::thread::available_parallelism().map_or(1, usize::from), cache }
    }
}

pub(super) fn resolve(
    document: Option<&Document>,
    env: BTreeMap<String, String>,
    overrides: &[Override],
) -> Result<Settings, ConfigError> {
    let mut root = document.map(Document::parse).transpose()?.unwrap_or_default();
    let names: Vec<String> = models(&root).keys().cloned().collect();
    let variables = env.iter().filter_map(|(name, text)| parse_variable(name, text, &names));
    let mut errors = Vec::new();
    for layer in variables.chain(overrides.iter().map(Override::parse)) {
        match layer {
            Ok(layer) => merge(&mut root, layer),
            Err(error) => errors.push(error),
        }
    }
    let no_models = match root.get("models") {
        None => true,
        Some(node) => matches!(&node.value, Value::Table(models) if models.is_empty()),
    };
    if no_models && !root.contains_key("model_repository") {
        let empty = || Node { value: Value::Table(Table::new()), source: Source::Default, raw: None };
        let builtins = BUILTIN_MODELS.iter().map(|name| ((*name).to_owned(), empty())).collect();
        let builtins = Node { value: Value::Table(builtins), source: Source::Default, raw: None };
        merge(&mut root, Table::from([("models".to_owned(), builtins)]));
    }
    let mut report = Report { errors, candidates: known_keys(), ..Report::default() };
    let mut settings = read(&mut report, &root, &Machine::new(&env));
    ConfigError::all(report.errors)?;
    settings.resolution.leaves = report.leaves;
    Ok(settings)
}

/// Settings of the model `name` of the repository from its `model.toml` files, of which a later one
/// wins over an earlier one, over the same `[batching]` and `[device]` as every other model. The keys
/// are those of `[models.NAME]` but for `path`, `version` and `versions`, which the folders say.
pub fn resolve_model_files(
    settings: &Settings,
    name: &str,
    files: &[PathBuf],
) -> Result<ModelSettings, ConfigError> {
    if !is_name(name) {
        return Err(ConfigError::ModelName { name: name.to_owned() });
    }
    let mut table = Table::new();
    for file in files {
        merge(&mut table, Document::read(file)?.parse()?);
    }
    let mut report = Report::default();
    let model = Section::root(&mut report, &table, |section| {
        read_model(section, name, Place::Repository, settings.device.default, &settings.resolution.batching)
    });
    ConfigError::all(report.errors)?;
    Ok(model)
}

/// Every key, dotted; those of a model as `models.NAME.KEY`.
pub fn known_keys() -> Vec<String> {
    let table = |entries| Node { value: Value::Table(entries), source: Source::Default, raw: None };
    let models = table(Table::from([("NAME".to_owned(), table(Table::new()))]));
    let mut report = Report::default();
    read(
        &mut report,
        &Table::from([("models".to_owned(), models)]),
        &Machine { cores: 1, cache: PathBuf::new() },
    );
    report.asked.iter().map(|path| dotted(path)).collect()
}

fn models(root: &Table) -> &Table {
    table(root, "models")
}

fn table<'a>(root: &'a Table, key: &str) -> &'a Table {
    match root.get(key) {
        Some(Node { value: Value::Table(table), .. }) => table,
        _ => &EMPTY,
    }
}

fn read(report: &mut Report, root: &Table, machine: &Machine) -> Settings {
    let own_batching = table(root, "batching");
    Section::root(report, root, |s| {
        let model_repository = s.optional("model_repository", &path(), None);
        let builtin_models =
            s.read("builtin_models", &path(), machine.cache.join("trustformers-serve").join("models"));
        let server = s.section("server", |s| read_server(s, machine));
        let logging = s.section("logging", |s| LoggingSettings {
            level: s.read("level", &choice(LOG_LEVELS), LogLevel::Info),
            format: s.read("format", &choice(LOG_FORMATS), LogFormat::Text),
        });
        let device = s.section("device", |s| DeviceSettings {
            default: s.read("default", &parsed(DEVICES), DeviceSpec::Auto),
            threads: s.read("threads", &integer(1..=4096), machine.cores),
            memory_limit: s.optional("memory_limit", &size(), None),
        });
        let batching = s.section("batching", read_batching);
        let models = s.section("models", |s| {
            let mut models = BTreeMap::new();
            for name in s.names() {
                let model = s.section(&name, |s| {
                    if !is_name(&name) {
                        s.invalid_table(NAME_RULE);
                    }
                    read_model(s, &name, Place::Configuration, device.default, own_batching)
                });
                models.insert(name, model);
            }
            models
        });
        let resolution = Resolution { leaves: Vec::new(), batching: own_batching.clone() };
        Settings { server, logging, device, batching, model_repository, builtin_models, models, resolution }
    })
}

fn read_server(s: &mut Section<'_>, machine: &Machine) -> ServerSettings {
    let shortest = Duration::from_millis(1);
    ServerSettings {
        host: s.read("host", &text(), "127.0.0.1".to_owned()),
        port: s.read("port", &integer(0..=u16::MAX), 8000),
        workers: s.read("workers", &integer(1..=1024), machine.cores),
        max_body_size: s.read("max_body_size", &size(), 64_000_000),
        request_timeout: s.read("request_timeout", &duration(shortest, "s"), Duration::from_secs(30)),
        shutdown_timeout: s.read("shutdown_timeout", &duration(Duration::ZERO, "s"), Duration::from_secs(30)),
        max_connections: s.read("max_connections", &integer(1..=1_000_000), 4096),
    }
}

/// Where a model's table is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// `[models.NAME]`
    Configuration,
    /// A `model.toml`
    Repository,
}

fn read_model(
    s: &mut Section<'_>,
    model: &str,
    place: Place,
    device: DeviceSpec,
    batching: &Table,
) -> ModelSettings {
    let (file, version, served) = match place {
        Place::Configuration => (
            s.optional("path", &path(), None),
            s.read("version", &name(), "1".to_owned()),
            s.read("versions", &versions(), Versions::Latest),
        ),
        Place::Repository => {
            for key in ["path", "version", "versions"] {
                s.refuse(key, "cannot be set here: the folders of the model repository say it");
            }
            (None, "1".to_owned(), Versions::Latest)
        }
    };
    let implied = implied_format(model, file.as_deref(), place, s.has("delay"));
    let format = s.optional("format", &choice(Format::NAMES), implied);
    let settings = ModelSettings {
        name: model.to_owned(),
        path: file,
        format,
        version,
        versions: served,
        device: s.read("device", &parsed(DEVICES), device),
        instances: s.read("instances", &integer(1..=1024), 1),
        threads: s.optional("threads", &integer(1..=4096), None),
        inputs: s.read("inputs", &inputs(), Vec::new()),
        outputs: s.read("outputs", &outputs(), Vec::new()),
        warmup: s.read("warmup", &integer(0..=10_000), 1),
        load: s.read("load", &boolean(), true),
        max_length: s.optional("max_length", &integer(1..=1_000_000), None),
        truncation: s.optional("truncation", &boolean(), None),
        static_batch: s.read("static_batch", &boolean(), false),
        dtype: s.optional("dtype", &choice(DTYPES), None),
        quantization: s.read("quantization", &choice(QUANTIZATIONS), None),
        batching: s.section_over("batching", batching, read_batching),
        delay: read_delay(s, model == "delay" && format == Some(Format::Builtin)),
    };
    check_model(s, &settings, place);
    settings
}

fn read_delay(s: &mut Section<'_>, always: bool) -> Option<DelaySettings> {
    let read = |s: &mut Section<'_>| DelaySettings {
        batch_time: s.read("batch_time", &duration(Duration::ZERO, "ms"), Duration::from_millis(5)),
        item_time: s.read("item_time", &duration(Duration::ZERO, "ms"), Duration::ZERO),
    };
    if always { Some(s.section("delay", read)) } else { s.optional_section("delay", read) }
}

/// The format where it is plain without looking at any file.
fn implied_format(model: &str, path: Option<&Path>, place: Place, delay: bool) -> Option<Format> {
    match path {
        Some(path) => Format::is_torchscript_name(path).then_some(Format::Torchscript),
        None if place == Place::Repository => None,
        // A `delay` table makes it the delay model under any name.
        None => (delay || BUILTIN_MODELS.contains(&model)).then_some(Format::Builtin),
    }
}

fn check_model(s: &mut Section<'_>, model: &ModelSettings, place: Place) {
    let builtins = BUILTIN_MODELS.join(", ");
    let builtin = model.format == Some(Format::Builtin);
    let delayed = model.delay.is_some();
    if builtin && place == Place::Repository {
        s.invalid("format", "is \"builtin\", but a model of the repository has files of its own");
    } else if builtin && model.path.is_some() {
        s.invalid("path", "is set, but format is \"builtin\", whose files are in builtin_models");
    } else if builtin && !delayed && !BUILTIN_MODELS.contains(&model.name.as_str()) {
        s.invalid_table(format!("is not a built-in model; those are {builtins}"));
    } else if model.path.is_none() && !builtin && place == Place::Configuration {
        s.invalid_table(format!(
            "has no path, which only the built-in models need not have ({builtins}); \
             a model of the repository is configured by its model.toml"
        ));
    }
    let other_builtin = model.name != "delay" && BUILTIN_MODELS.contains(&model.name.as_str());
    if delayed && (!builtin || other_builtin) {
        s.invalid("delay", "is for the built-in model of that name");
    }
    if model.versions != Versions::Latest {
        if model.version != "1" {
            s.invalid("version", "names one version, `versions` chooses among folders: only one can be set");
        } else if builtin || model.path.as_deref().is_some_and(Format::is_torchscript_name) {
            s.invalid("versions", "chooses among version folders, but this model is not a directory of them");
        }
    }
    if let Some((key, reason)) = model.format.and_then(|format| model.misfit(format)) {
        s.invalid(key, reason);
    }
}
