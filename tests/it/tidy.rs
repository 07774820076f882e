//! The repository's layout: arrows between crates, what stands where, and that nothing goes untested.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::completions::{COMPLETIONS, TINYLM};
use crate::fixtures::minilm;
use crate::harness::{DELAY, MINILM, root, start};

/// What a crate may depend on of this repository, and what it must not see at all.
const ARROWS: &[(&str, &[&str], &[&str])] = &[
    (
        "trustformers-batching",
        &[],
        &[
            "tch",
            "torch-sys",
            "axum",
            "hyper",
            "pyo3",
            "serde_json",
            "tokio",
            "tokenizers",
            "prometheus",
            "tracing",
        ],
    ),
    ("trustformers-serve", &["trustformers-batching"], &["pyo3"]),
    (
        "trustformers-pybridge",
        &["trustformers-batching", "trustformers-serve"],
        &["tch", "torch-sys", "axum", "tokio"],
    ),
    ("trustformers-tests", &["trustformers-batching", "trustformers-serve"], &["pyo3"]),
];

fn metadata() -> Value {
    let args = ["metadata", "--format-version", "1", "--no-deps", "--offline", "--locked"];
    let output = Command::new(env!("CARGO")).args(args).current_dir(root()).output().expect("cargo runs");
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

#[test]
fn crates_depend_on_each_other_in_one_direction() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    assert_eq!(packages.len(), ARROWS.len(), "every crate has its arrows here");
    for &(name, ours, never) in ARROWS {
        let package = packages.iter().find(|package| package["name"] == name).expect(name);
        // What a crate needs only to test itself does not reach its users.
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let names: BTreeSet<_> = dependencies
            .filter(|dependency| dependency["kind"] != "dev" || name == "trustformers-tests")
            .map(|dependency| dependency["name"].as_str().unwrap())
            .collect();
        let found: BTreeSet<_> =
            names.iter().copied().filter(|name| name.starts_with("trustformers-")).collect();
        assert_eq!(found, ours.iter().copied().collect(), "{name}");
        for forbidden in never {
            assert!(!names.contains(forbidden), "{name} must not depend on {forbidden}");
        }
    }
}

/// Every source file of the repository in these languages, as a path from its root, with its text.
fn sources() -> Vec<(String, String)> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs", "*.py", "*.cc"])
        .current_dir(root())
        .output()
        .expect("git runs");
    let paths = String::from_utf8(output.stdout).expect("text");
    let read = |path: &str| fs::read_to_string(root().join(path)).ok().map(|text| (path.to_owned(), text));
    let sources: Vec<_> = paths.lines().filter_map(read).collect();
    assert!(sources.len() > 50, "the repository is not a git checkout");
    sources
}

fn lines_with<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter(move |line| line.contains(word) && !line.trim_start().starts_with("//"))
}

#[test]
fn nothing_that_decides_reads_a_clock_or_starts_a_thread() {
    for (path, text) in sources() {
        let Some(file) = path.strip_prefix("crates/batching/src/") else { continue };
        if file.starts_with("tests/") || ["time.rs", "driver.rs"].contains(&file) {
            continue;
        }
        for word in ["Instant", "SystemTime", "thread::", "elapsed()", "sleep"] {
            assert_eq!(lines_with(&text, word).next(), None, "{path} has {word}");
        }
    }
}

#[test]
fn unsafe_stands_only_beside_torch_and_python() {
    for (path, text) in sources() {
        let allowed =
            ["crates/serve/src/torch/", "crates/pybridge/src/"].iter().any(|at| path.starts_with(at));
        if !path.ends_with(".rs") || path == "tests/it/tidy.rs" {
            continue;
        }
        let lines: Vec<_> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !(code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")) {
                continue;
            }
            assert!(allowed, "{path}:{} has unsafe code", index + 1);
            let before = &lines[index.saturating_sub(6)..=index];
            let said = before.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"));
            assert!(said, "{path}:{} does not say why it is safe", index + 1);
        }
    }
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_to_do() {
    for (path, text) in sources().iter().filter(|(path, _)| path != "tests/it/tidy.rs") {
        for word in ["#[ignore", "todo!(", "unimplemented!(", "TODO", "FIXME"] {
            assert!(!text.contains(word), "{path} has {word}");
        }
    }
}

#[test]
fn files_are_short_enough_to_read() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= 600, "{path} has {lines} lines: it is two concepts");
    }
}

#[test]
fn every_crate_opens_with_its_code_map() {
    for name in ["batching", "serve"] {
        let text = fs::read_to_string(root().join(format!("crates/{name}/src/lib.rs"))).unwrap();
        assert!(
            text.starts_with("//! ") && text.contains("//! Code map:") && text.contains("//! Invariants")
        );
        let modules = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
        for module in modules {
            assert!(text.contains(&format!("[`{module}`]")), "{name}'s code map lacks {module}");
        }
    }
}

/// The texts of the integration tests, this file left out.
fn tests() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("it");
    let entries = fs::read_dir(folder).expect("tests/it");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| !path.ends_with("tidy.rs"))
        .map(|path| (path.clone(), fs::read_to_string(path).expect("text")))
        .collect()
}

#[test]
fn every_configuration_key_has_a_test_with_two_values() {
    let text = |file: &str| fs::read_to_string(root().join("tests/it").join(file)).unwrap();
    let both = text("keys.rs") + &text("batching_keys.rs") + &text("generation_keys.rs");
    let dense: String = both.split_whitespace().collect();
    for key in trustformers_serve::config::known_keys() {
        let each = key.rsplit_once("batching.").map_or("", |(_, last)| last);
        let tested = dense.contains(&format!("two_values(\"{key}\""))
            || dense.contains(&format!(",\"{key}\","))
            || (!each.is_empty() && dense.contains(&format!("two_values_for_all_and_one(\"{each}\"")));
        assert!(tested, "no test has two values of {key}");
    }
}

/// The families that a server shows once each of them was moved.
fn families() -> BTreeSet<String> {
    let running = start(&format!(
        "{}{TINYLM}models.delay.delay.batch_time = '0ms'\nmodels.delay.batching.memory_limit = '1KB'\n",
        minilm()
    ));
    running.post(COMPLETIONS, &json!({ "prompt": "The old sailor", "max_tokens": 2 })).ok();
    running.post(MINILM, &json!("text")).ok();
    running.post(DELAY, &json!([1.0])).ok();
    // Refused at admission.
    running.post(DELAY, &json!({ "data": [1.0], "timeout_ms": 0 }));
    let text = running.get("/metrics").text();
    let typed = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    typed.map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn every_metric_is_moved_by_a_test() {
    let families = families();
    let tests = tests();
    for family in &families {
        assert!(family.starts_with("trustformers_"), "{family}");
        let named = tests.iter().any(|(_, text)| text.contains(family.as_str()));
        assert!(named, "no test looks at {family}");
    }
    // What the source registers and a server does not show would be missed above.
    let mut registered = BTreeSet::new();
    for (file, made) in [
        ("metrics.rs", "Families(prometheus::Registry::new())"),
        ("metrics/generation.rs", "fnnew(families:&Families)"),
    ] {
        let source = fs::read_to_string(root().join("crates/serve/src").join(file)).unwrap();
        let source: String = source.split_whitespace().collect();
        let body = source.split("impl").find(|part| part.contains(made)).expect("where families are made");
        for call in ["opts(\"", "counters(\"", "histograms(\""] {
            let names = body.split(call).skip(1).map(|rest| rest.split('"').next().unwrap_or_default());
            registered.extend(names.map(|name| format!("trustformers_{name}")));
        }
    }
    assert_eq!(families, registered);
}

#[test]
fn every_error_code_has_a_test() {
    let tests = tests();
    for code in trustformers_serve::http::error::Code::ALL {
        let name = format!("\"{}\"", code.name());
        assert!(tests.iter().any(|(_, text)| text.contains(&name)), "no test looks at {name}");
    }
}
