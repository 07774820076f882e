//! Why a TorchScript file does not load.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Why a TorchScript file does not load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is missing or may not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a TorchScript module that this LibTorch can run.
    #[error("cannot load {}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file does not say what its tensors are, and neither does the configuration.
    #[error(
        "its inputs are not declared: give name, dtype and shape of each argument of its forward({arguments})"
    )]
    NoInputs {
        /// Names of the arguments.
        arguments: String,
    },
    /// More or fewer inputs than arguments.
    #[error("{declared} inputs are declared, but its arguments are forward({arguments})")]
    Inputs {
        /// Number of declared inputs.
        declared: usize,
        /// Names of the arguments, those with a default in brackets.
        arguments: String,
    },
    /// An input cannot be padded as it is declared.
    #[error("`pad` of input \"{input}\" {reason}")]
    Pad {
        /// Its name.
        input: String,
        /// What does not fit.
        reason: String,
    },
    /// A first run failed.
    #[error("it fails on zeros at batch size {batch_size}{sizes}: {reason}")]
    Run {
        /// Items of the batch.
        batch_size: usize,
        /// What -1 dimensions were, where there are any.
        sizes: String,
        /// What the module raised.
        reason: String,
    },
    /// What a first run answered is not what is declared, or cannot be answered to a caller.
    #[error("at batch size {batch_size}, {reason}")]
    Outputs {
        /// Items of the batch.
        batch_size: usize,
        /// What does not fit.
        reason: String,
    },
    /// The system gives no more threads.
    #[error("cannot start a thread to load it: {0}")]
    Thread(io::Error),
}

impl LoadError {
    /// From LibTorch's words, which name its own files and not what is wrong with this one.
    pub(super) fn unreadable(path: &Path, reason: &str) -> Self {
        let reason = if reason.contains("central directory") {
            format!("it is truncated or damaged ({reason})")
        } else if reason.contains("file not found") || reason.contains("constants.pkl") {
            format!("it is an archive, but not one of torch.jit.save ({reason})")
        } else {
            reason.to_owned()
        };
        Self::Invalid { path: path.to_owned(), reason }
    }
}

/// LibTorch takes a file that is no archive for one of an older format, and its error misleads.
pub(super) fn check_is_archive(path: &Path) -> Result<(), LoadError> {
    let read = |source| LoadError::Read { path: path.to_owned(), source };
    let mut start = Vec::new();
    File::open(path).map_err(read)?.take(4).read_to_end(&mut start).map_err(read)?;
    let reason = match start.as_slice() {
        b"PK\x03\x04" => return Ok(()),
        b"" => "it is empty",
        _ => "it is not a zip archive, as files of torch.jit.save are",
    };
    Err(LoadError::Invalid { path: path.to_owned(), reason: reason.to_owned() })
}
