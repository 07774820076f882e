//! Checkpoints of language models: both forms of their configuration, and what is wrong with damaged ones.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod altered;
mod oracles;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use altered::altered;
use serde::Deserialize;
use tch::Device;
use trustformers_serve::backend::checkpoint::CheckpointError;
use trustformers_serve::backend::llm::{self, CacheSize, LlmError, LlmOptions};
use trustformers_serve::tensor::DType;

#[derive(Deserialize)]
struct Case {
    folder: PathBuf,
}

fn cases() -> BTreeMap<String, Case> {
    oracles::cases("decoder")
}

fn error(folder: &Path) -> LlmError {
    let (path, device) = (folder.to_owned(), Device::Cpu);
    let options = LlmOptions { path, device, dtype: Some(DType::F32), quantization: None, threads: 1 };
    match llm::load(&options) {
        Ok(_) => panic!("it loaded"),
        Err(error) => error,
    }
}

fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1).into_bytes()
}

#[test]
fn what_is_not_implemented_or_wrong_in_the_configuration_is_named() {
    let case = &cases()["llama_3"];
    for (from, to, expected) in [
        (
            "\"model_type\": \"llama\"",
            "\"model_type\": \"gemma\"",
            "model_type \"gemma\", which is not supported",
        ),
        (
            "\"hidden_act\": \"silu\"",
            "\"hidden_act\": \"relu6\"",
            "hidden_act \"relu6\", which is not supported",
        ),
        (
            "\"rope_type\": \"llama3\"",
            "\"rope_type\": \"spiral\"",
            "rope_type \"spiral\", which is not supported",
        ),
        (
            "\"dtype\": \"float32\"",
            "\"dtype\": \"int8\"",
            "elements of type \"int8\", which is not supported",
        ),
        (
            "\"model_type\"",
            "\"quantization_config\": {}, \"model_type\"",
            "quantization_config, which is not",
        ),
        ("\"hidden_size\": 48", "\"hidden_size\": -48", "hidden_size is -48, not a size"),
        ("\"hidden_size\": 48", "\"hidden\": 48", "it has no hidden_size"),
        ("\"low_freq_factor\"", "\"low\"", "it has no rope_parameters.low_freq_factor"),
        (
            "\"num_key_value_heads\": 2",
            "\"num_key_value_heads\": 4",
            "6 heads of queries do not divide into 4",
        ),
        ("{", "[", "config.json is not valid"),
    ] {
        let folder = altered(&case.folder, "config.json", |bytes| replaced(bytes, from, to));
        let text = error(folder.path()).to_string();
        assert!(text.contains(expected) && text.contains("config.json"), "{text}");
    }
}

#[test]
fn weights_that_do_not_fit_the_configuration_are_named() {
    let case = &cases()["llama"];
    for (from, to, expected) in [
        ("\"vocab_size\": 211", "\"vocab_size\": 212", "weight model.embed_tokens.weight in"),
        (
            "\"num_hidden_layers\": 3",
            "\"num_hidden_layers\": 4",
            "has no weight model.layers.3.self_attn.q_proj.weight",
        ),
        (
            "\"attention_bias\": false",
            "\"attention_bias\": true",
            "has no weight model.layers.0.self_attn.q_proj.bias",
        ),
        (
            "\"intermediate_size\": 88",
            "\"intermediate_size\": 80",
            "has shape [88, 48], config.json asks for [80, 48]",
        ),
    ] {
        let folder = altered(&case.folder, "config.json", |bytes| replaced(bytes, from, to));
        let text = error(folder.path()).to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn missing_and_truncated_shards_are_named() {
    let case = &cases()["llama_sharded"];
    let shard = fs::read_dir(&case.folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .find(|name| name.starts_with("model-00002-of-"))
        .unwrap();

    let truncated = altered(&case.folder, &shard, |bytes| bytes[..bytes.len() - 5].to_vec());
    let missing = altered(&case.folder, &shard, <[u8]>::to_vec);
    fs::remove_file(missing.path().join(&shard)).unwrap();
    let elsewhere = altered(&case.folder, "model.safetensors.index.json", |bytes| {
        replaced(bytes, "model-00002-of-", "../model-00002-of-")
    });
    let unlisted = altered(&case.folder, "model.safetensors.index.json", |bytes| {
        replaced(
            bytes,
            "\"weight_map\": {",
            "\"weight_map\": {\"more.weight\": \"model-00001-of-00000.safetensors\",",
        )
    });
    let none = altered(&cases()["llama"].folder, "config.json", <[u8]>::to_vec);
    fs::remove_file(none.path().join("model.safetensors")).unwrap();

    for (folder, part) in [
        (&truncated, "is not valid"),
        (&missing, "cannot read"),
        (&elsewhere, "is no file's name"),
        (&unlisted, "cannot read"),
        (&none, "neither model.safetensors nor model.safetensors.index.json"),
    ] {
        let text = error(folder.path()).to_string();
        assert!(text.contains(part), "{text}");
    }
    assert!(error(truncated.path()).to_string().contains(&shard));
    assert!(
        matches!(error(missing.path()), LlmError::Checkpoint(CheckpointError::Read { path, .. }) if path.ends_with(&shard))
    );
}

#[test]
fn weights_of_a_type_that_is_not_computed_with_are_named() {
    let folder = altered(&cases()["llama"].folder, "model.safetensors", |bytes| {
        let (of, mut bytes) = (b"\"F32\"", bytes.to_vec());
        let at = bytes.windows(of.len()).position(|part| part == of).unwrap();
        bytes[at + 1] = b'I';
        bytes
    });
    let text = error(folder.path()).to_string();
    assert!(text.contains("has type I32; supported: F32, F16, BF16"), "{text}");
}

#[test]
fn old_and_new_forms_of_the_configuration_say_the_same() {
    let cases = cases();
    let (old, new) = (&cases["llama_old_config"].folder, &cases["llama_3"].folder);
    assert_eq!(llm::read(old).unwrap(), llm::read(new).unwrap());
}

#[test]
fn end_tokens_and_defaults_come_from_the_generation_file_then_from_the_configuration() {
    let case = &cases()["llama"];
    let with = |text: &str| {
        let folder = altered(&case.folder, "config.json", <[u8]>::to_vec);
        fs::write(folder.path().join("generation_config.json"), text).unwrap();
        llm::read(folder.path()).unwrap().generation
    };

    let full =
        with(r#"{"eos_token_id": [5, 7], "bos_token_id": 3, "do_sample": true, "top_k": 20, "top_p": 0.8}"#);
    let empty = with("{}");

    assert_eq!((full.end_tokens, full.start_token), (vec![5, 7], Some(3)));
    assert_eq!(
        (full.samples, full.top_k, full.top_p, full.temperature),
        (Some(true), Some(20), Some(0.8), None)
    );
    assert_eq!((empty.end_tokens, empty.start_token, empty.samples), (vec![2], Some(1), None));
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_is_refused() {
    let decoder = llm::read(&cases()["llama"].folder).unwrap().decoder;

    assert!(decoder.check_vocabulary(210).is_ok());
    let refused = decoder.check_vocabulary(211).unwrap_err().to_string();
    assert_eq!(refused, "the tokenizer has ids up to 211, the model's weights are for a vocabulary of 211");
}

#[test]
fn caches_that_cannot_be_are_refused_and_their_bytes_are_foretold() {
    let folder = &cases()["llama"].folder;
    let load = || {
        let (path, device) = (folder.clone(), Device::Cpu);
        let options = LlmOptions { path, device, dtype: Some(DType::BF16), quantization: None, threads: 1 };
        llm::load(&options).unwrap()
    };

    for size in [(0, 16), (10, 0), (10, 24), (10, 2048)] {
        let refused = load().with_cache(CacheSize { blocks: size.0, block_size: size.1 }).unwrap_err();
        assert!(matches!(refused, LlmError::Cache { .. }), "{refused}");
    }
    // Keys and values, 3 layers, 2 heads of width 8, 32 tokens, 2 bytes.
    assert_eq!(load().bytes_per_block(32), 2 * 3 * 2 * 8 * 32 * 2);
}
