//! The file layer: TOML text to a tree whose leaves know their lines.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::tree::{Node, Origin, Source, Table, Value};

/// A configuration file's text. Relative paths in it are relative to its own folder.
#[derive(Debug, Clone)]
pub struct Document {
    origin: Arc<Origin>,
    text: String,
}

impl Document {
    /// A text that is called `name` in messages and whose relative paths start at `folder`.
    pub fn new(name: impl Into<String>, text: impl Into<String>, folder: impl Into<PathBuf>) -> Self {
        Self { origin: Arc::new(Origin { name: name.into(), folder: folder.into() }), text: text.into() }
    }

    /// The file at `path`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|reason| ConfigError::Read { path: path.to_owned(), reason })?;
        Ok(Self::new(path.display().to_string(), text, path.parent().unwrap_or(Path::new(""))))
    }

    /// What the text says.
    pub(super) fn parse(&self) -> Result<Table, ConfigError> {
        let lines = Lines::new(&self.text);
        let root = DeTable::parse(&self.text).map_err(|error| {
            let line = error.span().map_or(1, |span| lines.of(span.start));
            ConfigError::Syntax { at: self.source(line), reason: error.message().to_owned() }
        })?;
        Ok(table(root.get_ref(), &|offset| self.source(lines.of(offset))))
    }

    fn source(&self, line: usize) -> Source {
        Source::File { file: self.origin.clone(), line }
    }
}

/// One TOML value that was typed on a command line or in an environment variable; a text that is
/// not TOML is taken as a string.
pub(super) fn typed(text: &str, source: &Source) -> Node {
    let value = match DeValue::parse(text) {
        Ok(parsed) => value(parsed.get_ref(), &|_| source.clone()),
        Err(_) => Value::Text(text.to_owned()),
    };
    Node { value, source: source.clone(), raw: Some(text.to_owned()) }
}

type Locate<'a> = &'a dyn Fn(usize) -> Source;

fn table(from: &DeTable<'_>, locate: Locate<'_>) -> Table {
    let entry = |(key, item): (&toml::Spanned<_>, &toml::Spanned<_>)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        let node = Node {
            value: value(item.get_ref(), locate),
            // The key's line: a value may end many lines below.
            source: locate(key.span().start),
            raw: None,
        };
        (name.to_string(), node)
    };
    from.iter().map(entry).collect()
}

fn value(from: &DeValue<'_>, locate: Locate<'_>) -> Value {
    match from {
        DeValue::String(text) => Value::Text(text.to_string()),
        // The parser has checked the digits, so it can only be too large.
        DeValue::Integer(number) => {
            Value::Integer(i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX))
        }
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| Node {
                    value: value(item.get_ref(), locate),
                    source: locate(item.span().start),
                    raw: None,
                })
                .collect(),
        ),
        DeValue::Table(items) => Value::Table(table(items, locate)),
    }
}

/// Byte offsets to line numbers.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        Lines(text.match_indices('\n').map(|(offset, _)| offset).collect())
    }

    fn of(&self, offset: usize) -> usize {
        self.0.partition_point(|&end| end < offset) + 1
    }
}
