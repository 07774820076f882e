//! Documents as Python values.

use std::fmt;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyList, PyString};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use trustformers_serve::hosted::Document;
use trustformers_serve::http::error::ApiError;
use trustformers_serve::http::wire::Format;

/// The value of a document: numbers, texts, bytes, lists, dicts, and arrays that came as bytes.
///
/// # Errors
/// What is malformed in it.
pub(super) fn decode<'py>(py: Python<'py>, document: &Document) -> Result<Bound<'py, PyAny>, ApiError> {
    let bytes = document.bytes.as_ref();
    let decoded = match document.format {
        Format::Json => {
            let mut json = serde_json::Deserializer::from_slice(bytes);
            Value(py).deserialize(&mut json).map_err(|error| error.to_string())
        }
        Format::MsgPack => {
            let mut msgpack = rmp_serde::Deserializer::from_read_ref(bytes);
            Value(py).deserialize(&mut msgpack).map_err(|error| error.to_string())
        }
    };
    decoded.map_err(|error| ApiError::malformed(format!("the body is not what was expected: {error}")))
}

#[derive(Clone, Copy)]
struct Value<'py>(Python<'py>);

impl<'de, 'py> DeserializeSeed<'de> for Value<'py> {
    type Value = Bound<'py, PyAny>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, 'py> Visitor<'de> for Value<'py> {
    type Value = Bound<'py, PyAny>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(self.0.None().into_bound(self.0))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(PyBool::new(self.0, value).to_owned().into_any())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        value.into_pyobject(self.0).map(Bound::into_any).map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        value.into_pyobject(self.0).map(Bound::into_any).map_err(E::custom)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(PyFloat::new(self.0, value).into_any())
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(PyString::new(self.0, value).into_any())
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Self::Value, E> {
        Ok(PyBytes::new(self.0, value).into_any())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        PyList::new(self.0, items).map(Bound::into_any).map_err(A::Error::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let dict = PyDict::new(self.0);
        while let Some((key, value)) = map.next_entry_seed(self, self)? {
            // Fails for keys that are lists or dicts, which msgpack could have.
            dict.set_item(key, value).map_err(A::Error::custom)?;
        }
        let array = array(&dict).map_err(A::Error::custom)?;
        Ok(array.unwrap_or_else(|| dict.into_any()))
    }
}

/// The array that a map with its type, shape and bytes is; `None` for any other map.
fn array<'py>(dict: &Bound<'py, PyDict>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = dict.py();
    if dict.len() != 3 {
        return Ok(None);
    }
    let fields = ["dtype", "shape", "data"].map(|name| dict.get_item(name));
    let [Some(dtype), Some(shape), Some(data)] = fields.map(|field| field.ok().flatten()) else {
        return Ok(None);
    };
    if !(dtype.is_instance_of::<PyString>() && data.is_instance_of::<PyBytes>()) {
        return Ok(None);
    }
    py.import("trustformers_serve._codec")?.getattr("array")?.call1((dtype, shape, data)).map(Some)
}
