//! What a client of `/v1/responses` asks.

use serde_json::{Map, Value, json};

use super::chat_request::Conversation;
use super::fields::{Fields, shown};
use super::options::{Options, max_tokens};
use crate::http::error::ApiError;

/// Most pairs of `metadata`, and the most characters of a key and of a value, as OpenAI has it.
const MOST_METADATA: usize = 16;
const LONGEST_KEY: usize = 64;
const LONGEST_VALUE: usize = 512;

/// A request for a response.
#[derive(Debug)]
pub(super) struct ResponseCall {
    pub(super) model: Option<String>,
    pub(super) input: Input,
    /// What the model is told before the input.
    pub(super) instructions: Option<String>,
    /// Sent back as it came.
    pub(super) metadata: Map<String, Value>,
    /// More variables for the chat template.
    pub(super) variables: Map<String, Value>,
    pub(super) options: Options,
}

/// What is responded to.
#[derive(Debug, PartialEq)]
pub(super) enum Input {
    Text(String),
    /// Objects with `role` and `content`, both texts.
    Messages(Vec<Value>),
}

impl ResponseCall {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        refuse_names_of_other_routes(&fields)?;
        refuse_others(&mut fields)?;
        let most = max_tokens(&mut fields, "max_output_tokens")?;
        if most == Some(0) {
            let message = "\"max_output_tokens\" is 0; at least 1 is needed";
            return Err(ApiError::of_field("max_output_tokens", message));
        }
        let mut call = Self {
            model: fields.optional("model")?,
            input: Input::read(fields.value("input"))?,
            instructions: fields.optional("instructions")?,
            metadata: metadata(&mut fields)?,
            variables: fields.or("chat_template_kwargs", Map::new())?,
            options: Options::read(&mut fields)?,
        };
        call.options.max_tokens = most;
        fields.finish()?;
        Ok(call)
    }
}

/// Refuses what other routes for texts take and this one calls otherwise, or has not.
fn refuse_names_of_other_routes(fields: &Fields) -> Result<(), ApiError> {
    for (name, instead) in [
        ("max_tokens", "; it is called \"max_output_tokens\""),
        ("max_completion_tokens", "; it is called \"max_output_tokens\""),
        ("messages", "; they are called \"input\""),
        ("response_format", "; it is called \"text\""),
        ("n", "; a response is one text"),
        ("best_of", "; a response is one text"),
    ] {
        if fields.has(name) {
            return Err(ApiError::malformed(format!("unknown field \"{name}\"{instead}")));
        }
    }
    Ok(())
}

/// What a field may be besides absent.
type Allowed = fn(&Value) -> bool;

/// Refuses what would change the answer and cannot be done, in words of its own.
fn refuse_others(fields: &mut Fields) -> Result<(), ApiError> {
    let refused: [(&'static str, Allowed, &str); 16] = [
        ("stream", is_false, "responses are not streamed: leave \"stream\" out, or ask /v1/chat/completions"),
        ("stream_options", never, "responses are not streamed"),
        ("background", is_false, "responses are made while the client waits: \"background\" has to be false"),
        ("store", is_false, "responses are not stored: \"store\" has to be false"),
        ("previous_response_id", never, "responses are not stored: send the whole conversation as \"input\""),
        ("conversation", never, "conversations are not stored: send the whole of it as \"input\""),
        ("prompt", never, "prompt templates are not supported: send the text as \"input\""),
        ("tools", is_empty, "tools are not supported"),
        ("tool_choice", |choice| choice == "none" || choice == "auto", "tools are not supported"),
        ("include", is_empty, "\"include\" has to be empty: nothing more can be told of a response"),
        ("top_logprobs", |top| top == 0, "log-probabilities are told by /v1/chat/completions"),
        ("reasoning", is_plain, "\"reasoning\" is not supported"),
        (
            "text",
            is_plain_text,
            "\"text\" has to be {\"format\": {\"type\": \"text\"}}: no other is supported",
        ),
        (
            "truncation",
            |how| how == "disabled",
            "\"truncation\" has to be \"disabled\": shorten the input yourself",
        ),
        ("context_management", is_empty, "\"context_management\" is not supported"),
        ("moderation", never, "\"moderation\" is not supported"),
    ];
    for (name, allowed, message) in refused {
        if fields.value(name).is_some_and(|value| !allowed(&value)) {
            return Err(ApiError::of_field(name, message));
        }
    }
    // These say nothing about the answer where no tool is called and all prompts share what they have in common.
    fields.ignore(&["parallel_tool_calls", "max_tool_calls", "prompt_cache_key", "prompt_cache_retention"]);
    fields.ignore(&["safety_identifier"]);
    Ok(())
}

fn never(_: &Value) -> bool {
    false
}

fn is_false(value: &Value) -> bool {
    *value == json!(false)
}

fn is_empty(value: &Value) -> bool {
    *value == json!([])
}

/// Whether every member is null.
fn is_plain(value: &Value) -> bool {
    value.as_object().is_some_and(|members| members.values().all(Value::is_null))
}

fn is_plain_text(value: &Value) -> bool {
    let member = |(name, value): (&String, &Value)| match name.as_str() {
        _ if value.is_null() => true,
        "format" => *value == json!({ "type": "text" }),
        "verbosity" => value == "medium",
        _ => false,
    };
    value.as_object().is_some_and(|members| members.iter().all(member))
}

fn metadata(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let metadata: Map<String, Value> = fields.or("metadata", Map::new())?;
    let wrong = |message: String| Err(ApiError::of_field("metadata", message));
    if metadata.len() > MOST_METADATA {
        let count = metadata.len();
        return wrong(format!("\"metadata\" has {count} pairs; at most {MOST_METADATA} will do"));
    }
    for (key, value) in &metadata {
        let fits = value.as_str().is_some_and(|value| value.chars().count() <= LONGEST_VALUE);
        if !fits || key.chars().count() > LONGEST_KEY {
            let pair = shown(&json!({ key: value }));
            return wrong(format!(
                "\"metadata\" has {pair}; keys are texts of at most {LONGEST_KEY} characters, values of \
                 {LONGEST_VALUE}"
            ));
        }
    }
    Ok(metadata)
}

fn of_input(message: impl Into<String>) -> ApiError {
    ApiError::of_field("input", message)
}

impl Input {
    fn read(value: Option<Value>) -> Result<Self, ApiError> {
        match value {
            None => Err(of_input("\"input\" is missing")),
            Some(Value::String(text)) => Ok(Self::Text(text)),
            Some(Value::Array(list)) if list.is_empty() => Err(of_input("\"input\" is empty")),
            Some(Value::Array(list)) => {
                let messages = list.into_iter().enumerate().map(|(at, item)| message(at, item));
                messages.collect::<Result<_, _>>().map(Self::Messages)
            }
            Some(_) => Err(of_input("\"input\" has to be a text or a list of messages")),
        }
    }

    /// The conversation that it is, begun by the instructions.
    pub(super) fn into_conversation(
        self,
        instructions: Option<&str>,
        variables: Map<String, Value>,
    ) -> Conversation {
        let instructions = instructions.map(|text| json!({ "role": "system", "content": text }));
        let said = match self {
            Self::Text(text) => vec![json!({ "role": "user", "content": text })],
            Self::Messages(messages) => messages,
        };
        Conversation {
            messages: instructions.into_iter().chain(said).collect(),
            add_generation_prompt: true,
            continue_final_message: false,
            variables,
        }
    }

    /// The prompt that it is for a model without a chat template, which would not know who says what.
    pub(super) fn into_prompt(self, instructions: Option<&str>, model: &str) -> Result<String, ApiError> {
        let none = format!("model \"{model}\" has no chat template");
        if instructions.is_some() {
            let message = format!("{none}, so it takes no instructions: write them into \"input\"");
            return Err(ApiError::of_field("instructions", message));
        }
        match self {
            Self::Text(text) => Ok(text),
            Self::Messages(messages) => match messages.as_slice() {
                [only] if only["role"] == "user" => {
                    Ok(only["content"].as_str().unwrap_or_default().to_owned())
                }
                _ => Err(of_input(format!("{none}: \"input\" has to be a text or one message of a user"))),
            },
        }
    }
}

/// An item of the input as chat templates expect it.
fn message(at: usize, item: Value) -> Result<Value, ApiError> {
    let wrong = |what: &str| of_input(format!("item {at} of \"input\" {what}"));
    let Value::Object(mut fields) = item else { return Err(wrong("is not an object")) };
    match fields.remove("type") {
        None | Some(Value::Null) => {}
        Some(kind) if kind == "message" => {}
        Some(kind) => return Err(wrong(&format!("is of type {kind}; only \"message\" is supported"))),
    }
    let role = match fields.remove("role") {
        // A developer's message is a system message by its newer name.
        Some(Value::String(role)) if role == "developer" || role == "system" => "system",
        Some(Value::String(role)) if role == "user" => "user",
        Some(Value::String(role)) if role == "assistant" => "assistant",
        Some(role) => {
            return Err(wrong(&format!(
                "has the role {role}, not one of system, developer, user, assistant"
            )));
        }
        None => return Err(wrong("has no role")),
    };
    let content = match fields.remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts: Result<Vec<String>, _> =
                parts.into_iter().map(|part| text_of(part).map_err(|what| wrong(&what))).collect();
            texts?.join("\n")
        }
        Some(_) => return Err(wrong("has content that is neither a text nor a list of parts")),
        None => return Err(wrong("has no content")),
    };
    // What responses carry and clients send back.
    let carried = ["id", "status", "phase"];
    match fields.iter().find(|(name, value)| !value.is_null() && !carried.contains(&name.as_str())) {
        Some((other, _)) => Err(wrong(&format!("has {}, which is not supported", shown(&json!(other))))),
        None => Ok(json!({ "role": role, "content": content })),
    }
}

fn text_of(mut part: Value) -> Result<String, String> {
    match part["type"].as_str() {
        Some("input_text" | "output_text") => match part["text"].take() {
            Value::String(text) => Ok(text),
            _ => Err("has a part without text".to_owned()),
        },
        Some(other) => {
            let other = shown(&json!(other));
            Err(format!("has a part of type {other}; \"input_text\" and \"output_text\" are supported"))
        }
        None => Err("has a part without a type".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: Value) -> Result<ResponseCall, ApiError> {
        let mut body = json!({ "input": "Hello" });
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        ResponseCall::parse(body.to_string().as_bytes())
    }

    fn refused(change: Value) -> (Option<&'static str>, String) {
        let error = parse(change).unwrap_err();
        (error.param, error.message)
    }

    fn refused_input(input: Value) -> String {
        let (param, message) = refused(json!({ "input": input }));
        assert_eq!(param, Some("input"));
        message
    }

    #[test]
    fn a_text_is_what_a_user_says_after_the_instructions() {
        let call = parse(json!({ "instructions": "Be brief" })).unwrap();
        let conversation = call.input.into_conversation(call.instructions.as_deref(), Map::new());
        let expected = [
            json!({ "role": "system", "content": "Be brief" }),
            json!({ "role": "user", "content": "Hello" }),
        ];
        assert_eq!(conversation.messages, expected);
        assert!(conversation.add_generation_prompt);
    }

    #[test]
    fn items_are_messages_with_texts_or_parts_of_text() {
        let output = json!({ "type": "output_text", "text": "Yes?", "annotations": [], "logprobs": null });
        let input = json!([
            { "role": "developer", "content": "Be brief" },
            { "type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [output] },
            { "role": "user", "content": [{ "type": "input_text", "text": "one" }, { "type": "input_text", "text": "two" }] },
        ]);
        let expected = Input::Messages(vec![
            json!({ "role": "system", "content": "Be brief" }),
            json!({ "role": "assistant", "content": "Yes?" }),
            json!({ "role": "user", "content": "one\ntwo" }),
        ]);
        assert_eq!(parse(json!({ "input": input })).unwrap().input, expected);
    }

    #[test]
    fn an_input_that_is_none_is_refused_by_its_place() {
        assert_eq!(refused_input(json!(null)), "\"input\" is missing");
        assert_eq!(refused_input(json!([])), "\"input\" is empty");
        assert_eq!(refused_input(json!(3)), "\"input\" has to be a text or a list of messages");
        assert_eq!(refused_input(json!(["Hello"])), "item 0 of \"input\" is not an object");
        assert_eq!(refused_input(json!([{ "content": "a" }])), "item 0 of \"input\" has no role");
        assert_eq!(refused_input(json!([{ "role": "user" }])), "item 0 of \"input\" has no content");
        let robot = json!([{ "role": "user", "content": "a" }, { "role": "robot", "content": "b" }]);
        assert!(refused_input(robot).starts_with("item 1 of \"input\" has the role \"robot\""));
        let call = json!([{ "type": "function_call", "name": "f" }]);
        let message = "item 0 of \"input\" is of type \"function_call\"; only \"message\" is supported";
        assert_eq!(refused_input(call), message);
        let image = json!([{ "role": "user", "content": [{ "type": "input_image" }] }]);
        assert!(refused_input(image).contains("a part of type \"input_image\""));
        let named = json!([{ "role": "user", "content": "a", "name": "Ada" }]);
        assert_eq!(refused_input(named), "item 0 of \"input\" has \"name\", which is not supported");
    }

    #[test]
    fn a_model_without_a_template_takes_a_text_or_one_message() {
        let prompt = |input: Input, instructions| {
            input.into_prompt(instructions, "plain").map_err(|error| (error.param, error.message))
        };
        assert_eq!(prompt(Input::Text("Once".to_owned()), None), Ok("Once".to_owned()));
        let user = json!({ "role": "user", "content": "Once" });
        assert_eq!(prompt(Input::Messages(vec![user.clone()]), None), Ok("Once".to_owned()));
        let several = prompt(Input::Messages(vec![user.clone(), user]), None).unwrap_err();
        assert_eq!(several.0, Some("input"));
        let told = prompt(Input::Text("Once".to_owned()), Some("Be brief")).unwrap_err();
        assert_eq!(told.0, Some("instructions"));
        assert!(told.1.contains("\"plain\" has no chat template"), "{}", told.1);
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_not_passed_over() {
        for (field, value) in [
            ("stream", json!(true)),
            ("stream_options", json!({ "include_obfuscation": false })),
            ("background", json!(true)),
            ("store", json!(true)),
            ("previous_response_id", json!("resp_1")),
            ("conversation", json!("conv_1")),
            ("prompt", json!({ "id": "pmpt_1" })),
            ("tools", json!([{ "type": "web_search" }])),
            ("tool_choice", json!("required")),
            ("include", json!(["message.output_text.logprobs"])),
            ("top_logprobs", json!(2)),
            ("reasoning", json!({ "effort": "high" })),
            ("text", json!({ "format": { "type": "json_object" } })),
            ("text", json!({ "verbosity": "low" })),
            ("truncation", json!("auto")),
            ("context_management", json!([{ "type": "compaction" }])),
            ("moderation", json!({ "model": "m" })),
            ("max_output_tokens", json!(0)),
            ("max_output_tokens", json!(-1)),
        ] {
            assert_eq!(refused(json!({ field: value })).0, Some(field), "{field}");
        }
        let nothing = json!({
            "stream": false, "background": false, "store": false, "tools": [], "tool_choice": "auto",
            "include": [], "top_logprobs": 0, "reasoning": { "effort": null }, "truncation": "disabled",
            "text": { "format": { "type": "text" }, "verbosity": "medium" }, "parallel_tool_calls": true,
            "user": "ada", "safety_identifier": "ada", "prompt_cache_key": "a", "service_tier": "auto",
        });
        assert!(parse(nothing).is_ok());
    }

    #[test]
    fn names_that_other_routes_have_are_unknown_here_and_say_what_is_known() {
        for (name, instead) in [("max_tokens", "max_output_tokens"), ("messages", "input"), ("n", "one text")]
        {
            let (_, message) = refused(json!({ name: 3 }));
            assert!(message.starts_with(&format!("unknown field \"{name}\"")), "{message}");
            assert!(message.contains(instead), "{message}");
        }
        let (_, message) = refused(json!({ "instruction": "a" }));
        assert_eq!(message, "unknown field \"instruction\"; did you mean \"instructions\"?");
    }

    #[test]
    fn metadata_is_a_few_short_texts() {
        let call = parse(json!({ "metadata": { "run": "7" } })).unwrap();
        assert_eq!(call.metadata["run"], "7");
        let many: Map<_, _> = (0..17).map(|at| (at.to_string(), json!("x"))).collect();
        let wrong = [json!(many), json!({ "run": 7 }), json!({ "run": "x".repeat(513) }), json!("run")];
        for metadata in wrong.into_iter().chain([json!({ "x".repeat(65): "a" })]) {
            assert_eq!(refused(json!({ "metadata": metadata })).0, Some("metadata"));
        }
    }
}
