//! The server's command line.

use std::io::{Write, stderr, stdout};

fn main() {
    let code = trustformers_serve::commands::run(std::env::args_os().collect());
    // Nobody is left to be told when these fail.
    drop(stdout().flush());
    drop(stderr().flush());
    trustformers_serve::torch::shim::exit_now(code)
}
