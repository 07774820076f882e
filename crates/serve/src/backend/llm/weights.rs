//! A checkpoint's safetensors, one file or many, mapped.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use tch::{Kind, TchError, Tensor};

use super::error::LlmError;
use super::json::Json;
use crate::torch::mapped::MappedFile;

/// Weights, in place in their files.
pub(super) struct Checkpoint {
    folder: PathBuf,
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

impl Checkpoint {
    /// Maps the files of the folder and checks their headers against their lengths and against the index.
    pub(super) fn open(folder: &Path) -> Result<Self, LlmError> {
        let mut checkpoint = Self { folder: folder.to_owned(), shards: Vec::new(), weights: HashMap::new() };
        let index = folder.join("model.safetensors.index.json");
        if let Some(index) = Json::read_optional(&index)? {
            checkpoint.open_all(&index)?;
        } else {
            let path = folder.join("model.safetensors");
            if !path.exists() {
                return Err(LlmError::NoWeights { path: folder.to_owned() });
            }
            checkpoint.open_shard(path)?;
        }
        Ok(checkpoint)
    }

    fn open_all(&mut self, index: &Json) -> Result<(), LlmError> {
        let map = index.object("weight_map")?.ok_or_else(|| index.invalid("it has no weight_map"))?;
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in map.entries()? {
            if Path::new(file).file_name().is_none_or(|name| name != file) {
                return Err(index.invalid(format!("weight {tensor} is in {file:?}, which is no file's name")));
            }
            shards.entry(file).or_default().push(tensor);
        }
        for (file, tensors) in shards {
            let path = self.folder.join(file);
            self.open_shard(path.clone())?;
            if let Some(&lost) = tensors.iter().find(|&&tensor| !self.weights.contains_key(tensor)) {
                return Err(LlmError::MissingWeight { path, tensor: lost.to_owned() });
            }
        }
        Ok(())
    }

    fn open_shard(&mut self, path: PathBuf) -> Result<(), LlmError> {
        let file = MappedFile::open(&path).map_err(|source| LlmError::Read { path: path.clone(), source })?;
        let bytes = file.bytes();
        let header = SafeTensors::deserialize(bytes).map_err(|error| LlmError::Invalid {
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
    pub(super) fn mapped(&self, name: &str, shape: &[i64]) -> Result<Tensor, LlmError> {
        let tensor = name.to_owned();
        let Some(entry) = self.weights.get(name) else {
            return Err(LlmError::MissingWeight { path: self.folder.clone(), tensor });
        };
        let Shard { path, file } = &self.shards[entry.shard];
        if entry.shape != shape {
            let (expected, got) = (shape.to_vec(), entry.shape.clone());
            return Err(LlmError::WeightShape { path: path.clone(), tensor, expected, got });
        }
        let kind = match entry.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => {
                return Err(LlmError::WeightType { path: path.clone(), tensor, got: format!("{other:?}") });
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

/// The only tensor of a list, or all of them one under another.
pub(super) fn stacked(mut parts: Vec<Tensor>) -> Result<Tensor, TchError> {
    match parts.pop() {
        Some(only) if parts.is_empty() => Ok(only),
        Some(last) => {
            parts.push(last);
            Tensor::f_cat(&parts, 0)
        }
        None => Err(TchError::Shape("a linear layer of nothing".into())),
    }
}
