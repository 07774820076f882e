//! JSON files of a checkpoint, read key by key with errors that name file and key.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::LlmError;
use crate::backend::checkpoint::{CheckpointError, read_json, read_optional};

/// An object of a JSON file. A key that is null counts as absent.
#[derive(Debug, Clone)]
pub(super) struct Json {
    path: PathBuf,
    /// What stands before a key in messages.
    prefix: String,
    fields: Map<String, Value>,
}

/// The largest size of anything; more is a mistake, and products of sizes must not overflow.
const MOST: i64 = 1 << 31;

impl Json {
    /// Reads a file that must be there.
    pub(super) fn read(path: &Path) -> Result<Self, LlmError> {
        Ok(Self { path: path.to_owned(), prefix: String::new(), fields: read_json(path)? })
    }

    /// Reads a file that may be missing.
    pub(super) fn read_optional(path: &Path) -> Result<Option<Self>, LlmError> {
        let fields = read_optional(path)?;
        Ok(fields.map(|fields| Self { path: path.to_owned(), prefix: String::new(), fields }))
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key stands in the file, be it null.
    pub(super) fn mentions(&self, key: &str) -> bool {
        self.fields.contains_key(key)
    }

    pub(super) fn invalid(&self, message: impl Into<String>) -> LlmError {
        CheckpointError::Invalid { path: self.path.clone(), message: message.into() }.into()
    }

    pub(super) fn unsupported(&self, what: impl Into<String>, supported: impl Into<String>) -> LlmError {
        let (what, supported) = (what.into(), supported.into());
        CheckpointError::Unsupported { path: self.path.clone(), what, supported }.into()
    }

    fn missing(&self, key: &str) -> LlmError {
        self.invalid(format!("it has no {}{key}", self.prefix))
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> LlmError {
        self.invalid(format!("{}{key} is {value}, not {expected}", self.prefix))
    }

    /// A number above zero.
    pub(super) fn size(&self, key: &str) -> Result<i64, LlmError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A number above zero that may be absent.
    pub(super) fn optional_size(&self, key: &str) -> Result<Option<i64>, LlmError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_i64() {
            Some(size) if (1..=MOST).contains(&size) => Ok(Some(size)),
            _ => Err(self.wrong(key, value, "a size")),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<f64, LlmError> {
        self.optional_number(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn optional_number(&self, key: &str) -> Result<Option<f64>, LlmError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(key, value, "a number"))
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, LlmError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    pub(super) fn optional_text(&self, key: &str) -> Result<Option<&str>, LlmError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "a text"))
    }

    pub(super) fn optional_texts(&self, key: &str) -> Result<Option<Vec<&str>>, LlmError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.wrong(key, value, "a list of texts"))
    }

    /// Token ids, written as one number or as a list; none where the key is absent.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>, LlmError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(key, value, "a token id or a list of them"))
    }

    /// The object under a key.
    pub(super) fn object(&self, key: &str) -> Result<Option<Self>, LlmError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Some(fields) = value.as_object() else { return Err(self.wrong(key, value, "an object")) };
        let prefix = format!("{}{key}.", self.prefix);
        Ok(Some(Self { path: self.path.clone(), prefix, fields: fields.clone() }))
    }
}
