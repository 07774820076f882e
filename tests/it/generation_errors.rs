//! What can go wrong with generated text: a typed error for who caused it, and nobody else is harmed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::client::{Connection, JSON};
use crate::completions::{COMPLETIONS, TINYLM, begun, endless, used_blocks, with};
use crate::errors::Refused;
use crate::fixtures::{language_model, replace};
use crate::harness::{INSTANT, Running, builtin_models, quoted, start, start_settled};

fn serve(line: &str) -> Running {
    start(&format!("{INSTANT}{TINYLM}{line}"))
}

/// A text that generates, and one that waits because only one may.
fn one_waits(running: &Running) -> (Connection, Connection) {
    let first = begun(running, &endless(2000));
    let second = running.post_later(COMPLETIONS, &endless(2));
    running.eventually("one waits", |running| running.queued("tinylm") == 1);
    (first, second)
}

/// Asserts that a request with these fields is refused in these words, and counted by `model`; empty: by none.
fn refused(running: &Running, fields: Value, code: &str, says: &str, model: &str) {
    let body = with(&json!({ "prompt": "The old sailor", "model": "tinylm" }), fields).to_string();
    running.refuses(&Refused {
        method: "POST",
        path: COMPLETIONS,
        headers: &[JSON],
        body: body.as_bytes(),
        status: 400,
        code,
        says: &[says],
        model,
    });
}

#[test]
fn fields_that_mean_nothing_are_refused_by_name() {
    let running = serve("");
    let stops = vec!["a"; 1000];
    for (fields, says) in [
        (json!({ "max_tokens": 0 }), "\"max_tokens\" is 0; at least 1 is needed"),
        (json!({ "max_tokens": -3 }), "\"max_tokens\" is -3; at least 1 is needed"),
        (json!({ "max_tokens": "many" }), "\"max_tokens\" is \"many\": invalid type: string"),
        (json!({ "n": 0 }), "\"n\" is 0; 1 to 128 will do"),
        (json!({ "n": -1 }), "\"n\" is -1: invalid value"),
        (json!({ "n": 3, "best_of": 2 }), "\"best_of\" is 2; n = 3 to 128 will do"),
        (json!({ "best_of": 2, "stream": true }), "\"best_of\" cannot be streamed"),
        (json!({ "best_of": 0 }), "\"best_of\" is 0"),
        (json!({ "min_tokens": -1 }), "\"min_tokens\" is -1"),
        (json!({ "logprobs": -1 }), "\"logprobs\" is -1"),
        (json!({ "timeout_ms": -1 }), "\"timeout_ms\" is -1"),
        (json!({ "stop": stops }), "\"stop\" has 1000 texts; at most 64 will do"),
        (json!({ "stop_token_ids": vec![5; 300] }), "\"stop_token_ids\" has 300 ids; at most 256 will do"),
        (json!({ "stop": [""] }), "a text of \"stop\" has 0 bytes; 1 to 1024 will do"),
        (json!({ "max_tokens": 4, "min_tokens": 5 }), "\"min_tokens\" is 5, more than max_tokens"),
        (json!({ "logit_bias": { "x": 1 } }), "\"logit_bias\" has the key \"x\", which is no token id"),
        (json!({ "logit_bias": { "5": 1, "05": 2 } }), "\"logit_bias\" names token 5 twice"),
        (json!({ "prompt": [] }), "\"prompt\" is empty"),
        (json!({ "prompt": [1, -1] }), "-1 in \"prompt\" is no token id"),
        (json!({ "prompt": { "a": 1 } }), "\"prompt\" has to be a text"),
        (json!({ "prompt": null }), "\"prompt\" is missing"),
    ] {
        refused(&running, fields, "invalid_input", says, "");
    }
}

#[test]
fn what_does_not_fit_the_model_is_refused_in_its_name() {
    let running = serve("");
    for (fields, says) in [
        (json!({ "temperature": -1 }), "temperature is -1"),
        (json!({ "top_p": 0 }), "top_p is 0"),
        (json!({ "top_p": 1.5 }), "top_p is 1.5"),
        (json!({ "top_k": -5 }), "\"top_k\" is -5; 1 or more, or -1 for all"),
        (json!({ "min_p": 2 }), "min_p is 2"),
        (json!({ "repetition_penalty": 0 }), "repetition_penalty is 0"),
        (json!({ "presence_penalty": 3 }), "presence_penalty is 3"),
        (json!({ "frequency_penalty": -3 }), "frequency_penalty is -3"),
        (json!({ "logprobs": 100 }), "logprobs is 100"),
        (json!({ "logit_bias": { "900": 1 } }), "logit_bias"),
        (json!({ "stop_token_ids": [880] }), "\"stop_token_ids\" has 880; the vocabulary has 880 tokens"),
        (json!({ "prompt": "", "add_special_tokens": false }), "the prompt is empty"),
        (json!({ "prompt": [4, 900] }), "token 1 of the prompt is 900; the vocabulary has 880 tokens"),
        (json!({ "n": 100 }), "100 sequences are asked for, and 1 to 64 can be generated at once"),
    ] {
        refused(&running, fields, "invalid_input", says, "tinylm");
    }
    assert_eq!(used_blocks(&running), 0.0);
}

#[test]
fn what_is_no_request_for_text_is_malformed() {
    let running = serve("");
    for (fields, says) in [
        (json!({ "temprature": 1 }), "did you mean \"temperature\"?"),
        (json!({ "stream_options": { "usage": true } }), "unknown field \"usage\""),
        (json!({ "priority": "urgent" }), "expected low, normal, high or critical"),
    ] {
        refused(&running, fields, "malformed_request", says, "");
    }
    let reply = running.post(COMPLETIONS, &json!([1]));
    assert_eq!((reply.status, reply.message().as_str()), (400, "the body is not an object"));
    let reply = running.post(COMPLETIONS, &json!({ "model": "delay", "prompt": "x" }));
    assert_eq!(reply.message(), "model \"delay\" does not generate text");
    assert_eq!(
        running.post(COMPLETIONS, &json!({ "model": "gpt", "prompt": "x" })).code(),
        "model_not_found"
    );
    let none = json!({ "prompt": "x", "parameters": { "max_tokens": 0 } });
    let reply = running.post("/v1/inference/stream", &none);
    assert_eq!((reply.status, reply.message().as_str()), (422, "\"max_tokens\" is 0; at least 1 is needed"));
    let other = running.post("/models/tinylm/predict", &json!({ "data": "x" }));
    assert_eq!(other.status, 422);
    assert!(other.message().contains("ask /v1/completions"), "{}", other.message());
}

#[test]
fn errors_name_the_field_they_are_about() {
    let running = serve("");
    let reply = running.post(COMPLETIONS, &json!({ "prompt": "x", "temperature": -1 }));
    assert_eq!(reply.json()["error"]["param"], "temperature");
    assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
}

#[test]
fn of_a_key_that_is_written_twice_the_last_counts() {
    let running = serve("");
    let body = br#"{"prompt": "The old sailor", "max_tokens": 3, "temperature": 0, "logprobs": 0, "ignore_eos": true,
        "logit_bias": {"300": -100, "300": 100}}"#;
    let reply = running.post_raw(COMPLETIONS, &[JSON], body).ok();
    let biased = running.post("/detokenize", &json!({ "tokens": [300] })).ok();
    assert_eq!(reply["choices"][0]["logprobs"]["tokens"], json!(vec![&biased["prompt"]; 3]));
}

#[test]
fn a_request_that_exceeds_the_context_is_refused_in_openais_words() {
    let running = serve("");
    let prompt = json!({ "model": "tinylm", "prompt": vec![5; 2048] });
    let word = "sailor ".repeat(3000);
    let chat = json!({ "model": "tinylm", "messages": [{ "role": "user", "content": word }] });
    let before = running.outcomes("tinylm", "invalid_input");
    // Refused before it becomes tokens, which would take seconds.
    let megabytes = json!({ "model": "tinylm", "prompt": "sailor ".repeat(1 << 19) });
    for (path, body, param) in [
        (COMPLETIONS, prompt.clone(), "prompt"),
        (COMPLETIONS, megabytes, "prompt"),
        (COMPLETIONS, with(&endless(5000), json!({ "model": "tinylm" })), "max_tokens"),
        ("/v1/chat/completions", chat.clone(), "messages"),
    ] {
        let reply = running.post(path, &body);
        assert_eq!((reply.status, reply.code().as_str()), (400, "context_length_exceeded"), "{path}");
        if body["prompt"].as_str().is_some_and(|prompt| prompt.len() > 1 << 20) {
            assert!(reply.message().contains("the prompt has 3670016 bytes"), "{}", reply.message());
        }
        let error = &reply.json()["error"];
        assert_eq!((&error["param"], &error["type"]), (&json!(param), &json!("invalid_request_error")));
        assert!(reply.message().contains("the model's context is 2048 tokens"), "{}", reply.message());
    }
    for body in [prompt, chat] {
        let reply = running.post("/v1/inference/stream", &body);
        assert_eq!((reply.status, reply.code().as_str()), (422, "invalid_input"));
    }
    assert_eq!(running.outcomes("tinylm", "invalid_input"), before + 6.0);
}

/// What the scheduler counted.
fn generation(running: &Running) -> Value {
    running.stats("tinylm")["generation"].clone()
}

#[test]
fn what_can_never_wait_at_once_is_refused_before_any_of_it_is_admitted() {
    let running =
        serve("models.tinylm.batching.max_queue_size = 4\nmodels.tinylm.batching.max_queue_tokens = 100\n");
    for (fields, says) in [
        (json!({ "prompt": vec!["a"; 5] }), "5 prompts are sent, and the queue holds 4 (max_queue_size)"),
        (json!({ "prompt": [vec![5; 60], vec![6; 60]] }), "and the queue holds 100 (max_queue_tokens)"),
        (json!({ "prompt": vec![5; 101] }), "101 tokens of prompts are sent"),
        (
            json!({ "prompt": vec!["a"; 100], "n": 64 }),
            "100 prompts with 64 texts each are 6400; at most 4096",
        ),
        (json!({ "prompt": vec!["a"; 4], "best_of": 100 }), "100 sequences are asked for, and 1 to 64"),
    ] {
        refused(&running, fields, "invalid_input", says, "tinylm");
    }
    let stats = generation(&running);
    assert_eq!(stats["refused"], json!({ "sequences": 1, "queue_size": 1, "queue_tokens": 2 }));
    assert_eq!((&stats["admitted"], &stats["cancelled"]), (&json!(0), &json!(0)));
    assert_eq!(running.rejections("tinylm", "queue_size"), 1.0);
}

#[test]
fn prompts_that_only_some_of_have_room_are_all_refused() {
    let running = serve(
        "models.tinylm.batching.max_queue_size = 3\nmodels.tinylm.batching.continuous.max_sequences = 1\n",
    );
    let held = one_waits(&running);
    let reply = running.post(COMPLETIONS, &with(&endless(2), json!({ "prompt": ["a", "b", "c"] })));
    assert_eq!((reply.status, reply.code().as_str()), (429, "queue_full"));
    assert!(reply.header("retry-after").is_some());
    let stats = generation(&running);
    assert_eq!((&stats["admitted"], &stats["cancelled"]), (&json!(2), &json!(0)));
    assert_eq!(stats["refused"], json!({ "queue_full": 1 }));
    drop(held);
}

#[test]
fn what_the_cache_can_never_hold_is_refused_at_once() {
    let running = serve("models.tinylm.batching.continuous.max_sequences = 4\n");
    let small = start(&format!("{INSTANT}models.tinylm.batching.continuous.kv_cache_memory = '300KB'\n"));
    assert_eq!(running.post(COMPLETIONS, &endless(1000)).status, 200);
    let reply = small.post(COMPLETIONS, &endless(1000));
    assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_input"));
    assert!(reply.message().contains("and the KV cache holds"), "{}", reply.message());
}

#[test]
fn who_does_not_say_how_many_tokens_gets_what_the_cache_has_room_for() {
    // 48 blocks of 16 tokens, for a context of 2048.
    let running = start(&format!("{INSTANT}models.tinylm.batching.continuous.kv_cache_memory = '1MB'\n"));
    let message = json!([{ "role": "user", "content": "Tell me more." }]);
    let endless = |n: u32| json!({ "messages": message, "n": n, "ignore_eos": true });
    for n in [1, 3] {
        let reply = running.post("/v1/chat/completions", &endless(n)).ok();
        let prompt = reply["usage"]["prompt_tokens"].as_u64().unwrap();
        let each = reply["usage"]["completion_tokens"].as_u64().unwrap() / u64::from(n);
        // The last token is not fed.
        assert_eq!((prompt + each - 1) / 16, 48, "{prompt} and {each}");
        assert_eq!(reply["choices"][0]["finish_reason"], "length");
    }
}

#[test]
fn ids_that_the_tokenizer_does_not_know_are_no_text() {
    let folder = tempfile::tempdir().unwrap();
    copy(&builtin_models().join("tinylm"), folder.path());
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (last, id) = vocabulary.iter().max_by_key(|(_, id)| id.as_u64()).unwrap();
    let (last, id) = (last.clone(), id.as_u64().unwrap());
    vocabulary.remove(&last);
    let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
    merges.retain(|merge| {
        merge.as_array().unwrap().iter().filter_map(Value::as_str).collect::<String>() != last
    });
    replace(&path, tokenizer.to_string().as_bytes());
    let running = start(&format!("{INSTANT}models.a.path = {}\n", quoted(folder.path())));
    let body =
        json!({ "model": "a", "prompt": "The old", "max_tokens": 3, "temperature": 0, "ignore_eos": true });
    let drawn = running
        .post(COMPLETIONS, &with(&body, json!({ "logit_bias": { id.to_string(): 100 }, "logprobs": 1 })))
        .ok();
    assert_eq!((&drawn["choices"][0]["text"], &drawn["usage"]["completion_tokens"]), (&json!(""), &json!(3)));
    assert_ne!(running.post(COMPLETIONS, &body).ok()["choices"][0]["text"], "");
}

#[test]
fn a_full_queue_says_when_to_try_again() {
    let running = serve(
        "models.tinylm.batching.continuous.max_sequences = 1\nmodels.tinylm.batching.max_queue_size = 1\n",
    );
    let held = one_waits(&running);
    let third = running.post(COMPLETIONS, &endless(2));
    assert_eq!((third.status, third.code().as_str()), (429, "queue_full"));
    assert_eq!(third.json()["error"]["type"], "rate_limit_error");
    // Nor is a conversation made into tokens: it would be told that it is too long.
    let long = json!({ "messages": [{ "role": "user", "content": "sailor ".repeat(3000) }] });
    for path in ["/v1/chat/completions", "/v1/inference/stream"] {
        assert_eq!(running.post(path, &long).code(), "queue_full", "{path}");
    }
    let wait: u64 = third.header("retry-after").expect("a time").parse().expect("seconds");
    assert!((1..60).contains(&wait), "{wait}");
    assert_eq!(running.rejections("tinylm", "queue_full"), 3.0);
    drop(held);
    running.eventually("its blocks are free", |running| used_blocks(running) == 0.0);
}

#[test]
fn time_that_is_over_ends_a_text() {
    let running = serve("");
    let reply = running.post(COMPLETIONS, &with(&endless(2000), json!({ "timeout_ms": 60 })));
    assert_eq!((reply.status, reply.code().as_str()), (504, "deadline_exceeded"));
    assert!(reply.message().contains("over before its end"), "{}", reply.message());
    let streamed = with(&endless(2000), json!({ "timeout_ms": 60, "stream": true }));
    let text = running.post(COMPLETIONS, &streamed).text();
    let (_, last) =
        text.trim_end().strip_suffix("data: [DONE]").unwrap().trim_end().rsplit_once("data: ").unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["error"]["code"], "deadline_exceeded");
    assert_eq!(running.outcomes("tinylm", "deadline_exceeded"), 2.0);
    assert_eq!(used_blocks(&running), 0.0);
}

#[test]
fn a_first_token_that_does_not_come_in_time_is_given_up() {
    let running =
        serve("server.request_timeout = '150ms'\nmodels.tinylm.batching.continuous.max_sequences = 8\n");
    let held = begun(&running, &with(&endless(2000), json!({ "n": 8 })));
    let reply = running.post(COMPLETIONS, &endless(2));
    assert_eq!((reply.status, reply.code().as_str()), (504, "deadline_exceeded"));
    // It waited for nothing, or was told at once that it would.
    let says = ["the first token was over before it was there", "the deadline cannot be met"];
    assert!(says.iter().any(|says| reply.message().contains(says)), "{}", reply.message());
    drop(held);
    running.eventually("its blocks are free", |running| used_blocks(running) == 0.0);
}

#[test]
fn the_servers_own_limit_is_about_the_first_token() {
    let running = serve("server.request_timeout = '150ms'\n");
    let reply = running.post(COMPLETIONS, &endless(1500)).ok();
    assert_eq!(reply["usage"]["completion_tokens"], 1500);
}

/// A folder of links to a model's files, of which a test may replace some.
fn copy(model: &Path, folder: &Path) {
    for entry in fs::read_dir(model).expect("the model is made") {
        let entry = entry.expect("an entry");
        symlink(entry.path(), folder.join(entry.file_name())).expect("a link");
    }
}

/// Puts NaN in the embedding of each token of `tokens`.
fn break_tokens(folder: &Path, tokens: std::ops::Range<usize>) {
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("weights");
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let weights: Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let of = &weights["model.embed_tokens.weight"];
    let offset = of["data_offsets"][0].as_u64().unwrap() as usize;
    let bytes_of_all = of["data_offsets"][1].as_u64().unwrap() as usize - offset;
    let width = bytes_of_all / of["shape"][0].as_u64().unwrap() as usize;
    let start = 8 + header + offset;
    bytes[start + tokens.start * width..start + tokens.end * width].fill(0xFF);
    replace(&path, &bytes);
}

#[test]
fn a_prompt_that_the_model_makes_nothing_of_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    copy(&language_model("plain"), folder.path());
    // Its head is not tied to the embeddings, which would give everybody's row that NaN.
    break_tokens(folder.path(), 300..301);
    let running = start(&format!("{INSTANT}models.broken.path = {}\n", quoted(folder.path())));
    let ask = |token: u32| {
        let prompt = [0, token, 40];
        json!({ "prompt": prompt, "max_tokens": 200, "temperature": 0, "logit_bias": { "300": -100 }, "ignore_eos": true })
    };
    let alone: Vec<_> = (50..54).map(|token| running.post(COMPLETIONS, &ask(token)).ok()).collect();
    let others: Vec<_> = (50..54).map(|token| running.post_later(COMPLETIONS, &ask(token))).collect();
    let reply = running.post(COMPLETIONS, &ask(300));
    assert_eq!((reply.status, reply.code().as_str()), (500, "model_failed"));
    assert!(reply.message().contains("is not a number"), "{}", reply.message());
    for (mut other, alone) in others.into_iter().zip(alone) {
        assert_eq!(other.reply().ok()["choices"], alone["choices"]);
    }
    running.still_serves();
}

#[test]
fn a_model_that_gives_no_numbers_is_left_alone_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    copy(&language_model("plain"), folder.path());
    break_tokens(folder.path(), 0..320);
    let running = start(&format!(
        "{INSTANT}models.broken.path = {}\nmodels.broken.batching.breaker = {{ failures = 3, open = '1m' }}\n",
        quoted(folder.path())
    ));
    let ask = json!({ "model": "broken", "prompt": [4, 5], "max_tokens": 2 });
    for _ in 0..3 {
        assert_eq!(running.post(COMPLETIONS, &ask).code(), "model_failed");
    }
    let reply = running.post(COMPLETIONS, &ask);
    assert_eq!((reply.status, reply.code().as_str()), (503, "breaker_open"));
    assert!(reply.header("retry-after").is_some());
    let stats = &running.stats("broken")["generation"];
    assert_eq!((&stats["admitted"], &stats["cancelled"]), (&json!(3), &json!(0)));
    assert_eq!(stats["refused"], json!({ "breaker_open": 1 }));
    running.post("/admin/models/broken/reset_breaker", &json!(null)).ok();
    assert_eq!(running.post(COMPLETIONS, &ask).code(), "model_failed");
    running.still_serves();
}

/// Makes a checkpoint one that does not load.
type Damage<'a> = &'a dyn Fn(&Path);

#[test]
fn a_checkpoint_that_does_not_fit_fails_its_load_and_no_other() {
    let vocabulary = |folder: &Path| {
        let path = folder.join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let mut added = tokenizer["added_tokens"][0].clone();
        (added["id"], added["content"]) = (json!(5000), json!("<far>"));
        tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
        replace(&path, tokenizer.to_string().as_bytes());
    };
    let truncated = |folder: &Path| {
        let path = folder.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        replace(&path, &bytes[..bytes.len() / 2]);
    };
    let template = |folder: &Path| {
        let path = folder.join("tokenizer_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["chat_template"] = json!("{% for message in messages %}");
        replace(&path, config.to_string().as_bytes());
    };
    let without = |name: &'static str| move |folder: &Path| fs::remove_file(folder.join(name)).unwrap();
    let cases: [(Damage<'_>, &str); 5] = [
        (&vocabulary, "the tokenizer has ids up to"),
        (&truncated, "model.safetensors is not valid"),
        (&template, "tokenizer_config.json"),
        (&without("tokenizer.json"), "tokenizer.json"),
        (&without("model.safetensors"), "has neither model.safetensors nor model.safetensors.index.json"),
    ];
    for (damage, says) in cases {
        let folder = tempfile::tempdir().unwrap();
        copy(&builtin_models().join("tinylm"), folder.path());
        damage(folder.path());
        let running = start_settled(&format!("{INSTANT}models.a.path = {}\n", quoted(folder.path())));
        let reply = running.post(COMPLETIONS, &json!({ "model": "a", "prompt": "x" }));
        assert_eq!((reply.status, reply.code().as_str()), (503, "model_not_ready"));
        assert!(reply.message().contains(says), "{says}: {}", reply.message());
        running.still_serves();
    }
}
