//! JSON as Python's `json.dumps` writes it, which models were trained to read.

use std::fmt::Write;

use serde_json::{Map, Value};

/// Blanks of one level beyond this are a mistake.
pub(super) const MOST_INDENT: usize = 64;

/// The options of `json.dumps`.
pub(super) struct Layout<'a> {
    pub(super) ensure_ascii: bool,
    /// What stands before each level; without, all is one line.
    pub(super) indent: Option<String>,
    pub(super) between: &'a str,
    pub(super) after_key: &'a str,
    pub(super) sort_keys: bool,
}

impl Layout<'_> {
    pub(super) fn write(&self, value: &Value) -> String {
        let mut text = String::new();
        self.value(value, 0, &mut text);
        text
    }

    fn value(&self, value: &Value, level: usize, text: &mut String) {
        match value {
            Value::String(string) => self.string(string, text),
            Value::Number(number) if number.is_f64() => {
                text.push_str(&float(number.as_f64().unwrap_or_default()));
            }
            Value::Array(items) => {
                self.container(['[', ']'], items, level, text, |item, text| {
                    self.value(item, level + 1, text);
                });
            }
            Value::Object(object) => {
                self.container(['{', '}'], &self.ordered(object), level, text, |&(key, value), text| {
                    self.string(key, text);
                    text.push_str(self.after_key);
                    self.value(value, level + 1, text);
                });
            }
            other => text.push_str(&other.to_string()),
        }
    }

    fn container<T>(
        &self,
        ends: [char; 2],
        items: &[T],
        level: usize,
        text: &mut String,
        mut item: impl FnMut(&T, &mut String),
    ) {
        text.push(ends[0]);
        for (index, value) in items.iter().enumerate() {
            if index > 0 {
                text.push_str(self.between);
            }
            self.line(level + 1, text);
            item(value, text);
        }
        if !items.is_empty() {
            self.line(level, text);
        }
        text.push(ends[1]);
    }

    fn line(&self, level: usize, text: &mut String) {
        if let Some(indent) = &self.indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(indent.as_str(), level));
        }
    }

    fn ordered<'v>(&self, object: &'v Map<String, Value>) -> Vec<(&'v String, &'v Value)> {
        let mut pairs: Vec<_> = object.iter().collect();
        if self.sort_keys {
            pairs.sort_by_key(|&(key, _)| key);
        }
        pairs
    }

    fn string(&self, string: &str, text: &mut String) {
        let quoted = Value::from(string).to_string();
        if !self.ensure_ascii {
            text.push_str(&quoted);
            return;
        }
        for character in quoted.chars() {
            if character.is_ascii() {
                text.push(character);
                continue;
            }
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
}

/// Python's `repr` of a float: the shortest digits that mean it, with an exponent from 1e16 on and below
/// 1e-4.
fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let power: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&power) {
        let plain = value.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if power < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", power.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_look_as_in_python() {
        let cases = [
            (0.0, "0.0"),
            (-1.5, "-1.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e-5, "1.25e-05"),
            (0.0001, "0.0001"),
            (1e300, "1e+300"),
        ];
        for (value, text) in cases {
            assert_eq!(float(value), text);
        }
    }
}
