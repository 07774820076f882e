//! Encoders against transformers and sentence-transformers, and against damaged checkpoints.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod altered;
mod oracles;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use altered::altered;
use serde::Deserialize;
use tch::Device;
use trustformers_serve::backend::encoder::{self, EncoderError, EncoderOptions, TextTokenizer, TokenError};
use trustformers_serve::backend::{DynModel, Input, Loaded, Signature};

/// The largest difference from an oracle that is rounding.
const TOLERANCE: f32 = 1e-5;

#[derive(Deserialize)]
struct Case {
    folder: PathBuf,
    max_length: usize,
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    embeddings: Vec<Vec<f32>>,
}

fn cases() -> BTreeMap<String, Case> {
    oracles::cases("encoder")
}

fn options(folder: &Path) -> EncoderOptions {
    EncoderOptions {
        path: folder.to_owned(),
        device: Device::Cpu,
        instances: 1,
        threads: 1,
        warmup: 0,
        warmup_batch_size: 1,
        max_length: None,
        truncation: true,
    }
}

fn tokenizer(loaded: &Loaded) -> Arc<TextTokenizer> {
    match &loaded.signature {
        Signature::Text { tokenizer, .. } => Arc::clone(tokenizer),
        Signature::Tensors { .. } => panic!("an encoder takes texts"),
    }
}

/// Loads with changed options and expects an error.
fn error(options: &EncoderOptions) -> EncoderError {
    match encoder::load(options) {
        Ok(_) => panic!("it loaded"),
        Err(error) => error,
    }
}

fn embed(model: &mut DynModel, ids: &[&[u32]]) -> Vec<Vec<f32>> {
    let inputs: Vec<_> = ids.iter().map(|ids| Arc::new(Input::Tokens(ids.to_vec()))).collect();
    let outputs = model.run(&inputs).unwrap();
    assert_eq!(outputs.len(), ids.len());
    let floats = |bytes: &[u8]| {
        bytes.chunks_exact(4).map(|four| f32::from_ne_bytes(four.try_into().unwrap())).collect()
    };
    outputs.into_iter().map(|output| floats(&output.unwrap()[0].data)).collect()
}

fn difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

fn for_each_case(mut check: impl FnMut(&str, &Case, Loaded)) {
    let cases = cases();
    assert_eq!(cases.len(), 14);
    for (name, case) in &cases {
        check(name, case, encoder::load(&options(&case.folder)).unwrap());
    }
}

#[test]
fn tokens_are_those_of_the_oracles() {
    for_each_case(|name, case, loaded| {
        let tokenizer = tokenizer(&loaded);
        let ids: Vec<_> = case.texts.iter().map(|text| tokenizer.encode(text).unwrap()).collect();
        assert_eq!(tokenizer.max_length(), case.max_length, "{name}");
        assert_eq!(ids, case.ids, "{name}");
    });
}

#[test]
fn an_embedding_alone_is_the_oracles() {
    for_each_case(|name, case, mut loaded| {
        for (ids, expected) in case.ids.iter().zip(&case.embeddings) {
            let got = embed(&mut loaded.instances[0], &[ids]);
            let off = difference(&got[0], expected);
            assert!(off < TOLERANCE, "{name}, {} tokens: off by {off}", ids.len());
        }
    });
}

#[test]
fn embeddings_in_company_are_the_oracles_in_the_callers_order() {
    for (name, case) in &cases() {
        // Two threads share the sequences out between them.
        let mut loaded = encoder::load(&EncoderOptions { threads: 2, ..options(&case.folder) }).unwrap();
        // Six times over, so that sequences of equal length meet and a batch needs several packs.
        let ids: Vec<&[u32]> = (0..6).flat_map(|_| case.ids.iter().map(Vec::as_slice)).collect();
        let got = embed(&mut loaded.instances[0], &ids);
        for (got, expected) in got.iter().zip(case.embeddings.iter().cycle()) {
            let off = difference(got, expected);
            assert!(off < TOLERANCE, "{name}: off by {off}");
        }
    }
}

#[test]
fn instances_share_weights_and_run_at_once() {
    let case = &cases()["bert_mean"];
    let loaded = encoder::load(&EncoderOptions {
        instances: 3,
        threads: 1,
        warmup: 1,
        warmup_batch_size: 4,
        ..options(&case.folder)
    })
    .unwrap();

    std::thread::scope(|scope| {
        for mut model in loaded.instances {
            scope.spawn(move || {
                let ids: Vec<&[u32]> = case.ids.iter().map(Vec::as_slice).collect();
                for _ in 0..20 {
                    for (got, expected) in embed(&mut model, &ids).iter().zip(&case.embeddings) {
                        assert!(difference(got, expected) < TOLERANCE);
                    }
                }
            });
        }
    });
}

#[test]
fn max_length_replaces_the_checkpoints_limit() {
    let case = &cases()["bert_plain"];

    let loaded = encoder::load(&EncoderOptions { max_length: Some(5), ..options(&case.folder) }).unwrap();

    assert_eq!(tokenizer(&loaded).encode(&case.texts[0]).unwrap().len(), 5);
}

#[test]
fn a_limit_that_does_not_fit_the_model_is_refused() {
    let case = &cases()["bert_plain"];
    for max_length in [0, 2, 97] {
        let refused = error(&EncoderOptions { max_length: Some(max_length), ..options(&case.folder) });

        assert_eq!(
            refused.to_string(),
            format!("max_length {max_length} does not fit the model, which takes 3 to 96 tokens")
        );
    }
}

#[test]
fn ids_that_the_model_cannot_run_are_refused() {
    let loaded = encoder::load(&options(&cases()["bert_plain"].folder)).unwrap();
    let tokenizer = tokenizer(&loaded);
    let vocabulary = u32::try_from(tokenizer.vocabulary_size()).unwrap();

    assert_eq!(tokenizer.check_ids(&[0, vocabulary - 1]), Ok(()));
    assert_eq!(tokenizer.check_ids(&[]), Err(TokenError::Empty));
    assert_eq!(tokenizer.check_ids(&[1; 97]), Err(TokenError::TooLong { got: 97, max_length: 96 }));
    assert_eq!(
        tokenizer.check_ids(&[1, vocabulary]),
        Err(TokenError::OutOfVocabulary { id: vocabulary, position: 1, vocabulary: 300 })
    );
}

#[test]
fn an_input_that_cannot_run_fails_alone() {
    let case = &cases()["bert_plain"];
    let mut loaded = encoder::load(&options(&case.folder)).unwrap();
    let inputs = [
        Arc::new(Input::Tokens(vec![1_000_000])),
        Arc::new(Input::Tokens(case.ids[0].clone())),
        Arc::new(Input::Tensors(Vec::new())),
    ];

    let outputs = loaded.instances[0].run(&inputs).unwrap();

    let answered: Vec<bool> = outputs.iter().map(Result::is_ok).collect();
    assert_eq!(answered, [false, true, false]);
}

#[track_caller]
fn assert_refused(case: &Case, file: &str, content: &[u8], words: &[&str]) {
    let folder = altered(&case.folder, file, |_| content.to_vec());
    let message = error(&options(folder.path())).to_string();
    for word in words {
        assert!(message.contains(word), "{message:?} does not name {word:?}");
    }
}

#[test]
fn damaged_files_are_named() {
    let case = &cases()["bert_plain"];
    let weights = fs::read(case.folder.join("model.safetensors")).unwrap();

    assert_refused(case, "model.safetensors", &weights[..weights.len() / 2], &["model.safetensors"]);
    assert_refused(case, "model.safetensors", &[0xff; 64], &["model.safetensors"]);
    assert_refused(case, "model.safetensors", &[], &["model.safetensors"]);
    assert_refused(case, "tokenizer.json", b"{}", &["tokenizer.json"]);
    assert_refused(case, "config.json", b"{\"model_type\":\"bert\"}", &["config.json", "vocab_size"]);
    assert_refused(case, "modules.json", b"[]", &["modules.json", "Pooling"]);
}

#[test]
fn missing_files_are_named() {
    let case = &cases()["bert_plain"];
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let folder = altered(&case.folder, "config.json", <[u8]>::to_vec);
        fs::remove_file(folder.path().join(name)).unwrap();

        assert!(error(&options(folder.path())).to_string().contains(name), "{name}");
    }
}

#[test]
fn weights_that_do_not_fit_config_json_are_named() {
    let case = &cases()["bert_plain"];
    let config = fs::read_to_string(case.folder.join("config.json")).unwrap();
    let with = |from: &str, to: &str| {
        assert!(config.contains(from));
        config.replace(from, to).into_bytes()
    };

    let layers = with("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
    let missing = "encoder.layer.3.attention.self.query.weight";
    assert_refused(case, "config.json", &layers, &["no weight", missing, "model.safetensors"]);

    let wide = with("\"intermediate_size\": 112", "\"intermediate_size\": 113");
    let wrong = "encoder.layer.0.intermediate.dense.weight";
    assert_refused(case, "config.json", &wide, &[wrong, "[113, 48]", "[112, 48]"]);
}

#[test]
fn what_is_not_implemented_is_refused() {
    let case = &cases()["bert_plain"];
    let config = fs::read_to_string(case.folder.join("config.json")).unwrap();
    for (from, to) in [
        ("\"model_type\": \"bert\"", "\"model_type\": \"t5\""),
        ("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"silu\""),
        ("\"is_decoder\": false", "\"is_decoder\": true"),
    ] {
        assert!(config.contains(from), "{from}");
        assert_refused(case, "config.json", config.replace(from, to).as_bytes(), &["not supported"]);
    }
    let modules = br#"[{"path":"","type":"a.Transformer"},{"path":"1","type":"a.Dense"}]"#;
    assert_refused(case, "modules.json", modules, &["Dense", "not supported"]);
}
