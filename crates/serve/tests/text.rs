//! Texts of language models against transformers, and what streaming promises for any tokens at all.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod oracles;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use trustformers_serve::backend::checkpoint::CheckpointError;
use trustformers_serve::text::{
    ChatTemplate, Detokenizer, Released, RenderOptions, StopStrings, TextError, Tokenizer,
};

#[derive(Deserialize)]
struct Case {
    folder: PathBuf,
    texts: Vec<Text>,
    decoded: Vec<Decoded>,
    prompts: Vec<Prompt>,
    size: usize,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    plain: Vec<u32>,
    special: Vec<u32>,
}

#[derive(Deserialize)]
struct Decoded {
    ids: Vec<u32>,
    skip_special: bool,
    text: String,
}

#[derive(Deserialize)]
struct Prompt {
    messages: Vec<Value>,
    options: Map<String, Value>,
    prompt: Option<String>,
    refused: Option<String>,
    not_continued: Option<String>,
}

fn cases() -> BTreeMap<String, Case> {
    let cases: BTreeMap<_, _> = oracles::cases("text");
    assert_eq!(cases.len(), 5);
    cases
}

fn tokenizers() -> Vec<(String, Arc<Tokenizer>)> {
    let load = |(name, case): (String, Case)| (name, Arc::new(Tokenizer::load(&case.folder).unwrap()));
    cases().into_iter().map(load).collect()
}

#[test]
fn texts_become_the_tokens_that_transformers_makes() {
    for (name, case) in cases() {
        let tokenizer = Tokenizer::load(&case.folder).unwrap();
        for text in &case.texts {
            assert_eq!(tokenizer.encode(&text.text, false).unwrap(), text.plain, "{name}: {:?}", text.text);
            assert_eq!(tokenizer.encode(&text.text, true).unwrap(), text.special, "{name}: {:?}", text.text);
        }
    }
}

#[test]
fn no_text_is_longer_than_its_tokens_can_be() {
    let mut bounded = 0;
    for (name, case) in cases() {
        let tokenizer = Tokenizer::load(&case.folder).unwrap();
        let most = |tokens: &[u32]| tokenizer.most_bytes(u32::try_from(tokens.len()).unwrap());
        bounded += u32::from(most(&[1]).is_some());
        for Text { text, plain, .. } in &case.texts {
            assert!(most(plain).is_none_or(|most| text.len() <= most), "{name}: {text:?}");
        }
    }
    // Where what is not known is one token, however long it is, nothing bounds a text.
    assert!((1..5).contains(&bounded), "{bounded}");
}

#[test]
fn tokens_become_the_texts_that_transformers_makes() {
    for (name, case) in cases() {
        let tokenizer = Tokenizer::load(&case.folder).unwrap();
        assert_eq!(tokenizer.highest_id() as usize, case.size - 1);
        for one in &case.decoded {
            let text = tokenizer.decode(&one.ids, one.skip_special).unwrap();
            assert_eq!(text, one.text, "{name}: {:?}", one.ids);
        }
    }
}

#[test]
fn conversations_become_the_prompts_that_transformers_writes() {
    for (name, case) in cases() {
        let tokenizer = Tokenizer::load(&case.folder).unwrap();
        let template = tokenizer.template().unwrap();
        let mut outcomes = [0; 3];
        for one in case.prompts {
            let mut variables = one.options.clone();
            let flag = |variables: &mut Map<String, Value>, name: &str| {
                variables.remove(name).is_some_and(|value| value.as_bool().unwrap())
            };
            let options = RenderOptions {
                add_generation_prompt: flag(&mut variables, "add_generation_prompt"),
                continue_final_message: flag(&mut variables, "continue_final_message"),
                variables,
                now: Some(SystemTime::UNIX_EPOCH),
            };
            let rendered = template.render(&one.messages, &options);
            let about = format!("{name}: {:?} {:?}", one.messages, one.options);
            match (one.prompt, one.refused, one.not_continued) {
                (Some(prompt), ..) => {
                    assert_eq!(rendered.unwrap(), prompt, "{about}");
                    outcomes[0] += 1;
                }
                (_, Some(message), _) => {
                    match rendered.unwrap_err() {
                        TextError::Refused(said) => assert_eq!(said, message, "{about}"),
                        // What the template's author did not foresee has other words in another engine.
                        TextError::Template(_) => {}
                        other => panic!("{about}: {other}"),
                    }
                    outcomes[1] += 1;
                }
                (.., message) => {
                    message.unwrap();
                    assert!(matches!(rendered.unwrap_err(), TextError::NotContinued(_)), "{about}");
                    outcomes[2] += 1;
                }
            }
        }
        assert!(outcomes[0] > 10, "{name}: {outcomes:?}");
    }
}

/// What the tokens add to the prompt, as it streams.
fn streamed(tokenizer: &Arc<Tokenizer>, prompt: &[u32], ids: &[u32], skip: bool) -> Vec<String> {
    let mut stream = Detokenizer::new(Arc::clone(tokenizer), prompt, skip);
    let mut texts: Vec<_> = ids.iter().map(|&id| stream.push(id).unwrap().to_owned()).collect();
    texts.push(stream.finish().to_owned());
    texts
}

fn bytes(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let byte = |byte: u8| (0..=tokenizer.highest_id()).find(|&id| tokenizer.token_bytes(id) == [byte]);
    text.bytes().map(|each| byte(each).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_is_streamed_adds_up_to_the_whole_text(
        which in 0..5_usize,
        prompt in proptest::collection::vec(any::<u32>(), 0..8),
        ids in proptest::collection::vec(any::<u32>(), 0..40),
        skip in any::<bool>(),
    ) {
        static ALL: std::sync::OnceLock<Vec<(String, Arc<Tokenizer>)>> = std::sync::OnceLock::new();
        let (_, tokenizer) = &ALL.get_or_init(tokenizers)[which];
        let any = |ids: &[u32]| ids.iter().map(|id| id % (tokenizer.highest_id() + 1)).collect::<Vec<_>>();
        let (prompt, ids) = (any(&prompt), any(&ids));
        let all = tokenizer.decode(&[&prompt[..], &ids].concat(), skip).unwrap();
        // A prompt may end within a character, which then belongs to what follows.
        let before = tokenizer.decode(&prompt, skip).unwrap();
        let added = streamed(tokenizer, &prompt, &ids, skip).concat();
        let own = all.strip_prefix(&before) == Some(&added);
        let unfinished = before.strip_suffix('\u{fffd}').and_then(|before| all.strip_prefix(before));
        prop_assert!(own || unfinished == Some(&added), "{before:?} + {added:?} is not {all:?}");
    }

    #[test]
    fn a_stop_string_is_found_wherever_the_text_is_cut(
        stops in proptest::collection::vec("[abé]{0,4}", 0..5),
        text in "[abcé]{0,30}",
        cuts in proptest::collection::vec(0..30_usize, 0..10),
        include in any::<bool>(),
    ) {
        let mut expected = (text.clone(), None);
        'search: for end in 0..=text.len() {
            for start in 0..end {
                let found = |stop: &String| text.get(start..end) == Some(stop);
                if let Some(stop) = stops.iter().position(found) {
                    expected = (text[..if include { end } else { start }].to_owned(), Some(stop));
                    break 'search;
                }
            }
        }
        let mut watch = StopStrings::new(stops.clone().into(), include);
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| text.floor_char_boundary(cut)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let (mut seen, mut stopped) = (String::new(), None);
        for pair in cuts.windows(2) {
            let released = watch.push(&text[pair[0]..pair[1]]);
            seen += &released.text;
            stopped = stopped.or(released.stopped);
            // Nothing is held back that is no beginning of a stop string.
            if stopped.is_none() {
                let held = &text[seen.len()..pair[1]];
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)), "{held:?}");
            }
        }
        seen += &watch.finish();
        prop_assert_eq!((seen, stopped), expected);
    }
}

#[test]
fn a_character_is_held_back_until_its_last_byte() {
    for (name, tokenizer) in tokenizers().iter().filter(|(name, _)| name.starts_with("byte_")) {
        let start = tokenizer.encode("The", false).unwrap();
        let streamed = streamed(tokenizer, &start, &bytes(tokenizer, "a🦊é"), true);
        assert_eq!(streamed, ["a", "", "", "", "🦊", "", "é", ""], "{name}");
    }
}

#[test]
fn bytes_that_are_no_character_come_as_soon_as_that_is_certain() {
    for (name, tokenizer) in tokenizers().iter().filter(|(name, _)| name.starts_with("byte_")) {
        let start = tokenizer.encode("The", false).unwrap();
        let all = bytes(tokenizer, "🦊東");
        let wrong = [all[0], all[1], all[0], all[3], all[3], all[4], all[5]];
        let streamed = streamed(tokenizer, &start, &wrong, true);
        let replaced = "\u{fffd}";
        assert_eq!(streamed, ["", "", replaced, "\u{fffd}\u{fffd}", replaced, "", "", replaced], "{name}");
    }
}

#[test]
fn a_prompt_that_ends_within_a_character_is_continued_by_all_of_it() {
    for (name, tokenizer) in tokenizers().iter().filter(|(name, _)| name.starts_with("byte_")) {
        let fox = bytes(tokenizer, "x🦊");
        assert_eq!(streamed(tokenizer, &fox[..3], &fox[3..], true), ["", "🦊", ""], "{name}");
    }
}

#[test]
fn a_space_is_lost_at_the_beginning_of_a_text_only() {
    let tokenizers: BTreeMap<_, _> = tokenizers().into_iter().collect();
    for name in ["byte_fallback", "metaspace"] {
        let tokenizer = &tokenizers[name];
        let the = tokenizer.encode("The", false).unwrap();
        assert_eq!(streamed(tokenizer, &[], &the, true).concat(), "The", "{name}");
        assert_eq!(streamed(tokenizer, &the, &the, true).concat(), " The", "{name}");
        // A mark that is left out is no text before.
        let mark = tokenizer.encode("</s>", false).unwrap();
        let mark = &mark[mark.len() - 1..];
        assert_eq!(streamed(tokenizer, mark, &the, true).concat(), "The", "{name}");
        assert_eq!(streamed(tokenizer, mark, &the, false).concat(), " The", "{name}");
    }
}

#[test]
fn special_tokens_are_told_apart_and_left_out_on_demand() {
    for (name, tokenizer) in tokenizers() {
        let ids: Vec<_> = (0..=tokenizer.highest_id()).filter(|&id| tokenizer.is_special(id)).collect();
        let names: Vec<_> = ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect();
        assert_eq!(names, ["<unk>", "<s>", "</s>", "<|end|>"], "{name}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "", "{name}");
        assert!(tokenizer.decode(&ids, false).unwrap().contains("<|end|>"), "{name}");
    }
}

#[test]
fn an_id_beyond_the_tokens_is_an_error_where_it_is_asked_for_and_no_text_where_it_was_drawn() {
    let (_, tokenizer) = tokenizers().remove(0);
    let id = tokenizer.highest_id() + 1;
    let unknown = TextError::UnknownToken { id, highest: id - 1 };
    assert_eq!(
        unknown.to_string(),
        format!("token {id} is not in the vocabulary; the largest id is {}", id - 1)
    );
    assert_eq!(tokenizer.decode(&[id], false), Err(unknown));
    let mut stream = Detokenizer::new(Arc::clone(&tokenizer), &[id], false);
    assert_eq!(stream.push(id), Ok(""));
    assert_eq!(stream.push(4), Ok("The"));
    assert!(tokenizer.token_bytes(id).is_empty());
}

#[test]
fn a_thousand_stop_strings_cost_no_more_than_a_few() {
    let stops: Arc<[String]> = (0..1000).map(|index| format!("{}{index:03}", "stop ".repeat(200))).collect();
    let started = std::time::Instant::now();
    let mut watch = StopStrings::new(stops, false);
    let text = "stop ".repeat(100_000);
    for part in text.as_bytes().chunks(7) {
        assert_eq!(watch.push(std::str::from_utf8(part).unwrap()).stopped, None);
    }
    let found = watch.push("999 and more");
    assert_eq!(found.stopped, Some(999));
    assert_eq!(watch.push("more"), Released::default());
    // A search for each of them would take minutes.
    assert!(started.elapsed() < Duration::from_secs(20));
}

/// A folder with a template in tokenizer_config.json.
fn configured(config: &Value) -> Result<Option<ChatTemplate>, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    ChatTemplate::read(folder.path())
}

fn template(source: &str) -> ChatTemplate {
    configured(&json!({ "chat_template": source })).unwrap().unwrap()
}

fn render(template: &ChatTemplate) -> Result<String, TextError> {
    template.render(&[json!({ "role": "user", "content": "Hello" })], &RenderOptions::default())
}

#[test]
fn templates_are_found_by_precedence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    assert!(ChatTemplate::read(path).unwrap().is_none());
    fs::write(path.join("tokenizer_config.json"), r#"{"chat_template": null}"#).unwrap();
    assert!(ChatTemplate::read(path).unwrap().is_none());
    fs::write(path.join("tokenizer_config.json"), r#"{"chat_template": "config"}"#).unwrap();
    assert_eq!(render(&ChatTemplate::read(path).unwrap().unwrap()).unwrap(), "config");
    fs::write(path.join("chat_template.jinja"), "file\n").unwrap();
    assert_eq!(render(&ChatTemplate::read(path).unwrap().unwrap()).unwrap(), "file");
    let named =
        json!([{ "name": "tool_use", "template": "tools" }, { "name": "default", "template": "plain" }]);
    let found = configured(&json!({ "chat_template": named })).unwrap().unwrap();
    assert_eq!((render(&found).unwrap().as_str(), found.source()), ("plain", "plain"));
    let only = json!([{ "name": "rag", "template": "only" }]);
    assert_eq!(render(&configured(&json!({ "chat_template": only })).unwrap().unwrap()).unwrap(), "only");
}

#[test]
fn a_wrong_template_fails_the_load_and_names_its_line() {
    let message = |source: &str| configured(&json!({ "chat_template": source })).unwrap_err().to_string();
    let broken = message("fine\n{% for x in %}");
    assert!(broken.contains("tokenizer_config.json is not valid: line 2 of the chat template"), "{broken}");
    let filter = message("{{ messages[0].content | no_such_filter }}");
    assert!(filter.contains("line 1 of the chat template: unknown filter"), "{filter}");
    let choices = json!([{ "name": "a", "template": "" }, { "name": "b", "template": "" }]);
    let choice = configured(&json!({ "chat_template": choices })).unwrap_err().to_string();
    assert!(choice.contains("none of its chat templates is called \"default\": a, b"), "{choice}");
    let number = configured(&json!({ "chat_template": 7 })).unwrap_err().to_string();
    assert!(number.contains("chat_template is neither a text nor a list"), "{number}");
    let token = configured(&json!({ "chat_template": "", "bos_token": 7 })).unwrap_err().to_string();
    assert!(token.contains("bos_token is neither a text nor an object"), "{token}");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("chat_template.jinja"), "{{ 1 +").unwrap();
    let file = ChatTemplate::read(folder.path()).unwrap_err().to_string();
    assert!(file.contains("chat_template.jinja is not valid: line 1 of the chat template"), "{file}");
}

#[test]
fn a_template_cannot_hang_the_server() {
    let lasting = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let error = render(&template(lasting)).unwrap_err();
    assert!(matches!(error, TextError::TemplateLimit { unit: "steps", .. }), "{error}");
    let deep = "{% macro again(x) %}{{ again(x) }}{% endmacro %}{{ again(1) }}";
    assert!(matches!(render(&template(deep)).unwrap_err(), TextError::Template(_)));
    let long = "{% for a in range(9999) %}{{ 'x' * 100000 }}{% endfor %}";
    let error = render(&template(long)).unwrap_err();
    assert!(matches!(error, TextError::TemplateLimit { unit: "bytes", .. }), "{error}");
}

#[test]
fn a_template_sees_the_time_it_is_given_and_no_other() {
    let source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}never{% endif %}";
    let template = template(source);
    assert_eq!(render(&template).unwrap(), "never");
    let now = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(951_782_400));
    let options = RenderOptions { now, ..RenderOptions::default() };
    assert_eq!(template.render(&[], &options).unwrap(), "29 Feb 2000");
}

#[test]
fn variables_do_not_replace_the_conversation() {
    let template = template("{{ messages | length }} {{ tools is none }} {{ mine }}");
    let Value::Object(variables) = json!({ "messages": [], "tools": 1, "mine": "yes" }) else { panic!() };
    let options = RenderOptions { variables, ..RenderOptions::default() };
    assert_eq!(template.render(&[json!({})], &options).unwrap(), "1 True yes");
}

#[test]
fn a_folder_without_a_usable_tokenizer_does_not_load() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let error = |path: &Path| Tokenizer::load(path).unwrap_err().to_string();
    assert!(error(path).starts_with("cannot read ") && error(path).contains("tokenizer.json"));
    fs::write(path.join("tokenizer.json"), "{}").unwrap();
    assert!(error(path).contains("tokenizer.json is not valid"));
    let model = json!({ "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" });
    let mut file = json!({ "version": "1.0", "added_tokens": [], "model": model });
    file["decoder"] = json!({ "type": "BPEDecoder", "suffix": "</w>" });
    fs::write(path.join("tokenizer.json"), file.to_string()).unwrap();
    assert!(
        error(path).contains("asks for the decoder BPEDecoder, which is not supported"),
        "{}",
        error(path)
    );
    file["decoder"] = Value::Null;
    file["model"]["vocab"]["b"] = json!(4_000_000_000_u32);
    fs::write(path.join("tokenizer.json"), file.to_string()).unwrap();
    assert!(error(path).contains("it has a token with id 4000000000"), "{}", error(path));
}
