//! Checkpoint folders of Hugging Face: their JSON files, and their weights, mapped.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Kind, TchError, Tensor};

use crate::torch::mapped::MappedFile;

/// Why a checkpoint does not load.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file is missing or cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error("{} is not valid: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file asks for something that is not implemented.
    #[error("{} asks for {what}, which is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it asks for.
        what: String,
        /// What would be accepted.
        supported: String,
    },
    /// The folder holds no weights in a form that is read.
    #[error("{} has neither model.safetensors nor model.safetensors.index.json", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// The checkpoint lacks a weight.
    #[error("{} has no weight {tensor}", path.display())]
    MissingWeight {
        /// The checkpoint, or the shard that should hold the weight.
        path: PathBuf,
        /// Name of the weight.
        tensor: String,
    },
    /// A weight does not fit config.json.
    #[error("weight {tensor} in {} has shape {got:?}, config.json asks for {expected:?}", path.display())]
    WeightShape {
        /// The file.
        path: PathBuf,
        /// Name of the weight.
        tensor: String,
        /// By config.json.
        expected: Vec<i64>,
        /// By the checkpoint.
        got: Vec<i64>,
    },
    /// A weight has an element type that is not computed with.
    #[error("weight {tensor} in {} has type {got}; supported: F32, F16, BF16", path.display())]
    WeightType {
        /// The file.
        path: PathBuf,
        /// Name of the weight.
        tensor: String,
        /// Its type.
        got: String,
    },
    /// LibTorch refused an operation.
    #[error("LibTorch: {0}")]
    Torch(#[from] TchError),
}

/// Reads a JSON file that must be there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    read_optional(path)?.ok_or_else(|| CheckpointError::Read {
        path: path.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    })
}

/// Reads a JSON file that may be missing.
pub(crate) fn read_optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CheckpointError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| CheckpointError::Invalid { path: path.to_owned(), message: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CheckpointError::Read { path: path.to_owned(), source }),
    }
}

/// Weights of one safetensors file or many, in place in their files.
pub(super) struct Checkpoint {
    path: PathBuf,
    shards: Vec<Shard>,
    weights: HashMap<String, Entry>,
}

struct Shard {
    path: PathBuf,
    file: MappedFile,
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<i64>,
    offset: usize,
}

/// model.safetensors.index.json
#[derive(Deserialize)]
struct Index {
    weight_map: Option<BTreeMap<String, String>>,
}

impl Checkpoint {
    /// Maps one file and checks its header.
    pub(super) fn open_file(path: &Path) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self { path: path.to_owned(), shards: Vec::new(), weights: HashMap::new() };
        checkpoint.open_shard(path.to_owned())?;
        Ok(checkpoint)
    }

    /// Maps the files of a folder and checks their headers against their lengths and against the index.
    pub(super) fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self { path: folder.to_owned(), shards: Vec::new(), weights: HashMap::new() };
        let index = folder.join("model.safetensors.index.json");
        if let Some(Index { weight_map }) = read_optional(&index)? {
            checkpoint.open_all(&index, weight_map)?;
        } else {
            let path = folder.join("model.safetensors");
            if !path.exists() {
                return Err(CheckpointError::NoWeights { path: folder.to_owned() });
            }
            checkpoint.open_shard(path)?;
        }
        Ok(checkpoint)
    }

    fn open_all(
        &mut self,
        index: &Path,
        map: Option<BTreeMap<String, String>>,
    ) -> Result<(), CheckpointError> {
        let invalid = |message| CheckpointError::Invalid { path: index.to_owned(), message };
        let map = map.ok_or_else(|| invalid("it has no weight_map".to_owned()))?;
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in &map {
            if Path::new(file).file_name().is_none_or(|name| name != file.as_str()) {
                return Err(invalid(format!("weight {tensor} is in {file:?}, which is no file's name")));
            }
            shards.entry(file).or_default().push(tensor);
        }
        for (file, tensors) in shards {
            let path = self.path.join(file);
            self.open_shard(path.clone())?;
            if let Some(&lost) = tensors.iter().find(|&&tensor| !self.has(tensor)) {
                return Err(CheckpointError::MissingWeight { path, tensor: lost.to_owned() });
            }
        }
        Ok(())
    }

    fn open_shard(&mut self, path: PathBuf) -> Result<(), CheckpointError> {
        let file =
            MappedFile::open(&path).map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
        let bytes = file.bytes();
        let header = SafeTensors::deserialize(bytes).map_err(|error| CheckpointError::Invalid {
            path: path.clone(),
            message: format!("{error} (the file has {} bytes)", bytes.len()),
        })?;
        let shard = self.shards.len();
        for (name, view) in header.iter() {
            let shape = view.shape().iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
            let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            self.weights.insert(name.to_owned(), Entry { shard, dtype: view.dtype(), shape, offset });
        }
        self.shards.push(Shard { path, file });
        Ok(())
    }

    /// Whether there is a weight of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.weights.contains_key(name)
    }

    /// The weight in its own element type, in place.
    pub(super) fn mapped(&self, name: &str, shape: &[i64]) -> Result<Tensor, CheckpointError> {
        let tensor = name.to_owned();
        let Some(entry) = self.weights.get(name) else {
            return Err(CheckpointError::MissingWeight { path: self.path.clone(), tensor });
        };
        let Shard { path, file } = &self.shards[entry.shard];
        if entry.shape != shape {
            let (expected, got) = (shape.to_vec(), entry.shape.clone());
            return Err(CheckpointError::WeightShape { path: path.clone(), tensor, expected, got });
        }
        let kind = match entry.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => {
                let got = format!("{other:?}");
                return Err(CheckpointError::WeightType { path: path.clone(), tensor, got });
            }
        };
        Ok(file.tensor(entry.offset, shape, kind)?)
    }

    /// Frees the memory of what was read once and copied elsewhere.
    pub(super) fn forget_pages(&self) {
        for shard in &self.shards {
            shard.file.forget_pages();
        }
    }
}
