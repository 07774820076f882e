//! The command line, as the console script of the Python package runs it.

use std::ffi::OsString;

use pyo3::prelude::*;

/// Runs the command line with `args` (the program's name first) and returns its exit code.
///
/// The server's own signal handlers are installed by it; a handler that Python installed before would
/// still be called after them, so the caller restores the default first.
#[pyfunction]
pub(crate) fn run_cli(py: Python<'_>, args: Vec<OsString>) -> u8 {
    py.detach(|| trustformers_serve::commands::run(args))
}
