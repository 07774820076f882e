//! Commands that load models to look at them: each that is asked for, and no other.

use std::path::Path;

use serde_json::Value;

use crate::fixtures::copy_minilm;
use crate::harness::{INSTANT, quoted};
use crate::process::{Finished, run};

/// Runs the server's binary with a configuration.
fn look(config: &str, args: &[&str]) -> Finished {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), config).unwrap();
    let mut all = vec!["--config", file.path().to_str().unwrap()];
    all.extend(args);
    run(&all)
}

/// A model that cannot be loaded.
fn broken(folder: &Path) -> String {
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    format!("models.broken.path = {}\n", quoted(folder))
}

#[test]
fn a_dry_run_loads_what_is_not_loaded_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        format!("{INSTANT}models.delay.load = false\n{}models.broken.load = false\n", broken(folder.path()));
    let finished = look(&config, &["--dry-run"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let lines: Vec<_> = finished.stdout.lines().collect();
    assert!(lines[0].starts_with("broken 1 failed: "), "{lines:?}");
    assert!(lines[1].starts_with("delay 1 ready in "), "{lines:?}");
}

#[test]
fn model_info_loads_the_one_model_whether_or_not_it_is_loaded_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = format!("{INSTANT}models.delay.load = false\n{}", broken(folder.path()));
    let finished = look(&config, &["--model-info", "delay"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let described: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(described["versions"][0]["state"], "ready");
    assert!(!finished.stderr.contains("broken"), "the other is left alone: {}", finished.stderr);
}

#[test]
fn model_info_finds_a_model_of_the_repository() {
    let root = tempfile::tempdir().unwrap();
    copy_minilm(&root.path().join("text/7"));
    let config = format!("model_repository = {}\n{INSTANT}", quoted(root.path()));
    let finished = look(&config, &["--model-info", "text"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let described: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!((&described["name"], &described["versions"][0]["version"]), (&"text".into(), &"7".into()));
}

#[test]
fn model_info_of_an_unknown_model_says_which_are_known_and_loads_none() {
    let folder = tempfile::tempdir().unwrap();
    let finished = look(&format!("{INSTANT}{}", broken(folder.path())), &["--model-info", "nope"]);
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""), "{finished:?}");
    let error = "error: model \"nope\" is not known; known models: \"broken\", \"delay\"\n";
    assert_eq!(finished.stderr, error);
}

#[test]
fn more_threads_than_there_are_for_all_models_are_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let config = format!("device.threads = 2\n{INSTANT}{}", broken(folder.path()));
    for (threads, warned) in [("2", false), ("3", true)] {
        let config = format!("{config}models.broken.threads = {threads}\n");
        let finished = look(&config, &["--model-info", "delay"]);
        assert_eq!(finished.stderr.contains("exceed device.threads"), warned, "{}", finished.stderr);
    }
}
