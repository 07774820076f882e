//! Models on disk: a repository's folders, versions in natural order, and files that are broken.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::fixtures::{copy_minilm, minilm_folder, replace, script_model, torchscript};
use crate::harness::{INSTANT, Running, quoted, start, start_settled, try_settings};

/// A repository with the text model as `NAME/VERSION`.
fn repository(versions: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, version) in versions {
        copy_minilm(&root.path().join(name).join(version));
    }
    root
}

fn serving(root: &Path, more: &str) -> String {
    format!("model_repository = {}\nmodels.delay.delay.batch_time = '0ms'\n{more}", quoted(root))
}

fn versions(running: &Running, model: &str) -> Vec<Value> {
    running.get(&format!("/models/{model}")).ok()["versions"].as_array().unwrap().clone()
}

fn names(versions: &[Value]) -> Vec<&str> {
    versions.iter().map(|version| version["version"].as_str().unwrap()).collect()
}

#[test]
fn a_repository_serves_the_latest_version_of_each_of_its_models() {
    let root = repository(&[("a", "v9"), ("a", "v10"), ("b", "1")]);
    let running = start(&serving(root.path(), ""));
    assert_eq!(names(&versions(&running, "a")), ["v10"]);
    assert_eq!(names(&versions(&running, "b")), ["1"]);
    assert_eq!(running.post("/models/a/predict", &json!("text")).ok()["version"], "v10");
}

#[test]
fn versions_are_in_natural_order_and_the_newest_is_the_default() {
    let root = repository(&[("a", "v9"), ("a", "v10"), ("a", "v2")]);
    let folder = quoted(&root.path().join("a"));
    let running = start(&format!("models.a.path = {folder}\nmodels.a.versions = 'all'\n"));
    let all = versions(&running, "a");
    assert_eq!(names(&all), ["v2", "v9", "v10"]);
    assert_eq!(
        all.iter().map(|version| version["default"] == true).collect::<Vec<_>>(),
        [false, false, true]
    );
    let ask = |query: &str| running.post(&format!("/models/a/predict{query}"), &json!("text"));
    assert_eq!(ask("").ok()["version"], "v10");
    assert_eq!(ask("?version=v9").ok()["version"], "v9");
    let body = json!({ "model": "a", "version": "v2", "data": "text" });
    assert_eq!(running.post("/v1/inference", &body).ok()["version"], "v2");
    // Where the newest does not answer, the newest that does is the default.
    running.post("/models/a/unload?version=v10", &json!(null)).ok();
    assert_eq!(ask("").ok()["version"], "v9");
    let gone = ask("?version=v10");
    assert_eq!((gone.status, gone.code().as_str()), (503, "model_not_ready"));
    running.post("/models/a/load?version=v10", &json!(null)).ok();
    assert_eq!(ask("").ok()["version"], "v10");
}

#[test]
fn model_toml_sets_keys_of_a_model_and_of_one_version() {
    let root = repository(&[("a", "1")]);
    fs::write(root.path().join("a/model.toml"), "instances = 2\nthreads = 1\n").unwrap();
    fs::write(root.path().join("a/1/model.toml"), "threads = 3\n").unwrap();
    let running = start(&serving(root.path(), ""));
    let version = &versions(&running, "a")[0];
    assert_eq!((&version["instances"], &version["threads"]), (&json!(2), &json!(3)));
}

#[test]
fn a_mistake_in_model_toml_names_file_and_line() {
    let root = repository(&[("a", "1")]);
    fs::write(root.path().join("a/model.toml"), "instances = 2\ninstanses = 2\n").unwrap();
    let settings = try_settings(&serving(root.path(), "")).unwrap();
    let error = trustformers_serve::server::Server::start(&settings).err().expect("refused").to_string();
    assert!(
        error.contains("a/model.toml:2") && error.contains("did you mean") && error.contains("instances"),
        "{error}"
    );
}

/// Serves a text model of which one file was changed, beside one that is whole; the reason it failed for.
fn broken(change: impl FnOnce(&Path)) -> String {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("broken");
    copy_minilm(&folder);
    change(&folder);
    failure(&format!("models.broken.path = {}\nmodels.broken.format = 'huggingface'\n", quoted(&folder)))
}

/// The reason for which `broken` failed, which must stand everywhere, while others serve.
fn failure(config: &str) -> String {
    let running = start_settled(&format!("{INSTANT}{config}"));
    let ready = running.get("/health/ready");
    assert_eq!((ready.status, &ready.json()["status"]), (503, &json!("failed")));
    let entry = ready.json()["models"][0].clone();
    assert_eq!((&entry["name"], &entry["state"]), (&json!("broken"), &json!("failed")));
    let reason = entry["reason"].as_str().unwrap().to_owned();
    assert_eq!(versions(&running, "broken")[0]["reason"], reason.as_str());
    let again = running.post("/models/broken/load", &json!(null));
    assert_eq!((again.status, again.code().as_str()), (500, "model_failed"));
    assert!(again.message().contains(&reason), "{}", again.message());
    let refused = running.post("/models/broken/predict", &json!("text"));
    assert_eq!((refused.status, refused.code().as_str()), (503, "model_not_ready"));
    assert!(refused.message().contains(&reason), "{}", refused.message());
    running.still_serves();
    reason
}

#[test]
fn truncated_weights_fail_their_model_alone() {
    let weights = fs::read(minilm_folder().join("model.safetensors")).unwrap();
    for length in [weights.len() - 1000, 4] {
        let reason = broken(|folder| replace(&folder.join("model.safetensors"), &weights[..length]));
        assert!(reason.contains("model.safetensors"), "{reason}");
    }
}

#[test]
fn weights_that_lack_one_fail_naming_it() {
    // A whole file of no tensors: a header of two bytes.
    let empty = [&2u64.to_le_bytes()[..], b"{}"].concat();
    let reason = broken(|folder| replace(&folder.join("model.safetensors"), &empty));
    assert!(reason.contains("has no weight") && reason.contains("embeddings"), "{reason}");
}

#[test]
fn a_checkpoint_without_one_of_its_files_fails_naming_it() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let reason = broken(|folder| fs::remove_file(folder.join(file)).unwrap());
        assert!(
            reason.contains(file) && (reason.contains("No such file") || reason.contains("not found")),
            "{reason}"
        );
    }
}

#[test]
fn a_checkpoint_whose_configuration_is_wrong_fails_saying_what() {
    for (config, says) in [("{", "config.json"), ("{\"model_type\": \"t5\"}", "t5")] {
        let reason = broken(|folder| replace(&folder.join("config.json"), config.as_bytes()));
        assert!(reason.contains(says), "{reason}");
    }
}

#[test]
fn a_version_folder_with_no_model_in_it_fails_alone() {
    let root = repository(&[("whole", "1")]);
    fs::create_dir_all(root.path().join("empty/1")).unwrap();
    let running = start_settled(&serving(root.path(), ""));
    let ready = running.get("/health/ready").json();
    assert_eq!(
        (&ready["models"][1]["name"], &ready["models"][1]["state"]),
        (&json!("empty"), &json!("failed"))
    );
    assert!(ready["models"][1]["reason"].as_str().unwrap().contains("empty/1/config.json"), "{ready}");
    assert_eq!(running.post("/models/whole/predict", &json!("text")).status, 200);
}

#[test]
fn a_repaired_model_is_loaded_when_asked() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("m");
    copy_minilm(&folder);
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let running = start_settled(&format!("{INSTANT}models.m.path = {}\n", quoted(&folder)));
    assert_eq!(running.post("/models/m/load", &json!(null)).status, 500);
    fs::copy(minilm_folder().join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    running.post("/models/m/load", &json!(null)).ok();
    assert_eq!(running.post("/models/m/predict", &json!("text")).status, 200);
    assert_eq!(running.get("/health/ready").status, 200);
}

#[test]
fn a_model_that_answers_goes_on_when_its_replacement_is_broken() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("m");
    copy_minilm(&folder);
    let running = start(&format!("{INSTANT}models.m.path = {}\n", quoted(&folder)));
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let reload = running.post("/models/m/load", &json!(null));
    assert_eq!((reload.status, reload.code().as_str()), (500, "model_failed"));
    assert_eq!(running.post("/models/m/predict", &json!("text")).status, 200);
    assert_eq!(running.get("/health/ready").status, 200);
}

#[test]
fn a_torchscript_file_that_is_broken_fails_its_model_alone() {
    let root = tempfile::tempdir().unwrap();
    let whole = fs::read(torchscript("double")).unwrap();
    let path = root.path().join("broken.pt");
    for content in [&whole[..whole.len() / 2], b"not a zip", b""] {
        fs::write(&path, content).unwrap();
        let config =
            script_model("broken", "double").replace(&quoted(&torchscript("double")), &quoted(&path));
        let reason = failure(&config);
        assert!(!reason.is_empty() && !reason.contains("Exception raised from"), "{reason}");
    }
    fs::remove_file(&path).unwrap();
    let config = script_model("broken", "double").replace(&quoted(&torchscript("double")), &quoted(&path));
    assert!(failure(&config).contains("broken.pt"));
}

#[test]
fn a_path_of_no_known_format_and_one_that_is_not_there_are_told_apart() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("empty")).unwrap();
    for (path, says) in
        [("nowhere", "nowhere does not exist"), ("empty", "empty is of no format that is known")]
    {
        let settings =
            try_settings(&format!("[models.m]\npath = {}\n", quoted(&root.path().join(path)))).unwrap();
        let error = trustformers_serve::server::Server::start(&settings).err().expect("refused").to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_device_that_a_model_toml_names_and_is_not_there_is_an_error_at_start() {
    let root = repository(&[("a", "1")]);
    fs::write(root.path().join("a/model.toml"), "device = 'cuda:4000'\nload = false\n").unwrap();
    let settings = try_settings(&serving(root.path(), "")).unwrap();
    let error = trustformers_serve::server::Server::start(&settings).err().expect("refused").to_string();
    assert!(error.contains("cuda:4000"), "{error}");
}

#[test]
fn threads_that_a_model_has_of_its_own_are_not_shared_out_again() {
    let root = repository(&[("a", "1"), ("b", "1"), ("c", "1")]);
    for (model, text) in [("a", "instances = 2\nthreads = 2\n"), ("b", "instances = 3\n"), ("c", "")] {
        fs::write(root.path().join(model).join("model.toml"), format!("load = false\n{text}")).unwrap();
    }
    for (threads, expected) in [(12, [2, 2, 2]), (8, [2, 1, 1]), (2, [2, 1, 1])] {
        let running = start(&serving(root.path(), &format!("device.threads = {threads}\n")));
        let versions = running.server.app().registry.versions();
        let found: Vec<_> = versions.filter(|v| v.model() != "delay").map(|v| v.threads()).collect();
        assert_eq!(found, expected, "of {threads}");
    }
}
