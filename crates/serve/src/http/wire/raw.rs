//! A body whose items are left as they stand, for whoever knows what they mean: only its envelope is read.

use bytes::Bytes;
use rmp::Marker;
use serde::de::{DeserializeOwned, IgnoredAny};
use trustformers_batching::Priority;

use super::super::error::ApiError;
use super::{Format, Target, malformed_json, malformed_msgpack};
use crate::hosted::Document;

/// A body read as far as its items.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawCall {
    /// Items in order.
    pub items: Vec<Document>,
    /// Whether the client asked for a list of predictions.
    pub many: bool,
    /// Whether the items stand in `data` or `instances`, not alone.
    pub wrapped: bool,
    /// As the body asks.
    pub priority: Option<Priority>,
    /// As the body asks, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Whether there are `parameters` other than none.
    pub parameters: bool,
    /// The first field beside an item that is none of the envelope's: only who reads the whole body may know it.
    pub unknown: Option<String>,
}

const FIELDS: [&str; 5] = ["data", "instances", "parameters", "priority", "timeout_ms"];

impl RawCall {
    /// Refuses a field that nobody reads.
    pub fn check_known(&self) -> Result<(), ApiError> {
        match &self.unknown {
            None => Ok(()),
            Some(name) => Err(ApiError::malformed(format!(
                "unknown field \"{name}\": the body may have {}",
                FIELDS.join(", ")
            ))),
        }
    }
}

impl Format {
    /// Reads a body as far as its items. An object that has neither `data` nor `instances` is an item itself,
    /// but where the model is named in the body. More than `max_items` items are an error.
    pub fn parse_raw(self, body: &Bytes, target: Target, max_items: usize) -> Result<RawCall, ApiError> {
        let cut = match self {
            Format::Json => json(body),
            Format::MsgPack => msgpack(body),
        };
        // Whatever is wrong with it, a parser of the whole says it best.
        let Some(fields) = cut else { return Err(self.malformed(body)) };
        let document = |bytes: Bytes| Document { format: self, bytes };
        let is_item = |name: &str| name == "data" || name == "instances";
        let fields = match fields {
            Cut::Object(fields) if target == Target::Body || fields.iter().any(|(name, _)| is_item(name)) => {
                fields
            }
            _ if target == Target::Body => return Err(ApiError::malformed("the body is not an object")),
            _ => {
                return Ok(RawCall { items: vec![document(body.clone())], ..RawCall::default() });
            }
        };
        let mut call = RawCall { wrapped: true, ..RawCall::default() };
        for (index, (name, value)) in fields.iter().enumerate() {
            if fields[..index].iter().any(|(other, _)| other == name) {
                return Err(ApiError::malformed(format!("\"{name}\" stands twice in the body")));
            }
            match name.as_str() {
                "data" => call.items.push(document(value.clone())),
                "instances" => {
                    call.many = true;
                    let items = self.elements(value, max_items)?;
                    call.items = items.into_iter().map(document).collect();
                }
                "parameters" => {
                    let none: Option<serde_json::Map<String, serde_json::Value>> = self.read(name, value)?;
                    call.parameters = none.is_some_and(|parameters| !parameters.is_empty());
                }
                "priority" => call.priority = self.read(name, value)?,
                "timeout_ms" => call.timeout_ms = self.read(name, value)?,
                "model" | "version" if target == Target::Body => {}
                other => {
                    call.unknown.get_or_insert_with(|| other.to_owned());
                }
            }
        }
        let has = |wanted: &str| fields.iter().any(|(name, _)| name == wanted);
        match (has("data"), has("instances")) {
            (true, true) => Err(ApiError::malformed("the body has both \"data\" and \"instances\"")),
            (false, false) => Err(ApiError::malformed("the body has neither \"data\" nor \"instances\"")),
            _ => Ok(call),
        }
    }

    fn read<T: DeserializeOwned>(self, name: &str, value: &[u8]) -> Result<T, ApiError> {
        let read = match self {
            Format::Json => serde_json::from_slice(value).map_err(|error| error.to_string()),
            Format::MsgPack => rmp_serde::from_slice(value).map_err(|error| error.to_string()),
        };
        read.map_err(|error| ApiError::malformed(format!("\"{name}\": {error}")))
    }

    fn elements(self, list: &Bytes, max_items: usize) -> Result<Vec<Bytes>, ApiError> {
        let elements = match self {
            Format::Json => Json { bytes: list, at: 0 }.list(max_items),
            Format::MsgPack => MsgPack { bytes: list, at: 0 }.list(max_items),
        };
        let elements = elements.ok_or_else(|| ApiError::malformed("\"instances\" is not a list of items"))?;
        if elements.len() > max_items {
            return Err(ApiError::invalid(format!(
                "the body has more than {max_items} instances, which the model's queue could never hold"
            )));
        }
        Ok(elements)
    }

    fn malformed(self, body: &[u8]) -> ApiError {
        let error = match self {
            Format::Json => serde_json::from_slice::<serde_json::Value>(body)
                .err()
                .map(|error| malformed_json(body, &error)),
            Format::MsgPack => {
                rmp_serde::from_slice::<IgnoredAny>(body).err().map(|error| malformed_msgpack(&error))
            }
        };
        error.unwrap_or_else(|| ApiError::malformed("something follows the body's value"))
    }
}

/// A body taken apart.
enum Cut {
    /// Its fields in order.
    Object(Vec<(String, Bytes)>),
    Other,
}

fn json(body: &Bytes) -> Option<Cut> {
    // Strings are not looked into below.
    std::str::from_utf8(body).ok()?;
    let mut reader = Json { bytes: body, at: 0 };
    let cut = match reader.peek()? {
        b'{' => Cut::Object(reader.object()?),
        _ => {
            reader.value()?;
            Cut::Other
        }
    };
    reader.peek().is_none().then_some(cut)
}

/// Reads JSON without looking into its values; `None` is malformed.
struct Json<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Json<'_> {
    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = self.bytes.get(self.at..)?;
        self.at += rest.iter().take_while(|byte| b" \n\r\t".contains(byte)).count();
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.at += 1)
    }

    /// The bytes of the value that comes next.
    fn value(&mut self) -> Option<Bytes> {
        self.peek()?;
        let mut values =
            serde_json::Deserializer::from_slice(&self.bytes[self.at..]).into_iter::<IgnoredAny>();
        values.next()?.ok()?;
        let begin = self.at;
        self.at += values.byte_offset();
        Some(self.bytes.slice(begin..self.at))
    }

    fn object(&mut self) -> Option<Vec<(String, Bytes)>> {
        let mut fields = Vec::new();
        self.take(b'{')?;
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(fields);
        }
        loop {
            self.peek().filter(|&byte| byte == b'"')?;
            let name = serde_json::from_slice(&self.value()?).ok()?;
            self.take(b':')?;
            fields.push((name, self.value()?));
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Some(fields);
                }
                _ => return None,
            }
        }
    }

    /// The elements, or one more than `most`.
    fn list(&mut self, most: usize) -> Option<Vec<Bytes>> {
        let mut elements = Vec::new();
        self.take(b'[')?;
        if self.peek()? == b']' {
            return Some(elements);
        }
        while elements.len() <= most {
            elements.push(self.value()?);
            match self.peek()? {
                b',' => self.at += 1,
                b']' => return Some(elements),
                _ => return None,
            }
        }
        Some(elements)
    }
}

fn msgpack(body: &Bytes) -> Option<Cut> {
    let mut reader = MsgPack { bytes: body, at: 0 };
    let cut = match reader.count_of_map() {
        Some(count) => {
            let mut fields = Vec::new();
            let mut named = true;
            for _ in 0..count {
                let name = rmp_serde::from_slice(&reader.value()?);
                let value = reader.value()?;
                match name {
                    Ok(name) => fields.push((name, value)),
                    // Keys that are no texts are no fields, but may be an item's.
                    Err(_) => named = false,
                }
            }
            if named { Cut::Object(fields) } else { Cut::Other }
        }
        None => {
            reader.value()?;
            Cut::Other
        }
    };
    (reader.at == body.len()).then_some(cut)
}

/// Reads msgpack without looking into its values; `None` is malformed.
struct MsgPack<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl MsgPack<'_> {
    fn marker(&self) -> Option<Marker> {
        self.bytes.get(self.at).map(|&byte| Marker::from_u8(byte))
    }

    /// The number of `width` bytes that stands `after` the marker.
    fn number(&self, width: usize) -> Option<usize> {
        let bytes = self.bytes.get(self.at + 1..self.at + 1 + width)?;
        Some(bytes.iter().fold(0, |number, &byte| number << 8 | usize::from(byte)))
    }

    /// Steps into a map: the number of its entries; `None` where there is none.
    fn count_of_map(&mut self) -> Option<usize> {
        let (count, head) = match self.marker()? {
            Marker::FixMap(count) => (usize::from(count), 1),
            Marker::Map16 => (self.number(2)?, 3),
            Marker::Map32 => (self.number(4)?, 5),
            _ => return None,
        };
        self.at += head;
        Some(count)
    }

    fn list(&mut self, most: usize) -> Option<Vec<Bytes>> {
        let (count, head) = match self.marker()? {
            Marker::FixArray(count) => (usize::from(count), 1),
            Marker::Array16 => (self.number(2)?, 3),
            Marker::Array32 => (self.number(4)?, 5),
            _ => return None,
        };
        self.at += head;
        (0..count.min(most + 1)).map(|_| self.value()).collect()
    }

    /// The bytes of the value that comes next.
    fn value(&mut self) -> Option<Bytes> {
        let begin = self.at;
        let mut left = 1usize;
        while left > 0 {
            let (length, inside) = self.extent()?;
            self.at = self.at.checked_add(length).filter(|&end| end <= self.bytes.len())?;
            left = left.checked_sub(1)?.checked_add(inside)?;
        }
        Some(self.bytes.slice(begin..self.at))
    }

    /// The bytes of what stands next, without the values inside it, and how many those are.
    fn extent(&self) -> Option<(usize, usize)> {
        use Marker as M;
        let sized = |width: usize, more: usize| Some((1 + width + self.number(width)? + more, 0));
        match self.marker()? {
            M::FixPos(_) | M::FixNeg(_) | M::Null | M::True | M::False => Some((1, 0)),
            M::U8 | M::I8 => Some((2, 0)),
            M::U16 | M::I16 => Some((3, 0)),
            M::U32 | M::I32 | M::F32 => Some((5, 0)),
            M::U64 | M::I64 | M::F64 => Some((9, 0)),
            M::FixStr(length) => Some((1 + usize::from(length), 0)),
            M::Str8 | M::Bin8 => sized(1, 0),
            M::Str16 | M::Bin16 => sized(2, 0),
            M::Str32 | M::Bin32 => sized(4, 0),
            M::FixArray(count) => Some((1, usize::from(count))),
            M::Array16 => Some((3, self.number(2)?)),
            M::Array32 => Some((5, self.number(4)?)),
            M::FixMap(count) => Some((1, 2 * usize::from(count))),
            M::Map16 => Some((3, 2 * self.number(2)?)),
            M::Map32 => Some((5, 2 * self.number(4)?)),
            M::FixExt1 => Some((3, 0)),
            M::FixExt2 => Some((4, 0)),
            M::FixExt4 => Some((6, 0)),
            M::FixExt8 => Some((10, 0)),
            M::FixExt16 => Some((18, 0)),
            M::Ext8 => sized(1, 1),
            M::Ext16 => sized(2, 1),
            M::Ext32 => sized(4, 1),
            M::Reserved => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn both(value: &Value) -> [(Format, Bytes); 2] {
        let msgpack = rmp_serde::to_vec_named(value).unwrap();
        [(Format::Json, value.to_string().into()), (Format::MsgPack, msgpack.into())]
    }

    fn shown(format: Format, document: &Document) -> Value {
        assert_eq!(document.format, format);
        match format {
            Format::Json => serde_json::from_slice(&document.bytes).unwrap(),
            Format::MsgPack => rmp_serde::from_slice(&document.bytes).unwrap(),
        }
    }

    #[test]
    fn items_are_cut_out_as_they_stand() {
        let long: Vec<u32> = (0..70_000).collect();
        let text = "x".repeat(300);
        for item in [
            json!(1),
            json!(-1),
            json!(3e9),
            json!(-3e9),
            json!(0.5),
            json!(true),
            json!(null),
            json!("text, \"quoted\""),
            json!([]),
            json!({}),
            json!([1, [2, "]"], {"a": {"b": [3]}}]),
            json!(long),
            json!(text),
            json!(vec![json!({"k": 1}); 17]),
            json!("y".repeat(70_000)),
        ] {
            for (format, body) in both(&json!({ "timeout_ms": 5, "data": item, "priority": "high" })) {
                let call = format.parse_raw(&body, Target::Path, 1).unwrap();
                let [found] = call.items.as_slice() else { panic!("one item") };
                assert_eq!(shown(format, found), item);
                assert_eq!((call.many, call.timeout_ms), (false, Some(5)));
                assert_eq!(call.priority, Some(Priority::High));
            }
            for (format, body) in both(&json!({ "instances": [item, item], "parameters": {} })) {
                let call = format.parse_raw(&body, Target::Path, 2).unwrap();
                assert_eq!(call.items.len(), 2);
                assert_eq!(shown(format, &call.items[1]), item);
                assert!(call.many && !call.parameters);
            }
        }
    }

    #[test]
    fn what_has_no_field_of_an_envelope_is_an_item_itself() {
        for item in [json!(1), json!([1]), json!({ "x": 1, "priority": 2 }), json!({})] {
            for (format, body) in both(&item) {
                let call = format.parse_raw(&body, Target::Path, 1).unwrap();
                assert_eq!(shown(format, &call.items[0]), item);
                assert!(!call.wrapped);
                assert!(format.parse_raw(&body, Target::Body, 1).is_err(), "{item}");
            }
        }
        let keyed: Bytes = vec![0x81, 1, 2].into();
        let call = Format::MsgPack.parse_raw(&keyed, Target::Path, 1).unwrap();
        assert_eq!(call.items[0].bytes, keyed);
    }

    #[test]
    fn envelopes_that_are_wrong_are_refused_in_both_forms() {
        for (body, words) in [
            (json!({ "data": 1, "instances": [] }), "both"),
            (json!({ "data": 1, "other": 2 }), "unknown field \"other\""),
            (json!({ "data": 1, "model": "m" }), "unknown field \"model\""),
            (json!({ "instances": 1 }), "not a list"),
            (json!({ "instances": [1, 2, 3] }), "more than 2 instances"),
            (json!({ "data": 1, "priority": "later" }), "\"priority\""),
            (json!({ "data": 1, "timeout_ms": -1 }), "\"timeout_ms\""),
        ] {
            for (format, bytes) in both(&body) {
                let read = format.parse_raw(&bytes, Target::Path, 2);
                let error = read.and_then(|call| call.check_known()).unwrap_err();
                assert!(error.message.contains(words), "{body}: {error}");
            }
        }
    }

    #[test]
    fn what_is_no_value_is_malformed() {
        let broken: [&[u8]; 12] = [
            b"",
            b" ",
            b"{",
            b"{\"data\"",
            b"{\"data\":}",
            b"{\"data\": 1,}",
            b"{\"data\": 1} 2",
            b"[1",
            b"{data: 1}",
            b"nul",
            b"\"\xff\"",
            b"{\"data\": NaN}",
        ];
        for body in broken {
            let error = Format::Json.parse_raw(&Bytes::from(body), Target::Path, 9).unwrap_err();
            assert_eq!(error.code, super::super::super::error::Code::MalformedRequest, "{body:?}");
        }
        let broken: [&[u8]; 8] = [
            &[],
            &[0xc1],
            &[0x81, 0xa1],
            &[0x92, 1],
            &[1, 1],
            &[0xdb, 0xff, 0xff, 0xff, 0xff],
            &[0xdd, 0xff, 0xff, 0xff, 0xff],
            &[0xc9, 0xff, 0xff, 0xff, 0xff, 0],
        ];
        for body in broken {
            let error = Format::MsgPack.parse_raw(&Bytes::from(body), Target::Path, 9).unwrap_err();
            assert_eq!(error.code, super::super::super::error::Code::MalformedRequest, "{body:?}");
        }
    }
}
