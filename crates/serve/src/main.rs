//! The server's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(trustformers_serve::commands::run(std::env::args_os().collect()))
}
