//! The Python extension `trustformers_serve._core`: converts, releases the GIL, calls.
//!
//! Invariants, those about absences first:
//! - No decision is taken here: what a key, a flag or a state means is known to `trustformers_serve`, and
//!   which items make a batch, and when, to `trustformers_batching`.
//! - The GIL is never held while Rust is waited for, and a wait of any length can be interrupted by
//!   the interpreter's signal handlers ([`interrupt`]).
//! - Exceptions are the classes of `trustformers_serve.errors`, with the server's own message.
//!
//! Code map:
//! - [`config`]: `validate_toml`, `parse_toml`, `to_toml`, `known_keys`
//! - [`mod@error`]: the exception of each Rust error; `error_codes`
//! - [`batcher`]: `Batcher`, the scheduler driven by Python's threads and event loops
//! - [`record_stream`]: `RecordStream`, the scheduler driven by one event loop
//! - [`versions`]: the natural order of versions, `compare_versions`
//! - [`server`]: `Server`, a running server in this process
//! - [`serving`]: `HostedModel`, a Python function behind the server's routes
//! - [`cli`]: `run_cli`, the command line
//! - [`value`]: Python values to TOML values and back
//! - [`interrupt`]: waiting without the GIL and with Ctrl-C

use pyo3::prelude::*;

mod batcher;
mod cli;
mod config;
mod error;
mod interrupt;
mod record_stream;
mod server;
mod serving;
mod value;
mod versions;

/// What Python imports as `trustformers_serve._core`.
#[pymodule]
mod _core {
    #[pymodule_export]
    use super::batcher::{Batcher, LoopPort, Pending, set_main_thread};
    #[pymodule_export]
    use super::cli::run_cli;
    #[pymodule_export]
    use super::config::{known_keys, parse_toml, to_toml, validate_toml};
    #[pymodule_export]
    use super::error::error_codes;
    #[pymodule_export]
    use super::record_stream::{Place, RecordStream};
    #[pymodule_export]
    use super::server::Server;
    #[pymodule_export]
    use super::serving::{AsyncCall, HostedModel, Port, Worker};
    #[pymodule_export]
    use super::versions::compare_versions;

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
