//! Configurations as TOML text: the one form in which Python and the server exchange them.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use trustformers_serve::config::{self, ConfigError, Document, Settings};

use crate::{error, value};

/// The settings of a text. `origin` names it in messages; relative paths in it start at `folder`.
pub(crate) fn settings(text: &str, origin: &str, folder: &str) -> Result<Settings, ConfigError> {
    Settings::resolve(Some(&Document::new(origin, text, folder)), config::cache_folders(), &[])
}

/// Checks a configuration as the server would at start; `origin` names it in messages.
#[pyfunction]
pub(crate) fn validate_toml(py: Python<'_>, text: &str, origin: &str, folder: &str) -> PyResult<()> {
    py.detach(|| settings(text, origin, folder)).map(drop).map_err(error::config)
}

/// The tables of a TOML text, unchecked but for the syntax.
#[pyfunction]
pub(crate) fn parse_toml<'py>(py: Python<'py>, text: &str, origin: &str) -> PyResult<Bound<'py, PyDict>> {
    let table: toml::Table =
        text.parse().map_err(|error| error::config(format!("{origin}: {error}").trim_end()))?;
    value::table_to_python(py, &table)
}

/// The TOML text of nested dicts; keys whose value is `None` are left out.
#[pyfunction]
pub(crate) fn to_toml(tables: &Bound<'_, PyDict>) -> PyResult<String> {
    toml::to_string(&value::table_from_python(tables)?).map_err(error::config)
}

/// Every key that a configuration may have, dotted.
#[pyfunction]
pub(crate) fn known_keys() -> Vec<String> {
    config::known_keys()
}
