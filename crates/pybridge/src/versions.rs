//! The order of versions.

use pyo3::prelude::*;
use trustformers_serve::registry::natural;

/// The natural order of two versions: negative where `a` is the older one, positive where it is the newer.
#[pyfunction]
pub(crate) fn compare_versions(a: &str, b: &str) -> i8 {
    natural::compare(a, b) as i8
}
