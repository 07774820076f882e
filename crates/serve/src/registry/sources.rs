//! Where the versions of the configured models are: files, version folders, a repository, built in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::natural;
use crate::config::{
    ConfigError, Format, ModelSettings, Settings, Versions, check_name, resolve_model_files,
};
use crate::hosted::Hosted;

/// A folder or file that could not be looked into, or settings that name no model.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The operating system's word.
    #[error("cannot read {path}: {error}")]
    Io {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// A `model.toml` with a mistake.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nothing says what to serve.
    #[error("model \"{model}\": {reason}")]
    Model {
        /// Its name.
        model: String,
        /// What is wrong.
        reason: String,
    },
}

/// One version of one model, not yet loaded.
#[derive(Debug, Clone)]
pub struct Source {
    /// The version's name.
    pub version: String,
    /// Where the model is.
    pub origin: Origin,
    /// How it is run.
    pub settings: ModelSettings,
}

/// Where a model is, and who runs it.
#[derive(Debug, Clone)]
pub enum Origin {
    /// Files.
    Files {
        /// The model's file or folder.
        path: PathBuf,
        /// What reads it.
        format: Format,
    },
    /// The program around the server.
    Hosted(Hosted),
}

impl Source {
    fn of_files(version: String, path: PathBuf, format: Format, settings: ModelSettings) -> Self {
        Self { version, origin: Origin::Files { path, format }, settings }
    }

    /// Whether it runs on LibTorch, so that it shares the cores.
    pub fn uses_torch(&self) -> bool {
        self.settings.delay.is_none() && matches!(self.origin, Origin::Files { .. })
    }

    /// What kind of model it is, in one word.
    pub fn format(&self) -> &'static str {
        match &self.origin {
            Origin::Files { format, .. } => format.name(),
            Origin::Hosted(hosted) => hosted.host.interface().format,
        }
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.settings.name
    }
}

/// Every version that is to be served, in no order.
pub(super) fn find(settings: &Settings, hosted: &[Hosted]) -> Result<Vec<Source>, SourceError> {
    let mut sources = of_files(settings)?;
    for hosted in hosted {
        let wrong = |reason: String| SourceError::Model { model: hosted.name.clone(), reason };
        for text in [&hosted.name, &hosted.version] {
            check_name(text).map_err(wrong)?;
        }
        let mut known = sources.iter().filter(|source| source.model() == hosted.name);
        if known.any(|source| source.version == hosted.version) {
            return Err(wrong(format!("there are two of version \"{}\"", hosted.version)));
        }
        sources.push(Source {
            version: hosted.version.clone(),
            origin: Origin::Hosted(hosted.clone()),
            settings: ModelSettings::hosted(&hosted.name, &hosted.version, &settings.batching),
        });
    }
    Ok(sources)
}

fn of_files(settings: &Settings) -> Result<Vec<Source>, SourceError> {
    let mut sources = Vec::new();
    for model in settings.models.values() {
        sources.extend(of_model(settings, model)?);
    }
    if let Some(repository) = &settings.model_repository {
        for (name, folder) in folders(repository)? {
            // An entry of that name in the configuration says where its model is.
            if !settings.models.contains_key(&name) {
                sources.extend(of_repository(settings, &name, &folder)?);
            }
        }
    }
    Ok(sources)
}

fn of_model(settings: &Settings, model: &ModelSettings) -> Result<Vec<Source>, SourceError> {
    let Some(path) = &model.path else {
        let (format, path) = (Format::Builtin, settings.builtin_models.clone());
        return Ok(vec![Source::of_files(model.version.clone(), path, format, model.clone())]);
    };
    if is_version_root(path) {
        return versions_of(path, &model.versions, &model.name)?
            .into_iter()
            .map(|(version, folder)| of_version(version, &folder, model.clone()))
            .collect();
    }
    let format = model.format.or_else(|| Format::of(path)).ok_or_else(|| {
        let why = if path.exists() {
            "is of no format that is known: name a .pt file, a folder with config.json, or set format"
        } else {
            "does not exist"
        };
        SourceError::Model { model: model.name.clone(), reason: format!("{} {why}", path.display()) }
    })?;
    model.check_format(format)?;
    Ok(vec![Source::of_files(model.version.clone(), path.clone(), format, model.clone())])
}

fn of_repository(settings: &Settings, name: &str, folder: &Path) -> Result<Vec<Source>, SourceError> {
    versions_of(folder, &Versions::Latest, name)?
        .into_iter()
        .map(|(version, version_folder)| {
            let mut files = vec![folder.join("model.toml"), version_folder.join("model.toml")];
            files.retain(|file| file.is_file());
            of_version(version, &version_folder, resolve_model_files(settings, name, &files)?)
        })
        .collect()
}

/// A version folder holds `model.pt`, or is a checkpoint itself.
fn of_version(version: String, folder: &Path, settings: ModelSettings) -> Result<Source, SourceError> {
    let file = folder.join("model.pt");
    let path = if file.is_file() { file } else { folder.to_owned() };
    // One with neither is no reason to serve none of the others: it fails when it is loaded, which says
    // what a checkpoint lacks.
    let format = settings.format.or_else(|| Format::of(&path)).unwrap_or(Format::Huggingface);
    settings.check_format(format)?;
    Ok(Source::of_files(version, path, format, settings))
}

/// The version folders that `wanted` names.
fn versions_of(root: &Path, wanted: &Versions, model: &str) -> Result<Vec<(String, PathBuf)>, SourceError> {
    let mut found = folders(root)?;
    found.sort_by(|(a, _), (b, _)| natural::compare(a, b));
    if found.is_empty() {
        let reason = format!("{} has no version folders", root.display());
        return Err(SourceError::Model { model: model.to_owned(), reason });
    }
    match wanted {
        Versions::All => Ok(found),
        Versions::Latest => Ok(found.pop().into_iter().collect()),
        Versions::Named(names) => names
            .iter()
            .map(|name| {
                found.iter().find(|(version, _)| version == name).cloned().ok_or_else(|| SourceError::Model {
                    model: model.to_owned(),
                    reason: format!("{} has no version \"{name}\"", root.display()),
                })
            })
            .collect(),
    }
}

/// What a checkpoint has beside its weights; one alone tells a checkpoint that lacks some from a folder
/// of versions.
const CHECKPOINT_FILES: [&str; 4] = ["config.json", "modules.json", "tokenizer.json", "model.safetensors"];

/// A folder that is no model itself but has folders.
fn is_version_root(path: &Path) -> bool {
    let is_checkpoint = CHECKPOINT_FILES.iter().any(|file| path.join(file).exists());
    path.is_dir() && !is_checkpoint && folders(path).is_ok_and(|found| !found.is_empty())
}

/// The folders in `root` by name; hidden ones left out.
fn folders(root: &Path) -> Result<Vec<(String, PathBuf)>, SourceError> {
    let failed = |error| SourceError::Io { path: root.to_owned(), error };
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}
