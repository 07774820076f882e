//! Python values to TOML values and back.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PySequence, PyString};
use toml::{Table, Value};

use crate::error;

/// Deeper than any configuration is, and shallow enough to refuse a list that contains itself.
const MAX_DEPTH: usize = 16;

/// A dict as a TOML table; keys whose value is `None` are left out.
///
/// # Errors
/// `ConfigError` naming the key whose value has no TOML form.
pub(crate) fn table_from_python(dict: &Bound<'_, PyDict>) -> PyResult<Table> {
    mapping(dict.as_any().cast()?, "", MAX_DEPTH)
}

fn mapping(dict: &Bound<'_, PyMapping>, key: &str, depth: usize) -> PyResult<Table> {
    let mut table = Table::new();
    for item in dict.items()?.iter() {
        let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        let name: String = name
            .extract()
            .map_err(|_| error::config(format!("{}: a key must be a string, not {name}", place(key))))?;
        if !value.is_none() {
            let dotted = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            table.insert(name, from_python(&value, &dotted, depth)?);
        }
    }
    Ok(table)
}

fn from_python(value: &Bound<'_, PyAny>, key: &str, depth: usize) -> PyResult<Value> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(error::config(format!("{}: nested too deep", place(key))));
    };
    // A bool is an int in Python, so it is asked for first.
    if value.is_instance_of::<PyBool>() {
        return Ok(Value::Boolean(value.extract()?));
    }
    if value.is_instance_of::<PyInt>() {
        let whole =
            value.extract().map_err(|_| error::config(format!("{}: {value} is too large", place(key))))?;
        return Ok(Value::Integer(whole));
    }
    if value.is_instance_of::<PyFloat>() {
        return Ok(Value::Float(value.extract()?));
    }
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Value::String(text.to_str()?.to_owned()));
    }
    if let Ok(duration) = value.extract::<Duration>() {
        return Ok(Value::String(duration_text(duration)));
    }
    if let Ok(dict) = value.cast::<PyMapping>() {
        return Ok(Value::Table(mapping(dict, key, depth)?));
    }
    if let Ok(items) = value.cast::<PySequence>() {
        let items = items.try_iter()?.map(|item| from_python(&item?, key, depth));
        return Ok(Value::Array(items.collect::<PyResult<_>>()?));
    }
    if let Ok(path) = value.extract::<PathBuf>() {
        let text = path
            .to_str()
            .ok_or_else(|| error::config(format!("{}: {} is not valid UTF-8", place(key), path.display())))?;
        return Ok(Value::String(text.to_owned()));
    }
    Err(error::config(format!("{}: {} has no TOML form", place(key), value.repr()?)))
}

fn place(key: &str) -> &str {
    if key.is_empty() { "the configuration" } else { key }
}

/// The exact text of a duration in the largest unit that divides it.
fn duration_text(duration: Duration) -> String {
    let micros = duration.as_micros();
    if micros.is_multiple_of(1_000_000) {
        format!("{}s", micros / 1_000_000)
    } else if micros.is_multiple_of(1_000) {
        format!("{}ms", micros / 1_000)
    } else {
        format!("{micros}us")
    }
}

/// A TOML table as a dict.
pub(crate) fn table_to_python<'py>(py: Python<'py>, table: &Table) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (key, value) in table {
        dict.set_item(key, to_python(py, value)?)?;
    }
    Ok(dict)
}

fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::String(text) => PyString::new(py, text).into_any(),
        Value::Integer(whole) => whole.into_pyobject(py)?.into_any(),
        Value::Float(number) => PyFloat::new(py, *number).into_any(),
        Value::Boolean(flag) => PyBool::new(py, *flag).to_owned().into_any(),
        // No key takes a date; as text it reaches the check that says so.
        Value::Datetime(date) => PyString::new(py, &date.to_string()).into_any(),
        Value::Array(items) => {
            let list = PyList::empty(py);
            for item in items {
                list.append(to_python(py, item)?)?;
            }
            list.into_any()
        }
        Value::Table(table) => table_to_python(py, table)?.into_any(),
    })
}
