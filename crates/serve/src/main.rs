//! The server's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(trustformers_serve::cli::run(std::env::args_os().collect()))
}
