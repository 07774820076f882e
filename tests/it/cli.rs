//! The command line: one-shot commands with their exit codes, and what a server prints.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::fixtures::{minilm, minilm_folder};
use crate::harness::{DELAY, INSTANT, quoted};
use crate::process::{Finished, Process, run, run_with, serve};

/// A configuration file in a folder of its own.
struct File {
    folder: tempfile::TempDir,
}

fn file(text: &str) -> File {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("serve.toml"), text).unwrap();
    File { folder }
}

impl File {
    fn path(&self) -> PathBuf {
        self.folder.path().join("serve.toml")
    }

    fn run(&self, args: &[&str]) -> Finished {
        let path = self.path();
        let mut all = vec!["--config", path.to_str().unwrap()];
        all.extend(args);
        run(&all)
    }

    fn serve(&self, args: &[&str]) -> Process {
        let path = self.path();
        let mut all = vec!["--config", path.to_str().unwrap()];
        all.extend(args);
        serve(&all)
    }
}

/// Asserts one clear line on standard error and nothing else.
fn refused(finished: &Finished, says: &[&str]) {
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""), "{finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert!(finished.stderr.starts_with("error: "), "{}", finished.stderr);
    for part in says {
        assert!(finished.stderr.contains(part), "{part:?} is not in {}", finished.stderr);
    }
}

/// Asserts one line on standard output and nothing else.
fn accepted(finished: &Finished, line: &str) {
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{finished:?}");
    assert_eq!(finished.stdout, format!("{line}\n"));
}

#[test]
fn validate_says_in_one_line_what_would_be_served() {
    let good = file(INSTANT);
    let path = good.path().display().to_string();
    accepted(&good.run(&["--validate"]), &format!("{path} is valid: model delay, on 127.0.0.1:8000"));
    accepted(
        &run(&["--validate", "--port", "9"]),
        "the configuration is valid: models delay, minilm, mlp, resnet18, tinylm, on 127.0.0.1:9",
    );
}

#[test]
fn a_wrong_configuration_is_one_line_with_file_line_key_and_what_to_write() {
    for (text, says) in [
        ("[server]\n\nprot = 1", &["serve.toml:3", "`server.prot`", "did you mean `server.port`"][..]),
        ("[batching]\nmax_batch_sise = 4", &["serve.toml:2", "did you mean `batching.max_batch_size`"]),
        ("[models.delay]\ninstance = 4", &["serve.toml:2", "`models.delay.instances`"]),
        ("[server]\nrequest_timeout = 30", &["serve.toml:2", "needs a unit", "\"30s\""]),
        ("[server]\nmax_body_size = 64", &["serve.toml:2", "needs a unit"]),
        ("[server]\nport = 'eight'", &["serve.toml:2", "`server.port`", "eight"]),
        ("[device]\ndefault = 'gpu'", &["serve.toml:2", "cuda:N"]),
        ("[batching]\nmode = 'fixed'\ndispatch = 'eager'", &["serve.toml:3", "batching.dispatch"]),
        ("[batching]\nmode = 'continuous'", &["serve.toml:2", "dynamic", "fixed"]),
        ("[server", &["serve.toml:1", "not valid TOML"]),
        ("[models.m]\ninstances = 1", &["serve.toml", "models.m"]),
    ] {
        let wrong = file(text);
        refused(&wrong.run(&["--validate"]), says);
    }
    let wrong = file("server.prot = 1");
    for action in [&["--print-config"][..], &["--dry-run"], &["--list-models"], &["--model-info", "a"], &[]] {
        refused(&wrong.run(action), &["serve.toml:1", "did you mean `server.port`"]);
    }
    refused(&run(&["--validate", "--set", "server.prot=1"]), &["--set server.prot=1", "`server.port`"]);
    refused(&run(&["--validate", "--set", "nonsense"]), &["--set nonsense", "no `=`"]);
    refused(
        &run(&["--validate", "--config", "/nowhere/serve.toml"]),
        &["/nowhere/serve.toml", "No such file"],
    );
    let wrong = [("TRUSTFORMERS_SERVE__SERVER__PROT", "1")];
    refused(&run_with(&["--validate"], &wrong), &["TRUSTFORMERS_SERVE__SERVER__PROT", "`server.port`"]);
}

#[test]
fn flags_win_over_environment_over_file_over_default() {
    let good = file(&format!("server.port = 1\nserver.workers = 1\nbatching.max_batch_size = 1\n{INSTANT}"));
    let path = good.path();
    let env = [("TRUSTFORMERS_SERVE__SERVER__PORT", "2"), ("TRUSTFORMERS_SERVE__SERVER__WORKERS", "2")];
    let printed = run_with(&["--config", path.to_str().unwrap(), "--port", "3", "--print-config"], &env);
    assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""));
    let line = |key: &str| {
        printed
            .stdout
            .lines()
            .find(|line| line.starts_with(key))
            .unwrap_or_else(|| panic!("{key}: {}", printed.stdout))
    };
    for (key, value, source) in [
        ("port", "3", "--port"),
        ("workers", "2", "TRUSTFORMERS_SERVE__SERVER__WORKERS"),
        ("max_batch_size", "1", "serve.toml:3"),
        ("max_connections", "4096", "default"),
    ] {
        let line = line(key);
        assert!(line.starts_with(&format!("{key} = {value}")) && line.contains(source), "{line}");
    }
    let again = file(&printed.stdout);
    assert_eq!(again.run(&["--validate"]).code, Some(0), "what is printed is a configuration");
}

#[test]
fn list_models_names_version_format_and_place() {
    let good = file(&format!("{INSTANT}{}", minilm()));
    let listed = good.run(&["--list-models"]);
    assert_eq!((listed.code, listed.stderr.as_str()), (Some(0), ""));
    let lines: Vec<_> = listed.stdout.lines().collect();
    assert!(lines[0].starts_with("delay 1 builtin"), "{lines:?}");
    assert_eq!(lines[1], format!("minilm 1 huggingface {}", minilm_folder().display()));
    assert_eq!(lines.len(), 2);
}

#[test]
fn dry_run_loads_every_model_and_its_code_says_whether_all_did() {
    let good = file(&format!("{INSTANT}{}", minilm()));
    let loaded = good.run(&["--dry-run"]);
    assert_eq!(loaded.code, Some(0), "{loaded:?}");
    let lines: Vec<_> = loaded.stdout.lines().collect();
    assert!(
        lines[0].starts_with("delay 1 ready in ") && lines[1].starts_with("minilm 1 ready in "),
        "{lines:?}"
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let bad = file(&format!("{INSTANT}models.broken.path = {}\n", quoted(folder.path())));
    let failed = bad.run(&["--dry-run", "--set", "logging.level=off"]);
    assert_eq!((failed.code, failed.stderr.as_str()), (Some(1), ""));
    let lines: Vec<_> = failed.stdout.lines().collect();
    assert!(lines[0].starts_with("broken 1 failed: ") && lines[0].contains("config.json"), "{lines:?}");
    assert!(lines[1].starts_with("delay 1 ready in "), "{lines:?}");
}

#[test]
fn model_info_describes_one_model() {
    let good = file(&format!("{INSTANT}{}", minilm()));
    let info = good.run(&["--model-info", "minilm"]);
    assert_eq!(info.code, Some(0), "{info:?}");
    let described: Value = serde_json::from_str(&info.stdout).unwrap();
    assert_eq!((&described["name"], &described["versions"][0]["state"]), (&"minilm".into(), &"ready".into()));
    assert_eq!(described["outputs"][0]["shape"][0], 384);
    let unknown = good.run(&["--model-info", "nope"]);
    refused(&unknown, &["\"nope\"", "not known"]);
}

#[test]
fn health_check_asks_the_server_that_runs() {
    let good = file(INSTANT);
    let mut server = good.serve(&[]);
    server.read_until("ready");
    let port = server.addr().port().to_string();
    accepted(&good.run(&["--health-check", "--port", &port]), &format!("127.0.0.1:{port} is ready"));
    server.signal("TERM");
    assert_eq!(server.finish(Duration::from_secs(10)).code, Some(0));
    refused(&good.run(&["--health-check", "--port", &port]), &["no server answers", &port]);
}

#[test]
fn health_check_of_a_server_with_a_broken_model_fails() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let bad = file(&format!("{INSTANT}models.broken.path = {}\n", quoted(folder.path())));
    let mut server = bad.serve(&[]);
    let line = server.read_until("1 of the models failed");
    assert!(line.contains("the others are ready"), "{line}");
    let port = server.addr().port().to_string();
    let checked = bad.run(&["--health-check", "--port", &port]);
    assert_eq!((checked.code, checked.stdout), (Some(1), format!("127.0.0.1:{port} is failed\n")));
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let finished = file(INSTANT).run(&["--port", &port]);
    refused(&finished, &["cannot listen on 127.0.0.1", &port, "in use"]);
}

#[test]
fn a_host_that_is_not_here_is_one_clear_line() {
    let finished = file(INSTANT).run(&["--host", "192.0.2.1"]);
    refused(&finished, &["cannot listen on 192.0.2.1"]);
}

#[test]
fn a_gpu_that_is_not_there_is_one_clear_line_at_start() {
    if std::path::Path::new("/dev/nvidia0").exists() {
        println!("skipped: this machine has a GPU");
        return;
    }
    let good = file(&format!("{INSTANT}{}", minilm()));
    for setting in ["device.default=cuda:0", "models.minilm.device=cuda:0"] {
        for action in [&[][..], &["--dry-run"]] {
            let mut args = vec!["--set", setting];
            args.extend(action);
            refused(&good.run(&args), &["cuda:0"]);
        }
    }
}

#[test]
fn a_repository_that_is_not_there_is_one_clear_line() {
    refused(&run(&["--set", "model_repository=/nowhere"]), &["/nowhere", "No such file"]);
}

#[test]
fn a_command_line_that_makes_no_sense_is_code_2() {
    for args in [&["--nope"][..], &["nope"], &["--port"], &["--port", "x"], &["--validate", "--dry-run"]] {
        let finished = run(args);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(finished.stderr.starts_with("error: "), "{}", finished.stderr);
    }
}

#[test]
fn help_and_version_are_answered() {
    for args in [&["--help"][..], &["-h"], &["serve", "--help"]] {
        let help = run(args);
        assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
        assert!(help.stdout.contains("--config") && help.stdout.contains("Examples"), "{}", help.stdout);
    }
    accepted(&run(&["--version"]), &format!("trustformers-serve {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_server_prints_its_address_its_routes_its_threads_and_a_call_that_works() {
    let good = file(&format!("{INSTANT}{}", minilm()));
    let mut server = good.serve(&["--set", "device.threads=4", "--log-format", "json"]);
    let addr = server.addr();
    let ready = server.read_until("ready");
    let curl = server.read_until("  curl");
    assert!(ready.contains("try"), "{ready}");
    // The call is run as it is printed.
    let output = std::process::Command::new("sh").args(["-c", curl.trim()]).output();
    let answer: Value = serde_json::from_slice(&output.expect("a shell").stdout).expect("an answer");
    assert!(answer["data"].is_array(), "{answer}");
    let reply = server.connect().post(DELAY, &serde_json::json!([]));
    assert_eq!(reply.status, 422);
    let id = reply.header("x-request-id").unwrap().to_owned();
    server.signal("TERM");
    let finished = server.finish(Duration::from_secs(10));
    assert_eq!(finished.code, Some(0));
    assert!(finished.stdout.starts_with(&format!("listening on http://{addr}\n")));
    for (method, route) in trustformers_serve::http::ROUTES {
        assert!(finished.stdout.contains(&format!("  {method:<5} {route}\n")), "{route}");
    }
    assert!(
        finished.stdout.contains("4 LibTorch threads (instances x threads): minilm 1 x 4\n"),
        "{}",
        finished.stdout
    );
    let lines: Vec<Value> =
        finished.stderr.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    let refused = lines.iter().find(|line| line["request_id"] == id.as_str()).expect("the refusal is logged");
    assert_eq!((&refused["code"], &refused["path"]), (&"invalid_input".into(), &DELAY.into()));
}
