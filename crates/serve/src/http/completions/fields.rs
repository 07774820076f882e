//! A request's body, read field by field: what nobody asked for is an error that names it.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::http::error::ApiError;
use crate::http::wire::malformed_json;

/// Longer names of fields that nobody asked for are not compared with others, and shown as far as this.
const LONGEST_NAME: usize = 64;

/// The fields of a JSON object. One that is null counts as absent.
pub(in crate::http) struct Fields {
    values: Map<String, Value>,
    asked: Vec<&'static str>,
}

impl Fields {
    /// Those of a request's body.
    pub(in crate::http) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(body).map_err(|error| malformed_json(body, &error))?;
        match value {
            Value::Object(values) => Ok(Self { values, asked: Vec::new() }),
            _ => Err(ApiError::malformed("the body is not an object")),
        }
    }

    /// Those of an object inside a body, which is called `name` there.
    pub(in crate::http) fn of(name: &'static str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(values) => Ok(Self { values, asked: Vec::new() }),
            other => Err(ApiError::of_field(name, format!("\"{name}\" is {}, not an object", shown(&other)))),
        }
    }

    /// The value of a field; `None` where it is absent.
    pub(in crate::http) fn optional<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        T::deserialize(&value)
            .map(Some)
            .map_err(|error| ApiError::of_field(name, format!("\"{name}\" is {}: {error}", shown(&value))))
    }

    /// The value of a field, or another.
    pub(in crate::http) fn or<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        default: T,
    ) -> Result<T, ApiError> {
        Ok(self.optional(name)?.unwrap_or(default))
    }

    /// A field as it stands.
    pub(in crate::http) fn value(&mut self, name: &'static str) -> Option<Value> {
        self.asked.push(name);
        self.values.remove(name).filter(|value| !value.is_null())
    }

    /// Whether a field is there and not null.
    pub(in crate::http) fn has(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|value| !value.is_null())
    }

    /// Reads fields that say nothing about the answer.
    pub(in crate::http) fn ignore(&mut self, names: &[&'static str]) {
        for name in names {
            self.value(name);
        }
    }

    /// Refuses what nobody asked for.
    pub(in crate::http) fn finish(self) -> Result<(), ApiError> {
        let Some(unknown) = self.values.keys().next() else { return Ok(()) };
        // Comparing takes memory by the product of the lengths, and no name is nearly as long.
        if unknown.len() > LONGEST_NAME {
            let begin: String = unknown.chars().take(LONGEST_NAME).collect();
            return Err(ApiError::malformed(format!("unknown field \"{begin}...\"")));
        }
        let near = |name: &&&str| strsim::normalized_damerau_levenshtein(name, unknown);
        let nearest = self.asked.iter().max_by(|a, b| near(a).total_cmp(&near(b)));
        let hint = match nearest.filter(|name| near(name) > 0.6) {
            Some(nearest) => format!("; did you mean \"{nearest}\"?"),
            None => String::new(),
        };
        Err(ApiError::malformed(format!("unknown field \"{unknown}\"{hint}")))
    }
}

/// A value as an error shows it: its beginning.
pub(in crate::http) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T>(result: Result<T, ApiError>) -> String {
        result.err().expect("an error").message
    }

    #[test]
    fn a_field_of_the_wrong_kind_is_named_with_its_value() {
        let mut fields = Fields::parse(br#"{"n": "two"}"#).unwrap();
        let error = fields.optional::<u32>("n").unwrap_err();
        assert_eq!(error.param, Some("n"));
        assert_eq!(error.message, "\"n\" is \"two\": invalid type: string \"two\", expected u32");
    }

    #[test]
    fn a_field_that_is_null_counts_as_absent() {
        let mut fields = Fields::parse(br#"{"n": null}"#).unwrap();
        assert_eq!(fields.or("n", 7).unwrap(), 7);
        assert!(fields.finish().is_ok());
    }

    #[test]
    fn a_field_that_nobody_asked_for_is_an_error_with_the_nearest_name() {
        let mut fields = Fields::parse(br#"{"temprature": 1}"#).unwrap();
        assert!(fields.optional::<f32>("temperature").unwrap().is_none());
        assert_eq!(message(fields.finish()), "unknown field \"temprature\"; did you mean \"temperature\"?");
        assert_eq!(message(Fields::parse(b"{\"x\": 1}").unwrap().finish()), "unknown field \"x\"");
    }

    #[test]
    fn a_name_without_end_is_shown_in_part_and_compared_with_nothing() {
        let body = format!("{{\"{}\": 1}}", "x".repeat(10_000_000));
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        assert!(fields.optional::<f32>("temperature").unwrap().is_none());
        assert_eq!(message(fields.finish()), format!("unknown field \"{}...\"", "x".repeat(64)));
    }

    #[test]
    fn a_body_that_is_no_object_is_an_error() {
        assert_eq!(message(Fields::parse(b"[1]")), "the body is not an object");
        assert!(message(Fields::parse(b"{")).contains("EOF"));
    }
}
