//! model.safetensors, mapped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor};

use super::error::EncoderError;
use crate::torch::mapped::MappedFile;

/// A checkpoint's weights, in place in its file.
pub(super) struct Checkpoint {
    path: PathBuf,
    file: MappedFile,
    weights: HashMap<String, Entry>,
    /// What all names of the encoder start with in this file.
    prefix: String,
}

struct Entry {
    dtype: Dtype,
    shape: Vec<i64>,
    offset: usize,
}

/// The weight that every encoder has, which shows whether names have a prefix.
const WORD_EMBEDDINGS: &str = "embeddings.word_embeddings.weight";

impl Checkpoint {
    /// Maps the file and checks its header. Names may start with `prefix` or not.
    pub(super) fn open(path: &Path, prefix: &str) -> Result<Self, EncoderError> {
        let file =
            MappedFile::open(path).map_err(|source| EncoderError::Read { path: path.to_owned(), source })?;
        let bytes = file.bytes();
        let header = SafeTensors::deserialize(bytes).map_err(|error| EncoderError::Invalid {
            path: path.to_owned(),
            message: format!("{error} (the file has {} bytes)", bytes.len()),
        })?;
        let mut weights = HashMap::with_capacity(header.len());
        for (name, view) in header.iter() {
            let shape = view.shape().iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
            let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            weights.insert(name.to_owned(), Entry { dtype: view.dtype(), shape, offset });
        }
        let prefix = if weights.contains_key(WORD_EMBEDDINGS) { "" } else { prefix };
        Ok(Self { path: path.to_owned(), weights, prefix: prefix.to_owned(), file })
    }

    /// The weight in its own element type, in place.
    pub(super) fn mapped(&self, name: &str, shape: &[i64]) -> Result<Tensor, EncoderError> {
        let tensor = format!("{}{name}", self.prefix);
        let Some(entry) = self.weights.get(&tensor).or_else(|| self.weights.get(&old_name(&tensor))) else {
            return Err(EncoderError::MissingWeight { path: self.path.clone(), tensor });
        };
        if entry.shape != shape {
            return Err(EncoderError::WeightShape {
                path: self.path.clone(),
                tensor,
                expected: shape.to_vec(),
                got: entry.shape.clone(),
            });
        }
        let kind = match entry.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => {
                let got = format!("{other:?}");
                return Err(EncoderError::WeightType { path: self.path.clone(), tensor, got });
            }
        };
        Ok(self.file.tensor(entry.offset, shape, kind)?)
    }

    /// The weight as `f32`: in place where the file has that type, converted otherwise.
    pub(super) fn float(&self, name: &str, shape: &[i64]) -> Result<Tensor, EncoderError> {
        Ok(self.mapped(name, shape)?.f_to_kind(Kind::Float)?)
    }

    /// Frees the memory of what was read once and copied elsewhere.
    pub(super) fn forget_pages(&self) {
        self.file.forget_pages();
    }
}

/// Checkpoints from TensorFlow's time name a norm's weight and bias gamma and beta.
fn old_name(name: &str) -> String {
    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
}
