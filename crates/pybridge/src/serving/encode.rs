//! Python values as documents.

use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple, PyType,
};
use rmp::encode as msgpack;
use trustformers_serve::http::wire::Format;

use crate::error;

/// Deeper than any result is, and shallow enough to refuse a list that contains itself.
const MAX_DEPTH: usize = 128;

/// A value as a document of `format`.
///
/// Whatever has `tolist` (arrays and tensors of any library) becomes nested lists, dataclasses and models of
/// pydantic become objects, and not-a-number and infinities become `null` where the format is JSON.
///
/// # Errors
/// `SerializationError` naming `model`, the type and the place of what has no form.
pub(super) fn encode(value: &Bound<'_, PyAny>, format: Format, model: &str) -> PyResult<Vec<u8>> {
    let mut writer = Writer { format, bytes: Vec::new() };
    writer.value(value, MAX_DEPTH).map_err(|wrong| {
        let place: String = wrong.place.iter().rev().map(String::as_str).collect();
        let place = if place.is_empty() { String::new() } else { format!(" at result{place}") };
        let name = match format {
            Format::Json => "JSON",
            Format::MsgPack => "MessagePack",
        };
        error::serialization(format!(
            "model \"{model}\" returned {}{place}, which {name} cannot carry",
            wrong.what
        ))
    })?;
    Ok(writer.bytes)
}

/// What has no form.
struct Wrong {
    what: String,
    /// Where it is, innermost first.
    place: Vec<String>,
}

impl Wrong {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), place: Vec::new() }
    }

    fn at(mut self, place: String) -> Self {
        self.place.push(place);
        self
    }
}

impl From<PyErr> for Wrong {
    fn from(error: PyErr) -> Self {
        Self::new(format!("what cannot be read ({error})"))
    }
}

struct Writer {
    format: Format,
    bytes: Vec<u8>,
}

/// Writing to memory does not fail.
fn written<T, E>(result: Result<T, E>) {
    drop(result);
}

impl Writer {
    fn value(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> Result<(), Wrong> {
        let Some(depth) = depth.checked_sub(1) else { return Err(Wrong::new("what is nested too deep")) };
        if let Ok(text) = value.cast::<PyString>() {
            self.text(text.to_str()?);
        } else if let Ok(number) = value.cast::<PyFloat>() {
            self.float(number.value());
        } else if value.is_none() {
            self.null();
        } else if let Ok(flag) = value.cast::<PyBool>() {
            self.boolean(flag.is_true());
        } else if let Ok(number) = value.cast::<PyInt>() {
            self.integer(number)?;
        } else if let Ok(list) = value.cast::<PyList>() {
            self.list(list.iter().collect(), depth)?;
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            self.list(tuple.iter().collect(), depth)?;
        } else if let Ok(dict) = value.cast::<PyDict>() {
            // A copy, because writing a value may run code that changes the dict.
            self.entries(&dict.items(), depth)?;
        } else {
            self.other(value, depth)?;
        }
        Ok(())
    }

    fn other(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> Result<(), Wrong> {
        let py = value.py();
        let bytes = value.is_instance_of::<PyBytes>() || value.is_instance_of::<PyByteArray>();
        if bytes && self.format == Format::MsgPack {
            let bytes: Vec<u8> = value.extract()?;
            written(msgpack::write_bin(&mut self.bytes, &bytes));
            return Ok(());
        }
        if bytes || value.is_instance_of::<PyType>() {
            return Err(Wrong::new(described(value)));
        }
        if let Some(list) = value.getattr_opt(pyo3::intern!(py, "tolist"))? {
            return self.value(&list.call0()?, depth);
        }
        if let Some(dump) = value.getattr_opt(pyo3::intern!(py, "model_dump"))? {
            let arguments = PyDict::new(py);
            arguments.set_item("mode", "json")?;
            return self.value(&dump.call((), Some(&arguments))?, depth);
        }
        if let Some(fields) = value.getattr_opt(pyo3::intern!(py, "__dataclass_fields__"))? {
            let entries = PyList::empty(py);
            for name in fields.try_iter()? {
                let name = name?.cast_into::<PyString>().map_err(PyErr::from)?;
                let field = value.getattr(&name)?;
                entries.append((name, field))?;
            }
            return self.entries(&entries, depth);
        }
        if let Ok(mapping) = value.cast::<PyMapping>() {
            return self.entries(&mapping.items()?, depth);
        }
        Err(Wrong::new(described(value)))
    }

    fn null(&mut self) {
        match self.format {
            Format::Json => self.bytes.extend_from_slice(b"null"),
            Format::MsgPack => written(msgpack::write_nil(&mut self.bytes)),
        }
    }

    fn boolean(&mut self, flag: bool) {
        match self.format {
            Format::Json => self.bytes.extend_from_slice(if flag { b"true" } else { b"false" }),
            Format::MsgPack => written(msgpack::write_bool(&mut self.bytes, flag)),
        }
    }

    fn float(&mut self, number: f64) {
        match self.format {
            // Writes `null` for what is not finite.
            Format::Json => written(serde_json::to_writer(&mut self.bytes, &number)),
            Format::MsgPack => written(msgpack::write_f64(&mut self.bytes, number)),
        }
    }

    fn integer(&mut self, number: &Bound<'_, PyInt>) -> Result<(), Wrong> {
        if let Ok(small) = number.extract::<i64>() {
            match self.format {
                Format::Json => written(serde_json::to_writer(&mut self.bytes, &small)),
                Format::MsgPack => written(msgpack::write_sint(&mut self.bytes, small)),
            }
            return Ok(());
        }
        match self.format {
            Format::Json => {
                // `int`'s own, whatever a subclass makes of it.
                let digits = number.py().get_type::<PyInt>().call_method1("__repr__", (number,))?;
                self.bytes.extend_from_slice(digits.extract::<String>()?.as_bytes());
            }
            Format::MsgPack => match number.extract::<u64>() {
                Ok(large) => written(msgpack::write_uint(&mut self.bytes, large)),
                Err(_) => return Err(Wrong::new("an integer of more than 64 bits")),
            },
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        match self.format {
            Format::Json => written(serde_json::to_writer(&mut self.bytes, text)),
            Format::MsgPack => written(msgpack::write_str(&mut self.bytes, text)),
        }
    }

    fn list(&mut self, items: Vec<Bound<'_, PyAny>>, depth: usize) -> Result<(), Wrong> {
        match self.format {
            Format::Json => self.bytes.push(b'['),
            Format::MsgPack => written(msgpack::write_array_len(&mut self.bytes, length(items.len())?)),
        }
        for (index, item) in items.iter().enumerate() {
            if index > 0 && self.format == Format::Json {
                self.bytes.push(b',');
            }
            self.value(item, depth).map_err(|wrong| wrong.at(format!("[{index}]")))?;
        }
        if self.format == Format::Json {
            self.bytes.push(b']');
        }
        Ok(())
    }

    fn entries(&mut self, entries: &Bound<'_, PyList>, depth: usize) -> Result<(), Wrong> {
        match self.format {
            Format::Json => self.bytes.push(b'{'),
            Format::MsgPack => written(msgpack::write_map_len(&mut self.bytes, length(entries.len())?)),
        }
        for (index, entry) in entries.iter().enumerate() {
            let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = entry.extract()?;
            let place = || key.repr().map_or_else(|_| "[?]".to_owned(), |key| format!("[{key}]"));
            match self.format {
                Format::Json => {
                    if index > 0 {
                        self.bytes.push(b',');
                    }
                    let name = key_text(&key).map_err(|wrong| wrong.at(place()))?;
                    self.text(&name);
                    self.bytes.push(b':');
                }
                Format::MsgPack => self.value(&key, depth).map_err(|wrong| wrong.at(place()))?,
            }
            self.value(&value, depth).map_err(|wrong| wrong.at(place()))?;
        }
        if self.format == Format::Json {
            self.bytes.push(b'}');
        }
        Ok(())
    }
}

fn length(length: usize) -> Result<u32, Wrong> {
    u32::try_from(length).map_err(|_| Wrong::new("more elements than a list may have"))
}

/// A key of an object: texts, and numbers as texts.
fn key_text(key: &Bound<'_, PyAny>) -> Result<String, Wrong> {
    if let Ok(text) = key.cast::<PyString>() {
        return Ok(text.to_str()?.to_owned());
    }
    if let Ok(flag) = key.cast::<PyBool>() {
        return Ok(flag.is_true().to_string());
    }
    if key.is_instance_of::<PyInt>() || key.is_instance_of::<PyFloat>() {
        return Ok(key.str()?.to_str()?.to_owned());
    }
    Err(Wrong::new(format!("a key that is {}", described(key))))
}

fn described(value: &Bound<'_, PyAny>) -> String {
    let kind = value.get_type();
    let name = kind.fully_qualified_name().map_or_else(|_| "?".to_owned(), |name| name.to_string());
    format!("a value of type {name}")
}
