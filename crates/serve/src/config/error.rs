//! What is wrong with a configuration, and where.

use std::io;
use std::path::PathBuf;

use super::kinds::NAME_RULE;
use super::tree::Source;

/// Why settings could not be resolved. Each message is complete: where, which key, what to write.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        reason: io::Error,
    },
    /// The text is not TOML.
    #[error("{at}: not valid TOML: {reason}")]
    Syntax {
        /// File and line.
        at: Source,
        /// What the parser says.
        reason: String,
    },
    /// A `--set` is not `key=value`, or an environment variable names no key.
    #[error("{at}: {reason}")]
    Assignment {
        /// The flag or the variable.
        at: Source,
        /// What is wrong and what the right form is.
        reason: String,
    },
    /// No such key.
    #[error("{at}: unknown key `{key}`; {hint}")]
    UnknownKey {
        /// Where it is set.
        at: Source,
        /// The full dotted key.
        key: String,
        /// The nearest valid key, or all of its table's when none is near.
        hint: String,
    },
    /// The value is not of the key's type, or not one of its choices.
    #[error("{at}: `{key}` must be {expected}, got {got}")]
    WrongType {
        /// Where it is set.
        at: Source,
        /// The full dotted key.
        key: String,
        /// What the key takes.
        expected: String,
        /// What was written.
        got: String,
    },
    /// A duration or a size without a unit.
    #[error("{at}: {key} = {value} needs a unit: write \"{example}\"")]
    NeedsUnit {
        /// Where it is set.
        at: Source,
        /// The full dotted key.
        key: String,
        /// The bare number.
        value: String,
        /// The number with the unit that was probably meant.
        example: String,
    },
    /// A value that contradicts another one or cannot be meant.
    #[error("{at}: `{key}` {reason}")]
    Invalid {
        /// Where it is set.
        at: Source,
        /// The full dotted key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A key that a model's format, found in its folder, has no use for.
    #[error("model {model:?}: `{key}` {reason}")]
    Misfit {
        /// The model.
        model: String,
        /// Its key.
        key: &'static str,
        /// Which formats take it.
        reason: String,
    },
    /// A folder of the repository whose name no URL could have.
    #[error("model {name:?}: {name:?} {NAME_RULE}")]
    ModelName {
        /// The folder's name.
        name: String,
    },
    /// Several of them, one a line.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Many(Vec<ConfigError>),
}

impl ConfigError {
    /// One error as itself, several as [`ConfigError::Many`]; `Ok` when there is none.
    pub(super) fn all(mut errors: Vec<ConfigError>) -> Result<(), ConfigError> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(ConfigError::Many(errors)),
        }
    }
}
