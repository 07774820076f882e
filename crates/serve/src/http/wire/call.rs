//! The body of a prediction: an envelope, or the bare value of one item.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use trustformers_batching::Priority;

use super::packed::Packed;
use super::tensor::{Level, TensorBuilder};
use crate::tensor::{HostTensor, TensorSpec};

/// What a model reads.
#[derive(Debug, Clone, Copy)]
pub enum Expect<'a> {
    /// These tensors an item.
    Tensors(&'a [TensorSpec]),
    /// One text an item.
    Text,
}

/// Where the model is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// In the path: a body that names one is refused.
    Path,
    /// In the body.
    Body,
}

/// One parsed item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// One tensor a declared input, in the order of declaration.
    Tensors(Vec<HostTensor>),
    /// A text.
    Text(String),
}

/// A parsed body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Items in order; an error says why one does not fit the model.
    pub items: Vec<Result<Item, String>>,
    /// Whether the client asked for a list of predictions.
    pub many: bool,
    /// As the body asks.
    pub priority: Option<Priority>,
    /// As the body asks, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// `parameters.truncate`: whether a text that is too long is cut (the default) or refused.
    pub truncate: Option<bool>,
}

/// Parses a body in whatever format `deserializer` reads.
pub(super) fn parse<'de, D: Deserializer<'de>>(
    deserializer: D,
    expect: Expect<'_>,
    target: Target,
    limit: &ItemLimit,
) -> Result<Call, D::Error> {
    deserializer.deserialize_any(Body { expect, target, limit })
}

/// How many items a body may have: small ones would otherwise cost much more memory than their text.
pub(super) struct ItemLimit {
    most: usize,
    hit: Cell<bool>,
}

impl ItemLimit {
    pub(super) fn new(most: usize) -> Self {
        Self { most, hit: Cell::new(false) }
    }

    /// Whether parsing ended because of it.
    pub(super) fn was_hit(&self) -> bool {
        self.hit.get()
    }
}

const FIELDS: &[&str] = &["data", "instances", "parameters", "priority", "timeout_ms"];

struct Body<'a> {
    expect: Expect<'a>,
    target: Target,
    limit: &'a ItemLimit,
}

impl Body<'_> {
    fn bare(item: Result<Item, String>) -> Call {
        Call { items: vec![item], many: false, priority: None, timeout_ms: None, truncate: None }
    }

    fn is_field(&self, key: &str) -> bool {
        FIELDS.contains(&key) || (self.target == Target::Body && (key == "model" || key == "version"))
    }

    fn envelope<'de, A: MapAccess<'de>>(&self, first: String, mut map: A) -> Result<Call, A::Error> {
        let mut call =
            Call { items: Vec::new(), many: false, priority: None, timeout_ms: None, truncate: None };
        let mut seen: Vec<String> = Vec::new();
        let mut key = Some(first);
        while let Some(name) = key {
            if seen.contains(&name) {
                return Err(A::Error::custom(format_args!("\"{name}\" stands twice in the body")));
            }
            match name.as_str() {
                "data" => call.items.push(map.next_value_seed(OneItem(self.expect))?),
                "instances" => {
                    call.many = true;
                    call.items.extend(map.next_value_seed(Instances(self.expect, self.limit))?);
                }
                "parameters" => {
                    call.truncate = map.next_value::<Option<Parameters>>()?.and_then(|p| p.truncate);
                }
                "priority" => call.priority = map.next_value::<Option<Priority>>()?,
                "timeout_ms" => call.timeout_ms = map.next_value::<Option<u64>>()?,
                other if self.is_field(other) => drop(map.next_value::<IgnoredAny>()?),
                other => {
                    return Err(A::Error::custom(format_args!(
                        "unknown field \"{other}\": the body may have {}",
                        FIELDS.join(", ")
                    )));
                }
            }
            seen.push(name);
            key = map.next_key()?;
        }
        let has = |name: &str| seen.iter().any(|key| key == name);
        match (has("data"), has("instances")) {
            (true, true) => Err(A::Error::custom("the body has both \"data\" and \"instances\"")),
            (false, false) => Err(A::Error::custom("the body has neither \"data\" nor \"instances\"")),
            _ => Ok(call),
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    truncate: Option<bool>,
}

impl<'de> Visitor<'de> for Body<'_> {
    type Value = Call;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{\"data\": ...}, {\"instances\": [...]} or the value of one item")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Call, A::Error> {
        match map.next_key::<String>()? {
            None => Err(A::Error::custom("the body is an empty object: it needs \"data\" or \"instances\"")),
            Some(first) if self.is_field(&first) => self.envelope(first, map),
            Some(first) => match self.expect {
                Expect::Tensors(specs) if specs.iter().any(|spec| spec.name == first) => {
                    named(specs, Some(first), map).map(Self::bare)
                }
                _ => self.envelope(first, map),
            },
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Call, A::Error> {
        OneItem(self.expect).visit_seq(seq).map(Self::bare)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Call, E> {
        OneItem(self.expect).visit_str(value).map(Self::bare)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Call, E> {
        OneItem(self.expect).visit_f64(value).map(Self::bare)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Call, E> {
        OneItem(self.expect).visit_i64(value).map(Self::bare)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Call, E> {
        OneItem(self.expect).visit_u64(value).map(Self::bare)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Call, E> {
        OneItem(self.expect).visit_bool(value).map(Self::bare)
    }

    fn visit_bytes<E: Error>(self, value: &[u8]) -> Result<Call, E> {
        OneItem(self.expect).visit_bytes(value).map(Self::bare)
    }
}

struct Instances<'a>(Expect<'a>, &'a ItemLimit);

impl<'de> DeserializeSeed<'de> for Instances<'_> {
    type Value = Vec<Result<Item, String>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Instances<'_> {
    type Value = Vec<Result<Item, String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(OneItem(self.0))? {
            if items.len() == self.1.most {
                self.1.hit.set(true);
                return Err(A::Error::custom("too many instances"));
            }
            items.push(item);
        }
        Ok(items)
    }
}

/// One item: what does not fit the model is the item's own error, not the parser's.
struct OneItem<'a>(Expect<'a>);

impl OneItem<'_> {
    fn tensor(
        &self,
        got: &str,
        parse: impl FnOnce(Level<'_, '_>) -> Result<(), Box<dyn std::error::Error>>,
    ) -> Result<Item, String> {
        match self.0 {
            Expect::Tensors([spec]) => {
                let mut builder = TensorBuilder::new(spec);
                // A level's visit of one scalar notes misfits and cannot fail.
                drop(parse(Level::outermost(&mut builder)));
                builder.finish().map(|tensor| Item::Tensors(vec![tensor]))
            }
            Expect::Tensors(specs) => Err(needs_names(specs)),
            Expect::Text => Err(format!("expected a text, got {got}")),
        }
    }
}

fn needs_names(specs: &[TensorSpec]) -> String {
    format!("the model has {} inputs: send an object with {}", specs.len(), names(specs))
}

fn names(specs: &[TensorSpec]) -> String {
    specs.iter().map(|spec| format!("\"{}\"", spec.name)).collect::<Vec<_>>().join(", ")
}

/// Parses `{"name": tensor, ...}`, whose first key may have been read already, or the packed tensor of a model with
/// one input.
fn named<'de, A: MapAccess<'de>>(
    specs: &[TensorSpec],
    first: Option<String>,
    mut map: A,
) -> Result<Result<Item, String>, A::Error> {
    let mut found: Vec<Option<Result<HostTensor, String>>> = specs.iter().map(|_| None).collect();
    let mut misfit = None;
    let mut key = match first {
        Some(first) => Some(first),
        None => map.next_key::<String>()?,
    };
    if let ([spec], Some(name)) = (specs, &key)
        && *name != spec.name
        && Packed::FIELDS.contains(&name.as_str())
    {
        let mut builder = TensorBuilder::new(spec);
        builder.packed(Packed::read(key, map)?, 0);
        return Ok(builder.finish().map(|tensor| Item::Tensors(vec![tensor])));
    }
    while let Some(name) = key {
        match specs.iter().position(|spec| spec.name == name) {
            Some(index) if found[index].is_none() => {
                let mut builder = TensorBuilder::new(&specs[index]);
                map.next_value_seed(Level::outermost(&mut builder))?;
                found[index] = Some(builder.finish());
            }
            Some(_) => {
                misfit.get_or_insert_with(|| format!("input \"{name}\" stands twice"));
                map.next_value::<IgnoredAny>()?;
            }
            None => {
                misfit.get_or_insert_with(|| {
                    format!("unknown input \"{name}\": the model's inputs are {}", names(specs))
                });
                map.next_value::<IgnoredAny>()?;
            }
        }
        key = map.next_key()?;
    }
    if let Some(misfit) = misfit {
        return Ok(Err(misfit));
    }
    let tensors = found
        .into_iter()
        .zip(specs)
        .map(|(tensor, spec)| tensor.unwrap_or_else(|| Err(format!("input \"{}\" is missing", spec.name))));
    Ok(tensors.collect::<Result<Vec<_>, _>>().map(Item::Tensors))
}

impl<'de> DeserializeSeed<'de> for OneItem<'_> {
    type Value = Result<Item, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OneItem<'_> {
    type Value = Result<Item, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the value of one item")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        match self.0 {
            Expect::Tensors(specs) => named(specs, None, map),
            Expect::Text => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Err("expected a text, got an object".to_owned()))
            }
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        if let Expect::Tensors([spec]) = self.0 {
            let mut builder = TensorBuilder::new(spec);
            Level::outermost(&mut builder).visit_seq(seq)?;
            return Ok(builder.finish().map(|tensor| Item::Tensors(vec![tensor])));
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Err(match self.0 {
            Expect::Tensors(specs) => needs_names(specs),
            Expect::Text => "expected a text, got a list: several texts go into \"instances\"".to_owned(),
        }))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(match self.0 {
            Expect::Text => Ok(Item::Text(value.to_owned())),
            Expect::Tensors(_) => {
                self.tensor("a string", |level| Ok(level.visit_str::<serde::de::value::Error>(value)?))
            }
        })
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(self.tensor("a number", |level| Ok(level.visit_f64::<serde::de::value::Error>(value)?)))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(self.tensor("a number", |level| Ok(level.visit_i64::<serde::de::value::Error>(value)?)))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(self.tensor("a number", |level| Ok(level.visit_u64::<serde::de::value::Error>(value)?)))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.tensor("a boolean", |level| Ok(level.visit_bool::<serde::de::value::Error>(value)?)))
    }

    fn visit_bytes<E: Error>(self, value: &[u8]) -> Result<Self::Value, E> {
        Ok(self.tensor("raw bytes", |level| Ok(level.visit_bytes::<serde::de::value::Error>(value)?)))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(self.tensor("null", |level| Ok(level.visit_unit::<serde::de::value::Error>()?)))
    }
}
