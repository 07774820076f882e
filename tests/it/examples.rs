//! The programs in `examples/`, run to their ends on the built-in encoder.

use std::process::Command;

use crate::process::binary;

/// What an example prints; cargo builds examples with the tests, beside the server.
fn printed(name: &str) -> String {
    let path = binary().with_file_name("examples").join(name);
    let output = Command::new(&path).output().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{name}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn a_program_submits_requests_and_reads_statistics() {
    let printed = printed("submit_request");
    assert!(printed.contains("384 numbers") && printed.contains("requests/s"), "{printed}");
}

#[test]
fn the_demonstration_shows_every_feature() {
    let printed = printed("dynamic_batching_demo");
    for part in ["modes", "objectives", "priorities", "deadlines", "memory", "backpressure", "insight"] {
        assert!(printed.contains(part), "{part} is not in {printed}");
    }
    assert!(printed.contains("Block: 64 of 64"), "{printed}");
}
