//! The server's command line.

use std::io::{Write, stderr, stdout};

/// Requests allocate on one thread and free on another, which glibc's arenas serve slowly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let code = trustformers_serve::commands::run(std::env::args_os().collect());
    // Nobody is left to be told when these fail.
    drop(stdout().flush());
    drop(stderr().flush());
    trustformers_serve::torch::shim::exit_now(code)
}
