//! Every metric family is moved, with its labels.

use serde_json::json;

use crate::completions::{COMPLETIONS, TINYLM};
use crate::fixtures::minilm;
use crate::harness::{BUSY, DELAY, INSTANT, MINILM, start};

#[test]
fn requests_are_counted_by_outcome_and_item() {
    let running = start(INSTANT);
    running.post(DELAY, &json!({ "instances": [[1.0], [2.0], []] })).ok();
    let text = running.get("/metrics").text();
    for line in [
        "# TYPE trustformers_requests_total counter",
        "trustformers_requests_total{model=\"delay\",outcome=\"ok\",version=\"1\"} 2",
        "trustformers_requests_total{model=\"delay\",outcome=\"invalid_input\",version=\"1\"} 1",
    ] {
        assert!(text.lines().any(|got| got == line), "{line} is not in\n{text}");
    }
    let reply = running.get("/metrics");
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4"));
}

#[test]
fn durations_and_sizes_are_histograms_of_each_version() {
    let running = start("models.delay.delay.batch_time = '20ms'\nmodels.delay.batching.max_batch_size = 2\n");
    running.post(DELAY, &json!({ "instances": [[1.0], [2.0], [3.0]] })).ok();
    let value = |name: &str| running.metric(&format!("{name}{{model=\"delay\",version=\"1\"}}"));
    assert_eq!(value("trustformers_request_duration_seconds_count"), 1.0, "one call");
    assert!(value("trustformers_request_duration_seconds_sum") >= 0.04, "two batches");
    assert_eq!(value("trustformers_queue_duration_seconds_count"), 3.0, "each item waits");
    assert!(value("trustformers_queue_duration_seconds_sum") >= 0.02, "the third for the first two");
    assert_eq!(value("trustformers_compute_duration_seconds_count"), 2.0);
    assert!(value("trustformers_compute_duration_seconds_sum") >= 0.04);
    assert_eq!(value("trustformers_batch_size_count"), 2.0);
    assert_eq!(value("trustformers_batch_size_sum"), 3.0);
    assert_eq!(value("trustformers_batch_tokens_sum"), 3.0, "one for an item that has no tokens");
}

#[test]
fn tokens_are_counted_and_are_the_cost_of_a_batch() {
    let running = start(&minilm());
    running.post(MINILM, &json!({ "instances": ["hello world", "hello"] })).ok();
    let prompt = running.metric("trustformers_tokens_total{kind=\"prompt\",model=\"minilm\",version=\"1\"}");
    assert_eq!(prompt, 7.0, "4 and 3 with the special ones");
    assert_eq!(running.metric("trustformers_batch_tokens_sum{model=\"minilm\",version=\"1\"}"), 7.0);
}

#[test]
fn the_queues_depth_and_refusals_show() {
    let running = start(&format!("{BUSY}models.delay.batching.max_queue_size = 2\n"));
    let mut busy = running.occupy();
    assert_eq!(running.metric("trustformers_queue_depth{model=\"delay\",version=\"1\"}"), 1.0);
    running.post(DELAY, &json!({ "instances": [[1.0], [2.0]] })).ok();
    busy.reply().ok();
    let refused = "trustformers_rejections_total{model=\"delay\",reason=\"queue_full\",version=\"1\"}";
    assert_eq!(running.metric(refused), 1.0);
    assert_eq!(running.metric("trustformers_queue_depth{model=\"delay\",version=\"1\"}"), 0.0);
}

#[test]
fn each_instance_shows_how_busy_it_is() {
    let running = start("models.delay.delay.batch_time = '50ms'\nmodels.delay.instances = 2\n");
    let ratio = |instance: usize| {
        running.metric(&format!(
            "trustformers_instance_busy_ratio{{instance=\"{instance}\",model=\"delay\",version=\"1\"}}"
        ))
    };
    assert_eq!((ratio(0), ratio(1)), (0.0, 0.0));
    // Two shapes make two batches: one for each instance.
    running.post(DELAY, &json!({ "instances": [[1.0], [1.0, 2.0]] })).ok();
    for instance in 0..2 {
        assert!((0.0..=1.0).contains(&ratio(instance)) && ratio(instance) > 0.0, "{}", ratio(instance));
    }
    assert_eq!(running.stats("delay")["instance_busy_ratio"].as_array().unwrap().len(), 2);
}

#[test]
fn open_connections_show() {
    let running = start(INSTANT);
    let held: Vec<_> = (0..3)
        .map(|_| {
            let mut connection = running.connect();
            connection.post(DELAY, &json!([1.0])).ok();
            connection
        })
        .collect();
    assert_eq!(running.metric("trustformers_connections"), 4.0, "its own included");
    drop(held);
    running.eventually("they are closed", |running| running.metric("trustformers_connections") == 1.0);
}

#[test]
fn the_operators_numbers_add_up() {
    let running = start("models.delay.delay.batch_time = '10ms'\nmodels.delay.batching.max_batch_size = 2\n");
    running.post(DELAY, &json!({ "instances": [[1.0], [2.0], [3.0]] })).ok();
    let all = running.get("/admin/stats").ok();
    assert!(all["uptime_seconds"].as_f64().unwrap() > 0.0);
    assert!(all["connections"].as_u64().unwrap() >= 1);
    let stats = running.stats("delay");
    for (key, value) in [
        ("name", json!("delay")),
        ("version", json!("1")),
        ("state", json!("ready")),
        ("ok", json!(3)),
        ("executed_items", json!(3)),
        ("executed_batches", json!(2)),
        ("mean_batch_size", json!(1.5)),
    ] {
        assert_eq!(stats[key], value, "{key}");
    }
    for key in ["mean_compute_seconds", "mean_request_seconds"] {
        assert!(stats[key].as_f64().unwrap() >= 0.01, "{key}");
    }
    assert!(stats["mean_queue_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn the_schedulers_own_numbers_show() {
    let running = start("models.delay.delay.batch_time = '10ms'\nmodels.delay.batching.max_batch_size = 2\n");
    running.post(DELAY, &json!({ "instances": [[1.0], [2.0], [3.0]] })).ok();
    let stats = running.stats("delay");
    let batching = &stats["batching"];
    for (key, value) in [
        ("/requests/admitted", json!(3)),
        ("/requests/completed", json!(3)),
        ("/requests/queued", json!(0)),
        ("/rejected/queue_full", json!(0)),
        ("/batches/started", json!(2)),
        ("/batch_size_histogram", json!([{ "up_to": 1.0, "count": 1 }, { "up_to": 2.0, "count": 1 }])),
        ("/padding/overhead", json!(0.0)),
        ("/limits/batch_size", json!(2)),
        ("/limits/instances", json!(1)),
        ("/memory/limit_bytes", json!(null)),
        ("/stalled_instances", json!([])),
        ("/cost_model/fits/0/samples", json!(2)),
    ] {
        assert_eq!(batching.pointer(key), Some(&value), "{key}");
    }
    for key in ["/latency_seconds/p50", "/latency_seconds/p99", "/batch_duration_seconds/mean"] {
        assert!(batching.pointer(key).unwrap().as_f64().unwrap() >= 0.01, "{key}");
    }
    for key in ["/throughput/last_10_seconds", "/utilization/overall", "/queue_wait_seconds/p99"] {
        assert!(batching.pointer(key).unwrap().as_f64().unwrap() > 0.0, "{key}");
    }
    assert_eq!(stats["suggestions"], json!([]), "so little is no evidence");
    running.post("/models/delay/unload", &json!(null)).ok();
    let unloaded = running.stats("delay");
    assert_eq!((&unloaded["batching"], &unloaded["suggestions"]), (&json!(null), &json!(null)));
}

#[test]
fn a_batch_size_that_holds_the_model_back_is_noticed() {
    let running = start("models.delay.delay.batch_time = '10ms'\nmodels.delay.batching.max_batch_size = 2\n");
    for _ in 0..10 {
        running.post(DELAY, &json!([1.0])).ok();
    }
    running.post(DELAY, &json!({ "instances": vec![[1.0]; 400] })).ok();
    let suggestions = running.stats("delay")["suggestions"].clone();
    let larger = &suggestions[0];
    assert_eq!(larger["action"], "raise_max_batch_size", "{suggestions}");
    assert_eq!((&larger["current"], &larger["proposed"]), (&json!(2.0), &json!(8.0)), "{larger}");
    assert!(larger["evidence"]["mean_left_behind"].as_f64() > Some(100.0), "{larger}");
    let gain = &larger["predicted_gain"];
    assert_eq!(gain["unit"], "items/s");
    assert!(gain["after"].as_f64().unwrap() > 1.5 * gain["before"].as_f64().unwrap(), "{gain}");
}

#[test]
fn an_instance_is_busy_while_its_batch_runs() {
    let running = start("models.delay.delay.batch_time = '1s'\nmodels.delay.batching.max_batch_size = 1\n");
    let mut busy = running.occupy();
    let ratio = "trustformers_instance_busy_ratio{instance=\"0\",model=\"delay\",version=\"1\"}";
    // The instance takes its batch a moment before it says that it runs.
    running.eventually("it is busy before its first batch has ended", |running| {
        running.metric(ratio) > 0.9 && running.count("delay", "executed_batches") == 0
    });
    busy.reply().ok();
}

#[test]
fn tokens_that_no_model_read_are_not_counted() {
    let running = start(&format!("{}models.minilm.batching.max_batch_tokens = 3\n", minilm()));
    let prompt = "trustformers_tokens_total{kind=\"prompt\",model=\"minilm\",version=\"1\"}";
    running.post(MINILM, &json!("hello world"));
    assert_eq!(running.rejections("minilm", "never_fits"), 1.0);
    assert_eq!(running.metric(prompt), 0.0);
    running.post(MINILM, &json!("hello")).ok();
    assert_eq!(running.metric(prompt), 3.0);
}

#[test]
fn a_text_moves_the_metrics_of_its_tokens() {
    let running = start(TINYLM);
    let body = json!({ "prompt": vec![5; 40], "max_tokens": 6, "temperature": 0, "ignore_eos": true });
    running.post(COMPLETIONS, &body).ok();
    running.post(COMPLETIONS, &body).ok();
    let of = |name: &str| running.metric(&format!("{name}{{model=\"tinylm\",version=\"1\"}}"));
    let tokens = |kind: &str| {
        running
            .metric(&format!("trustformers_tokens_total{{kind=\"{kind}\",model=\"tinylm\",version=\"1\"}}"))
    };
    assert_eq!((tokens("prompt"), tokens("cached"), tokens("generated")), (80.0, 32.0, 12.0));
    assert_eq!(of("trustformers_time_to_first_token_seconds_count"), 2.0);
    assert_eq!(of("trustformers_inter_token_seconds_count"), 10.0, "every token but the first");
    assert_eq!(of("trustformers_compute_duration_seconds_count"), 12.0, "a step each");
    assert_eq!(of("trustformers_queue_duration_seconds_count"), 2.0);
    assert_eq!(of("trustformers_preemptions_total"), 0.0);
    let blocks = |state: &str| {
        running.metric(&format!("trustformers_kv_blocks{{model=\"tinylm\",state=\"{state}\",version=\"1\"}}"))
    };
    assert_eq!(blocks("used"), 0.0);
    assert_eq!(blocks("cached"), 2.0, "the full blocks of the prompt");
    assert!(blocks("free") > 100.0);
    let waiting = "trustformers_sequences{model=\"tinylm\",state=\"waiting\",version=\"1\"}";
    assert_eq!(running.metric(waiting), 0.0);
    assert_eq!(running.outcomes("tinylm", "ok"), 2.0);
}

#[test]
fn the_trace_shows_steps_and_texts() {
    let running = start(TINYLM);
    let body = json!({ "prompt": vec![5; 40], "max_tokens": 6, "temperature": 0, "ignore_eos": true });
    running.post(COMPLETIONS, &body).ok();
    let trace = running.get("/admin/trace").ok();
    assert_eq!(trace["displayTimeUnit"], "ms");
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |phase: &str| events.iter().filter(|event| event["ph"] == phase).count();
    let steps = events.iter().filter(|event| event["ph"] == "X" && event["tid"] == 1).count();
    assert_eq!((steps, of("C"), of("b"), of("e")), (6, 6, 4, 4));
    let first = events.iter().find(|event| event["ph"] == "X").unwrap();
    assert_eq!(first["name"], "prefill");
    assert_eq!(first["args"]["prompt_tokens"], 40);
    assert!(first["dur"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_text_in_the_trace_has_the_id_of_its_request() {
    let running = start(TINYLM);
    let body = json!({ "prompt": vec![5; 4], "max_tokens": 2, "ignore_eos": true });
    let headers = [("content-type", "application/json"), ("x-request-id", "call-7")];
    running.connect().request("POST", COMPLETIONS, &headers, body.to_string().as_bytes()).ok();
    let trace = running.get("/admin/trace").ok();
    let texts = trace["traceEvents"].as_array().unwrap().iter();
    let ids: Vec<_> = texts.filter_map(|event| event["args"]["request_id"].as_str()).collect();
    assert_eq!(ids, ["call-7"; 2], "where it begins and where it ends");
}
