//! Bodies of the project's own inference routes, in JSON and msgpack.

mod call;
mod packed;
mod raw;
mod tensor;

use std::io::Cursor;

use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use serde::Serialize;
use serde_json::de::SliceRead;

use self::call::ItemLimit;
pub use self::call::{Call, Expect, Item, Target};
pub use self::raw::RawCall;
pub use self::tensor::Nested;
use super::error::{ApiError, Code};

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    Json,
    /// `application/msgpack`
    MsgPack,
}

impl Format {
    /// What the request's body is in. No content type is taken for JSON.
    pub fn of_request(headers: &HeaderMap) -> Result<Self, ApiError> {
        let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Format::Json) };
        let value = value.to_str().unwrap_or("?");
        Self::from_media_type(value).ok_or_else(|| {
            ApiError::new(
                Code::UnsupportedMediaType,
                format!(
                    "content type {value:?} is not supported: send application/json or application/msgpack"
                ),
            )
        })
    }

    /// What the reply's body is to be in: what `Accept` names first, else what the request came in.
    pub fn of_reply(headers: &HeaderMap, request: Format) -> Self {
        headers
            .get(ACCEPT)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(',').find_map(Self::from_media_type))
            .unwrap_or(request)
    }

    fn from_media_type(value: &str) -> Option<Self> {
        match value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/json" => Some(Format::Json),
            "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack" => {
                Some(Format::MsgPack)
            }
            _ => None,
        }
    }

    /// The value of `Content-Type`.
    pub const fn media_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::MsgPack => "application/msgpack",
        }
    }

    /// The `model` and `version` that the body names, whatever else is in it.
    pub fn parse_target(self, body: &[u8]) -> Result<(Option<String>, Option<String>), ApiError> {
        #[derive(serde::Deserialize)]
        struct Named {
            model: Option<String>,
            version: Option<String>,
        }
        let named: Named = match self {
            Format::Json => serde_json::from_slice(body).map_err(|error| malformed_json(body, &error)),
            Format::MsgPack => rmp_serde::from_slice(body).map_err(|error| malformed_msgpack(&error)),
        }?;
        Ok((named.model, named.version))
    }

    /// Parses a call of a model that expects `expect`. More than `max_items` items are an error.
    pub fn parse_call(
        self,
        body: &[u8],
        expect: Expect<'_>,
        target: Target,
        max_items: usize,
    ) -> Result<Call, ApiError> {
        let limit = ItemLimit::new(max_items);
        let parsed = match self {
            Format::Json => parse_json(body, |json| call::parse(json, expect, target, &limit)),
            Format::MsgPack => parse_msgpack(body, |msgpack| call::parse(msgpack, expect, target, &limit)),
        };
        if limit.was_hit() {
            return Err(ApiError::invalid(format!(
                "the body has more than {max_items} instances, which the model's queue could never hold"
            )));
        }
        parsed
    }

    /// Writes a reply.
    pub fn write(self, value: &impl Serialize) -> Result<Vec<u8>, ApiError> {
        let written = match self {
            Format::Json => serde_json::to_vec(value).map_err(|error| error.to_string()),
            Format::MsgPack => rmp_serde::to_vec_named(value).map_err(|error| error.to_string()),
        };
        written.map_err(|error| {
            ApiError::new(Code::ModelFailed, format!("the result cannot be written: {error}"))
        })
    }
}

/// Parses one JSON value and nothing after it.
fn parse_json<T>(
    body: &[u8],
    parse: impl FnOnce(&mut serde_json::Deserializer<SliceRead<'_>>) -> serde_json::Result<T>,
) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = parse(&mut deserializer).and_then(|parsed| deserializer.end().map(|()| parsed));
    parsed.map_err(|error| malformed_json(body, &error))
}

/// Parses one msgpack value and nothing after it.
fn parse_msgpack<T>(
    body: &[u8],
    parse: impl FnOnce(&mut MsgPackReader<'_>) -> Result<T, rmp_serde::decode::Error>,
) -> Result<T, ApiError> {
    let mut deserializer = rmp_serde::Deserializer::new(Cursor::new(body));
    let parsed = parse(&mut deserializer).map_err(|error| malformed_msgpack(&error))?;
    match body.len() - deserializer.position() as usize {
        0 => Ok(parsed),
        more => Err(ApiError::malformed(format!("{more} bytes follow the msgpack value"))),
    }
}

type MsgPackReader<'a> = rmp_serde::Deserializer<rmp_serde::decode::ReadReader<Cursor<&'a [u8]>>>;

/// Serde's text names the line and the column.
pub(super) fn malformed_json(body: &[u8], error: &serde_json::Error) -> ApiError {
    let line = body.split(|&byte| byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let rest = line.get(error.column().saturating_sub(1)..).unwrap_or_default();
    let hint = match rest.strip_prefix(b"-").unwrap_or(rest) {
        [b'N' | b'n', b'a' | b'A', ..] | [b'I' | b'i', b'n', ..] => " (JSON has no NaN and no infinity)",
        _ => "",
    };
    ApiError::malformed(format!("the body is not what was expected in JSON: {error}{hint}"))
}

fn malformed_msgpack(error: &rmp_serde::decode::Error) -> ApiError {
    ApiError::malformed(format!("the body is not what was expected in msgpack: {error}"))
}
