//! Values before they have types: what each layer says, and where it says so.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::ConfigError;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A line of a file.
    File {
        /// The file.
        file: Arc<Origin>,
        /// Counted from 1.
        line: usize,
    },
    /// An environment variable, by name.
    Environment(String),
    /// A flag, as it was typed.
    Flag(String),
    /// Nobody set it.
    Default,
    /// The model does not set it, `[batching]` does.
    Inherited(Box<Source>),
}

/// A file that settings come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its name in messages.
    pub name: String,
    /// What relative paths in it are relative to.
    pub folder: PathBuf,
}

impl Source {
    /// What a relative path from here is relative to.
    pub(super) fn folder(&self) -> &Path {
        match self {
            Source::File { file, .. } => &file.folder,
            Source::Inherited(inner) => inner.folder(),
            Source::Environment(_) | Source::Flag(_) | Source::Default => Path::new(""),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File { file, line } => write!(f, "{}:{line}", file.name),
            Source::Environment(name) => write!(f, "environment variable {name}"),
            Source::Flag(text) => write!(f, "flag {text}"),
            Source::Default => f.write_str("default"),
            Source::Inherited(inner) => write!(f, "[batching], {inner}"),
        }
    }
}

/// A table of a layer, or of all of them merged.
pub(super) type Table = BTreeMap<String, Node>;

/// The table of whoever says nothing.
pub(super) static EMPTY: Table = Table::new();

/// A value and where it was set.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) source: Source,
    /// The text of an environment variable or a flag, for keys that take text: a version `10` is a
    /// number to TOML, but nobody quotes it on a command line.
    pub(super) raw: Option<String>,
}

/// TOML's types.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    /// Wider than any key takes, so that a number too large is told as such.
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Date(String),
    Array(Vec<Node>),
    Table(Table),
}

impl Node {
    /// The text, when it is text or was typed as such.
    pub(super) fn text(&self) -> Option<&str> {
        match (&self.value, &self.raw) {
            (Value::Text(text), _) => Some(text),
            (Value::Array(_) | Value::Table(_), _) => None,
            (_, raw) => raw.as_deref(),
        }
    }

    /// The error that `key` takes something else.
    pub(super) fn wrong(&self, key: &str, expected: impl Into<String>) -> ConfigError {
        ConfigError::WrongType {
            at: self.source.clone(),
            key: key.to_owned(),
            expected: expected.into(),
            got: self.value.to_string(),
        }
    }

    /// The error that the value has the right type and is still not possible.
    pub(super) fn invalid(&self, key: &str, reason: impl Into<String>) -> ConfigError {
        ConfigError::Invalid { at: self.source.clone(), key: key.to_owned(), reason: reason.into() }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => write!(f, "the string {text:?}"),
            Value::Integer(number) => write!(f, "the integer {number}"),
            Value::Float(number) => write!(f, "the number {number}"),
            Value::Boolean(value) => write!(f, "the boolean {value}"),
            Value::Date(date) => write!(f, "the date {date}"),
            Value::Array(_) => f.write_str("an array"),
            Value::Table(_) => f.write_str("a table"),
        }
    }
}

/// Lays `upper` over `lower`: tables are merged, everything else is replaced.
pub(super) fn merge(lower: &mut Table, upper: Table) {
    for (key, node) in upper {
        match lower.get_mut(&key) {
            Some(Node { value: Value::Table(below), .. }) if matches!(node.value, Value::Table(_)) => {
                if let Value::Table(above) = node.value {
                    merge(below, above);
                }
            }
            _ => {
                lower.insert(key, node);
            }
        }
    }
}

/// A dotted key; names that TOML would not take bare are quoted.
pub(super) fn dotted<S: AsRef<str>>(path: &[S]) -> String {
    path.iter().map(|name| quoted(name.as_ref())).collect::<Vec<_>>().join(".")
}

fn quoted(name: &str) -> String {
    let bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    if bare { name.to_owned() } else { toml::Value::from(name).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(value: i128) -> Node {
        Node { value: Value::Integer(value), source: Source::Default, raw: None }
    }

    fn table(entries: &[(&str, Node)]) -> Table {
        entries.iter().map(|(key, node)| ((*key).to_owned(), node.clone())).collect()
    }

    fn nested(entries: &[(&str, Node)]) -> Node {
        Node { value: Value::Table(table(entries)), source: Source::Default, raw: None }
    }

    #[test]
    fn a_merged_table_keeps_what_the_upper_layer_does_not_say() {
        let mut lower = table(&[("server", nested(&[("port", leaf(1)), ("workers", leaf(2))]))]);
        merge(&mut lower, table(&[("server", nested(&[("port", leaf(9))]))]));
        assert_eq!(lower, table(&[("server", nested(&[("port", leaf(9)), ("workers", leaf(2))]))]));
    }

    #[test]
    fn a_value_replaces_a_table() {
        let mut lower = table(&[("server", nested(&[("port", leaf(1))]))]);
        merge(&mut lower, table(&[("server", leaf(3))]));
        assert_eq!(lower, table(&[("server", leaf(3))]));
    }

    #[test]
    fn names_that_are_not_bare_keys_are_quoted() {
        assert_eq!(dotted(&["models", "bert.v2", "device"]), "models.\"bert.v2\".device");
        assert_eq!(dotted(&["models", "bert-v2_x"]), "models.bert-v2_x");
    }
}
