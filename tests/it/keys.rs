//! Every configuration key with two values, each of which makes a running server do something else; those of
//! `[batching]` are in `batching_keys`.

use std::fmt::Debug;
use std::time::Duration;

use serde_json::json;

use crate::fixtures::{copy_minilm, masked_mean, minilm, minilm_folder, script_model, torchscript};
use crate::harness::{
    BUSY, DELAY, INSTANT, MINILM, Running, builtin_models, quoted, start, start_settled, threads_named,
    try_settings,
};
use crate::process::serve;

/// A value as TOML writes it, and what it makes of the server.
pub(crate) type Case<'a, T> = (&'a str, T);

/// Sets `key`, in which NAME stands for `model`, to each value and asserts what is observed.
pub(crate) fn two_values_of<T: PartialEq + Debug>(
    model: &str,
    key: &str,
    first: Case<'_, T>,
    second: Case<'_, T>,
    observe: impl Fn(&str) -> T,
) {
    assert_ne!(first.1, second.1, "{key}: both values make the same");
    for (value, expected) in [first, second] {
        let line = format!("{} = {value}\n", key.replace("NAME", model));
        assert_eq!(observe(&line), expected, "{line}");
    }
}

/// The same for a key of no model.
pub(crate) fn two_values<T: PartialEq + Debug>(
    key: &str,
    first: Case<'_, T>,
    second: Case<'_, T>,
    observe: impl Fn(&str) -> T,
) {
    two_values_of("", key, first, second, observe);
}

/// The same for `batching.KEY` and `models.NAME.batching.KEY`, of which the model's own wins.
pub(crate) fn two_values_for_all_and_one<T: PartialEq + Debug + Clone>(
    key: &str,
    first: Case<'_, T>,
    second: Case<'_, T>,
    observe: impl Fn(&str) -> T,
) {
    two_values_for_all_and_one_of("delay", key, first, second, observe);
}

/// The same for another model.
pub(crate) fn two_values_for_all_and_one_of<T: PartialEq + Debug + Clone>(
    model: &str,
    key: &str,
    first: Case<'_, T>,
    second: Case<'_, T>,
    observe: impl Fn(&str) -> T,
) {
    two_values(&format!("batching.{key}"), first.clone(), second.clone(), &observe);
    two_values_of(model, &format!("models.NAME.batching.{key}"), first.clone(), second.clone(), &observe);
    let both = format!("batching.{key} = {}\nmodels.{model}.batching.{key} = {}\n", first.0, second.0);
    assert_eq!(observe(&both), second.1, "the model's own wins");
}

#[test]
fn host() {
    two_values("server.host", ("'127.0.0.1'", "127.0.0.1"), ("'127.0.0.2'", "127.0.0.2"), |line| {
        let running = start(&format!("{line}{INSTANT}"));
        running.still_serves();
        let port = running.addr().port();
        let here = |ip: &&str| std::net::TcpStream::connect((*ip, port)).is_ok();
        let reached: Vec<_> = ["127.0.0.1", "127.0.0.2"].into_iter().filter(here).collect();
        assert_eq!(reached.len(), 1);
        reached[0]
    });
}

#[test]
fn port() {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (one, two) = (free(), free());
    two_values("server.port", (&one.to_string(), one), (&two.to_string(), two), |line| {
        let running = start(&format!("{line}{INSTANT}"));
        running.still_serves();
        running.addr().port()
    });
}

#[test]
fn workers() {
    two_values("server.workers", ("1", 1), ("3", 3), |line| {
        // Loading takes threads of the same name; so nothing is loaded.
        let running = start(&format!("{line}{INSTANT}models.delay.load = false\n"));
        assert_eq!(running.get("/health").status, 200);
        // Threads name themselves as they begin.
        let asked: usize = line.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
        running.eventually("as many begin", |_| threads_named("http") >= asked);
        threads_named("http")
    });
}

#[test]
fn max_body_size() {
    two_values("server.max_body_size", ("'1KB'", 413), ("'1MB'", 200), |line| {
        let running = start(&format!("{line}{INSTANT}"));
        running.post(DELAY, &json!(vec![0.5; 1000])).status
    });
}

#[test]
fn request_timeout() {
    two_values("server.request_timeout", ("'50ms'", 504), ("'60s'", 200), |line| {
        start(&format!("{line}{BUSY}")).post(DELAY, &json!([1.0])).status
    });
}

#[test]
fn shutdown_timeout() {
    two_values("server.shutdown_timeout", ("'0s'", 503), ("'60s'", 200), |line| {
        let running = start(&format!("{line}{BUSY}"));
        let _busy = running.occupy();
        let mut waits = running.post_later(DELAY, &json!([1.0]));
        running.until_queued(2);
        running.server.stop();
        waits.reply().status
    });
}

#[test]
fn max_connections() {
    two_values("server.max_connections", ("1", false), ("2", true), |line| {
        let running = start(&format!("{line}{INSTANT}"));
        let mut first = running.connect();
        first.post(DELAY, &json!([1.0])).ok();
        let mut second = running.post_later(DELAY, &json!([2.0]));
        let served = !second.is_silent_for(Duration::from_millis(200));
        drop(first);
        assert_eq!(second.reply().status, 200, "at the latest when the first has left");
        served
    });
}

/// The log of a server that refused a request and stopped.
fn log(line: &str) -> String {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), format!("{line}{INSTANT}")).unwrap();
    let mut process = serve(&["--config", file.path().to_str().unwrap()]);
    process.read_until("ready");
    assert_eq!(process.connect().post(DELAY, &json!([])).status, 422);
    process.signal("TERM");
    process.finish(Duration::from_secs(10)).stderr
}

#[test]
fn log_level() {
    let levels = |line: &str| {
        let text = log(line);
        ["INFO", "DEBUG"].into_iter().filter(|level| text.contains(level)).collect::<Vec<_>>()
    };
    two_values("logging.level", ("'off'", vec![]), ("'info'", vec!["INFO"]), levels);
    two_values("logging.level", ("'warn'", vec![]), ("'debug'", vec!["INFO", "DEBUG"]), levels);
}

#[test]
fn log_format() {
    two_values("logging.format", ("'text'", false), ("'json'", true), |line| {
        let text = log(line);
        assert!(text.contains("invalid_input"), "{text}");
        text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
    });
}

/// Where the delay model runs, or why the server does not start.
fn device(line: &str) -> String {
    let settings = try_settings(&format!("{line}{INSTANT}")).unwrap();
    match trustformers_serve::server::Server::start(&settings) {
        Err(error) => {
            assert!(error.to_string().contains("cuda:0"), "{error}");
            "cuda:0".to_owned()
        }
        Ok(server) => {
            let running = Running { server: server.into() };
            running.server.wait_ready(Duration::from_secs(60)).unwrap();
            running.get("/models/delay").ok()["versions"][0]["device"].as_str().unwrap().to_owned()
        }
    }
}

#[test]
fn device_of_all_and_of_one() {
    let (cpu, cuda) = (("'cpu'", "cpu".to_owned()), ("'cuda:0'", "cuda:0".to_owned()));
    two_values("device.default", cpu.clone(), cuda.clone(), device);
    two_values_of("delay", "models.NAME.device", cpu, cuda, device);
}

fn threads_of_minilm(line: &str) -> u64 {
    let running = start(&format!("{line}{}models.minilm.instances = 2\n", minilm()));
    assert_eq!(running.post(MINILM, &json!("text")).status, 200);
    running.get("/models/minilm").ok()["versions"][0]["threads"].as_u64().unwrap()
}

#[test]
fn threads_of_all_and_of_one() {
    two_values("device.threads", ("2", 1), ("4", 2), threads_of_minilm);
    two_values_of("minilm", "models.NAME.threads", ("1", 1), ("2", 2), threads_of_minilm);
}

#[test]
fn model_repository() {
    let root = tempfile::tempdir().unwrap();
    copy_minilm(&root.path().join("one/a/1"));
    copy_minilm(&root.path().join("two/b/1"));
    let [one, two] = ["one", "two"].map(|name| quoted(&root.path().join(name)));
    two_values("model_repository", (&one, "a".to_owned()), (&two, "b".to_owned()), |line| {
        let running = start(line);
        let name = running.get("/models").ok()["models"][0]["name"].as_str().unwrap().to_owned();
        assert_eq!(running.post(&format!("/models/{name}/predict"), &json!("text")).status, 200);
        name
    });
}

#[test]
fn builtin_models_folder() {
    let empty = tempfile::tempdir().unwrap();
    let (here, nothing) = (quoted(&builtin_models()), quoted(empty.path()));
    two_values("builtin_models", (&here, "ready".to_owned()), (&nothing, "failed".to_owned()), |line| {
        let running = start_settled(&format!("{line}models.minilm.load = true\n"));
        running.get("/health/ready").json()["models"][0]["state"].as_str().unwrap().to_owned()
    });
}

#[test]
fn path() {
    let root = tempfile::tempdir().unwrap();
    let other = root.path().join("cls");
    copy_minilm(&other);
    let pooling = other.join("1_Pooling");
    std::fs::remove_file(&pooling).unwrap();
    std::fs::create_dir(&pooling).unwrap();
    let config = std::fs::read_to_string(minilm_folder().join("1_Pooling/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["pooling_mode_mean_tokens"] = json!(false);
    config["pooling_mode_cls_token"] = json!(true);
    std::fs::write(pooling.join("config.json"), config.to_string()).unwrap();
    let embed = |line: &str| {
        let running = start(line);
        running.post("/models/m/predict", &json!("some text")).ok()["data"][0].as_f64().unwrap()
    };
    let of = |folder: &std::path::Path| embed(&format!("models.m.path = {}\n", quoted(folder)));
    let (mean, cls) = (of(&minilm_folder()), of(&other));
    two_values_of("m", "models.NAME.path", (&quoted(&minilm_folder()), mean), (&quoted(&other), cls), embed);
}

#[test]
fn format() {
    let state = |line: &str| {
        let running = start_settled(&format!("{}{line}", minilm()));
        running.get("/health/ready").json()["models"][0]["state"].as_str().unwrap().to_owned()
    };
    let (right, wrong) = (("'huggingface'", "ready".to_owned()), ("'torchscript'", "failed".to_owned()));
    two_values_of("minilm", "models.NAME.format", right, wrong, state);
}

#[test]
fn version() {
    two_values_of("delay", "models.NAME.version", ("'1'", json!("1")), ("'v7'", json!("v7")), |line| {
        start(&format!("{INSTANT}{line}")).post(DELAY, &json!([1.0])).ok()["version"].clone()
    });
}

#[test]
fn versions() {
    let root = tempfile::tempdir().unwrap();
    for version in ["v9", "v10"] {
        copy_minilm(&root.path().join(version));
    }
    let served = |line: &str| {
        let running = start(&format!("models.m.path = {}\n{line}", quoted(root.path())));
        let versions = running.get("/models/m").ok()["versions"].as_array().unwrap().clone();
        versions
            .iter()
            .map(|version| version["version"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let [latest, all, named] = ["v10", "v9 v10", "v9"].map(str::to_owned);
    two_values_of("m", "models.NAME.versions", ("'latest'", latest.clone()), ("'all'", all), served);
    two_values_of("m", "models.NAME.versions", ("['v9']", named), ("['v10']", latest), served);
}

#[test]
fn instances() {
    two_values_of("delay", "models.NAME.instances", ("1", 1), ("2", 0), |line| {
        let running = start(&format!("{line}models.delay.delay.batch_time = '300ms'\n"));
        // Two shapes make two batches, which run side by side where there are two instances.
        let mut both = running.post_later(DELAY, &json!({ "instances": [[1.0], [1.0, 2.0]] }));
        running
            .eventually("the first batch is over", |running| running.count("delay", "executed_batches") > 0);
        let mean_wait = running.stats("delay")["mean_queue_seconds"].as_f64().unwrap();
        assert_eq!(both.reply().status, 200);
        let waited = running.stats("delay")["mean_queue_seconds"].as_f64().unwrap();
        assert!(mean_wait <= waited + 0.001, "{mean_wait} {waited}");
        usize::from(waited >= 0.15)
    });
}

#[test]
fn inputs() {
    let model = |shape: &str| format!("[{{ name = 'x', dtype = 'f32', shape = {shape} }}]");
    two_values_of("m", "models.NAME.inputs", (&model("[-1]"), 200), (&model("[2]"), 422), |line| {
        let rest: String = script_model("m", "double")
            .lines()
            .filter(|line| !line.contains("inputs"))
            .map(|line| format!("{line}\n"))
            .collect();
        start(&format!("{line}{rest}")).post("/models/m/predict", &json!([1, 2, 3])).status
    });
}

#[test]
fn outputs() {
    let names = |one: &str, two: &str| {
        format!(
            "[{{ name = '{one}', dtype = 'f32', shape = [] }}, {{ name = '{two}', dtype = 'i64', shape = [] }}]"
        )
    };
    let (first, second) = (names("sum", "next"), names("a", "b"));
    let reply = |a: &str, b: &str| json!({ a: 8.5, b: 3 });
    two_values_of(
        "m",
        "models.NAME.outputs",
        (&first, reply("sum", "next")),
        (&second, reply("a", "b")),
        |line| {
            let running = start(&format!(
                "{line}models.m.path = {}\nmodels.m.inputs = [\n\
             {{ name = 'left', dtype = 'f32', shape = [-1] }},\n\
             {{ name = 'count', dtype = 'i64', shape = [] }},\n\
             {{ name = 'flag', dtype = 'bool', shape = [] }}]\n",
                quoted(&torchscript("mixed"))
            ));
            let item = json!({ "data": { "flag": true, "left": [1, 2, 3.5], "count": 2 } });
            running.post("/models/m/predict", &item).ok()["data"].clone()
        },
    );
}

#[test]
fn warmup() {
    two_values_of("m", "models.NAME.warmup", ("0", "ready".to_owned()), ("1", "failed".to_owned()), |line| {
        let running = start_settled(&format!("{line}{}", script_model("m", "raises")));
        running.get("/health/ready").json()["models"][0]["state"].as_str().unwrap().to_owned()
    });
}

#[test]
fn load() {
    two_values_of("delay", "models.NAME.load", ("true", 200), ("false", 503), |line| {
        start(&format!("{line}{INSTANT}")).post(DELAY, &json!([1.0])).status
    });
}

#[test]
fn max_length() {
    two_values_of("minilm", "models.NAME.max_length", ("4", json!(4)), ("6", json!(6)), |line| {
        let input = json!({ "input": "one two three four five six seven" });
        start(&format!("{line}{}", minilm())).post("/v1/embeddings", &input).ok()["usage"]["prompt_tokens"]
            .clone()
    });
}

#[test]
fn truncation() {
    let long = json!("one two three four five six seven");
    let status = |line: &str| {
        let running = start(&format!("{line}{}models.minilm.max_length = 6\n", minilm()));
        let embedded = running.post("/v1/embeddings", &json!({ "input": long }));
        let predicted = running.post(MINILM, &long).status;
        assert_eq!(embedded.status == 200, predicted == 200, "both routes cut or both refuse");
        predicted
    };
    two_values_of("minilm", "models.NAME.truncation", ("true", 200), ("false", 422), status);
    let tensors = |line: &str| {
        let running = start(&format!("{line}{}models.tagger.max_length = 2\n", masked_mean("tagger")));
        running
            .post("/models/tagger/predict", &json!({ "data": { "ids": [1, 2, 3], "mask": [1, 1, 1] } }))
            .status
    };
    two_values_of("tagger", "models.NAME.truncation", ("true", 200), ("false", 422), tensors);
}

#[test]
fn static_batch() {
    two_values_of("m", "models.NAME.static_batch", ("true", 200), ("false", 500), |line| {
        let rest = script_model("m", "fixed_rows");
        let running =
            start(&format!("{line}{rest}models.m.warmup = 0\nmodels.m.batching.max_batch_size = 4\n"));
        running.post("/models/m/predict", &json!([1, 2, 3])).status
    });
}

/// Whether a batch of four takes at least 40 ms, as the model's own measure has it.
fn is_slow(line: &str) -> bool {
    let running = start(line);
    running.post(DELAY, &json!({ "instances": [[1.0], [2.0], [3.0], [4.0]] })).ok();
    running.stats("delay")["mean_compute_seconds"].as_f64().unwrap() >= 0.040
}

#[test]
fn batch_time() {
    two_values_of("delay", "models.NAME.delay.batch_time", ("'0ms'", false), ("'40ms'", true), is_slow);
}

#[test]
fn item_time() {
    two_values_of("delay", "models.NAME.delay.item_time", ("'0ms'", false), ("'10ms'", true), |line| {
        is_slow(&format!("{line}{INSTANT}"))
    });
}
