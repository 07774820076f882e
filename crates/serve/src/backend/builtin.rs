//! The models that come with the server: what their files are called and what they take.

use crate::config::Format;
use crate::tensor::{DType, TensorSpec};

/// A built-in model that is read from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Builtin {
    /// File or directory in the folder of the built-in models.
    pub file: &'static str,
    /// How it is read.
    pub format: Format,
    /// What one item is; empty for a text model.
    pub inputs: Vec<TensorSpec>,
    /// What is answered for it; empty for a text model.
    pub outputs: Vec<TensorSpec>,
}

/// The built-in model called `name`; none for `delay`, which has no file, and for other names.
pub fn find(name: &str) -> Option<Builtin> {
    match name {
        "mlp" => Some(torchscript("mlp.pt", tensor("input", &[64]), tensor("output", &[10]))),
        "resnet18" => {
            Some(torchscript("resnet18.pt", tensor("image", &[3, 224, 224]), tensor("logits", &[1000])))
        }
        "minilm" => Some(checkpoint("minilm")),
        "tinylm" => Some(checkpoint("tinylm")),
        _ => None,
    }
}

fn torchscript(file: &'static str, input: TensorSpec, output: TensorSpec) -> Builtin {
    Builtin { file, format: Format::Torchscript, inputs: vec![input], outputs: vec![output] }
}

fn checkpoint(file: &'static str) -> Builtin {
    Builtin { file, format: Format::Huggingface, inputs: Vec::new(), outputs: Vec::new() }
}

fn tensor(name: &str, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype: DType::F32, shape: shape.to_vec(), pad: None }
}
