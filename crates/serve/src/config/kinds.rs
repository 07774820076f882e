//! What a key may take: how each kind of value is read, and printed again.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::error::ConfigError;
use super::tree::{Node, Table, Value};
use super::units::{UnitError, parse_duration, parse_size, show_duration, show_size};
use crate::tensor::{DType, TensorSpec};

type Parse<T> = Box<dyn Fn(&Node, &str) -> Result<T, ConfigError>>;

/// How the value of a key is read from a tree and shown as TOML.
pub(super) struct Kind<T> {
    parse: Parse<T>,
    show: Box<dyn Fn(&T) -> toml::Value>,
}

impl<T> Kind<T> {
    fn new(
        parse: impl Fn(&Node, &str) -> Result<T, ConfigError> + 'static,
        show: impl Fn(&T) -> toml::Value + 'static,
    ) -> Self {
        Self { parse: Box::new(parse), show: Box::new(show) }
    }

    /// The value of `node`; `key` is its full name for errors.
    pub(super) fn parse(&self, node: &Node, key: &str) -> Result<T, ConfigError> {
        (self.parse)(node, key)
    }

    /// What [`Kind::parse`] would read as `value`.
    pub(super) fn show(&self, value: &T) -> toml::Value {
        (self.show)(value)
    }
}

/// A text that is not empty.
pub(super) fn text() -> Kind<String> {
    Kind::new(
        |node, key| match node.text() {
            Some("") | None => Err(node.wrong(key, "a text")),
            Some(text) => Ok(text.to_owned()),
        },
        |text| text.clone().into(),
    )
}

/// The name of a model or of a version: it becomes part of URLs and file names.
pub(super) fn name() -> Kind<String> {
    Kind::new(
        |node, key| match node.text() {
            Some(text) if is_name(text) => Ok(text.to_owned()),
            Some(text) => Err(node.invalid(key, format!("{text:?} {NAME_RULE}"))),
            None => Err(node.wrong(key, "a text")),
        },
        |text| text.clone().into(),
    )
}

/// Why a text is not a name, after the text.
pub(super) const NAME_RULE: &str =
    "is not a name: it may have letters, digits, `-`, `_` and `.`, and starts with a letter or a digit";

/// Whether `text` can name a model or a version.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// A path; a relative one starts at the folder of the file it is in.
pub(super) fn path() -> Kind<PathBuf> {
    Kind::new(
        |node, key| match node.text() {
            Some("") | None => Err(node.wrong(key, "a path")),
            Some(text) => Ok(node.source.folder().join(text)),
        },
        |path| path.display().to_string().into(),
    )
}

/// `true` or `false`.
pub(super) fn boolean() -> Kind<bool> {
    Kind::new(
        |node, key| match node.value {
            Value::Boolean(value) => Ok(value),
            _ => Err(node.wrong(key, "true or false")),
        },
        |value| (*value).into(),
    )
}

/// A whole number in `range`.
pub(super) fn integer<T>(range: RangeInclusive<T>) -> Kind<T>
where
    T: Copy + fmt::Display + TryFrom<i128> + TryInto<i64> + PartialOrd + 'static,
{
    Kind::new(
        move |node, key| {
            let number = match node.value {
                Value::Integer(number) => T::try_from(number).ok().filter(|number| range.contains(number)),
                _ => None,
            };
            number.ok_or_else(|| {
                let (low, high) = (range.start(), range.end());
                node.wrong(key, format!("a whole number from {low} to {high}"))
            })
        },
        // Ranges end where TOML's integers do.
        |number| toml::Value::Integer((*number).try_into().unwrap_or(i64::MAX)),
    )
}

/// Whole numbers in `range`, as a list.
pub(super) fn integers(range: RangeInclusive<u32>) -> Kind<Vec<u32>> {
    let one = integer(range);
    Kind::new(
        move |node, key| match &node.value {
            Value::Array(items) => {
                items.iter().enumerate().map(|(at, item)| one.parse(item, &format!("{key}[{at}]"))).collect()
            }
            _ => Err(node.wrong(key, "a list of whole numbers")),
        },
        |numbers: &Vec<u32>| numbers.clone().into(),
    )
}

/// A number in `range`, whole or not.
pub(super) fn number(range: RangeInclusive<f64>) -> Kind<f64> {
    Kind::new(
        move |node, key| {
            let number = match node.value {
                Value::Integer(number) => Some(number as f64),
                Value::Float(number) => Some(number),
                _ => None,
            };
            number.filter(|number| range.contains(number)).ok_or_else(|| {
                let (low, high) = (range.start(), range.end());
                node.wrong(key, format!("a number from {low} to {high}"))
            })
        },
        |number| (*number).into(),
    )
}

/// A duration such as `"50ms"` of at least `least`; `unit` is the one that a number alone most
/// likely lacks.
pub(super) fn duration(least: Duration, unit: &'static str) -> Kind<Duration> {
    Kind::new(
        move |node, key| match quantity(node, key, "a duration like \"50ms\"", unit, parse_duration)? {
            short if short < least => {
                Err(node.invalid(key, format!("must be at least \"{}\"", show_duration(least))))
            }
            duration => Ok(duration),
        },
        |duration| show_duration(*duration).into(),
    )
}

/// A size such as `"64MB"`, more than nothing; in bytes.
pub(super) fn size() -> Kind<u64> {
    Kind::new(
        |node, key| match quantity(node, key, "a size like \"64MB\"", "MB", parse_size)? {
            0 => Err(node.invalid(key, "must be at least \"1B\"")),
            bytes => Ok(bytes),
        },
        |bytes| show_size(*bytes).into(),
    )
}

fn quantity<T>(
    node: &Node,
    key: &str,
    expected: &str,
    unit: &str,
    parse: impl Fn(&str) -> Result<T, UnitError>,
) -> Result<T, ConfigError> {
    let needs_unit = |value: String| {
        let example = format!("{value}{unit}");
        ConfigError::NeedsUnit { at: node.source.clone(), key: key.to_owned(), value, example }
    };
    match &node.value {
        Value::Integer(number) if *number >= 0 => Err(needs_unit(number.to_string())),
        Value::Float(number) if *number >= 0.0 => Err(needs_unit(number.to_string())),
        Value::Text(text) => parse(text).map_err(|error| match error {
            UnitError::Missing => needs_unit(text.trim().to_owned()),
            UnitError::Other(reason) => node.invalid(key, reason),
        }),
        _ => Err(node.wrong(key, expected)),
    }
}

/// One of a few words.
pub(super) fn choice<T: Copy + PartialEq + 'static>(choices: &'static [(&'static str, T)]) -> Kind<T> {
    Kind::new(
        |node, key| {
            let found = node.text().and_then(|text| choices.iter().find(|(name, _)| *name == text));
            found
                .map(|(_, value)| *value)
                .ok_or_else(|| node.wrong(key, one_of(choices.iter().map(|(name, _)| *name))))
        },
        |value| choices.iter().find(|(_, other)| other == value).map_or("", |(name, _)| *name).into(),
    )
}

fn one_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(" or ")
}

/// What its own `FromStr` reads and its `Display` shows.
pub(super) fn parsed<T>(expected: &'static str) -> Kind<T>
where
    T: std::str::FromStr + fmt::Display,
{
    Kind::new(
        move |node, key| {
            node.text().and_then(|text| text.parse().ok()).ok_or_else(|| node.wrong(key, expected))
        },
        |value: &T| value.to_string().into(),
    )
}

/// Which version folders of a model are served.
pub(super) fn versions() -> Kind<super::Versions> {
    use super::Versions;
    const EXPECTED: &str = "\"latest\" or \"all\" or a list of names";
    Kind::new(
        |node, key| match &node.value {
            Value::Text(text) if text == "latest" => Ok(Versions::Latest),
            Value::Text(text) if text == "all" => Ok(Versions::All),
            Value::Array(items) if items.is_empty() => Err(node.invalid(key, "names no version")),
            Value::Array(items) => {
                let names =
                    items.iter().map(|item| name().parse(item, key)).collect::<Result<Vec<_>, _>>()?;
                match duplicate(names.iter().map(String::as_str)) {
                    Some(twice) => Err(node.invalid(key, format!("names version \"{twice}\" twice"))),
                    None => Ok(Versions::Named(names)),
                }
            }
            _ => Err(node.wrong(key, EXPECTED)),
        },
        |versions| match versions {
            Versions::Latest => "latest".into(),
            Versions::All => "all".into(),
            Versions::Named(names) => names.clone().into(),
        },
    )
}

/// Declared inputs, in order.
pub(super) fn inputs() -> Kind<Vec<TensorSpec>> {
    tensors(&["name", "dtype", "shape", "pad"])
}

/// Declared outputs, in order.
pub(super) fn outputs() -> Kind<Vec<TensorSpec>> {
    tensors(&["name", "dtype", "shape"])
}

fn tensors(keys: &'static [&'static str]) -> Kind<Vec<TensorSpec>> {
    Kind::new(
        move |node, key| {
            let Value::Array(items) = &node.value else {
                return Err(node.wrong(key, format!("a list of tables like {TENSOR}")));
            };
            let specs = items
                .iter()
                .enumerate()
                .map(|(index, item)| tensor(item, &format!("{key}[{index}]"), keys))
                .collect::<Result<Vec<_>, _>>()?;
            match duplicate(specs.iter().map(|spec| spec.name.as_str())) {
                Some(twice) => Err(node.invalid(key, format!("declares \"{twice}\" twice"))),
                None => Ok(specs),
            }
        },
        |specs| specs.iter().map(show_tensor).collect::<Vec<_>>().into(),
    )
}

const TENSOR: &str = "{ name = \"x\", dtype = \"f32\", shape = [3, -1] }";

const DTYPES: &[(&str, DType)] = &[
    (DType::F32.name(), DType::F32),
    (DType::F64.name(), DType::F64),
    (DType::F16.name(), DType::F16),
    (DType::BF16.name(), DType::BF16),
    (DType::I64.name(), DType::I64),
    (DType::I32.name(), DType::I32),
    (DType::Bool.name(), DType::Bool),
];

fn tensor(node: &Node, key: &str, keys: &[&str]) -> Result<TensorSpec, ConfigError> {
    let Value::Table(table) = &node.value else {
        return Err(node.wrong(key, format!("a table like {TENSOR}")));
    };
    if let Some((other, at)) = table.iter().find(|(key, _)| !keys.contains(&key.as_str())) {
        return Err(ConfigError::UnknownKey {
            at: at.source.clone(),
            key: format!("{key}.{other}"),
            hint: format!("the keys here are {}", keys.join(", ")),
        });
    }
    let shape = Kind::new(shape, |_| toml::Value::Boolean(false));
    let pad = |pad: &Node| match pad.value {
        Value::Integer(number) => Ok(number as f64),
        Value::Float(number) => Ok(number),
        _ => Err(pad.wrong(&format!("{key}.pad"), "a number")),
    };
    let spec = TensorSpec {
        name: required(node, table, key, "name", &text())?,
        dtype: required(node, table, key, "dtype", &choice(DTYPES))?,
        shape: required(node, table, key, "shape", &shape)?,
        pad: table.get("pad").map(pad).transpose()?,
    };
    match (spec.padding(), table.get("pad")) {
        (Err(reason), Some(pad)) => Err(pad.invalid(&format!("{key}.pad"), reason)),
        _ => Ok(spec),
    }
}

fn required<T>(node: &Node, table: &Table, key: &str, field: &str, kind: &Kind<T>) -> Result<T, ConfigError> {
    match table.get(field) {
        Some(value) => kind.parse(value, &format!("{key}.{field}")),
        None => Err(node.invalid(key, format!("has no `{field}`; write {TENSOR}"))),
    }
}

fn shape(node: &Node, key: &str) -> Result<Vec<i64>, ConfigError> {
    let expected = "a list of dimensions, -1 where any size is right";
    let Value::Array(items) = &node.value else {
        return Err(node.wrong(key, expected));
    };
    let dimension = |item: &Node| match item.value {
        Value::Integer(-1) => Ok(-1),
        Value::Integer(size @ 1..) => i64::try_from(size).map_err(|_| item.wrong(key, expected)),
        _ => Err(item.wrong(key, expected)),
    };
    items.iter().map(dimension).collect()
}

fn show_tensor(spec: &TensorSpec) -> toml::Value {
    let mut table = toml::Table::new();
    table.insert("name".into(), spec.name.clone().into());
    table.insert("dtype".into(), spec.dtype.name().into());
    table.insert("shape".into(), spec.shape.clone().into());
    if let Some(pad) = spec.pad {
        table.insert("pad".into(), pad.into());
    }
    table.into()
}

fn duplicate<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = std::collections::BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}
