//! An encoder's weights, by the names that checkpoints have had for them.

use std::path::Path;

use tch::{Kind, Tensor};

use crate::backend::checkpoint::{self, CheckpointError};

/// A checkpoint's weights, in place in its file.
pub(super) struct Checkpoint {
    weights: checkpoint::Checkpoint,
    /// What all names of the encoder start with in this file.
    prefix: String,
}

/// The weight that every encoder has, which shows whether names have a prefix.
const WORD_EMBEDDINGS: &str = "embeddings.word_embeddings.weight";

impl Checkpoint {
    /// Maps the file and checks its header. Names may start with `prefix` or not.
    pub(super) fn open(path: &Path, prefix: &str) -> Result<Self, CheckpointError> {
        let weights = checkpoint::Checkpoint::open_file(path)?;
        let prefix = if weights.has(WORD_EMBEDDINGS) { "" } else { prefix };
        Ok(Self { weights, prefix: prefix.to_owned() })
    }

    /// The weight in its own element type, in place.
    pub(super) fn mapped(&self, name: &str, shape: &[i64]) -> Result<Tensor, CheckpointError> {
        let name = format!("{}{name}", self.prefix);
        let old = old_name(&name);
        let name = if !self.weights.has(&name) && self.weights.has(&old) { old } else { name };
        self.weights.mapped(&name, shape)
    }

    /// The weight as `f32`: in place where the file has that type, converted otherwise.
    pub(super) fn float(&self, name: &str, shape: &[i64]) -> Result<Tensor, CheckpointError> {
        Ok(self.mapped(name, shape)?.f_to_kind(Kind::Float)?)
    }

    /// Frees the memory of what was read once and copied elsewhere.
    pub(super) fn forget_pages(&self) {
        self.weights.forget_pages();
    }
}

/// Checkpoints from TensorFlow's time name a norm's weight and bias gamma and beta.
fn old_name(name: &str) -> String {
    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
}
