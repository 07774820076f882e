//! Settings: what can be configured, and how its layers become one typed whole.
//!
//! A flag wins over an environment variable (`TRUSTFORMERS_SERVE__BATCHING__MAX_BATCH_SIZE`), that
//! over the file, that over the default. Layers are merged as trees whose leaves know where they
//! were set; then [`resolve`] reads the merged tree into the types below.
//!
//! To add a key: a field here and the line that reads it in `resolve.rs` (or `batching.rs`). Listing
//! ([`known_keys`]), refusing unknown keys and printing follow from that line.
//!
//! Code map:
//! - `units`: "50ms", "64MB"
//! - `tree`: values with their sources, merged
//! - `file`, `env`: the layers
//! - `kinds`, `section`: reading a table into types, with account of keys, sources and errors
//! - `resolve`: which keys there are, their defaults, what contradicts what; `batching`: those of `[batching]`
//! - `print`: the resolved settings as TOML

mod batching;
mod env;
mod error;
mod file;
#[cfg(test)]
mod key_tests;
mod kinds;
mod print;
mod resolve;
#[cfg(test)]
mod resolve_tests;
mod section;
mod tree;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub use self::batching::{
    BatchingMode, BatchingSettings, ContinuousSettings, DynamicSettings, TimeoutMultipliers,
};
pub use self::env::{Override, PREFIX, cache_folders};
pub use self::error::ConfigError;
pub use self::file::Document;
pub use self::resolve::{known_keys, resolve_model_files};
pub use self::tree::{Origin, Source};
use crate::backend::llm::Quantization;
use crate::tensor::{DType, TensorSpec};

/// Everything that can be configured, resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[server]`
    pub server: ServerSettings,
    /// `[logging]`
    pub logging: LoggingSettings,
    /// `[device]`
    pub device: DeviceSettings,
    /// `[batching]`: the defaults of models that do not say otherwise.
    pub batching: BatchingSettings,
    /// A directory of `NAME/VERSION/` folders; without it only `models` are served.
    pub model_repository: Option<PathBuf>,
    /// Where the files of the built-in models are.
    pub builtin_models: PathBuf,
    /// By name. When none is configured and there is no repository: the built-in ones.
    pub models: BTreeMap<String, ModelSettings>,
    resolution: resolve::Resolution,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// Name or address of the interface to listen on.
    pub host: String,
    /// 0 takes a free one.
    pub port: u16,
    /// Threads that serve connections; models have their own.
    pub workers: usize,
    /// Largest request body, in bytes; larger ones are refused unread.
    pub max_body_size: u64,
    /// Longest time of a request from its first byte to its answer, queue included.
    pub request_timeout: Duration,
    /// How long a stopping server lets requests in flight finish.
    pub shutdown_timeout: Duration,
    /// Connections served at once; more wait to be accepted.
    pub max_connections: usize,
}

/// `[logging]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoggingSettings {
    /// The least severe events that are written.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
}

/// Severity of log events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the documentation
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line, for collectors.
    Json,
}

/// `[device]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSettings {
    /// Where models run that do not say otherwise.
    pub default: DeviceSpec,
    /// LibTorch threads of all instances together.
    pub threads: usize,
    /// Most bytes that the running batches of all models of one device may need together.
    pub memory_limit: Option<u64>,
}

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceSpec {
    /// The first GPU when there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number; an error where there is none.
    Cuda(usize),
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Auto => f.write_str("auto"),
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// Not the name of a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a device: \"auto\", \"cpu\" or \"cuda:N\"")]
pub struct UnknownDevice(String);

impl FromStr for DeviceSpec {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice(text.to_owned());
        match text {
            "auto" => Ok(DeviceSpec::Auto),
            "cpu" => Ok(DeviceSpec::Cpu),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                // LibTorch counts devices in a signed byte; `parse` alone would take "+1".
                let number = index.parse::<i8>().ok().filter(|number| number.to_string() == index);
                number.and_then(|n| usize::try_from(n).ok()).map(DeviceSpec::Cuda).ok_or_else(unknown)
            }
        }
    }
}

/// `[models.NAME]`, or a `model.toml` of the repository.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSettings {
    /// NAME.
    pub name: String,
    /// A file, a checkpoint's directory, or a directory of version folders. `None` for built-in
    /// models and for those of the repository, whose folders say it.
    pub path: Option<PathBuf>,
    /// `None` where only the folder's content tells: then [`Format::of`] does.
    pub format: Option<Format>,
    /// The version's name when `path` is not a directory of version folders.
    pub version: String,
    /// Which are served when `path` is a directory of version folders.
    pub versions: Versions,
    /// Where it runs.
    pub device: DeviceSpec,
    /// Copies that run batches side by side.
    pub instances: usize,
    /// LibTorch threads of one instance; `None` takes its share of `device.threads`.
    pub threads: Option<usize>,
    /// Declared inputs of one item; empty when not declared.
    pub inputs: Vec<TensorSpec>,
    /// Declared outputs of one item; empty when not declared.
    pub outputs: Vec<TensorSpec>,
    /// Runs at batch size 1 and as many at `max_batch_size` before it is ready.
    pub warmup: u32,
    /// Whether it is loaded at start, or only when asked to.
    pub load: bool,
    /// The most tokens of a text, or the longest item of a model that pads; `None` takes the checkpoint's,
    /// or any.
    pub max_length: Option<usize>,
    /// Whether what is longer is cut, or refused; `None` cuts texts and refuses items.
    pub truncation: Option<bool>,
    /// Whether each batch is filled up with zeros to `max_batch_size` rows.
    pub static_batch: bool,
    /// What a model that generates text computes with; `None` takes what its checkpoint names.
    pub dtype: Option<DType>,
    /// What its weights are made when they are loaded; `None` keeps them.
    pub quantization: Option<Quantization>,
    /// `[batching]` with the model's own changes.
    pub batching: BatchingSettings,
    /// What the built-in `delay` model does; `None` for every other model.
    pub delay: Option<DelaySettings>,
}

/// Time that the built-in `delay` model takes instead of computing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DelaySettings {
    /// For each batch.
    pub batch_time: Duration,
    /// For each item of a batch, in addition.
    pub item_time: Duration,
}

/// Names of the models that come with the server.
pub const BUILTIN_MODELS: [&str; 5] = ["mlp", "resnet18", "minilm", "tinylm", "delay"];

/// Which of a model's version folders are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Versions {
    /// The last in natural order.
    Latest,
    /// Each.
    All,
    /// These.
    Named(Vec<String>),
}

/// What a model is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// A `torch.jit` file.
    Torchscript,
    /// A Hugging Face checkpoint's directory.
    Huggingface,
    /// One of [`BUILTIN_MODELS`].
    Builtin,
}

impl Format {
    const NAMES: &[(&str, Format)] = &[
        ("torchscript", Format::Torchscript),
        ("huggingface", Format::Huggingface),
        ("builtin", Format::Builtin),
    ];

    /// What is at `path`, judged by its name and, for a directory, by its content.
    pub fn of(path: &Path) -> Option<Format> {
        if Format::is_torchscript_name(path) {
            Some(Format::Torchscript)
        } else {
            path.join("config.json").is_file().then_some(Format::Huggingface)
        }
    }

    fn is_torchscript_name(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension == "pt" || extension == "pth")
    }

    /// The name in configuration and answers.
    pub fn name(self) -> &'static str {
        match self {
            Format::Torchscript => "torchscript",
            Format::Huggingface => "huggingface",
            Format::Builtin => "builtin",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether `text` can name a model or a version.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(text: &str) -> Result<(), String> {
    if kinds::is_name(text) { Ok(()) } else { Err(format!("{text:?} {}", kinds::NAME_RULE)) }
}

impl ModelSettings {
    /// Those of a model that the program around the server runs.
    pub fn hosted(name: &str, version: &str, batching: &BatchingSettings) -> Self {
        Self {
            name: name.to_owned(),
            path: None,
            format: None,
            version: version.to_owned(),
            versions: Versions::Latest,
            device: DeviceSpec::Cpu,
            instances: 0,
            threads: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            warmup: 0,
            load: true,
            max_length: None,
            truncation: None,
            static_batch: false,
            dtype: None,
            quantization: None,
            batching: batching.clone(),
            delay: None,
        }
    }

    /// Whether these settings have a key that a model of `format` would ignore. Resolving checks
    /// it when the format is known; whoever finds the format later must.
    pub fn check_format(&self, format: Format) -> Result<(), ConfigError> {
        match self.misfit(format) {
            None => Ok(()),
            Some((key, reason)) => Err(ConfigError::Misfit { model: self.name.clone(), key, reason }),
        }
    }

    fn misfit(&self, format: Format) -> Option<(&'static str, String)> {
        let declared = match format {
            Format::Torchscript => None,
            Format::Huggingface | Format::Builtin if !self.inputs.is_empty() => Some("inputs"),
            Format::Huggingface | Format::Builtin if !self.outputs.is_empty() => Some("outputs"),
            Format::Huggingface | Format::Builtin => None,
        };
        if let Some(key) = declared {
            return Some((key, format!("is for TorchScript models; a {format} model brings its own")));
        }
        let builtin = |name: &str| format == Format::Builtin && self.name == name;
        let generates = format == Format::Huggingface || builtin("tinylm");
        let takes_text = generates || builtin("minilm");
        if self.static_batch && format != Format::Torchscript {
            return Some(("static_batch", "is for TorchScript models".to_owned()));
        }
        let for_text = [("dtype", self.dtype.is_some()), ("quantization", self.quantization.is_some())];
        if let Some((key, _)) = for_text.into_iter().find(|(_, set)| *set && !generates) {
            return Some((key, "is for models that generate text".to_owned()));
        }
        let pads = format == Format::Torchscript && self.inputs.iter().any(|input| input.pad.is_some());
        let set = [("max_length", self.max_length.is_some()), ("truncation", self.truncation.is_some())];
        let key = set.into_iter().find(|(_, set)| *set && !takes_text && !pads)?.0;
        Some((key, "is for models that read text, and for inputs with `pad`".to_owned()))
    }
}

impl Settings {
    /// Settings from a text alone, which is called `origin` in messages.
    pub fn from_toml_str(text: &str, origin: &str) -> Result<Self, ConfigError> {
        Self::resolve(Some(&Document::new(origin, text, "")), [], &[])
    }

    /// Settings from a file, the environment, and `key=value` texts as `--set` takes them.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        sets: &[String],
    ) -> Result<Self, ConfigError> {
        let document = file.map(Document::read).transpose()?;
        let overrides: Vec<Override> = sets.iter().map(Override::set).collect();
        Self::resolve(document.as_ref(), env, &overrides)
    }

    /// Settings from all layers; of several overrides of one key the last wins. Apart from its own
    /// variables, the environment says where caches are (`XDG_CACHE_HOME`, `HOME`).
    pub fn resolve(
        document: Option<&Document>,
        env: impl IntoIterator<Item = (String, String)>,
        overrides: &[Override],
    ) -> Result<Self, ConfigError> {
        resolve::resolve(document, env.into_iter().collect(), overrides)
    }

    /// The resolved settings as TOML, each line with its source.
    pub fn to_toml(&self) -> String {
        print::to_toml(&self.resolution.leaves)
    }
}

/// Reads `"50ms"` where it is no value of a key; the error is a sentence that follows the text.
pub(crate) fn duration_of(text: &str) -> Result<Duration, String> {
    units::parse_duration(text).map_err(|error| match error {
        units::UnitError::Missing => format!("it needs a unit, as in \"{}ms\"", text.trim()),
        units::UnitError::Other(reason) => format!("it {reason}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_read_and_show_the_same_text() {
        for (text, device) in [
            ("auto", DeviceSpec::Auto),
            ("cpu", DeviceSpec::Cpu),
            ("cuda:0", DeviceSpec::Cuda(0)),
            ("cuda:11", DeviceSpec::Cuda(11)),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for text in ["gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cuda:200", "CPU", ""] {
            let error = text.parse::<DeviceSpec>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{text:?} is not a device: \"auto\", \"cpu\" or \"cuda:N\"")
            );
        }
    }

    #[test]
    fn a_format_is_told_by_the_name_of_a_file_or_the_content_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Format::of(Path::new("a/model.pt")), Some(Format::Torchscript));
        assert_eq!(Format::of(Path::new("model.pth")), Some(Format::Torchscript));
        assert_eq!(Format::of(folder.path()), None);
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        assert_eq!(Format::of(folder.path()), Some(Format::Huggingface));
    }

    #[test]
    fn a_key_that_a_format_ignores_is_refused_when_the_format_is_found() {
        let text = "models.a = { path = 'd', max_length = 9, inputs = [] }";
        let model = Settings::from_toml_str(text, "t").unwrap().models.remove("a").unwrap();
        assert!(model.check_format(Format::Huggingface).is_ok());
        assert_eq!(
            model.check_format(Format::Torchscript).unwrap_err().to_string(),
            "model \"a\": `max_length` is for models that read text, and for inputs with `pad`"
        );
    }
}
