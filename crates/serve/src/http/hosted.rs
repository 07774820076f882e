//! Items of models that the program around the server runs: cut out of a body, and put into a reply, as they are.

use std::borrow::Cow;

use axum::response::Response;
use bytes::Bytes;
use rmp::encode::{write_array_len, write_map_len, write_str};

use super::error::ApiError;
use super::infer::already_counted;
use super::predict::{ItemError, no_result, not_all_failed, response};
use super::wire::{Format, RawCall, Target};
use crate::hosted::Document;
use crate::registry::{Asked, Version};

/// What a body asks of a hosted model, which may read the body of a single item by itself.
pub(super) fn read(
    version: &Version,
    reads_body: bool,
    format: Format,
    body: &Bytes,
    target: Target,
    max_items: usize,
) -> Result<RawCall, ApiError> {
    let call = format.parse_raw(body, target, max_items)?;
    if call.many || !reads_body {
        call.check_known()?;
    }
    if call.parameters {
        return Err(ApiError::invalid(format!("model \"{}\" takes no \"parameters\"", version.model())));
    }
    if call.items.is_empty() {
        return Err(ApiError::invalid("\"instances\" is empty"));
    }
    Ok(call)
}

/// The items of a call, whose results are to be written as `reply`.
pub(super) fn items(call: RawCall, body: &Bytes, reply: Format) -> Vec<Result<Asked, ApiError>> {
    let alone = call.wrapped && !call.many;
    let asked = |item: Document| {
        let whole = alone.then(|| Document { format: item.format, bytes: body.clone() });
        Ok(Asked { item, whole, reply })
    };
    call.items.into_iter().map(asked).collect()
}

/// The reply of one item.
pub(super) fn one(
    version: &Version,
    format: Format,
    results: Vec<Result<Vec<u8>, ApiError>>,
) -> Result<Response, ApiError> {
    let data = results.into_iter().next().unwrap_or_else(|| Err(no_result())).map_err(already_counted)?;
    let mut body = Vec::with_capacity(data.len() + ENVELOPE);
    match format {
        Format::Json => {
            body.extend_from_slice(b"{\"data\":");
            body.extend_from_slice(&data);
            body.push(b',');
        }
        Format::MsgPack => {
            msgpack(write_map_len(&mut body, 3))?;
            msgpack(write_str(&mut body, "data"))?;
            body.extend_from_slice(&data);
        }
    }
    end(version, format, body)
}

/// The reply of many items: 200 with each one's own result or error, unless all failed in the same way.
pub(super) fn many(
    version: &Version,
    format: Format,
    results: Vec<Result<Vec<u8>, ApiError>>,
) -> Result<Response, ApiError> {
    not_all_failed(&results)?;
    let bytes: usize = results.iter().flatten().map(|data| data.len() + ENVELOPE).sum();
    let mut body = Vec::with_capacity(bytes + ENVELOPE);
    match format {
        Format::Json => body.extend_from_slice(b"{\"predictions\":["),
        Format::MsgPack => {
            msgpack(write_map_len(&mut body, 3))?;
            msgpack(write_str(&mut body, "predictions"))?;
            msgpack(write_array_len(&mut body, u32::try_from(results.len()).unwrap_or(u32::MAX)))?;
        }
    }
    for (index, result) in results.iter().enumerate() {
        if index > 0 && format == Format::Json {
            body.push(b',');
        }
        let (name, value) = match result {
            Ok(data) => ("data", Cow::Borrowed(data.as_slice())),
            Err(error) => {
                let error = ItemError { code: error.code.name(), message: &error.message };
                ("error", Cow::Owned(format.write(&error)?))
            }
        };
        match format {
            Format::Json => {
                body.extend_from_slice(b"{\"");
                body.extend_from_slice(name.as_bytes());
                body.extend_from_slice(b"\":");
                body.extend_from_slice(&value);
                body.push(b'}');
            }
            Format::MsgPack => {
                msgpack(write_map_len(&mut body, 1))?;
                msgpack(write_str(&mut body, name))?;
                body.extend_from_slice(&value);
            }
        }
    }
    if format == Format::Json {
        body.extend_from_slice(b"],");
    }
    end(version, format, body)
}

/// More than stands around the data of most replies.
const ENVELOPE: usize = 64;

fn end(version: &Version, format: Format, mut body: Vec<u8>) -> Result<Response, ApiError> {
    let (model, version) = (version.model(), version.name());
    match format {
        // Names have no characters that JSON would write otherwise.
        Format::Json => {
            body.extend_from_slice(format!("\"model\":\"{model}\",\"version\":\"{version}\"}}").as_bytes());
        }
        Format::MsgPack => {
            for text in ["model", model, "version", version] {
                msgpack(write_str(&mut body, text))?;
            }
        }
    }
    Ok(response(format, body))
}

/// Writing to memory cannot fail; were it to, the reply would not be what it says.
fn msgpack<T, E: std::fmt::Display>(written: Result<T, E>) -> Result<(), ApiError> {
    written.map(drop).map_err(|error| ApiError::new(super::error::Code::ModelFailed, error.to_string()))
}
