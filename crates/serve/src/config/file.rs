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

#[cfg(test)]
mod tests {
    use super::*;

    fn node<'a>(table: &'a Table, path: &[&str]) -> &'a Node {
        let node = &table[path[0]];
        match (&node.value, &path[1..]) {
            (_, []) => node,
            (Value::Table(inner), rest) => self::node(inner, rest),
            (value, rest) => panic!("{value} has no {rest:?}"),
        }
    }

    #[test]
    fn every_value_knows_its_line() {
        let text = "# comment\r\na = 1\n\n[b]\nc = [\n  1,\n  2,\n]\nd.e = 'x'\n[f.g]\n";
        let root = Document::new("t", text, "").parse().unwrap();
        for (path, line) in
            [(&["a"][..], 2), (&["b"], 4), (&["b", "c"], 5), (&["b", "d", "e"], 9), (&["f", "g"], 10)]
        {
            assert_eq!(node(&root, path).source.to_string(), format!("t:{line}"), "{path:?}");
        }
        let Value::Array(items) = &node(&root, &["b", "c"]).value else { panic!("not an array") };
        assert_eq!(items[1].source.to_string(), "t:7");
    }

    #[test]
    fn numbers_keep_their_value() {
        let text = "a = 1_000\nb = 0xff\nc = -7\nd = 99999999999999999999\ne = 2.5";
        let root = Document::new("t", text, "").parse().unwrap();
        for (key, number) in [("a", 1000), ("b", 255), ("c", -7), ("d", 99_999_999_999_999_999_999)] {
            assert_eq!(root[key].value, Value::Integer(number), "{key}");
        }
        assert_eq!(root["e"].value, Value::Float(2.5));
    }

    #[test]
    fn what_is_not_toml_is_told_with_its_line() {
        for (text, expected) in [
            (
                "[server]\nport = \n",
                "t:2: not valid TOML: string values must be quoted, expected literal string",
            ),
            ("a = 1\na = 2", "t:2: not valid TOML: duplicate key"),
            ("a = 1\n[b\n", "t:2: not valid TOML: unclosed table, expected `]`"),
        ] {
            assert_eq!(Document::new("t", text, "").parse().unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_typed_value_is_toml_or_else_text() {
        let source = Source::Flag("--set x".to_owned());
        for (text, value) in [
            ("64", Value::Integer(64)),
            ("true", Value::Boolean(true)),
            ("\"a b\"", Value::Text("a b".to_owned())),
            ("50ms", Value::Text("50ms".to_owned())),
            ("cuda:0", Value::Text("cuda:0".to_owned())),
            ("[1", Value::Text("[1".to_owned())),
            ("1 = 2", Value::Text("1 = 2".to_owned())),
            ("", Value::Text(String::new())),
        ] {
            assert_eq!(typed(text, &source).value, value, "{text}");
        }
    }
}
